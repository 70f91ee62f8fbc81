//! Reaching an upstream: resolving, connecting, a tunnel if a proxy is between, the TLS handshake.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::flow::{self, Flow};
use super::links::{Handshake, Links, Open};
use super::outbound::{Passage, ProxyServer};
use super::silence::Silence;
use super::{Endpoint, Host, Timeouts, diagnosis, tls, tunnel};

/// Everything that is needed to reach an endpoint.
#[derive(Clone, Debug)]
pub struct Target {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The host to dial: the endpoint's, or what the route says instead.
    pub host: Host,
    /// The port to dial.
    pub port: u16,
    /// Who dials it: we, or a proxy.
    pub passage: Passage,
    /// For `https://`.
    pub tls: Option<Tls>,
}

/// How an endpoint is reached over TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The configuration that offers HTTP/1.1 alone.
    pub http1: Arc<ClientConfig>,
    /// The one that offers HTTP/2 as well, if that may be spoken here.
    pub http2: Option<Arc<ClientConfig>>,
    /// The name to send and to verify.
    pub name: ServerName<'static>,
}

/// Which protocols are offered to an endpoint; in the clear it is always HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/1.1 alone.
    Http1,
    /// Whatever may be spoken there.
    Any,
}

impl Target {
    /// True if it would be shown a client certificate.
    #[must_use]
    pub fn shows_certificate(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.http1.client_auth_cert_resolver.has_certs())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)?;
        self.passage.proxy().map_or(Ok(()), |proxy| write!(f, " through the outbound proxy {proxy}"))
    }
}

/// Why an endpoint could not be reached.
#[derive(Debug)]
pub enum Trouble {
    /// Its name leads to no address.
    Unresolved(io::Error),
    /// It is one of our own listeners: a request would go round for ever.
    Ourselves(SocketAddr),
    /// None of its addresses answered; the last one's error.
    Refused(SocketAddr, io::Error),
    /// The handshake failed.
    Tls(io::Error),
    /// The connection broke as soon as it was there.
    Broken(io::Error),
    /// It took longer than the timeout.
    TimedOut(&'static str),
    /// The outbound proxy opens no tunnel: why, and what to do, in words.
    NoTunnel(String),
    /// One of these, between us and the outbound proxy.
    Proxy(Arc<ProxyServer>, Box<Self>),
}

impl Trouble {
    /// True if the certificates of both sides do not fit together, as [`diagnosis::is_of_identity`] tells.
    #[must_use]
    pub fn is_of_identity(&self) -> bool {
        matches!(self, Self::Tls(error) if diagnosis::is_of_identity(error))
    }

    /// What stood in the way to a target, in words. `setting` is what leads there, `patience` how long reaching it may take.
    #[must_use]
    pub fn describe(&self, target: &Target, setting: &str, patience: &str) -> String {
        self.of(&target.to_string(), setting, patience, target)
    }

    fn of(&self, server: &str, setting: &str, patience: &str, target: &Target) -> String {
        match self {
            Self::Unresolved(error) => {
                format!("the name of {server} leads to no address ({error}): correct {setting}")
            }
            Self::Ourselves(address) => {
                format!("{server} leads to {address}, one of countersign's own listeners: correct {setting}")
            }
            Self::Refused(address, error) => {
                format!("{server} cannot be reached at {address} ({error}): is it up, and is {setting} right?")
            }
            Self::Tls(error) => {
                let mut message =
                    format!("TLS with {server} failed: {}", diagnosis::describe(error, target.shows_certificate()));
                if target.passage.proxy().is_some() && diagnosis::is_of_unknown_issuer(error) {
                    message += "; if the proxy inspects TLS, name its CA in `server.extra_ca`, or in `tls.ca` if the route has one";
                }
                message
            }
            Self::Broken(error) => {
                format!("{server}: the connection broke at once ({error}): is {setting} right, its port above all?")
            }
            Self::Proxy(proxy, trouble) => {
                trouble.of(&format!("the outbound proxy {proxy}"), &proxy.named_in, patience, target)
            }
            Self::NoTunnel(message) => message.clone(),
            Self::TimedOut(step) => format!("{server}: {step} took longer than {patience}"),
        }
    }
}

/// A connection to an upstream, which does not wait for ever for it to read.
#[derive(Debug)]
pub struct Stream {
    layer: Layer,
    flow: Flow,
    /// While something waits to be read.
    silence: Silence,
    /// Among a route's connections.
    open: Option<Open>,
}

#[derive(Debug)]
enum Layer {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// True if HTTP/2 was agreed on.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        matches!(&self.layer, Layer::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2))
    }

    /// Counts it for as long as it lives.
    pub fn count(&mut self, links: &Arc<Links>) {
        let handshake = match &self.layer {
            Layer::Plain(_) => Handshake::None,
            Layer::Tls(stream) if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) => {
                Handshake::Resumed
            }
            Layer::Tls(_) => Handshake::Full,
        };
        self.open = Some(links.open(handshake));
    }

    fn socket(&self) -> SockRef<'_> {
        SockRef::from(match &self.layer {
            Layer::Plain(stream) => stream,
            Layer::Tls(stream) => stream.get_ref().0,
        })
    }

    /// Lets the peer leave unread what was sent for as long as it likes, and the kernel hold as much of it as it does for
    /// other programs: then the end of what a sender had to say is seen, even where the peer has stopped reading.
    pub fn endure(&mut self) {
        self.silence.patience = None;
        let _ = self.socket().set_tcp_user_timeout(None);
        flow::unbound_unsent(&self.socket());
    }

    /// Makes the end of this connection a reset, so that it does not pass for an orderly one.
    pub fn cut(&self) {
        let _ = self.socket().set_linger(Some(Duration::ZERO));
    }

    /// Ends a wait that has lasted too long, and with it the connection: nothing else would end what the peer does not read.
    fn wrote<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.silence.end();
            return written;
        }
        self.silence.poll(cx).map(|()| {
            self.cut();
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

/// Connects within the timeout for that; `own` are our own listeners.
///
/// # Errors
/// What stood in the way.
pub async fn connect(
    target: &Target,
    offer: Offer,
    timeouts: &Timeouts,
    own: &[SocketAddr],
) -> Result<Stream, Trouble> {
    let deadline = timeouts.connect.map(|patience| Instant::now() + patience);
    let reach = async {
        let dialling = Dialling { deadline, silence: timeouts.body, own };
        let tcp = match target.passage.proxy() {
            None => dialling.reach(&target.host, target.port).await?,
            Some(proxy) => dialling.through(proxy, target).await?,
        };
        let stream = |layer| Stream { layer, flow: Flow::default(), silence: Silence::new(timeouts.body), open: None };
        let Some(Tls { http1, http2, name }) = &target.tls else { return Ok(stream(Layer::Plain(tcp))) };
        let config = http2.as_ref().filter(|_| offer == Offer::Any).unwrap_or(http1);
        let connector = TlsConnector::from(Arc::clone(config));
        let tls = connector.connect(name.clone(), tcp).await.map_err(Trouble::Tls)?;
        Ok(stream(Layer::Tls(Box::new(tls))))
    };
    within(deadline, CONNECTING, reach).await
}

/// Does something until the deadline; `step` says what, for people.
async fn within<T>(
    deadline: Option<Instant>,
    step: &'static str,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let Some(deadline) = deadline else { return work.await };
    timeout_at(deadline, work).await.unwrap_or(Err(Trouble::TimedOut(step)))
}

/// What it takes to open a connection.
struct Dialling<'a> {
    deadline: Option<Instant>,
    /// How long a body may be silent.
    silence: Option<Duration>,
    /// Our own listeners.
    own: &'a [SocketAddr],
}

impl Dialling<'_> {
    async fn reach(&self, host: &Host, port: u16) -> Result<TcpStream, Trouble> {
        let tcp = match host {
            Host::Address(address) => dial(&[SocketAddr::new(*address, port)], self.deadline, self.own).await?,
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), port)).await.map_err(Trouble::Unresolved)?;
                dial(&alternate(&found.collect::<Vec<_>>()), self.deadline, self.own).await?
            }
        };
        prepare(&tcp, self.silence);
        Ok(tcp)
    }

    /// Reaches a proxy, and through it the target, unless the requests themselves do.
    async fn through(&self, proxy: &Arc<ProxyServer>, target: &Target) -> Result<TcpStream, Trouble> {
        let at_proxy = |trouble| Trouble::Proxy(Arc::clone(proxy), Box::new(trouble));
        let reach = self.reach(&proxy.endpoint.host, proxy.endpoint.port);
        let mut tcp = within(self.deadline, "resolving or connecting", reach).await.map_err(at_proxy)?;
        if matches!(target.passage, Passage::Tunnel(_)) {
            let authority = format!("{}:{}", target.host, target.port);
            let open = async {
                let opened = tunnel::open(&mut tcp, &authority, proxy.authorization.as_ref()).await;
                opened.map_err(|refusal| Trouble::NoTunnel(refusal.describe(proxy, &authority)))
            };
            within(self.deadline, "its answer to CONNECT", open).await.map_err(at_proxy)?;
        }
        Ok(tcp)
    }
}

/// Tries the addresses one after the other, each with its share of the time that is left, so that one dead address
/// does not cost the others their chance.
async fn dial(addresses: &[SocketAddr], deadline: Option<Instant>, own: &[SocketAddr]) -> Result<TcpStream, Trouble> {
    let mut last = Trouble::Unresolved(io::ErrorKind::NotFound.into());
    for (index, address) in addresses.iter().enumerate() {
        if own.iter().any(|own| is_same(own, *address)) {
            return Err(Trouble::Ourselves(*address));
        }
        let left = u32::try_from(addresses.len() - index).unwrap_or(1);
        let connecting = TcpStream::connect(*address);
        let connected = match deadline {
            Some(deadline) if left > 1 => {
                let share = deadline.saturating_duration_since(Instant::now()) / left;
                timeout(share, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            _ => connecting.await,
        };
        match connected {
            Ok(stream) if is_ourselves(&stream, own) => return Err(Trouble::Ourselves(*address)),
            Ok(stream) => return Ok(stream),
            Err(error) => last = Trouble::Refused(*address, error),
        }
    }
    Err(last)
}

/// The addresses with the families taking turns, the resolver's order kept within each.
fn alternate(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first = |address: &SocketAddr| addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4());
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(is_first);
    let mut turns = Vec::with_capacity(addresses.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        match (first.next(), second.next()) {
            (None, None) => return turns,
            (one, other) => turns.extend(one.into_iter().chain(other)),
        }
    }
}

fn is_same(own: &SocketAddr, address: SocketAddr) -> bool {
    let canonical = |ip: IpAddr| ip.to_canonical();
    own.port() == address.port()
        && (canonical(own.ip()) == canonical(address.ip()) || (own.ip().is_unspecified() && address.ip().is_loopback()))
}

/// A listener on all addresses is reached through any address of this machine, which the connection itself shows.
fn is_ourselves(stream: &TcpStream, own: &[SocketAddr]) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) if local.ip() == peer.ip() => {
            own.iter().any(|own| own.ip().is_unspecified() && own.port() == peer.port())
        }
        _ => false,
    }
}

/// Options that make a dead peer known soon. None is essential, so a kernel that lacks one is no error.
fn prepare(stream: &TcpStream, silence: Option<Duration>) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    flow::bound_unsent(&socket);
    // The kernel counts an upstream that is alive but does not read as well, and that may be silent as its body may.
    let _ = socket.set_tcp_user_timeout(silence.map(|silence| silence.max(UNACKNOWLEDGED)));
    keep_alive(&socket);
}

/// Has the kernel ask a silent peer whether it is still there.
pub fn keep_alive(socket: &SockRef<'_>) {
    let times = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    let _ = socket.set_tcp_keepalive(&times);
}

/// What the timeout for connecting is for, in words.
pub const CONNECTING: &str = "resolving, connecting or the TLS handshake";

/// How long what was sent may at least stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { layer, flow, .. } = &mut *self;
        match layer {
            Layer::Plain(stream) => flow.poll_read(stream, cx, buf),
            Layer::Tls(stream) => flow.poll_read(stream, cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Layer::Tls(stream) => Pin::new(stream).poll_write(cx, data),
        };
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Layer::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        };
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.layer {
            Layer::Plain(stream) => stream.is_write_vectored(),
            Layer::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        self.wrote(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses = ["[::1]:1", "[::2]:1", "127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"];
        let turns = alternate(&addresses.map(|address| address.parse().unwrap()));
        let turns: Vec<_> = turns.iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "127.0.0.3:1"]);
    }

    #[tokio::test]
    async fn an_upstream_may_leave_a_body_unread_for_as_long_as_bodies_may_be_silent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (silence, expected) in [(Some(5), Some(30)), (Some(3600), Some(3600)), (None, None)] {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            prepare(&stream, silence.map(Duration::from_secs));
            assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), expected.map(Duration::from_secs));
        }
    }

    #[test]
    fn our_own_listeners_are_known_by_every_name() {
        let is_same = |own: &str, address: &str| is_same(&own.parse().unwrap(), address.parse().unwrap());
        assert!(is_same("127.0.0.1:80", "127.0.0.1:80"));
        assert!(is_same("127.0.0.1:80", "[::ffff:127.0.0.1]:80"));
        assert!(is_same("0.0.0.0:80", "127.0.0.9:80"));
        assert!(!is_same("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!is_same("127.0.0.1:80", "127.0.0.2:80"));
    }
}
