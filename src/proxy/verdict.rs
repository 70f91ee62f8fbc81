//! Step 8: what a reply says about the request's authentication. The beginning of its body is read for that, and goes on to
//! the caller as it came.

use std::collections::VecDeque;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::clock::Timestamp;

use super::body::{Broken, Source};

/// A body of which the beginning was read.
#[derive(Debug)]
pub struct Begun {
    read: VecDeque<Result<Frame<Bytes>, Broken>>,
    /// What is left, if anything is.
    rest: Option<Source>,
}

impl Begun {
    /// Reads the beginning of a reply's body, for no longer than a moment.
    pub async fn read(source: Source) -> Self {
        let mut begun = Self { read: VecDeque::new(), rest: None };
        let mut source = source;
        let reading = async {
            let mut octets = 0;
            while octets < MOST {
                match Pin::new(&mut source).frame().await {
                    None => return true,
                    Some(frame) => {
                        let is_broken = frame.is_err();
                        octets += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                        begun.read.push_back(frame);
                        if is_broken {
                            return true;
                        }
                    }
                }
            }
            false
        };
        let has_ended = timeout(PATIENCE, reading).await.unwrap_or(false);
        if !has_ended {
            begun.rest = Some(source);
        }
        begun
    }

    /// True if all of it was read, and came to its end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rest.is_none() && self.read.iter().all(Result::is_ok)
    }

    /// What was read, with its content coding undone.
    #[must_use]
    pub fn decoded(&self, headers: &HeaderMap) -> Vec<u8> {
        let mut octets = Vec::new();
        for data in self.read.iter().flatten().filter_map(Frame::data_ref) {
            octets.extend_from_slice(data);
        }
        octets.truncate(MOST);
        let coding = headers.get(CONTENT_ENCODING).and_then(|coding| coding.to_str().ok()).unwrap_or_default();
        match coding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => unpack(MultiGzDecoder::new(octets.as_slice())),
            "deflate" => unpack(ZlibDecoder::new(octets.as_slice())),
            _ => octets,
        }
    }

    fn next(&mut self) -> Option<Result<Frame<Bytes>, Broken>> {
        self.read.pop_front()
    }
}

/// As much as can be unpacked, and no more than is looked at.
fn unpack(decoder: impl Read) -> Vec<u8> {
    let mut unpacked = Vec::new();
    // Of what was cut off, the part before the cut is as good as any.
    let _ = decoder.take(MOST as u64).read_to_end(&mut unpacked);
    unpacked
}

impl Body for Begun {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match (self.next(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(frame)),
            (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let has_data_alone = self.read.iter().all(|frame| frame.as_ref().is_ok_and(Frame::is_data));
        let read: usize = self.read.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum();
        let rest = self.rest.as_ref().map_or(Some(0), |rest| rest.size_hint().exact());
        match rest {
            Some(rest) if has_data_alone => SizeHint::with_exact(rest + read as u64),
            _ => SizeHint::default(),
        }
    }
}

/// By how many milliseconds the server's time is beyond ours, which showed `ours` when the request was signed. The server
/// looked at its clock half way, most likely.
#[must_use]
pub fn beyond(theirs: Timestamp, ours: Timestamp, took: Duration) -> i64 {
    theirs.0.saturating_sub(ours.after(took / 2).0)
}

/// How much of a body is looked at, in octets.
const MOST: usize = 64 << 10;

/// How long reading that may take.
const PATIENCE: Duration = Duration::from_secs(5);
