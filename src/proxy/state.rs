//! Everything that requests share: the routes made ready, their doors, the limits. Immutable once built; a reload builds
//! another.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::canonical::headers::{FRAMING, HOP_BY_HOP};
use crate::clock::Rest;
use crate::credential::keeper::Keeper;
use crate::provider::{self, Provider};
use crate::settings::Remark;
use crate::upstream::Timeouts;
use crate::upstream::links::Links;
use crate::upstream::tls::Verify;

use super::clean::{Cleaner, Names};
use super::guard::{Callers, Rule};
use super::lasting::Lasting;
use super::limit::Limiter;
use super::located::Located;
use super::route::Doors;
use super::servers::{Approach, Servers};
use super::signers::Signers;
use super::{Field, Limits, RouteSettings, ServerSettings};

/// What all requests share.
#[derive(Debug)]
pub struct State {
    /// The routes, in the order of the configuration.
    pub routes: Vec<Arc<Route>>,
    /// The same by their numbers, which stay when others come and go.
    by_number: Vec<Option<Arc<Route>>>,
    /// Their doors.
    pub doors: Doors,
    /// Browser origins that the guard lets through.
    pub origins: Vec<String>,
    /// The limits.
    pub limits: Limits,
    /// Our own listeners, which no route may lead to.
    pub own: Arc<[SocketAddr]>,
    /// What the access log says.
    pub access: Access,
    /// What outlives this state.
    pub lasting: Arc<Lasting>,
}

/// What is logged of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Off,
    /// A line, without the query.
    Path,
    /// A line, with the query.
    Query,
}

impl State {
    /// True once every route has been usable; it stays so.
    #[must_use]
    pub fn has_been_ready(&self) -> bool {
        if self.lasting.has_been_ready.load(Ordering::Relaxed) {
            return true;
        }
        let is_ready = self.routes.iter().all(|route| route.keeper.has_been_usable());
        self.lasting.has_been_ready.store(is_ready, Ordering::Relaxed);
        is_ready
    }

    /// The route of this number, if it is still there.
    #[must_use]
    pub fn route(&self, number: usize) -> Option<&Arc<Route>> {
        self.by_number.get(number)?.as_ref()
    }

    /// The numbers of all endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = u64> {
        let servers = self.routes.iter().flat_map(|route| route.servers());
        servers.flat_map(|servers| servers.all().iter().map(|endpoint| endpoint.number).collect::<Vec<_>>())
    }

    /// Puts the prepared routes behind their doors.
    #[must_use]
    pub fn new(
        server: &ServerSettings,
        routes: Vec<Arc<Route>>,
        limits: Limits,
        access: Access,
        own: Arc<[SocketAddr]>,
        lasting: Arc<Lasting>,
    ) -> Self {
        let names = routes.iter().map(|route| (route.number, (route.name.as_str(), route.hosts.as_slice())));
        let mut by_number = Vec::new();
        for route in &routes {
            if by_number.len() <= route.number {
                by_number.resize(route.number + 1, None);
            }
            if let Some(place) = by_number.get_mut(route.number) {
                *place = Some(Arc::clone(route));
            }
        }
        Self {
            doors: Doors::numbered(&server.domains, names),
            origins: server.origins.clone(),
            limits,
            own,
            access,
            lasting,
            by_number,
            routes,
        }
    }
}

/// A route, made ready: secrets read, TLS configured, headers prepared.
pub struct Route {
    /// Its name.
    pub name: String,
    /// Its number, the same for as long as there is a route of this name.
    pub number: usize,
    /// The exact names that lead to it.
    pub hosts: Vec<super::route::Authority>,
    /// The servers that it leads to.
    pub located: Arc<Located>,
    /// What may pass.
    pub allow: Option<Vec<Rule>>,
    /// Who may call.
    pub callers: Option<Callers>,
    /// What is cleaned from heads and trailers.
    pub cleaner: Arc<Cleaner>,
    /// Headers that would show callers a credential, and are removed from replies.
    pub concealed: Option<Arc<Names>>,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Its provider.
    pub provider: Arc<dyn Provider>,
    /// The name of its provider.
    pub provider_name: &'static str,
    /// The headers of replies that hold the provider's name for a request.
    pub id_headers: &'static [&'static str],
    /// Keeps what its provider signs with.
    pub keeper: Arc<Keeper>,
    /// Sign its requests.
    pub signers: Signers,
    /// Keeps to the provider's limits, where there are any.
    pub limiter: Option<Arc<Limiter>>,
    /// Counts its connections.
    pub links: Arc<Links>,
    /// After a renewal that did not help.
    pub renewal: Rest,
    /// After a renewal for a request that could not go again, so that nobody saw whether it helped.
    pub unseen_renewal: Rest,
    /// True if an upstream's clock is followed where it differs from ours.
    pub follows_clock: bool,
    /// How its servers are verified; `None` where it speaks no TLS.
    pub verify: Option<Verify>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("name", &self.name).field("provider", &self.provider_name).finish_non_exhaustive()
    }
}

impl Route {
    /// The servers that it leads to now: one list, or one for each generation of a credential that says where it leads.
    #[must_use]
    pub fn servers(&self) -> Vec<Arc<Servers>> {
        self.signers
            .servers(|generation| self.keeper.holds(generation))
            .into_iter()
            .chain([self.located.now()])
            .collect()
    }

    /// Makes a route ready.
    ///
    /// # Errors
    /// Everything in it that cannot be used now: secrets that cannot be read, certificates that do not fit.
    pub fn prepare(settings: RouteSettings, lasting: &Arc<Lasting>) -> Result<Self, Vec<Remark>> {
        let mut remarks = Vec::new();
        let mut found = |found: Vec<Remark>| remarks.extend(found);
        let approach = Approach::of(&settings);
        let located = lasting.located(&settings, &approach).map_err(&mut found).ok();
        let keeper = lasting.keeper(&settings).map_err(&mut found).ok();
        let token = settings.callers.as_ref().and_then(|callers| callers.token.as_ref());
        let token = token.map(|token| token.reveal().map_err(|trouble| found(vec![trouble])).ok());
        let (Some(located), Some(keeper), true) = (located, keeper, remarks.is_empty()) else {
            return Err(remarks);
        };
        let limiter = lasting.limiter(&settings);
        let links = lasting.links(&settings.name);
        let is_secure =
            settings.upstream.iter().any(|endpoint| endpoint.secure) || settings.registration.finds_upstream;
        let cleaner = Arc::new(cleaner(&settings));
        let concealed = concealed(&settings).map(Arc::new);
        let callers = settings.callers.map(|callers| Callers { settings: callers, token: token.flatten() });
        Ok(Self {
            cleaner,
            number: lasting.number(&settings.name),
            name: settings.name,
            hosts: settings.hosts,
            located,
            allow: settings.allow,
            callers,
            concealed,
            timeouts: settings.timeouts,
            signers: Signers::new(Arc::clone(&settings.provider), approach, Arc::clone(lasting)),
            provider: settings.provider,
            provider_name: settings.registration.name,
            id_headers: settings.registration.id_headers,
            keeper,
            limiter,
            links,
            renewal: Rest::new(RENEWAL_REST),
            unseen_renewal: Rest::new(RENEWAL_REST),
            follows_clock: settings.follows_clock,
            verify: is_secure.then_some(settings.tls.verify),
        })
    }
}

/// How long after a renewal that did not help, as far as anybody saw, none is made for the same reason.
const RENEWAL_REST: Duration = Duration::from_secs(60);

fn cleaner(settings: &RouteSettings) -> Cleaner {
    let sets = settings.provider.sets();
    let everybodys = provider::ALL.iter().flat_map(|registration| registration.credential_headers);
    let remove = everybodys.chain(provider::ALWAYS).chain(&HOP_BY_HOP).chain(&FRAMING).copied();
    let fields = |fields: &[Field]| fields.iter().map(|field| (field.name.clone(), field.value.clone())).collect();
    Cleaner {
        remove: Names::new(remove.chain(sets.iter().map(String::as_str)).chain(["x-countersign-*"])),
        keep: Names::new(settings.keep.iter().map(String::as_str)),
        set: fields(&settings.headers),
        default: fields(&settings.default_headers),
    }
}

fn concealed(settings: &RouteSettings) -> Option<Names> {
    let exposed = Names::new(settings.expose.iter().map(String::as_str));
    let mut concealed = settings.provider.conceals().iter().copied().filter(|name| !exposed.contains(name)).peekable();
    concealed.peek().is_some().then(|| Names::new(concealed))
}
