//! What is counted of a route's requests, by each thread for itself: a counter has one writer, so counting takes no lock, and
//! no thread waits for another's. Whoever asks adds up what the threads have. It all outlives reloads, so that no count goes
//! back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::attempts;
use super::error::Code;

/// A count that one thread alone adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// What it has come to.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A count for each of some kinds, which have names.
#[derive(Debug)]
pub struct Kinds<const COUNT: usize> {
    /// Their names.
    pub names: [&'static str; COUNT],
    counts: [Counter; COUNT],
}

impl<const COUNT: usize> Kinds<COUNT> {
    fn new(names: [&'static str; COUNT]) -> Self {
        Self { names, counts: std::array::from_fn(|_| Counter::default()) }
    }

    /// Adds one to the kind of this name.
    pub fn add(&self, name: &str) {
        if let Some((_, count)) = self.each().find(|(known, _)| *known == name) {
            count.add(1);
        }
    }

    /// Every kind's name and count.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        self.names.iter().copied().zip(&self.counts)
    }
}

/// How long things took.
#[derive(Debug, Default)]
pub struct Durations {
    /// How many were within each bound and beyond the one before; the last were beyond all of them.
    buckets: [Counter; BOUNDS.len() + 1],
    micros: Counter,
}

impl Durations {
    /// Counts one.
    pub fn add(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(place) {
            bucket.add(1);
            self.micros.add(micros);
        }
    }

    /// The sum in microseconds, and how many there were in each bucket.
    #[must_use]
    pub fn values(&self) -> (u64, [u64; BOUNDS.len() + 1]) {
        (self.micros.value(), self.buckets.each_ref().map(Counter::value))
    }
}

/// The bounds of durations, in microseconds.
pub const BOUNDS: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// What one thread has counted of a route's requests, or of those that were meant for none.
#[derive(Debug)]
pub struct Tally {
    /// The route's name, or [`NOWHERE`].
    pub route: String,
    /// Requests that have begun.
    pub begun: Counter,
    /// Requests that have ended, by their reply's class.
    pub statuses: Kinds<6>,
    /// Replies that broke off, or that nobody waited for, by who was the reason.
    pub cuts: Kinds<2>,
    /// Answers of our own to what went wrong.
    pub codes: Kinds<{ Code::ALL.len() }>,
    /// Upstreams' refusals, by what they meant.
    pub verdicts: Kinds<{ attempts::VERDICTS.len() }>,
    /// How often a request was sent.
    pub attempts: Counter,
    /// Requests that were sent again, by the reason.
    pub retries: Kinds<3>,
    /// Octets of requests' bodies.
    pub received: Counter,
    /// Octets of replies' bodies.
    pub sent: Counter,
    /// What came before the replies' heads, but for waiting for upstreams.
    pub own: Durations,
    /// Waiting for upstreams, of the requests that were sent.
    pub upstream: Durations,
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new(route: &str) -> Self {
        Self {
            route: route.to_owned(),
            begun: Counter::default(),
            statuses: Kinds::new(["1xx", "2xx", "3xx", "4xx", "5xx", NO_STATUS]),
            cuts: Kinds::new(["caller", "upstream"]),
            codes: Kinds::new(Code::ALL.map(Code::name)),
            verdicts: Kinds::new(attempts::VERDICTS),
            attempts: Counter::default(),
            retries: Kinds::new(attempts::RETRIES),
            received: Counter::default(),
            sent: Counter::default(),
            own: Durations::default(),
            upstream: Durations::default(),
        }
    }

    /// Counts a request that has ended with this status, if it got one.
    pub fn end(&self, status: Option<u16>) {
        let class = status.map_or(usize::MAX, |status| usize::from(status / 100).wrapping_sub(1));
        self.statuses.add(self.statuses.names.get(class).copied().unwrap_or(NO_STATUS));
    }
}

/// The tallies of all threads, those of routes that are gone too.
#[derive(Debug, Default)]
pub struct Tallies(Mutex<Vec<Arc<Tally>>>);

impl Tallies {
    /// Another one, for a thread that meets this route for the first time.
    #[must_use]
    pub fn open(&self, route: &str) -> Arc<Tally> {
        let tally = Arc::new(Tally::new(route));
        self.lock().push(Arc::clone(&tally));
        tally
    }

    /// All there are.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Tally>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands where a route's name would, for requests that were meant for none. No route can be called that.
pub const NOWHERE: &str = "-";

/// The class of requests whose callers left before there was a reply.
const NO_STATUS: &str = "none";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        let durations = Durations::default();
        for micros in [0, 100, 101, 60_000_000, 60_000_001] {
            durations.add(Duration::from_micros(micros));
        }
        let (sum, buckets) = durations.values();
        assert_eq!((sum, buckets[0], buckets[1], buckets[17], buckets[18]), (120_000_202, 2, 1, 1, 1));
        assert_eq!(buckets.iter().sum::<u64>(), 5);
    }

    #[test]
    fn every_request_is_of_one_class() {
        let tally = Tally::new("a");
        for status in [Some(101), Some(200), Some(299), Some(503), Some(600), None] {
            tally.end(status);
        }
        let counts: Vec<_> = tally.statuses.each().map(|(name, count)| (name, count.value())).collect();
        assert_eq!(counts, [("1xx", 1), ("2xx", 2), ("3xx", 0), ("4xx", 0), ("5xx", 1), ("none", 2)]);
    }
}
