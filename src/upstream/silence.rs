//! How long the other side of a connection may be silent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A clock for silences. It costs nothing while there are none.
#[derive(Debug)]
pub struct Silence {
    /// How long one may last; `None` is for ever.
    pub patience: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    is_running: bool,
}

impl Silence {
    /// A clock that does not run yet.
    #[must_use]
    pub fn new(patience: Option<Duration>) -> Self {
        Self { patience, timer: None, is_running: false }
    }

    /// Something has come: the next silence is another.
    pub fn end(&mut self) {
        self.is_running = false;
    }

    /// Runs from the first call on; ready once the silence has lasted too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(patience) = self.patience else { return Poll::Pending };
        if !self.is_running {
            self.is_running = true;
            let deadline = Instant::now() + patience;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(sleep_until(deadline))),
            }
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}
