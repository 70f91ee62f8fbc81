//! What all played services share: two listeners, a clock of one's own, ways to misbehave, and a journal.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use countersign::clock::{Clock, Timestamp};
use countersign::demo::certificates::Authority;
use countersign::demo::upstream::Transport;
use countersign::demo::verify::Received;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::reply::{Fault, Framed, Reply};

/// What a service does with a request that reached it.
pub trait Play: Send + Sync + 'static {
    /// The answer, and what was found.
    fn answer(&self, request: &Received<'_>) -> Reply;
}

/// How a site behaves beside what its service does.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Connections are reset as soon as they are there, and those that are open as soon as they are used.
    pub is_down: bool,
    /// Before an answer.
    pub delay: Duration,
    /// Refusals come with `Content-Encoding: gzip`.
    pub gzip: bool,
    /// Answers come chunked, without Content-Length.
    pub chunked: bool,
    /// The first whose path begins a request's path happens, as often as is said.
    pub faults: Vec<(&'static str, usize, Fault)>,
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub status: u16,
    /// What was given or verified and under which key, or code and message of the refusal.
    pub verdict: Result<String, String>,
}

#[derive(Default)]
struct Journal {
    arrived: usize,
    in_flight: usize,
    most: usize,
    calls: Vec<Call>,
}

/// Watches and steers a site while it runs.
pub struct Control {
    clock: Clock,
    offset: AtomicI64,
    manner: Mutex<Manner>,
    journal: Mutex<Journal>,
    changed: Condvar,
    is_held: watch::Sender<bool>,
}

impl Control {
    /// The site's time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0 + self.offset.load(Ordering::Relaxed))
    }

    /// Sets the site's clock, which judges and is its `Date`, ahead (or back) of the cloud's.
    pub fn shift(&self, seconds: i64) {
        self.offset.store(seconds * 1000, Ordering::Relaxed);
    }

    /// Changes how the site behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().unwrap());
    }

    /// The next requests for paths that begin so, as many as `times`, meet this instead of the service.
    pub fn fail(&self, path: &'static str, times: usize, fault: Fault) {
        self.behave(|manner| manner.faults.push((path, times, fault)));
    }

    /// Good manners again.
    pub fn recover(&self) {
        self.behave(|manner| *manner = Manner::default());
    }

    /// Lets requests wait, until [`release`](Self::release), before anything is done with them.
    pub fn hold(&self) {
        self.is_held.send_replace(true);
    }

    /// Answers those that wait.
    pub fn release(&self) {
        self.is_held.send_replace(false);
    }

    /// How many requests have come, answered or not.
    pub fn arrived(&self) -> usize {
        self.journal.lock().unwrap().arrived
    }

    /// Waits until as many have come.
    pub fn await_arrivals(&self, count: usize) {
        let journal = self.journal.lock().unwrap();
        let (journal, waited) =
            self.changed.wait_timeout_while(journal, PATIENCE, |journal| journal.arrived < count).unwrap();
        assert!(!waited.timed_out(), "{} of {count} requests came", journal.arrived);
    }

    /// Waits until as many have been answered.
    pub fn await_calls(&self, count: usize) {
        let journal = self.journal.lock().unwrap();
        let (journal, waited) =
            self.changed.wait_timeout_while(journal, PATIENCE, |journal| journal.calls.len() < count).unwrap();
        assert!(!waited.timed_out(), "{} of {count} requests were answered", journal.calls.len());
    }

    /// The most requests that were under way at one time.
    pub fn most_at_once(&self) -> usize {
        self.journal.lock().unwrap().most
    }

    /// What was answered, the oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.journal.lock().unwrap().calls.clone()
    }

    /// How many were found good with this in their verdict: the name of a key, or what was given.
    pub fn accepted(&self, what: &str) -> usize {
        self.count(|call| call.verdict.as_ref().is_ok_and(|verdict| verdict.contains(what)))
    }

    /// How many were refused with this in code or message.
    pub fn refused(&self, what: &str) -> usize {
        self.count(|call| call.verdict.as_ref().is_err_and(|verdict| verdict.contains(what)))
    }

    fn count(&self, is_one: impl Fn(&Call) -> bool) -> usize {
        self.journal.lock().unwrap().calls.iter().filter(|call| is_one(call)).count()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Journal) -> T) -> T {
        let result = change(&mut self.journal.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut manner = self.manner.lock().unwrap();
        let (_, times, fault) =
            manner.faults.iter_mut().find(|(prefix, times, _)| *times > 0 && path.starts_with(prefix))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn manner(&self) -> Manner {
        self.manner.lock().unwrap().clone()
    }
}

/// A service that listens.
pub struct Site<S> {
    /// Where it listens in the clear.
    pub plain: SocketAddr,
    /// Where it listens with TLS.
    pub secure: SocketAddr,
    /// The service itself.
    pub play: Arc<S>,
    /// What a site is asked and told, which is at hand on the site itself too.
    pub control: Arc<Control>,
}

impl<S> Site<S> {
    /// `http://127.0.0.1:PORT`
    pub fn http(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// `https://127.0.0.1:PORT`
    pub fn https(&self) -> String {
        format!("https://{}", self.secure)
    }
}

impl<S> Deref for Site<S> {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

/// What opens sites.
pub(super) struct Opener<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) authority: &'a Authority,
    pub(super) clock: &'a Clock,
}

impl Opener<'_> {
    pub(super) fn site<S: Play>(&self, play: S) -> Site<S> {
        let control = Arc::new(Control {
            clock: self.clock.clone(),
            offset: AtomicI64::new(0),
            manner: Mutex::default(),
            journal: Mutex::default(),
            changed: Condvar::new(),
            is_held: watch::Sender::new(false),
        });
        let play = Arc::new(play);
        let identity = self.authority.server(&["localhost", "127.0.0.1"]).unwrap();
        let [plain, secure] = [Transport::Plain, Transport::Tls(identity)].map(|transport| {
            let acceptor = transport.acceptor().unwrap();
            let _runtime = self.runtime.enter();
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            let address = listener.local_addr().unwrap();
            self.runtime.spawn(accept(listener, acceptor, Arc::clone(&control), Arc::clone(&play)));
            address
        });
        Site { plain, secure, play, control }
    }
}

async fn accept<S: Play>(listener: TcpListener, acceptor: Option<TlsAcceptor>, control: Arc<Control>, play: Arc<S>) {
    while let Ok((stream, _)) = listener.accept().await {
        if control.manner().is_down {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            continue;
        }
        tokio::spawn(converse(stream, acceptor.clone(), Arc::clone(&control), Arc::clone(&play)));
    }
}

/// What goes wrong on a connection is the client's to notice.
async fn converse<S: Play>(stream: TcpStream, acceptor: Option<TlsAcceptor>, control: Arc<Control>, play: Arc<S>) {
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => serve(stream, control, play).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, control, play).await;
            }
        }
    }
}

async fn serve<S: Play>(stream: impl AsyncRead + AsyncWrite + Unpin, control: Arc<Control>, play: Arc<S>) {
    let service = service_fn(|request| answer(request, Arc::clone(&control), Arc::clone(&play)));
    // A token of many KB comes back in one header.
    let mut http = http1::Builder::new();
    http.max_buf_size(1 << 20);
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer<S: Play>(
    request: Request<Incoming>,
    control: Arc<Control>,
    play: Arc<S>,
) -> io::Result<Response<Framed>> {
    let under_way = UnderWay::new(&control);
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    control.is_held.subscribe().wait_for(|is_held| !is_held).await.map_err(io::Error::other)?;
    let manner = control.manner();
    tokio::time::sleep(manner.delay).await;
    let fault = control.fault(head.uri.path());
    let cut = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let reply = match fault {
        _ if manner.is_down => return Err(cut()),
        Some(Fault::Cut) => return Err(cut()),
        Some(Fault::Answer(reply)) => reply,
        None => play.answer(&Received {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &head.headers,
            body: &body,
            client: None,
            time: control.now(),
        }),
    };
    let response = reply.render(&manner, control.now());
    drop(under_way);
    let (method, target, headers) = (head.method, head.uri.to_string(), head.headers);
    let call = Call { method, target, headers, status: reply.status, verdict: reply.verdict };
    control.change(|journal| journal.calls.push(call));
    Ok(response)
}

/// A request is under way until this is dropped, be it because its client left.
struct UnderWay(Arc<Control>);

impl UnderWay {
    fn new(control: &Arc<Control>) -> Self {
        control.change(|journal| {
            journal.arrived += 1;
            journal.in_flight += 1;
            journal.most = journal.most.max(journal.in_flight);
        });
        Self(Arc::clone(control))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|journal| journal.in_flight -= 1);
    }
}

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);
