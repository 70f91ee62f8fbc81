//! Step 8, for providers that lock an access key after bad signatures: none is multiplied here.
//!
//! Until a key has been accepted once, its requests go one at a time, so that a wrong secret costs one bad signature and
//! not as many as there are callers. Two in a row stop the key for a minute.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use crate::clock::{Rest, Timestamp};

use super::error::{Code, Error};

/// The access keys that can be locked, whatever routes use them.
#[derive(Debug, Default)]
pub struct Lockouts {
    keys: Mutex<HashMap<String, Arc<Lock>>>,
}

impl Lockouts {
    /// What is known of an access key.
    pub fn of(&self, access_key: &str) -> Arc<Lock> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = keys.get(access_key) {
            return Arc::clone(lock);
        }
        // Temporary keys come and go.
        keys.retain(|_, lock| Arc::strong_count(lock) > 1);
        let lock = Arc::new(Lock::new(access_key.to_owned()));
        keys.insert(access_key.to_owned(), Arc::clone(&lock));
        lock
    }
}

/// What is known of one access key.
#[derive(Debug)]
pub struct Lock {
    access_key: String,
    /// True from the moment that the provider accepts the key until it refuses a signature.
    is_proven: AtomicBool,
    turn: Arc<Semaphore>,
    /// Bad signatures in a row.
    failures: AtomicU32,
    stopped: Rest,
    /// The provider's own lock.
    locked: Rest,
}

/// The leave to send one request with the key.
#[derive(Debug)]
pub struct Pass {
    lock: Arc<Lock>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Lock {
    fn new(access_key: String) -> Self {
        Self {
            access_key,
            is_proven: AtomicBool::new(false),
            turn: Arc::new(Semaphore::new(1)),
            failures: AtomicU32::new(0),
            stopped: Rest::new(STOP),
            locked: Rest::new(LOCK),
        }
    }

    /// Waits for the leave to use the key; `now` tells the time.
    ///
    /// # Errors
    /// `credential_rejected` while the key is stopped, or if its turn does not come.
    pub async fn enter(self: &Arc<Self>, now: impl Fn() -> Timestamp) -> Result<Pass, Error> {
        let pass = |turn| Pass { lock: Arc::clone(self), _turn: turn };
        self.admit(now())?;
        if self.is_proven.load(Ordering::Relaxed) {
            return Ok(pass(None));
        }
        let waiting = Arc::clone(&self.turn).acquire_owned();
        let turn = match Box::pin(timeout(PATIENCE, waiting)).await {
            Ok(turn) => turn.ok(),
            Err(_) => {
                return Err(self.rejected("has not been accepted yet, and the requests before this one took too long"));
            }
        };
        self.admit(now())?;
        let turn = turn.filter(|_| !self.is_proven.load(Ordering::Relaxed));
        Ok(pass(turn))
    }

    fn admit(&self, now: Timestamp) -> Result<(), Error> {
        if self.locked.is_on(now) {
            return Err(self.rejected(
                "is locked by the provider after bad signatures: wait five minutes, and correct its secret",
            ));
        }
        // A success that came later than the two bad signatures sets the key free, but not from the provider's own lock.
        if !self.is_proven.load(Ordering::Relaxed) && self.stopped.is_on(now) {
            return Err(self.rejected(
                "is stopped for a minute after two bad signatures, before the provider locks it: correct its secret",
            ));
        }
        Ok(())
    }

    fn rejected(&self, what: &str) -> Error {
        Error::new(Code::CredentialRejected, format!("access key {} {what}", self.access_key))
    }
}

impl Pass {
    /// The provider accepted the signature.
    pub fn accepted(self) {
        if !self.lock.is_proven.swap(true, Ordering::Relaxed) || self.lock.failures.load(Ordering::Relaxed) > 0 {
            self.lock.failures.store(0, Ordering::Relaxed);
        }
    }

    /// The provider refused the signature.
    pub fn refused(self, now: Timestamp) {
        self.lock.is_proven.store(false, Ordering::Relaxed);
        if self.lock.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MOST {
            self.lock.stopped.begin(now);
            warn!(
                access_key = self.lock.access_key,
                "two bad signatures in a row: the access key is stopped for a minute, before the provider locks it; correct its \
                 secret (`countersign last` shows the refusals)"
            );
        }
    }

    /// The provider says that it has locked the key.
    pub fn locked(self, now: Timestamp) {
        self.lock.is_proven.store(false, Ordering::Relaxed);
        self.lock.locked.begin(now);
        warn!(
            access_key = self.lock.access_key,
            "the provider says that it has locked the access key: no request for five minutes; correct its secret \
             (`countersign last` shows the refusals)"
        );
    }
}

/// How many bad signatures in a row stop a key: providers lock it after five.
const MOST: u32 = 2;

/// How long it is stopped.
const STOP: Duration = Duration::from_secs(60);

/// How long a provider locks it.
const LOCK: Duration = Duration::from_secs(300);

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(1_700_000_000_000);

    fn code(entered: Result<Pass, Error>) -> Option<Code> {
        entered.err().map(|error| error.code)
    }

    #[tokio::test]
    async fn requests_go_one_at_a_time_until_one_was_accepted() {
        let lock = Lockouts::default().of("ak");
        let first = lock.enter(|| NOON).await.unwrap();
        let mut waiting = tokio::spawn({
            let lock = Arc::clone(&lock);
            async move { lock.enter(|| NOON).await.unwrap().accepted() }
        });
        assert!(timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        first.accepted();
        waiting.await.unwrap();
        let _both = (lock.enter(|| NOON).await.unwrap(), lock.enter(|| NOON).await.unwrap());
    }

    #[tokio::test]
    async fn two_bad_signatures_in_a_row_stop_the_key_for_a_minute_on_every_route() {
        let lockouts = Lockouts::default();
        let (one, other) = (lockouts.of("ak"), lockouts.of("ak"));
        one.enter(|| NOON).await.unwrap().accepted();
        one.enter(|| NOON).await.unwrap().refused(NOON);
        other.enter(|| NOON).await.unwrap().accepted();
        one.enter(|| NOON).await.unwrap().refused(NOON);
        other.enter(|| NOON).await.unwrap().refused(NOON);
        assert_eq!(code(one.enter(|| NOON).await), Some(Code::CredentialRejected));
        assert_eq!(code(other.enter(|| NOON.after(STOP / 2)).await), Some(Code::CredentialRejected));
        assert_eq!(code(lockouts.of("another").enter(|| NOON).await), None);
        let later = NOON.after(STOP);
        // One more, and it is stopped again at once.
        one.enter(|| later).await.unwrap().refused(later);
        assert_eq!(code(one.enter(|| later).await), Some(Code::CredentialRejected));
        let later = later.after(STOP);
        one.enter(|| later).await.unwrap().accepted();
        one.enter(|| later).await.unwrap().refused(later);
        assert_eq!(code(one.enter(|| later).await), None);
    }

    #[tokio::test]
    async fn a_lock_of_the_providers_own_is_waited_for() {
        let lock = Lockouts::default().of("ak");
        lock.enter(|| NOON).await.unwrap().accepted();
        let late = lock.enter(|| NOON).await.unwrap();
        lock.enter(|| NOON).await.unwrap().locked(NOON);
        late.accepted();
        let error = lock.enter(|| NOON.after(STOP * 4)).await.unwrap_err();
        assert!(error.message.contains("access key ak is locked by the provider"), "{error}");
        assert_eq!(code(lock.enter(|| NOON.after(LOCK)).await), None);
    }

    #[test]
    fn keys_that_nobody_uses_any_more_are_forgotten() {
        let lockouts = Lockouts::default();
        let kept = lockouts.of("kept");
        for number in 0..1000 {
            let _ = lockouts.of(&number.to_string());
        }
        assert!(lockouts.keys.lock().unwrap().len() <= 3);
        assert!(Arc::ptr_eq(&kept, &lockouts.of("kept")));
    }
}
