//! How much of a body is on its way through one connection.
//!
//! What a slow reader has not read yet is held by somebody: by us, by our kernel, or best by whoever sends it. It must be
//! little, and a reader that goes on reading must not be taken for one that has stopped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Reads a piece of at most 32 KiB. The HTTP library, left alone, reads up to the limit of heads at a time, and holds
/// several such pieces a connection.
///
/// # Errors
/// What the stream says.
pub fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    poll_read_buf(Pin::new(stream), cx, &mut buf.limit(PIECE)).map_ok(drop)
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

/// One less than a power of two: a read that fills the library's buffer makes it double the next one. Smaller pieces cost
/// throughput, larger ones hardly gain any.
const PIECE: usize = (32 << 10) - 1;

/// There is room again when half of it has been sent.
const UNSENT: u32 = 128 << 10;
