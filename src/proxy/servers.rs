//! The servers that a route leads to, how each is reached, and which of them is next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderValue;
use smallvec::SmallVec;

use crate::clock::{Rest, Skew, Timestamp};
use crate::provider::Order;
use crate::settings::{Place, Remark};
use crate::upstream::connect::{Target, Tls};
use crate::upstream::outbound::{Outbound, Passage};
use crate::upstream::{self, Host, tls};

use super::RouteSettings;
use super::lasting::Lasting;

/// A server that a route leads to.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// How to reach it.
    pub target: Target,
    /// What goes into `Host`.
    pub authority: HeaderValue,
    /// Its number: another one if it is reached in another way, or with another identity.
    pub number: u64,
    /// How far its clock is ahead of ours.
    pub skew: Arc<Skew>,
    /// After a failure, when others are asked first.
    pub rest: Arc<Rest>,
}

/// How a route reaches its servers, whichever they are.
#[derive(Clone, Debug)]
pub struct Approach {
    place: Place,
    connect: Option<(Host, u16)>,
    proxy: Outbound,
    tls: tls::Settings,
    speaks_http1: bool,
    order: Order,
}

/// A route's servers.
#[derive(Clone, Debug)]
pub struct Servers {
    identity: String,
    /// The part of it that is not the list: how each is reached.
    way: String,
    endpoints: Arc<[Endpoint]>,
    order: Order,
    /// Where the next request begins.
    turn: Arc<AtomicUsize>,
    /// How long the certificates are valid.
    pub validities: Vec<tls::Validity>,
}

impl Approach {
    /// The proxy between.
    #[must_use]
    pub fn proxy(&self) -> &Outbound {
        &self.proxy
    }

    /// How this route reaches its servers.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Self {
        Self {
            place: settings.place,
            connect: settings.connect.clone(),
            proxy: settings.proxy.clone(),
            tls: settings.tls.clone(),
            speaks_http1: settings.provider.is_http1_only(),
            order: settings.provider.order(),
        }
    }

    /// The same with another identity and other trust anchors.
    #[must_use]
    pub fn with_identity(&self, identity: tls::ClientIdentity) -> Self {
        let mut approach = self.clone();
        approach.tls.identity = Some(identity);
        approach
    }

    /// Finds out how these servers are reached; a server that is reached as `before` keeps its pooled connections, its TLS
    /// sessions and its rest.
    ///
    /// # Errors
    /// Certificates that cannot be used, a proxy that is no proxy, a certificate that has expired where the one before is
    /// still valid.
    pub fn reach(
        &self,
        upstream: &[upstream::Endpoint],
        lasting: &Lasting,
        before: Option<&Servers>,
    ) -> Result<Servers, Vec<Remark>> {
        let Self { place, connect, proxy, tls, speaks_http1, order } = self;
        let passage = |endpoint: &upstream::Endpoint| {
            let dialled = connect.clone().map(|(host, port)| upstream::Endpoint { host, port, ..*endpoint });
            proxy.passage(endpoint, dialled.as_ref())
        };
        let passages: Result<Vec<_>, _> = upstream.iter().map(passage).collect();
        let ways = passages.as_ref().map(|passages| passages.iter().map(Passage::identity).collect::<Vec<_>>());
        let roots = lasting.roots.load();
        let is_secure = upstream.iter().any(|endpoint| endpoint.secure);
        let way = || format!("{connect:?} {speaks_http1} {order:?} {is_secure} {}", tls.identity(&roots));
        let identity = |way: &str| format!("{upstream:?} {ways:?} {way}");
        let mut found = way();
        if let Some(before) = before.filter(|before| before.identity == identity(&found)) {
            return Ok(before.clone());
        }
        let read = || is_secure.then(|| tls::client_config(tls, &roots, *place)).transpose();
        let mut config = read();
        // Certificate, key and CA belong together: read while they change, they may be some of the old and some of the new.
        for _ in 0..READINGS {
            let now = way();
            if now == found {
                break;
            }
            (found, config) = (now, read());
        }
        let (identity, way) = (identity(&found), found);
        let (config, passages) = match (config, passages) {
            (Ok(config), Ok(passages)) => (config, passages),
            (config, passages) => {
                return Err(config.err().into_iter().flatten().chain(passages.err()).collect());
            }
        };
        let (config, validities) = config.unzip();
        let validities = validities.unwrap_or_default();
        if let Some(before) = before.filter(|before| !before.validities.is_empty()) {
            let now = lasting.clock.now();
            let expired: Vec<_> = validities.iter().filter_map(|validity| validity.expired(now)).collect();
            if !expired.is_empty() && before.validities.iter().all(|validity| validity.expired(now).is_none()) {
                return Err(expired);
            }
        }
        let http2 = config.as_deref().filter(|_| !speaks_http1).map(tls::with_http2);
        let unusable = |message: &str| vec![Remark { place: *place, message: message.to_owned() }];
        let before = before.filter(|before| before.way == way);
        let build = |(endpoint, passage): (&upstream::Endpoint, Passage)| {
            let is_it = |known: &&Endpoint| {
                known.target.endpoint == *endpoint && known.target.passage.identity() == passage.identity()
            };
            if let Some(known) = before.and_then(|before| before.endpoints.iter().find(is_it)) {
                return Ok(known.clone());
            }
            let name = tls.server_name.as_ref().unwrap_or(&endpoint.host).to_server_name();
            let name = name.ok_or_else(|| unusable("the host is no TLS server name"))?;
            let (host, port) = connect.clone().unwrap_or_else(|| (endpoint.host.clone(), endpoint.port));
            let authority = endpoint.authority().try_into().map_err(|_| unusable("the host is not valid"))?;
            let tls = config.as_ref().filter(|_| endpoint.secure);
            let tls = tls.map(|config| Tls { http1: Arc::clone(config), http2: http2.clone(), name });
            let target = Target { endpoint: endpoint.clone(), host, port, passage, tls };
            let (number, skew) = (lasting.next_endpoint(), lasting.skew(endpoint));
            Ok(Endpoint { target, authority, number, skew, rest: Arc::new(Rest::new(REST)) })
        };
        let endpoints: Result<_, Vec<Remark>> = upstream.iter().zip(passages).map(build).collect();
        Ok(Servers {
            identity,
            way,
            endpoints: endpoints?,
            order: *order,
            turn: Arc::new(AtomicUsize::new(fastrand::usize(..))),
            validities,
        })
    }
}

impl Servers {
    /// No server yet.
    #[must_use]
    pub fn none() -> Self {
        Self {
            identity: String::new(),
            way: String::new(),
            endpoints: Arc::default(),
            order: Order::Turns,
            turn: Arc::default(),
            validities: Vec::new(),
        }
    }

    /// True if these are the same, reached in the same way.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// These servers in the place of others: who stays with one of both goes on staying there.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let here = before.turn.load(Ordering::Relaxed) % before.endpoints.len().max(1);
        let current = before.endpoints.get(here);
        let is_it =
            |endpoint: &Endpoint| current.is_some_and(|current| current.target.endpoint == endpoint.target.endpoint);
        if let Some(place) = self.endpoints.iter().position(is_it) {
            self.turn.store(place, Ordering::Relaxed);
        }
        self
    }

    /// Every server.
    #[must_use]
    pub fn all(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// A request's way through the servers, each of which it comes to once at most.
#[derive(Debug)]
pub struct Round {
    /// The servers.
    pub servers: Arc<Servers>,
    begin: usize,
    /// Where it is.
    here: usize,
    /// The numbers of those it has come to.
    tried: SmallVec<[u64; 4]>,
}

impl Round {
    /// Begins at the server whose turn it is, unless it failed lately. `None` where there is no server.
    #[must_use]
    pub fn begin(servers: Arc<Servers>, now: Timestamp) -> Option<Self> {
        Self::begin_after(servers, SmallVec::new(), now)
    }

    /// Goes on among other servers than before, some of which may be the same.
    #[must_use]
    pub fn among(self, servers: Arc<Servers>, now: Timestamp) -> Option<Self> {
        Self::begin_after(Arc::clone(&servers), self.tried, now).or_else(|| Self::begin(servers, now))
    }

    fn begin_after(servers: Arc<Servers>, tried: SmallVec<[u64; 4]>, now: Timestamp) -> Option<Self> {
        let begin = match (servers.endpoints.len(), servers.order) {
            (0, _) => return None,
            (1, _) => 0,
            (_, Order::Turns) => servers.turn.fetch_add(1, Ordering::Relaxed),
            (_, Order::Stay) => servers.turn.load(Ordering::Relaxed),
        };
        let mut round = Self { servers, begin, here: 0, tried };
        round.step(now).then_some(round)
    }

    /// The server where it is.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.servers.endpoints.get(self.here)
    }

    /// Has others leave out the server where it is, which failed, for a while.
    pub fn blame(&self, now: Timestamp) {
        let count = self.servers.endpoints.len();
        if let (Some(endpoint), 2..) = (self.endpoint(), count) {
            endpoint.rest.begin(now);
            let turn = self.servers.turn.load(Ordering::Relaxed);
            // Unless another request has moved on already.
            if self.servers.order == Order::Stay && turn % count == self.here {
                let _ = self.servers.turn.compare_exchange(turn, self.here + 1, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Goes to the next server. False if there is none.
    pub fn step(&mut self, now: Timestamp) -> bool {
        let endpoints = &self.servers.endpoints;
        let count = endpoints.len();
        let in_turn = (0..count).map(|step| self.begin.wrapping_add(step) % count);
        let places = in_turn.filter_map(|place| Some((place, endpoints.get(place)?)));
        let left = places.filter(|(_, endpoint)| !self.tried.contains(&endpoint.number));
        let next = left.clone().find(|(_, endpoint)| !endpoint.rest.is_on(now)).or_else(|| left.clone().next());
        let Some((place, endpoint)) = next else { return false };
        let number = endpoint.number;
        self.here = place;
        self.tried.push(number);
        true
    }
}

/// How often files that change while they are read are read anew.
const READINGS: usize = 20;

/// How long a server that failed is asked after the others.
const REST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const NOON: Timestamp = Timestamp(1_700_000_000_000);

    fn servers(count: u16, order: Order) -> Arc<Servers> {
        let (approach, lasting) = approach(order);
        let servers = approach.reach(&upstream(1..=count), &lasting, None).unwrap();
        servers.turn.store(0, Ordering::Relaxed);
        Arc::new(servers)
    }

    fn upstream(ports: impl IntoIterator<Item = u16>) -> Vec<upstream::Endpoint> {
        let endpoint = |port| upstream::Endpoint::parse(&format!("http://a.test:{port}")).unwrap();
        ports.into_iter().map(endpoint).collect()
    }

    fn approach(order: Order) -> (Approach, Lasting) {
        let approach = Approach {
            place: Place::default(),
            connect: None,
            proxy: Outbound::Direct,
            tls: tls::Settings::default(),
            speaks_http1: true,
            order,
        };
        (approach, Lasting::new(Clock::fixed(NOON), tls::Roots::default()))
    }

    fn ports(servers: &Arc<Servers>, now: Timestamp) -> Vec<u16> {
        let mut round = Round::begin(Arc::clone(servers), now).unwrap();
        let mut ports = vec![round.endpoint().unwrap().target.port];
        while round.step(now) {
            ports.push(round.endpoint().unwrap().target.port);
        }
        ports
    }

    #[test]
    fn each_server_has_its_turn_and_is_tried_once() {
        let servers = servers(3, Order::Turns);
        for expected in [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]] {
            assert_eq!(ports(&servers, NOON), expected);
        }
    }

    #[test]
    fn a_server_that_failed_comes_last_for_a_while() {
        let servers = servers(3, Order::Turns);
        Round::begin(Arc::clone(&servers), NOON).unwrap().blame(NOON);
        assert_eq!(ports(&servers, NOON), [2, 3, 1]);
        assert_eq!(ports(&servers, NOON), [3, 2, 1]);
        assert_eq!(ports(&servers, NOON.after(REST)), [1, 2, 3]);
    }

    #[test]
    fn who_stays_stays_until_the_server_fails() {
        let servers = servers(3, Order::Stay);
        for _ in 0..3 {
            assert_eq!(ports(&servers, NOON), [1, 2, 3]);
        }
        let [mut one, mut other] = [(); 2].map(|()| Round::begin(Arc::clone(&servers), NOON).unwrap());
        for round in [&mut one, &mut other] {
            round.blame(NOON);
            assert!(round.step(NOON));
        }
        assert_eq!(ports(&servers, NOON.after(REST)), [2, 3, 1]);
    }

    #[test]
    fn who_stays_in_a_list_that_changes_stays_the_same() {
        let (approach, lasting) = approach(Order::Stay);
        let before = Arc::new(approach.reach(&upstream([1, 2, 3]), &lasting, None).unwrap());
        before.turn.store(0, Ordering::Relaxed);
        let mut round = Round::begin(Arc::clone(&before), NOON).unwrap();
        round.blame(NOON);
        assert!(round.step(NOON));
        let after = Arc::new(approach.reach(&upstream([4, 2, 1]), &lasting, Some(&before)).unwrap().after(&before));
        let number = |servers: &Servers, port| {
            servers.all().iter().find(|endpoint| endpoint.target.port == port).unwrap().number
        };
        for port in [1, 2] {
            assert_eq!(number(&before, port), number(&after, port), "{port}");
        }
        assert!(after.all()[2].rest.is_on(NOON), "it failed a moment ago");
        assert_eq!(ports(&after, NOON), [2, 4, 1], "with the one where it was");
        let mut round = round.among(after, NOON).unwrap();
        assert_eq!(round.endpoint().unwrap().target.port, 4, "it has come to the others");
        assert!(!round.step(NOON));
    }

    #[test]
    fn an_only_server_is_tried_though_it_failed() {
        let servers = servers(1, Order::Stay);
        let mut round = Round::begin(Arc::clone(&servers), NOON).unwrap();
        round.blame(NOON);
        assert!(!round.step(NOON));
        assert_eq!(ports(&servers, NOON), [1]);
        assert!(Round::begin(Arc::new(Servers::none()), NOON).is_none());
    }
}
