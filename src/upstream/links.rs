//! What is counted of a route's connections to its upstreams. They come and go so seldom that all threads count in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A route's connections, for as long as the daemon lives.
#[derive(Debug, Default)]
pub struct Links {
    open: AtomicU64,
    idle: AtomicU64,
    opened: [AtomicU64; 3],
}

/// What it took to open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// No TLS.
    None,
    /// A whole handshake.
    Full,
    /// One that went on with an earlier session.
    Resumed,
}

impl Handshake {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::None, Self::Full, Self::Resumed];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Resumed => "resumed",
        }
    }
}

impl Links {
    /// Counts a connection that was opened, and is open until what is returned is dropped.
    #[must_use]
    pub fn open(self: &Arc<Self>, handshake: Handshake) -> Open {
        for (known, count) in Handshake::ALL.iter().zip(&self.opened) {
            count.fetch_add(u64::from(*known == handshake), Ordering::Relaxed);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// Counts a connection that begins to wait for a request.
    pub fn rest(&self) {
        self.idle.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that waits no longer.
    pub fn wake(&self) {
        self.idle.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are open, and how many of these wait for a request that they would have to themselves.
    #[must_use]
    pub fn now(&self) -> (u64, u64) {
        (self.open.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed))
    }

    /// How many were opened so far, by what it took.
    #[must_use]
    pub fn opened(&self) -> [(Handshake, u64); 3] {
        let [none, full, resumed] = self.opened.each_ref().map(|count| count.load(Ordering::Relaxed));
        [(Handshake::None, none), (Handshake::Full, full), (Handshake::Resumed, resumed)]
    }
}

/// An open connection, counted for as long as this lives.
#[derive(Debug)]
pub struct Open(Arc<Links>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
