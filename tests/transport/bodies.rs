//! Bodies in both directions: whole, or visibly not.

use std::io::Write;
use std::sync::mpsc;
use std::time::Instant;

use super::script::{Conn, Framing, Http, Upstream, await_that, header, request};
use super::{caller, configuration, daemon, secure_upstream};
use crate::daemon::{Daemon, PATIENCE};

/// Answers with what the request was: its target, its framing and its body.
fn echo(mut conn: Conn) {
    while let Some((head, body)) = conn.request() {
        let length = header(&head, "content-length").unwrap_or("-");
        let coding = header(&head, "transfer-encoding").unwrap_or("-");
        let body = String::from_utf8(body).unwrap();
        conn.ok(format!("{} {length} {coding} {body}", head.split(' ').next().unwrap()));
    }
}

/// Answers the request for `/n` with the nth of some octets, and ends the connection where that is all there is to come.
fn answers(octets: &'static [&'static str]) -> impl Fn(Conn) + Send + Sync + 'static {
    move |mut conn| {
        while let Some((head, _)) = conn.request() {
            let index = head.split(' ').nth(1).and_then(|path| path.strip_prefix('/')?.parse().ok());
            let octets = octets[index.unwrap_or(0)];
            conn.send(octets);
            if !octets.ends_with('.') {
                return conn.close();
            }
        }
    }
}

#[test]
fn a_request_reaches_the_upstream_framed_as_it_was() {
    let upstream = Upstream::start(echo);
    let daemon = daemon(&upstream.url(), "limits.replay_body = \"4B\"", "");
    let mut caller = caller(&daemon);
    for (method, framed, expected) in [
        ("GET", "\r\n", "GET - - "),
        ("GET", "Content-Length: 3\r\n\r\nabc", "GET 3 - abc"),
        ("GET", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "GET - chunked abc"),
        ("GET", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4;x=y\r\ncdef\r\n0\r\n\r\n", "GET - chunked abcdef"),
        ("DELETE", "Content-Length: 9\r\n\r\ntoo large", "DELETE 9 - too large"),
        ("DELETE", "\r\n", "DELETE - - "),
        ("OPTIONS", "Content-Length: 2\r\n\r\nab", "OPTIONS 2 - ab"),
        ("POST", "Content-Length: 0\r\n\r\n", "POST 0 - "),
        ("POST", "Content-Length: 3\r\n\r\nabc", "POST 3 - abc"),
        ("POST", "Content-Length: 9\r\n\r\ntoo large", "POST 9 - too large"),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "POST - chunked abc"),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "POST - chunked "),
        ("PUT", "Transfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\nX-Trailer: y\r\n\r\n", "PUT - chunked x"),
    ] {
        caller.send(format!("{method} / HTTP/1.1\r\nHost: up.localhost\r\n{framed}"));
        let reply = caller.reply();
        assert_eq!((reply.status, reply.text().as_str()), (200, expected), "{method} {framed:?}");
    }
    let old = "POST / HTTP/1.0\r\nHost: up.localhost\r\nContent-Length: 3\r\n\r\nabc";
    let reply = Http::new(daemon.exchange(old).as_bytes()).reply();
    assert_eq!(reply.text(), "POST 3 - abc");
}

#[test]
fn a_reply_reaches_the_caller_whole_whatever_its_framing() {
    const REPLIES: [&str; 7] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlength",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "HTTP/1.0 200 OK\r\n\r\nold",
        "HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nold",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    let upstream = Upstream::start(answers(&REPLIES));
    let daemon = daemon(&upstream.url(), "", "");
    let mut modern = caller(&daemon);
    for (index, body) in ["length", "chunked", "until the end", "old", "old", "", ""].into_iter().enumerate() {
        let reply = modern.get(&format!("/{index}"));
        assert!(reply.is_whole, "{index}");
        assert_eq!((reply.status, reply.text().as_str()), (200, body), "{index}");
        assert_eq!(reply.header("content-length").is_some(), matches!(index, 0 | 4 | 5), "{index}: {}", reply.head);

        let mut old = caller(&daemon);
        old.send(format!("GET /{index} HTTP/1.0\r\nHost: up.localhost\r\n\r\n"));
        let reply = old.reply();
        assert!(reply.is_whole && old.has_ended(), "{index}");
        assert_eq!((reply.status, reply.text().as_str()), (200, body), "{index}");
        assert_eq!(reply.header("transfer-encoding"), None, "{index}");
    }
}

#[test]
fn replies_without_a_body_keep_the_connection() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            conn.send(match head.split(' ').nth(1).unwrap() {
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            });
        }
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    for _ in 0..3 {
        caller.send(request("HEAD", "/", ""));
        let reply = caller.reply_without_body();
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("5")));
        let reply = caller.get("/304");
        assert_eq!((reply.status, reply.header("etag")), (304, Some("\"x\"")));
        let reply = caller.get("/204");
        assert_eq!(
            (reply.status, reply.header("content-length"), reply.header("transfer-encoding")),
            (204, None, None)
        );
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn what_follows_a_reply_unasked_is_nobodys_reply() {
    const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let upstream = Upstream::start(|mut conn| {
        let (head, _) = conn.request().unwrap();
        conn.send(match head.split(' ').nth(1).unwrap() {
            "/head" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()),
            "/204" => format!("HTTP/1.1 204 No Content\r\n\r\n{SMUGGLED}"),
            "/304" => format!("HTTP/1.1 304 Not Modified\r\n\r\n{SMUGGLED}"),
            "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{SMUGGLED}"),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmy".to_owned(),
        });
        conn.serve("my");
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    for path in ["/204", "/304", "/length", "/head"] {
        for _ in 0..5 {
            caller.send(request(if path == "/head" { "HEAD" } else { "GET" }, path, ""));
            let reply = if path == "/head" { caller.reply_without_body() } else { caller.reply() };
            assert_ne!(reply.text(), "smuggled", "{path}");
            assert_eq!(caller.get("/").text(), "my", "{path}");
        }
    }
}

#[test]
fn a_reply_may_come_before_the_upload_has_ended() {
    let upstream = Upstream::start(|mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!");
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.body = "1s""#);
    let uploads =
        [("Content-Length: 100000", "some", "*"), ("Transfer-Encoding: chunked", "4\r\nsome\r\n", "1\r\n*\r\n")];
    for (connection, (framing, start, more)) in uploads.into_iter().enumerate() {
        let mut caller = caller(&daemon);
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n{start}"));
        let reply = caller.reply();
        assert!(reply.is_whole);
        assert_eq!((reply.status, reply.text().as_str()), (403, "no!"));
        caller.send(more);
        assert!(caller.has_ended(), "the rest of the upload would be taken for a request");
        upstream.await_end(connection);
    }
}

#[test]
fn an_upload_may_go_on_after_the_reply() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(head) = conn.head() {
            conn.ok("early");
            assert!(conn.body(&head).is_some());
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    for (framing, start, rest) in [
        ("Content-Length: 100000", "x", "x".repeat(99_999)),
        ("Transfer-Encoding: chunked", "4\r\nsome\r\n", "4\r\nmore\r\n0\r\n\r\n".to_owned()),
    ] {
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n{start}"));
        assert_eq!(caller.reply().text(), "early");
        caller.send(rest);
        assert_eq!(caller.get("/").text(), "early");
    }
}

#[test]
fn both_bodies_flow_at_the_same_time() {
    let upstream = Upstream::start(|mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        loop {
            let mut piece = Vec::new();
            assert!(conn.chunk(|octets| piece.extend_from_slice(octets)));
            if piece.is_empty() {
                break;
            }
            conn.send([b"2\r\n", piece.as_slice(), b"\r\n"].concat());
        }
        conn.send("0\r\n\r\n");
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    caller.send("POST / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert!(caller.head().unwrap().starts_with("HTTP/1.1 200 "));
    for round in 0..20 {
        caller.send(format!("2\r\n{round:02}\r\n"));
        let mut got = Vec::new();
        assert!(caller.chunk(|piece| got.extend_from_slice(piece)));
        assert_eq!(String::from_utf8(got).unwrap(), format!("{round:02}"));
    }
    caller.send("0\r\n\r\n");
    assert!(caller.chunk(|_| panic!("nothing more was sent")));
}

const LARGE: usize = 64 << 20;

/// What the process has had in memory at most, in KiB.
pub(super) fn peak_memory(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Octets that repeat only after a prime number of them, so that a lost or doubled piece shows.
pub(super) struct Pattern {
    block: Vec<u8>,
    pub(super) at: usize,
}

impl Pattern {
    pub(super) fn new() -> Self {
        Self { block: (0..65_521_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect(), at: 0 }
    }

    pub(super) fn next(&mut self, most: usize) -> &[u8] {
        let start = self.at % self.block.len();
        let end = self.block.len().min(start + most);
        self.at += end - start;
        &self.block[start..end]
    }

    pub(super) fn check(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let at = self.at;
            let expected = self.next(piece.len());
            let (here, rest) = piece.split_at(expected.len());
            assert!(here == expected, "wrong octets near {at}");
            piece = rest;
        }
    }
}

#[test]
fn large_bodies_stream_through_little_memory() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(head) = conn.head() {
            let mut pattern = Pattern::new();
            if head.starts_with("GET ") {
                let is_chunked = head.starts_with("GET /chunks ");
                let framing =
                    if is_chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {LARGE}") };
                conn.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
                while pattern.at < LARGE {
                    let piece = pattern.next(LARGE - pattern.at).to_vec();
                    if is_chunked {
                        conn.send(format!("{:x}\r\n", piece.len()));
                    }
                    conn.send(piece);
                    conn.send(if is_chunked { "\r\n" } else { "" });
                }
                conn.send(if is_chunked { "0\r\n\r\n" } else { "" });
            } else {
                assert!(conn.drain(&head, |piece| pattern.check(piece)));
                conn.ok(pattern.at.to_string());
            }
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    caller.get("/").body.clear();
    let before = peak_memory(&daemon);
    for (path, framing) in [("/", Framing::Length(LARGE)), ("/chunks", Framing::Chunked)] {
        caller.send(request("GET", path, ""));
        caller.head().unwrap();
        let mut pattern = Pattern::new();
        assert!(caller.drain(framing, |piece| pattern.check(piece)));
        assert_eq!(pattern.at, LARGE);
    }
    for framing in [format!("Content-Length: {LARGE}"), "Transfer-Encoding: chunked".to_owned()] {
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n"));
        let mut pattern = Pattern::new();
        while pattern.at < LARGE {
            let piece = pattern.next(LARGE - pattern.at).to_vec();
            if framing.starts_with('T') {
                caller.send(format!("{:x}\r\n", piece.len()));
                caller.send(piece);
                caller.send("\r\n");
            } else {
                caller.send(piece);
            }
        }
        caller.send(if framing.starts_with('T') { "0\r\n\r\n" } else { "" });
        assert_eq!(caller.reply().text(), LARGE.to_string());
    }
    let grown = peak_memory(&daemon) - before;
    assert!(grown < 8 << 10, "memory grew by {grown} KiB");
}

#[test]
fn interim_replies_are_not_passed_on() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </style>; rel=preload\r\n\r\n";
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            conn.send(format!("HTTP/1.1 100 Continue\r\n\r\n{interim}{interim}"));
            conn.ok("at last");
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    for _ in 0..2 {
        let reply = caller.get("/");
        assert_eq!((reply.status, reply.text().as_str(), reply.header("link")), (200, "at last", None));
    }
}

#[test]
fn a_caller_that_expects_to_continue_is_told_by_us() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, body)) = conn.request() {
            assert_eq!(header(&head, "expect"), None);
            conn.ok(body);
        }
    });
    let daemon = daemon(&upstream.url(), "limits.replay_body = \"4B\"", "");
    let mut caller = caller(&daemon);
    for (framing, body) in [
        ("Content-Length: 3", "abc"),
        ("Content-Length: 6", "abcdef"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
    ] {
        caller.send(format!("PUT / HTTP/1.1\r\nHost: up.localhost\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"));
        assert_eq!(caller.reply().status, 100);
        caller.send(body);
        assert!(caller.reply().text().starts_with("abc"));
    }
    caller.send("PUT / HTTP/1.1\r\nHost: evil.example\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    caller.reply().expect(421, "unknown_host");
}

#[test]
fn a_reply_that_breaks_off_at_once_is_passed_on_up_to_there() {
    fn breaks(mut conn: Conn) {
        let (head, _) = conn.request().unwrap();
        conn.send(match head.split(' ').nth(1).unwrap() {
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nas far",
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nas far\r\n",
        });
        if head.contains("X-How: reset") || head.contains("x-how: reset") { conn.reset() } else { conn.close() }
    }
    let plain = Upstream::start(breaks);
    let (secure, folder) = secure_upstream(breaks);
    let daemons = [
        daemon(&plain.url(), "", ""),
        Daemon::start_in(folder, &configuration(&secure.url(), "", "tls.ca = \"ca.pem\""), |_| {}),
    ];
    for daemon in &daemons {
        for round in 0..20 {
            for (path, body) in [("/head", ""), ("/length", "as far"), ("/chunked", "as far")] {
                for how in ["reset", "close"] {
                    for version in ["1.1", "1.0"] {
                        let mut caller = caller(daemon);
                        caller.send(format!("GET {path} HTTP/{version}\r\nHost: up.localhost\r\nX-How: {how}\r\n\r\n"));
                        let reply = caller.reply();
                        let case = format!("{path} {how} HTTP/{version} round {round}: {reply:?}");
                        assert_eq!((reply.status, reply.text().as_str(), reply.is_whole), (200, body, false), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_end_of_a_tls_stream_ends_a_reply_only_if_it_says_so() {
    let (upstream, folder) = secure_upstream(|mut conn| {
        let (head, _) = conn.request().unwrap();
        conn.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
        if head.starts_with("GET /well ") {
            conn.close();
        }
    });
    let daemon = Daemon::start_in(folder, &configuration(&upstream.url(), "", "tls.ca = \"ca.pem\""), |_| {});
    for (path, is_whole) in [("/well", true), ("/badly", false)] {
        let reply = caller(&daemon).get(path);
        assert_eq!((reply.text().as_str(), reply.is_whole), ("until the end", is_whole), "{path}");
    }
}

#[test]
fn an_upload_that_breaks_off_is_not_passed_off_as_whole() {
    let (ended, has_ended) = mpsc::channel();
    let upstream = Upstream::start(move |mut conn| {
        let head = conn.head().unwrap();
        ended.send(conn.body(&head).is_some()).unwrap();
    });
    let daemon = daemon(&upstream.url(), "limits.replay_body = \"4B\"", "");
    let framings = [("Content-Length: 9", "half"), ("Transfer-Encoding: chunked", "4\r\nhalf\r\n")];
    for (index, (framing, start)) in framings.into_iter().enumerate() {
        let began = Instant::now();
        let mut caller = caller(&daemon);
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n{start}"));
        upstream.await_connections(index + 1);
        await_that("the half has arrived", || upstream.received(index).contains("half"));
        drop(caller);
        assert!(!has_ended.recv_timeout(PATIENCE).unwrap(), "{framing}");
        assert!(began.elapsed().as_secs() < 10);
    }
}

#[test]
fn bodies_up_to_the_limit_are_held_and_larger_ones_stream() {
    let upstream = Upstream::start(echo);
    for (octets, top, is_held) in [
        (1024, r#"limits.replay_body = "1KiB""#, true),
        (1025, r#"limits.replay_body = "1KiB""#, false),
        (1024, r#"limits = { replay_body = "1KiB", held_bodies = "1000B" }"#, false),
    ] {
        let before = upstream.connections();
        let daemon = daemon(&upstream.url(), top, "");
        let mut caller = caller(&daemon);
        let framing = format!("Expect: 100-continue\r\nContent-Length: {octets}");
        caller.send(format!("PUT / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n"));
        // It is told to continue once the body is wanted: by the upstream's connection, or by who holds it.
        assert_eq!(caller.reply().status, 100);
        if is_held {
            assert_eq!(upstream.connections(), before);
        } else {
            upstream.await_connections(before + 1);
        }
        caller.send("x".repeat(octets));
        assert!(caller.reply().text().starts_with(&format!("PUT {octets} - x")));
    }
}

/// A route whose `allow` must see the forms that callers send.
const FORMS: &str = r#"allow = ["POST /?Action=Go"]"#;

fn form(framing: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nHost: up.localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n{framing}\r\n\r\n"
    )
}

fn form_of(length: usize) -> String {
    let start = "Action=Go&Fill=";
    format!("{start}{}", "x".repeat(length - start.len()))
}

#[test]
fn a_form_that_must_be_seen_is_held_up_to_a_limit() {
    let upstream = Upstream::start(echo);
    let daemon = daemon(&upstream.url(), r#"limits = { signed_body = "1KiB", replay_body = "0B" }"#, FORMS);
    for (length, fits) in [(20, true), (1024, true), (1025, false)] {
        let body = form_of(length);
        let chunked = format!("10\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..16], length - 16, &body[16..]);
        let sent = [form(&format!("Content-Length: {length}")) + &body, form("Transfer-Encoding: chunked") + &chunked];
        for octets in sent {
            let mut caller = caller(&daemon);
            caller.send(octets);
            let reply = caller.reply();
            if fits {
                assert_eq!(reply.text(), format!("POST {length} - {body}"));
            } else {
                let message = reply.expect(413, "body_too_large");
                assert!(message.contains("`limits.signed_body`"), "{message}");
            }
        }
    }
    let mut caller = caller(&daemon);
    caller.send(form("Content-Length: 11") + "Action=Stop");
    caller.reply().expect(403, "not_allowed");
}

#[test]
fn held_bodies_share_a_limit() {
    let upstream = Upstream::start(echo);
    let daemon = daemon(&upstream.url(), r#"limits = { signed_body = "1KiB", held_bodies = "1KiB" }"#, FORMS);
    let body = form_of(800);
    let mut first = caller(&daemon);
    first.send(form("Expect: 100-continue\r\nContent-Length: 800"));
    assert_eq!(first.reply().status, 100, "from here on its place is taken");
    let mut second = caller(&daemon);
    second.send(form("Content-Length: 800") + &body);
    let message = second.reply().expect(503, "overloaded");
    assert!(message.contains("`limits.held_bodies`"), "{message}");
    let mut chunked = caller(&daemon);
    chunked.send(form("Transfer-Encoding: chunked") + &format!("320\r\n{body}\r\n0\r\n\r\n"));
    chunked.reply().expect(503, "overloaded");
    first.send(&body);
    assert_eq!(first.reply().status, 200);
    let began = Instant::now();
    loop {
        let mut second = caller(&daemon);
        second.send(form("Content-Length: 800") + &body);
        if second.reply().status == 200 {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "what was held is not given back");
    }
}

#[test]
fn a_refusal_reaches_a_caller_whose_upload_the_upstream_cut_off() {
    fn refuse(mut conn: Conn) {
        conn.head().unwrap();
        conn.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!");
        conn.close();
    }
    let plain = Upstream::start(refuse);
    let (secure, folder) = secure_upstream(refuse);
    let daemons = [
        daemon(&plain.url(), "", ""),
        Daemon::start_in(folder, &configuration(&secure.url(), "", "tls.ca = \"ca.pem\""), |_| {}),
    ];
    for daemon in &daemons {
        for _ in 0..10 {
            let mut caller = caller(daemon);
            caller.send("POST / HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: 8000000\r\n\r\n");
            // It may be told before it has sent everything.
            let _ = caller.stream.write_all(&vec![b'x'; 8_000_000]);
            let reply = caller.reply();
            assert_eq!((reply.status, reply.text().as_str()), (413, "no!"));
        }
    }
}
