//! Keeps what repeats from filling the log: of the same thing on the same route some lines are written in a minute, and then
//! one that says how many were not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// What was logged in the last minute of what may come once a request.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Vec<Repeated>>);

/// A thing, and a minute that began with the first of it.
#[derive(Debug)]
struct Repeated {
    route: String,
    what: &'static str,
    began: Instant,
    written: u32,
    left_out: u64,
}

impl Repeats {
    /// True if a line is to be written about this.
    #[must_use]
    pub fn admit(&self, route: &str, what: &'static str) -> bool {
        let now = Instant::now();
        self.tell_of(now);
        self.admit_at(now, route, what)
    }

    fn admit_at(&self, now: Instant, route: &str, what: &'static str) -> bool {
        let mut all = self.lock();
        if let Some(known) = all.iter_mut().find(|known| known.what == what && known.route == route) {
            let is_written = known.written < MOST;
            known.written += u32::from(is_written);
            known.left_out += u64::from(!is_written);
            return is_written;
        }
        all.push(Repeated { route: route.to_owned(), what, began: now, written: 1, left_out: 0 });
        true
    }

    /// Says what was left out in the minutes that are over.
    pub fn tell(&self) {
        self.tell_of(Instant::now());
    }

    /// Says what was left out so far.
    pub fn tell_all(&self) {
        self.tell_of(Instant::now() + MINUTE);
    }

    fn tell_of(&self, now: Instant) {
        for (route, what, left_out) in self.over(now) {
            warn!(route, what, left_out, "this repeats: lines were left out");
        }
    }

    /// Forgets the minutes that are over; what of each was left out, where anything was.
    fn over(&self, now: Instant) -> Vec<(String, &'static str, u64)> {
        let mut all = self.lock();
        let over = all.extract_if(.., |known| known.began + MINUTE <= now).filter(|known| known.left_out > 0);
        over.map(|known| (known.route, known.what, known.left_out)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Repeated>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many lines a minute are written about the same.
const MOST: u32 = 10;

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_minute_are_written_of_the_same() {
        let (repeats, noon) = (Repeats::default(), Instant::now());
        let admitted = |seconds, what: &'static str, count| {
            let now = noon + Duration::from_secs(seconds);
            (0..count).filter(|_| repeats.admit_at(now, "a", what)).count()
        };
        let over = |seconds| repeats.over(noon + Duration::from_secs(seconds));
        assert_eq!((admitted(0, "x", 25), admitted(59, "x", 5), admitted(59, "y", 10)), (10, 0, 10));
        assert!(repeats.admit_at(noon, "b", "x"));
        assert_eq!(over(59), []);
        assert_eq!(over(60), [("a".to_owned(), "x", 20)]);
        assert_eq!(admitted(60, "x", 11), 10);
        assert_eq!(over(120), [("a".to_owned(), "x", 1)]);
        assert_eq!((over(1000), repeats.lock().len()), (Vec::new(), 0));
    }
}
