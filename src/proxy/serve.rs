//! The way of a request through the steps, and the thread that walks it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::clock::Clock;
use crate::provider::Usage;
use crate::upstream::pool::{Key, Lease, Pool};

use super::access::{Account, Desk};
use super::activity::{Activity, Turn};
use super::attempts::{Attempts, Delivered, Retries};
use super::body::{Outgoing, Reply, Source, Upload, Wire};
use super::caller::{Caller, Stream, TimedStream};
use super::clean;
use super::error::{Code, Error};
use super::guard::{self, Peer, Permit};
use super::head::Head;
use super::hold;
use super::lasting::Lasting;
use super::listen::{BoundSocket, Listener};
use super::location::View;
use super::nonce::Nonces;
use super::respond;
use super::route::Entrance;
use super::state::{Route, State};
use super::streams::Streams;
use super::tally::NOWHERE;
use super::upgrade::{Exit, Tunnel, Wish};

/// A thread's own part of the daemon.
#[derive(Debug)]
pub struct Worker {
    /// The state that requests begin with from now on.
    state: RefCell<Arc<State>>,
    clock: Clock,
    pool: Rc<Pool<Outgoing>>,
    nonces: RefCell<Nonces>,
    desk: Rc<Desk>,
    open: Cell<usize>,
    is_draining: Cell<bool>,
    /// Ends the connections that wait for a request.
    drain: Notify,
    closed: Notify,
}

/// A listener of this thread.
#[derive(Debug)]
pub struct Opened<S> {
    /// Its number, the same in every thread.
    pub number: u64,
    /// What is known of those who come in here.
    pub entrance: Entrance,
    /// Its socket.
    pub socket: S,
}

impl Opened<BoundSocket> {
    /// Hands the socket to the current runtime.
    ///
    /// # Errors
    /// What the runtime's poller says.
    pub fn listen(self) -> io::Result<Opened<Listener>> {
        let Self { number, entrance, socket } = self;
        Ok(Opened { number, entrance, socket: Listener::new(socket)? })
    }
}

/// What is different from now on.
#[derive(Debug)]
pub struct Change {
    /// The state.
    pub state: Arc<State>,
    /// The listeners that are new.
    pub opened: Vec<Opened<BoundSocket>>,
    /// Those that stay, by their numbers; the others are closed.
    pub entrances: HashMap<u64, Entrance>,
    /// Told once requests begin with the new state, or why a new listener is not served here.
    pub done: oneshot::Sender<io::Result<()>>,
}

/// The part of a listener that changes.
#[derive(Debug)]
struct Ear {
    entrance: Cell<Entrance>,
    close: Notify,
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
    retries: Retries,
}

impl Worker {
    /// A thread's part of a daemon with this state.
    #[must_use]
    pub fn new(state: Arc<State>, clock: Clock) -> Rc<Self> {
        Rc::new(Self {
            pool: Rc::new(Pool::new(clock.clone())),
            nonces: RefCell::new(Nonces::new()),
            desk: Desk::new(Arc::clone(&state.lasting)),
            state: RefCell::new(state),
            clock,
            open: Cell::new(0),
            is_draining: Cell::new(false),
            drain: Notify::new(),
            closed: Notify::new(),
        })
    }

    /// Serves the listeners, and those that changes bring, until there are no more changes; then answers what is in flight
    /// and what waits to be accepted.
    pub async fn serve(self: Rc<Self>, listeners: Vec<Opened<Listener>>, mut changes: mpsc::Receiver<Change>) {
        let mut accepting = HashMap::new();
        let open = |accepting: &mut HashMap<_, _>, opened: Opened<Listener>| {
            let Opened { number, entrance, socket } = opened;
            let ear = Rc::new(Ear { entrance: Cell::new(entrance), close: Notify::new() });
            let task = tokio::task::spawn_local(Rc::clone(&self).accept(Rc::clone(&ear), socket));
            accepting.insert(number, (ear, task));
        };
        for opened in listeners {
            open(&mut accepting, opened);
        }
        let keeper = tokio::task::spawn_local({
            let worker = Rc::clone(&self);
            async move {
                loop {
                    tokio::time::sleep(EXPIRY_INTERVAL).await;
                    worker.tidy();
                    worker.state().lasting.repeats.tell();
                }
            }
        });
        while let Some(Change { state, opened, entrances, done }) = changes.recv().await {
            let mut outcome = Ok(());
            let opened: Vec<_> = opened
                .into_iter()
                .filter_map(|opened| opened.listen().map_err(|error| outcome = Err(error)).ok())
                .collect();
            let closing: Vec<_> = accepting.keys().copied().filter(|number| !entrances.contains_key(number)).collect();
            *self.state.borrow_mut() = state;
            self.tidy();
            for (number, entrance) in entrances {
                if let Some((ear, _)) = accepting.get(&number) {
                    ear.entrance.set(entrance);
                }
            }
            for opened in opened {
                open(&mut accepting, opened);
            }
            let closing = closing.into_iter().filter_map(|number| accepting.remove(&number)).collect();
            tokio::task::spawn_local(Self::close(closing));
            let _ = done.send(outcome);
        }
        Self::close(accepting.into_values().collect()).await;
        self.is_draining.set(true);
        self.drain.notify_waiters();
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
        keeper.abort();
        self.state().lasting.repeats.tell_all();
    }

    /// Closes listeners when those are accepted who came before.
    async fn close(accepting: Vec<(Rc<Ear>, JoinHandle<()>)>) {
        // Who came before is known only once the poller has been asked.
        tokio::time::sleep(GRACE).await;
        tokio::task::yield_now().await;
        for (ear, task) in accepting {
            ear.close.notify_one();
            let _ = task.await;
        }
    }

    /// Ends the idle connections whose time is over, and those to where nothing leads any more.
    fn tidy(&self) {
        self.pool.expire();
        let there: HashSet<_> = self.state().endpoints().collect();
        self.pool.retain(|Key(number)| there.contains(&number));
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// Waits for the drain; one that began before anybody waited counts as well.
    async fn drained(&self) {
        let notified = self.drain.notified();
        if !self.is_draining.get() {
            notified.await;
        }
    }

    /// Ready when a poll is to be told that nothing has changed: once the drain begins, which it would hold up.
    async fn unchanged(&self, answer: Option<&'static str>) -> &'static str {
        let Some(answer) = answer else { return pending().await };
        self.drained().await;
        answer
    }

    /// Waits for the drain and for what it leaves a connection: time for a first request that is under way.
    async fn dismissed(&self, activity: &Activity) {
        self.drained().await;
        if activity.is_new() {
            tokio::time::sleep(FIRST_REQUEST).await;
        }
    }

    async fn accept(self: Rc<Self>, ear: Rc<Ear>, listener: Listener) {
        let mut close = pin!(ear.close.notified());
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = &mut close => return,
            };
            match accepted {
                Ok((stream, peer)) => self.welcome(ear.entrance.get(), stream, peer),
                Err(error) => {
                    // Most likely the file descriptors have run out: those in use must end first.
                    if self.state().lasting.repeats.admit(NOWHERE, "accept") {
                        warn!(%error, "a connection cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Rc<Self>, entrance: Entrance, stream: Stream, peer: Peer) {
        let state = self.state();
        let most = state.limits.connections;
        let others = state.lasting.connections.fetch_add(1, Ordering::Relaxed);
        let count = Count(Rc::clone(self), Arc::clone(&state.lasting));
        self.open.set(self.open.get() + 1);
        if others >= most + SURPLUS {
            state.lasting.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let caller = Caller { entrance, peer, is_surplus: others >= most, activity: Activity::new() };
        tokio::task::spawn_local(Rc::clone(self).converse(caller, stream, count));
    }

    /// Answers a caller's requests, and then carries the tunnel that its connection may have become.
    async fn converse(self: Rc<Self>, caller: Caller, stream: Stream, _count: Count) {
        let limits = self.state().limits;
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
        let header_bytes = self.state().limits.header_bytes;
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
        let header_bytes = u32::try_from(self.state().limits.header_bytes).unwrap_or(u32::MAX);
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
        let state = self.state();
        let mut account = Account::begin(&self.desk, state.access, &request, caller.peer.uid, id);
        let version = request.version();
        let mut route = None;
        let outcome = self.forward(&state, caller, request, &account, &mut route).await;
        let name = route.map(|route: &Arc<Route>| route.name.as_str());
        let concealed = route.and_then(|route| route.concealed.as_ref());
        let mut response = match outcome {
            Ok(Outcome::Own(text)) => {
                let response = respond::own(text, turn);
                account.end_own(response.status(), own_octets(&response), None);
                response
            }
            Ok(Outcome::Upstream(answer)) => {
                let Answer { mut response, lease, upload, granted, body_patience, is_welcome_page, retries } = answer;
                *response.version_mut() = Version::HTTP_11;
                respond::clean(response.headers_mut(), concealed.map(Arc::as_ref), is_welcome_page);
                respond::tell(response.headers_mut(), retries);
                account.set_reply(response.status());
                if let Some(wish) = granted {
                    wish.announce(response.headers_mut());
                    let tunnel = Tunnel::new(wish, &mut response, lease, Arc::clone(&caller.activity), account);
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
                    Response::from_parts(head, Reply::upstream(wire, lease, upload, concealed.cloned(), turn, account))
                }
            }
            Err(error) => {
                caller.activity.set_switching(false);
                let response = respond::error(&error, name, &id, turn);
                account.end_own(response.status(), own_octets(&response), Some(error));
                response
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
        &self,
        state: &'s State,
        caller: &Caller,
        mut request: Request<Incoming>,
        account: &Account,
        found: &mut Option<&'s Arc<Route>>,
    ) -> Result<Outcome, Error> {
        if caller.is_surplus {
            return Err(Error::new(Code::Overloaded, "too many connections: try again, or raise `limits.connections`"));
        }
        let wish = Wish::of(&mut request);
        let (mut parts, body) = request.into_parts();
        let source = if parts.version == Version::HTTP_2 { Source::Stream(body) } else { Source::Hyper(body) };
        let mut wire = Wire::of_request(source, &caller.activity);
        let way = state.doors.find(caller.entrance, &parts.method, parts.version, &parts.uri, &parts.headers)?;
        let Some(route) = state.route(way.route) else {
            return Err(Error::new(Code::UnknownHost, "no such route"));
        };
        *found = Some(route);
        account.set_route(route);
        caller.activity.set_write_patience(route.timeouts.body);
        let headers = &mut parts.headers;
        if parts.version == Version::HTTP_2 {
            clean::join_cookies(headers);
        }
        let is_welcome_page = guard::browser(headers, way.door, way.authority.as_ref(), &state.origins)?;
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
        let (body, upload) =
            hold::hold(wire, reason, &state.limits, &state.lasting.held, &route.cleaner, &account.received).await?;
        if let Some(upload) = &upload {
            account.set_upload(upload);
        }
        if permit == Permit::NeedsForm {
            head.permit(route, Some(body.held()))?;
        }
        head.announce(&body);
        let usage = route.provider.usage(&head.method, head.path_and_query().1, &head.headers, body.held());
        let unchanged = if let Usage::Poll { unchanged } = usage { Some(unchanged) } else { None };
        if let Some(wish) = &wish {
            wish.announce(&mut head.headers);
            caller.activity.set_switching(true);
        }
        let attempts = Attempts {
            state,
            clock: &self.clock,
            pool: &self.pool,
            nonces: &self.nonces,
            route,
            head: &head,
            upload: upload.as_ref(),
            account,
        };
        let Delivered { mut response, lease, retries, servers } = tokio::select! {
            biased;
            unchanged = self.unchanged(unchanged) => return Ok(Outcome::Own(unchanged.to_owned())),
            delivered = async {
                // A poll's place is kept until the reply's head is there, or nobody waits for it any more.
                let _place = match &route.limiter {
                    Some(limiter) => limiter.admit(usage).await?,
                    None => None,
                };
                attempts.run(body).await
            } => delivered?,
        };
        let view = View {
            doors: &state.doors,
            own: &state.own,
            entrance: caller.entrance,
            door: way.door,
            name: &route.name,
            endpoints: servers.all(),
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
        Ok(Outcome::Upstream(Answer { response, lease, upload, granted, body_patience, is_welcome_page, retries }))
    }
}

/// How many octets an answer of our own has.
fn own_octets(response: &Response<Reply>) -> u64 {
    response.body().size_hint().exact().unwrap_or_default()
}

/// An open connection, counted for as long as this lives.
struct Count(Rc<Worker>, Arc<Lasting>);

impl Drop for Count {
    fn drop(&mut self) {
        self.1.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.closed.notify_one();
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
