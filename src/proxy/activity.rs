//! What a caller's stream and the requests on it tell each other: whose turn it is, who waits for whom, what is left unread.
//!
//! All of it belongs to one thread. Atomics are there because the library wants a connection that can become a tunnel to be
//! `Send`, so each is read and written without any order among them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::Duration;

/// What a caller's stream and the requests on it tell each other.
#[derive(Debug)]
pub struct Activity {
    pub(super) phase: AtomicU8,
    turns: AtomicUsize,
    is_overdue: AtomicBool,
    /// How long a write may stall, in milliseconds; 0 for ever.
    write_patience: AtomicU64,
    /// A write waits for the caller to read.
    pub(super) is_write_waiting: AtomicBool,
    /// True while a reply is unfinished whose only framing is the connection's end.
    pub(super) is_unframed: AtomicBool,
    /// True if the caller may still be sending a body that nobody reads.
    pub(super) is_unread: AtomicBool,
    flushes: AtomicU64,
    is_awaited: AtomicBool,
    flush_wakers: Mutex<Vec<Waker>>,
}

/// Nothing of a next request is there.
pub(super) const IDLE: u8 = 0;
/// A part of a head is there.
pub(super) const HEAD: u8 = 1;
/// A request is being answered.
pub(super) const BUSY: u8 = 2;
/// The same, and the connection may become a tunnel, in which an end of one direction is not the end.
pub(super) const SWITCHING: u8 = 3;
/// A tunnel.
const TUNNEL: u8 = 4;

impl Activity {
    /// A new connection: its first head is awaited.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(HEAD),
            turns: AtomicUsize::new(0),
            is_overdue: AtomicBool::new(false),
            write_patience: AtomicU64::new(60_000),
            is_write_waiting: AtomicBool::new(false),
            is_unframed: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            is_awaited: AtomicBool::new(false),
            flush_wakers: Mutex::default(),
        })
    }

    /// Marks the connection as busy with a request for as long as the turn lives.
    #[must_use]
    pub fn turn(self: &Arc<Self>) -> Turn {
        // One thread alone counts here, as everywhere in this type, so no read-modify-write is needed.
        self.turns.store(self.turns.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.phase.store(BUSY, Ordering::Relaxed);
        self.is_unread.store(false, Ordering::Relaxed);
        Turn(Arc::clone(self))
    }

    /// True while a head is awaited on a connection that has brought nothing before, or is there in part.
    pub fn is_new(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == HEAD
    }

    /// Has a multiplexed connection told to leave.
    pub fn retire(&self) {
        self.is_overdue.store(true, Ordering::Relaxed);
    }

    /// True once a multiplexed connection is to be told to leave, as one that has been idle for too long.
    pub fn is_overdue(&self) -> bool {
        self.is_overdue.load(Ordering::Relaxed)
    }

    fn pass(&self, from: u8, to: u8) {
        if self.phase.load(Ordering::Relaxed) == from {
            self.phase.store(to, Ordering::Relaxed);
        }
    }

    /// Says whether the connection may become a tunnel: a caller that has said all it has to say has not left then.
    pub fn set_switching(&self, is_switching: bool) {
        let (from, to) = if is_switching { (BUSY, SWITCHING) } else { (SWITCHING, BUSY) };
        self.pass(from, to);
    }

    /// Says that the connection is a tunnel now: nothing is timed any more.
    pub fn set_tunnel(&self) {
        self.phase.store(TUNNEL, Ordering::Relaxed);
        self.set_write_patience(None);
    }

    /// Sets how long the caller may leave a write waiting.
    pub fn set_write_patience(&self, patience: Option<Duration>) {
        let milliseconds = patience.map_or(0, |patience| u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        self.write_patience.store(milliseconds, Ordering::Relaxed);
    }

    /// How long the caller may leave a write waiting.
    pub fn write_patience(&self) -> Option<Duration> {
        Some(self.write_patience.load(Ordering::Relaxed)).filter(|patience| *patience > 0).map(Duration::from_millis)
    }

    /// True while the caller has not read enough for all to be written that there is.
    pub fn is_write_waiting(&self) -> bool {
        self.is_write_waiting.load(Ordering::Relaxed)
    }

    /// Says that a reply has begun which only the connection's end will end, or that it has come to its own end.
    pub fn set_unframed(&self, is_unframed: bool) {
        self.is_unframed.store(is_unframed, Ordering::Relaxed);
    }

    /// Says that the rest of a request's body will not be read.
    pub fn set_unread(&self) {
        self.is_unread.store(true, Ordering::Relaxed);
    }

    /// How often everything that was written has reached the kernel.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Wakes a task at the next flush; a multiplexed connection may have several to wake.
    pub fn wake_at_flush(&self, waker: &Waker) {
        let mut wakers = self.flush_wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        self.is_awaited.store(true, Ordering::Relaxed);
    }

    /// Notes that everything that was written has reached the kernel.
    pub(super) fn flushed(&self) {
        let flushes = self.flushes.load(Ordering::Relaxed);
        self.flushes.store(flushes.wrapping_add(1), Ordering::Relaxed);
        // Only a reply that broke off or is read slowly waits here, so the lock is off the way of a request.
        if self.is_awaited.load(Ordering::Relaxed) {
            self.is_awaited.store(false, Ordering::Relaxed);
            self.flush_wakers.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(Waker::wake);
        }
    }
}

/// A connection's time with one request; it is idle again when the last of them is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Activity>);

impl Turn {
    /// The connection.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let others = self.0.turns.load(Ordering::Relaxed).saturating_sub(1);
        self.0.turns.store(others, Ordering::Relaxed);
        if others == 0 {
            // A connection on its way to becoming a tunnel is not idle.
            self.0.pass(BUSY, IDLE);
        }
    }
}
