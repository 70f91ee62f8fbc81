//! HTTP/2 towards an upstream: a connection that requests share, each on a stream of its own (RFC 9113).
//!
//! The library below keeps the protocol; this says how much of a connection is used, notices when it has died, and feeds
//! bodies to their streams. No queue of the library's grows: a stream is opened only where the peer allows one more, and
//! an upload hands over its next part when the last one has found room.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, Uri, Version, request};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::pool::Traffic;

/// What a connection is opened with.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Octets of a reply's head.
    pub header_bytes: usize,
    /// How long it may be without a request; `None` is for ever.
    pub idle: Option<Duration>,
}

/// A connection that requests share. Its task closes it when nobody holds it any more.
pub struct Shared {
    sender: SendRequest<Bytes>,
    /// What has gone through it.
    pub traffic: Arc<Traffic>,
    /// Places that are taken.
    taken: Cell<usize>,
    /// True once the peer has said how many streams it allows, or can say no more.
    is_settled: Cell<bool>,
    settled: Notify,
    idle: Option<Duration>,
    idle_until: Cell<Option<Instant>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Shared {
    /// Begins HTTP/2 on a stream whose octets `traffic` counts, without waiting for the peer; with the first place.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn open<S>(stream: S, traffic: Arc<Traffic>, terms: Terms) -> Result<(Rc<Self>, Place), h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(UNSETTLED)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(terms.header_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(MOST_STREAMS);
        let (sender, connection) = builder.handshake(stream).await?;
        let shared = Rc::new(Self {
            sender,
            traffic,
            taken: Cell::new(1),
            is_settled: Cell::new(false),
            settled: Notify::new(),
            idle: terms.idle,
            idle_until: Cell::new(None),
        });
        tokio::task::spawn_local(drive(connection, Rc::downgrade(&shared)));
        let place = Place::new(&shared, false);
        Ok((shared, place))
    }

    /// Another place, if there is one. Until the peer has said how many there are, there is one.
    #[must_use]
    pub fn take(self: &Rc<Self>) -> Option<Place> {
        let most = if self.is_settled() { MOST_STREAMS.min(self.sender.current_max_send_streams()) } else { 1 };
        if self.taken.get() >= most || self.is_closed() {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Place::new(self, true))
    }

    /// True if it takes no more requests: it is closed, or the peer is about to close it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let polled = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(polled, Poll::Ready(Err(_)))
    }

    /// True if it is of no more use: closed, or idle for too long.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        let is_overdue = || self.taken.get() == 0 && self.idle_until.get().is_some_and(|until| until <= now);
        is_overdue() || self.is_closed()
    }

    /// True once it is known how many places there are.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_settled.get()
    }

    /// Waits for that.
    pub async fn settled(&self) {
        let settled = self.settled.notified();
        if !self.is_settled() {
            settled.await;
        }
    }

    fn settle(&self) {
        if !self.is_settled.replace(true) {
            self.settled.notify_waiters();
        }
    }
}

/// A place on a shared connection for as long as anything of its stream is needed.
#[derive(Debug)]
struct Seat(Rc<Shared>);

impl Drop for Seat {
    fn drop(&mut self) {
        let Self(shared) = self;
        shared.taken.set(shared.taken.get().saturating_sub(1));
        if shared.taken.get() == 0 {
            shared.idle_until.set(shared.idle.map(|idle| Instant::now() + idle));
        }
    }
}

/// A request's place on a shared connection. Dropped, it ends the request's upload, and with it the stream unless that has
/// come to its own end.
#[derive(Debug)]
pub struct Place {
    seat: Rc<Seat>,
    /// True if another request has used the connection before.
    pub is_reused: bool,
    upload: Option<JoinHandle<()>>,
}

impl Place {
    fn new(shared: &Rc<Shared>, is_reused: bool) -> Self {
        Self { seat: Rc::new(Seat(Rc::clone(shared))), is_reused, upload: None }
    }

    /// The connection.
    #[must_use]
    pub fn shared(&self) -> &Rc<Shared> {
        &self.seat.0
    }

    /// Sends a request, whose body goes on as the peer takes it; where it takes nothing for as long as `patience`, the
    /// stream is reset.
    ///
    /// # Errors
    /// Why it was not sent, and the body.
    pub fn send<B>(
        &mut self,
        head: Request<()>,
        body: B,
        patience: Option<Duration>,
    ) -> Result<ResponseFuture, (h2::Error, B)>
    where
        B: Body<Data = Bytes> + Unpin + 'static,
    {
        let is_whole = body.is_end_stream();
        let (response, stream) = match self.shared().sender.clone().send_request(head, is_whole) {
            Ok(sent) => sent,
            Err(error) => return Err((error, body)),
        };
        if !is_whole {
            let mut feeding = Box::pin(feed(body, stream, patience, Rc::clone(&self.seat)));
            // A body that is at hand needs no task.
            if feeding.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.upload = Some(tokio::task::spawn_local(feeding));
            }
        }
        Ok(response)
    }

    /// Gives the place back after a whole reply. An upload may go on, and takes the place until it ends.
    pub fn leave(mut self) {
        self.upload = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(upload) = &self.upload {
            upload.abort();
        }
    }
}

/// A request's head as HTTP/2 carries it: the authority is what `Host` said, and what concerns a connection of HTTP/1.1 is
/// left out (RFC 9113 section 8.2.2).
///
/// # Errors
/// `Host` is missing or no authority.
pub fn head(mut parts: request::Parts) -> http::Result<Request<()>> {
    let authority = parts.headers.remove(HOST);
    for name in [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &TRANSFER_ENCODING, &UPGRADE] {
        parts.headers.remove(name);
    }
    let mut uri =
        Uri::builder().scheme(Scheme::HTTPS).authority(authority.as_ref().map_or(&[][..], |host| host.as_bytes()));
    if let Some(target) = parts.uri.path_and_query() {
        uri = uri.path_and_query(target.clone());
    }
    parts.uri = uri.build()?;
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, ()))
}

/// Feeds a body to its stream, a frame at a time, each when there is room for some of it.
async fn feed<B>(mut body: B, mut stream: SendStream<Bytes>, patience: Option<Duration>, _seat: Rc<Seat>)
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Ended)),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Ok),
        });
        let frame = match frame.await {
            Err(Ended) => return,
            Ok(None) => return drop(stream.send_data(Bytes::new(), true)),
            Ok(Some(Err(_))) => return stream.send_reset(Reason::CANCEL),
            Ok(Some(Ok(frame))) => frame,
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => return drop(stream.send_trailers(trailers)),
                Err(_) => continue,
            },
        };
        // What comes last is at hand already, and nothing would be gained by holding it here.
        let is_last = body.is_end_stream();
        if !is_last && !data.is_empty() {
            // No more than an octet, so that a stream that waits takes no room from the others.
            stream.reserve_capacity(1);
            match within(patience, room(&mut stream)).await {
                Some(Ok(())) => {}
                Some(Err(Ended)) => return,
                None => return stream.send_reset(Reason::CANCEL),
            }
        }
        if stream.send_data(data, is_last).is_err() || is_last {
            return;
        }
    }
}

/// The stream has come to its end.
struct Ended;

async fn room(stream: &mut SendStream<Bytes>) -> Result<(), Ended> {
    while stream.capacity() == 0 {
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            _ => return Err(Ended),
        }
    }
    Ok(())
}

async fn within<F: Future>(patience: Option<Duration>, future: F) -> Option<F::Output> {
    match patience {
        Some(patience) => timeout(patience, future).await.ok(),
        None => Some(future.await),
    }
}

/// Drives a connection to its end.
async fn drive<S>(mut connection: Connection<S>, shared: Weak<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let pings = connection.ping_pong();
    let driven = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if connection.max_concurrent_send_streams() != UNSETTLED
            && let Some(shared) = shared.upgrade()
        {
            shared.settle();
        }
        polled
    });
    tokio::select! {
        biased;
        ended = driven => if let Err(error) = ended {
            debug!(%error, "an upstream connection ended");
        },
        () = watch(pings, &shared) => debug!("an upstream connection is dead"),
    }
    if let Some(shared) = shared.upgrade() {
        shared.settle();
    }
}

/// Ends when the connection is dead: requests wait on it, nothing comes, and the peer does not even answer a ping.
async fn watch(pings: Option<PingPong>, shared: &Weak<Shared>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    let state = || shared.upgrade().map(|shared| (shared.traffic.read(), shared.taken.get() > 0));
    // Without anybody who holds it, it is being closed, and has an interval for that.
    while let Some((before, _)) = state() {
        sleep(PING_INTERVAL).await;
        let is_silent = state().is_some_and(|(now, is_awaited)| is_awaited && now == before);
        if is_silent && !matches!(timeout(PING_PATIENCE, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// A reply's body, which comes on a stream of a shared connection.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// The octets still to come, if the head has said how many there are.
    left: Option<u64>,
    has_data_ended: bool,
}

impl Incoming {
    /// The reply with its body.
    #[must_use]
    pub fn of(response: Response<RecvStream>) -> Response<Self> {
        let (mut head, stream) = response.into_parts();
        let left = length(&mut head.headers);
        Response::from_parts(head, Self { stream, left, has_data_ended: false })
    }
}

/// The announced length. The library has seen to it that all of them are the same, and one is enough.
fn length(headers: &mut HeaderMap) -> Option<u64> {
    let Entry::Occupied(mut entry) = headers.entry(CONTENT_LENGTH) else { return None };
    let length = entry.get().clone();
    entry.insert(length.clone());
    length.to_str().ok()?.parse().ok()
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.has_data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.has_data_ended = true,
            }
        }
        let trailers = ready!(pin!(self.stream.trailers()).poll(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) if !self.is_end_stream() => SizeHint::with_exact(left),
            None if !self.is_end_stream() => SizeHint::default(),
            _ => SizeHint::with_exact(0),
        }
    }
}

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// How many requests share a connection at most, whatever the peer allows.
const MOST_STREAMS: usize = 100;

/// The number of streams before the peer has said one, which no peer can say.
const UNSETTLED: usize = usize::MAX - 1;

/// How many octets of a reply may come that nobody has read yet: enough to keep a fast connection busy.
const STREAM_WINDOW: u32 = 256 << 10;

/// The same for all replies of a connection together: seven that nobody reads do not hold up the eighth, and a hundred do
/// not fill the memory.
const CONNECTION_WINDOW: u32 = 2 << 20;

/// How many octets of an upload may wait in a stream.
const SEND_BUFFER: usize = 64 << 10;

/// How long nothing may come before the peer is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long it may take over that.
const PING_PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tokio::io::DuplexStream;
    use tokio::task::LocalSet;

    use super::super::pool::Counted;
    use super::*;

    const TERMS: Terms = Terms { header_bytes: 1 << 16, idle: Some(Duration::from_secs(60)) };

    /// A connection and its other end.
    async fn open() -> (Rc<Shared>, Place, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let traffic = Arc::<Traffic>::default();
        let stream = Counted::new(ours, Arc::clone(&traffic));
        let (shared, place) = Shared::open(stream, traffic, TERMS).await.unwrap();
        (shared, place, theirs)
    }

    fn send(place: &mut Place) -> ResponseFuture {
        let request = Request::get("https://up.test/").body(()).unwrap();
        place.send(request, Empty::<Bytes>::new(), None).map_err(|(error, _)| error).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_ping_is_dead() {
        let test = async {
            let (shared, mut place, _theirs) = open().await;
            let began = Instant::now();
            assert!(send(&mut place).await.unwrap_err().is_io());
            assert_eq!(began.elapsed().as_secs(), 35);
            assert!(shared.is_closed() && shared.is_settled());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_pings_may_take_its_time() {
        let test = async {
            let (shared, mut place, theirs) = open().await;
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(theirs).await.unwrap();
                let unanswered = connection.accept().await.unwrap();
                while connection.accept().await.is_some() {}
                drop(unanswered);
            });
            let response = send(&mut place);
            assert!(timeout(Duration::from_secs(3600), response).await.is_err());
            assert!(!shared.is_closed());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_one_place_until_the_peer_has_said_how_many() {
        let test = async {
            let (shared, place, theirs) = open().await;
            assert!(shared.take().is_none());
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(3);
            let serving = tokio::task::spawn_local(async move {
                let mut connection = builder.handshake::<_, Bytes>(theirs).await.unwrap();
                while connection.accept().await.is_some() {}
            });
            shared.settled().await;
            let others = [shared.take(), shared.take()];
            assert!(others.iter().flatten().all(|place| place.is_reused) && others.iter().flatten().count() == 2);
            assert!(shared.take().is_none());
            drop(others);
            assert!(shared.take().is_some() && !shared.is_over(Instant::now() + Duration::from_secs(61)));
            drop(place);
            assert!(shared.is_over(Instant::now() + Duration::from_secs(61)) && !shared.is_over(Instant::now()));
            drop(shared);
            serving.await.unwrap();
        };
        LocalSet::new().run_until(test).await;
    }

    #[test]
    fn a_head_says_in_its_authority_what_the_signed_one_said_in_its_host() {
        let request = Request::get("/a%20b//c?x=%2f&y")
            .header("Host", "UP.test:8443")
            .header("Connection", "TE")
            .header("TE", "trailers")
            .header("Transfer-Encoding", "chunked")
            .header("Proxy-Connection", "close")
            .header("X-Auth-Token", "t");
        let head = head(request.body(()).unwrap().into_parts().0).unwrap();
        assert_eq!(head.uri().to_string(), "https://UP.test:8443/a%20b//c?x=%2f&y");
        let mut names: Vec<_> = head.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["te", "x-auth-token"]);
        assert!(super::head(Request::get("/").body(()).unwrap().into_parts().0).is_err());
    }
}
