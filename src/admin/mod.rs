//! The admin listener: health, and the wish to stop.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
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

/// What the admin listener answers from.
#[derive(Debug)]
pub struct Admin {
    state: Arc<State>,
    may_quit: bool,
    quit: Notify,
    connections: AtomicUsize,
}

impl Admin {
    /// Answers from this state; `POST /quit` only if it `may_quit`.
    #[must_use]
    pub fn new(state: Arc<State>, may_quit: bool) -> Arc<Self> {
        Arc::new(Self { state, may_quit, quit: Notify::new(), connections: AtomicUsize::new(0) })
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
                    warn!(%error, "an admin connection cannot be accepted");
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
        let (status, text) = match request.uri().path() {
            "/livez" if is_read => (StatusCode::OK, "live\n"),
            "/readyz" if is_read && self.state.is_draining.load(Ordering::Relaxed) => {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
            }
            "/readyz" if is_read => (StatusCode::OK, "ready\n"),
            "/quit" if request.method() != Method::POST => (StatusCode::METHOD_NOT_ALLOWED, "POST it\n"),
            "/quit" if self.may_quit => {
                self.quit.notify_one();
                (StatusCode::OK, "stopping\n")
            }
            "/quit" => (StatusCode::FORBIDDEN, "set `admin.quit` to allow it\n"),
            "/livez" | "/readyz" => (StatusCode::METHOD_NOT_ALLOWED, "GET it\n"),
            _ => (StatusCode::NOT_FOUND, "there is /livez, /readyz and /quit\n"),
        };
        let mut response = Response::new(Reply::own(Bytes::from_static(text.as_bytes()), turn));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// The data path's rules: no foreign name, no foreign page.
    fn admit(&self, request: &Request<Incoming>, is_unix: bool) -> Result<(), Error> {
        let entrance = Entrance { route: None, is_unix };
        let authority = self.state.doors.admit(entrance, request.version(), request.uri(), request.headers())?;
        guard::browser(request.headers(), Door::Listener, authority.as_ref(), &[]).map(|_| ())
    }
}

/// How many connections are served at one time.
const CONNECTIONS: usize = 64;

/// How long a head may take, or a connection be idle.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait where connections cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
