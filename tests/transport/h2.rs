//! HTTP/2 towards upstreams: what is agreed on, what is shared, and what goes wrong.

use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign::clock::Timestamp;
use countersign::credential::AccessKey;
use countersign::demo::certificates::{Authority, Identity, KeyFormat};
use countersign::demo::verify::{Bce, Received, Scheme};
use countersign::upstream::tls::provider;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::sync::Barrier;

use super::bodies::{Pattern, peak_memory};
use super::frames::{
    DATA, EARLY_HINTS, END_HEADERS, END_STREAM, FORBIDDEN, Frames, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, OK, RST_STREAM,
};
use super::reuse::{Chance, Delivered};
use super::script::{Conn, Framing, Http, Upstream, header, request};
use super::{caller, configuration, server_config};
use crate::daemon::{Daemon, PATIENCE, connect};

/// A certificate for 127.0.0.1, and a folder with its CA for a daemon to be started in.
fn identity() -> (Identity, TempDir) {
    let authority = Authority::new("a test CA").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    (authority.server(&["127.0.0.1"]).unwrap(), folder)
}

fn offering(mut config: ServerConfig, protocols: &[&str]) -> ServerConfig {
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// An upstream that a script plays frame by frame.
fn scripted(script: impl Fn(Conn) + Send + Sync + 'static) -> (Upstream, TempDir) {
    let (identity, folder) = identity();
    (Upstream::start_tls(offering(server_config(&identity), &["h2", "http/1.1"]), script), folder)
}

/// A daemon with one thread and the route `up`.
fn daemon(url: &str, folder: TempDir, top: &str, route: &str) -> Daemon {
    let configuration =
        configuration(url, &format!("server.workers = 1\n{top}"), &format!("tls.ca = \"ca.pem\"\n{route}"));
    Daemon::start_in(folder, &configuration, |_| {})
}

/// An upstream with good manners: the library's own server.
struct Polite {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Polite {
    fn start<F>(
        identity: &Identity,
        builder: h2::server::Builder,
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), h2::Error>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(offering(server_config(identity), &["h2"])));
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, builder, answer) = (acceptor.clone(), builder.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let Ok(mut connection) = builder.handshake(tls).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond));
                    }
                });
            }
        });
        Self { address, connections, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Reads a body to its end.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut octets = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        octets.extend_from_slice(&data);
    }
    Ok(octets)
}

/// Sends a body as the client takes it.
async fn write(stream: &mut h2::SendStream<Bytes>, mut body: Bytes, end: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap()?;
        let piece = body.split_to(capacity.min(body.len()));
        stream.send_data(piece, end && body.is_empty())?;
    }
    Ok(())
}

fn yes(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    respond.send_response(Response::new(()), false)?.send_data("yes".into(), true)
}

/// Calls at the same time, a caller for each.
fn at_once<T: Send>(daemon: &Daemon, callers: usize, call: impl Fn(Http<TcpStream>) -> T + Sync) -> Vec<T> {
    let address = daemon.address();
    std::thread::scope(|scope| {
        let calling: Vec<_> = (0..callers).map(|_| scope.spawn(|| call(Http::new(connect(address))))).collect();
        calling.into_iter().map(|calling| calling.join().unwrap()).collect()
    })
}

#[test]
fn a_burst_of_requests_shares_one_connection() {
    const CALLERS: usize = 40;
    let (identity, folder) = identity();
    // Nobody is answered before all have come.
    let together = Arc::new(Barrier::new(CALLERS));
    let upstream = Polite::start(&identity, h2::server::Builder::new(), move |_, respond| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            yes(respond)
        }
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    for _ in 0..3 {
        let replies = at_once(&daemon, CALLERS, |mut caller| caller.get("/").text());
        assert!(replies.iter().all(|reply| reply == "yes"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn no_more_streams_are_opened_than_the_upstream_allows() {
    const CALLERS: usize = 12;
    let (identity, folder) = identity();
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let upstream = Polite::start(&identity, builder, |_, respond| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        yes(respond)
    });
    let daemon = daemon(&upstream.url(), folder, "log.level = \"debug\"", "");
    for _ in 0..3 {
        let replies = at_once(&daemon, CALLERS, |mut caller| caller.get("/").text());
        assert!(replies.iter().all(|reply| reply == "yes"));
    }
    assert!(upstream.connections() <= CALLERS / 2, "{}", upstream.connections());
    // The library refuses streams that are too many.
    assert!(!daemon.log().contains("an attempt failed"), "{}", daemon.log());
}

#[test]
fn a_request_is_carried_as_it_was_signed() {
    let (identity, folder) = identity();
    let key = AccessKey { access_key: "an-access-key".into(), secret_key: "a secret".into(), security_token: None };
    let (heard, hearing) = mpsc::channel();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), move |mut request, respond| {
        let (key, heard) = (key.clone(), heard.clone());
        async move {
            let body = read(request.body_mut()).await?;
            let uri = request.uri();
            let authority = uri.authority().unwrap().as_str();
            assert_eq!((request.version(), uri.scheme_str()), (http::Version::HTTP_2, Some("https")));
            let mut headers = request.headers().clone();
            let seen = headers.clone();
            headers.insert("host", HeaderValue::from_str(authority).unwrap());
            let received = Received {
                method: request.method(),
                path: uri.path(),
                query: uri.query(),
                headers: &headers,
                body: &body,
                client: None,
                time: Timestamp(jiff::Timestamp::now().as_millisecond()),
            };
            let verdict = Bce { keys: vec![key].into() }.verify(&received).map_err(|refusal| refusal.message);
            heard.send((verdict, authority.to_owned(), seen, body)).unwrap();
            yes(respond)
        }
    });
    let table = "bce = { credentials = { access_key = \"an-access-key\", secret_key = \"a secret\" } }";
    let configuration = format!(
        "server = {{ listen = [\"127.0.0.1:0\"], workers = 1 }}\nlimits.replay_body = \"4B\"\n[routes.up]\n\
         upstream = \"{}\"\ntls.ca = \"ca.pem\"\n{table}\n",
        upstream.url()
    );
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    let mut caller = caller(&daemon);
    let cases = [
        ("GET", "", "", None, None),
        ("GET", "TE: trailers, gzip\r\nConnection: TE, X-Hop\r\nX-Hop: 1\r\n", "", None, Some("trailers")),
        ("POST", "Content-Length: 0\r\n", "", Some("0"), None),
        ("POST", "Content-Length: 2\r\n", "ab", Some("2"), None),
        ("POST", "Content-Length: 6\r\n", "abcdef", Some("6"), None),
        ("PUT", "Transfer-Encoding: chunked\r\n", "2\r\nab\r\n4\r\ncdef\r\n0\r\n\r\n", None, None),
        ("PUT", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n", None, None),
        ("DELETE", "Keep-Alive: 1\r\nProxy-Connection: close\r\n", "", None, None),
        ("OPTIONS", "Upgrade-Insecure-Requests: 1\r\nCookie: a=b; c=d\r\n", "", None, None),
    ];
    for (method, headers, body, length, codings) in cases {
        caller.send(format!("{method} /a%20b//c/?x=%2f&y HTTP/1.1\r\nHost: up.localhost\r\n{headers}\r\n{body}"));
        assert_eq!(caller.reply().text(), "yes", "{method} {headers}");
        let (verdict, authority, seen, got) = hearing.recv_timeout(PATIENCE).unwrap();
        assert!(verdict.is_ok(), "{method} {headers}: {verdict:?}");
        assert_eq!(authority, upstream.address.to_string());
        let text = |name: &str| seen.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((text("content-length"), text("te")), (length, codings), "{method} {headers}");
        for name in ["host", "connection", "transfer-encoding", "keep-alive", "proxy-connection", "upgrade", "x-hop"] {
            assert_eq!(text(name), None, "{method} {headers}");
        }
        let is_empty = body.is_empty() || body.starts_with('0');
        assert_eq!(
            String::from_utf8(got).unwrap().len(),
            if is_empty {
                0
            } else if length == Some("2") {
                2
            } else {
                6
            }
        );
    }
    assert_eq!(upstream.connections(), 1);
}

/// What an upstream does with a request.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    /// Resets it.
    Reset(u32),
    /// Says that it will not look at it, and goes when all else is answered.
    GoAway,
    /// Says that the connection will be closed, but answers.
    LastAnswer,
    /// Ends the connection.
    Close,
    /// Resets it in the middle of its reply.
    Cut(u32),
    /// Sends something else than HTTP/2.
    Babble,
    /// Answers after interim replies.
    Hint,
}
use Act::{Answer, Babble, Close, Cut, GoAway, Hint, LastAnswer, Reset};

/// Plays the acts of each connection; those to which HTTP/1.1 was agreed on answer that it was.
fn acts(connections: &'static [&'static [Act]], heard: Arc<Mutex<Vec<Vec<u8>>>>) -> impl Fn(Conn) + Send + Sync {
    move |mut conn| {
        let index = conn.index;
        if conn.agreed().as_deref() != Some("h2") {
            return conn.serve("over HTTP/1.1");
        }
        let Some(mut frames) = Frames::begin(conn, &[]) else { return };
        for act in connections.get(index).copied().unwrap_or_default() {
            let Some((stream, body)) = frames.request() else { return };
            heard.lock().unwrap().push(body);
            match *act {
                Answer => frames.answer(stream, "yes"),
                Reset(reason) => frames.reset(stream, reason),
                GoAway => frames.go_away(stream.saturating_sub(2), 0),
                LastAnswer => frames.go_away(stream, 0) && frames.answer(stream, "yes"),
                Close => return frames.conn.close(),
                Cut(reason) => {
                    frames.send(HEADERS, END_HEADERS, stream, OK)
                        && frames.send(DATA, 0, stream, b"as far")
                        && frames.reset(stream, reason)
                }
                Babble => frames.conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
                Hint => {
                    (0..3).all(|_| frames.send(HEADERS, END_HEADERS, stream, EARLY_HINTS))
                        && frames.answer(stream, "yes")
                }
            };
        }
        while frames.next().is_some() {}
    }
}

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const HTTP_1_1_REQUIRED: u32 = 13;

#[test]
fn what_was_not_looked_at_goes_again_and_nothing_else_does() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: up.localhost\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: 2\r\n\r\nab";
    const STREAMED: &str =
        "POST / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    type Case = (&'static str, &'static [&'static [Act]], &'static str, Result<&'static str, &'static str>, usize);
    // How many requests of the second kind reach the upstream over HTTP/2 is the last column.
    let cases: &[Case] = &[
        ("refused", &[&[Reset(REFUSED_STREAM)], &[Answer]], POST, Ok("yes"), 2),
        ("refused on reuse", &[&[Answer, Reset(REFUSED_STREAM)], &[Answer]], POST, Ok("yes"), 2),
        ("refused twice", &[&[Reset(REFUSED_STREAM)], &[Reset(REFUSED_STREAM)]], POST, Err("REFUSED_STREAM"), 2),
        ("refused stream", &[&[Reset(REFUSED_STREAM)], &[Answer]], STREAMED, Err("REFUSED_STREAM"), 1),
        ("go away", &[&[GoAway], &[Answer]], POST, Ok("yes"), 2),
        ("go away on reuse", &[&[Answer, GoAway], &[Answer]], POST, Ok("yes"), 2),
        ("go away stream", &[&[GoAway], &[Answer]], STREAMED, Err("takes no more requests"), 1),
        ("go away before", &[&[LastAnswer], &[Answer]], STREAMED, Ok("yes"), 1),
        ("go away twice", &[&[GoAway], &[GoAway]], GET, Err("takes no more requests"), 2),
        ("http/1.1", &[&[Reset(HTTP_1_1_REQUIRED)]], POST, Ok("over HTTP/1.1"), 1),
        ("http/1.1 on reuse", &[&[Answer, Reset(HTTP_1_1_REQUIRED)]], POST, Ok("over HTTP/1.1"), 1),
        ("http/1.1 stream", &[&[Reset(HTTP_1_1_REQUIRED)]], STREAMED, Err("HTTP_1_1_REQUIRED"), 1),
        ("died", &[&[Close], &[Answer]], GET, Err("closed the connection"), 1),
        ("died on reuse", &[&[Answer, Close], &[Answer]], GET, Ok("yes"), 2),
        ("died on reuse twice", &[&[Answer, Close], &[Close]], GET, Err("closed the connection"), 2),
        ("died on reuse, POST", &[&[Answer, Close], &[Answer]], POST, Err("closed the connection"), 1),
        ("reset", &[&[Answer, Reset(INTERNAL_ERROR)], &[Answer]], GET, Err("INTERNAL_ERROR"), 1),
        ("no HTTP/2", &[&[Babble], &[Answer]], GET, Err("not HTTP/2"), 1),
        ("no HTTP/2 on reuse", &[&[Answer, Babble], &[Answer]], GET, Ok("yes"), 2),
        ("no HTTP/2 on reuse, POST", &[&[Answer, Babble], &[Answer]], POST, Err("not HTTP/2"), 1),
        ("interim", &[&[Hint]], GET, Ok("yes"), 1),
    ];
    let mut wrong = Vec::new();
    for (name, connections, asked, expected, times) in cases {
        let heard = Arc::<Mutex<Vec<_>>>::default();
        let (upstream, folder) = scripted(acts(connections, Arc::clone(&heard)));
        let daemon = daemon(&upstream.url(), folder, "", "");
        let mut caller = caller(&daemon);
        if matches!(connections[0][0], Answer | LastAnswer) {
            assert_eq!(caller.get("/").text(), "yes", "{name}");
        }
        let before = heard.lock().unwrap().len();
        caller.send(asked);
        let reply = caller.reply();
        let is_right = match expected {
            Ok(text) => reply.status == 200 && reply.text() == *text,
            Err(said) => {
                (reply.status, reply.code()) == (502, Some("upstream_protocol")) && reply.text().contains(said)
            }
        };
        let times_heard = heard.lock().unwrap().len() - before;
        if !is_right || times_heard != *times {
            wrong.push(format!("{name}: {} {:?}, heard {times_heard} times", reply.status, reply.text()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_upstream_that_wants_http_1_1_is_not_asked_for_more_again() {
    let heard = Arc::<Mutex<Vec<_>>>::default();
    let (upstream, folder) = scripted(acts(&[&[Reset(HTTP_1_1_REQUIRED)]], Arc::clone(&heard)));
    let daemon = daemon(&upstream.url(), folder, "", "");
    for _ in 0..3 {
        assert_eq!(caller(&daemon).get("/").text(), "over HTTP/1.1");
    }
    assert_eq!((upstream.connections(), heard.lock().unwrap().len()), (2, 1));
}

#[test]
fn a_reply_that_is_reset_is_cut_for_the_caller_too() {
    let connections: &[&[Act]] = &[&[Cut(INTERNAL_ERROR), Cut(CANCEL), Cut(NO_ERROR), Answer]];
    let (upstream, folder) = scripted(acts(connections, Arc::default()));
    let daemon = daemon(&upstream.url(), folder, "", "");
    for _ in 0..3 {
        let reply = caller(&daemon).get("/");
        assert_eq!((reply.status, reply.text().as_str(), reply.is_whole), (200, "as far", false));
    }
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    assert_eq!(upstream.connections(), 1, "the others' connection is none the worse for it");
}

#[test]
fn a_request_that_is_not_answered_ends_alone() {
    let (resets, reset) = mpsc::channel();
    let (upstream, folder) = scripted(move |conn| {
        let Some(mut frames) = Frames::begin(conn, &[]) else { return };
        for _ in 0..2 {
            frames.request().unwrap();
            resets.send(frames.next_of(RST_STREAM).unwrap().reason()).unwrap();
        }
        frames.serve("yes");
    });
    let daemon = daemon(&upstream.url(), folder, "", "timeouts.response = \"1s\"");
    for body in ["", "with a body"] {
        let began = Instant::now();
        let mut caller = caller(&daemon);
        caller.send(request("POST", "/", body));
        let message = caller.reply().expect(504, "upstream_timeout");
        assert!(message.contains("`timeouts.response`"), "{message}");
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), CANCEL);
    }
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_caller_that_leaves_ends_its_stream_alone() {
    let (resets, reset) = mpsc::channel();
    let (upstream, folder) = scripted(move |conn| {
        let Some(mut frames) = Frames::begin(conn, &[]) else { return };
        for is_begun in [false, true] {
            let (stream, _) = frames.request().unwrap();
            if is_begun {
                frames.send(HEADERS, END_HEADERS, stream, OK);
                frames.send(DATA, 0, stream, b"as far");
            }
            resets.send(None).unwrap();
            resets.send(frames.next_of(RST_STREAM).map(|frame| frame.reason())).unwrap();
        }
        frames.serve("yes");
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    for is_begun in [false, true] {
        let mut caller = caller(&daemon);
        caller.send(request("GET", "/", ""));
        assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), None);
        if is_begun {
            caller.head().unwrap();
        }
        drop(caller);
        assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), Some(CANCEL));
    }
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upload_that_finds_no_room_is_a_timeout() {
    let (resets, reset) = mpsc::channel();
    let (upstream, folder) = scripted(move |conn| {
        let Some(mut frames) = Frames::begin(conn, &[(INITIAL_WINDOW_SIZE, 0)]) else { return };
        frames.next_of(HEADERS).unwrap();
        resets.send(frames.next_of(RST_STREAM).unwrap().reason()).unwrap();
        while frames.next().is_some() {}
    });
    let daemon = daemon(&upstream.url(), folder, "", "timeouts = { response = \"off\", body = \"1s\" }");
    let mut caller = caller(&daemon);
    caller.send("POST / HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: 1000000\r\n\r\n");
    caller.send("x".repeat(200_000));
    let message = caller.reply().expect(504, "upstream_timeout");
    assert!(message.contains("`timeouts.body`"), "{message}");
    assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), CANCEL);
    assert!(caller.has_ended());
}

#[test]
fn an_upload_ends_soon_after_an_early_reply_that_nobody_reads_it_for() {
    let (resets, reset) = mpsc::channel();
    let (upstream, folder) = scripted(move |conn| {
        let Some(mut frames) = Frames::begin(conn, &[(INITIAL_WINDOW_SIZE, 0)]) else { return };
        for _ in 0..3 {
            let stream = frames.next_of(HEADERS).unwrap().stream;
            frames.send(HEADERS, END_HEADERS, stream, FORBIDDEN);
            frames.send(DATA, END_STREAM, stream, b"no!");
            resets.send(frames.next_of(RST_STREAM).unwrap().reason()).unwrap();
        }
        // The last one is told that it need not go on.
        let stream = frames.next_of(HEADERS).unwrap().stream;
        frames.send(HEADERS, END_HEADERS, stream, FORBIDDEN);
        frames.send(DATA, END_STREAM, stream, b"no!");
        frames.reset(stream, NO_ERROR);
        resets.send(CANCEL).unwrap();
        while frames.next().is_some() {}
    });
    let daemon = daemon(&upstream.url(), folder, "", "timeouts.body = \"1s\"");
    for (framing, start) in [
        ("Content-Length: 1000000", "some".to_owned()),
        ("Content-Length: 1000000", "x".repeat(200_000)),
        ("Transfer-Encoding: chunked", "4\r\nsome\r\n".to_owned()),
        ("Content-Length: 1000000", "some".to_owned()),
    ] {
        let mut caller = caller(&daemon);
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n{start}"));
        let reply = caller.reply();
        assert_eq!((reply.status, reply.text().as_str(), reply.is_whole), (403, "no!", true));
        assert_eq!(reset.recv_timeout(PATIENCE).unwrap(), CANCEL);
        assert!(caller.has_ended(), "the rest of the upload would be taken for a request");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upload_may_go_on_after_an_early_reply() {
    let (identity, folder) = identity();
    let (lengths, length) = mpsc::channel();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), move |mut request, respond| {
        let lengths = lengths.clone();
        async move {
            yes(respond)?;
            lengths.send(read(request.body_mut()).await?.len()).unwrap();
            Ok(())
        }
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    let mut caller = caller(&daemon);
    for (framing, start, rest, total) in [
        ("Content-Length: 100000", "x", "x".repeat(99_999), 100_000),
        ("Transfer-Encoding: chunked", "4\r\nsome\r\n", "4\r\nmore\r\n0\r\n\r\n".to_owned(), 8),
    ] {
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n{start}"));
        assert_eq!(caller.reply().text(), "yes");
        caller.send(rest);
        assert_eq!(length.recv_timeout(PATIENCE).unwrap(), total);
        assert_eq!(caller.get("/").text(), "yes");
        length.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn trailers_go_both_ways() {
    let (identity, folder) = identity();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), |mut request, mut respond| async move {
        let is_rpc = request.headers().get("te").is_some_and(|te| te == "trailers");
        assert_eq!(is_rpc, request.uri().path() == "/rpc");
        let body = read(request.body_mut()).await?;
        let trailers = request.body_mut().trailers().await?.unwrap_or_default();
        assert!(trailers.get("x-auth-token").is_none());
        let status = HeaderValue::from_static("5");
        if body.is_empty() {
            let mut response = Response::new(());
            response.headers_mut().insert("grpc-status", status);
            return respond.send_response(response, true).map(drop);
        }
        let mut response = Response::new(());
        response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status, x-heard"));
        let mut stream = respond.send_response(response, false)?;
        stream.send_data(Bytes::from(body), false)?;
        let mut answer = HeaderMap::new();
        answer.insert("grpc-status", status);
        answer.insert("x-heard", trailers.get("x-checksum").cloned().unwrap_or(HeaderValue::from_static("-")));
        answer.insert("x-countersign-error", HeaderValue::from_static("ours to say"));
        stream.send_trailers(answer)
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = daemon.address();
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut caller, connection) = h2::client::handshake(tcp).await.unwrap();
        tokio::spawn(connection);
        let call = || {
            let request = Request::post(format!("http://up.localhost:{}/rpc", address.port()));
            request.header("te", "trailers").body(()).unwrap()
        };
        // What has a length is held, what has none streams.
        for length in [None, Some("2")] {
            let mut request = call();
            if let Some(length) = length {
                request.headers_mut().insert("content-length", HeaderValue::from_static(length));
            }
            let (response, mut stream) = caller.send_request(request, false).unwrap();
            stream.send_data("ab".into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("7"));
            trailers.insert("x-auth-token", HeaderValue::from_static("mine"));
            stream.send_trailers(trailers).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read(&mut body).await.unwrap(), b"ab");
            let trailers = body.trailers().await.unwrap().unwrap();
            let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(["grpc-status", "x-heard", "x-countersign-error"].map(text), [Some("5"), Some("7"), None]);
        }
        // Nothing but trailers is a head that ends its stream.
        let (response, _) = caller.send_request(call(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers().get("grpc-status"), Some(&HeaderValue::from_static("5")));
        assert!(response.body().is_end_stream());
    });
    let mut caller = caller(&daemon);
    caller.send(
        "POST /rpc HTTP/1.1\r\nHost: up.localhost\r\nTE: trailers\r\nTrailer: X-Checksum\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Checksum: 7\r\nX-Auth-Token: mine\r\n\r\n",
    );
    let head = caller.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && header(&head, "transfer-encoding") == Some("chunked"), "{head}");
    let expected = "2\r\nab\r\n0\r\ngrpc-status: 5\r\nx-heard: 7\r\n\r\n";
    assert_eq!(String::from_utf8(caller.octets(expected.len()).unwrap()).unwrap(), expected);
    assert_eq!(caller.get("/").status, 200);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn replies_without_a_body_say_what_they_said() {
    let (identity, folder) = identity();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), |request, mut respond| async move {
        let (status, length) = match request.uri().path() {
            "/304" => (304, None),
            "/204" => (204, None),
            "/length" => (200, Some("0")),
            "/" => (200, Some("5")),
            _ => (200, None),
        };
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        respond.send_response(response.body(()).unwrap(), true).map(drop)
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    let mut caller = caller(&daemon);
    for (method, path, status, length) in [
        ("HEAD", "/", 200, Some("5")),
        ("GET", "/304", 304, None),
        ("GET", "/204", 204, None),
        ("GET", "/length", 200, Some("0")),
        ("GET", "/none", 200, Some("0")),
    ] {
        caller.send(request(method, path, ""));
        let reply = if method == "HEAD" { caller.reply_without_body() } else { caller.reply() };
        assert_eq!((reply.status, reply.header("content-length")), (status, length), "{method} {path}");
        assert_eq!((reply.text().as_str(), reply.header("transfer-encoding")), ("", None), "{method} {path}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn heads_may_be_large() {
    let (identity, folder) = identity();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), |request, mut respond| async move {
        let mut response = Response::new(());
        for (name, value) in request.headers().iter().filter(|(name, _)| name.as_str().starts_with("x-large-")) {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        if request.uri().path() == "/more" {
            response.headers_mut().insert("x-large-more", HeaderValue::from_str(&"y".repeat(10 << 10)).unwrap());
        }
        respond.send_response(response, true).map(drop)
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    let mut caller = caller(&daemon);
    let head = |path: &str| {
        let large = [0, 1, 2, 3].map(|n| format!("X-Large-{n}: {}\r\n", "x".repeat(15 << 10))).concat();
        format!("GET {path} HTTP/1.1\r\nHost: up.localhost\r\n{large}\r\n")
    };
    for _ in 0..2 {
        caller.send(head("/"));
        let reply = caller.reply();
        let length = |n: usize| reply.header(&format!("x-large-{n}")).map(str::len);
        assert_eq!((reply.status, [0, 1, 2, 3].map(length)), (200, [Some(15 << 10); 4]));
    }
    caller.send(head("/more"));
    let message = caller.reply().expect(502, "upstream_protocol");
    assert!(message.contains("`limits.header_bytes`"), "{message}");
    caller.send(head("/"));
    assert_eq!(caller.reply().status, 200);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn large_bodies_stream_both_ways_through_little_memory() {
    const OCTETS: usize = 10 << 20;
    let (identity, folder) = identity();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), |mut request, mut respond| async move {
        let (mut pattern, body) = (Pattern::new(), request.body_mut());
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            pattern.check(&data);
        }
        let mut response = Response::new(());
        response.headers_mut().insert("x-length", HeaderValue::from(pattern.at));
        if request.uri().path() == "/length" {
            response.headers_mut().insert("content-length", HeaderValue::from(OCTETS));
        }
        let mut stream = respond.send_response(response, false)?;
        let mut pattern = Pattern::new();
        while pattern.at < OCTETS {
            let piece = Bytes::copy_from_slice(pattern.next(OCTETS - pattern.at));
            let is_last = pattern.at == OCTETS;
            write(&mut stream, piece, is_last).await?;
        }
        Ok(())
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    let before = peak_memory(&daemon);
    for (method, path, framing) in [("GET", "/length", Framing::Length(OCTETS)), ("PUT", "/", Framing::Chunked)] {
        let mut caller = caller(&daemon);
        caller.send(format!("{method} {path} HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: {OCTETS}\r\n\r\n"));
        let mut pattern = Pattern::new();
        while pattern.at < OCTETS {
            let piece = pattern.next(OCTETS - pattern.at).to_vec();
            caller.send(piece);
        }
        let head = caller.head().unwrap();
        assert_eq!(header(&head, "x-length"), Some(OCTETS.to_string().as_str()), "{head}");
        assert_eq!(header(&head, "content-length").is_some(), path == "/length", "{head}");
        let mut pattern = Pattern::new();
        assert!(caller.drain(framing, |piece| pattern.check(piece)));
        assert_eq!(pattern.at, OCTETS);
    }
    let grown = peak_memory(&daemon) - before;
    assert!(grown < 6 << 10, "memory grew by {grown} KiB");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn replies_that_nobody_reads_take_little_memory_and_hold_up_nobody() {
    let (identity, folder) = identity();
    let upstream = Polite::start(&identity, h2::server::Builder::new(), |request, mut respond| async move {
        if request.uri().path() == "/" {
            return yes(respond);
        }
        let mut stream = respond.send_response(Response::new(()), false)?;
        loop {
            write(&mut stream, Bytes::from(vec![b'x'; 64 << 10]), false).await?;
        }
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    let before = peak_memory(&daemon);
    let mut unread = Vec::new();
    for count in [7, 100] {
        while unread.len() < count {
            let mut caller = caller(&daemon);
            caller.send(request("GET", "/endless", ""));
            unread.push(caller);
        }
        for caller in &mut unread {
            assert!(caller.head().is_some());
        }
        // Until no more fits into any buffer.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(caller(&daemon).get("/").text(), "yes");
        unread.clear();
    }
    let grown = peak_memory(&daemon) - before;
    assert!(grown < 16 << 10, "memory grew by {grown} KiB");
}

#[test]
fn idle_connections_are_closed_in_time() {
    let (ends, ended) = mpsc::channel();
    let (upstream, folder) = scripted(move |conn| {
        let Some(mut frames) = Frames::begin(conn, &[]) else { return };
        while let Some(frame) = frames.next() {
            match frame.kind {
                HEADERS => drop(frames.answer(frame.stream, "yes")),
                GOAWAY => ends.send(()).unwrap(),
                _ => {}
            }
        }
        ends.send(()).unwrap();
    });
    let daemon = daemon(&upstream.url(), folder, "", "timeouts.pool_idle = \"100ms\"");
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    for _ in ["a farewell", "the end"] {
        ended.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(caller(&daemon).get("/").text(), "yes");
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn http_1_1_is_spoken_where_http_2_has_no_place() {
    let authority = Authority::new("a test CA").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let client = authority.client("somebody").unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", authority.pem());
    write("cert.pem", client.certificate_pem());
    write("key.pem", client.key_pem(KeyFormat::Pkcs8));
    let script = |mut conn: Conn| match conn.agreed().as_deref() {
        Some("h2") => Frames::begin(conn, &[]).unwrap().serve("HTTP/2"),
        Some("http/1.1") => {
            while let Some((head, _)) = conn.request() {
                if header(&head, "upgrade").is_some() {
                    conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello");
                    return conn.await_end();
                }
                conn.ok("HTTP/1.1");
            }
        }
        agreed => panic!("{agreed:?}"),
    };
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let upstream = Upstream::start_tls(offering(server_config(&identity), &["h2", "http/1.1"]), script);
    let only = Upstream::start_tls(offering(server_config(&identity), &["http/1.1"]), script);
    let tls = "tls = { ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\" }";
    let (url, only_url) = (upstream.url(), only.url());
    let configuration = format!(
        "server = {{ listen = [\"127.0.0.1:0\"], workers = 1 }}\n\
         [routes.up]\nupstream = \"{url}\"\n{tls}\nheader.headers = {{ X-Auth-Token = \"t\" }}\n\
         [routes.only]\nupstream = \"{only_url}\"\n{tls}\nheader.headers = {{ X-Auth-Token = \"t\" }}\n\
         [routes.cluster]\nupstream = \"{url}\"\n{tls}\nmtls = {{}}\n"
    );
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    for round in 0..2 {
        let mut caller = caller(&daemon);
        for (route, spoken) in [("up", "HTTP/2"), ("only", "HTTP/1.1"), ("cluster", "HTTP/1.1")] {
            caller.send(format!("GET / HTTP/1.1\r\nHost: {route}.localhost\r\n\r\n"));
            assert_eq!(caller.reply().text(), spoken, "{route}");
        }
        assert_eq!((upstream.connections(), only.connections()), (2 + round, 1));
        caller.send("GET / HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        assert!(caller.head().unwrap().starts_with("HTTP/1.1 101 "));
        assert_eq!(caller.octets(5).unwrap(), b"hello");
    }
}

#[test]
fn a_server_that_wants_a_certificate_is_named_over_http_2_too() {
    let authority = Authority::new("a test CA").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config =
        builder.with_client_cert_verifier(clients).with_single_cert(vec![identity.certificate()], identity.key());
    let upstream = Upstream::start_tls(offering(config.unwrap(), &["h2"]), |mut conn| {
        conn.agreed();
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), folder, "", "");
    for method in ["GET", "POST"] {
        let mut caller = caller(&daemon);
        caller.send(request(method, "/", "body"));
        let message = caller.reply().expect(502, "upstream_tls");
        assert!(message.contains("client certificate"), "{message}");
    }
}

#[test]
fn a_server_that_says_nothing_keeps_nobody_waiting_for_its_connection() {
    let (upstream, folder) = scripted(|conn| {
        let Some(mut frames) = Frames::begin_silently(conn) else { return };
        while frames.next().is_some() {}
    });
    let daemon = daemon(&upstream.url(), folder, "", "timeouts = { connect = \"2s\", response = \"2s\" }");
    let replies = at_once(&daemon, 3, |mut caller| caller.get("/").expect(504, "upstream_timeout"));
    assert_eq!(replies.iter().filter(|message| message.contains("`timeouts.response`")).count(), 1, "{replies:?}");
    assert_eq!(replies.iter().filter(|message| message.contains("`timeouts.connect`")).count(), 2, "{replies:?}");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_that_cannot_be_reached_is_told_to_everybody_who_waits() {
    let (identity, folder) = identity();
    let refusing = Upstream::start_tls(offering(server_config(&identity), &["spdy/3"]), |mut conn| {
        conn.agreed();
    });
    let daemon = daemon(&refusing.url(), folder, "", "");
    for _ in 0..2 {
        let replies = at_once(&daemon, 8, |mut caller| caller.get("/").expect(502, "upstream_tls"));
        assert!(replies.iter().all(|message| message.contains("HTTP/1.1")), "{replies:?}");
    }
}

/// Does with each request what it likes, but answers the first two of a connection.
fn whimsical(delivered: Delivered) -> impl Fn(Conn) + Send + Sync {
    let seed = AtomicU64::new(1);
    move |conn| {
        let mut chance = Chance(seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed));
        let Some(mut frames) = Frames::begin(conn, &[(MAX_CONCURRENT_STREAMS, 2)]) else { return };
        for count in 0.. {
            let Some((stream, body)) = frames.request() else { return };
            let is_kind = count < 2;
            if !is_kind && chance.one_in(12) {
                frames.reset(stream, REFUSED_STREAM);
                continue;
            }
            if !is_kind && chance.one_in(12) {
                frames.go_away(stream.saturating_sub(2), 0);
                while frames.next().is_some() {}
                return;
            }
            if let Some(id) = body.strip_prefix(b"POST ") {
                *delivered.lock().unwrap().entry(String::from_utf8(id.to_vec()).unwrap()).or_default() += 1;
            }
            if !is_kind && chance.one_in(12) {
                return if chance.one_in(2) { frames.conn.close() } else { frames.conn.reset() };
            }
            if !frames.answer(stream, "yes") {
                return;
            }
        }
    }
}

#[test]
fn no_write_is_doubled_whatever_the_upstream_does() {
    const CALLERS: usize = 6;
    const ROUNDS: usize = 150;
    let delivered = Delivered::default();
    let (upstream, folder) = scripted(whimsical(Arc::clone(&delivered)));
    let daemon = daemon(&upstream.url(), folder, "log.access = false", "");
    let number = AtomicUsize::new(0);
    let refused: usize = at_once(&daemon, CALLERS, |mut caller| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let mut refused = 0;
        for round in 0..ROUNDS {
            let method = if round % 3 == 0 { "POST" } else { "GET" };
            caller.send(request(method, "/", &format!("{method} {number}/{round}")));
            let reply = caller.reply();
            if reply.status != 200 {
                reply.expect(502, "upstream_protocol");
                refused += 1;
            }
        }
        refused
    })
    .into_iter()
    .sum();
    let delivered = delivered.lock().unwrap();
    let total = CALLERS * ROUNDS / 3;
    assert!(delivered.values().all(|times| *times == 1), "a POST was delivered twice");
    assert!(delivered.len() + refused >= total, "{} of {total} arrived, {refused} were refused", delivered.len());
    assert!(refused < CALLERS * ROUNDS / 8, "{refused} were refused");
    assert!(upstream.connections() > ROUNDS / 10, "too few connections died");
}
