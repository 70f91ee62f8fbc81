//! An upstream that does what a test tells it, octet by octet, and remembers what it got; and the same reading of HTTP for
//! callers, since a test must see what a library would hide.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much of what a connection got is remembered.
const MEMORY: usize = 1 << 20;

/// A listening upstream. Every connection is played by the script on a thread of its own.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    is_secure: bool,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    connections: Mutex<Vec<Record>>,
    changed: Condvar,
}

#[derive(Default)]
struct Record {
    received: Vec<u8>,
    has_ended: bool,
}

impl Upstream {
    /// In the clear.
    pub fn start(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::listen(None, script)
    }

    /// Over TLS.
    pub fn start_tls(config: ServerConfig, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::listen(Some(Arc::new(config)), script)
    }

    fn listen(config: Option<Arc<ServerConfig>>, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (is_secure, memory, script) = (config.is_some(), Arc::<Memory>::default(), Arc::new(script));
        std::thread::spawn({
            let memory = Arc::clone(&memory);
            move || {
                for tcp in listener.incoming().map_while(Result::ok) {
                    let conn = Conn::new(tcp, config.as_ref(), &memory);
                    let script = Arc::clone(&script);
                    std::thread::spawn(move || script(conn));
                }
            }
        });
        Self { address, is_secure, memory }
    }

    /// What a route's `upstream` is to say.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_secure { "https" } else { "http" }, self.address)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.memory.connections.lock().unwrap().len()
    }

    /// What the nth connection got.
    pub fn received(&self, index: usize) -> String {
        let connections = self.memory.connections.lock().unwrap();
        String::from_utf8_lossy(&connections[index].received).into_owned()
    }

    /// Waits for so many connections.
    pub fn await_connections(&self, count: usize) {
        self.wait(&format!("{count} connections"), |connections| connections.len() >= count);
    }

    /// Waits until the other side has ended the nth connection.
    pub fn await_end(&self, index: usize) {
        let is_over = |connections: &[Record]| connections.get(index).is_some_and(|record| record.has_ended);
        self.wait(&format!("the end of connection {index}"), is_over);
    }

    fn wait(&self, what: &str, condition: impl Fn(&[Record]) -> bool) {
        let connections = self.memory.connections.lock().unwrap();
        let waiting = self.memory.changed.wait_timeout_while(connections, PATIENCE, |all| !condition(all));
        assert!(!waiting.unwrap().1.timed_out(), "{what}: waited in vain");
    }
}

/// One connection of an upstream.
pub struct Conn {
    /// Its number, from 0.
    pub index: usize,
    http: Http<Recorded>,
    /// Its socket, below TLS.
    pub tcp: TcpStream,
}

impl Conn {
    fn new(tcp: TcpStream, config: Option<&Arc<ServerConfig>>, memory: &Arc<Memory>) -> Self {
        set_timeouts(&tcp);
        tcp.set_nodelay(true).unwrap();
        let mut connections = memory.connections.lock().unwrap();
        let index = connections.len();
        connections.push(Record::default());
        memory.changed.notify_all();
        let inner = tcp.try_clone().unwrap();
        let stream = match config {
            None => Stream::Plain(inner),
            Some(config) => {
                let session = ServerConnection::new(Arc::clone(config)).unwrap();
                Stream::Tls(Box::new(StreamOwned::new(session, inner)))
            }
        };
        let recorded = Recorded { stream, index, memory: Arc::clone(memory) };
        Self { index, http: Http::new(recorded), tcp }
    }

    /// The next request's head; `None` at the end of the connection.
    pub fn head(&mut self) -> Option<String> {
        self.http.head()
    }

    /// The body that a head announces; `None` if it was cut off.
    pub fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        self.http.body(head, Framing::of_request(head))
    }

    /// Feeds the body that a head announces to a function, piece by piece; false if it was cut off.
    pub fn drain(&mut self, head: &str, sink: impl FnMut(&[u8])) -> bool {
        self.http.drain(Framing::of_request(head), sink)
    }

    /// The next request, whole; `None` at the end of the connection.
    pub fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let body = self.body(&head)?;
        Some((head, body))
    }

    /// Sends octets; false if the other side is gone.
    pub fn send(&mut self, octets: impl AsRef<[u8]>) -> bool {
        let stream = &mut self.http.stream.stream;
        stream.write_all(octets.as_ref()).and_then(|()| stream.flush()).is_ok()
    }

    /// Feeds the body's next chunk to a function, unless it is the last; false if it was cut off.
    pub fn chunk(&mut self, sink: impl FnMut(&[u8])) -> bool {
        self.http.chunk(sink)
    }

    /// Sends a 200 with a body.
    pub fn ok(&mut self, body: impl AsRef<[u8]>) -> bool {
        let body = body.as_ref();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat())
    }

    /// Answers every request with a 200 until the connection ends.
    pub fn serve(mut self, body: &str) {
        while let Some((head, _)) = self.request() {
            let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let is_sent = if head.starts_with("HEAD ") { self.send(length) } else { self.ok(body) };
            if !is_sent {
                return;
            }
        }
    }

    /// The protocol that was agreed on over TLS, if any was.
    pub fn agreed(&mut self) -> Option<String> {
        let Stream::Tls(tls) = &mut self.http.stream.stream else { return None };
        let _ = tls.conn.complete_io(&mut tls.sock);
        tls.conn.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned())
    }

    /// The TLS session, if it is one.
    pub fn session(&self) -> Option<&ServerConnection> {
        match &self.http.stream.stream {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => Some(&tls.conn),
        }
    }

    /// Goes on over TLS, as what a proxy has opened a tunnel to does.
    pub fn start_tls(&mut self, config: &Arc<ServerConfig>) {
        assert!(self.http.buffer.is_empty(), "TLS begins with our word");
        let session = ServerConnection::new(Arc::clone(config)).unwrap();
        let tcp = self.tcp.try_clone().unwrap();
        self.http.stream.stream = Stream::Tls(Box::new(StreamOwned::new(session, tcp)));
    }

    /// So many octets as they come; `None` if the connection ends before.
    pub fn octets(&mut self, count: usize) -> Option<Vec<u8>> {
        self.http.octets(count)
    }

    /// Everything until the end of what the other side sends.
    pub fn rest(&mut self) -> Vec<u8> {
        self.http.rest()
    }

    /// Ends this direction and leaves the other open: over TLS with a closing alert.
    pub fn end_writing(&mut self) {
        if let Stream::Tls(tls) = &mut self.http.stream.stream {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
        let _ = self.tcp.shutdown(Shutdown::Write);
    }

    /// Reads until the other side ends the connection.
    pub fn await_end(&mut self) {
        while self.http.fill() {}
    }

    /// Ends the connection as a good server does: over TLS with a closing alert.
    pub fn close(mut self) {
        if let Stream::Tls(tls) = &mut self.http.stream.stream {
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    }

    /// Ends it with a reset.
    pub fn reset(self) {
        SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(octets),
            Self::Tls(stream) => stream.write(octets),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

struct Recorded {
    stream: Stream,
    index: usize,
    memory: Arc<Memory>,
}

impl Read for Recorded {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buf);
        let mut connections = self.memory.connections.lock().unwrap();
        let record = &mut connections[self.index];
        match &read {
            Ok(0) => record.has_ended = true,
            Err(error) if !is_timeout(error) => record.has_ended = true,
            Ok(octets) if record.received.len() < MEMORY => record.received.extend_from_slice(&buf[..*octets]),
            _ => {}
        }
        self.memory.changed.notify_all();
        read
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilEnd,
}

impl Framing {
    fn of_request(head: &str) -> Self {
        Self::announced(head).unwrap_or(Self::Nothing)
    }

    fn of_reply(head: &str) -> Self {
        match status(head) {
            100..200 | 204 | 304 => Self::Nothing,
            _ => Self::announced(head).unwrap_or(Self::UntilEnd),
        }
    }

    fn announced(head: &str) -> Option<Self> {
        if header(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Some(Self::Chunked);
        }
        header(head, "content-length").map(|length| Self::Length(length.parse().unwrap()))
    }
}

/// The value of a header of a head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head:?}"))
}

/// A reply as a caller sees it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// False if it was cut off before the end that its framing announces.
    pub is_whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The name of an error of the daemon's own.
    pub fn code(&self) -> Option<&str> {
        self.header("x-countersign-error")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Panics, showing the reply, unless it is this error of the daemon's own; returns its message.
    pub fn expect(&self, status: u16, code: &str) -> String {
        assert_eq!((self.status, self.code()), (status, Some(code)), "{}{}", self.head, self.text());
        assert!(self.is_whole);
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["error"]["code"], code);
        assert_eq!(body["error"]["request_id"].as_str(), self.header("x-countersign-request-id"));
        body["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// HTTP/1 over a stream, read without help.
pub struct Http<S> {
    pub stream: S,
    /// True once the connection has ended with an error.
    pub was_reset: bool,
    buffer: Vec<u8>,
}

impl<S: Read> Http<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, was_reset: false, buffer: Vec::new() }
    }

    /// Reads more; false at the end.
    pub fn fill(&mut self) -> bool {
        let mut octets = vec![0; 64 << 10];
        match self.stream.read(&mut octets) {
            Ok(0) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&octets[..read]);
                true
            }
            Err(error) => {
                assert!(!is_timeout(&error), "nothing came for {PATIENCE:?}; so far: {:?}", self.shown());
                self.was_reset = true;
                false
            }
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(500)]).into_owned()
    }

    /// A head with its empty line; `None` if there is no whole one.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.drain(..end + 2).collect::<Vec<_>>();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn body(&mut self, head: &str, framing: Framing) -> Option<Vec<u8>> {
        if header(head, "expect").is_some() {
            return None;
        }
        let mut body = Vec::new();
        self.drain(framing, |piece| body.extend_from_slice(piece)).then_some(body)
    }

    /// Feeds a body to a function, piece by piece; false if it was cut off.
    pub fn drain(&mut self, framing: Framing, mut sink: impl FnMut(&[u8])) -> bool {
        match framing {
            Framing::Nothing => true,
            Framing::Length(length) => self.exactly(length, &mut sink),
            Framing::UntilEnd => loop {
                sink(&std::mem::take(&mut self.buffer));
                if !self.fill() {
                    return !self.was_reset;
                }
            },
            Framing::Chunked => {
                let mut is_last = false;
                while !is_last {
                    is_last = true;
                    let is_whole = self.chunk(|piece| {
                        is_last = false;
                        sink(piece);
                    });
                    if !is_whole {
                        return false;
                    }
                }
                true
            }
        }
    }

    /// Feeds a chunk to a function, unless it is the last; false if it was cut off.
    pub fn chunk(&mut self, mut sink: impl FnMut(&[u8])) -> bool {
        let Some(size) = self.line() else { return false };
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).unwrap();
        if size > 0 {
            return self.exactly(size, &mut sink) && self.line().is_some();
        }
        loop {
            match self.line() {
                Some(trailer) if !trailer.is_empty() => {}
                end => return end.is_some(),
            }
        }
    }

    fn exactly(&mut self, mut left: usize, sink: &mut impl FnMut(&[u8])) -> bool {
        loop {
            let here = left.min(self.buffer.len());
            sink(&self.buffer[..here]);
            self.buffer.drain(..here);
            left -= here;
            if left == 0 {
                return true;
            }
            if !self.fill() {
                return false;
            }
        }
    }

    /// The next reply; `None` if the connection ended instead.
    pub fn try_reply(&mut self) -> Option<Reply> {
        self.reply_framed(Framing::of_reply)
    }

    /// The next reply.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().unwrap_or_else(|| panic!("the connection ended instead; so far: {:?}", self.shown()))
    }

    /// The reply to a HEAD.
    pub fn reply_without_body(&mut self) -> Reply {
        self.reply_framed(|_| Framing::Nothing).expect("a reply")
    }

    fn reply_framed(&mut self, framing: impl Fn(&str) -> Framing) -> Option<Reply> {
        let head = self.head()?;
        let mut body = Vec::new();
        let is_whole = self.drain(framing(&head), |piece| body.extend_from_slice(piece));
        Some(Reply { status: status(&head), head, body, is_whole })
    }

    /// So many octets as they come; `None` if the connection ends before.
    pub fn octets(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut octets = Vec::new();
        self.exactly(count, &mut |piece| octets.extend_from_slice(piece)).then_some(octets)
    }

    /// Everything until the end of the connection; whether that was a reset is in `was_reset`.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    /// True if the other side has ended the connection and nothing else came.
    pub fn has_ended(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }
}

impl Http<TcpStream> {
    /// Sends octets.
    pub fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.stream.write_all(octets.as_ref()).unwrap();
    }

    /// Sends a GET to the route `up` and returns its reply; the connection stays open.
    pub fn get(&mut self, path: &str) -> Reply {
        self.send(request("GET", path, ""));
        self.reply()
    }
}

/// A request to the route `up`; a POST, PUT or one with a body says how long that is.
pub fn request(method: &str, path: &str, body: &str) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: up.localhost\r\n");
    if !body.is_empty() || matches!(method, "POST" | "PUT") {
        let _ = write!(request, "Content-Length: {}\r\n", body.len());
    }
    request + "\r\n" + body
}

/// Waits for a condition that something else brings about.
pub fn await_that(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn set_timeouts(tcp: &TcpStream) {
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
