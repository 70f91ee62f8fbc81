//! Opening connections: one for a request alone, or one at a time where requests share.

use std::cell::Cell;
use std::error::Error;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Timeouts;
use super::connect::{CONNECTING, Offer, Target, Trouble, connect};
use super::http2::{Shared, Terms};
use super::links::Links;
use super::pool::{Connection, Counted, Http1, Key, Opened, Pool, Speaks, Traffic};

/// What opening needs to know.
#[derive(Debug)]
pub struct Plan<'a, B> {
    /// The thread's pool.
    pub pool: &'a Rc<Pool<B>>,
    /// The endpoint's place in it.
    pub key: Key,
    /// Where its connections are counted.
    pub links: &'a Arc<Links>,
    /// The endpoint.
    pub target: &'a Target,
    /// How long to wait.
    pub timeouts: &'a Timeouts,
    /// Octets of a reply's head.
    pub header_bytes: usize,
    /// Our own listeners.
    pub own: &'a [SocketAddr],
}

/// Opens a connection for a request. Where requests share, a burst of them makes one handshake, and as many as have room
/// on that connection then take it.
///
/// # Errors
/// What stood in the way, for everybody who waited.
pub async fn open<B>(plan: &Plan<'_, B>, offer: Offer) -> Result<Connection<B>, Rc<Trouble>>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    match (offer, plan.pool.speaks(plan.key)) {
        (Offer::Http1, _) | (Offer::Any, Some(Speaks::Http1Only)) => Ok(alone(plan, Offer::Http1).await?),
        (Offer::Any, Some(Speaks::Http1)) => Ok(alone(plan, Offer::Any).await?),
        (Offer::Any, Some(Speaks::Http2) | None) => together(plan).await,
    }
}

async fn together<B>(plan: &Plan<'_, B>) -> Result<Connection<B>, Rc<Trouble>>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let deadline = plan.timeouts.connect.map(|patience| Instant::now() + patience);
    loop {
        let opening = plan.pool.opening(plan.key);
        let (mut mine, is_mine) = (None, Cell::new(false));
        let opened = opening.get_or_init(|| {
            is_mine.set(true);
            async {
                match alone(plan, Offer::Any).await {
                    Ok(connection) => match mine.insert(connection) {
                        Connection::Http1(_) => Opened::Http1,
                        Connection::Http2(place) => Opened::Http2(Rc::downgrade(place.shared())),
                    },
                    Err(trouble) => Opened::Failed(Rc::new(trouble)),
                }
            }
        });
        let overdue = async {
            past(deadline).await;
            // Who makes it has its own clocks, which know what they are for.
            if is_mine.get() {
                pending::<()>().await;
            }
        };
        let opened = tokio::select! {
            biased;
            opened = opened => opened,
            () = overdue => return Err(Rc::new(Trouble::TimedOut(CONNECTING))),
        };
        if let Some(connection) = mine {
            return Ok(connection);
        }
        match opened {
            Opened::Http1 => return Ok(alone(plan, Offer::Any).await?),
            Opened::Http2(shared) => {
                let Some(shared) = shared.upgrade() else { continue };
                tokio::select! {
                    biased;
                    () = shared.settled() => {}
                    () = past(deadline) => return Err(Rc::new(Trouble::TimedOut("its first frame of HTTP/2"))),
                }
                if let Some(place) = shared.take() {
                    return Ok(Connection::Http2(place));
                }
            }
            Opened::Failed(trouble) => return Err(Rc::clone(trouble)),
        }
    }
}

async fn past(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Opens a connection without regard to others; they will find it if they can share it.
async fn alone<B>(plan: &Plan<'_, B>, offer: Offer) -> Result<Connection<B>, Trouble>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut stream = connect(plan.target, offer, plan.timeouts, plan.own).await?;
    stream.count(plan.links);
    let is_http2 = stream.is_http2();
    if offer == Offer::Any {
        plan.pool.learn(plan.key, if is_http2 { Speaks::Http2 } else { Speaks::Http1 });
    }
    let traffic = Arc::new(Traffic::default());
    let stream = Counted::new(stream, Arc::clone(&traffic));
    if is_http2 {
        let terms = Terms { header_bytes: plan.header_bytes, idle: plan.timeouts.pool_idle };
        let opened = Shared::open(stream, traffic, terms).await;
        let (shared, place) = opened.map_err(|error| Trouble::Broken(io::Error::other(error)))?;
        plan.pool.add(plan.key, shared);
        return Ok(Connection::Http2(place));
    }
    let mut builder = http1::Builder::new();
    // The buffer alone would let heads pass that are a little larger.
    builder.max_buf_size(plan.header_bytes).max_header_size(plan.header_bytes);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (sender, task) = handshake.map_err(|error| Trouble::Broken(io::Error::other(error)))?;
    // The task ends with its connection: when the upstream closes it, or when the sender is dropped.
    tokio::task::spawn_local(async move {
        if let Err(error) = task.with_upgrades().await {
            debug!(%error, "an upstream connection ended");
        }
    });
    Ok(Connection::Http1(Http1::new(sender, traffic, Arc::clone(plan.links))))
}
