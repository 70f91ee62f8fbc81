//! Bodies on their way, in both directions: streamed, bounded in silence, and cut where they were cut.

use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::upstream::http2;
use crate::upstream::pool::{Lease, Traffic};
use crate::upstream::silence::Silence;

use super::access::{Account, Cut};
use super::activity::{Activity, Turn};
use super::clean::{Cleaner, Names};
use super::hold::Reservation;
use super::respond;
use super::streams::Reading;
use super::verdict::Begun;

/// Why a body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nothing came for too long.
    Silent,
    /// The sender's connection broke, or its framing did.
    Cut,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "the body fell silent",
            Self::Cut => "the body was cut off",
        })
    }
}

impl std::error::Error for Broken {}

/// Where a body comes from.
#[derive(Debug)]
pub enum Source {
    /// A connection that hyper reads: a caller's, or an upstream's over HTTP/1.1.
    Hyper(Incoming),
    /// A caller's stream over HTTP/2 that hyper reads.
    Stream(Incoming),
    /// An upstream's connection over HTTP/2.
    Http2(http2::Incoming),
    /// One of these, of which the beginning was read.
    Begun(Box<Begun>),
}

impl Body for Source {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(|_| Broken::Cut),
            Self::Stream(body) => match Pin::new(&mut *body).poll_frame(cx) {
                // The library takes some resets for an end (RFC 9113, section 8.1 knows none that is).
                Poll::Ready(None) if !body.is_end_stream() => Poll::Ready(Some(Err(Broken::Cut))),
                polled => polled.map_err(|_| Broken::Cut),
            },
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(|_| Broken::Cut),
            Self::Begun(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) | Self::Stream(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Begun(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) | Self::Stream(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Begun(body) => body.size_hint(),
        }
    }
}

/// A body as it comes from the wire, with its silences timed.
#[derive(Debug)]
pub struct Wire {
    source: Source,
    silence: Silence,
    /// What was taken off the front to see whether there is anything.
    first: Option<Bytes>,
    /// Who sends it, if it is a request's and has not ended.
    caller: Option<Arc<Activity>>,
}

impl Wire {
    /// A request's body: if it is dropped before its end, its caller's connection knows.
    #[must_use]
    pub fn of_request(source: Source, caller: &Arc<Activity>) -> Self {
        let caller = (!source.is_end_stream()).then(|| Arc::clone(caller));
        Self { source, silence: Silence::new(None), first: None, caller }
    }

    /// Sets how long its silences may last.
    pub fn set_patience(&mut self, patience: Option<Duration>) {
        self.silence.patience = patience;
    }

    /// Times the silences of a body; `None` is for ever.
    #[must_use]
    pub fn new(source: Source, patience: Option<Duration>) -> Self {
        Self { source, silence: Silence::new(patience), first: None, caller: None }
    }

    /// Waits until it is known whether the body has a single octet, and tells. Trailers alone make no body.
    ///
    /// # Errors
    /// It ended before its end.
    pub async fn has_octets(&mut self) -> Result<bool, Broken> {
        while let Some(frame) = Pin::new(&mut *self).frame().await {
            match frame?.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.first = Some(data);
                    return Ok(true);
                }
                Err(_) => break,
            }
        }
        Ok(false)
    }
}

impl Body for Wire {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match Pin::new(&mut self.source).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.silence.end();
                if frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers)) {
                    self.caller = None;
                }
                Poll::Ready(frame)
            }
            Poll::Pending => self.silence.poll(cx).map(|()| Some(Err(Broken::Silent))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What was taken off the front is no longer counted by the rest.
        if self.first.is_some() { SizeHint::default() } else { self.source.size_hint() }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.take().filter(|_| !self.is_end_stream()) {
            caller.set_unread();
        }
    }
}

/// How far an upload has come, for the one who awaits the reply.
#[derive(Debug)]
pub struct Upload {
    /// When the last frame was handed over.
    last: Cell<Instant>,
    /// True while the upstream would take more than the caller has sent.
    is_starved: Cell<bool>,
    /// Octets that were handed over.
    pub octets: Cell<u64>,
    /// True once the last frame was.
    pub is_finished: Cell<bool>,
    /// Why it ended early, if it did.
    pub broken: Cell<Option<Broken>>,
}

impl Upload {
    fn new() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            is_starved: Cell::new(false),
            octets: Cell::new(0),
            is_finished: Cell::new(false),
            broken: Cell::new(None),
        }
    }

    /// Since when it is the upstream's turn; now, if it is the caller's.
    #[must_use]
    pub fn awaits_upstream_since(&self) -> Instant {
        if self.is_starved.get() { Instant::now() } else { self.last.get() }
    }
}

/// A request's body on its way upstream.
#[derive(Debug)]
pub enum Outgoing {
    /// Nothing more.
    Empty,
    /// What is held of it.
    Held(Held),
    /// As it comes from the caller.
    Streaming(Box<Streaming>),
}

/// A request's body that is held, counted against the bound for as long as it lives.
#[derive(Clone, Debug)]
pub struct Held {
    octets: Bytes,
    /// HTTP/2 carries them beside a length too.
    trailers: Option<Box<HeaderMap>>,
    _reservation: Rc<Reservation>,
}

/// A streamed request body.
#[derive(Debug)]
pub struct Streaming {
    wire: Wire,
    cleaner: Arc<Cleaner>,
    upload: Rc<Upload>,
    /// Of the connection that it goes out on, if that is its own.
    traffic: Option<Arc<Traffic>>,
}

impl Outgoing {
    /// A body that is held, with what comes after it.
    #[must_use]
    pub fn holding(octets: Bytes, trailers: Option<HeaderMap>, reservation: Reservation) -> Self {
        Self::Held(Held { octets, trailers: trailers.map(Box::new), _reservation: Rc::new(reservation) })
    }

    /// Streams a caller's body; the second value tells how far it has come.
    #[must_use]
    pub fn streaming(wire: Wire, cleaner: Arc<Cleaner>) -> (Self, Rc<Upload>) {
        let upload = Rc::new(Upload::new());
        let streaming = Streaming { wire, cleaner, upload: Rc::clone(&upload), traffic: None };
        (Self::Streaming(Box::new(streaming)), upload)
    }

    /// Lets it go no faster than a connection of its own takes it; a shared one takes from each what it has room for.
    pub fn follow(&mut self, traffic: Option<&Arc<Traffic>>) {
        if let Self::Streaming(streaming) = self {
            streaming.traffic = traffic.cloned();
        }
    }

    /// The same body for another attempt, if it is at hand.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Held(held) => Some(Self::Held(held.clone())),
            Self::Streaming(_) => None,
        }
    }

    /// What of it is at hand, for a signer.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        match self {
            Self::Held(held) => &held.octets,
            _ => &[],
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Held(held) if held.octets.is_empty() => {
                Poll::Ready(held.trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            Self::Held(held) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut held.octets))))),
            Self::Streaming(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(held) => held.octets.is_empty() && held.trailers.is_none(),
            Self::Streaming(streaming) => streaming.wire.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Held(held) => SizeHint::with_exact(held.octets.len() as u64),
            Self::Streaming(streaming) => streaming.wire.size_hint(),
        }
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // What the upstream does not take is left with the caller: the library would go on collecting it. The connection
        // polls its body again once that has changed.
        if self.traffic.as_ref().is_some_and(|traffic| traffic.is_blocked()) {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.wire).poll_frame(cx);
        self.upload.is_starved.set(polled.is_pending());
        let Poll::Ready(frame) = polled else { return Poll::Pending };
        self.upload.last.set(Instant::now());
        let frame = match frame {
            Some(Ok(mut frame)) => {
                let octets = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.upload.octets.set(self.upload.octets.get() + octets);
                if let Some(trailers) = frame.trailers_mut() {
                    self.cleaner.trailers(trailers);
                }
                if self.wire.is_end_stream() {
                    self.upload.is_finished.set(true);
                }
                Some(Ok(frame))
            }
            Some(Err(broken)) => {
                self.upload.broken.set(Some(broken));
                Some(Err(broken))
            }
            None => {
                self.upload.is_finished.set(true);
                None
            }
        };
        Poll::Ready(frame)
    }
}

/// A reply's body on its way to the caller. The caller's connection is busy for as long as it lives.
#[derive(Debug)]
pub struct Reply {
    content: Content,
    turn: Turn,
    /// How the caller reads it, where that is not plain from its connection.
    reading: Option<Rc<Reading>>,
}

#[derive(Debug)]
enum Content {
    Own(Bytes),
    Upstream(Box<FromUpstream>),
}

#[derive(Debug)]
struct FromUpstream {
    wire: Wire,
    lease: Option<Lease<Outgoing>>,
    upload: Option<Rc<Upload>>,
    /// What trailers must not show.
    concealed: Option<Arc<Names>>,
    /// The flushes that had been seen when the last octets, or the head, were handed over.
    handed_over: u64,
    /// A break that came while these may still be on their way.
    broken: Option<Broken>,
    /// What is told of the request, until it is.
    account: Option<Account>,
    /// How many octets it has, if the head says so.
    length: Option<u64>,
}

impl Reply {
    /// A body of our own.
    #[must_use]
    pub fn own(content: Bytes, turn: Turn) -> Self {
        Self::new(Content::Own(content), turn)
    }

    fn new(content: Content, turn: Turn) -> Self {
        let reply = Self { content, turn, reading: Reading::current() };
        if let Some(reading) = &reply.reading {
            reading.offer(reply.patience());
        }
        reply
    }

    /// How long the caller may leave it unread.
    fn patience(&self) -> Option<Duration> {
        match &self.content {
            Content::Own(_) => self.turn.activity().write_patience(),
            Content::Upstream(upstream) => upstream.wire.silence.patience,
        }
    }

    /// The upstream's body, whose trailers go without what is `concealed`; the connection that it comes on goes back to its
    /// pool at the end, and the request is told.
    #[must_use]
    pub fn upstream(
        wire: Wire,
        lease: Lease<Outgoing>,
        upload: Option<Rc<Upload>>,
        concealed: Option<Arc<Names>>,
        turn: Turn,
        account: Account,
    ) -> Self {
        let handed_over = turn.activity().flushes();
        let length = wire.size_hint().exact();
        let (lease, account) = (Some(lease), Some(account));
        let mut upstream = FromUpstream { wire, lease, upload, concealed, handed_over, broken: None, account, length };
        if upstream.wire.is_end_stream() {
            upstream.give_back();
            upstream.tell(None);
            return Self::own(Bytes::new(), turn);
        }
        Self::new(Content::Upstream(Box::new(upstream)), turn)
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let polled = match &mut this.content {
            Content::Own(octets) if octets.is_empty() => Poll::Ready(None),
            Content::Own(octets) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(octets))))),
            Content::Upstream(upstream) => upstream.poll_frame(cx, this.turn.activity()),
        };
        if let Some(reading) = &this.reading {
            match polled {
                Poll::Ready(_) => reading.offer(this.patience()),
                Poll::Pending => reading.ask(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(octets) => octets.is_empty(),
            Content::Upstream(upstream) => upstream.wire.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(octets) => SizeHint::with_exact(octets.len() as u64),
            Content::Upstream(upstream) => upstream.wire.size_hint(),
        }
    }
}

impl FromUpstream {
    /// An upstream that answered before it had all of the body is still being written to.
    fn give_back(&mut self) {
        let is_written = self.upload.as_ref().is_none_or(|upload| upload.is_finished.get());
        if let Some(lease) = self.lease.take() {
            lease.give_back(is_written);
        }
    }

    /// A break is held back until what came before it has left: the library drops what it has not written when a body
    /// errs, and the caller would lose octets, or a whole head, that the upstream did send.
    fn poll_frame(&mut self, cx: &mut Context<'_>, activity: &Activity) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // What the caller does not take is left with the upstream: the library would go on collecting it.
        if activity.is_write_waiting() {
            activity.wake_at_flush(cx.waker());
            return Poll::Pending;
        }
        if self.broken.is_none() {
            let mut polled = Pin::new(&mut self.wire).poll_frame(cx);
            match &mut polled {
                Poll::Ready(Some(Err(broken))) => {
                    self.lease.take();
                    self.broken = Some(*broken);
                    self.tell(Some(Cut::Upstream));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    self.handed_over = activity.flushes();
                    if let (Some(account), Some(data)) = (&self.account, frame.data_ref()) {
                        account.sent.set(account.sent.get() + data.len() as u64);
                    }
                    if let Some(trailers) = frame.trailers_mut() {
                        respond::clean_trailers(trailers, self.concealed.as_deref());
                    }
                    if self.wire.is_end_stream() {
                        self.end(activity);
                    }
                    return polled;
                }
                Poll::Ready(None) => {
                    self.end(activity);
                    return polled;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        match self.broken {
            Some(broken) if activity.flushes() != self.handed_over => Poll::Ready(Some(Err(broken))),
            _ => {
                activity.wake_at_flush(cx.waker());
                Poll::Pending
            }
        }
    }

    fn end(&mut self, activity: &Activity) {
        activity.set_unframed(false);
        self.give_back();
        self.tell(None);
    }

    fn tell(&mut self, cut: Option<Cut>) {
        if let Some(account) = self.account.take() {
            account.end(cut);
        }
    }
}

impl Drop for FromUpstream {
    fn drop(&mut self) {
        // Whoever has had all the octets that were announced need not ask for the end.
        let is_whole = |account: &Account| self.length == Some(account.sent.get());
        if self.account.as_ref().is_some_and(is_whole) {
            self.tell(None);
        }
    }
}
