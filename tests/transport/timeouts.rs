//! Everything that has a time or a size.

use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::script::{Framing, Http, Upstream, request};
use super::{caller, daemon};
use crate::daemon::PATIENCE;

/// Lets time pass where its passing is what is tested.
fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Panics unless something took about as long as it should.
fn assert_took(began: Instant, least: u64) {
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn an_upstream_that_does_not_accept_is_a_timeout() {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // One waits to be accepted, and so fills the queue.
    let waiting = std::net::TcpStream::connect(address).unwrap();
    let daemon = daemon(&format!("http://{address}"), "", r#"timeouts.connect = "300ms""#);
    let began = Instant::now();
    let message = caller(&daemon).get("/").expect(504, "upstream_timeout");
    assert!(message.contains("`timeouts.connect`"), "{message}");
    assert_took(began, 300);
    drop(waiting);
}

#[test]
fn a_tls_handshake_that_is_not_answered_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("https://{}", listener.local_addr().unwrap());
    let daemon = daemon(&upstream, "", "timeouts.connect = \"300ms\"\ntls.verify = \"none\"");
    let began = Instant::now();
    let message = caller(&daemon).get("/").expect(504, "upstream_timeout");
    assert!(message.contains("TLS handshake"), "{message}");
    assert_took(began, 300);
}

#[test]
fn an_upstream_that_does_not_answer_is_a_timeout_and_is_not_asked_again() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        if conn.index == 0 {
            conn.ok("quick");
            conn.request();
        }
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", r#"timeouts.response = "1s""#);
    let mut caller = caller(&daemon);
    assert_eq!(caller.get("/").text(), "quick");
    for connection in 0..2 {
        let began = Instant::now();
        let message = caller.get("/").expect(504, "upstream_timeout");
        assert!(message.contains("`timeouts.response`"), "{message}");
        assert_took(began, 1000);
        upstream.await_end(connection);
        assert_eq!(upstream.connections(), connection + 1);
    }
}

#[test]
fn the_wait_for_a_reply_begins_when_the_body_has_ended() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((_, body)) = conn.request() {
            if body == b"unanswered" {
                return conn.await_end();
            }
            conn.ok(body.len().to_string());
        }
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.response = "1s""#);
    // One is held before it is sent, the other streams.
    for head in ["Content-Length: 13\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"] {
        let mut caller = caller(&daemon);
        let began = Instant::now();
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{head}"));
        for _ in 0..13 {
            pause(100);
            caller.send(if head.starts_with('C') { "x" } else { "1\r\nx\r\n" });
        }
        if head.starts_with('T') {
            caller.send("0\r\n\r\n");
        }
        assert_eq!(caller.reply().text(), "13");
        assert_took(began, 1300);
    }
    let mut caller = caller(&daemon);
    let began = Instant::now();
    caller.send("POST / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    caller.send("a\r\nunanswered\r\n0\r\n\r\n");
    caller.reply().expect(504, "upstream_timeout");
    assert_took(began, 1000);
}

#[test]
fn a_reply_that_falls_silent_is_cut_after_what_came() {
    let upstream = Upstream::start(|mut conn| {
        let (head, _) = conn.request().unwrap();
        conn.send(if head.starts_with("GET /length ") {
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nas far"
        } else {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nas far\r\n"
        });
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.body = "300ms""#);
    for (connection, path) in ["/length", "/chunks"].into_iter().enumerate() {
        let began = Instant::now();
        let mut caller = caller(&daemon);
        let reply = caller.get(path);
        assert_eq!((reply.status, reply.text().as_str(), reply.is_whole), (200, "as far", false), "{path}");
        assert!(caller.has_ended());
        assert_took(began, 300);
        upstream.await_end(connection);
    }
}

#[test]
fn a_reply_that_trickles_is_not_silent() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n");
        for _ in 0..13 {
            pause(100);
            conn.send("x");
        }
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts = { body = "1s", response = "1s" }"#);
    let began = Instant::now();
    let reply = caller(&daemon).get("/");
    assert!(reply.is_whole && reply.text() == "x".repeat(13));
    assert_took(began, 1300);
}

#[test]
fn a_caller_that_falls_silent_in_its_body_is_told_so() {
    let upstream = Upstream::start(|mut conn| {
        assert!(conn.request().is_none());
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.body = "300ms""#);
    for (framing, reaches) in
        [("Content-Length: 9\r\n\r\nhal", 0), ("Transfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n", 1)]
    {
        let began = Instant::now();
        let mut caller = caller(&daemon);
        caller.send(format!("POST / HTTP/1.1\r\nHost: up.localhost\r\n{framing}"));
        caller.reply().expect(408, "caller_timeout");
        assert!(caller.has_ended(), "what comes next on the connection would be taken for the body");
        assert_took(began, 300);
        upstream.await_connections(reaches);
        assert_eq!(upstream.connections(), reaches);
    }
    upstream.await_end(0);
}

#[test]
fn waits_that_are_off_do_not_end() {
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            pause(300);
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            pause(300);
            conn.send("half");
        }
    });
    let waits = r#"timeouts = { connect = "off", response = "off", body = "off", pool_idle = "off" }"#;
    let daemon = daemon(&upstream.url(), r#"limits = { header_timeout = "off", idle_timeout = "off" }"#, waits);
    let mut caller = caller(&daemon);
    caller.send("POST / HTTP/1.1\r\nHost: up.local");
    pause(300);
    caller.send("host\r\nTransfer-Encoding: chunked\r\n\r\n");
    pause(300);
    caller.send("1\r\nx\r\n0\r\n\r\n");
    assert_eq!(caller.reply().text(), "halfhalf");
    pause(300);
    caller.send(request("GET", "/", ""));
    assert_eq!(caller.reply().text(), "halfhalf");
}

#[test]
fn a_head_has_its_time_however_it_trickles() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), r#"limits.header_timeout = "300ms""#, "");
    for head in ["", "GET / HTTP/1.1\r\nHost: up.loc"] {
        let began = Instant::now();
        let mut caller = caller(&daemon);
        caller.send(head);
        assert!(caller.has_ended());
        assert_took(began, 300);
    }
    let began = Instant::now();
    let trickling = daemon.connect();
    let mut writer = trickling.try_clone().unwrap();
    let feeding = std::thread::spawn(move || {
        // Every octet is late enough for none to be the first, early enough for none to be a silence.
        while began.elapsed() < PATIENCE && std::io::Write::write_all(&mut writer, b"G").is_ok() {
            pause(50);
        }
    });
    assert!(Http::new(trickling).has_ended());
    assert_took(began, 300);
    feeding.join().unwrap();
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn the_time_for_heads_does_not_run_between_requests() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), r#"limits.header_timeout = "1s""#, "");
    let mut caller = caller(&daemon);
    for _ in 0..2 {
        assert_eq!(caller.get("/").status, 200);
        pause(1300);
    }
    assert_eq!(caller.get("/").status, 200);
    let began = Instant::now();
    caller.send("G");
    assert!(caller.has_ended());
    assert_took(began, 1000);
}

#[test]
fn an_idle_caller_is_let_go_and_every_request_starts_the_time_anew() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), r#"limits.idle_timeout = "1500ms""#, "");
    let mut caller = caller(&daemon);
    for _ in 0..6 {
        assert_eq!(caller.get("/").status, 200);
        pause(300);
    }
    assert_eq!(caller.get("/").status, 200);
    let began = Instant::now();
    assert!(caller.has_ended());
    assert_took(began, 1450);
}

#[test]
fn waiting_for_an_answer_is_not_idling() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        pause(1500);
        conn.ok("late");
    });
    let limits = r#"limits = { idle_timeout = "1s", header_timeout = "1s" }"#;
    let daemon = daemon(&upstream.url(), limits, r#"timeouts.body = "1s""#);
    assert_eq!(caller(&daemon).get("/").text(), "late");
}

#[test]
fn a_caller_that_does_not_read_is_let_go_and_its_upstream_connection_closed() {
    let (ended, has_ended) = mpsc::channel();
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 1 << 16], b"\r\n"].concat();
        while conn.send(&chunk) {}
        let _ = ended.send(());
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.body = "1s""#);
    for version in ["1.1", "1.0"] {
        let mut caller = caller(&daemon);
        caller.send(format!("GET / HTTP/{version}\r\nHost: up.localhost\r\n\r\n"));
        has_ended.recv_timeout(PATIENCE).expect("the upstream connection is closed");
        let reply = caller.reply();
        assert!(!reply.is_whole && !reply.body.is_empty(), "HTTP/{version}");
    }
}

#[test]
fn a_caller_that_reads_slowly_gets_everything() {
    const LENGTH: usize = 24 << 20;
    // Made before, since that takes its time too.
    let body = vec![b'x'; LENGTH];
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
        conn.send(&body);
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts = { body = "1500ms", response = "1500ms" }"#);
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    let head = caller.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "));
    let (mut got, mut next_pause) = (0, 0);
    let is_whole = caller.drain(Framing::Length(LENGTH), |piece| {
        got += piece.len();
        if got >= next_pause {
            pause(100);
            next_pause += LENGTH / 20;
        }
    });
    assert!(is_whole && got == LENGTH);
}

#[test]
fn one_caller_too_many_is_told_so_until_another_goes() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "limits.connections = 2", "");
    let mut callers = [caller(&daemon), caller(&daemon)];
    for caller in &mut callers {
        assert_eq!(caller.get("/").status, 200);
    }
    let mut third = caller(&daemon);
    let message = third.get("/").expect(503, "overloaded");
    assert!(message.contains("`limits.connections`"), "{message}");
    assert!(third.has_ended(), "a pool would keep a connection on which nothing is ever served");
    assert_eq!(callers[0].get("/").status, 200);
    let [first, mut second] = callers;
    drop(first);
    let began = Instant::now();
    while caller(&daemon).get("/").status != 200 {
        assert!(began.elapsed() < PATIENCE, "the caller that went is still counted");
    }
    assert_eq!(second.get("/").status, 200);
}

/// A head of so many octets.
fn head_of(size: usize, start: &str) -> String {
    let rest = "Content-Length: 0\r\n\r\n";
    let filled = format!("{start}\r\nX-Large: \r\n{rest}").len();
    format!("{start}\r\nX-Large: {}\r\n{rest}", "x".repeat(size - filled))
}

#[test]
fn a_head_may_be_as_large_as_the_limit_says() {
    const LIMIT: usize = 64 << 10;
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let size = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
            conn.send(head_of(size, "HTTP/1.1 200 OK"));
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    for size in [LIMIT - 1024, LIMIT, LIMIT + 1, LIMIT + 1024, LIMIT + (8 << 10), 2 * LIMIT] {
        let mut caller = caller(&daemon);
        let reply = caller.get(&format!("/{size}"));
        if size <= LIMIT {
            assert_eq!(reply.status, 200, "{size}");
        } else {
            let message = reply.expect(502, "upstream_protocol");
            assert!(message.contains("`limits.header_bytes`"), "{size}: {message}");
        }
        caller.send(head_of(size, "GET /1000 HTTP/1.1\r\nHost: up.localhost"));
        assert_eq!(caller.reply().status, if size <= LIMIT { 200 } else { 431 }, "{size}");
        assert!(size <= LIMIT || caller.has_ended(), "{size}");
    }
}
