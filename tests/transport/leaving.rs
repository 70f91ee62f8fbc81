//! Callers that leave, and a daemon that is told to.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::script::{Upstream, request};
use super::{caller, configuration, daemon};
use crate::daemon::Daemon;

/// An upstream that never answers.
fn silent() -> Upstream {
    Upstream::start(|mut conn| {
        conn.head();
        conn.await_end();
    })
}

#[test]
fn a_caller_that_leaves_ends_its_request_whatever_it_sent_behind_it() {
    let upstream = silent();
    let daemon = daemon(&upstream.url(), "", r#"timeouts = { response = "off", body = "off" }"#);
    let with_more = request("POST", "/", "abc") + "\r\n";
    let two = request("GET", "/", "") + &request("GET", "/", "");
    for (index, octets) in [request("GET", "/", ""), two, with_more].into_iter().enumerate() {
        let mut caller = caller(&daemon);
        caller.send(octets);
        upstream.await_connections(index + 1);
        drop(caller);
        upstream.await_end(index);
    }
}

#[test]
fn a_second_signal_does_not_wait_for_what_is_unanswered() {
    let upstream = silent();
    let mut daemon = daemon(&upstream.url(), r#"server.drain_timeout = "5m""#, "");
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    upstream.await_connections(1);
    daemon.signal(Signal::SIGTERM);
    daemon.await_log("told to stop");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn a_socket_that_a_successor_has_bound_is_left_to_it() {
    let upstream = silent();
    let listen = r#"listen = ["unix:DIR/up.sock"]"#;
    let mut old = daemon(&upstream.url(), "", listen);
    let path = old.folder().join("up.sock");
    let mut caller = caller(&old);
    caller.send(request("GET", "/", ""));
    upstream.await_connections(1);
    old.signal(Signal::SIGTERM);
    super::script::await_that("the old daemon has stopped listening", || UnixStream::connect(&path).is_err());
    let there = configuration(&upstream.url(), "", listen).replace("DIR", old.folder().to_str().unwrap());
    let new = Daemon::start(&there);
    drop(caller);
    assert_eq!(old.wait().code(), Some(0));
    UnixStream::connect(&path).expect("the new daemon's socket is there");
    drop(new);
}

#[test]
fn whoever_came_before_the_drain_is_answered() {
    let upstream = Upstream::start(|conn| conn.serve("ok"));
    let is_in_time = |_: &usize| {
        let mut daemon = daemon(&upstream.url(), "", "");
        let mut callers: Vec<_> = (0..8).map(|_| caller(&daemon)).collect();
        let told = Instant::now();
        daemon.signal(Signal::SIGTERM);
        daemon.await_log("told to stop");
        for caller in &mut callers {
            let _ = caller.stream.write_all(request("GET", "/", "").as_bytes());
        }
        // They have half a second for that, which a busy machine may have taken for itself.
        if told.elapsed() > Duration::from_millis(400) {
            return false;
        }
        for caller in &mut callers {
            assert_eq!(caller.reply().text(), "ok");
        }
        assert_eq!(daemon.wait().code(), Some(0));
        true
    };
    assert_eq!((0..100).filter(is_in_time).take(10).count(), 10, "the machine is too slow to tell");
}

#[test]
fn callers_that_say_nothing_do_not_hold_up_the_drain() {
    let upstream = Upstream::start(|conn| conn.serve("served"));
    let mut daemon = daemon(&upstream.url(), "server.workers = 1\nlimits.header_timeout = \"off\"", "");
    let settings = "\0\0\0\x04\0\0\0\0\0";
    let silent = ["", "PRI * HTTP/2.0", &format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{settings}")].map(|start| {
        let mut caller = caller(&daemon);
        caller.send(start);
        caller
    });
    // Connections are accepted in turn, so those have been.
    assert_eq!(caller(&daemon).get("/").text(), "served");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    drop(silent);
}
