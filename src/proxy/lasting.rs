//! What outlives every state: credentials, what was learned of servers and asked of them, what is counted, access keys that
//! rest.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::clock::{Clock, Skew};
use crate::credential::Source;
use crate::credential::keeper::Keeper;
use crate::settings::Remark;
use crate::upstream::Endpoint;
use crate::upstream::ask::Asker;
use crate::upstream::links::Links;
use crate::upstream::outbound::Outbound;
use crate::upstream::tls::Roots;

use super::RouteSettings;
use super::hold::Budget;
use super::limit::Limiter;
use super::located::Located;
use super::lockout::Lockouts;
use super::refusals::Refusals;
use super::repeats::Repeats;
use super::servers::Approach;
use super::state::State;
use super::tally::Tallies;

/// What all states of a daemon share.
#[derive(Debug)]
pub struct Lasting {
    /// Tells the time.
    pub clock: Clock,
    /// Whom to trust where nobody else is named.
    pub roots: Arc<ArcSwap<Roots>>,
    /// The access keys that providers lock.
    pub lockouts: Arc<Lockouts>,
    /// What held bodies take.
    pub held: Arc<Budget>,
    /// Callers' connections that are open.
    pub connections: AtomicUsize,
    /// Those that were closed at once.
    pub turned_away: AtomicU64,
    /// True from the moment that the daemon is being stopped.
    pub is_draining: AtomicBool,
    /// True once every route could have sent a request, whatever has become of it since.
    pub has_been_ready: AtomicBool,
    /// What was refused last.
    pub refusals: Refusals,
    /// What is counted of requests.
    pub tallies: Tallies,
    /// What the log has said lately and need not say again.
    pub repeats: Repeats,
    endpoints: AtomicU64,
    /// The names of the routes there ever were, each at its number.
    names: Mutex<Vec<String>>,
    skews: Mutex<HashMap<String, Arc<Skew>>>,
    located: Mutex<HashMap<String, Arc<Located>>>,
    keepers: Mutex<Vec<Kept>>,
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    /// Those of routes that are gone too.
    links: Mutex<BTreeMap<String, Arc<Links>>>,
}

/// A keeper, and how its questions get out.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What distinguishes it from others.
    identity: String,
    /// The keeper.
    pub keeper: Arc<Keeper>,
    /// The proxy between.
    pub proxy: Outbound,
}

impl Lasting {
    /// Nothing learned yet.
    #[must_use]
    pub fn new(clock: Clock, roots: Roots) -> Self {
        Self {
            clock,
            roots: Arc::new(ArcSwap::from_pointee(roots)),
            lockouts: Arc::default(),
            held: Arc::default(),
            connections: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            has_been_ready: AtomicBool::new(false),
            refusals: Refusals::default(),
            tallies: Tallies::default(),
            repeats: Repeats::default(),
            endpoints: AtomicU64::new(0),
            names: Mutex::default(),
            skews: Mutex::default(),
            located: Mutex::default(),
            keepers: Mutex::default(),
            limiters: Mutex::default(),
            links: Mutex::default(),
        }
    }

    /// The number of the route of this name.
    pub fn number(&self, name: &str) -> usize {
        let mut names = lock(&self.names);
        names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        })
    }

    /// A number for an endpoint.
    pub fn next_endpoint(&self) -> u64 {
        self.endpoints.fetch_add(1, Ordering::Relaxed)
    }

    /// How far a server's clock is ahead of ours, one for all routes that lead there.
    pub fn skew(&self, endpoint: &Endpoint) -> Arc<Skew> {
        Arc::clone(lock(&self.skews).entry(endpoint.to_string()).or_default())
    }

    /// A route's servers, with the connections and TLS sessions of those that stay as they are.
    ///
    /// # Errors
    /// Certificates that cannot be used, a proxy that is no proxy.
    pub fn located(&self, settings: &RouteSettings, approach: &Approach) -> Result<Arc<Located>, Vec<Remark>> {
        let before = lock(&self.located).get(&settings.name).cloned();
        let servers = before.as_ref().map(|before| before.now());
        let is_same =
            |before: &Located| before.directory.as_ref().map(|(directory, _)| directory) == settings.directory.as_ref();
        let known: Vec<_> = match &settings.directory {
            None => settings.upstream.clone(),
            // What it said last is good until it says something else.
            Some(_) if before.as_deref().is_some_and(is_same) => {
                servers.iter().flat_map(|servers| servers.all()).map(|server| server.target.endpoint.clone()).collect()
            }
            Some(_) => Vec::new(),
        };
        let reached = approach.reach(&known, self, servers.as_deref())?;
        // As it is, it goes on being asked, and nobody who waits for its first word waits in vain.
        let is_as_it_is = |before: &&Arc<Located>| {
            let has_same_proxy = |(_, old): &(_, Approach)| old.proxy().identity() == approach.proxy().identity();
            before.directory.as_ref().is_some_and(has_same_proxy) && is_same(before) && before.now().is_same(&reached)
        };
        if let Some(before) = before.as_ref().filter(is_as_it_is) {
            return Ok(Arc::clone(before));
        }
        let directory = settings.directory.clone().map(|directory| (directory, approach.clone()));
        Ok(Arc::new(Located::new(&settings.name, reached, directory)))
    }

    /// Every directory that is asked, and the proxy between.
    #[must_use]
    pub fn directories(&self) -> Vec<Arc<Located>> {
        lock(&self.located).values().filter(|located| located.directory.is_some()).cloned().collect()
    }

    /// The keeper of a route's credential: the one that it had before, or that another route has which has the same fetched.
    /// What can be read is read before anybody asks.
    ///
    /// # Errors
    /// Every secret that cannot be read, and why what was read cannot be used.
    pub fn keeper(&self, settings: &RouteSettings) -> Result<Arc<Keeper>, Vec<Remark>> {
        let (source, provider) = (settings.provider.source(), &settings.provider);
        // What is read belongs to its route, which may have a word to say about it; the rest is for all.
        let identity = match source {
            Source::Fetched(fetch) => {
                fetch.check()?;
                format!("{} {} {}", settings.registration.name, fetch.identity(), settings.proxy.identity())
            }
            source => format!("{} {} {provider:?}", settings.name, source.identity()),
        };
        if let Some(known) = lock(&self.keepers).iter().find(|kept| kept.identity == identity) {
            return Ok(Arc::clone(&known.keeper));
        }
        let accepting = Arc::clone(provider);
        let keeper =
            Keeper::new(source.clone(), self.clock.clone(), move |credential| accepting.signer(credential).map(drop));
        if !matches!(source, Source::Fetched(_)) {
            keeper.seed(source.load()?).map_err(|message| {
                vec![Remark { place: settings.place, message: format!("[routes.{}]: {message}", settings.name) }]
            })?;
        }
        lock(&self.keepers).push(Kept { identity, keeper: Arc::clone(&keeper), proxy: settings.proxy.clone() });
        Ok(keeper)
    }

    /// What keeps a route to its provider's limits, if it has any: what it had before, as long as they are the same.
    pub fn limiter(&self, settings: &RouteSettings) -> Option<Arc<Limiter>> {
        let allowance = settings.provider.allowance()?;
        let mut limiters = lock(&self.limiters);
        if let Some(known) = limiters.get(&settings.name).filter(|known| known.allowance() == allowance) {
            return Some(Arc::clone(known));
        }
        let limiter = Arc::new(Limiter::new(allowance));
        limiters.insert(settings.name.clone(), Arc::clone(&limiter));
        Some(limiter)
    }

    /// Where the connections of the route of this name are counted.
    pub fn links(&self, name: &str) -> Arc<Links> {
        Arc::clone(lock(&self.links).entry(name.to_owned()).or_default())
    }

    /// Where those of all routes are that there ever were.
    #[must_use]
    pub fn all_links(&self) -> BTreeMap<String, Arc<Links>> {
        lock(&self.links).clone()
    }

    /// What it takes to ask through this proxy; `own` are our own listeners.
    #[must_use]
    pub fn asker(&self, proxy: Outbound, own: Arc<[SocketAddr]>) -> Asker {
        Asker { clock: self.clock.clone(), roots: Arc::clone(&self.roots), proxy, own }
    }

    /// Every keeper.
    #[must_use]
    pub fn keepers(&self) -> Vec<Kept> {
        lock(&self.keepers).clone()
    }

    /// Remembers what the routes of this state have, and nothing else.
    pub fn retain(&self, state: &State) {
        lock(&self.keepers).retain(|Kept { keeper, .. }| {
            let users = state.routes.iter().filter(|route| Arc::ptr_eq(&route.keeper, keeper));
            let names: Vec<_> = users.map(|route| route.name.as_str()).collect();
            keeper.name_routes(names.join(", "));
            !names.is_empty()
        });
        let located = state.routes.iter().map(|route| (route.name.clone(), Arc::clone(&route.located)));
        *lock(&self.located) = located.collect();
        let limiters = state.routes.iter().filter_map(|route| Some((route.name.clone(), route.limiter.clone()?)));
        *lock(&self.limiters) = limiters.collect();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
