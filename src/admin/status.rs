//! What is told of the daemon and its routes: facts in JSON, never a secret. Times are RFC 3339 in UTC.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use serde_json::{Value, json};

use crate::canonical::time;
use crate::clock::{Clock, Timestamp};
use crate::credential::keeper::Status;
use crate::proxy::refusals::Refusal;
use crate::proxy::servers::Endpoint;
use crate::proxy::state::{Route, State};
use crate::upstream::tls::{Validity, Verify};

/// What is known of the daemon beside what its threads share.
#[derive(Debug)]
pub struct Life {
    clock: Clock,
    started: Timestamp,
    warnings: ArcSwap<Vec<String>>,
    /// Why the configuration that is there now is not in effect.
    trouble: ArcSwap<Vec<String>>,
    /// When a configuration was taken over last, in milliseconds since 1970.
    taken_over: AtomicI64,
    successes: AtomicU64,
    failures: AtomicU64,
}

/// What became of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloads {
    /// True if the one that is there is in effect.
    pub is_last_successful: bool,
    /// When one was taken over last.
    pub last: Timestamp,
    /// How many were taken over after the first.
    pub successes: u64,
    /// How many could not be.
    pub failures: u64,
}

impl Life {
    /// Of a daemon that is started now. `warnings` are what the configuration says that is legal but unwise, each with its
    /// place.
    #[must_use]
    pub fn new(clock: Clock, warnings: Vec<String>) -> Self {
        let started = clock.now();
        Self {
            clock,
            started,
            warnings: ArcSwap::from_pointee(warnings),
            trouble: ArcSwap::default(),
            taken_over: AtomicI64::new(started.0),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// When the daemon was started.
    #[must_use]
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Another configuration is in effect.
    pub fn reloaded(&self, warnings: Vec<String>) {
        self.warnings.store(Arc::new(warnings));
        self.trouble.store(Arc::default());
        self.taken_over.store(self.clock.now().0, Ordering::Relaxed);
        self.successes.fetch_add(1, Ordering::Relaxed);
    }

    /// The configuration, or a file that it names, has changed, but is not in effect, for these reasons.
    pub fn not_reloaded(&self, reasons: impl IntoIterator<Item = String>) {
        let first = "the configuration has changed to one that cannot be used: the one before it goes on serving";
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.trouble.store(Arc::new(std::iter::once(first.to_owned()).chain(reasons).collect()));
    }

    /// What became of the configuration.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        let last = Timestamp(self.taken_over.load(Ordering::Relaxed));
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (successes, failures) = (count(&self.successes), count(&self.failures));
        Reloads { is_last_successful: self.trouble.load().is_empty(), last, successes, failures }
    }

    fn warnings(&self) -> Vec<String> {
        self.trouble.load().iter().chain(self.warnings.load().iter()).cloned().collect()
    }
}

/// The daemon, and its routes or the one of them that is asked for.
#[must_use]
pub fn daemon(state: &State, life: &Life, only: Option<&str>) -> Value {
    let now = life.clock.now();
    let routes = state.routes.iter().filter(|route| only.is_none_or(|only| route.name == only));
    let is_draining = state.lasting.is_draining.load(Ordering::Relaxed);
    let refusals = state.lasting.refusals.last();
    let last_of = |route: &Route| refusals.iter().rev().find(|refusal| refusal.route == route.name);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now": time::iso(now),
        "started": time::iso(life.started),
        "uptime_seconds": now.since(life.started).as_secs(),
        "draining": is_draining,
        "ready": !is_draining && state.has_been_ready(),
        "warnings": life.warnings(),
        "routes": routes.map(|route| self::route(route, last_of(route), now)).collect::<Vec<_>>(),
    })
}

fn route(route: &Route, refused: Option<&Refusal>, now: Timestamp) -> Value {
    let (status, servers) = (route.keeper.status(), route.servers());
    json!({
        "name": route.name,
        "provider": route.provider_name,
        "ready": status.is_usable,
        "upstreams": servers.iter().flat_map(|servers| servers.all()).map(upstream).collect::<Vec<_>>(),
        "clock": if route.follows_clock { "auto" } else { "local" },
        "verify": route.verify.as_ref().map(Verify::name),
        "credential": credential(&status, now),
        "last_refusal": refused.map(|refusal| json!({
            "at": time::iso(refusal.at), "verdict": refusal.verdict, "code": refusal.code,
        })),
        "certificates": servers.iter().flat_map(|servers| &servers.validities).map(|validity| certificate(validity, now)).collect::<Vec<_>>(),
    })
}

fn upstream(endpoint: &Endpoint) -> Value {
    let target = &endpoint.target;
    let is_elsewhere = (&target.host, target.port) != (&target.endpoint.host, target.endpoint.port);
    json!({
        "url": target.endpoint.to_string(),
        "connect": is_elsewhere.then(|| format!("{}:{}", target.host, target.port)),
        "proxy": target.passage.proxy().map(ToString::to_string),
        "clock_ahead_ms": endpoint.skew.millis(),
    })
}

fn credential(status: &Status, now: Timestamp) -> Value {
    let rotation = match (status.is_on_trial, status.rotation_refused) {
        (true, _) => json!({ "state": "on trial" }),
        (false, Some(at)) => json!({ "state": "refused", "at": time::iso(at) }),
        (false, None) => Value::Null,
    };
    json!({
        "source": status.source,
        "generation": status.generation,
        "obtained": status.obtained.map(time::iso),
        "age_seconds": status.obtained.map(|obtained| now.since(obtained).as_secs()),
        "expires_at": status.expiry.map(time::iso),
        "expires_in_seconds": status.expiry.map(|expiry| Timestamp(expiry.0.saturating_sub(now.0)).seconds()),
        "last_refresh": status.refreshed.map(time::iso),
        "last_error": status.error.as_ref().map(|(at, message)| json!({ "at": time::iso(*at), "message": &**message })),
        "rotation": rotation,
    })
}

fn certificate(validity: &Validity, now: Timestamp) -> Value {
    // A file of certificates that cannot be read has no span.
    let known = |time: Timestamp, unknown| (time.0 != unknown).then(|| time::iso(time));
    json!({
        "what": validity.what,
        "from": known(validity.from, i64::MIN),
        "until": known(validity.until, i64::MAX),
        "warning": validity.remark(now).map(|remark| remark.message),
    })
}

/// The last refusals, or those of one route; the newest last.
#[must_use]
pub fn last(state: &State, only: Option<&str>) -> Value {
    let refusals = state.lasting.refusals.last();
    let refusals = refusals.iter().filter(|refusal| only.is_none_or(|only| refusal.route == only));
    json!({ "refusals": refusals.map(refusal).collect::<Vec<_>>() })
}

fn refusal(refusal: &Refusal) -> Value {
    json!({
        "at": time::iso(refusal.at),
        "route": refusal.route,
        "request_id": refusal.request_id,
        "method": refusal.method,
        "path": refusal.path,
        "status": refusal.status,
        "verdict": refusal.verdict,
        "code": refusal.code,
        "provider_request_id": refusal.provider_request_id,
        "advice": refusal.advice,
        "sent_again": refusal.sent_again,
        "canonical_request": refusal.canonical_request,
        "string_to_sign": refusal.string_to_sign,
    })
}

/// Which readiness is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Every route has been usable at some time: what a supervisor waits for after a start.
    Reached,
    /// Every route is usable now.
    Now,
}

/// Whether the daemon is ready, in this sense.
///
/// # Errors
/// Why it is not, in a line.
pub fn readiness(state: &State, readiness: Readiness) -> Result<(), String> {
    if state.lasting.is_draining.load(Ordering::Relaxed) {
        return Err("draining".to_owned());
    }
    let reasons = awaited(state, readiness);
    if reasons.is_empty() { Ok(()) } else { Err(format!("not ready: {}", reasons.join("; "))) }
}

/// The routes that are not ready, in this sense, each with the reason: `NAME: why`.
#[must_use]
pub fn awaited(state: &State, readiness: Readiness) -> Vec<String> {
    let is_ready = |route: &Route| match readiness {
        Readiness::Reached => state.has_been_ready() || route.keeper.has_been_usable(),
        Readiness::Now => route.keeper.is_usable(),
    };
    let why = |route: &Route| match route.keeper.status().error {
        Some((_, message)) => format!("{}: {message}", route.name),
        None => format!("{}: its credential is awaited", route.name),
    };
    state.routes.iter().filter(|route| !is_ready(route)).map(|route| why(route)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::Future;
    use std::path::Path;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::credential::keeper::Keeper;
    use crate::credential::{Credential, Failed, Fetch, Fetched, Margins, Source};
    use crate::proxy::lasting::Lasting;
    use crate::proxy::state::Access;
    use crate::settings::BareSecrets;
    use crate::upstream::ask::Asker;
    use crate::upstream::outbound::Outbound;
    use crate::upstream::tls::Roots;

    /// 2023-11-14T22:13:20Z
    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    /// Hands out what it was given.
    #[derive(Debug, Default)]
    struct Given(Mutex<VecDeque<Result<Fetched, Failed>>>);

    impl Fetch for Given {
        fn name(&self) -> &'static str {
            "given"
        }

        fn identity(&self) -> String {
            String::new()
        }

        fn margins(&self) -> Margins {
            let nothing = Duration::ZERO;
            Margins { refresh: nothing, refresh_percent: 0, jitter: nothing, wait: nothing, gone: nothing }
        }

        fn fetch<'a>(&'a self, _: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
            let given = self.0.lock().unwrap().pop_front().unwrap();
            Box::pin(async move { given })
        }
    }

    struct Scene {
        state: State,
        life: Life,
        given: Arc<Given>,
        keeper: Arc<Keeper>,
        asker: Asker,
    }

    impl Scene {
        /// A route whose credential is fetched, and one whose is configured.
        fn new() -> Self {
            let text = "[routes.fetched]\nupstream = \"https://a.test\"\nclock = \"local\"\n\
                        [routes.fetched.tls]\nverify = \"none\"\n[routes.fetched.bearer]\ntoken = \"planted\"\n\
                        [routes.fixed]\nupstream = \"http://b.test\"\nconnect = \"10.0.0.7:81\"\n[routes.fixed.bce]\n\
                        credentials = { access_key = \"ak\", secret_key = \"planted\" }\n";
            let config = config::parse(text, Path::new("f"), BareSecrets::Accept).unwrap();
            let clock = Clock::fixed(NOW);
            let lasting = Arc::new(Lasting::new(clock.clone(), Roots::default()));
            let mut routes: Vec<_> =
                config.routes.into_iter().map(|route| Route::prepare(route, &lasting).unwrap()).collect();
            let given = Arc::<Given>::default();
            let source = Source::Fetched(Arc::clone(&given) as Arc<dyn Fetch>);
            let keeper = Keeper::new(source, clock.clone(), |_| Ok(()));
            routes[0].keeper = Arc::clone(&keeper);
            let asker = lasting.asker(Outbound::Direct, Arc::default());
            let routes = routes.into_iter().map(Arc::new).collect();
            let state = State::new(&config.server, routes, config.limits, Access::Off, Arc::default(), lasting);
            Self { state, life: Life::new(clock, Vec::new()), given, keeper, asker }
        }

        async fn fetch(&self, token: &str) {
            let credential = Credential::Secrets(vec![token.into()]);
            let expiry = Some(self.life.clock.now().after(Duration::from_secs(100)));
            self.given.0.lock().unwrap().push_back(Ok(Fetched { credential, expiry }));
            self.keeper.ask(&self.asker).await.unwrap();
        }

        fn told(&self) -> Value {
            let told = daemon(&self.state, &self.life, Some("fetched"));
            assert!(!told.to_string().contains("planted"), "{told}");
            told["routes"][0].clone()
        }
    }

    #[test]
    fn routes_are_told_with_all_that_is_known_of_them() {
        let scene = Scene::new();
        scene.state.routes[1].located.now().all()[0].skew.learn(-61_500);
        scene.life.clock.set(NOW.after(Duration::from_secs(5)));
        let told = daemon(&scene.state, &scene.life, Some("fixed"));
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": "2023-11-14T22:13:25Z",
            "started": "2023-11-14T22:13:20Z",
            "uptime_seconds": 5,
            "draining": false,
            "ready": false,
            "warnings": [],
            "routes": [{
                "name": "fixed",
                "provider": "bce",
                "ready": true,
                "upstreams": [{
                    "url": "http://b.test",
                    "connect": "10.0.0.7:81",
                    "proxy": null,
                    "clock_ahead_ms": -61_500,
                }],
                "clock": "auto",
                "verify": null,
                "credential": {
                    "source": "configured",
                    "generation": 1,
                    "obtained": "2023-11-14T22:13:20Z",
                    "age_seconds": 5,
                    "expires_at": null,
                    "expires_in_seconds": null,
                    "last_refresh": "2023-11-14T22:13:20Z",
                    "last_error": null,
                    "rotation": null,
                },
                "last_refusal": null,
                "certificates": [],
            }],
        });
        assert_eq!(told, expected);
        let both = daemon(&scene.state, &scene.life, None);
        assert_eq!(both["routes"].as_array().map(Vec::len), Some(2));
        assert_eq!((&both["routes"][0]["clock"], &both["routes"][0]["verify"]), (&json!("local"), &json!("none")));
    }

    #[tokio::test]
    async fn a_fetched_credential_is_told_from_the_first_attempt_to_a_refused_rotation() {
        let scene = Scene::new();
        let none = scene.told();
        assert_eq!((&none["ready"], &none["credential"]["generation"]), (&json!(false), &Value::Null));
        scene.fetch("planted 1").await;
        scene.life.clock.set(NOW.after(Duration::from_secs(40)));
        let first = scene.told();
        assert_eq!((&first["ready"], &first["credential"]["generation"]), (&json!(true), &json!(1)));
        assert_eq!(first["credential"]["expires_at"], "2023-11-14T22:15:00Z");
        assert_eq!(first["credential"]["expires_in_seconds"], 60);
        scene.fetch("planted 2").await;
        assert_eq!(scene.told()["credential"]["rotation"], json!({ "state": "on trial" }));
        assert!(scene.keeper.take().await.unwrap().trial.unwrap().refused());
        let refused = json!({ "state": "refused", "at": "2023-11-14T22:14:00Z" });
        assert_eq!(scene.told()["credential"]["rotation"], refused);
        scene.life.clock.set(NOW.after(Duration::from_secs(200)));
        let ended = scene.told();
        assert_eq!((&ended["ready"], &ended["credential"]["expires_in_seconds"]), (&json!(false), &json!(-100)));
    }

    #[tokio::test]
    async fn who_was_ready_once_stays_so_unless_it_is_asked_for_now() {
        let scene = Scene::new();
        let reason = |readiness| super::readiness(&scene.state, readiness).err();
        let awaited = Some("not ready: fetched: its credential is awaited".to_owned());
        assert_eq!((reason(Readiness::Reached), reason(Readiness::Now)), (awaited.clone(), awaited.clone()));
        scene.fetch("planted").await;
        assert_eq!((reason(Readiness::Reached), reason(Readiness::Now)), (None, None));
        scene.life.clock.set(NOW.after(Duration::from_secs(100)));
        assert_eq!((reason(Readiness::Reached), reason(Readiness::Now)), (None, awaited));
        scene.state.lasting.is_draining.store(true, Ordering::Relaxed);
        assert_eq!(reason(Readiness::Reached).as_deref(), Some("draining"));
    }
}
