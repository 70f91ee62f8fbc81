//! The requests of a multiplexed connection, each a task of its own.
//!
//! Over HTTP/2 a caller may stop reading one reply and go on with the others. Its connection is then alive, and nobody asks
//! that reply for more, so none of the reply's own clocks runs: the task keeps one.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Runs the requests of a connection on the thread that the connection is on.
#[derive(Clone, Copy, Debug)]
pub struct Streams;

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let reading = Rc::<Reading>::default();
        tokio::task::spawn_local(READING.scope(Rc::clone(&reading), watch(stream, reading)));
    }
}

tokio::task_local! {
    static READING: Rc<Reading>;
}

/// How a caller reads a reply.
#[derive(Debug, Default)]
pub struct Reading {
    /// Since when it has not asked for more, though there is more, and how long it may.
    unread: Cell<Option<(Instant, Duration)>>,
}

impl Reading {
    /// The reading of the reply to the current request, if requests share its connection.
    #[must_use]
    pub fn current() -> Option<Rc<Self>> {
        READING.try_with(Rc::clone).ok()
    }

    /// There is something to read.
    pub fn offer(&self, patience: Option<Duration>) {
        self.unread.set(patience.map(|patience| (Instant::now(), patience)));
    }

    /// The caller has asked for more.
    pub fn ask(&self) {
        self.unread.set(None);
    }
}

/// Runs a stream to its end, or until its reply has been left unread for too long: what is dropped is reset.
async fn watch<F: Future>(stream: F, reading: Rc<Reading>) {
    let mut stream = Box::pin(stream);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some((since, patience)) = reading.unread.get() else { return Poll::Pending };
        let deadline = since + patience;
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    })
    .await;
}
