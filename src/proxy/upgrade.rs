//! Step 9 for connections that become something else: WebSocket, Docker's hijacked streams.
//!
//! An upgrade is passed on only where a caller asked for it, and only what it asked for; then the two connections are
//! joined, octet by octet, each direction ending on its own.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use crate::upstream::connect::Stream;
use crate::upstream::pool::{Counted, Lease};

use super::access::{Account, Cut};
use super::activity::Activity;
use super::body::Outgoing;

/// What a caller wants its connection to become.
#[derive(Debug)]
pub struct Wish {
    protocols: HeaderValue,
    on_upgrade: OnUpgrade,
}

impl Wish {
    /// The wish in a request's head, if there is one that can be passed on. HTTP/2 in the clear cannot: behind it, requests
    /// would go to the upstream unseen and unsigned (RFC 9113 section 3.1 has done away with it).
    #[must_use]
    pub fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let headers = request.headers();
        if request.version() != Version::HTTP_11 || !headers.contains_key(UPGRADE) {
            return None;
        }
        if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
            return None;
        }
        let protocols: Vec<_> =
            tokens(headers, &UPGRADE).filter(|protocol| !protocol.eq_ignore_ascii_case(b"h2c")).collect();
        let protocols = HeaderValue::from_bytes(&protocols.join(b", ".as_slice())).ok()?;
        if protocols.is_empty() {
            return None;
        }
        Some(Self { protocols, on_upgrade: hyper::upgrade::on(request) })
    }

    /// Says it to the upstream.
    pub fn announce(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, self.protocols.clone());
    }

    /// True if the reply, which switches protocols, switches to nothing but what was wished for.
    #[must_use]
    pub fn is_granted(&self, reply: &HeaderMap) -> bool {
        let wished = |protocol: &[u8]| split(&self.protocols).any(|wished| wished.eq_ignore_ascii_case(protocol));
        let mut granted = tokens(reply, &UPGRADE).peekable();
        granted.peek().is_some() && granted.all(wished)
    }
}

fn tokens<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().flat_map(split)
}

fn split(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|octet| *octet == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// A caller's connection and an upstream's that are about to be joined.
#[derive(Debug)]
pub struct Tunnel {
    caller: OnUpgrade,
    upstream: OnUpgrade,
    lease: Lease<Outgoing>,
    activity: Arc<Activity>,
    account: Account,
}

/// Where a request leaves its tunnel for its connection, which is the one to run it.
pub type Exit = RefCell<Option<Tunnel>>;

impl Tunnel {
    /// Joins the connection on which a wish came with the one on which it was granted.
    #[must_use]
    pub fn new<B>(
        wish: Wish,
        granted: &mut Response<B>,
        lease: Lease<Outgoing>,
        activity: Arc<Activity>,
        account: Account,
    ) -> Self {
        Self { caller: wish.on_upgrade, upstream: hyper::upgrade::on(granted), lease, activity, account }
    }

    /// Carries octets both ways until both directions have ended, or one of them is cut. No clock runs: what the two say to
    /// each other, and when, is theirs. Peers that vanish are noticed by the kernel. Then the request is told, with what went
    /// through.
    pub async fn run(self) {
        let Self { caller, upstream, lease, activity, account } = self;
        let (Ok(caller), Ok(upstream)) = (caller.await, upstream.await) else { return };
        drop(lease);
        activity.set_tunnel();
        debug!(id = &*account.id, "a tunnel is open");
        let Ok(parts) = upstream.downcast::<TokioIo<Counted<Stream>>>() else { return };
        let mut upstream = parts.io.into_inner().into_inner();
        upstream.endure();
        let mut caller = TokioIo::new(caller);
        match join(&mut caller, &parts.read_buf, upstream, &account).await {
            Ok(()) => account.end(None),
            Err((side, error)) => {
                debug!(%error, "a tunnel was cut");
                activity.set_unframed(true);
                account.end(Some(side));
            }
        }
    }
}

/// Joins two streams; `early` is what the upstream has sent already.
///
/// # Errors
/// Who cut it, and how.
async fn join(
    caller: impl AsyncRead + AsyncWrite,
    early: &[u8],
    mut upstream: Stream,
    account: &Account,
) -> Result<(), (Cut, io::Error)> {
    let (from_caller, to_caller) = tokio::io::split(caller);
    let (from_upstream, to_upstream) = tokio::io::split(&mut upstream);
    let there = async {
        let carried = carry(&[], from_caller, to_upstream, &account.received).await;
        carried.map_err(|error| (Cut::Caller, error))
    };
    let back = async {
        let carried = carry(early, from_upstream, to_caller, &account.sent).await;
        carried.map_err(|error| (Cut::Upstream, error))
    };
    let joined = tokio::try_join!(there, back);
    if joined.is_err() {
        upstream.cut();
    }
    joined.map(drop)
}

/// Carries one direction to its end, and says so at the other side, which may go on in the other direction. A sink that
/// has gone ends it as well, but not the other direction: what that side still had to say comes first, and then its end.
/// What was carried is added to `count`, in octets.
///
/// # Errors
/// The source was cut.
async fn carry(
    early: &[u8],
    mut source: impl AsyncRead + Unpin,
    mut sink: impl AsyncWrite + Unpin,
    count: &Cell<u64>,
) -> io::Result<()> {
    let carried = |octets: &[u8]| count.set(count.get() + octets.len() as u64);
    let mut buffer = vec![0; BUFFER];
    carried(early);
    let mut is_open = sink.write_all(early).await.is_ok();
    while is_open {
        let octets = source.read(&mut buffer).await?;
        let octets = buffer.get(..octets).filter(|octets| !octets.is_empty());
        let Some(octets) = octets else {
            let _ = sink.shutdown().await;
            break;
        };
        carried(octets);
        is_open = sink.write_all(octets).await.is_ok() && sink.flush().await.is_ok();
    }
    Ok(())
}

/// What a direction holds at most, in octets.
const BUFFER: usize = 16 << 10;
