//! Bodies that flow: nothing waits for more than is there, what ends early is answered all the same, and nobody's slowness
//! is paid for in memory.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::script::{Conn, Http, Upstream, await_that, header, request};
use super::{caller, configuration, daemon, secure_upstream};
use crate::daemon::{Daemon, PATIENCE};

const EVENTS: usize = 5;

fn event(number: usize) -> String {
    format!("data: {number}\n\n")
}

#[test]
fn an_event_arrives_before_there_is_another() {
    let (arrived, has_arrived) = mpsc::channel();
    let has_arrived = Mutex::new(has_arrived);
    let script = move |mut conn: Conn| {
        let (head, _) = conn.request().unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let framing = match path.as_str() {
            "/chunks" => "Transfer-Encoding: chunked\r\n",
            "/length" => "Content-Length: 45\r\n",
            _ => "",
        };
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n"));
        for number in 0..EVENTS {
            let event = event(number);
            conn.send(if path == "/chunks" { format!("{:x}\r\n{event}\r\n", event.len()) } else { event });
            has_arrived.lock().unwrap().recv_timeout(PATIENCE).expect("the event has arrived");
        }
        conn.send(if path == "/chunks" { "0\r\n\r\n" } else { "" });
        conn.close();
    };
    let (secure, folder) = secure_upstream(script);
    let daemon = Daemon::start_in(folder, &configuration(&secure.url(), "", "tls.ca = \"ca.pem\""), |_| {});
    for path in ["/chunks", "/length", "/end"] {
        for version in ["1.1", "1.0"] {
            let mut caller = caller(&daemon);
            caller.send(format!("GET {path} HTTP/{version}\r\nHost: up.localhost\r\n\r\n"));
            let head = caller.head().unwrap();
            let is_chunked = header(&head, "transfer-encoding").is_some();
            assert_eq!(is_chunked, version == "1.1" && path != "/length", "{path} HTTP/{version}: {head}");
            for number in 0..EVENTS {
                let mut got = Vec::new();
                if is_chunked {
                    assert!(caller.chunk(|piece| got.extend_from_slice(piece)));
                } else {
                    got = caller.octets(event(number).len()).unwrap();
                }
                assert_eq!(String::from_utf8(got).unwrap(), event(number), "{path} HTTP/{version}");
                arrived.send(()).unwrap();
            }
        }
    }
}

#[test]
fn replies_without_a_body_say_so_in_every_version() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let (status, framing) = head.split(['/', ' ']).nth(2).unwrap().split_at(3);
            let framing = match framing {
                "length" => "Content-Length: 5\r\n",
                "chunks" => "Transfer-Encoding: chunked\r\n",
                _ => "",
            };
            conn.send(format!("HTTP/1.1 {status} X\r\n{framing}ETag: \"x\"\r\n\r\n"));
        }
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    for (version, keeps) in [("1.1", true), ("1.0", false), ("1.0\r\nConnection: keep-alive", true)] {
        for (method, status) in [("HEAD", 200), ("HEAD", 404), ("HEAD", 304), ("GET", 304), ("GET", 204)] {
            for framing in ["", "length", "chunks"] {
                let mut caller = caller(&daemon);
                let one = format!("{method} /{status}{framing} HTTP/{version}\r\nHost: up.localhost\r\n\r\n");
                // Two in one segment: octets too many in the first reply would stand before the second.
                caller.send(one.repeat(2));
                for _ in 0..if keeps { 2 } else { 1 } {
                    let reply = caller.reply_without_body();
                    let case = format!("{one}{}", reply.head);
                    assert_eq!((reply.status, reply.header("etag")), (status, Some("\"x\"")), "{case}");
                    assert_eq!(reply.header("transfer-encoding"), None, "{case}");
                    let length = Some("5").filter(|_| method == "HEAD" && framing == "length");
                    assert_eq!(reply.header("content-length"), length, "{case}");
                    let is_promised = keeps && version != "1.1";
                    assert_eq!(reply.header("connection") == Some("keep-alive"), is_promised, "{case}");
                }
                assert!(keeps || caller.has_ended(), "{one}");
            }
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_old_caller_keeps_its_connection_where_the_reply_has_an_end_of_its_own() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            match head.split(' ').nth(1).unwrap() {
                "/length" => conn.ok("whole"),
                "/chunks" => conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"),
                _ => {
                    conn.send("HTTP/1.1 200 OK\r\n\r\nwhole");
                    return conn.close();
                }
            };
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    for (path, wish, keeps) in [
        ("/length", "keep-alive", true),
        ("/length", "Keep-Alive, x", true),
        ("/length", "close", false),
        ("/length", "x", false),
        ("/chunks", "keep-alive", false),
        ("/end", "keep-alive", false),
    ] {
        let mut caller = caller(&daemon);
        let one = format!("GET {path} HTTP/1.0\r\nHost: up.localhost\r\nConnection: {wish}\r\n\r\n");
        caller.send(one.repeat(2));
        for _ in 0..if keeps { 2 } else { 1 } {
            let reply = caller.reply();
            assert_eq!((reply.text().as_str(), reply.is_whole), ("whole", true), "{one}");
            assert!(reply.head.starts_with("HTTP/1.0 200 "), "{one}{}", reply.head);
            assert_eq!(reply.header("connection"), keeps.then_some("keep-alive"), "{one}{}", reply.head);
        }
        assert!(keeps || caller.has_ended(), "{one}");
    }
}

#[test]
fn an_expectation_ends_with_us_and_a_refusal_comes_whether_the_body_does_or_not() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(head) = conn.head() {
            assert_eq!(header(&head, "expect"), None, "{head}");
            if head.starts_with("PUT /refused ") {
                conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!");
                return conn.await_end();
            }
            let body = conn.body(&head).unwrap();
            conn.ok(body);
        }
    });
    let daemon = daemon(&upstream.url(), "limits.replay_body = \"4B\"", r#"timeouts.body = "1s""#);
    for (version, expect, is_met) in [
        ("1.1", "100-continue", true),
        ("1.1", "100-Continue", true),
        ("1.1", "200-ok", false),
        ("1.1", "100-continue, x", false),
        ("1.0", "100-continue", false),
    ] {
        let ask = |path| {
            let framing = "Content-Length: 10";
            let mut caller = caller(&daemon);
            caller.send(format!(
                "PUT {path} HTTP/{version}\r\nHost: up.localhost\r\nExpect: {expect}\r\n{framing}\r\n\r\n"
            ));
            if is_met {
                assert_eq!(caller.reply().status, 100, "{expect}");
            }
            caller
        };
        let mut taken = ask("/");
        taken.send("0123456789");
        assert_eq!(taken.reply().text(), "0123456789", "{version} {expect}");
        let mut refused = ask("/refused");
        let reply = refused.reply();
        assert_eq!((reply.status, reply.text().as_str()), (413, "no!"), "{version} {expect}");
        assert!(refused.has_ended(), "a request in the body's place would be taken for it");
    }
}

/// More than the kernel holds.
const LARGE: usize = 16 << 20;

/// Begins a large upload and goes on with it on a thread of its own; true if all of it was taken.
fn upload(daemon: &Daemon, path: &str) -> (Http<TcpStream>, std::thread::JoinHandle<bool>) {
    let mut caller = caller(daemon);
    caller.send(format!("PUT {path} HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: {LARGE}\r\n\r\n"));
    let mut writer = caller.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let piece = vec![b'x'; 1 << 20];
        (0..LARGE >> 20).all(|_| writer.write_all(&piece).is_ok())
    });
    (caller, writing)
}

#[test]
fn an_early_reply_comes_whole_whatever_the_upstream_does_with_the_upload() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(head) = conn.head() {
            let path = head.split(' ').nth(1).unwrap();
            if path == "/" {
                conn.ok("next");
                continue;
            }
            conn.octets(1024);
            conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nearly");
            match path {
                "/read" => assert!(conn.octets(LARGE - 1024).is_some()),
                "/unread" => return await_that("an end", || conn.tcp.take_error().unwrap().is_some()),
                "/closed" => return conn.close(),
                _ => return conn.reset(),
            }
        }
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", r#"timeouts.body = "2s""#);
    for (path, is_taken) in [("/read", true), ("/unread", true), ("/closed", true), ("/reset", true)] {
        let (mut caller, writing) = upload(&daemon, path);
        let reply = caller.reply();
        assert!(reply.is_whole, "{path}");
        assert_eq!((reply.status, reply.text().as_str()), (413, "early"), "{path}");
        assert_eq!(writing.join().unwrap(), is_taken, "{path}");
        if path == "/read" {
            assert_eq!(caller.get("/").text(), "next");
        } else {
            assert!(caller.has_ended() && !caller.was_reset, "{path}");
        }
    }
}

#[test]
fn a_refusal_reaches_a_caller_that_is_still_sending() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "", r#"allow = ["GET /**"]"#);
    for framing in ["", "Connection: close\r\n"] {
        let (mut caller, writing) = upload(&daemon, &format!("/ HTTP/1.1\r\n{framing}X-A: b"));
        assert!(writing.join().unwrap(), "a caller that cannot send on may not look for a reply");
        caller.reply().expect(403, "not_allowed");
        assert!(caller.has_ended() && !caller.was_reset);
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_caller_that_sends_on_for_ever_is_let_go() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "", r#"allow = ["GET /**"]"#);
    let mut caller = caller(&daemon);
    caller.send("PUT / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let began = Instant::now();
    while caller.stream.write_all(b"1\r\nx\r\n").is_ok() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads a little at a time for a while, then everything: fast enough to be no silence, slow enough for a buffer of
/// megabytes to seem one.
fn sip(mut read: impl FnMut(usize) -> bool) -> bool {
    let sips = (0..SIPS).all(|_| {
        std::thread::sleep(Duration::from_millis(40));
        read(SIP)
    });
    sips && read(LARGE - SIPS * SIP)
}

/// They take two seconds.
const SIPS: usize = 50;
const SIP: usize = 48 << 10;

#[test]
fn a_caller_that_reads_a_little_at_a_time_gets_everything() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.ok(vec![b'x'; LARGE]);
    });
    let daemon = daemon(&upstream.url(), "", r#"timeouts.body = "1s""#);
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    assert!(caller.head().unwrap().starts_with("HTTP/1.1 200 "));
    assert!(sip(|octets| caller.octets(octets).is_some()));
}

#[test]
fn an_upstream_that_reads_a_little_at_a_time_gets_everything() {
    fn slow(mut conn: Conn) {
        conn.head().unwrap();
        if sip(|octets| conn.octets(octets).is_some()) {
            conn.ok("everything");
        }
    }
    let plain = Upstream::start(slow);
    let (secure, folder) = secure_upstream(slow);
    let timeouts = r#"timeouts = { body = "1s", response = "1s" }"#;
    let daemons = [
        daemon(&plain.url(), "", timeouts),
        Daemon::start_in(
            folder,
            &configuration(&secure.url(), "", &format!("{timeouts}\ntls.ca = \"ca.pem\"")),
            |_| {},
        ),
    ];
    let uploads = daemons.each_ref().map(|daemon| upload(daemon, "/"));
    for (mut caller, writing) in uploads {
        assert_eq!(caller.reply().text(), "everything");
        assert!(writing.join().unwrap());
    }
}

#[test]
fn an_upstream_that_stops_reading_is_let_go() {
    let (stopped, has_stopped) = mpsc::channel();
    let script = move |mut conn: Conn| {
        conn.head().unwrap();
        conn.octets(1024);
        await_that("an end", || conn.tcp.take_error().unwrap().is_some());
        stopped.send(()).unwrap();
    };
    let plain = Upstream::start(script.clone());
    let (secure, folder) = secure_upstream(script);
    // What would end it first is off.
    let timeouts = r#"timeouts = { body = "1s", response = "off" }"#;
    let daemons = [
        daemon(&plain.url(), "", timeouts),
        Daemon::start_in(
            folder,
            &configuration(&secure.url(), "", &format!("{timeouts}\ntls.ca = \"ca.pem\"")),
            |_| {},
        ),
    ];
    for daemon in &daemons {
        let (mut caller, writing) = upload(daemon, "/");
        let message = caller.reply().expect(504, "upstream_timeout");
        assert!(message.contains("`timeouts.body`"), "{message}");
        assert!(writing.join().unwrap() && caller.has_ended());
        has_stopped.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_pause_in_an_upload_is_no_delay_of_the_reply() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "", r#"timeouts.response = "1s""#);
    let mut caller = caller(&daemon);
    caller.send("PUT / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    std::thread::sleep(Duration::from_millis(1500));
    caller.send("1\r\nx\r\n0\r\n\r\n");
    assert_eq!(caller.reply().text(), "yes");
}

/// What of the process is in memory, in KiB.
fn memory(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sends until for a while nothing more is taken: everything on the way is full then.
fn fill(mut stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![b'x'; 64 << 10];
    let error = std::iter::repeat_with(|| stream.write_all(&piece)).find_map(Result::err).unwrap();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// Panics if a crowd has made the daemon grow too much.
fn assert_small(daemon: &Daemon, before: usize) {
    let grown = memory(daemon).saturating_sub(before);
    assert!(grown < 16 << 10, "{CROWD} made it grow by {grown} KiB");
}

const CROWD: usize = 100;
const WITHOUT_END: u64 = 1 << 40;

#[test]
fn a_crowd_of_callers_that_do_not_read_takes_little_memory() {
    let (full, is_full) = mpsc::channel();
    let upstream = Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("GET /small ") {
                conn.ok("small");
                continue;
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {WITHOUT_END}\r\n\r\n"));
            fill(&conn.tcp);
            full.send(()).unwrap();
            conn.await_end();
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    assert_eq!(caller(&daemon).get("/small").text(), "small");
    let before = memory(&daemon);
    let mut callers: Vec<_> = (0..CROWD).map(|_| caller(&daemon)).collect();
    for caller in &mut callers {
        caller.send(request("GET", "/", ""));
    }
    for _ in &callers {
        is_full.recv_timeout(PATIENCE).unwrap();
    }
    assert_small(&daemon, before);
}

#[test]
fn a_crowd_of_uploads_that_nobody_reads_takes_little_memory() {
    let (over, is_over) = mpsc::channel::<()>();
    let is_over = Mutex::new(is_over);
    let upstream = Upstream::start(move |mut conn| {
        while conn.head().unwrap().starts_with("GET ") {
            conn.ok("small");
        }
        let _ = is_over.lock().unwrap().recv();
    });
    let daemon = daemon(&upstream.url(), "", "");
    assert_eq!(caller(&daemon).get("/small").text(), "small");
    let before = memory(&daemon);
    let mut callers: Vec<_> = (0..CROWD).map(|_| caller(&daemon)).collect();
    std::thread::scope(|scope| {
        for caller in &mut callers {
            scope.spawn(move || {
                let framing = format!("Content-Length: {WITHOUT_END}");
                caller.send(format!("PUT / HTTP/1.1\r\nHost: up.localhost\r\n{framing}\r\n\r\n"));
                fill(&caller.stream);
            });
        }
    });
    assert_small(&daemon, before);
    drop(over);
}
