//! Callers that speak HTTP/2 with prior knowledge.

use std::future::{Future, poll_fn};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::task::JoinHandle;

use super::daemon;
use super::script::{Upstream, header};
use super::told::{IN_JSON, assert_tells, told};
use crate::daemon::{Daemon, PATIENCE};

/// A caller's connection, and how it ended.
struct Caller {
    sender: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Caller {
    async fn connect(daemon: &Daemon) -> Self {
        Self::with(daemon, &mut h2::client::Builder::new()).await
    }

    async fn with(daemon: &Daemon, builder: &mut h2::client::Builder) -> Self {
        let stream = tokio::net::TcpStream::connect(daemon.address()).await.unwrap();
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    async fn send(&mut self, request: Request<()>, is_whole: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let sender = self.sender.clone();
        self.sender = soon(sender.ready()).await.unwrap();
        self.sender.send_request(request, is_whole).unwrap()
    }

    async fn ask(&mut self, request: Request<()>) -> (Response<()>, Result<Vec<u8>, h2::Error>, Option<HeaderMap>) {
        let (response, _) = self.send(request, true).await;
        read(soon(response).await.unwrap()).await
    }

    async fn get(&mut self, path: &str) -> (StatusCode, String) {
        let (response, body, _) = self.ask(get(path)).await;
        (response.status(), String::from_utf8(body.unwrap()).unwrap())
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://up.localhost{path}")).body(()).unwrap()
}

/// What is expected to happen, or a failure.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("waited in vain")
}

/// A reply's head, its body or what cut it, and its trailers.
async fn read(response: Response<RecvStream>) -> (Response<()>, Result<Vec<u8>, h2::Error>, Option<HeaderMap>) {
    let (head, mut body) = response.into_parts();
    let mut octets = Vec::new();
    while let Some(piece) = soon(body.data()).await {
        match piece {
            Ok(piece) => {
                body.flow_control().release_capacity(piece.len()).unwrap();
                octets.extend_from_slice(&piece);
            }
            Err(error) => return (Response::from_parts(head, ()), Err(error), None),
        }
    }
    let trailers = soon(body.trailers()).await.unwrap();
    (Response::from_parts(head, ()), Ok(octets), trailers)
}

/// Answers with the request as it came.
fn mirror() -> Upstream {
    Upstream::start(|mut conn| {
        while let Some((head, body)) = conn.request() {
            conn.ok([head.as_bytes(), &body].concat());
        }
    })
}

#[tokio::test]
async fn a_request_goes_on_as_one_of_http_1_with_everything_that_belongs_to_it() {
    let upstream = mirror();
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let request = Request::post("http://up.localhost/a/b%20c?d=e")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x-auth-token", "forged")
        .header("x-own", "kept")
        .header("content-length", "11");
    let (response, mut body) = caller.send(request.body(()).unwrap(), false).await;
    body.send_data("hello ".into(), false).unwrap();
    body.send_data("world".into(), true).unwrap();
    let (response, body, _) = read(soon(response).await.unwrap()).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("x-countersign-request-id"), "{response:?}");
    let seen = String::from_utf8(body.unwrap()).unwrap();
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    assert_eq!((head.lines().next().unwrap(), body), ("POST /a/b%20c?d=e HTTP/1.1", "hello world"));
    let mut lines: Vec<_> = head.lines().skip(1).map(str::to_ascii_lowercase).collect();
    lines.sort_unstable();
    let host = format!("host: {}", upstream.address);
    let mut expected = [
        "connection: te",
        "content-length: 11",
        "cookie: a=1; b=2",
        &host,
        "te: trailers",
        "x-auth-token: the token",
        "x-own: kept",
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let upstream = Upstream::start(|mut conn| {
        let head = conn.head().unwrap();
        assert_eq!(header(&head, "trailer"), Some("x-sum"), "{head}");
        let mut octets = Vec::new();
        while !octets.ends_with(b"\r\n\r\n") {
            octets.extend(conn.octets(1).unwrap());
        }
        let shown = String::from_utf8(octets).unwrap().replace("\r\n", "|").to_ascii_lowercase();
        let length = shown.len();
        conn.send(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             {length:x}\r\n{shown}\r\n0\r\nX-Sum: 7\r\nX-Countersign-Error: forged\r\n\r\n"
        ));
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let request = Request::post("http://up.localhost/").header("trailer", "x-sum").body(()).unwrap();
    let (response, mut body) = caller.send(request, false).await;
    body.send_data("abc".into(), false).unwrap();
    let trailers = [("x-sum", "5"), ("x-auth-token", "forged")];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
    body.send_trailers(trailers.into_iter().collect()).unwrap();
    let (response, body, trailers) = read(soon(response).await.unwrap()).await;
    assert_eq!(response.headers()["trailer"], "X-Sum");
    assert_eq!(String::from_utf8(body.unwrap()).unwrap(), "3|abc|0|x-sum: 5||");
    let trailers = trailers.unwrap();
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("7")));
}

#[tokio::test]
async fn requests_share_a_connection_and_wait_for_nobody() {
    let (sender, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("GET /slow ") {
                gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            conn.ok(head.split(' ').nth(1).unwrap());
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let (slow, _) = caller.send(get("/slow"), true).await;
    let mut others = Vec::new();
    for index in 0..100 {
        others.push(caller.send(get(&format!("/{index}")), true).await.0);
    }
    for (index, response) in others.into_iter().enumerate() {
        let (_, body, _) = read(soon(response).await.unwrap()).await;
        assert_eq!(body.unwrap(), format!("/{index}").as_bytes());
    }
    sender.send(()).unwrap();
    assert_eq!(read(soon(slow).await.unwrap()).await.1.unwrap(), b"/slow");
    assert!(!caller.connection.is_finished());
}

#[tokio::test]
async fn an_authority_is_wanted_and_only_one() {
    let upstream = mirror();
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let port = daemon.address().port();
    for (authority, host, path, expected) in [
        ("up.localhost", None, "/", Ok("GET / ")),
        ("UP.localhost.:80", None, "/?x", Ok("GET /?x ")),
        (&format!("up.localhost:{port}"), Some("up.localhost"), "/", Err((400, "bad_request"))),
        ("up.localhost", Some("up.localhost:80"), "/", Ok("GET / ")),
        ("up.localhost", Some("evil.example"), "/", Err((400, "bad_request"))),
        (&format!("127.0.0.1:{port}"), None, "/up/a", Ok("GET /a ")),
        ("127.0.0.1", None, "/nobody/a", Err((421, "unknown_host"))),
        ("evil.example", None, "/up/a", Err((421, "unknown_host"))),
        ("user@up.localhost", None, "/", Err((400, "bad_request"))),
    ] {
        let mut request = Request::get(format!("http://{authority}{path}"));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let (response, body, _) = caller.ask(request.body(()).unwrap()).await;
        let body = String::from_utf8(body.unwrap()).unwrap();
        match expected {
            Ok(start) => assert!(response.status() == 200 && body.starts_with(start), "{authority} {host:?}: {body}"),
            Err((status, code)) => {
                assert_eq!(response.status(), status, "{authority} {host:?}: {body}");
                assert_eq!(response.headers()["x-countersign-error"], code, "{authority} {host:?}");
            }
        }
    }
}

#[tokio::test]
async fn large_heads_pass_up_to_the_limit() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let token = header(&head, "x-large").unwrap().to_owned();
            conn.send(format!("HTTP/1.1 200 OK\r\nX-Token: {token}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    for (size, status) in [(16 << 10, 200), (60 << 10, 200), (70 << 10, 431), (200, 200)] {
        let value = "x".repeat(size);
        let mut request = get("/");
        request.headers_mut().insert("x-large", value.parse().unwrap());
        let (response, ..) = caller.ask(request).await;
        assert_eq!(response.status(), status, "{size}");
        assert_eq!(response.headers().get("x-token").map(HeaderValue::len), (status == 200).then_some(size));
    }
}

#[tokio::test]
async fn a_cut_reply_is_reset_after_what_came_before_it() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("GET /whole ") {
                conn.ok("whole");
                continue;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
            conn.send("x".repeat(50_000));
            return if head.starts_with("GET /reset ") { conn.reset() } else { conn.close() };
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    for path in ["/close", "/reset"] {
        let (response, _) = caller.send(get(path), true).await;
        let mut body = soon(response).await.unwrap().into_body();
        let (mut octets, mut cut) = (0, None);
        while let Some(piece) = soon(body.data()).await {
            match piece {
                Ok(piece) => {
                    octets += piece.len();
                    body.flow_control().release_capacity(piece.len()).unwrap();
                }
                Err(error) => {
                    cut = Some(error);
                    break;
                }
            }
        }
        assert!(cut.is_some_and(|cut| cut.is_reset()), "{path}");
        // A reset may overtake what the kernel still held.
        assert!(octets == 50_000 || path == "/reset", "{path}: {octets}");
    }
    assert_eq!(caller.get("/whole").await, (StatusCode::OK, "whole".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_not_read_is_reset_and_the_others_go_on() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("GET /small ") {
                conn.ok("small");
            } else {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
                while conn.send(vec![b'x'; 64 << 10]) {}
                return conn.await_end();
            }
        }
    });
    let daemon = daemon(&upstream.url(), "", "timeouts.body = \"1s\"");
    // With room for others in the connection's window.
    let mut builder = h2::client::Builder::new();
    let mut caller = Caller::with(&daemon, builder.initial_connection_window_size(1 << 20)).await;
    let (response, _) = caller.send(get("/large"), true).await;
    let mut unread = soon(response).await.unwrap().into_body();
    upstream.await_end(0);
    assert_eq!(caller.get("/small").await, (StatusCode::OK, "small".to_owned()));
    let error = loop {
        match soon(unread.data()).await.expect("an end that is none") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL), "{error}");
    // One that is not read at all, not even its first octet.
    let mut closed = Caller::with(&daemon, builder.initial_window_size(0)).await;
    let (response, _) = closed.send(get("/small"), true).await;
    let mut unread = soon(response).await.unwrap().into_body();
    assert!(soon(unread.data()).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_resets_its_request_cancels_it_upstream() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let (response, mut stream) = caller.send(get("/"), true).await;
    upstream.await_connections(1);
    stream.send_reset(Reason::CANCEL);
    drop(response);
    upstream.await_end(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_reset_never_passes_for_a_whole_one() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let upstream = Upstream::start(move |mut conn| {
        let head = conn.head().unwrap();
        conn.octets(8).unwrap();
        if head.starts_with("POST /early ") {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        }
        sender.lock().unwrap().send("began").unwrap();
        let is_whole = conn.body(&head).is_some();
        sender.lock().unwrap().send(if is_whole { "whole" } else { "cut" }).unwrap();
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    for (path, reason) in ["/", "/early"]
        .iter()
        .flat_map(|path| [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR].map(|reason| (path, reason)))
    {
        let request = Request::post(format!("http://up.localhost{path}")).body(()).unwrap();
        let (response, mut body) = caller.send(request, false).await;
        body.send_data("abc".into(), false).unwrap();
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), "began");
        let _response = if *path == "/early" { Ok(soon(response).await.unwrap()) } else { Err(response) };
        body.send_reset(reason);
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), "cut", "{path} {reason}");
    }
}

#[tokio::test]
async fn a_flood_of_resets_is_survived() {
    let upstream = mirror();
    let daemon = daemon(&upstream.url(), "", "");
    let before = resident(&daemon);
    let mut floods = Vec::new();
    for _ in 0..4 {
        let caller = Caller::connect(&daemon).await;
        floods.push(tokio::spawn(async move {
            for _ in 0..5000 {
                let Ok(mut sender) = caller.sender.clone().ready().await else { return };
                let Ok((_, mut stream)) = sender.send_request(get("/"), true) else { return };
                stream.send_reset(Reason::CANCEL);
                tokio::task::yield_now().await;
            }
        }));
    }
    let mut honest = Caller::connect(&daemon).await;
    for _ in 0..50 {
        assert_eq!(honest.get("/").await.0, 200);
    }
    for flood in floods {
        soon(flood).await.unwrap();
    }
    assert_eq!(honest.get("/").await.0, 200);
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < 32 << 20, "grown by {grown} octets");
}

/// What of a daemon is in memory, in octets.
fn resident(daemon: &Daemon) -> usize {
    let pages = std::fs::read_to_string(format!("/proc/{}/statm", daemon.pid())).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn an_upload_goes_no_faster_than_the_upstream_reads() {
    let (sender, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |mut conn| {
        let head = conn.head().unwrap();
        gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        let body = conn.body(&head).unwrap();
        conn.ok(body.len().to_string());
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let request = Request::post("http://up.localhost/").body(()).unwrap();
    let (response, mut body) = caller.send(request, false).await;
    let mut sent = 0;
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let total = 64 << 20;
    while sent < total {
        body.reserve_capacity(piece.len());
        let capacity = tokio::time::timeout(Duration::from_millis(500), poll_fn(|cx| body.poll_capacity(cx))).await;
        if let Ok(capacity) = capacity {
            let size = capacity.unwrap().unwrap().min(piece.len());
            body.send_data(piece.slice(..size), false).unwrap();
            sent += size;
        } else {
            // What has been taken is in the kernel's buffers, but for the window.
            assert!(sent < 24 << 20, "{sent} octets were taken although nobody read them");
            sender.send(()).unwrap();
            break;
        }
    }
    assert!(sent < total, "everything was taken although nobody read it");
    body.send_data(Bytes::new(), true).unwrap();
    let (_, answer, _) = read(soon(response).await.unwrap()).await;
    assert_eq!(answer.unwrap(), sent.to_string().as_bytes());
}

#[tokio::test]
async fn an_idle_connection_is_told_to_leave_and_a_busy_one_is_not() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("GET /slow ") {
                std::thread::sleep(Duration::from_millis(1500));
            }
            conn.ok("done");
        }
    });
    let daemon = daemon(&upstream.url(), "limits.idle_timeout = \"1s\"\nlimits.header_timeout = \"1s\"", "");
    let mut caller = Caller::connect(&daemon).await;
    assert_eq!(caller.get("/slow").await.1, "done");
    // The goodbye is in order: no reset, no error.
    soon(caller.connection).await.unwrap().unwrap();
    let silent = Caller::connect(&daemon).await;
    soon(silent.connection).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_what_is_in_flight() {
    let (sender, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        conn.ok("in time");
    });
    let mut daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let (response, _) = caller.send(get("/"), true).await;
    upstream.await_connections(1);
    daemon.signal(Signal::SIGTERM);
    sender.send(()).unwrap();
    assert_eq!(read(soon(response).await.unwrap()).await.1.unwrap(), b"in time");
    soon(caller.connection).await.unwrap().unwrap();
    assert!(daemon.wait().success());
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_told_to_leave() {
    let upstream = mirror();
    let daemon = daemon(&upstream.url(), "limits.connections = 1", "");
    let mut first = Caller::connect(&daemon).await;
    assert_eq!(first.get("/").await.0, 200);
    let mut second = Caller::connect(&daemon).await;
    let (response, ..) = second.ask(get("/")).await;
    assert_eq!(
        (response.status(), &response.headers()["x-countersign-error"]),
        (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from_static("overloaded"))
    );
    soon(second.connection).await.unwrap().unwrap();
    assert_eq!(first.get("/").await.0, 200);
}

#[tokio::test]
async fn a_length_that_is_not_one_number_goes_no_further() {
    let upstream = mirror();
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = Caller::connect(&daemon).await;
    let request = Request::post("http://up.localhost/").header("content-length", "").body(()).unwrap();
    let (response, ..) = caller.ask(request).await;
    assert_eq!(
        (response.status(), &response.headers()["x-countersign-error"]),
        (StatusCode::BAD_REQUEST, &"bad_request".parse().unwrap())
    );
    assert_eq!(upstream.connections(), 0);
    let twice = Request::post("http://up.localhost/").header("content-length", "0").header("content-length", "0");
    let (response, body, _) = caller.ask(twice.body(()).unwrap()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(String::from_utf8(body.unwrap()).unwrap().matches("content-length").count(), 1);
}

#[tokio::test]
async fn each_of_the_requests_that_share_a_connection_is_told() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let daemon = daemon(&upstream.url(), IN_JSON, "");
    let mut caller = Caller::connect(&daemon).await;
    caller.get("/a").await;
    let request = Request::post("http://up.localhost/b").body(()).unwrap();
    let (response, mut body) = caller.send(request, false).await;
    body.send_data("12345".into(), true).unwrap();
    read(soon(response).await.unwrap()).await.1.unwrap();
    let lines = told(&daemon, 2);
    assert_tells(&lines[0], &json!({ "path": "/a", "method": "GET", "status": 200, "in": 0, "out": 5 }));
    assert_tells(&lines[1], &json!({ "path": "/b", "method": "POST", "status": 200, "in": 5, "out": 5 }));
    assert!(lines.iter().all(|line| line.get("cut").is_none()), "{lines:#?}");
}
