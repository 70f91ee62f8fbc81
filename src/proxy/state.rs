//! Everything that requests share: the routes made ready, their doors, the limits. Immutable once built.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use http::HeaderValue;
use rustls_pki_types::ServerName;

use crate::canonical::headers::{FRAMING, HOP_BY_HOP};
use crate::credential::Credential;
use crate::provider::{self, Provider, Signer};
use crate::settings::Remark;
use crate::upstream::connect::{Target, Tls};
use crate::upstream::outbound::Passage;
use crate::upstream::{Host, Timeouts, tls};

use super::clean::{Cleaner, Names};
use super::guard::{Callers, Rule};
use super::hold::Budget;
use super::route::Doors;
use super::{Field, Limits, RouteSettings, ServerSettings};

/// What all requests share.
#[derive(Debug)]
pub struct State {
    /// The routes.
    pub routes: Vec<Arc<Route>>,
    /// Their doors.
    pub doors: Doors,
    /// Browser origins that the guard lets through.
    pub origins: Vec<String>,
    /// The limits.
    pub limits: Limits,
    /// What held bodies take.
    pub held: Arc<Budget>,
    /// Callers' connections that are open.
    pub connections: AtomicUsize,
    /// Our own listeners, which no route may lead to.
    pub own: Vec<SocketAddr>,
    /// True from the moment that the daemon is being stopped.
    pub is_draining: AtomicBool,
    /// What the access log says.
    pub access: Access,
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
    /// Puts the prepared routes behind their doors.
    #[must_use]
    pub fn new(
        server: &ServerSettings,
        routes: Vec<Route>,
        limits: Limits,
        access: Access,
        own: Vec<SocketAddr>,
    ) -> Self {
        let names = routes.iter().map(|route| (route.name.as_str(), route.hosts.as_slice()));
        Self {
            doors: Doors::new(&server.domains, names),
            origins: server.origins.clone(),
            limits,
            held: Arc::default(),
            connections: AtomicUsize::new(0),
            own,
            is_draining: AtomicBool::new(false),
            access,
            routes: routes.into_iter().map(Arc::new).collect(),
        }
    }
}

/// A route, made ready: secrets read, TLS configured, headers prepared.
pub struct Route {
    /// Its name.
    pub name: String,
    /// The exact names that lead to it.
    pub hosts: Vec<super::route::Authority>,
    /// The servers that it leads to.
    pub endpoints: Vec<Endpoint>,
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
    pub provider: Box<dyn Provider>,
    /// The name of its provider.
    pub provider_name: &'static str,
    /// What its provider signs with.
    pub credential: Credential,
    /// Signs its requests.
    pub signer: Arc<dyn Signer>,
    /// How long its certificates are valid.
    pub validities: Vec<tls::Validity>,
}

/// A server that a route leads to.
#[derive(Debug)]
pub struct Endpoint {
    /// How to reach it.
    pub target: Target,
    /// What goes into `Host`.
    pub authority: HeaderValue,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("name", &self.name).field("provider", &self.provider_name).finish_non_exhaustive()
    }
}

impl Route {
    /// Makes a route ready.
    ///
    /// # Errors
    /// Everything in it that cannot be used now: secrets that cannot be read, certificates that do not fit.
    pub fn prepare(settings: RouteSettings, roots: &tls::Roots) -> Result<Self, Vec<Remark>> {
        let mut remarks = Vec::new();
        let mut found = |found: Vec<Remark>| remarks.extend(found);
        let endpoints = endpoints(&settings, roots).map_err(&mut found).ok();
        let credential = settings.provider.source().load().map_err(&mut found).ok();
        let token = settings.callers.as_ref().and_then(|callers| callers.token.as_ref());
        let token = token.map(|token| token.reveal().map_err(|trouble| found(vec![trouble])).ok());
        let signer = credential.as_ref().and_then(|credential| {
            let place = settings.place;
            let remark = |message| vec![Remark { place, message: format!("[routes.{}]: {message}", settings.name) }];
            settings.provider.signer(credential).map_err(|message| found(remark(message))).ok()
        });
        let (Some((endpoints, validities)), Some(credential), Some(signer), true) =
            (endpoints, credential, signer, remarks.is_empty())
        else {
            return Err(remarks);
        };
        let cleaner = Arc::new(cleaner(&settings));
        let concealed = concealed(&settings).map(Arc::new);
        let callers = settings.callers.map(|callers| Callers { settings: callers, token: token.flatten() });
        Ok(Self {
            cleaner,
            name: settings.name,
            hosts: settings.hosts,
            endpoints,
            allow: settings.allow,
            callers,
            concealed,
            timeouts: settings.timeouts,
            provider: settings.provider,
            provider_name: settings.registration.name,
            credential,
            signer,
            validities,
        })
    }
}

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

fn endpoints(settings: &RouteSettings, roots: &tls::Roots) -> Result<(Vec<Endpoint>, Vec<tls::Validity>), Vec<Remark>> {
    let is_secure = settings.upstream.iter().any(|endpoint| endpoint.secure);
    let tls = is_secure.then(|| tls::client_config(&settings.tls, roots, settings.place)).transpose();
    let passages: Result<Vec<_>, _> = settings.upstream.iter().map(|endpoint| passage(endpoint, settings)).collect();
    let (tls, passages) = match (tls, passages) {
        (Ok(tls), Ok(passages)) => (tls, passages),
        (tls, passages) => {
            return Err(tls.err().into_iter().flatten().chain(passages.err()).collect());
        }
    };
    let (config, validities) = tls.unzip();
    let http2 = config.as_deref().filter(|_| !settings.provider.is_http1_only()).map(tls::with_http2);
    let unusable = |message: &str| vec![Remark { place: settings.place, message: message.to_owned() }];
    let build = |(endpoint, passage): (&crate::upstream::Endpoint, Passage)| {
        let name = match settings.tls.server_name.as_ref().unwrap_or(&endpoint.host) {
            Host::Name(name) => {
                ServerName::try_from(name.clone()).map_err(|_| unusable("the host is no TLS server name"))?
            }
            Host::Address(address) => ServerName::from(*address),
        };
        let (host, port) = settings.connect.clone().unwrap_or_else(|| (endpoint.host.clone(), endpoint.port));
        let authority = HeaderValue::try_from(endpoint.authority()).map_err(|_| unusable("the host is not valid"))?;
        let tls = config.as_ref().filter(|_| endpoint.secure);
        let tls = tls.map(|config| Tls { http1: Arc::clone(config), http2: http2.clone(), name });
        Ok(Endpoint { target: Target { endpoint: endpoint.clone(), host, port, passage, tls }, authority })
    };
    let endpoints: Result<_, Vec<Remark>> = settings.upstream.iter().zip(passages).map(build).collect();
    Ok((endpoints?, validities.unwrap_or_default()))
}

/// How requests get to an endpoint. A proxy that is handed a request itself goes by its target, so that where something
/// else is dialled only a tunnel leads there, as with curl's --connect-to.
fn passage(endpoint: &crate::upstream::Endpoint, settings: &RouteSettings) -> Result<Passage, Remark> {
    let dialled = settings.connect.clone().map(|(host, port)| crate::upstream::Endpoint { host, port, ..*endpoint });
    let Some(proxy) = settings.proxy.for_endpoint(dialled.as_ref().unwrap_or(endpoint))? else {
        return Ok(Passage::Direct);
    };
    if endpoint.secure || dialled.is_some() {
        return Ok(Passage::Tunnel(proxy));
    }
    let authority = endpoint.authority().try_into();
    let authority = authority
        .map_err(|_| Remark { place: settings.place, message: "the host is not valid in a URL".to_owned() })?;
    Ok(Passage::Forward(proxy, authority))
}
