//! What is told of requests: a line each in the log.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::script::{Http, Upstream, await_that, header, request};
use super::{caller, daemon};
use crate::daemon::Daemon;

/// Lines in JSON.
pub(super) const IN_JSON: &str = "log.format = \"json\"";

/// The first lines about requests, as soon as there are so many.
pub(super) fn told(daemon: &Daemon, count: usize) -> Vec<Value> {
    let lines = || daemon.log().lines().filter(|line| line.contains("countersign::access")).count();
    await_that(&format!("{count} lines"), || lines() >= count);
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("countersign::access"));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Those fields of a line that are given.
pub(super) fn assert_tells(line: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{name}: {line:#}");
    }
}

fn has(line: &Value, name: &str) -> bool {
    line.as_object().unwrap().contains_key(name)
}

#[test]
fn a_request_is_one_flat_object_with_numbers_where_numbers_are_meant() {
    let upstream = Upstream::start(|mut conn| {
        while conn.request().is_some() {
            conn.send("HTTP/1.1 201 Created\r\nX-Request-Id: up-1\r\nContent-Length: 6\r\n\r\nhello!");
        }
    });
    let daemon = daemon(&upstream.url(), IN_JSON, "");
    let mut caller = caller(&daemon);
    caller.send(request("POST", "/a?secret=1", "12345"));
    let reply = caller.reply();
    let lines = told(&daemon, 1);
    let line = &lines[0];
    let id = reply.header("x-countersign-request-id").unwrap();
    assert_tells(
        line,
        &json!({
            "level": "INFO", "target": "countersign::access", "route": "up", "method": "POST", "path": "/a",
            "status": 201, "by": "upstream", "provider_id": "up-1", "in": 5, "out": 6, "attempts": 1, "id": id,
        }),
    );
    let numbers = ["ms", "own_ms", "upstream_ms"].map(|name| line[name].as_f64().unwrap());
    assert!(numbers.iter().all(|number| *number >= 0.0) && numbers[0] >= numbers[2], "{line:#}");
    for name in ["code", "error", "provider_code", "cut", "retry", "uid"] {
        assert!(!has(line, name), "{name}: {line:#}");
    }
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line:#}");
    assert!(line.as_object().unwrap().values().all(|value| !value.is_object() && !value.is_array()), "{line:#}");
}

#[test]
fn octets_are_counted_both_ways_however_they_are_framed() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            match head.split(' ').next().unwrap() {
                "HEAD" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
                "PUT" => conn.send("HTTP/1.1 204 No Content\r\n\r\n"),
                _ => conn.send(format!("{chunked}5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")),
            };
        }
    });
    let daemon = daemon(&upstream.url(), IN_JSON, "");
    let mut caller = caller(&daemon);
    let large = "x".repeat(100_000);
    caller.send(request("POST", "/", &large));
    caller.reply();
    caller.send(
        "POST / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    caller.reply();
    caller.send("HEAD / HTTP/1.1\r\nHost: up.localhost\r\n\r\n");
    caller.reply_without_body();
    caller.send(request("PUT", "/", "12"));
    caller.reply();
    caller.send("HEAD /nobody HTTP/1.1\r\nHost: localhost\r\n\r\n");
    caller.reply_without_body();
    let lines = told(&daemon, 5);
    let octets: Vec<_> =
        lines.iter().map(|line| (line["in"].as_u64().unwrap(), line["out"].as_u64().unwrap())).collect();
    assert_eq!(octets, [(100_000, 11), (5, 11), (0, 0), (2, 0), (0, 0)]);
    assert!(lines.iter().all(|line| !has(line, "cut")), "{lines:#?}");
}

#[test]
fn what_we_refuse_has_our_code_and_what_was_never_sent_no_attempt() {
    let daemon = daemon("http://127.0.0.1:1", IN_JSON, "");
    let mut unknown = caller(&daemon);
    unknown.send("GET /x HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let unknown = unknown.reply();
    caller(&daemon).get("/y").expect(502, "upstream_unreachable");
    let lines = told(&daemon, 2);
    let octets = unknown.text().len();
    assert_tells(
        &lines[0],
        &json!({ "route": "-", "status": 421, "by": "proxy", "code": "unknown_host", "attempts": 0, "out": octets }),
    );
    assert!(lines[0]["error"].as_str().unwrap().contains("hosts") && !has(&lines[0], "upstream_ms"), "{:#}", lines[0]);
    assert_tells(
        &lines[1],
        &json!({ "route": "up", "status": 502, "by": "proxy", "code": "upstream_unreachable", "attempts": 1 }),
    );
    assert!(has(&lines[1], "upstream_ms"), "{:#}", lines[1]);
}

#[test]
fn what_broke_off_says_who_broke_it() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let announced = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhell";
            if head.starts_with("GET /upstream ") {
                conn.send(announced);
                return;
            }
            if head.starts_with("GET /caller ") {
                conn.send(announced);
            }
            // And no answer to any other.
        }
    });
    let daemon = daemon(&upstream.url(), IN_JSON, "");
    let mut first = caller(&daemon);
    first.send("GET /upstream HTTP/1.1\r\nHost: up.localhost\r\n\r\n");
    assert!(!first.reply().is_whole);
    assert_tells(&told(&daemon, 1)[0], &json!({ "status": 200, "by": "upstream", "cut": "upstream", "out": 4 }));
    let mut second = caller(&daemon);
    second.send("GET /caller HTTP/1.1\r\nHost: up.localhost\r\n\r\n");
    second.head().unwrap();
    drop(second);
    assert_tells(&told(&daemon, 2)[1], &json!({ "status": 200, "by": "upstream", "cut": "caller", "out": 4 }));
    let mut third = caller(&daemon);
    third.send("GET /nothing HTTP/1.1\r\nHost: up.localhost\r\n\r\n");
    upstream.await_connections(3);
    await_that("the request is there", || upstream.received(2).contains("/nothing"));
    drop(third);
    let line = &told(&daemon, 3)[2];
    assert_tells(line, &json!({ "path": "/nothing", "cut": "caller", "attempts": 1, "out": 0 }));
    assert!(!has(line, "status") && !has(line, "by") && has(line, "upstream_ms"), "{line:#}");
}

#[test]
fn what_is_sent_again_says_how_often_and_why() {
    let upstream = Upstream::start(|mut conn| {
        // The first connection dies with its second request.
        while let Some((head, _)) = conn.request() {
            if conn.index == 0 && head.starts_with("GET /again ") {
                return;
            }
            conn.ok("hello");
        }
    });
    let daemon = daemon(&upstream.url(), &format!("{IN_JSON}\nserver.workers = 1"), "");
    let mut caller = caller(&daemon);
    assert_eq!(caller.get("/").status, 200);
    assert_eq!(caller.get("/again").header("x-countersign-retry"), Some("endpoint"));
    let lines = told(&daemon, 2);
    assert!(!has(&lines[0], "retry"), "{:#}", lines[0]);
    assert_tells(&lines[1], &json!({ "status": 200, "attempts": 2, "retry": "endpoint" }));
}

#[test]
fn a_tunnel_is_told_at_its_end() {
    let upstream = Upstream::start(|mut conn| {
        conn.request().unwrap();
        conn.send("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly");
        let heard = conn.rest();
        conn.send([heard.as_slice(), b"!"].concat());
    });
    let daemon = daemon(&upstream.url(), IN_JSON, "");
    let mut caller = caller(&daemon);
    caller.send("GET /attach HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
    assert!(header(&caller.head().unwrap(), "x-countersign-request-id").is_some());
    assert_eq!(caller.octets(5).unwrap(), b"early");
    assert!(!daemon.log().contains("/attach"), "{}", daemon.log());
    caller.send("four");
    caller.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(caller.rest(), b"four!");
    let line = &told(&daemon, 1)[0];
    assert_tells(line, &json!({ "status": 101, "by": "upstream", "in": 4, "out": 10, "attempts": 1 }));
    assert!(!has(line, "cut"), "{line:#}");
}

#[test]
fn a_caller_on_a_unix_socket_has_a_name() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let daemon = daemon(&upstream.url(), IN_JSON, "listen = [\"unix:DIR/up.sock\"]");
    let mut caller = Http::new(UnixStream::connect(daemon.folder().join("up.sock")).unwrap());
    caller.stream.write_all(request("GET", "/", "").as_bytes()).unwrap();
    assert_eq!(caller.reply().status, 200);
    assert_tells(&told(&daemon, 1)[0], &json!({ "uid": nix::unistd::getuid().as_raw() }));
}

#[test]
fn who_is_refused_over_and_over_does_not_fill_the_log() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let mut daemon = daemon(&upstream.url(), IN_JSON, "allow = [\"GET /good\"]");
    let mut caller = caller(&daemon);
    for _ in 0..30 {
        caller.get("/bad").expect(403, "not_allowed");
        assert_eq!(caller.get("/good").status, 200);
    }
    drop(caller);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let log = daemon.log();
    let lines = |path: &str| log.matches(&format!("\"path\":\"{path}\"")).count();
    assert_eq!((lines("/good"), lines("/bad")), (30, 10), "{log}");
    let left_out: Vec<_> = log.lines().filter(|line| line.contains("\"left_out\"")).collect();
    assert_eq!(left_out.len(), 1, "{log}");
    let line: Value = serde_json::from_str(left_out[0]).unwrap();
    assert_tells(&line, &json!({ "level": "WARN", "route": "up", "what": "not_allowed", "left_out": 20 }));
}

#[test]
fn no_path_breaks_a_line_or_a_terminal() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let daemon = daemon(&upstream.url(), "", "");
    // A control sequence as terminals read it in UTF-8, and a sign that turns the direction of writing.
    for path in ["/a\u{9b}31mred", "/b\u{202e}c", "/d%1b%5b31m%0a", "/e\"f"] {
        assert_eq!(caller(&daemon).get(path).status, 200, "{path:?}");
    }
    daemon.await_log("/e");
    let log = daemon.log();
    for shown in [r#"path="/a\u{9b}31mred""#, r#"path="/b\u{202e}c""#, r#"path="/d%1b%5b31m%0a""#, r#"path="/e\"f""#] {
        assert!(log.contains(shown), "{shown}: {log}");
    }
    assert!(!log.contains(|character: char| character.is_control() && character != '\n'), "{log:?}");
}

#[test]
fn only_the_journal_itself_does_without_times() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let configuration = super::configuration(&upstream.url(), "", "");
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &configuration, |command| {
        command.env("JOURNAL_STREAM", "8:12345");
    });
    assert!(daemon.log().lines().all(|line| line.starts_with("20")), "{}", daemon.log());
}

#[test]
fn nothing_is_told_where_nobody_wants_it() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let mut daemon = daemon(&upstream.url(), "log.access = false", "");
    assert_eq!(caller(&daemon).get("/").status, 200);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(!daemon.log().contains("::access"), "{}", daemon.log());
}
