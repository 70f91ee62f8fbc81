//! The one task that asks for a keeper's generations: when, and how it goes on after a failure.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::clock::{Clock, Timestamp};
use crate::credential::{Failed, Retry, Source};
use crate::upstream::ask::Asker;
use crate::watch::digest;

use super::{Keeper, LEAST, Progress};

impl Keeper {
    /// Asks for generations for as long as the daemon lives: when one is due, when a request needs one, and when one of the
    /// files has changed.
    pub async fn live(self: Arc<Self>, asker: Asker, mut files: watch::Receiver<u64>) {
        let mut backoff = backoff();
        let due = if self.holding.load().current.is_some() { self.due() } else { Due::In(Duration::ZERO) };
        let mut due = pin!(due.reached(&self.clock));
        // What was read before the files were watched may be out of date: the first word of them is looked into.
        let mut print = Vec::new();
        let (mut finished, mut has_watch) = (0, true);
        loop {
            tokio::select! {
                () = &mut due => {}
                () = self.orders.notified() => {
                    if self.is_rejected.swap(false, Ordering::Relaxed) && matches!(self.source, Source::Fetched(_)) {
                        // The old one serves, so there is no hurry; and what comes next may be refused as well.
                        due.set(Due::In(LEAST + pause(&mut backoff)).reached(&self.clock));
                    }
                    if self.ordered.load(Ordering::Relaxed) <= finished {
                        continue;
                    }
                }
                changed = files.changed(), if has_watch => {
                    has_watch = changed.is_ok();
                    if !has_watch || self.print() == print {
                        continue;
                    }
                }
            }
            self.progress.send_modify(|progress| progress.is_busy = true);
            print = self.print();
            let outcome = self.ask(&asker).await;
            let now = self.clock.now();
            finished += 1;
            self.rest.begin(now);
            // The next pause begins before anybody is told, who may set the clock then.
            let trouble = match outcome {
                Ok(is_new) => {
                    due.set(self.due().reached(&self.clock));
                    self.learned(now, is_new);
                    backoff = self::backoff();
                    None
                }
                Err(failed) => {
                    let pause = match failed.retry {
                        Retry::Soon => pause(&mut backoff),
                        Retry::Late => LATE + LATE.mul_f64(fastrand::f64() / 5.0),
                    };
                    due.set(Due::In(pause).reached(&self.clock));
                    let trouble: Arc<str> = failed.message.into();
                    self.report().error = Some((now, Arc::clone(&trouble)));
                    self.complain(&trouble, pause);
                    Some(trouble)
                }
            };
            self.progress.send_replace(Progress { finished, is_busy: false, trouble });
        }
    }

    fn complain(&self, error: &str, again_in: Duration) {
        let (routes, source, again_in_s) = (self.routes.load(), self.source.name(), again_in.as_secs());
        if self.is_usable() {
            warn!(%routes, source, error, again_in_s, "no new credential: the old one goes on serving until it ends");
        } else {
            warn!(%routes, source, error, again_in_s, "no new credential, nor an old one: requests are answered with 503");
        }
    }

    fn learned(&self, now: Timestamp, is_new: bool) {
        let mut report = self.report();
        report.refreshed = Some(now);
        let had_failed = report.error.take().is_some();
        drop(report);
        let (routes, source) = (self.routes.load(), self.source.name());
        if is_new || had_failed {
            info!(%routes, source, is_new, "the credential was fetched");
        } else {
            debug!(%routes, source, "the credential is the same as before");
        }
    }

    /// Asks once. True if what came is new.
    ///
    /// # Errors
    /// Why nothing came, or why it cannot be used.
    pub async fn ask(self: &Arc<Self>, asker: &Asker) -> Result<bool, Failed> {
        let fetched = self.source.obtain(asker).await?;
        self.publish(fetched).map_err(Failed::passing)
    }

    /// When to ask next, by what there is.
    fn due(&self) -> Due {
        let holding = self.holding.load();
        let newest = holding.candidate.as_ref().map(|candidate| &candidate.generation).or(holding.current.as_ref());
        let moments = newest.and_then(|newest| newest.moments);
        let now = self.clock.now();
        if let Some(ttl) = self.source.ttl() {
            let left = moments.map(|moments| moments.gone.since(now) / 2);
            return Due::In(left.map_or(ttl, |half| ttl.min(half.max(LEAST))));
        }
        let Some(moments) = moments else { return Due::Never };
        // Where the same credential came again, it is near its end: no need to ask all the time. But some do not live for long.
        let least = LEAST.min(moments.gone.since(now) / 2).max(FIRST_PAUSE);
        Due::At(moments.refresh.max(now.after(least)))
    }

    /// What the files hold, in so far as to notice a change.
    fn print(&self) -> Vec<Option<[u8; 32]>> {
        self.source.files().iter().map(|path| digest(path)).collect()
    }
}

/// When the next attempt is made.
#[derive(Clone, Copy, Debug)]
enum Due {
    At(Timestamp),
    In(Duration),
    Never,
}

impl Due {
    fn reached(self, clock: &Clock) -> impl Future<Output = ()> {
        let pause = if let Self::In(duration) = self { Some(clock.pause(duration)) } else { None };
        async move {
            match (self, pause) {
                (Self::At(time), _) => clock.reach(time).await,
                (_, Some(pause)) => pause.await,
                (_, None) => std::future::pending().await,
            }
        }
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE).without_max_times().build()
}

/// The next pause: anything up to what the backoff says, so that daemons that failed together do not return together.
fn pause(backoff: &mut ExponentialBackoff) -> Duration {
    backoff.next().unwrap_or(LONGEST_PAUSE).mul_f64(fastrand::f64())
}

/// The pauses after failures: up to this much, then up to twice as much, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pause after a refusal that asking again would not change, and that may lock somebody out.
const LATE: Duration = Duration::from_secs(300);
