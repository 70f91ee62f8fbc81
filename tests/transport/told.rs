//! What is told of requests: a line each in the log, and what is counted.

use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::script::{Http, Upstream, await_that, header, request};
use super::{caller, daemon};
use crate::daemon::{Daemon, connect, exchange};

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

const ADMIN: &str = "admin.listen = \"127.0.0.1:0\"";

/// All samples, by name and labels.
fn metrics(daemon: &Daemon) -> HashMap<String, f64> {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let reply = exchange(connect(daemon.admin_address()), request);
    let samples = reply.split_once("\r\n\r\n").unwrap().1.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    samples.map(|line| parse(line).unwrap()).collect()
}

/// What goes up and never down.
fn is_count(name: &str) -> bool {
    ["_total", "_count", "_bucket", "_sum"].iter().any(|end| name.split('{').next().unwrap().ends_with(end))
}

fn assert_counts(counted: &HashMap<String, f64>, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let full = format!("countersign_{}", name.replace("up,", "route=\"up\",").replace("{up}", "{route=\"up\"}"));
        assert_eq!(counted.get(&full), Some(value), "{full}: {counted:#?}");
    }
}

#[test]
fn what_was_sent_is_what_is_counted() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            match head.split(' ').nth(1).unwrap() {
                "/dies" if conn.index == 0 => return,
                "/cut" => {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello");
                    return;
                }
                "/missing" => conn.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                _ => conn.ok("hello"),
            };
        }
    });
    let daemon = daemon(&upstream.url(), &format!("{ADMIN}\nserver.workers = 2\n{IN_JSON}"), "");
    let before = metrics(&daemon);
    assert_counts(&before, &[("requests_total{up,status=\"2xx\"}", 0.0), ("requests_in_flight{up}", 0.0)]);
    let mut caller = caller(&daemon);
    caller.send(request("POST", "/", "123"));
    caller.reply();
    for path in ["/", "/dies", "/missing"] {
        caller.get(path);
    }
    assert!(!caller.get("/cut").is_whole);
    told(&daemon, 5);
    let unknown = exchange(daemon.connect(), "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(unknown.starts_with("HTTP/1.1 421 "), "{unknown}");
    let lines = told(&daemon, 6);
    let counted = metrics(&daemon);
    assert_counts(
        &counted,
        &[
            ("requests_total{up,status=\"2xx\"}", 4.0),
            ("requests_total{up,status=\"4xx\"}", 1.0),
            ("requests_total{route=\"-\",status=\"4xx\"}", 1.0),
            ("requests_in_flight{up}", 0.0),
            ("refusals_total{route=\"-\",code=\"unknown_host\"}", 1.0),
            ("refusals_total{up,code=\"unknown_host\"}", 0.0),
            ("attempts_total{up}", 6.0),
            ("retries_total{up,cause=\"endpoint\"}", 1.0),
            ("replies_cut_total{up,by=\"upstream\"}", 1.0),
            ("replies_cut_total{up,by=\"caller\"}", 0.0),
            ("request_body_bytes_total{up}", 3.0),
            ("reply_body_bytes_total{up}", 20.0),
            ("request_own_seconds_count{up}", 5.0),
            ("request_own_seconds_count{route=\"-\"}", 1.0),
            ("request_upstream_seconds_count{up}", 5.0),
            ("request_upstream_seconds_count{route=\"-\"}", 0.0),
            ("request_upstream_seconds_bucket{le=\"+Inf\",route=\"up\"}", 5.0),
            ("upstream_connections_opened_total{up,tls=\"none\"}", 2.0),
            ("upstream_connections_idle{up}", 0.0),
            ("held_bodies_bytes", 0.0),
        ],
    );
    let attempts: u64 = lines.iter().map(|line| line["attempts"].as_u64().unwrap()).sum();
    assert_eq!(attempts, 6, "the lines say what is counted: {lines:#?}");
    let waited: f64 = lines.iter().filter_map(|line| line["upstream_ms"].as_f64()).sum();
    let sum = counted["countersign_request_upstream_seconds_sum{route=\"up\"}"];
    assert!((sum * 1000.0 - waited).abs() < 0.1, "{sum} {waited}");
    let buckets: Vec<_> = ["0.0001", "0.01", "1.0", "60.0", "+Inf"]
        .map(|le| counted[&format!("countersign_request_upstream_seconds_bucket{{le=\"{le}\",route=\"up\"}}")])
        .to_vec();
    assert!(buckets.is_sorted(), "{buckets:?}");
}

#[test]
fn what_is_under_way_is_in_flight_and_its_connection_open() {
    let upstream = Upstream::start(|mut conn| {
        conn.request().unwrap();
        conn.send("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        conn.rest();
    });
    let daemon = daemon(&upstream.url(), ADMIN, "");
    let mut caller = caller(&daemon);
    caller.send("GET / HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
    caller.head().unwrap();
    let now = ("requests_in_flight{up}", "upstream_connections{up}", "requests_total{up,status=\"1xx\"}");
    assert_counts(&metrics(&daemon), &[(now.0, 1.0), (now.1, 1.0), (now.2, 0.0), ("connections", 1.0)]);
    drop(caller);
    let is_over = || metrics(&daemon)["countersign_requests_in_flight{route=\"up\"}"] == 0.0;
    await_that("the end of the tunnel", is_over);
    assert_counts(&metrics(&daemon), &[(now.1, 0.0), (now.2, 1.0)]);
}

#[test]
fn no_count_goes_back_when_the_configuration_changes() {
    let upstream = Upstream::start(|conn| conn.serve("hello"));
    let daemon = daemon(&upstream.url(), ADMIN, "");
    let file = daemon.folder().join("countersign.toml");
    let (with, idle) = (std::fs::read_to_string(&file).unwrap(), "upstream_connections_idle{up}");
    assert_eq!(caller(&daemon).get("/").status, 200);
    let count = "requests_total{up,status=\"2xx\"}";
    let mut before = metrics(&daemon);
    assert_counts(&before, &[(count, 1.0), (idle, 1.0), ("config_reloads_total{result=\"success\"}", 0.0)]);
    let without = with.split("[routes.up]").next().unwrap();
    for (content, reloads, failures) in [
        (without, 1.0, 0.0),
        ("nonsense", 1.0, 1.0),
        (with.as_str(), 2.0, 1.0),
        (&with.replace("the token", "another"), 3.0, 1.0),
    ] {
        std::fs::write(&file, content).unwrap();
        daemon.signal(Signal::SIGHUP);
        await_that("the reload", || {
            let now = metrics(&daemon);
            now["countersign_config_reloads_total{result=\"success\"}"] >= reloads
                && now["countersign_config_reloads_total{result=\"failure\"}"] >= failures
        });
        let now = metrics(&daemon);
        for (name, value) in before.iter().filter(|(name, _)| is_count(name)) {
            assert!(now.get(name).is_some_and(|now| now >= value), "{name} was {value}: {now:#?}");
        }
        before = now;
    }
    assert_eq!(caller(&daemon).get("/").status, 200);
    assert_counts(&metrics(&daemon), &[(count, 2.0), ("config_last_reload_successful", 1.0)]);
}

#[test]
fn a_resumed_session_is_told_from_a_whole_handshake() {
    let (upstream, folder) = super::secure_upstream(|mut conn| {
        conn.request().unwrap();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
        conn.close();
    });
    let top = format!("{ADMIN}\nserver.workers = 1");
    let configuration = super::configuration(&upstream.url(), &top, "tls.ca = \"ca.pem\"");
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    for _ in 0..2 {
        assert_eq!(caller(&daemon).get("/").status, 200);
    }
    let opened = |tls: &str| {
        metrics(&daemon)[&format!("countersign_upstream_connections_opened_total{{route=\"up\",tls=\"{tls}\"}}")]
    };
    let opened = ["none", "full", "resumed"].map(opened);
    assert_eq!(opened.map(|count| format!("{count}")), ["0", "1", "1"]);
}
