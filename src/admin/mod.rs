//! The admin listener: health, what the daemon knows of itself, and the wish to stop.

pub mod metrics;
pub mod page;
pub mod status;
pub mod words;

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::proxy::activity::{Activity, Turn};
use crate::proxy::body::Reply;
use crate::proxy::caller::{Stream, TimedStream};
use crate::proxy::error::Error;
use crate::proxy::guard;
use crate::proxy::listen::Listener;
use crate::proxy::respond;
use crate::proxy::route::{Door, Entrance};
use crate::proxy::state::State;
use crate::proxy::tally::NOWHERE;

use status::{Life, Readiness};

/// What the admin listener answers from.
#[derive(Debug)]
pub struct Admin {
    state: Arc<ArcSwap<State>>,
    life: Arc<Life>,
    may_quit: bool,
    quit: Notify,
    connections: AtomicUsize,
}

impl Admin {
    /// Answers from this state; `POST /quit` only if it `may_quit`.
    #[must_use]
    pub fn new(state: Arc<ArcSwap<State>>, life: Arc<Life>, may_quit: bool) -> Arc<Self> {
        Arc::new(Self { state, life, may_quit, quit: Notify::new(), connections: AtomicUsize::new(0) })
    }

    /// Ready once somebody has asked the daemon to stop.
    pub async fn told_to_quit(&self) {
        self.quit.notified().await;
    }

    /// Serves a listener for as long as the runtime lives.
    pub async fn serve(self: Arc<Self>, listener: Listener, is_unix: bool) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if self.connections.load(Ordering::Relaxed) < CONNECTIONS => {
                    self.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::task::spawn_local(Arc::clone(&self).converse(stream, is_unix));
                }
                // Closed at once: so many at a time are not people and probes.
                Ok(_) => {}
                Err(error) => {
                    if self.state.load().lasting.repeats.admit(NOWHERE, "admin accept") {
                        warn!(%error, "an admin connection cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn converse(self: Arc<Self>, stream: Stream, is_unix: bool) {
        let activity = Activity::new();
        let stream = TimedStream::new(stream, Arc::clone(&activity), Some(PATIENCE), Some(PATIENCE));
        let admin = Rc::new(Arc::clone(&self));
        let service = service_fn(move |request: Request<Incoming>| {
            let (admin, turn) = (Rc::clone(&admin), activity.turn());
            async move { Ok::<_, Infallible>(admin.answer(&request, is_unix, turn)) }
        });
        let connection = http1::Builder::new().auto_date_header(false).serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            debug!(%error, "an admin connection ended");
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    fn answer(&self, request: &Request<Incoming>, is_unix: bool, turn: Turn) -> Response<Reply> {
        if let Err(error) = self.admit(request, is_unix) {
            return respond::error(&error, None, "", turn);
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = match request.uri().path() {
            "/quit" if request.method() != Method::POST => Answer::disallowed("POST"),
            "/quit" => self.quit(),
            path if is_read => self.tell(path, request.uri().query().unwrap_or_default()),
            path if PATHS.contains(&path) => Answer::disallowed("GET"),
            _ => Answer::unknown(),
        };
        answer.into_response(turn)
    }

    fn quit(&self) -> Answer {
        if !self.may_quit {
            return Answer::text(StatusCode::FORBIDDEN, "set `admin.quit` to allow it");
        }
        self.quit.notify_one();
        Answer::text(StatusCode::OK, "stopping")
    }

    fn tell(&self, path: &str, query: &str) -> Answer {
        let state = self.state.load();
        let (state, life) = (&**state, &*self.life);
        let only = query.split('&').find_map(|parameter| parameter.strip_prefix("route="));
        match path {
            "/livez" => Answer::text(StatusCode::OK, "live"),
            "/readyz" => {
                let is_strict = query.split('&').any(|parameter| parameter == "strict");
                match status::readiness(state, if is_strict { Readiness::Now } else { Readiness::Reached }) {
                    Ok(()) => Answer::text(StatusCode::OK, "ready"),
                    Err(reason) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, &reason),
                }
            }
            "/status" | "/last" if only.is_some_and(|only| state.routes.iter().all(|route| route.name != only)) => {
                let names: Vec<_> = state.routes.iter().map(|route| route.name.as_str()).collect();
                Answer::text(StatusCode::NOT_FOUND, &format!("no route has this name: there is {}", names.join(", ")))
            }
            "/metrics" => Answer::new(METRICS, metrics::render(state, life)),
            "/status" => Answer::json(&status::daemon(state, life, only)),
            "/last" => Answer::json(&status::last(state, only)),
            "/" => {
                let (status, last) = (status::daemon(state, life, None), status::last(state, None));
                Answer::page(page::render(&words::status(&status), &words::last(&last)))
            }
            _ => Answer::unknown(),
        }
    }

    /// The data path's rules: no foreign name, no foreign page.
    fn admit(&self, request: &Request<Incoming>, is_unix: bool) -> Result<(), Error> {
        let entrance = Entrance { route: None, is_unix };
        let authority = self.state.load().doors.admit(entrance, request.version(), request.uri(), request.headers())?;
        guard::browser(request.headers(), Door::Listener, authority.as_ref(), &[]).map(|_| ())
    }
}

/// What is answered.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    allow: Option<&'static str>,
}

impl Answer {
    fn new(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, body, allow: None }
    }

    fn text(status: StatusCode, line: &str) -> Self {
        Self { status, ..Self::new("text/plain; charset=utf-8", format!("{line}\n")) }
    }

    fn json(value: &Value) -> Self {
        Self::new("application/json", format!("{value:#}\n"))
    }

    fn page(page: String) -> Self {
        Self::new("text/html; charset=utf-8", page)
    }

    fn disallowed(method: &'static str) -> Self {
        let allow = Some(if method == "GET" { "GET, HEAD" } else { method });
        Self { allow, ..Self::text(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} it")) }
    }

    fn unknown() -> Self {
        Self::text(StatusCode::NOT_FOUND, &format!("there is {} and /quit", PATHS.join(", ")))
    }

    fn into_response(self, turn: Turn) -> Response<Reply> {
        let mut response = Response::new(Reply::own(Bytes::from(self.body), turn));
        *response.status_mut() = self.status;
        let allow = self.allow.map(|allow| (header::ALLOW, allow));
        let headers = [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, page::POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        for (name, value) in headers.into_iter().chain(allow) {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// What can be read.
const PATHS: [&str; 6] = ["/", "/livez", "/readyz", "/metrics", "/status", "/last"];

/// The media type of `OpenMetrics`, which Prometheus reads.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many connections are served at one time.
const CONNECTIONS: usize = 64;

/// How long a head may take, or a connection be idle.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait where connections cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
