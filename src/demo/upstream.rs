//! The embedded upstream: listeners on the loopback, each with a scheme that it verifies and a service behind it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::certificates::Identity;
use super::random;
use super::service::{Reply, Service};
use super::verify::{Received, Refusal, Scheme};
use crate::clock::Clock;
use crate::upstream::x509::{self, Certificate};

/// A server that verifies every request and remembers what it found. It stops when it is dropped.
pub struct Upstream {
    clock: Clock,
    journal: Arc<Journal>,
    listeners: JoinSet<()>,
}

/// What is behind one listener.
pub struct Site {
    /// A name for [`Seen`].
    pub name: &'static str,
    /// How it is reached.
    pub transport: Transport,
    /// What is verified.
    pub scheme: Box<dyn Scheme>,
    /// Who answers when that was found good.
    pub service: Service,
}

/// How a listener is reached.
pub enum Transport {
    /// Plain HTTP.
    Plain,
    /// TLS; the server shows this identity.
    Tls(Identity),
    /// TLS, and the client must show a certificate.
    MutualTls {
        /// What the server shows.
        identity: Identity,
        /// Who must have issued the client's certificate.
        clients: CertificateDer<'static>,
    },
}

/// A request that was received, and what was found. Its `Debug` shows no header's value: they hold credentials.
#[derive(Clone)]
pub struct Seen {
    /// The site's name.
    pub site: &'static str,
    /// The method.
    pub method: Method,
    /// The request's target as received, without a fragment.
    pub target: String,
    /// The headers in their order; those of one name follow one another. Names are in lower case.
    pub headers: HeaderMap,
    /// The length of the body; 0 if it was cut off or too large.
    pub body_len: usize,
    /// The common name in the client's certificate.
    pub client: Option<String>,
    /// What was verified, or why the request was refused, in words.
    pub verdict: Result<String, String>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The iterator over the names would show the values as well.
        let names: Vec<_> = self.headers.keys().collect();
        f.debug_struct("Seen")
            .field("site", &self.site)
            .field("method", &self.method)
            .field("target", &self.target)
            .field("headers", &names)
            .field("body_len", &self.body_len)
            .field("client", &self.client)
            .field("verdict", &self.verdict)
            .finish()
    }
}

impl Upstream {
    /// A server without listeners. Its clock decides what has expired and is the `Date` of its replies.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, journal: Arc::default(), listeners: JoinSet::new() }
    }

    /// Opens a listener on a free port of 127.0.0.1 and returns its address.
    ///
    /// # Errors
    /// No port is free, the identity cannot be used for TLS, or there is no randomness.
    pub async fn listen(&mut self, site: Site) -> io::Result<SocketAddr> {
        let Site { name, transport, scheme, service } = site;
        let acceptor = transport.acceptor().map_err(io::Error::other)?;
        let requests = format!("{}-", hex::encode(random::<8>()?));
        let (clock, journal) = (self.clock.clone(), Arc::clone(&self.journal));
        let site = Arc::new(Open { name, scheme, service, clock, journal, requests, count: AtomicU64::new(0) });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        self.listeners.spawn(accept(listener, acceptor, site));
        Ok(address)
    }

    /// The last thousand requests, the oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.journal.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Tells, by a change, that another request has come, with how many there have been.
    #[must_use]
    pub fn arrivals(&self) -> watch::Receiver<usize> {
        self.journal.count.subscribe()
    }

    /// The request seen last.
    #[must_use]
    pub fn last_seen(&self) -> Option<Seen> {
        self.journal.seen.lock().unwrap_or_else(PoisonError::into_inner).back().cloned()
    }
}

impl Transport {
    /// What makes TLS of a connection; `None` for plain HTTP.
    ///
    /// # Errors
    /// The identity, or the authority of the clients, cannot be used.
    pub fn acceptor(&self) -> Result<Option<TlsAcceptor>, Box<dyn std::error::Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let (builder, identity) = match self {
            Self::Plain => return Ok(None),
            Self::Tls(identity) => (builder.with_no_client_auth(), identity),
            Self::MutualTls { identity, clients } => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.clone())?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                (builder.with_client_cert_verifier(verifier), identity)
            }
        };
        let mut config = builder.with_single_cert(vec![identity.certificate()], identity.key())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

#[derive(Default)]
struct Journal {
    seen: Mutex<VecDeque<Seen>>,
    count: watch::Sender<usize>,
}

impl Journal {
    fn add(&self, request: Seen) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(request);
        drop(seen);
        self.count.send_modify(|count| *count += 1);
    }
}

/// A site as its connections share it.
struct Open {
    name: &'static str,
    scheme: Box<dyn Scheme>,
    service: Service,
    clock: Clock,
    journal: Arc<Journal>,
    /// What the requests' ids begin with.
    requests: String,
    count: AtomicU64,
}

/// Takes connections until it is dropped, and they with it.
async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, site: Arc<Open>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&site)));
                }
                // Out of descriptors, most likely: accepting again at once would spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Serves one connection. What goes wrong on it is the client's to notice.
async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, site: Arc<Open>) {
    // A client that does not read must not hold the connection for ever.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(PATIENCE));
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else { return serve(stream, None, site).await };
    if let Ok(Ok(stream)) = timeout(PATIENCE, acceptor.accept(stream)).await {
        let certificates = stream.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(|chain| Certificate::parse(chain.first()?));
        let client = leaf.and_then(|leaf| x509::common_name(leaf.subject));
        serve(stream, client, site).await;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, client: Option<String>, site: Arc<Open>) {
    let service = service_fn(|request| {
        let (site, client) = (Arc::clone(&site), client.clone());
        async move { Ok::<_, Infallible>(site.answer(request, client).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

impl Open {
    async fn answer(&self, request: Request<Incoming>, client: Option<String>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = match timeout(PATIENCE, Limited::new(body, BODY).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "EntityTooLarge", "The body is too large."))
            }
            Ok(Err(_)) => Err(Refusal::new(StatusCode::BAD_REQUEST, "InvalidHTTPRequest", "The body was cut off.")),
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", "The body took too long.")),
        };
        let body_len = body.as_ref().map_or(0, Bytes::len);
        let (verdict, reply) = match body {
            Ok(body) => self.judge(&head, &body, client.as_deref()),
            Err(refusal) => (Err(words(&refusal)), Err(refusal)),
        };
        let (method, target) = (head.method, head.uri.to_string());
        self.journal.add(Seen { site: self.name, method, target, headers: head.headers, body_len, client, verdict });
        self.render(reply)
    }

    fn judge(&self, head: &request::Parts, body: &[u8], client: Option<&str>) -> (Verdict, Result<Reply, Refusal>) {
        let request = Received {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
            body,
            client,
            time: self.clock.now(),
        };
        match self.scheme.verify(&request) {
            Ok(verified) => (Ok(verified), self.service.answer(&request)),
            Err(refusal) => (Err(words(&refusal)), Err(refusal)),
        }
    }

    fn render(&self, reply: Result<Reply, Refusal>) -> Response<Full<Bytes>> {
        let id = format!("{}{:08x}", self.requests, self.count.fetch_add(1, Ordering::Relaxed));
        let (status, headers, body) = match reply {
            Ok(Reply { status, headers, body }) => (status, headers, body),
            Err(refusal) => (refusal.status, HeaderMap::new(), Some(self.scheme.error_body(&refusal, &id))),
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if let Some(body) = body {
            // A service whose errors are no JSON has text for them.
            let (content_type, body) = match body {
                Value::String(text) => ("text/plain; charset=utf-8", text),
                body => ("application/json; charset=utf-8", body.to_string()),
            };
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            *response.body_mut() = Full::from(body);
        }
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(self.scheme.request_id_header(), id);
        }
        // hyper would put the machine's time here, which is not what signatures were judged by.
        if let Some(date) = http_date(&self.clock) {
            response.headers_mut().insert(header::DATE, date);
        }
        response
    }
}

type Verdict = Result<String, String>;

fn words(refusal: &Refusal) -> String {
    format!("{}: {}", refusal.code, refusal.message)
}

fn http_date(clock: &Clock) -> Option<HeaderValue> {
    let time = jiff::Timestamp::from_second(clock.now().seconds()).ok()?;
    let text = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()?;
    HeaderValue::try_from(text).ok()
}

/// Requests that are remembered.
const REMEMBERED: usize = 1000;
/// Connections to a listener at one time.
const CONNECTIONS: usize = 256;
/// Octets of a body.
const BODY: usize = 1 << 20;
/// For a handshake, a body, and a client that does not read.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a request's head, and between requests: longer than clients' pools keep their connections.
const IDLE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_forgets_the_oldest() {
        let journal = Journal::default();
        for number in 0..REMEMBERED + 2 {
            journal.add(Seen {
                site: "test",
                method: Method::GET,
                target: number.to_string(),
                headers: HeaderMap::new(),
                body_len: 0,
                client: None,
                verdict: Ok(String::new()),
            });
        }
        let seen = journal.seen.lock().unwrap();
        assert_eq!((seen.len(), seen[0].target.as_str()), (REMEMBERED, "2"));
    }

    #[test]
    fn no_headers_value_is_in_debug_output() {
        let mut headers = HeaderMap::new();
        headers.insert("x-auth-token", HeaderValue::from_static("hidden"));
        let (method, target, verdict) = (Method::GET, "/".to_owned(), Ok("fine".to_owned()));
        let seen = Seen { site: "test", method, target, headers, body_len: 0, client: None, verdict };
        let shown = format!("{seen:?}");
        assert!(shown.contains("x-auth-token") && !shown.contains("hidden"), "{shown}");
    }
}
