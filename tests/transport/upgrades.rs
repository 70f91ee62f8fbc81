//! Connections that become something else.

use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use super::script::{Conn, Upstream, await_that, header, request};
use super::{caller, configuration, daemon, secure_upstream};
use crate::daemon::{Daemon, PATIENCE};

/// A request that asks for an upgrade, as Docker's clients send it.
const ATTACH: &str = "POST /attach HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
                      Content-Length: 2\r\n\r\n{}";
const SWITCHED: &str = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
                        Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

/// Hands each connection that was switched to a test, which plays the upstream itself.
fn switching() -> (impl Fn(Conn) + Send + Sync + 'static, Receiver<Conn>) {
    let (sender, receiver): (Sender<Conn>, _) = mpsc::channel();
    let sender = Mutex::new(sender);
    let script = move |mut conn: Conn| {
        if conn.request().is_some() {
            conn.send(SWITCHED);
            sender.lock().unwrap().send(conn).unwrap();
        }
    };
    (script, receiver)
}

#[test]
fn octets_go_both_ways_and_each_direction_ends_on_its_own() {
    let secure = switching();
    let (secure, folder) = (secure_upstream(secure.0), secure.1);
    let ((upstream, ca), secure_conns) = (secure, folder);
    let secure_daemon = Daemon::start_in(ca, &configuration(&upstream.url(), "", "tls.ca = \"ca.pem\""), |_| {});
    let (script, conns) = switching();
    let plain = Upstream::start(script);
    let plain_daemon = daemon(&plain.url(), "", "");
    for (upstream, daemon, conns) in [(&plain, &plain_daemon, &conns), (&upstream, &secure_daemon, &secure_conns)] {
        for caller_first in [true, false] {
            let mut caller = caller(daemon);
            // The octets behind the body come before anybody has agreed to anything.
            caller.send(format!("{ATTACH}early"));
            let head = caller.head().unwrap();
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            for (name, value) in
                [("connection", "Upgrade"), ("upgrade", "tcp"), ("content-type", "application/vnd.docker.raw-stream")]
            {
                assert_eq!(header(&head, name), Some(value), "{head}");
            }
            assert!(header(&head, "x-countersign-request-id").is_some(), "{head}");
            assert_eq!((header(&head, "content-length"), header(&head, "transfer-encoding")), (None, None), "{head}");
            let mut conn = conns.recv_timeout(PATIENCE).unwrap();
            assert_eq!(conn.octets(5).unwrap(), b"early");
            assert!(conn.send("hello"));
            assert_eq!(caller.octets(5).unwrap(), b"hello");
            if caller_first {
                caller.send("last words");
                caller.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(conn.rest(), b"last words");
                assert!(conn.send("heard you"));
                conn.close();
                assert_eq!(caller.rest(), b"heard you");
            } else {
                assert!(conn.send("good bye"));
                conn.end_writing();
                assert_eq!(caller.rest(), b"good bye");
                caller.send("just a moment");
                caller.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(conn.rest(), b"just a moment");
            }
            assert!(!caller.was_reset);
            let head = upstream.received(upstream.connections() - 1).to_ascii_lowercase();
            assert!(head.contains("\r\nupgrade: tcp\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
            assert!(head.contains("\r\nx-auth-token: the token\r\n"), "{head}");
        }
    }
}

#[test]
fn a_caller_that_has_said_everything_before_the_switch_still_gets_its_answer() {
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = Mutex::new(allowed);
    let upstream = Upstream::start(move |mut conn| {
        conn.request().unwrap();
        let _ = allowed.lock().unwrap().recv_timeout(PATIENCE);
        conn.send(SWITCHED);
        let heard = conn.rest();
        conn.send(heard);
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    caller.send(format!("{ATTACH}all I have to say"));
    caller.stream.shutdown(Shutdown::Write).unwrap();
    upstream.await_connections(1);
    allow.send(()).unwrap();
    assert!(caller.head().unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(caller.rest(), b"all I have to say");
}

#[test]
fn no_clock_runs_in_a_tunnel() {
    let (script, conns) = switching();
    let upstream = Upstream::start(script);
    let limits = "limits.header_timeout = \"1s\"\nlimits.idle_timeout = \"1s\"";
    let daemon = daemon(&upstream.url(), limits, "timeouts = { response = \"1s\", body = \"1s\" }");
    let mut silent = caller(&daemon);
    silent.send(ATTACH);
    silent.head().unwrap();
    let mut conn = conns.recv_timeout(PATIENCE).unwrap();
    // What would have ended the tunnel ends an idle connection that was opened after it.
    let mut idle = caller(&daemon);
    assert!(idle.has_ended());
    std::thread::sleep(Duration::from_millis(1100));
    assert!(conn.send("still here"));
    assert_eq!(silent.octets(10).unwrap(), b"still here");
    silent.send("so am I");
    assert_eq!(conn.octets(7).unwrap(), b"so am I");
    // One that is not read for a while.
    let flood = std::thread::spawn(move || {
        conn.send(vec![b'x'; 32 << 20]);
        conn.close();
    });
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(silent.rest().len(), 32 << 20);
    flood.join().unwrap();
}

#[test]
fn a_tunnel_that_is_cut_on_one_side_is_cut_on_the_other() {
    let (script, conns) = switching();
    let upstream = Upstream::start(script);
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut first = caller(&daemon);
    first.send(ATTACH);
    first.head().unwrap();
    let mut conn = conns.recv_timeout(PATIENCE).unwrap();
    conn.send("half a sen");
    assert_eq!(first.octets(10).unwrap(), b"half a sen");
    conn.reset();
    assert_eq!(first.rest(), b"");
    assert!(first.was_reset);

    let mut second = caller(&daemon);
    second.send(ATTACH);
    second.head().unwrap();
    let mut conn = conns.recv_timeout(PATIENCE).unwrap();
    socket2::SockRef::from(&second.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(second);
    assert_eq!(conn.rest(), b"");
    upstream.await_end(1);
    // And nothing is left behind.
    await_that("both tunnels are gone", || daemon_sockets(&daemon, &upstream) == 1);
}

/// How many sockets of TCP the daemon holds, its listener among them: those that lead to an upstream, and those on its own
/// port. Once nobody holds a socket any more it has no inode.
fn daemon_sockets(daemon: &Daemon, upstream: &Upstream) -> usize {
    let own = format!(":{:04X}", daemon.address().port());
    let other = format!(":{:04X}", upstream.url().rsplit(':').next().unwrap().parse::<u16>().unwrap());
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", daemon.pid())).unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[9] != "0" && (row[1].ends_with(&own) || row[2].ends_with(&other))).count()
}

#[test]
fn a_refusal_is_a_reply_like_any_other() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let asked = header(&head, "upgrade").unwrap_or("nothing").to_owned();
            conn.ok(format!("asked for {asked}"));
        }
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    // The second request came before the first one's fate was known, and is a request all the same.
    caller.send(ATTACH.to_owned() + &request("GET", "/next", ""));
    assert_eq!(caller.reply().text(), "asked for tcp");
    assert_eq!(caller.reply().text(), "asked for nothing");
    assert_eq!(caller.get("/third").text(), "asked for nothing");
    let seen = upstream.received(0).to_ascii_lowercase();
    assert_eq!((upstream.connections(), seen.matches("x-auth-token: the token\r\n").count()), (1, 3), "{seen}");
}

#[test]
fn a_caller_that_ends_before_a_refusal_is_answered_and_not_kept() {
    let (refuse, refused) = mpsc::channel::<()>();
    let refused = Mutex::new(refused);
    let upstream = Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.starts_with("POST /attach ") {
                refused.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            conn.ok("no");
        }
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1\nlimits.idle_timeout = \"off\"", "");
    let mut caller = caller(&daemon);
    caller.send(ATTACH);
    upstream.await_connections(1);
    caller.stream.shutdown(Shutdown::Write).unwrap();
    // One thread serves both, so it has seen that end before it answers this.
    assert_eq!(super::caller(&daemon).get("/").text(), "no");
    refuse.send(()).unwrap();
    assert_eq!(caller.reply().text(), "no");
    assert!(caller.has_ended());
}

#[test]
fn only_an_upgrade_that_was_asked_for_is_passed_on() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let (upgrade, connection) = (header(&head, "upgrade"), header(&head, "connection"));
            let extra = if head.to_ascii_lowercase().contains("http2-settings") { " with settings" } else { "" };
            conn.ok(format!("{} {}{extra}", upgrade.unwrap_or("-"), connection.unwrap_or("-")));
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    for (headers, expected) in [
        ("Connection: Upgrade\r\nUpgrade: websocket", "websocket Upgrade"),
        ("Connection: keep-alive, upgrade\r\nUpgrade: websocket", "websocket Upgrade"),
        ("Connection: keep-alive\r\nConnection: UPGRADE\r\nUpgrade: a/1, b/2\r\nUpgrade: c", "a/1, b/2, c Upgrade"),
        ("Connection: Upgrade\r\nUpgrade: websocket, h2c", "websocket Upgrade"),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk", "- -"),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C, h2c\r\nHTTP2-Settings: AAMAAABk", "- -"),
        ("Connection: Upgrade", "- -"),
        ("Connection: Upgrade\r\nUpgrade: ", "- -"),
        ("Connection: Upgrade\r\nUpgrade: ,, ,", "- -"),
        ("Upgrade: websocket", "- -"),
        ("Connection: keep-alive\r\nUpgrade: websocket", "- -"),
    ] {
        caller.send(format!("GET / HTTP/1.1\r\nHost: up.localhost\r\n{headers}\r\n\r\n"));
        assert_eq!(caller.reply().text(), expected, "{headers}");
    }
    let old = "GET / HTTP/1.0\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(daemon.exchange(old).ends_with("\r\n\r\n- -"));
}

#[test]
fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let protocol = head.split(' ').nth(1).unwrap().trim_start_matches('/').replace('_', "\r\nUpgrade: ");
            let upgrade = if protocol.is_empty() { String::new() } else { format!("Upgrade: {protocol}\r\n") };
            conn.send(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{upgrade}\r\nGET /x"));
        }
    });
    let daemon = daemon(&upstream.url(), "", "");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (path, headers) in
        [("/websocket", ""), ("/h2c", upgrade), ("/", upgrade), ("/websocket_h2c", upgrade), ("/tcp", upgrade)]
    {
        let mut caller = caller(&daemon);
        caller.send(format!("GET {path} HTTP/1.1\r\nHost: up.localhost\r\n{headers}\r\n"));
        caller.reply().expect(502, "upstream_protocol");
        // The caller's own connection is as good as before, and what the upstream sent behind its head is nobody's reply.
        caller.send("GET / HTTP/1.0\r\nHost: up.localhost\r\n\r\n");
        caller.reply().expect(502, "upstream_protocol");
    }
    let mut caller = caller(&daemon);
    caller.send("GET /WebSocket HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(caller.head().unwrap().starts_with("HTTP/1.1 101 "), "names of protocols have no case");
    assert_eq!(caller.octets(6).unwrap(), b"GET /x");
}

#[test]
fn a_body_ends_before_a_tunnel_begins() {
    let (script, conns) = switching();
    let upstream = Upstream::start(script);
    let daemon = daemon(&upstream.url(), "limits.replay_body = \"4B\"\nlimits.signed_body = \"1KiB\"", "");
    let upgrade = "POST / HTTP/1.1\r\nHost: up.localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n";
    for framed in
        ["Content-Length: 10\r\n\r\n0123456789", "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n"]
    {
        let mut caller = caller(&daemon);
        caller.send(format!("{upgrade}{framed}tunnel"));
        assert!(caller.head().unwrap().starts_with("HTTP/1.1 101 "), "{framed}");
        let mut conn = conns.recv_timeout(PATIENCE).unwrap();
        assert_eq!(conn.octets(6).unwrap(), b"tunnel", "{framed}");
        assert!(upstream.received(upstream.connections() - 1).contains("\r\n\r\n0123456789"), "{framed}");
    }
    let mut caller = caller(&daemon);
    caller.send(format!("{upgrade}Content-Length: 2000\r\n\r\n"));
    caller.reply().expect(413, "body_too_large");
}

#[test]
fn a_caller_that_breaks_off_before_the_switch_leaves_nothing_behind() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "timeouts.response = \"300ms\"");
    let mut caller = caller(&daemon);
    caller.send(ATTACH);
    upstream.await_connections(1);
    drop(caller);
    // A caller that has gone looks like one that has said everything, so the upstream's time has to be over first.
    upstream.await_end(0);
    await_that("nothing is open", || daemon_sockets(&daemon, &upstream) == 1);
}

#[test]
fn the_end_of_what_a_caller_says_is_seen_even_where_nobody_listens() {
    let (script, conns) = switching();
    let upstream = Upstream::start(script);
    let daemon = daemon(&upstream.url(), "", "");
    let mut caller = caller(&daemon);
    caller.send(ATTACH);
    caller.head().unwrap();
    let mut conn = conns.recv_timeout(PATIENCE).unwrap();
    caller.send(vec![b'x'; 1 << 20]);
    caller.stream.shutdown(Shutdown::Write).unwrap();
    let ports = (daemon.address().port(), caller.stream.local_addr().unwrap().port());
    await_that("everything is taken, with its end", || unread(&daemon, ports) == Some(0));
    assert_eq!(conn.rest().len(), 1 << 20);
}

/// How many octets wait at a daemon's end of a connection between these ports, their end among them.
fn unread(daemon: &Daemon, (own, other): (u16, u16)) -> Option<usize> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", daemon.pid())).unwrap();
    let (own, other) = (format!(":{own:04X}"), format!(":{other:04X}"));
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|row| row[1].ends_with(&own) && row[2].ends_with(&other))?;
    usize::from_str_radix(row[4].split_once(':')?.1, 16).ok()
}
