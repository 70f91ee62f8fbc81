//! The way of a request through the steps, and the thread that walks it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::upstream::Timeouts;
use crate::upstream::pool::{Key, Lease, Pool};

use super::activity::{Activity, Turn};
use super::authorize::authorize;
use super::body::{Outgoing, Reply, Source, Upload, Wire};
use super::caller::{Caller, Stream, TimedStream};
use super::clean;
use super::error::{Code, Error};
use super::guard::{self, Peer, Permit};
use super::head::Head;
use super::hold;
use super::listen::Listener;
use super::location::View;
use super::nonce::Nonces;
use super::respond;
use super::route::Entrance;
use super::send::{self, Choice, Fate, Way};
use super::state::{Access, Route, State};
use super::streams::Streams;
use super::upgrade::{Exit, Tunnel, Wish};

/// A thread's own part of the daemon.
#[derive(Debug)]
pub struct Worker {
    state: Arc<State>,
    clock: Clock,
    pool: Rc<Pool<Outgoing>>,
    nonces: RefCell<Nonces>,
    /// Which of a route's endpoints is next, for all routes alike.
    next_endpoint: Cell<usize>,
    open: Cell<usize>,
    /// Ends the listeners.
    close: Notify,
    is_draining: Cell<bool>,
    /// Ends the connections that wait for a request.
    drain: Notify,
    closed: Notify,
}

/// A reply on its way back.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
enum Outcome {
    /// The upstream's.
    Upstream(Answer),
    /// The provider's own, in plain text.
    Own(String),
}

/// An upstream's reply.
struct Answer {
    response: Response<Source>,
    lease: Lease<Outgoing>,
    upload: Option<Rc<Upload>>,
    /// The wish that it grants, if it switches protocols.
    granted: Option<Wish>,
    body_patience: Option<Duration>,
    is_welcome_page: bool,
}

impl Worker {
    /// A thread's part of a daemon with this state.
    #[must_use]
    pub fn new(state: Arc<State>, clock: Clock) -> Rc<Self> {
        Rc::new(Self {
            pool: Rc::new(Pool::new(clock.clone())),
            nonces: RefCell::new(Nonces::new()),
            state,
            clock,
            next_endpoint: Cell::new(0),
            open: Cell::new(0),
            close: Notify::new(),
            is_draining: Cell::new(false),
            drain: Notify::new(),
            closed: Notify::new(),
        })
    }

    /// Serves the listeners until `stop` is ready, then answers what is in flight and what waits to be accepted.
    pub async fn serve(self: Rc<Self>, listeners: Vec<(Entrance, Listener)>, stop: impl Future<Output = ()>) {
        let mut accepting = Vec::new();
        for (entrance, listener) in listeners {
            accepting.push(tokio::task::spawn_local(Rc::clone(&self).accept(entrance, listener)));
        }
        let keeper = tokio::task::spawn_local({
            let pool = Rc::clone(&self.pool);
            async move {
                loop {
                    tokio::time::sleep(EXPIRY_INTERVAL).await;
                    pool.expire();
                }
            }
        });
        stop.await;
        // Who came before is known only once the poller has been asked.
        tokio::time::sleep(GRACE).await;
        tokio::task::yield_now().await;
        self.close.notify_waiters();
        for task in accepting {
            let _ = task.await;
        }
        self.is_draining.set(true);
        self.drain.notify_waiters();
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
        keeper.abort();
    }

    /// Waits for the drain; one that began before anybody waited counts as well.
    async fn drained(&self) {
        let notified = self.drain.notified();
        if !self.is_draining.get() {
            notified.await;
        }
    }

    /// Waits for the drain and for what it leaves a connection: time for a first request that is under way.
    async fn dismissed(&self, activity: &Activity) {
        self.drained().await;
        if activity.is_new() {
            tokio::time::sleep(FIRST_REQUEST).await;
        }
    }

    async fn accept(self: Rc<Self>, entrance: Entrance, listener: Listener) {
        let mut close = pin!(self.close.notified());
        close.as_mut().enable();
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = &mut close => return,
            };
            match accepted {
                Ok((stream, peer)) => self.welcome(entrance, stream, peer),
                Err(error) => {
                    // Most likely the file descriptors have run out: those in use must end first.
                    warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Rc<Self>, entrance: Entrance, stream: Stream, peer: Peer) {
        let most = self.state.limits.connections;
        let others = self.state.connections.fetch_add(1, Ordering::Relaxed);
        let count = Count(Rc::clone(self));
        self.open.set(self.open.get() + 1);
        if others >= most + SURPLUS {
            return;
        }
        let caller = Caller { entrance, peer, is_surplus: others >= most, activity: Activity::new() };
        tokio::task::spawn_local(Rc::clone(self).converse(caller, stream, count));
    }

    /// Answers a caller's requests, and then carries the tunnel that its connection may have become.
    async fn converse(self: Rc<Self>, caller: Caller, stream: Stream, _count: Count) {
        let limits = &self.state.limits;
        let activity = Arc::clone(&caller.activity);
        let mut stream = TimedStream::new(stream, activity, limits.header_timeout, limits.idle_timeout);
        let is_http2 = tokio::select! {
            biased;
            is_http2 = stream.is_http2() => is_http2,
            () = self.dismissed(&caller.activity) => return,
        };
        let ended = match is_http2 {
            // Boxed, since most connections are not.
            Ok(true) => Box::pin(Rc::clone(&self).converse_in_streams(Rc::new(caller), stream)).await,
            Ok(false) => self.converse_in_turns(&caller, stream).await,
            Err(error) => return debug!(%error, "a caller's connection ended before its first request"),
        };
        if let Err(error) = ended {
            debug!(%error, "a caller's connection ended");
        }
    }

    /// Over HTTP/1: one request after the other.
    async fn converse_in_turns(&self, caller: &Caller, stream: TimedStream) -> hyper::Result<()> {
        let exit = Exit::default();
        let service = service_fn(|request| {
            let turn = caller.activity.turn();
            // Boxed, so that a connection that waits for a request is small.
            Box::pin(self.answer(caller, request, turn, &exit))
        });
        let header_bytes = self.state.limits.header_bytes;
        let mut builder = http1::Builder::new();
        // The buffer alone would let heads pass that are a little larger.
        builder.auto_date_header(false).header_read_timeout(None);
        builder.max_buf_size(header_bytes).max_header_size(header_bytes);
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        self.drive(caller, connection, http1::UpgradeableConnection::graceful_shutdown).await?;
        let tunnel = exit.take();
        if let Some(tunnel) = tunnel {
            tunnel.run().await;
        }
        Ok(())
    }

    /// Over HTTP/2: requests share the connection, up to a number of them at a time.
    async fn converse_in_streams(self: Rc<Self>, caller: Rc<Caller>, stream: TimedStream) -> hyper::Result<()> {
        let header_bytes = u32::try_from(self.state.limits.header_bytes).unwrap_or(u32::MAX);
        let (worker, asking) = (Rc::clone(&self), Rc::clone(&caller));
        let service = service_fn(move |request| {
            let turn = asking.activity.turn();
            let (worker, caller) = (Rc::clone(&worker), Rc::clone(&asking));
            // Without an exit: what shares a connection cannot change it.
            async move { worker.answer(&caller, request, turn, &Exit::default()).await }
        });
        let mut builder = http2::Builder::new(Streams);
        builder
            .auto_date_header(false)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(header_bytes)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        self.drive(&caller, connection, http2::Connection::graceful_shutdown).await
    }

    /// Drives a connection to its end, which the drain brings about, or a multiplexed connection's idleness.
    async fn drive<C: Future<Output = hyper::Result<()>>>(
        &self,
        caller: &Caller,
        connection: C,
        shut_down: impl Fn(Pin<&mut C>),
    ) -> hyper::Result<()> {
        let mut connection = pin!(connection);
        let mut drain = pin!(self.dismissed(&caller.activity));
        let (mut is_waiting, mut is_closing) = (false, false);
        poll_fn(|cx| {
            // Until the drain begins, once is enough for it to wake this task; polling takes a lock.
            let is_due = !is_waiting || self.is_draining.get();
            is_waiting = true;
            if is_due && !is_closing && drain.as_mut().poll(cx).is_ready() {
                is_closing = true;
                // A caller that does not listen is not waited for.
                caller.activity.retire();
                shut_down(connection.as_mut());
            }
            let polled = connection.as_mut().poll(cx);
            if polled.is_pending() && !is_closing && caller.activity.is_overdue() {
                is_closing = true;
                shut_down(connection.as_mut());
                return connection.as_mut().poll(cx);
            }
            polled
        })
        .await
    }

    /// Answers a request; where both sides agree to switch protocols, the tunnel goes through the exit.
    async fn answer(
        &self,
        caller: &Caller,
        request: Request<Incoming>,
        turn: Turn,
        exit: &Exit,
    ) -> Result<Response<Reply>, Infallible> {
        let id = self.nonces.borrow_mut().next_id();
        let entry = Entry::begin(self.state.access, &request);
        let version = request.version();
        let mut route = None;
        let outcome = self.forward(caller, request, &mut route).await;
        let name = route.map(|route: &Arc<Route>| route.name.as_str());
        let concealed = route.and_then(|route| route.concealed.as_ref());
        let mut response = match outcome {
            Ok(Outcome::Own(text)) => {
                entry.end(name, StatusCode::OK, By::Proxy(None), &id);
                respond::own(text, turn)
            }
            Ok(Outcome::Upstream(answer)) => {
                let Answer { mut response, lease, upload, granted, body_patience, is_welcome_page } = answer;
                *response.version_mut() = Version::HTTP_11;
                respond::clean(response.headers_mut(), concealed.map(Arc::as_ref), is_welcome_page);
                entry.end(name, response.status(), By::Upstream, &id);
                if let Some(wish) = granted {
                    wish.announce(response.headers_mut());
                    let tunnel = Tunnel::new(wish, &mut response, lease, Arc::clone(&caller.activity));
                    *exit.borrow_mut() = Some(tunnel);
                    response.map(|_| Reply::own(Bytes::new(), turn))
                } else {
                    caller.activity.set_switching(false);
                    let (mut head, body) = response.into_parts();
                    let wire = Wire::new(body, body_patience);
                    if version == Version::HTTP_10 && wire.size_hint().exact().is_none() {
                        caller.activity.set_unframed(true);
                        // Else the library would promise to keep a connection whose end is the reply's.
                        head.version = Version::HTTP_10;
                    }
                    Response::from_parts(head, Reply::upstream(wire, lease, upload, concealed.cloned(), turn))
                }
            }
            Err(error) => {
                caller.activity.set_switching(false);
                entry.end(name, error.code.status(), By::Proxy(Some(&error)), &id);
                respond::error(&error, name, &id, turn)
            }
        };
        respond::name(&mut response, &id);
        if caller.is_surplus {
            // A connection stays what it was when it came, so a caller that is to be served needs another.
            if version == Version::HTTP_2 {
                caller.activity.retire();
            } else {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        Ok(response)
    }

    /// The steps from routing to the reply's head. `found` is set as soon as the route is known.
    async fn forward<'s>(
        &'s self,
        caller: &Caller,
        mut request: Request<Incoming>,
        found: &mut Option<&'s Arc<Route>>,
    ) -> Result<Outcome, Error> {
        if caller.is_surplus {
            return Err(Error::new(Code::Overloaded, "too many connections: try again, or raise `limits.connections`"));
        }
        let wish = Wish::of(&mut request);
        let (mut parts, body) = request.into_parts();
        let source = if parts.version == Version::HTTP_2 { Source::Stream(body) } else { Source::Hyper(body) };
        let mut wire = Wire::of_request(source, &caller.activity);
        let way = self.state.doors.find(caller.entrance, &parts.method, parts.version, &parts.uri, &parts.headers)?;
        let Some(route) = self.state.routes.get(way.route) else {
            return Err(Error::new(Code::UnknownHost, "no such route"));
        };
        *found = Some(route);
        caller.activity.set_write_patience(route.timeouts.body);
        let headers = &mut parts.headers;
        if parts.version == Version::HTTP_2 {
            clean::join_cookies(headers);
        }
        let is_welcome_page = guard::browser(headers, way.door, way.authority.as_ref(), &self.state.origins)?;
        if let Some(callers) = &route.callers {
            callers.admit(caller.peer, headers)?;
        }
        let (mut head, permit) = Head::ready(route, parts.method, way.target, parts.headers)?;
        let answer = |authority| route.provider.answer(&head.method, head.path_and_query().0, authority);
        if let Some(text) = way.authority.as_ref().and_then(answer) {
            return Ok(Outcome::Own(text));
        }
        wire.set_patience(route.timeouts.body);
        // What follows the body may belong to the tunnel, so the body has to have ended.
        let reason = if wish.is_some() { hold::Reason::Needed } else { head.hold_reason(route, permit) };
        let (body, upload) = hold::hold(wire, reason, &self.state.limits, &self.state.held, &route.cleaner).await?;
        if permit == Permit::NeedsForm {
            head.permit(route, Some(body.held()))?;
        }
        head.announce(&body);
        if let Some(wish) = &wish {
            wish.announce(&mut head.headers);
            caller.activity.set_switching(true);
        }
        let (mut response, lease) = self.send(way.route, route, &head, body, upload.as_ref()).await?;
        let view = View {
            doors: &self.state.doors,
            own: &self.state.own,
            entrance: caller.entrance,
            door: way.door,
            name: &route.name,
            endpoints: &route.endpoints,
            uri: &parts.uri,
            host: head.headers.get(HOST),
            authority: way.authority.as_ref(),
        };
        respond::turn_back(response.headers_mut(), &view);
        let protocol = |message| Error::new(Code::UpstreamProtocol, format!("the upstream's reply: {message}"));
        let granted = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let granted = wish.filter(|wish| wish.is_granted(response.headers()));
            Some(granted.ok_or_else(|| protocol("it switched to a protocol that nobody had asked for"))?)
        } else {
            clean::framing(response.headers_mut()).map_err(protocol)?;
            None
        };
        let body_patience = route.timeouts.body;
        Ok(Outcome::Upstream(Answer { response, lease, upload, granted, body_patience, is_welcome_page }))
    }

    /// Signs and sends, anew for every attempt: once more on a fresh connection where a used one had died, and at the
    /// next endpoint where one could not be reached.
    async fn send(
        &self,
        index: usize,
        route: &Route,
        head: &Head,
        mut body: Outgoing,
        upload: Option<&Rc<Upload>>,
    ) -> Result<(Response<Source>, Lease<Outgoing>), Error> {
        let count = route.endpoints.len().max(1);
        let first = if count > 1 { self.next_endpoint.replace(self.next_endpoint.get().wrapping_add(1)) } else { 0 };
        let response = route
            .timeouts
            .response
            .map(|patience| route.provider.deadline(&head.headers).map_or(patience, |deadline| patience.max(deadline)));
        let timeouts = Timeouts { response, ..route.timeouts };
        let mut tried = 0;
        let mut choice = Choice::Pooled;
        loop {
            let place = first.wrapping_add(tried) % count;
            let Some(endpoint) = route.endpoints.get(place) else {
                return Err(Error::new(Code::UpstreamUnreachable, "the route has no upstream"));
            };
            let spare = body.again();
            let nonce = self.nonces.borrow_mut().next_nonce();
            let request = authorize(head.clone(), body, route, endpoint, (self.clock.now(), &nonce), None)?;
            let way = Way {
                pool: &self.pool,
                key: Key { route: index, endpoint: place },
                endpoint,
                timeouts: &timeouts,
                limits: &self.state.limits,
                own: &self.state.own,
            };
            let failure = match send::send(way, choice, request, upload).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            debug!(route = route.name, fate = ?failure.fate, error = %failure.error, "an attempt failed");
            let may_go_again = failure.may_go_again(&head.method);
            body = match failure.unsent.or(spare) {
                Some(body) if may_go_again => body,
                _ => return Err(failure.error),
            };
            if failure.may_fresh_help {
                choice = Choice::Fresh;
            } else {
                debug_assert_eq!(failure.fate, Fate::Unsent, "only a used connection can have died on reuse");
                choice = Choice::Pooled;
                tried += 1;
                if tried == count {
                    return Err(failure.error);
                }
            }
        }
    }
}

/// An open connection, counted for as long as this lives.
struct Count(Rc<Worker>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.state.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.closed.notify_one();
    }
}

/// Whose answer a request got.
#[derive(Clone, Copy)]
enum By<'a> {
    /// The upstream's.
    Upstream,
    /// Ours, with what went wrong if something did.
    Proxy(Option<&'a Error>),
}

/// A line of the access log in the making.
struct Entry(Option<(Instant, String, String)>);

impl Entry {
    fn begin(access: Access, request: &Request<Incoming>) -> Self {
        if access == Access::Off || !tracing::enabled!(target: "countersign::access", tracing::Level::INFO) {
            return Self(None);
        }
        let target = match access {
            Access::Query => request.uri().path_and_query().map_or("", PathAndQuery::as_str),
            _ => request.uri().path(),
        };
        Self(Some((Instant::now(), request.method().to_string(), target.to_owned())))
    }

    fn end(self, route: Option<&str>, status: StatusCode, by: By<'_>, id: &str) {
        let Some((began, method, path)) = self.0 else { return };
        let (status, ms) = (status.as_u16(), (began.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        let route = route.unwrap_or("-");
        match by {
            By::Upstream => {
                info!(target: "countersign::access", route, %method, path, status, by = "upstream", ms, id);
            }
            By::Proxy(None) => info!(target: "countersign::access", route, %method, path, status, by = "proxy", ms, id),
            By::Proxy(Some(error)) => {
                let code = error.code.name();
                info!(target: "countersign::access", route, %method, path, status, by = "proxy", code, %error, ms, id);
            }
        }
    }
}

/// How many requests share a connection at one time.
const STREAMS: u32 = 128;

/// How many octets of a request's body a caller may send before we have passed them on, for one request and for all of a
/// connection.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// How many octets of a reply wait for the caller to read, at most.
const SEND_BUFFER: usize = 64 << 10;

/// How often idle connections are looked through for those whose time is over.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long callers that have reached the kernel before a drain may take to reach us.
const GRACE: Duration = Duration::from_millis(50);

/// How long after the beginning of the drain a connection may still bring its first request.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// How long to wait where connections cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections beyond the limit are told so; still more are closed at once.
const SURPLUS: usize = 64;
