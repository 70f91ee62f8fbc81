//! What takes a restart, and restarts.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::daemon::{Daemon, write_configuration};
use crate::script::{Upstream, request};
use crate::{SERVER, caller, count, reload, route, status};

#[test]
fn what_takes_a_restart_is_said_in_one_warning() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let good = SERVER.to_owned() + &route("up", &upstream.url(), "");
    let daemon = Daemon::start(&good);
    let said = "takes effect at the next start";
    let other = good.replace("workers = 2", "workers = 1").replace("admin.sock", "other.sock");
    let other = format!("log = {{ level = \"debug\", format = \"json\" }}\n{other}");
    reload(&daemon, || drop(write_configuration(daemon.folder(), &other)));
    assert_eq!(count(&daemon, said), 1, "{}", daemon.log());
    let warning = status(&daemon)["warnings"].to_string();
    assert!(warning.contains("`server.workers`, `[admin]`, `log.level`, `log.format`"), "{warning}");
    reload(&daemon, || drop(write_configuration(daemon.folder(), &good)));
    assert_eq!(count(&daemon, said), 1, "{}", daemon.log());
    assert_eq!(status(&daemon)["warnings"].as_array().map(Vec::len), Some(0));
}

#[test]
fn the_time_to_drain_is_the_newest() {
    let upstream = Upstream::start(|mut conn| {
        conn.head();
        conn.await_end();
    });
    let good = SERVER.to_owned() + &route("up", &upstream.url(), "");
    let mut daemon = Daemon::start(&good.replace("workers = 2", "workers = 2, drain_timeout = \"10m\""));
    let short = good.replace("workers = 2", "workers = 2, drain_timeout = \"100ms\"");
    reload(&daemon, || drop(write_configuration(daemon.folder(), &short)));
    let mut caller = caller(&daemon);
    caller.send(request("GET", "/", ""));
    upstream.await_connections(1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.log().contains("`server.drain_timeout` passed"), "{}", daemon.log());
}

#[test]
fn none_of_a_thousand_is_lost_when_it_is_told_to_stop() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let configuration = SERVER.to_owned() + &route("up", &upstream.url(), "");
    let is_in_time = |_: &usize| {
        let mut daemon = Daemon::start(&configuration);
        let mut callers: Vec<_> = (0..100).map(|_| caller(&daemon)).collect();
        let (early, late) = callers.split_at_mut(50);
        for caller in &mut *early {
            caller.send(request("GET", "/", ""));
        }
        let told = Instant::now();
        daemon.signal(Signal::SIGTERM);
        for caller in &mut *late {
            let _ = caller.stream.write_all(request("GET", "/", "").as_bytes());
        }
        // They have half a second for that, which a busy machine may have taken for itself.
        let is_in_time = told.elapsed() < Duration::from_millis(400);
        for caller in early.iter_mut().chain(late.iter_mut().filter(|_| is_in_time)) {
            assert_eq!(caller.reply().text(), "up");
        }
        assert_eq!(daemon.wait().code(), Some(0));
        is_in_time
    };
    assert_eq!((0..100).filter(is_in_time).take(10).count(), 10, "the machine is too slow to tell");
}

#[test]
fn a_killed_daemon_is_up_again_at_once() {
    let upstream = Upstream::start(|conn| conn.serve("up"));
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let server = SERVER.replace("[\"127.0.0.1:0\"]", "[\"127.0.0.1:0\", \"unix:DIR/cs.sock\"]").replace("DIR", here);
    for _ in 0..10 {
        let daemon = Daemon::start(&(server.clone() + &route("up", &upstream.url(), "")));
        assert_eq!(caller(&daemon).get("/").text(), "up");
        drop(daemon);
        assert!(folder.path().join("cs.sock").exists(), "killed, it cannot have removed it");
    }
}
