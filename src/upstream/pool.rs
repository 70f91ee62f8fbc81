//! Connections to upstreams that can take a request: a pool for every thread, without locks.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OnceCell;
use tokio::time::{Instant, Sleep};

use crate::clock::{self, Clock};

use super::connect::{Offer, Trouble};
use super::diagnosis;
use super::http2::{Place, Shared};
use super::links::Links;

/// How many idle connections to one upstream a thread keeps. A miss costs a handshake, which is what dozens of requests
/// cost; a connection that waits costs some kilobytes.
const MOST_IDLE: usize = 1024;

/// What a pooled connection leads to: the number of a route's endpoint. One that is reached in another way than before, or
/// with another identity, has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u64);

/// A thread's connections that can take a request, and what it knows of where they lead.
pub struct Pool<B> {
    slots: RefCell<HashMap<Key, Slot<B>>>,
    sleep: RefCell<clock::Sleep>,
}

struct Slot<B> {
    /// Connections of HTTP/1.1 that wait for their next request.
    idle: VecDeque<Http1<B>>,
    /// Connections of HTTP/2, busy ones among them.
    shared: Vec<Rc<Shared>>,
    /// The next connection of HTTP/2, for as long as nobody knows whether it will have room.
    opening: Rc<Opening>,
    speaks: Option<Speaks>,
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1, the last time that it could choose.
    Http1,
    /// HTTP/2, the last time that it could choose.
    Http2,
    /// HTTP/1.1: it has refused a request because it came over HTTP/2.
    Http1Only,
}

impl<B> Default for Slot<B> {
    fn default() -> Self {
        Self { idle: VecDeque::new(), shared: Vec::new(), opening: Rc::default(), speaks: None }
    }
}

impl<B> Slot<B> {
    /// A place on the connection that has been there for longest, so that one that is not needed any more becomes idle.
    fn share(&mut self) -> Option<Place> {
        if self.shared.is_empty() {
            return None;
        }
        let now = Instant::now();
        self.shared.retain(|shared| !shared.is_over(now));
        self.shared.iter().find_map(Shared::take)
    }

    /// The connection that was given back last.
    fn wake(&mut self) -> Option<Http1<B>> {
        let now = Instant::now();
        loop {
            let mut connection = self.idle.pop_back()?;
            if connection.is_good(now) {
                connection.is_reused = true;
                connection.stir();
                return Some(connection);
            }
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<B> Pool<B> {
    /// An empty pool.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { slots: RefCell::default(), sleep: RefCell::new(clock::Sleep::new(clock)) }
    }

    /// A connection that is still good as far as is known, and speaks nothing but what is offered.
    pub fn take(&self, key: Key, offer: Offer) -> Option<Connection<B>> {
        let mut slots = self.slots.borrow_mut();
        if self.sleep.borrow_mut().slept() {
            // After a suspend every connection is dead, and finding out costs each request a timeout.
            for slot in slots.values_mut() {
                slot.idle.clear();
                slot.shared.clear();
            }
        }
        let slot = slots.get_mut(&key)?;
        let place = if offer == Offer::Any { slot.share() } else { None };
        place.map(Connection::Http2).or_else(|| slot.wake().map(Connection::Http1))
    }

    /// Drops the connections whose time is over.
    pub fn expire(&self) {
        let now = Instant::now();
        let mut slots = self.slots.borrow_mut();
        for slot in slots.values_mut() {
            slot.idle.retain(|connection| connection.is_good(now));
            slot.shared.retain(|shared| !shared.is_over(now));
        }
        slots.retain(|_, slot| slot.speaks.is_some() || !slot.idle.is_empty());
    }

    /// Keeps nothing of the endpoints that are not there any more: idle connections end, busy ones when they have done.
    pub fn retain(&self, is_there: impl Fn(Key) -> bool) {
        self.slots.borrow_mut().retain(|key, _| is_there(*key));
    }

    /// The shared connection that is being opened, or the place of the next one.
    pub fn opening(&self, key: Key) -> Rc<Opening> {
        let mut slots = self.slots.borrow_mut();
        let opening = &mut slots.entry(key).or_default().opening;
        if opening.get().is_some_and(Opened::is_over) {
            *opening = Rc::default();
        }
        Rc::clone(opening)
    }

    /// What the endpoint speaks, if it is known.
    pub fn speaks(&self, key: Key) -> Option<Speaks> {
        self.slots.borrow().get(&key)?.speaks
    }

    /// Notes what an endpoint speaks.
    pub fn learn(&self, key: Key, speaks: Speaks) {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry(key).or_default();
        slot.speaks = Some(speaks);
        if speaks == Speaks::Http1Only {
            slot.shared.clear();
        }
    }

    /// Adds a connection that requests share.
    pub fn add(&self, key: Key, shared: Rc<Shared>) {
        self.slots.borrow_mut().entry(key).or_default().shared.push(shared);
    }

    fn put(&self, key: Key, mut connection: Http1<B>) {
        let mut slots = self.slots.borrow_mut();
        let idle = &mut slots.entry(key).or_default().idle;
        if idle.len() >= MOST_IDLE {
            idle.pop_front();
        }
        connection.links.rest();
        connection.is_idle = true;
        idle.push_back(connection);
    }
}

/// A connection in the making that several requests wait for. Who comes first makes it; where that one goes, the next one
/// does.
pub type Opening = OnceCell<Opened>;

/// What became of an opening.
#[derive(Debug)]
pub enum Opened {
    /// A connection for one request alone.
    Http1,
    /// A connection for all of them.
    Http2(Weak<Shared>),
    /// None.
    Failed(Rc<Trouble>),
}

impl Opened {
    /// True if there is nothing more to wait for: the next request that finds no room needs another connection.
    fn is_over(&self) -> bool {
        match self {
            Self::Http2(shared) => shared.upgrade().is_none_or(|shared| shared.is_settled()),
            Self::Http1 | Self::Failed(_) => true,
        }
    }
}

/// What a request is sent over.
#[derive(Debug)]
pub enum Connection<B> {
    /// A connection of its own.
    Http1(Http1<B>),
    /// A place on a shared one.
    Http2(Place),
}

/// A connection of HTTP/1.1 to an upstream.
pub struct Http1<B> {
    /// Its way in.
    pub sender: SendRequest<B>,
    /// What has gone through it.
    pub traffic: Arc<Traffic>,
    /// A timer for whoever uses it: made once a connection, since making one costs more than setting it.
    pub timer: Pin<Box<Sleep>>,
    /// True if a request has used it before.
    pub is_reused: bool,
    /// Where it is counted.
    links: Arc<Links>,
    is_idle: bool,
    idle_until: Option<Instant>,
}

impl<B> Http1<B> {
    /// A fresh connection.
    #[must_use]
    pub fn new(sender: SendRequest<B>, traffic: Arc<Traffic>, links: Arc<Links>) -> Self {
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { sender, traffic, timer, is_reused: false, links, is_idle: false, idle_until: None }
    }

    /// Counts it as idle no longer.
    fn stir(&mut self) {
        if std::mem::take(&mut self.is_idle) {
            self.links.wake();
        }
    }

    fn is_good(&self, now: Instant) -> bool {
        !self.sender.is_closed() && self.idle_until.is_none_or(|until| now < until)
    }
}

impl<B> Drop for Http1<B> {
    fn drop(&mut self) {
        self.stir();
    }
}

impl<B> fmt::Debug for Http1<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").field("is_reused", &self.is_reused).finish_non_exhaustive()
    }
}

/// A connection that answers a request and then goes back to its pool; dropped instead, it is closed, or if others share it
/// the request's stream is.
#[derive(Debug)]
pub struct Lease<B> {
    /// The pool.
    pub pool: Rc<Pool<B>>,
    /// Its place there.
    pub key: Key,
    /// The connection.
    pub connection: Connection<B>,
    /// How long it may wait there.
    pub patience: Option<Duration>,
}

impl<B> Lease<B> {
    /// Gives the connection back at the end of a reply. One of HTTP/1.1 to which the request is still being written
    /// (`is_written` is false) is closed after that: what came next would be taken for the rest of it.
    pub fn give_back(self, is_written: bool) {
        let Self { pool, key, connection, patience } = self;
        match connection {
            Connection::Http1(mut connection) if is_written && !connection.sender.is_closed() => {
                connection.idle_until = patience.map(|patience| Instant::now() + patience);
                pool.put(key, connection);
            }
            Connection::Http1(_) => {}
            Connection::Http2(place) => place.leave(),
        }
    }
}

/// What has gone through a connection, in octets of HTTP: whether a request was ever written, and whether any of a
/// reply came, decides if it may be sent again.
#[derive(Debug, Default)]
pub struct Traffic {
    written: AtomicU64,
    read: AtomicU64,
    is_blocked: AtomicBool,
    trouble: OnceLock<rustls::Error>,
}

impl Traffic {
    /// Octets written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Octets read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// True while the upstream has not read enough for all to be written that there is.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// What TLS had to say when it broke, which not every library above passes on.
    pub fn trouble(&self) -> Option<&rustls::Error> {
        self.trouble.get()
    }
}

/// A stream that counts.
#[derive(Debug)]
pub struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    /// Counts what goes through a stream.
    pub fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }

    /// The stream, not counted any more.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn add(counter: &AtomicU64, octets: usize) {
        // One thread alone counts here, so no read-modify-write is needed.
        counter.store(counter.load(Ordering::Relaxed) + octets as u64, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        Self::add(&self.traffic.read, buf.filled().len() - before);
        if let Poll::Ready(Err(error)) = &read
            && let Some(trouble) = diagnosis::cause(error)
        {
            let _ = self.traffic.trouble.set(trouble.clone());
        }
        read
    }
}

impl<S> Counted<S> {
    /// A peer that has closed may have answered before, and the library does not read what it cannot write to: so what is
    /// left is written to nowhere, not counted, and reading shows what the peer had to say.
    fn wrote(&self, cx: &Context<'_>, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        self.note(cx, &written);
        match written {
            Poll::Ready(Ok(octets)) => Self::add(&self.traffic.written, octets),
            Poll::Ready(Err(ref error)) if is_gone(error) => return Poll::Ready(Ok(all)),
            _ => {}
        }
        written
    }

    /// Notes whether the upstream takes what there is.
    fn note<T>(&self, cx: &Context<'_>, done: &Poll<T>) {
        if self.traffic.is_blocked() != done.is_pending() {
            self.traffic.is_blocked.store(done.is_pending(), Ordering::Relaxed);
            if done.is_ready() {
                // The body waits for this, and is a part of the same task.
                cx.waker().wake_by_ref();
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.wrote(cx, written, data.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.wrote(cx, written, data.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(cx, &flushed);
        flushed.map(|flushed| match flushed {
            Err(error) if is_gone(&error) => Ok(()),
            flushed => flushed,
        })
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::DuplexStream;

    use super::super::http2::Terms;
    use super::*;
    use crate::clock::Timestamp;

    const KEY: Key = Key(0);

    /// Puts a connection into a pool; its other end.
    async fn fill(pool: &Rc<Pool<Empty<Bytes>>>, key: Key, patience: Option<Duration>) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64);
        let (sender, task) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(task);
        let connection = Connection::Http1(Http1::new(sender, Arc::default(), Arc::default()));
        Lease { pool: Rc::clone(pool), key, connection, patience }.give_back(true);
        theirs
    }

    fn take(pool: &Rc<Pool<Empty<Bytes>>>, key: Key) -> Option<Http1<Empty<Bytes>>> {
        pool.take(key, Offer::Any).map(|connection| match connection {
            Connection::Http1(connection) => connection,
            Connection::Http2(_) => panic!("nobody shares here"),
        })
    }

    #[tokio::test]
    async fn a_machine_that_slept_trusts_no_connection() {
        let clock = Clock::fixed(Timestamp(0));
        let pool = Rc::new(Pool::new(clock.clone()));
        let other = Key(1);
        let _ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, None).await, fill(&pool, other, None).await];
        assert!(take(&pool, KEY).is_some_and(|connection| connection.is_reused));
        clock.set(Timestamp(3_600_000));
        assert!(take(&pool, KEY).is_none());
        assert!(take(&pool, other).is_none());
        let _end = fill(&pool, KEY, None).await;
        assert!(take(&pool, KEY).is_some());
    }

    #[tokio::test]
    async fn shared_connections_are_not_trusted_after_sleep_either() {
        let test = async {
            let clock = Clock::fixed(Timestamp(0));
            let pool = Rc::new(Pool::<Empty<Bytes>>::new(clock.clone()));
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let serving = tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(theirs).await.unwrap();
                while connection.accept().await.is_some() {}
            });
            let terms = Terms { header_bytes: 1 << 16, idle: None };
            let (shared, place) = Shared::open(ours, Arc::default(), terms).await.unwrap();
            shared.settled().await;
            pool.add(KEY, shared);
            assert!(matches!(pool.take(KEY, Offer::Any), Some(Connection::Http2(_))));
            assert!(pool.take(KEY, Offer::Http1).is_none());
            clock.set(Timestamp(3_600_000));
            assert!(pool.take(KEY, Offer::Any).is_none());
            // Who uses it still may; then it is closed.
            assert!(!place.shared().is_closed());
            drop(place);
            serving.await.unwrap();
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn connections_whose_time_is_over_are_not_taken() {
        let pool = Rc::new(Pool::new(Clock::fixed(Timestamp(0))));
        let _ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, Some(Duration::from_secs(1))).await];
        tokio::time::advance(Duration::from_secs(2)).await;
        pool.expire();
        assert!(take(&pool, KEY).is_some_and(|connection| connection.idle_until.is_none()));
        assert!(take(&pool, KEY).is_none());
    }

    #[tokio::test]
    async fn connections_that_the_other_side_has_closed_are_not_taken() {
        let pool = Rc::new(Pool::new(Clock::fixed(Timestamp(0))));
        let ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, None).await];
        let connection = take(&pool, KEY).unwrap();
        drop(ends);
        // The connections' tasks notice when it is their turn.
        while !connection.sender.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(take(&pool, KEY).is_none());
    }
}
