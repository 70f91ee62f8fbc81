//! The life of a credential: one generation after the other, asked for before it is needed, on trial while it is new.
//!
//! Requests take whatever generation there is without waiting for each other. One task alone asks for the next one, so that
//! nobody is ever asked twice at a time.

mod asking;
mod holding;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::warn;

use crate::clock::{Clock, Rest, Timestamp};

use super::{Credential, Fetched, Source};

pub use holding::Generation;
use holding::{Candidate, Holding};

/// Keeps the credential of one route, or of several that say the same.
pub struct Keeper {
    source: Source,
    /// The routes that sign with it, for the log.
    routes: ArcSwap<String>,
    accepts: Box<Accepts>,
    clock: Clock,
    holding: ArcSwap<Holding>,
    count: AtomicU64,
    /// The generation that was refused while there was no other.
    disowned: AtomicU64,
    has_been_usable: AtomicBool,
    /// After an attempt, before another is waited for.
    rest: Rest,
    orders: Notify,
    /// The attempt that was ordered.
    ordered: AtomicU64,
    is_rejected: AtomicBool,
    progress: watch::Sender<Progress>,
    report: Mutex<Report>,
}

/// Says why a credential cannot be used, if it cannot.
type Accepts = dyn Fn(&Credential) -> Result<(), String> + Send + Sync;

/// How far the asking has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    finished: u64,
    is_busy: bool,
    /// Why the last attempt failed: then the next one waits.
    trouble: Option<Arc<str>>,
}

impl Progress {
    /// The attempt to wait for: the one under way or the next, unless the last one failed a short while ago. What is read here
    /// costs nobody anything, so that is read from now on, lest it be what was there before it changed.
    fn next(&self, source: &Source) -> Result<u64, Unavailable> {
        match (source, self.is_busy, &self.trouble) {
            (Source::Fetched(_), false, Some(trouble)) => Err(Unavailable(Arc::clone(trouble))),
            (Source::Fetched(_), ..) => Ok(self.finished + 1),
            _ => Ok(self.finished + 1 + u64::from(self.is_busy)),
        }
    }
}

/// What people are told.
#[derive(Clone, Debug, Default)]
struct Report {
    refreshed: Option<Timestamp>,
    error: Option<(Timestamp, Arc<str>)>,
    rotation_refused: Option<Timestamp>,
}

/// What people are told of a credential.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it comes from.
    pub source: &'static str,
    /// True if a request could be sent with it now.
    pub is_usable: bool,
    /// The number of the generation in use.
    pub generation: Option<u64>,
    /// When that one was fetched, or read.
    pub obtained: Option<Timestamp>,
    /// When it ends.
    pub expiry: Option<Timestamp>,
    /// When it was last asked for, or read, with success.
    pub refreshed: Option<Timestamp>,
    /// When that last failed, and why, if nothing has succeeded since.
    pub error: Option<(Timestamp, Arc<str>)>,
    /// When a new generation was refused, if that is why an older one serves.
    pub rotation_refused: Option<Timestamp>,
    /// True if a new generation waits for the reply that shows it to be good.
    pub is_on_trial: bool,
}

/// Why there is no credential, in words.
#[derive(Clone, Debug)]
pub struct Unavailable(pub Arc<str>);

/// A generation to sign with.
#[derive(Debug)]
pub struct Taken {
    /// The generation.
    pub generation: Arc<Generation>,
    /// Present if this request is the one that tries it out.
    pub trial: Option<Trial>,
}

/// The trial of a new generation, which the fate of one request decides. Dropped undecided, the next request tries.
#[derive(Debug)]
pub struct Trial {
    keeper: Arc<Keeper>,
    candidate: Arc<Candidate>,
}

impl Trial {
    /// The provider took it: from now on everybody takes it.
    pub fn passed(self) {
        self.keeper.promote(&self.candidate);
    }

    /// The provider refused it: the old one goes on serving. False if there is none that could.
    #[must_use]
    pub fn refused(self) -> bool {
        self.keeper.reject(&self.candidate)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.candidate.is_taken.store(false, Ordering::Release);
    }
}

/// Whether a request may be the one that tries out a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    Try,
    NotTry,
}

enum Look {
    /// Good for longer.
    Good(Taken),
    /// Good for a moment.
    Ending(Taken),
    Gone,
}

impl Keeper {
    /// A keeper without a credential yet. `accepts` says why one cannot be used, if it cannot.
    pub fn new(
        source: Source,
        clock: Clock,
        accepts: impl Fn(&Credential) -> Result<(), String> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            routes: ArcSwap::default(),
            accepts: Box::new(accepts),
            clock,
            holding: ArcSwap::default(),
            count: AtomicU64::new(0),
            disowned: AtomicU64::new(0),
            has_been_usable: AtomicBool::new(false),
            rest: Rest::new(LEAST),
            orders: Notify::new(),
            ordered: AtomicU64::new(0),
            is_rejected: AtomicBool::new(false),
            progress: watch::Sender::default(),
            report: Mutex::default(),
        })
    }

    /// Where the credential comes from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Names the routes that sign with it, which is what the log says of it.
    pub fn name_routes(&self, routes: String) {
        self.routes.store(Arc::new(routes));
    }

    /// A generation to sign with: at once if there is one, else as soon as there is. Of a new one that is on trial one
    /// request gets hold, and the others of the old one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn take(self: &Arc<Self>) -> Result<Taken, Unavailable> {
        self.take_as(May::Try).await
    }

    /// The same for a request that is not to try out another one (again).
    ///
    /// # Errors
    /// Why there is none.
    pub async fn take_again(self: &Arc<Self>) -> Result<Taken, Unavailable> {
        self.take_as(May::NotTry).await
    }

    async fn take_as(self: &Arc<Self>, may: May) -> Result<Taken, Unavailable> {
        match self.look(may, self.clock.now()) {
            Look::Good(taken) => Ok(taken),
            Look::Ending(_) | Look::Gone => Box::pin(self.take_later(may)).await,
        }
    }

    async fn take_later(self: &Arc<Self>, may: May) -> Result<Taken, Unavailable> {
        let outcome = self.attempt().await;
        match self.look(may, self.clock.now()) {
            Look::Good(taken) | Look::Ending(taken) => Ok(taken),
            Look::Gone => Err(outcome.err().unwrap_or_else(|| {
                let source = self.source.name();
                Unavailable(format!("the credential ({source}) ended as soon as it was there: try again").into())
            })),
        }
    }

    fn look(self: &Arc<Self>, may: May, now: Timestamp) -> Look {
        let holding = self.holding.load();
        let current = holding.current.as_ref().filter(|current| !current.is_gone(now));
        if let Some(candidate) = holding.candidate.as_ref().filter(|candidate| !candidate.generation.is_gone(now)) {
            if current.is_none() {
                self.promote(candidate);
                return Look::Good(Taken { generation: Arc::clone(&candidate.generation), trial: None });
            }
            if may == May::Try && !candidate.is_taken.swap(true, Ordering::AcqRel) {
                let trial = Trial { keeper: Arc::clone(self), candidate: Arc::clone(candidate) };
                return Look::Good(Taken { generation: Arc::clone(&candidate.generation), trial: Some(trial) });
            }
        }
        let Some(current) = current else { return Look::Gone };
        let taken = Taken { generation: Arc::clone(current), trial: None };
        if current.is_ending(now) && holding.candidate.is_none() && !self.rest.is_on(now) {
            Look::Ending(taken)
        } else {
            Look::Good(taken)
        }
    }

    /// Whether there is another generation than the one that was just refused: one that came meanwhile, or one that is
    /// asked for now.
    pub async fn renew(&self, refused: u64) -> bool {
        self.reconsider(refused);
        if self.has_other_than(refused) {
            return true;
        }
        if !self.source.may_change() {
            return false;
        }
        self.disowned.store(refused, Ordering::Relaxed);
        // What is under way may have been read before it was changed.
        let attempts = if self.progress.borrow().is_busy { 2 } else { 1 };
        for _ in 0..attempts {
            if self.attempt().await.is_err() {
                return false;
            }
            if self.has_other_than(refused) {
                return true;
            }
        }
        false
    }

    /// The same without waiting for it, for the requests that come after this one.
    pub fn disown(&self, refused: u64) {
        self.reconsider(refused);
        if self.source.may_change() && !self.has_other_than(refused) {
            self.disowned.store(refused, Ordering::Relaxed);
            if let Ok(next) = self.progress.borrow().next(&self.source) {
                self.order(next);
            }
        }
    }

    /// The number of the newest generation there has been.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// True if requests are signed with a newer generation than this one by now.
    #[must_use]
    pub fn has_replaced(&self, number: u64) -> bool {
        self.holding.load().current.as_ref().is_some_and(|current| current.number > number)
    }

    /// True if requests may be signed with this generation, now or once another has been refused.
    pub fn holds(&self, number: u64) -> bool {
        let holding = self.holding.load();
        let candidate = holding.candidate.as_ref().map(|candidate| &candidate.generation);
        let mut held = holding.current.iter().chain(candidate).chain(&holding.refused);
        held.any(|generation| generation.number == number)
    }

    /// Whether there is another generation than the one that was just refused, or will be when the attempt that was ordered
    /// or is under way is over: none is made for this.
    pub async fn join(&self, refused: u64) -> bool {
        if self.has_other_than(refused) {
            return true;
        }
        let mut progress = self.progress.subscribe();
        let ordered = self.ordered.load(Ordering::Relaxed);
        let awaited = {
            let progress = progress.borrow_and_update();
            ordered.max(progress.finished + u64::from(progress.is_busy))
        };
        let _ = timeout(PATIENCE, progress.wait_for(|progress| progress.finished >= awaited)).await;
        self.has_other_than(refused)
    }

    /// Whether there is another generation already than the one that was just refused as not valid. One on trial is taken into
    /// use, for there is nothing left that a trial could fall back to.
    pub fn has_other_than(&self, refused: u64) -> bool {
        let holding = self.holding.load();
        if holding.current.as_ref().is_none_or(|current| current.number != refused) {
            return holding.current.as_ref().is_some_and(|current| current.number > refused);
        }
        holding.candidate.as_ref().map(|candidate| self.promote(candidate)).is_some()
    }

    /// The provider refused a generation that is in use, though perhaps for a reason of the request's own. So the new one that
    /// was refused before may have been refused for that as well, or because the provider did not know it yet: it is on trial
    /// again.
    pub fn reconsider(&self, refused: u64) {
        self.holding.rcu(|holding| match (&holding.current, &holding.refused) {
            (Some(current), Some(generation)) if current.number == refused => Arc::new(Holding {
                current: Some(Arc::clone(current)),
                candidate: Some(Candidate::new(generation)),
                refused: None,
            }),
            _ => Arc::clone(holding),
        });
    }

    /// Waits for an attempt, the one under way or one that is made now, unless the last one failed a short while ago.
    async fn attempt(&self) -> Result<(), Unavailable> {
        let mut progress = self.progress.subscribe();
        let next = progress.borrow_and_update().next(&self.source)?;
        self.order(next);
        let source = self.source.name();
        match timeout(PATIENCE, progress.wait_for(|progress| progress.finished >= next)).await {
            Ok(Ok(progress)) => progress.trouble.clone().map_or(Ok(()), |trouble| Err(Unavailable(trouble))),
            Ok(Err(_)) => Err(Unavailable(format!("nobody asks for the credential ({source}) any more").into())),
            Err(_) => Err(Unavailable(format!("the credential is still being asked for ({source}): try again").into())),
        }
    }

    fn order(&self, attempt: u64) {
        self.ordered.fetch_max(attempt, Ordering::Relaxed);
        self.orders.notify_one();
    }

    /// Makes a credential that was read already the first generation.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn seed(&self, credential: Credential) -> Result<(), String> {
        self.publish(Fetched { credential, expiry: None }).map(drop)
    }

    /// Holds a credential ready: at once where there is none that is good, else on trial. True if it is a new one.
    fn publish(&self, fetched: Fetched) -> Result<bool, String> {
        let Fetched { credential, expiry } = fetched;
        (self.accepts)(&credential)?;
        let now = self.clock.now();
        let margins = match &self.source {
            Source::Fetched(fetch) => Some(fetch.margins()),
            _ => None,
        };
        let moments = expiry.and_then(|expiry| Some(margins?.of_life(now, expiry)));
        if moments.is_some_and(|moments| moments.gone <= now) {
            return Err(format!(
                "what {} hands out has ended already, by this machine's clock: is that right?",
                self.source.name()
            ));
        }
        // Only whoever publishes counts, and that is one at a time.
        let number = self.count.load(Ordering::Relaxed) + 1;
        let fresh = Generation { number, credential, obtained: now, expiry, moments };
        self.has_been_usable.store(true, Ordering::Relaxed);
        let is_new = loop {
            let holding = self.holding.load_full();
            let known = holding.known(&fresh.credential);
            let Some(next) = holding.with(&fresh, known, self.serving(&holding, now)) else { return Ok(false) };
            // A trial may have ended meanwhile.
            if Arc::ptr_eq(&self.holding.compare_and_swap(&holding, Arc::new(next)), &holding) {
                break known.is_none();
            }
        };
        if is_new {
            self.count.store(number, Ordering::Relaxed);
        }
        self.report().rotation_refused = None;
        Ok(is_new)
    }

    /// The current generation, if a new one has to prove itself before it takes its place.
    fn serving<'a>(&self, holding: &'a Holding, now: Timestamp) -> Option<&'a Arc<Generation>> {
        let disowned = self.disowned.load(Ordering::Relaxed);
        holding.current.as_ref().filter(|current| !current.is_gone(now) && current.number != disowned)
    }

    fn promote(&self, candidate: &Arc<Candidate>) {
        self.holding.rcu(|holding| match &holding.candidate {
            Some(held) if Arc::ptr_eq(held, candidate) => {
                Arc::new(Holding { current: Some(Arc::clone(&candidate.generation)), ..Holding::default() })
            }
            _ => Arc::clone(holding),
        });
    }

    fn reject(&self, candidate: &Arc<Candidate>) -> bool {
        let now = self.clock.now();
        let before = self.holding.rcu(|holding| match (&holding.candidate, &holding.current) {
            (Some(held), Some(current)) if Arc::ptr_eq(held, candidate) && !current.is_gone(now) => {
                let refused = Some(Arc::clone(&candidate.generation));
                Arc::new(Holding { current: Some(Arc::clone(current)), candidate: None, refused })
            }
            _ => Arc::clone(holding),
        });
        let has_old = before
            .current
            .as_ref()
            .is_some_and(|current| !current.is_gone(now) && current.number != candidate.generation.number);
        if has_old && before.candidate.as_ref().is_some_and(|held| Arc::ptr_eq(held, candidate)) {
            self.report().rotation_refused = Some(now);
            let (routes, source) = (self.routes.load(), self.source.name());
            warn!(
                %routes,
                source,
                "a new credential was refused by the upstream: the old one goes on serving; `countersign last` shows the refusal"
            );
            self.is_rejected.store(true, Ordering::Relaxed);
            self.orders.notify_one();
        }
        has_old
    }

    /// True if a request could be sent now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let (holding, now) = (self.holding.load(), self.clock.now());
        let candidate = holding.candidate.as_ref().map(|candidate| &candidate.generation);
        holding.current.iter().chain(candidate).any(|generation| !generation.is_gone(now))
    }

    /// True if a request could have been sent at some time.
    #[must_use]
    pub fn has_been_usable(&self) -> bool {
        self.has_been_usable.load(Ordering::Relaxed)
    }

    /// What people are told.
    #[must_use]
    pub fn status(&self) -> Status {
        let holding = self.holding.load();
        let Report { refreshed, error, rotation_refused } = self.report().clone();
        let current = holding.current.as_ref();
        Status {
            source: self.source.name(),
            is_usable: self.is_usable(),
            generation: current.map(|current| current.number),
            obtained: current.map(|current| current.obtained),
            expiry: current.and_then(|current| current.expiry),
            refreshed: refreshed.or(current.map(|current| current.obtained)),
            error,
            rotation_refused,
            is_on_trial: holding.candidate.is_some(),
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

/// How long a request waits for a credential.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least time between two attempts that both succeed, but for credentials that live for less than twice that.
const LEAST: Duration = Duration::from_secs(30);
