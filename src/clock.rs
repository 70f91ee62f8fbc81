//! The one clock.
//!
//! Signatures carry the time, so tests must be able to set it, and a machine that slept must be noticed. Everything in
//! this crate reads the time here.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds, the fraction cut off.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// Tells the time; every clone tells the same one.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    set: Option<Arc<AtomicI64>>,
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
        Self { set: Some(Arc::new(AtomicI64::new(now.0))) }
    }

    /// Sets a fixed clock; the machine's clock is left alone.
    pub fn set(&self, now: Timestamp) {
        if let Some(set) = &self.set {
            set.store(now.0, Ordering::Relaxed);
        }
    }

    /// The wall clock's time.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        if let Some(set) = &self.set {
            return Timestamp(set.load(Ordering::Relaxed));
        }
        let since = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        Timestamp(since)
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

    #[test]
    fn fractions_are_cut_off_before_1970_too() {
        assert_eq!(Timestamp(1999).seconds(), 1);
        assert_eq!(Timestamp(-1).seconds(), -1);
    }
}
