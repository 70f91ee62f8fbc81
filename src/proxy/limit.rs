//! Between holding and signing: requests that would pass the provider's own limits wait a little, or are refused here.
//!
//! A limit is one for all callers and all threads, since the provider sees a single address. It is kept for a route as a
//! whole, before one of its servers is chosen: they share what each of them would grant.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::provider::{Allowance, Things, Usage};

use super::error::{Code, Error};

/// Keeps a route to what its provider allows.
pub struct Limiter {
    allowance: Allowance,
    reads: Buckets<MonotonicClock>,
    changes: Buckets<MonotonicClock>,
    polls: Arc<Semaphore>,
}

/// A poll's place among those that wait, given back when dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "it is there to be dropped")] OwnedSemaphorePermit);

impl Limiter {
    /// Nothing asked yet.
    #[must_use]
    pub fn new(allowance: Allowance) -> Self {
        Self {
            allowance,
            reads: Buckets::new(allowance.reads, MonotonicClock),
            changes: Buckets::new(allowance.changes, MonotonicClock),
            polls: Arc::new(Semaphore::new(allowance.polls)),
        }
    }

    /// What it keeps to.
    #[must_use]
    pub fn allowance(&self) -> Allowance {
        self.allowance
    }

    /// Waits until a request may go, for [half a second](LONGEST_WAIT) at most; a poll gets a place to keep for as long as it
    /// waits upstream.
    ///
    /// # Errors
    /// `rate_limited`, at once where it is certain that half a second would not be enough.
    pub async fn admit(&self, usage: Usage) -> Result<Option<Place>, Error> {
        let (buckets, things, what) = match usage {
            Usage::Nothing => return Ok(None),
            Usage::Reads(things) => (&self.reads, things, "reads"),
            Usage::Changes(things) => (&self.changes, things, "changes"),
            Usage::Poll { .. } => return self.place().await.map(Some),
        };
        let wait = buckets.take(&things);
        // They may be as large as the body, and what follows may take a while.
        drop(things);
        match wait {
            Ok(Duration::ZERO) => {}
            Ok(wait) => sleep(wait).await,
            Err(wait) => {
                let reason = format!("the provider allows one address {} {what} of the same in a second", buckets.rate);
                return Err(refusal(&reason, wait));
            }
        }
        Ok(None)
    }

    async fn place(&self) -> Result<Place, Error> {
        if let Ok(Ok(permit)) = timeout(LONGEST_WAIT, Arc::clone(&self.polls).acquire_owned()).await {
            return Ok(Place(permit));
        }
        let polls = self.allowance.polls;
        let reason = format!("{polls} polls wait already, as many as the provider allows one address");
        Err(refusal(&reason, POLL_PAUSE))
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.allowance).finish()
    }
}

fn refusal(reason: &str, wait: Duration) -> Error {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let message = format!("{reason}: ask less often, or come again after `Retry-After`");
    Error { retry_after: Some(seconds.max(1)), ..Error::new(Code::RateLimited, message) }
}

/// A bucket for each thing, which holds a second's worth. Those who wait have taken theirs already, so the buckets are
/// larger by as many as half a second fills: who gets one of these has to wait, in the order of arrival.
struct Buckets<C: Clock> {
    rate: NonZeroU32,
    /// How long it takes to fill in one.
    interval: Duration,
    /// How many may wait.
    queue: u32,
    /// By hashes with a key of our own, so that names of any length take no more memory than others; nobody can choose two
    /// that share a bucket.
    limiter: RateLimiter<u64, HashMapStateStore<u64>, C, StateInformationMiddleware>,
    hasher: RandomState,
    clock: C,
    /// How many buckets there may be before the full ones are thrown away.
    most: AtomicUsize,
}

impl<C: Clock + Clone> Buckets<C> {
    fn new(rate: NonZeroU32, clock: C) -> Self {
        let quota = Quota::per_second(rate);
        let interval = quota.replenish_interval();
        let queue = LONGEST_WAIT.as_nanos() / interval.as_nanos().max(1);
        let queue = u32::try_from(queue).unwrap_or(u32::MAX);
        let quota = quota.allow_burst(rate.saturating_add(queue));
        let limiter = RateLimiter::hashmap_with_clock(quota, clock.clone()).with_middleware();
        Self { rate, interval, queue, limiter, hasher: RandomState::new(), clock, most: AtomicUsize::new(KEPT) }
    }

    /// Takes one for each thing. How long to wait before going on with them; as an error, before asking again. What was
    /// taken for a thing before another refused is not given back.
    fn take(&self, Things { space, names }: &Things) -> Result<Duration, Duration> {
        self.sweep();
        let space = self.hasher.hash_one(space);
        let mut keys: SmallVec<[u64; 4]> = names.iter().map(|name| self.hasher.hash_one((space, name))).collect();
        // However often a request names a thing, it is one request.
        keys.sort_unstable();
        keys.dedup();
        let mut waiting = 0;
        for key in keys {
            let left = self.limiter.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))?;
            waiting = waiting.max(self.queue.saturating_sub(left.remaining_burst_capacity()));
        }
        Ok(self.interval * waiting)
    }

    /// Throws away the buckets that are full, when there are many more than last time: however many things there are, only
    /// those of the last moments take memory, and looking for them takes next to no time.
    fn sweep(&self) {
        if self.limiter.len() >= self.most.load(Ordering::Relaxed) {
            self.limiter.retain_recent();
            self.most.store(KEPT.max(self.limiter.len().saturating_mul(2)), Ordering::Relaxed);
        }
    }
}

/// How long a request may wait, reckoned when it comes.
pub const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// When a poll is to try again: when a place becomes free, nobody knows.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// How many buckets are kept without looking at them.
const KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn buckets(rate: u32) -> (Buckets<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Buckets::new(NonZeroU32::new(rate).unwrap(), clock.clone()), clock)
    }

    fn things(names: &[impl AsRef<[u8]>]) -> Things {
        Things { space: b"s".to_vec(), names: names.iter().map(|name| name.as_ref().to_vec()).collect() }
    }

    fn waits(buckets: &Buckets<FakeRelativeClock>, names: &[&str], count: usize) -> Vec<Result<u128, u128>> {
        let take = || buckets.take(&things(names));
        let in_millis = |duration: Duration| duration.as_millis();
        (0..count).map(|_| take().map(in_millis).map_err(in_millis)).collect()
    }

    #[test]
    fn what_a_second_allows_goes_at_once_and_the_rest_waits_in_the_order_of_arrival() {
        let (reads, clock) = buckets(10);
        assert_eq!(waits(&reads, &["a"], 10), [Ok(0); 10]);
        assert_eq!(waits(&reads, &["a"], 5), [Ok(100), Ok(200), Ok(300), Ok(400), Ok(500)]);
        assert_eq!(waits(&reads, &["a"], 2), [Err(100); 2]);
        assert_eq!(waits(&reads, &["b"], 1), [Ok(0)]);
        clock.advance(Duration::from_millis(200));
        assert_eq!(waits(&reads, &["a"], 3), [Ok(400), Ok(500), Err(100)]);
        clock.advance(Duration::from_millis(1500));
        assert_eq!(waits(&reads, &["a"], 11), [[Ok(0); 10].as_slice(), &[Ok(100)]].concat());
        let (changes, _) = buckets(5);
        assert_eq!(waits(&changes, &["a"], 5), [Ok(0); 5]);
        assert_eq!(waits(&changes, &["a"], 3), [Ok(200), Ok(400), Err(200)]);
    }

    #[test]
    fn each_thing_of_a_request_counts_once() {
        let (reads, _) = buckets(10);
        assert_eq!(waits(&reads, &["a", "b", "a"], 10), [Ok(0); 10]);
        assert_eq!(waits(&reads, &["a"], 5), [Ok(100), Ok(200), Ok(300), Ok(400), Ok(500)]);
        assert_eq!(waits(&reads, &["b"], 1), [Ok(100)]);
        assert_eq!(waits(&reads, &["c", "b"], 1), [Ok(200)]);
        assert_eq!(waits(&reads, &["a", "c"], 1), [Err(100)]);
        assert_eq!(waits(&reads, &[], 1), [Ok(0)]);
        assert_eq!(reads.take(&Things { space: b"r".to_vec(), ..things(&["a"]) }), Ok(Duration::ZERO));
    }

    #[test]
    fn buckets_that_are_full_again_are_thrown_away() {
        let (reads, clock) = buckets(10);
        let take = |name: usize| reads.take(&things(&[name.to_le_bytes()]));
        for name in 0..10 * KEPT {
            assert_eq!(take(name), Ok(Duration::ZERO));
        }
        assert_eq!(reads.limiter.len(), 10 * KEPT);
        clock.advance(Duration::from_secs(2));
        for name in 0..10 * KEPT {
            assert_eq!(take(name), Ok(Duration::ZERO));
        }
        assert!(reads.limiter.len() <= 20 * KEPT, "{}", reads.limiter.len());
        clock.advance(Duration::from_secs(2));
        for name in 20 * KEPT..30 * KEPT {
            clock.advance(Duration::from_millis(10));
            assert_eq!(take(name), Ok(Duration::ZERO));
        }
        assert!(reads.limiter.len() < 2 * KEPT, "{}", reads.limiter.len());
    }

    #[test]
    fn who_is_refused_is_told_when_to_come_again_in_whole_seconds() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(refusal("", Duration::from_millis(millis)).retry_after, Some(seconds));
        }
    }
}
