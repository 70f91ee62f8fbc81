//! What a monitoring system reads, in the text format of `OpenMetrics`
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>). Labels come from the configuration and from lists of our own
//! alone. It is put together when somebody asks, from what requests have left in [`Tally`], [`Links`] and the like.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::clock::Timestamp;
use crate::proxy::state::State;
use crate::proxy::tally::{BOUNDS, NOWHERE, Tally};
use crate::upstream::links::Links;

use super::status::Life;

/// Everything at this moment.
#[must_use]
pub fn render(state: &State, life: &Life) -> String {
    let mut registry = Registry::with_prefix("countersign");
    of_daemon(&mut registry, state, life);
    of_requests(&mut registry, state);
    of_links(&mut registry, state);
    of_routes(&mut registry, state);
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn of_daemon(registry: &mut Registry, state: &State, life: &Life) {
    let commit = option_env!("COUNTERSIGN_COMMIT").unwrap_or_default();
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", commit)]);
    registry.register("build", "What runs", build);
    let (counter, gauge) = (MetricType::Counter, MetricType::Gauge);
    let started = Series::of(gauge, Value::Number(seconds(life.started())));
    registry.register_with_unit("process_start_time", "When the daemon was started", Unit::Seconds, started);
    let reloads = life.reloads();
    let successful = Series::of(gauge, Value::Count(u64::from(reloads.is_last_successful)));
    let help = "Whether the configuration that is there is in effect";
    registry.register("config_last_reload_successful", help, successful);
    let last = Series::of(gauge, Value::Number(seconds(reloads.last)));
    let help = "When a configuration was taken over last";
    registry.register_with_unit("config_last_reload_success_timestamp", help, Unit::Seconds, last);
    let mut counts = Series::new(counter);
    counts.set(labels("", &[("result", "success")]), Value::Count(reloads.successes));
    counts.set(labels("", &[("result", "failure")]), Value::Count(reloads.failures));
    registry.register("config_reloads", "Reloads, by what became of them", counts);

    let (lasting, limits) = (&state.lasting, &state.limits);
    let number = |count: usize| Series::of(gauge, Value::Count(count as u64));
    let open = lasting.connections.load(Ordering::Relaxed);
    registry.register("connections", "Callers' connections that are open", number(open));
    let help = "How many there may be: `limits.connections`";
    registry.register("connections_limit", help, number(limits.connections));
    let help = "Callers' connections that were closed at once, since there were far too many";
    let turned_away = Series::of(counter, Value::Count(lasting.turned_away.load(Ordering::Relaxed)));
    registry.register("connections_turned_away", help, turned_away);
    let help = "What the request bodies take that are held";
    registry.register_with_unit("held_bodies", help, Unit::Bytes, number(lasting.held.used()));
    let help = "What they may take: `limits.held_bodies`";
    registry.register_with_unit("held_bodies_limit", help, Unit::Bytes, number(limits.held_bodies));
}

/// What the threads have counted of each route: of those in the configuration, whether there was a request or not, and of
/// those that are gone, so that no count goes back if they return.
struct Requests(Vec<(String, Vec<Arc<Tally>>)>);

impl Requests {
    fn of(state: &State) -> Self {
        let names = state.routes.iter().map(|route| route.name.as_str()).chain([NOWHERE]);
        // A blank one has the names of what was not counted yet.
        let mut routes: Vec<_> = names.map(|name| (name.to_owned(), vec![Arc::new(Tally::new(name))])).collect();
        for tally in state.lasting.tallies.all() {
            match routes.iter_mut().find(|(name, _)| *name == tally.route) {
                Some((_, tallies)) => tallies.push(tally),
                None => routes.push((tally.route.clone(), vec![tally])),
            }
        }
        Self(routes)
    }

    /// A number for each route.
    fn sum(&self, kind: MetricType, count: impl Fn(&Tally) -> u64) -> Series {
        let mut series = Series::new(kind);
        for (route, tallies) in &self.0 {
            series.set(labels(route, &[]), Value::Count(tallies.iter().map(|tally| count(tally)).sum()));
        }
        series
    }

    /// A count for each route and each of some kinds.
    fn each(&self, label: &'static str, counts: impl Fn(&Tally) -> Vec<(&'static str, u64)>) -> Series {
        let mut series = Series::new(MetricType::Counter);
        for (route, tallies) in &self.0 {
            let mut sums: Vec<(&str, u64)> = Vec::new();
            for (kind, count) in tallies.iter().flat_map(|tally| counts(tally)) {
                match sums.iter_mut().find(|(known, _)| *known == kind) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((kind, count)),
                }
            }
            for (kind, sum) in sums {
                series.set(labels(route, &[(label, kind)]), Value::Count(sum));
            }
        }
        series
    }

    /// Durations of each route.
    fn durations(&self, values: impl Fn(&Tally) -> (u64, [u64; BUCKETS])) -> Series {
        let mut series = Series::new(MetricType::Histogram);
        for (route, tallies) in &self.0 {
            let (mut micros, mut sums) = (0, [0; BUCKETS]);
            for (more, buckets) in tallies.iter().map(|tally| values(tally)) {
                micros += more;
                sums.iter_mut().zip(buckets).for_each(|(sum, count)| *sum += count);
            }
            series.set(labels(route, &[]), Value::Durations(micros, Box::new(sums)));
        }
        series
    }
}

macro_rules! kinds {
    ($field:ident) => {
        |tally: &Tally| tally.$field.each().map(|(name, count)| (name, count.value())).collect()
    };
}

fn of_requests(registry: &mut Registry, state: &State) {
    let requests = Requests::of(state);
    let counter = MetricType::Counter;
    let help = "Requests that have ended, by the class of their status; none: the caller left before there was one";
    registry.register("requests", help, requests.each("status", kinds!(statuses)));
    let in_flight = |tally: &Tally| {
        // In this order: what has ended had begun.
        let ended: u64 = tally.statuses.each().map(|(_, count)| count.value()).sum();
        tally.begun.value().saturating_sub(ended)
    };
    let help = "Requests that have not ended, tunnels among them";
    registry.register("requests_in_flight", help, requests.sum(MetricType::Gauge, in_flight));
    let help = "From a request's head to its reply's, without the waiting for upstreams";
    registry.register_with_unit("request_own", help, Unit::Seconds, requests.durations(|tally| tally.own.values()));
    let help = "Waiting for upstreams: connecting, sending, and the reply's head";
    let upstream = requests.durations(|tally| tally.upstream.values());
    registry.register_with_unit("request_upstream", help, Unit::Seconds, upstream);
    let help = "Octets of the bodies of requests that have ended";
    registry.register_with_unit(
        "request_body",
        help,
        Unit::Bytes,
        requests.sum(counter, |tally| tally.received.value()),
    );
    let help = "Octets of the bodies of their replies";
    registry.register_with_unit("reply_body", help, Unit::Bytes, requests.sum(counter, |tally| tally.sent.value()));
    let help = "Replies that broke off or that nobody waited for, by who was the reason";
    registry.register("replies_cut", help, requests.each("by", kinds!(cuts)));
    let help = "Answers of countersign's own to what went wrong, by their X-Countersign-Error";
    registry.register("refusals", help, requests.each("code", kinds!(codes)));
    let help = "What upstreams refused for its authentication or for its pace, by what they meant";
    registry.register("upstream_refusals", help, requests.each("verdict", kinds!(verdicts)));
    let help = "How often requests were sent";
    registry.register("attempts", help, requests.sum(counter, |tally| tally.attempts.value()));
    let help = "Requests that were sent again, by their X-Countersign-Retry";
    registry.register("retries", help, requests.each("cause", kinds!(retries)));
}

fn of_links(registry: &mut Registry, state: &State) {
    let (mut open, mut idle) = (Series::new(MetricType::Gauge), Series::new(MetricType::Gauge));
    let mut opened = Series::new(MetricType::Counter);
    for (route, links) in state.lasting.all_links() {
        let links: &Links = &links;
        let now = links.now();
        open.set(labels(&route, &[]), Value::Count(now.0));
        idle.set(labels(&route, &[]), Value::Count(now.1));
        for (handshake, count) in links.opened() {
            opened.set(labels(&route, &[("tls", handshake.name())]), Value::Count(count));
        }
    }
    registry.register("upstream_connections", "Connections to upstreams that are open", open);
    let help = "Those that wait for a request, of HTTP/1.1; over HTTP/2 requests share";
    registry.register("upstream_connections_idle", help, idle);
    let help = "Connections to upstreams that were opened, by the handshake that it took";
    registry.register("upstream_connections_opened", help, opened);
}

fn of_routes(registry: &mut Registry, state: &State) {
    let [mut ready, mut expiry, mut ahead, mut certificate] = [(); 4].map(|()| Series::new(MetricType::Gauge));
    for route in &state.routes {
        let (name, status) = (&route.name, route.keeper.status());
        ready.set(labels(name, &[]), Value::Number(f64::from(u8::from(status.is_usable))));
        if let Some(end) = status.expiry {
            expiry.set(labels(name, &[]), Value::Number(seconds(end)));
        }
        let servers = route.servers();
        for endpoint in servers.iter().flat_map(|servers| servers.all()) {
            let upstream = endpoint.target.endpoint.to_string();
            let skew = seconds(Timestamp(endpoint.skew.millis()));
            ahead.set(labels(name, &[("upstream", &upstream)]), Value::Number(skew));
        }
        let ends = servers.iter().flat_map(|servers| &servers.validities).map(|validity| validity.until);
        if let Some(end) = ends.min() {
            certificate.set(labels(name, &[]), Value::Number(seconds(end)));
        }
    }
    let help = "Whether a request could be sent now";
    registry.register("route_ready", help, ready);
    let help = "When the credential in use ends";
    registry.register_with_unit("credential_expiry_timestamp", help, Unit::Seconds, expiry);
    let help = "When the first of the route's own certificates ends";
    registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, certificate);
    let help = "How far the upstream's clock is ahead, as its replies have taught";
    registry.register_with_unit("clock_ahead", help, Unit::Seconds, ahead);
}

type Labels = Vec<(&'static str, String)>;

/// `route` is empty for what has none.
fn labels(route: &str, more: &[(&'static str, &str)]) -> Labels {
    let route = Some(("route", route)).filter(|(_, route)| !route.is_empty());
    route.iter().chain(more).map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// A metric as it is at this moment.
struct Series {
    kind: MetricType,
    values: BTreeMap<Labels, Value>,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    Number(f64),
    /// The sum in microseconds, and how many were in each bucket.
    Durations(u64, Box<[u64; BUCKETS]>),
}

impl Series {
    fn new(kind: MetricType) -> Self {
        Self { kind, values: BTreeMap::new() }
    }

    fn set(&mut self, labels: Labels, value: Value) {
        self.values.insert(labels, value);
    }

    /// A single value, of the daemon as a whole.
    fn of(kind: MetricType, value: Value) -> Self {
        Self { kind, values: BTreeMap::from([(Vec::new(), value)]) }
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Series").field(&self.values).finish()
    }
}

impl EncodeMetric for Series {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in &self.values {
            if labels.is_empty() {
                value.encode(self.kind, &mut encoder)?;
            } else {
                value.encode(self.kind, &mut encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

impl Value {
    fn encode(&self, kind: MetricType, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match (self, kind) {
            (Self::Count(count), MetricType::Counter) => encoder.encode_counter(count, NO_EXEMPLAR),
            (Self::Count(count), _) => encoder.encode_gauge(count),
            (Self::Number(number), _) => encoder.encode_gauge(number),
            (Self::Durations(micros, buckets), _) => {
                let bounds = BOUNDS.iter().map(|bound| of_micros(*bound)).chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(buckets.iter().copied()).collect();
                let count = buckets.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram(of_micros(*micros), count, &buckets, NO_EXEMPLARS)
            }
        }
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, f64>> = None;
const NO_EXEMPLARS: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;

const BUCKETS: usize = BOUNDS.len() + 1;

#[expect(clippy::cast_precision_loss, reason = "milliseconds of our time have room in 53 bits")]
fn seconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "so do microseconds of some centuries")]
fn of_micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}
