//! Step 7: send, over a pooled connection or a fresh one.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::PROXY_AUTHENTICATE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::upstream::connect::{self, Trouble};
use crate::upstream::outbound::Passage;
use crate::upstream::pool::{Connection, Counted, Key, Lease, Pool, Traffic};
use crate::upstream::{Timeouts, tls};

use super::Limits;
use super::body::{Outgoing, Upload};
use super::error::{Code, Error};
use super::hold;
use super::state::Endpoint;

/// Why an attempt failed, and what may be done about it.
#[derive(Debug)]
pub struct Failure {
    /// What the caller is told if nothing is.
    pub error: Error,
    /// The request, if it was never written.
    pub unsent: Option<Request<Outgoing>>,
    /// What is known of the upstream's part in it.
    pub fate: Fate,
    /// True if the connection had been used before.
    pub was_reused: bool,
}

/// What became of a request that got no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was provably never written.
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
) -> Result<(Response<Incoming>, Lease<Outgoing>), Box<Failure>> {
    let pooled = if choice == Choice::Pooled { take(way).await } else { None };
    let mut connection = match pooled {
        Some(connection) => connection,
        // Boxed, like everything that most requests do without: what a waiting request takes is what its future takes.
        None => match Box::pin(open(way)).await {
            Ok(connection) => connection,
            Err(error) => {
                let unsent = Some(request);
                return Err(Box::new(Failure { error, unsent, fate: Fate::Unsent, was_reused: false }));
            }
        },
    };
    let traffic = Arc::clone(&connection.traffic);
    let (written, read) = (traffic.written(), traffic.read());
    let is_reused = connection.is_reused;
    way.endpoint.target.passage.adapt(&mut request);
    let response = connection.sender.try_send_request(request);
    let outcome = within(response, &mut connection.timer, way.timeouts.response, upload).await;
    let (error, unsent) = match outcome {
        Some(Ok(response)) => {
            if let Some(error) = denied(&response, way) {
                return Err(Box::new(Failure { error, unsent: None, fate: Fate::Unknown, was_reused: is_reused }));
            }
            let patience = way.timeouts.pool_idle;
            return Ok((response, Lease { pool: Rc::clone(way.pool), key: way.key, connection, patience }));
        }
        Some(Err(mut failed)) => {
            let unsent = failed.take_message();
            (describe(failed.error(), way, upload), unsent)
        }
        None => {
            let seconds = way.timeouts.response.unwrap_or_default().as_secs_f32();
            let message = format!(
                "{} did not answer within {seconds} s: raise `timeouts.response` if it needs longer",
                way.endpoint.target
            );
            let error = Error::new(Code::UpstreamTimeout, message);
            return Err(Box::new(Failure { error, unsent: None, fate: Fate::Unknown, was_reused: is_reused }));
        }
    };
    // Over TLS a write that failed may have sent a part before it did, which is not counted.
    let is_counted = way.endpoint.target.tls.is_none();
    let fate = if unsent.is_some() || (is_counted && traffic.written() == written) {
        Fate::Unsent
    } else if is_reused && traffic.read() == read {
        Fate::DiedOnReuse
    } else {
        Fate::Unknown
    };
    Err(Box::new(Failure { error, unsent, fate, was_reused: is_reused }))
}

async fn take(way: Way<'_>) -> Option<Connection<Outgoing>> {
    loop {
        let mut connection = way.pool.take(way.key)?;
        // A connection comes back at the end of a reply, a moment before its task has noticed.
        if connection.sender.is_ready()
            || matches!(Box::pin(timeout(MOMENT, connection.sender.ready())).await, Ok(Ok(())))
        {
            return Some(connection);
        }
    }
}

async fn open(way: Way<'_>) -> Result<Connection<Outgoing>, Error> {
    let target = &way.endpoint.target;
    let reached = connect::connect(target, way.timeouts, way.own).await;
    let stream = reached.map_err(|trouble| unreachable(&trouble, way))?;
    let traffic = Arc::new(Traffic::default());
    let stream = TokioIo::new(Counted::new(stream, Arc::clone(&traffic)));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(way.limits.header_bytes);
    let handshake = builder.handshake(stream).await;
    let (sender, task) = handshake.map_err(|error| describe(&error, way, None))?;
    // The task ends with its connection: when the upstream closes it, or when the sender is dropped.
    tokio::task::spawn_local(async move {
        if let Err(error) = task.with_upgrades().await {
            debug!(%error, "an upstream connection ended");
        }
    });
    Ok(Connection::new(sender, traffic))
}

/// Awaits a reply; the clock begins anew with every part of the body that is handed over. `None` is a timeout.
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
            let since = upload.map_or(began, |upload| upload.last.get().max(began));
            if since + patience <= Instant::now() {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(since + patience);
        }
    })
    .await
}

/// What a proxy says that forwards requests, and never an upstream: it wants to be shown who asks (RFC 9110, section
/// 15.5.8). That is between us and the proxy.
fn denied(response: &Response<Incoming>, way: Way<'_>) -> Option<Error> {
    let Passage::Forward(proxy, _) = &way.endpoint.target.passage else { return None };
    let challenges = response.headers().get_all(PROXY_AUTHENTICATE).iter().map(HeaderValue::as_bytes);
    let is_denied = response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    is_denied.then(|| Error::new(Code::UpstreamUnreachable, proxy.denial(challenges)))
}

fn unreachable(trouble: &Trouble, way: Way<'_>) -> Error {
    in_the_way(trouble, &way.endpoint.target.to_string(), "the route's `upstream` or `connect`", way)
}

/// What stood in the way to a server, and which setting leads there.
fn in_the_way(trouble: &Trouble, server: &str, setting: &str, way: Way<'_>) -> Error {
    match trouble {
        Trouble::Unresolved(error) => Error::new(
            Code::UpstreamUnreachable,
            format!("the name of {server} leads to no address ({error}): correct {setting}"),
        ),
        Trouble::Ourselves(address) => Error::new(
            Code::UpstreamUnreachable,
            format!("{server} leads to {address}, one of countersign's own listeners: correct {setting}"),
        ),
        Trouble::Refused(address, error) => {
            Error::new(Code::UpstreamUnreachable, format!("{server} cannot be reached at {address}: {error}"))
        }
        Trouble::Tls(error) => {
            let mut message = format!("TLS with {server} failed: {}", in_words(error));
            if way.endpoint.target.passage.proxy().is_some() && is_of_unknown_issuer(error) {
                message += "; if the proxy inspects TLS, name its CA in `server.extra_ca`, or in `tls.ca` if the route has one";
            }
            Error::new(Code::UpstreamTls, message)
        }
        Trouble::Proxy(proxy, trouble) => {
            in_the_way(trouble, &format!("the outbound proxy {proxy}"), &proxy.named_in, way)
        }
        Trouble::NoTunnel(message) => Error::new(Code::UpstreamUnreachable, message.clone()),
        Trouble::TimedOut(step) => {
            let seconds = way.timeouts.connect.unwrap_or_default().as_secs_f32();
            Error::new(
                Code::UpstreamTimeout,
                format!("{server}: {step} took longer than {seconds} s (`timeouts.connect`)"),
            )
        }
    }
}

/// What a failure of the HTTP library means.
fn describe(error: &hyper::Error, way: Way<'_>, upload: Option<&Rc<Upload>>) -> Error {
    if let Some(broken) = upload.and_then(|upload| upload.broken.get()) {
        return hold::broken(broken);
    }
    let endpoint = &way.endpoint.target;
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if let Some(error) = io.filter(|error| as_tls(error).is_some()) {
        return Error::new(Code::UpstreamTls, format!("TLS with {endpoint} failed: {}", in_words(error)));
    }
    let what = if error.is_parse_too_large() {
        "its reply's head is larger than `limits.header_bytes`, or has more than 100 headers".to_owned()
    } else if error.is_parse() {
        "its reply is not HTTP/1.1".to_owned()
    } else if let Some(error) = io {
        format!("the connection broke before a reply: {error}")
    } else {
        "it closed the connection before a reply".to_owned()
    };
    Error::new(Code::UpstreamProtocol, format!("{endpoint}: {what}"))
}

fn as_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn is_of_unknown_issuer(error: &io::Error) -> bool {
    matches!(as_tls(error), Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)))
}

fn in_words(error: &io::Error) -> String {
    as_tls(error).map_or_else(|| error.to_string(), tls::describe)
}

/// How long a connection's task may take to notice that a reply has ended.
const MOMENT: Duration = Duration::from_millis(100);
