//! What every place has in common that credentials are fetched from.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::upstream::ask::Asker;

use super::{Credential, SecretRef, Unreadable, reveal};

/// A place that credentials are fetched from. Who calls it sees to it that there is one call at a time, and none too many.
pub trait Fetch: fmt::Debug + Send + Sync {
    /// What it is called, for people.
    fn name(&self) -> &'static str;

    /// What distinguishes it from others, without a secret: what is equal hands out the same credentials, and is asked for
    /// all routes together.
    fn identity(&self) -> String;

    /// What it refers to.
    fn references(&self) -> Vec<&SecretRef> {
        Vec::new()
    }

    /// The files whose change may bring another credential.
    fn files(&self) -> Vec<PathBuf> {
        self.references().into_iter().filter_map(SecretRef::file).collect()
    }

    /// True if it runs programs other than those of its references.
    fn runs_programs(&self) -> bool {
        false
    }

    /// After how long to ask anew, whatever the end of what was fetched.
    fn ttl(&self) -> Option<Duration> {
        None
    }

    /// Reads what it refers to, for whoever wants to know beforehand that it leads somewhere.
    ///
    /// # Errors
    /// The references that lead nowhere.
    fn check(&self) -> Result<(), Vec<Unreadable>> {
        reveal(self.references()).map(drop)
    }

    /// When to ask again.
    fn margins(&self) -> Margins;

    /// Asks once, over connections of its own, and gives up by itself after a while. Its future stays on its thread.
    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>>;
}

/// What was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// The credential, all of one generation.
    pub credential: Credential,
    /// When it ends, by our clock.
    pub expiry: Option<Timestamp>,
}

/// Why nothing was fetched.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What happened and what to do, for people; never a secret. Begins with who did not answer, or what is wrong.
    pub message: String,
    /// When another attempt makes sense.
    pub retry: Retry,
}

impl Failed {
    /// A failure that may pass.
    pub fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::Soon }
    }

    /// The failure to read what something refers to.
    pub(super) fn unreadable(troubles: &[Unreadable]) -> Self {
        let messages: Vec<_> = troubles.iter().map(|trouble| trouble.message.as_str()).collect();
        Self::passing(messages.join("; "))
    }

    /// A failure that stays until somebody changes something.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::Late }
    }
}

/// When another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After seconds, then after longer and longer.
    Soon,
    /// After minutes: what was sent was refused, and sending it often may lock somebody out. A changed file is reason enough
    /// to try at once.
    Late,
}

/// When to ask again, reckoned from the end of a credential's life.
#[derive(Clone, Copy, Debug)]
pub struct Margins {
    /// How long before the end to begin with asking, at least, but never before half the life is over.
    pub refresh: Duration,
    /// The same as a part of the life, in percent; the longer of the two counts.
    pub refresh_percent: u32,
    /// Up to how much later, by chance, so that not all daemons ask in the same moment.
    pub jitter: Duration,
    /// How long before the end requests wait for the answer, but never before nine tenths of the life are over.
    pub wait: Duration,
    /// How long before the end it counts as gone, but never before nine tenths of the life are over.
    pub gone: Duration,
}

impl Margins {
    /// The moments of a life from `birth` to `end`.
    #[must_use]
    pub fn of_life(&self, birth: Timestamp, end: Timestamp) -> Moments {
        let life = end.since(birth);
        let tenth = life / 10;
        let refresh = self.refresh.max(life * self.refresh_percent / 100).min(life / 2);
        let wait = self.wait.min(tenth);
        // What is asked for later than needed would be waited for.
        let latest = refresh.saturating_sub(wait.max(self.gone.min(tenth)));
        let late = self.jitter.min(latest / 2).mul_f64(fastrand::f64());
        Moments {
            refresh: end.before(refresh.saturating_sub(late)),
            wait: end.before(wait),
            gone: end.before(self.gone.min(tenth)),
        }
    }
}

/// What is due when in a credential's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// From when on the next one is asked for.
    pub refresh: Timestamp,
    /// From when on requests wait for the next one.
    pub wait: Timestamp,
    /// From when on it is not used any more.
    pub gone: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn margins_never_reach_into_the_first_half_of_a_life() {
        let fixed = Margins {
            refresh: minutes(15),
            refresh_percent: 0,
            jitter: Duration::ZERO,
            wait: minutes(3),
            gone: Duration::ZERO,
        };
        let part =
            Margins { refresh: minutes(5), refresh_percent: 10, wait: Duration::ZERO, gone: minutes(1), ..fixed };
        for (margins, life, refresh, wait, gone) in [
            (fixed, 360, 15 * 60, 180, 0),
            (fixed, 20, 10 * 60, 120, 0),
            (part, 1440, 144 * 60, 0, 60),
            (part, 30, 5 * 60, 0, 60),
            (part, 6, 3 * 60, 0, 36),
        ] {
            let (birth, end) = (Timestamp(1_000), Timestamp(1_000).after(minutes(life)));
            let before = |seconds| end.before(Duration::from_secs(seconds));
            let expected = Moments { refresh: before(refresh), wait: before(wait), gone: before(gone) };
            assert_eq!(margins.of_life(birth, end), expected, "{life} minutes");
            let jittery = Margins { jitter: minutes(1), ..margins }.of_life(birth, end);
            assert!((expected.refresh..=expected.refresh.after(minutes(1))).contains(&jittery.refresh));
            assert!(jittery.refresh < jittery.gone.min(jittery.wait));
        }
    }

    #[test]
    fn what_has_ended_already_is_gone() {
        let margins = Margins {
            refresh: minutes(15),
            refresh_percent: 10,
            jitter: minutes(1),
            wait: minutes(3),
            gone: minutes(1),
        };
        let end = Timestamp(0);
        assert_eq!(margins.of_life(Timestamp(1), end), Moments { refresh: end, wait: end, gone: end });
    }
}
