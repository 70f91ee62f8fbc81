//! A caller's connection, with the clocks that the HTTP library does not keep.
//!
//! The library's own timeout for heads also runs while a kept-alive caller is idle, and nothing in it bounds a caller that
//! does not read. So the stream itself keeps time: for a head from its first octet, for an idle connection from the end of
//! the last reply, for a write from the last octet that was taken.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::upstream::flow::Flow;

use super::activity::{Activity, BUSY, HEAD, IDLE, SWITCHING};
use super::peer::Peer;
use super::route::Entrance;

/// What a request needs to know of the connection that it came on.
#[derive(Debug)]
pub struct Caller {
    /// The listener.
    pub entrance: Entrance,
    /// Who calls.
    pub peer: Peer,
    /// True if this connection is one too many, so that it is only told so.
    pub is_surplus: bool,
    /// What the stream and the request tell each other.
    pub activity: Arc<Activity>,
}

/// A caller's stream.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    fn poll_read(&mut self, flow: &mut Flow, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => flow.poll_read(stream, cx, buf),
            Self::Unix(stream) => flow.poll_read(stream, cx, buf),
        }
    }
}

/// A caller's stream that keeps time.
#[derive(Debug)]
pub struct TimedStream {
    stream: Stream,
    flow: Flow,
    activity: Arc<Activity>,
    header_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the timer runs for, so that it is set once and not at every poll.
    running: Option<Wait>,
    /// Requests share this connection, so what comes between two of them need not be a head.
    is_multiplexed: bool,
    /// What was read to see which version of HTTP is spoken, and how much of it has been passed on.
    start: ([u8; PREFACE.len()], Range<usize>),
    /// The library waits for octets or has seen their end, so it notices by itself when the caller goes.
    is_read_to_end: bool,
    /// The library has not been told yet that the caller has said all it has to say, since a tunnel might have begun.
    is_end_withheld: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Head,
    Idle,
    Farewell,
    Write,
    Linger,
}

/// What a connection begins with that speaks HTTP/2; no request of HTTP/1 does (RFC 9113 section 3.4).
const PREFACE: &[u8; 14] = b"PRI * HTTP/2.0";

/// How long a caller may go on with a body that nobody reads, after the reply.
const LINGER: Duration = Duration::from_secs(2);

/// How long a caller that has been told to leave may take.
const FAREWELL: Duration = Duration::from_secs(2);

impl TimedStream {
    /// A stream with the limits for heads and for idleness; `None` is for ever.
    #[must_use]
    pub fn new(
        stream: Stream,
        activity: Arc<Activity>,
        header_timeout: Option<Duration>,
        idle_timeout: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            flow: Flow::default(),
            activity,
            header_timeout,
            idle_timeout,
            timer: None,
            running: None,
            is_multiplexed: false,
            start: ([0; PREFACE.len()], 0..0),
            is_read_to_end: false,
            is_end_withheld: false,
        }
    }

    /// Waits for the first octets, and tells whether they begin HTTP/2 with prior knowledge (RFC 9113 section 3.3).
    ///
    /// # Errors
    /// The caller took too long, or its connection broke.
    pub async fn is_http2(&mut self) -> io::Result<bool> {
        loop {
            let (octets, filled) = (&mut self.start.0, self.start.1.end);
            let start = octets.get(..filled).unwrap_or_default();
            if start == PREFACE {
                self.is_multiplexed = true;
                self.activity.phase.store(IDLE, Ordering::Relaxed);
                self.running = None;
                return Ok(true);
            }
            if !PREFACE.starts_with(start) {
                return Ok(false);
            }
            let read = poll_fn(|cx| {
                let mut rest = ReadBuf::new(self.start.0.get_mut(filled..).unwrap_or_default());
                let read = self.stream.poll_read(&mut self.flow, cx, &mut rest);
                let octets = rest.filled().len();
                if read.is_pending() { self.await_read(cx).map(Err) } else { read.map_ok(|()| octets) }
            });
            match read.await? {
                0 => return Ok(false),
                octets => self.start.1.end = filled + octets,
            }
        }
    }

    /// Runs the clock of a wait; an error when it is over.
    fn tick(&mut self, cx: &mut Context<'_>, wait: Wait, patience: Option<Duration>) -> Poll<io::Error> {
        let Some(patience) = patience else { return Poll::Pending };
        if self.running != Some(wait) {
            self.running = Some(wait);
            let deadline = Instant::now() + patience;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(sleep_until(deadline))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into()),
            None => Poll::Pending,
        }
    }

    fn await_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Another clock runs, and none beside it.
        if self.activity.is_write_waiting() || self.running == Some(Wait::Linger) {
            return Poll::Pending;
        }
        match self.activity.phase.load(Ordering::Relaxed) {
            HEAD => self.tick(cx, Wait::Head, self.header_timeout),
            IDLE if self.activity.is_overdue() => self.tick(cx, Wait::Farewell, Some(FAREWELL)),
            IDLE => match self.tick(cx, Wait::Idle, self.idle_timeout) {
                // Such a caller is told first: it may be sending its next request at this moment.
                Poll::Ready(_) if self.is_multiplexed => {
                    self.activity.retire();
                    self.tick(cx, Wait::Farewell, Some(FAREWELL))
                }
                waited => waited,
            },
            _ => {
                self.running = None;
                Poll::Pending
            }
        }
    }

    /// True if the caller has gone while it is being answered, unseen by the library: that stops reading once it has
    /// something of a next request.
    fn has_left(&self, cx: &mut Context<'_>) -> bool {
        if self.is_read_to_end || self.activity.phase.load(Ordering::Relaxed) != BUSY {
            return false;
        }
        let (readable, socket) = match &self.stream {
            Stream::Tcp(stream) => (stream.poll_read_ready(cx), SockRef::from(stream)),
            Stream::Unix(stream) => (stream.poll_read_ready(cx), SockRef::from(stream)),
        };
        readable.is_ready() && matches!(socket.peek(&mut [MaybeUninit::uninit()]), Ok(0))
    }

    /// Reads what nobody wants, until the caller has come to an end. A connection that is closed with octets unread is
    /// reset, and a caller that is still sending would see that instead of the reply (RFC 9112, section 9.6).
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut unread = [MaybeUninit::uninit(); 8 << 10];
        loop {
            let mut buf = ReadBuf::uninit(&mut unread);
            match self.stream.poll_read(&mut self.flow, cx, &mut buf) {
                Poll::Pending => return self.tick(cx, Wait::Linger, Some(LINGER)).map(drop),
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }

    /// True if an orderly end would pass off as whole what is none, or leave octets to a caller that does not read.
    fn is_cut(&self) -> bool {
        self.activity.is_write_waiting() || self.activity.is_unframed.load(Ordering::Relaxed)
    }

    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.is_write_waiting.store(written.is_pending(), Ordering::Relaxed);
        if written.is_pending() {
            let patience = self.activity.write_patience();
            return self.tick(cx, Wait::Write, patience).map(Err);
        }
        if self.running == Some(Wait::Write) {
            self.running = None;
        }
        written
    }
}

impl Drop for TimedStream {
    fn drop(&mut self) {
        if let Stream::Tcp(stream) = &self.stream
            && self.is_cut()
        {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(start) = this.start.0.get(this.start.1.clone()).filter(|start| !start.is_empty()) {
            let fits = start.len().min(buf.remaining());
            buf.put_slice(start.get(..fits).unwrap_or_default());
            this.start.1.start += fits;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = this.stream.poll_read(&mut this.flow, cx, buf);
        let has_more = buf.filled().len() > before;
        this.is_read_to_end = !has_more;
        if matches!(read, Poll::Ready(Ok(()))) && !has_more && this.activity.phase.load(Ordering::Relaxed) == SWITCHING
        {
            // Whoever reads next, the library or the tunnel, sees the end again.
            this.is_end_withheld = true;
            return Poll::Pending;
        }
        if read.is_pending() {
            return this.await_read(cx).map(Err);
        }
        if has_more {
            // Between requests the first octet begins a head; within one it belongs to the body or to what comes next.
            let phase = &this.activity.phase;
            if phase.load(Ordering::Relaxed) == IDLE && !this.is_multiplexed {
                phase.store(HEAD, Ordering::Relaxed);
                this.running = None;
            }
        }
        read
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match &mut this.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, data),
        };
        this.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match &mut this.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        };
        this.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.stream {
            Stream::Tcp(stream) => ready!(Pin::new(stream).poll_flush(cx)),
            Stream::Unix(stream) => ready!(Pin::new(stream).poll_flush(cx)),
        };
        self.activity.flushed();
        if self.has_left(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        // After a reply the library relies on a read that it left waiting before, so the idle clock starts here; once it
        // is over, the next read says so.
        let _ = self.await_read(cx);
        if self.is_end_withheld && self.activity.phase.load(Ordering::Relaxed) != SWITCHING {
            // No tunnel has begun, and nothing else would make the library read again.
            self.is_end_withheld = false;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.running != Some(Wait::Linger) {
            ready!(match &mut this.stream {
                Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            })?;
        }
        if this.is_multiplexed || !this.activity.is_unread.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        this.linger(cx).map(Ok)
    }
}
