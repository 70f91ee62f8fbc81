//! Step 7: send, over a pooled connection or a fresh one.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use h2::Reason;
use http::header::UPGRADE;
use http::{Method, Request, Response};
use tokio::time::{Instant, timeout};

use crate::upstream::connect::{Offer, Trouble};
use crate::upstream::http2::{self, Place};
use crate::upstream::links::Links;
use crate::upstream::open::{self, Plan};
use crate::upstream::pool::{Connection, Key, Lease, Pool, Speaks};
use crate::upstream::{Timeouts, diagnosis};

use super::Limits;
use super::body::{Outgoing, Source, Upload};
use super::error::{Code, Error};
use super::hold;
use super::servers::Endpoint;

/// Why an attempt failed, and what may be done about it.
#[derive(Debug)]
pub struct Failure {
    /// What the caller is told if nothing is.
    pub error: Error,
    /// The request's body, if none of it was taken.
    pub unsent: Option<Outgoing>,
    /// What is known of the upstream's part in it.
    pub fate: Fate,
    /// True if the same endpoint may do better on a fresh connection: this one had been used before, or the upstream wants
    /// another.
    pub may_fresh_help: bool,
    /// True if another client certificate, or other trust anchors, may help.
    pub is_of_identity: bool,
}

/// What became of a request that got no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was provably never written, or the upstream says that it has not looked at it.
    Unsent,
    /// The connection had been used before and died before any octet of a reply: most likely it was closed while idle.
    DiedOnReuse,
    /// It may have been acted on.
    Unknown,
}

impl Failure {
    /// True if the same request may be sent again: never one that may have been acted on, unless its method says that
    /// acting twice is the same as once, and then only where an idle connection's end explains the failure.
    #[must_use]
    pub fn may_go_again(&self, method: &Method) -> bool {
        match self.fate {
            Fate::Unsent => true,
            Fate::DiedOnReuse => matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
            Fate::Unknown => false,
        }
    }
}

impl From<Error> for Box<Failure> {
    /// A failure that nothing can be done about.
    fn from(error: Error) -> Self {
        Self::new(Failure { error, unsent: None, fate: Fate::Unknown, may_fresh_help: false, is_of_identity: false })
    }
}

/// Which connection to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One from the pool, if there is one.
    Pooled,
    /// A fresh one.
    Fresh,
}

/// What sending needs to know of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The thread's pool.
    pub pool: &'a Rc<Pool<Outgoing>>,
    /// Where the route's connections are counted.
    pub links: &'a Arc<Links>,
    /// The endpoint's place in it.
    pub key: Key,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// How long to wait.
    pub timeouts: &'a Timeouts,
    /// The limits.
    pub limits: &'a Limits,
    /// Our own listeners.
    pub own: &'a [std::net::SocketAddr],
}

/// Sends a request and awaits the reply's head. The lease goes back to the pool when the reply's body has ended.
///
/// # Errors
/// Why there is no reply.
pub async fn send(
    way: Way<'_>,
    choice: Choice,
    mut request: Request<Outgoing>,
    upload: Option<&Rc<Upload>>,
) -> Result<(Response<Source>, Lease<Outgoing>), Box<Failure>> {
    let speaks_http2 = way.endpoint.target.tls.as_ref().is_some_and(|tls| tls.http2.is_some());
    // What becomes another protocol has a connection of its own.
    let offer = if speaks_http2 && !request.headers().contains_key(UPGRADE) { Offer::Any } else { Offer::Http1 };
    let pooled = if choice == Choice::Pooled { take(way, offer).await } else { None };
    let connection = match pooled {
        Some(connection) => connection,
        // Boxed, like everything that most requests do without: what a waiting request takes is what its future takes.
        None => match Box::pin(open(way, offer)).await {
            Ok(connection) => connection,
            Err(trouble) => {
                let (error, unsent) = (unreachable(&trouble, way), Some(request.into_body()));
                let is_of_identity = trouble.is_of_identity();
                return Err(Box::new(Failure {
                    error,
                    unsent,
                    fate: Fate::Unsent,
                    may_fresh_help: false,
                    is_of_identity,
                }));
            }
        },
    };
    // Over HTTP/1.1 it goes on here: a request is large, and a function of its own would have it moved.
    let mut connection = match connection {
        Connection::Http1(connection) => connection,
        Connection::Http2(place) => return Box::pin(over_http2(way, choice, place, request, upload)).await,
    };
    let traffic = Arc::clone(&connection.traffic);
    let (written, read) = (traffic.written(), traffic.read());
    let is_reused = connection.is_reused;
    way.endpoint.target.passage.adapt(&mut request);
    request.body_mut().follow(Some(&traffic));
    let response = connection.sender.try_send_request(request);
    let outcome = within(response, &mut connection.timer, way.timeouts.response, upload).await;
    let (error, unsent, is_of_identity) = match outcome {
        Some(Ok(response)) => {
            if let Some(error) = denied(&response, way) {
                return Err(error.into());
            }
            return Ok((response.map(Source::Hyper), lease(way, Connection::Http1(connection))));
        }
        Some(Err(mut failed)) => {
            let unsent = failed.take_message().map(Request::into_body);
            let is_of_identity = io_error(failed.error()).is_some_and(diagnosis::is_of_identity);
            (describe(failed.error(), way, upload), unsent, is_of_identity)
        }
        None => return Err(unanswered(way).into()),
    };
    // Over TLS a write that failed may have sent a part before it did, which is not counted.
    let is_counted = way.endpoint.target.tls.is_none();
    // In TLS 1.3 a client certificate is refused after the handshake, but before anybody looks at a request.
    let was_shut_out = is_of_identity && !is_reused;
    let fate = if unsent.is_some() || was_shut_out || (is_counted && traffic.written() == written) {
        Fate::Unsent
    } else if is_reused && traffic.read() == read {
        Fate::DiedOnReuse
    } else {
        Fate::Unknown
    };
    Err(Box::new(Failure { error, unsent, fate, may_fresh_help: is_reused, is_of_identity }))
}

/// Sends a request on a place of a shared connection, and awaits the reply's head.
async fn over_http2(
    way: Way<'_>,
    choice: Choice,
    mut place: Place,
    request: Request<Outgoing>,
    upload: Option<&Rc<Upload>>,
) -> Result<(Response<Source>, Lease<Outgoing>), Box<Failure>> {
    let (head, mut body) = request.into_parts();
    body.follow(None);
    let head = match http2::head(head) {
        Ok(head) => head,
        Err(error) => {
            let error = Error::new(Code::BadRequest, format!("HTTP/2 cannot carry the request: {error}"));
            return Err(error.into());
        }
    };
    let mut timer = Box::pin(tokio::time::sleep(Duration::ZERO));
    let (outcome, unsent) = match place.send(head, body, way.timeouts.body) {
        Ok(response) => (within(response, &mut timer, way.timeouts.response, upload).await, None),
        Err((error, body)) => (Some(Err(error)), Some(body)),
    };
    let error = match outcome {
        Some(Ok(response)) => {
            let response = http2::Incoming::of(response).map(Source::Http2);
            return Ok((response, lease(way, Connection::Http2(place))));
        }
        Some(Err(error)) => error,
        None => return Err(unanswered(way).into()),
    };
    let wants_http1 = error.is_remote() && error.reason() == Some(Reason::HTTP_1_1_REQUIRED);
    if wants_http1 {
        way.pool.learn(way.key, Speaks::Http1Only);
    }
    // What comes after the last stream that a peer which goes away has named, and what it refuses, it has not looked at
    // (RFC 9113 section 8.7).
    let was_refused = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
    let is_pooled = choice == Choice::Pooled;
    let fate = if unsent.is_some() || was_refused || wants_http1 {
        Fate::Unsent
    } else if (error.is_io() || error.is_go_away()) && is_pooled && place.is_reused {
        Fate::DiedOnReuse
    } else {
        Fate::Unknown
    };
    let may_fresh_help = wants_http1 || (is_pooled && fate != Fate::Unknown);
    let error = describe_http2(&error, way, upload, &place);
    Err(Box::new(Failure { error, unsent, fate, may_fresh_help, is_of_identity: false }))
}

fn lease(way: Way<'_>, connection: Connection<Outgoing>) -> Lease<Outgoing> {
    Lease { pool: Rc::clone(way.pool), key: way.key, connection, patience: way.timeouts.pool_idle }
}

async fn take(way: Way<'_>, offer: Offer) -> Option<Connection<Outgoing>> {
    loop {
        let mut connection = match way.pool.take(way.key, offer)? {
            Connection::Http1(connection) => connection,
            shared @ Connection::Http2(_) => return Some(shared),
        };
        // A connection comes back at the end of a reply, a moment before its task has noticed.
        if connection.sender.is_ready()
            || matches!(Box::pin(timeout(MOMENT, connection.sender.ready())).await, Ok(Ok(())))
        {
            return Some(Connection::Http1(connection));
        }
    }
}

async fn open(way: Way<'_>, offer: Offer) -> Result<Connection<Outgoing>, Rc<Trouble>> {
    let plan = Plan {
        pool: way.pool,
        key: way.key,
        links: way.links,
        target: &way.endpoint.target,
        timeouts: way.timeouts,
        header_bytes: way.limits.header_bytes,
        own: way.own,
    };
    open::open(&plan, offer).await
}

/// Awaits a reply; the clock begins anew with every part of the body that is handed over, and does not run while the caller
/// owes one. `None` is a timeout.
async fn within<F: Future>(
    future: F,
    timer: &mut Pin<Box<tokio::time::Sleep>>,
    patience: Option<Duration>,
    upload: Option<&Rc<Upload>>,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let Some(patience) = patience else { return Some(future.await) };
    let began = Instant::now();
    timer.as_mut().reset(began + patience);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let since = upload.map_or(began, |upload| upload.awaits_upstream_since().max(began));
            if since + patience <= Instant::now() {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(since + patience);
        }
    })
    .await
}

/// What a proxy on the way says of itself is between us and it, and never a reply.
fn denied<B>(response: &Response<B>, way: Way<'_>) -> Option<Error> {
    let denial = way.endpoint.target.passage.denial(response)?;
    Some(Error::new(Code::UpstreamUnreachable, denial))
}

fn unreachable(trouble: &Trouble, way: Way<'_>) -> Error {
    let seconds = way.timeouts.connect.unwrap_or_default().as_secs_f32();
    let patience = format!("{seconds} s (`timeouts.connect`)");
    let message = trouble.describe(&way.endpoint.target, "the route's `upstream` or `connect`", &patience);
    Error::new(code(trouble), message)
}

fn code(trouble: &Trouble) -> Code {
    match trouble {
        Trouble::Unresolved(_) | Trouble::Ourselves(_) | Trouble::Refused(..) | Trouble::NoTunnel(_) => {
            Code::UpstreamUnreachable
        }
        Trouble::Tls(_) => Code::UpstreamTls,
        Trouble::Broken(_) => Code::UpstreamProtocol,
        Trouble::TimedOut(_) => Code::UpstreamTimeout,
        Trouble::Proxy(_, trouble) => code(trouble),
    }
}

fn io_error(error: &hyper::Error) -> Option<&io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

/// What a failure of the HTTP library means.
fn describe(error: &hyper::Error, way: Way<'_>, upload: Option<&Rc<Upload>>) -> Error {
    if let Some(broken) = upload.and_then(|upload| upload.broken.get()) {
        return hold::broken(broken);
    }
    let endpoint = &way.endpoint.target;
    let io = io_error(error);
    if let Some(error) = io.filter(|error| diagnosis::cause(error).is_some()) {
        return Error::new(
            Code::UpstreamTls,
            format!(
                "TLS with {endpoint} failed: {}",
                diagnosis::describe(error, way.endpoint.target.shows_certificate())
            ),
        );
    }
    if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        return unread(way);
    }
    let what = if error.is_parse_too_large() {
        "its reply's head is larger than `limits.header_bytes`, or has more than 100 headers".to_owned()
    } else if error.is_parse() {
        "its reply is not HTTP/1.1: are the port and the scheme of the route's `upstream` right?".to_owned()
    } else if let Some(error) = io {
        format!("the connection broke before a reply ({error}): its own log may say why")
    } else {
        "it closed the connection before a reply: its own log may say why".to_owned()
    };
    Error::new(Code::UpstreamProtocol, format!("{endpoint}: {what}"))
}

/// The same for the library of HTTP/2.
fn describe_http2(error: &h2::Error, way: Way<'_>, upload: Option<&Rc<Upload>>, place: &Place) -> Error {
    if let Some(broken) = upload.and_then(|upload| upload.broken.get()) {
        return hold::broken(broken);
    }
    let endpoint = &way.endpoint.target;
    if let Some(trouble) = place.shared().traffic.trouble() {
        let trouble = diagnosis::describe_cause(trouble, way.endpoint.target.shows_certificate());
        return Error::new(Code::UpstreamTls, format!("TLS with {endpoint} failed: {trouble}"));
    }
    let what = match (error.get_io(), error.reason()) {
        (Some(error), _) if error.kind() == io::ErrorKind::TimedOut => return unread(way),
        (Some(error), _) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            "it closed the connection before a reply: its own log may say why".to_owned()
        }
        (Some(error), _) => format!("the connection broke before a reply ({error}): its own log may say why"),
        (None, Some(reason)) if error.is_remote() && error.is_go_away() => {
            format!("it takes no more requests on this connection: {reason:?} ({reason})")
        }
        (None, Some(reason)) if error.is_remote() => format!("it reset the request: {reason:?} ({reason})"),
        (None, Some(reason)) if error.is_library() => format!(
            "its reply is not HTTP/2, or the head of it is larger than `limits.header_bytes`: {reason:?} ({reason})"
        ),
        // Nobody resets a stream here but who feeds it.
        (None, Some(_)) => return unread(way),
        (None, None) => format!("the request cannot be sent over HTTP/2: {error}"),
    };
    Error::new(Code::UpstreamProtocol, format!("{endpoint}: {what}"))
}

fn unread(way: Way<'_>) -> Error {
    let (endpoint, seconds) = (&way.endpoint.target, way.timeouts.body.unwrap_or_default().as_secs_f32());
    let message =
        format!("{endpoint} took nothing of the request for {seconds} s: raise `timeouts.body` if it needs longer");
    Error::new(Code::UpstreamTimeout, message)
}

fn unanswered(way: Way<'_>) -> Error {
    let seconds = way.timeouts.response.unwrap_or_default().as_secs_f32();
    let endpoint = &way.endpoint.target;
    let message = format!("{endpoint} did not answer within {seconds} s: raise `timeouts.response` if it needs longer");
    Error::new(Code::UpstreamTimeout, message)
}

/// How long a connection's task may take to notice that a reply has ended.
const MOMENT: Duration = Duration::from_millis(100);
