//! The one clock.
//!
//! Signatures carry the time, so tests must be able to set it, and a machine that slept must be noticed. Everything in
//! this crate reads the time here.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds, the fraction cut off.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This much later; the end of time if there is no such moment.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This much earlier.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long it is from an earlier moment to this one; nothing if that one is the later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Tells the time; every clone tells the same one.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    set: Option<Arc<watch::Sender<i64>>>,
}

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until it is [set](Self::set).
    #[must_use]
    pub fn fixed(now: Timestamp) -> Self {
        Self { set: Some(Arc::new(watch::Sender::new(now.0))) }
    }

    /// Sets a fixed clock; the machine's clock is left alone.
    pub fn set(&self, now: Timestamp) {
        if let Some(set) = &self.set {
            set.send_replace(now.0);
        }
    }

    /// The wall clock's time.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        if let Some(set) = &self.set {
            return Timestamp(*set.borrow());
        }
        let since = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp(since)
    }

    /// Waits for as long as this takes, whatever happens to the wall clock meanwhile; with a fixed clock, until that was set
    /// to so much later than it shows now, even if nobody waits yet.
    pub fn pause(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        let (clock, end) = (self.clone(), self.now().after(duration));
        async move {
            match &clock.set {
                Some(_) => clock.reach(end).await,
                None => tokio::time::sleep(duration).await,
            }
        }
    }

    /// Waits until the wall clock shows this time, be it because it was set, or because the machine slept.
    pub async fn reach(&self, time: Timestamp) {
        if let Some(set) = &self.set {
            // The sender is ours, so it is there for as long as we are.
            let _ = set.subscribe().wait_for(|now| *now >= time.0).await;
            return;
        }
        loop {
            let left = time.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(GLANCE)).await;
        }
    }
}

/// How often whoever waits for a time looks at the wall clock, which may be set meanwhile.
const GLANCE: Duration = Duration::from_secs(15);

/// How far a server's clock is ahead of ours, as its replies have taught. One for all that is sent to that server.
#[derive(Debug, Default)]
pub struct Skew {
    millis: AtomicI64,
}

impl Skew {
    /// How far the server is ahead, in milliseconds.
    #[must_use]
    pub fn millis(&self) -> i64 {
        self.millis.load(Ordering::Relaxed)
    }

    /// Takes over what a reply has taught.
    pub fn learn(&self, millis: i64) {
        self.millis.store(millis, Ordering::Relaxed);
    }
}

/// A time after something during which it is not done again. A clock that is set back does not make it longer.
#[derive(Debug)]
pub struct Rest {
    length: Duration,
    began: AtomicI64,
}

impl Rest {
    /// One that did not begin yet.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, began: AtomicI64::new(i64::MIN) }
    }

    /// Begins it, or begins it anew.
    pub fn begin(&self, now: Timestamp) {
        self.began.store(now.0, Ordering::Relaxed);
    }

    /// True until it is over.
    #[must_use]
    pub fn is_on(&self, now: Timestamp) -> bool {
        let began = Timestamp(self.began.load(Ordering::Relaxed));
        began <= now && now.since(began) < self.length
    }
}

/// Notices that the machine slept: the wall clock went on while the monotonic one stood still.
#[derive(Debug)]
pub struct Sleep {
    clock: Clock,
    wall: Timestamp,
    monotonic: Instant,
}

/// What the wall clock must run ahead by to count as sleep; less is the ordinary slewing of a clock.
const SLEPT: Duration = Duration::from_secs(5);

impl Sleep {
    /// Starts watching.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { wall: clock.now(), clock, monotonic: Instant::now() }
    }

    /// True if the machine slept since the last call. A wall clock that was set forward looks the same.
    pub fn slept(&mut self) -> bool {
        let (wall, monotonic) = (self.clock.now(), Instant::now());
        let passed = i64::try_from((monotonic - self.monotonic).as_millis()).unwrap_or(i64::MAX);
        let ahead = (wall.0 - self.wall.0).saturating_sub(passed);
        (self.wall, self.monotonic) = (wall, monotonic);
        ahead > i64::try_from(SLEPT.as_millis()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_ahead_looks_like_sleep() {
        let clock = Clock::fixed(Timestamp(0));
        let mut sleep = Sleep::new(clock.clone());
        clock.set(Timestamp(4_900));
        assert!(!sleep.slept());
        clock.set(Timestamp(20_000));
        assert!(sleep.slept());
        assert!(!sleep.slept());
    }

    #[tokio::test]
    async fn a_pause_begins_when_it_is_made() {
        let clock = Clock::fixed(Timestamp(0));
        let pause = clock.pause(Duration::from_millis(10));
        clock.set(Timestamp(10));
        tokio::time::timeout(Duration::from_secs(60), pause).await.unwrap();
    }

    #[test]
    fn fractions_are_cut_off_before_1970_too() {
        assert_eq!(Timestamp(1999).seconds(), 1);
        assert_eq!(Timestamp(-1).seconds(), -1);
    }
}
