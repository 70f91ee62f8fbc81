//! How much of a body is on its way through one connection.
//!
//! What a slow reader has not read yet is held by somebody: by us, by our kernel, or best by whoever sends it. It must be
//! little, and a reader that goes on reading must not be taken for one that has stopped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// How a connection is read: in small pieces until it flows. The HTTP library, left alone, reads up to the limit of heads
/// at a time, and holds several such pieces for everybody who does not read.
#[derive(Debug, Default)]
pub struct Flow {
    /// Octets since the last pause.
    octets: usize,
    last: Option<Instant>,
}

impl Flow {
    /// Reads the next piece.
    ///
    /// # Errors
    /// What the stream says.
    pub fn poll_read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = if self.octets < FLOWING { SMALL } else { LARGE };
        let octets = ready!(poll_read_buf(Pin::new(stream), cx, &mut buf.limit(piece)))?;
        // Heads and events say nothing about it, and do without a look at the clock.
        if octets > SMALL / 2 {
            let now = Instant::now();
            let is_steady = self.last.replace(now).is_some_and(|last| now.duration_since(last) < PAUSE);
            self.octets = if is_steady { self.octets.saturating_add(octets) } else { 0 };
        }
        Poll::Ready(Ok(()))
    }
}

/// Bounds what waits in the kernel for the other side to make room. On the loopback that would be megabytes, with no room
/// for more before a third of them is read: a slow reader would look like one that has stopped.
pub fn bound_unsent(socket: &SockRef<'_>) {
    // Not essential, so a kernel that lacks it is no error.
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
}

/// Leaves it to the kernel how much waits there.
pub fn unbound_unsent(socket: &SockRef<'_>) {
    let _ = socket.set_tcp_notsent_lowat(u32::MAX);
}

/// One less than a power of two, as the large ones are: a read that fills the library's buffer makes it double the next.
const SMALL: usize = (16 << 10) - 1;

/// Larger ones hardly make anything faster.
const LARGE: usize = (128 << 10) - 1;

/// More than goes through a connection before one who does not read at all has filled the kernel's buffers.
const FLOWING: usize = 1 << 20;

/// Longer than what flows makes us wait.
const PAUSE: Duration = Duration::from_millis(20);

/// There is room again when half of it has been sent.
const UNSENT: u32 = 256 << 10;
