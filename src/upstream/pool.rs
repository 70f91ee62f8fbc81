//! Connections to upstreams that wait for their next request: a pool for every thread, without locks.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::clock::{self, Clock};

/// How many idle connections to one upstream a thread keeps. A miss costs a handshake, which is what dozens of requests
/// cost; a connection that waits costs some kilobytes.
const MOST_IDLE: usize = 1024;

/// What a pooled connection leads to: a route's endpoint. Connections of different identities never share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The route.
    pub route: usize,
    /// The endpoint among the route's.
    pub endpoint: usize,
}

/// A thread's idle connections.
pub struct Pool<B> {
    idle: RefCell<HashMap<Key, VecDeque<Connection<B>>>>,
    sleep: RefCell<clock::Sleep>,
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
        Self { idle: RefCell::default(), sleep: RefCell::new(clock::Sleep::new(clock)) }
    }

    /// The connection that was given back last, if it is still good as far as is known.
    pub fn take(&self, key: Key) -> Option<Connection<B>> {
        if self.sleep.borrow_mut().slept() {
            // After a suspend every connection is dead, and finding out costs each request a timeout.
            self.idle.borrow_mut().clear();
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key)?;
        let now = Instant::now();
        loop {
            let mut connection = list.pop_back()?;
            if !connection.sender.is_closed() && connection.idle_until.is_none_or(|until| now < until) {
                connection.is_reused = true;
                return Some(connection);
            }
        }
    }

    /// Drops the connections whose time is over.
    pub fn expire(&self) {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        for list in idle.values_mut() {
            list.retain(|connection| {
                !connection.sender.is_closed() && connection.idle_until.is_none_or(|until| now < until)
            });
        }
        idle.retain(|_, list| !list.is_empty());
    }

    fn put(&self, key: Key, connection: Connection<B>) {
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() >= MOST_IDLE {
            list.pop_front();
        }
        list.push_back(connection);
    }
}

/// A connection to an upstream.
pub struct Connection<B> {
    /// Its way in.
    pub sender: SendRequest<B>,
    /// What has gone through it.
    pub traffic: Arc<Traffic>,
    /// A timer for whoever uses it: made once a connection, since making one costs more than setting it.
    pub timer: Pin<Box<Sleep>>,
    /// True if a request has used it before.
    pub is_reused: bool,
    idle_until: Option<Instant>,
}

impl<B> Connection<B> {
    /// A fresh connection.
    #[must_use]
    pub fn new(sender: SendRequest<B>, traffic: Arc<Traffic>) -> Self {
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { sender, traffic, timer, is_reused: false, idle_until: None }
    }
}

impl<B> fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_reused", &self.is_reused).finish_non_exhaustive()
    }
}

/// A connection that answers a request and then goes back to its pool; dropped instead, it is closed.
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
    /// Gives the connection back.
    pub fn give_back(mut self) {
        if !self.connection.sender.is_closed() {
            self.connection.idle_until = self.patience.map(|patience| Instant::now() + patience);
            self.pool.put(self.key, self.connection);
        }
    }
}

/// What has gone through a connection, in octets of HTTP: whether a request was ever written, and whether any of a
/// reply came, decides if it may be sent again.
#[derive(Debug, Default)]
pub struct Traffic {
    written: AtomicU64,
    read: AtomicU64,
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
        read
    }
}

impl<S> Counted<S> {
    /// A peer that has closed may have answered before, and the library does not read what it cannot write to: so what is
    /// left is written to nowhere, not counted, and reading shows what the peer had to say.
    fn wrote(&self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(octets)) => Self::add(&self.traffic.written, octets),
            Poll::Ready(Err(ref error)) if is_gone(error) => return Poll::Ready(Ok(all)),
            _ => {}
        }
        written
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.wrote(written, data.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.wrote(written, data.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx).map(|flushed| match flushed {
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

    use super::*;
    use crate::clock::Timestamp;

    const KEY: Key = Key { route: 0, endpoint: 0 };

    /// Puts a connection into a pool; its other end.
    async fn fill(pool: &Rc<Pool<Empty<Bytes>>>, key: Key, patience: Option<Duration>) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64);
        let (sender, task) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(task);
        let connection = Connection::new(sender, Arc::default());
        Lease { pool: Rc::clone(pool), key, connection, patience }.give_back();
        theirs
    }

    #[tokio::test]
    async fn a_machine_that_slept_trusts_no_connection() {
        let clock = Clock::fixed(Timestamp(0));
        let pool = Rc::new(Pool::new(clock.clone()));
        let other = Key { route: 1, ..KEY };
        let _ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, None).await, fill(&pool, other, None).await];
        assert!(pool.take(KEY).is_some_and(|connection| connection.is_reused));
        clock.set(Timestamp(3_600_000));
        assert!(pool.take(KEY).is_none());
        assert!(pool.take(other).is_none());
        let _end = fill(&pool, KEY, None).await;
        assert!(pool.take(KEY).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_whose_time_is_over_are_not_taken() {
        let pool = Rc::new(Pool::new(Clock::fixed(Timestamp(0))));
        let _ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, Some(Duration::from_secs(1))).await];
        tokio::time::advance(Duration::from_secs(2)).await;
        pool.expire();
        assert!(pool.take(KEY).is_some_and(|connection| connection.idle_until.is_none()));
        assert!(pool.take(KEY).is_none());
    }

    #[tokio::test]
    async fn connections_that_the_other_side_has_closed_are_not_taken() {
        let pool = Rc::new(Pool::new(Clock::fixed(Timestamp(0))));
        let ends = [fill(&pool, KEY, None).await, fill(&pool, KEY, None).await];
        let connection = pool.take(KEY).unwrap();
        drop(ends);
        // The connections' tasks notice when it is their turn.
        while !connection.sender.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(pool.take(KEY).is_none());
    }
}
