//! The provider's own limits, which callers share behind the daemon.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::script::{Http, Reply, Upstream, await_that};

/// An upstream that answers everything but polls at once, and polls when their time has come.
struct Server {
    upstream: Upstream,
    /// How often each target, or a form, has come.
    seen: Arc<Mutex<HashMap<String, usize>>>,
}

impl Server {
    fn start() -> Self {
        let seen = Arc::<Mutex<HashMap<String, usize>>>::default();
        let journal = Arc::clone(&seen);
        let upstream = Upstream::start(move |mut conn| {
            while let Some((head, body)) = conn.request() {
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let body = String::from_utf8(body).unwrap();
                let is_poll = body.starts_with("Probe") && !head.to_ascii_lowercase().contains("nohangup: true");
                *journal.lock().unwrap().entry(target + &body).or_default() += 1;
                if is_poll && !body.contains("news") {
                    return conn.await_end();
                }
                conn.ok("here");
            }
        });
        Self { upstream, seen }
    }

    /// How many requests have come for what is named so.
    fn count(&self, name: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|(seen, _)| seen.contains(name)).map(|(_, count)| count).sum()
    }

    fn route(&self, name: &str, options: &str) -> String {
        format!(
            "[routes.{name}]\nupstream = \"{}\"\n[routes.{name}.acm]\n\
             credentials = {{ access_key = \"ak\", secret_key = \"sk\" }}\n{options}\n",
            self.upstream.url()
        )
    }
}

fn daemon(tables: &str) -> Daemon {
    Daemon::start(&format!("server.listen = [\"127.0.0.1:0\"]\nserver.workers = 2\n{tables}"))
}

/// A request that has been sent, on a connection of its own.
fn send(daemon: &Daemon, route: &str, line: &str, headers: &str, body: &str) -> Http<TcpStream> {
    let mut caller = Http::new(daemon.connect());
    let form = "Content-Type: application/x-www-form-urlencoded";
    let framing = if body.is_empty() { String::new() } else { format!("{form}\r\nContent-Length: {}\r\n", body.len()) };
    caller.send(format!("{line} HTTP/1.1\r\nHost: {route}.localhost\r\n{headers}{framing}\r\n{body}"));
    caller
}

fn read(daemon: &Daemon, route: &str, name: &str) -> Http<TcpStream> {
    send(daemon, route, &format!("GET /diamond-server/config.co?dataId={name}&group=g"), "", "")
}

fn change(daemon: &Daemon, name: &str) -> Http<TcpStream> {
    let line = "POST /diamond-server/basestone.do?method=syncUpdateAll";
    send(daemon, "acm", line, "", &format!("dataId={name}&group=g&content=c"))
}

fn poll(daemon: &Daemon, name: &str) -> Http<TcpStream> {
    poll_with(daemon, "acm", "", name)
}

fn poll_with(daemon: &Daemon, route: &str, headers: &str, name: &str) -> Http<TcpStream> {
    let headers = format!("longPullingTimeout: 30000\r\n{headers}");
    let body = format!("Probe-Modify-Request={name}%02g%02%01");
    send(daemon, route, "POST /diamond-server/config.co", &headers, &body)
}

fn assert_refused(reply: &Reply) -> String {
    let message = reply.expect(429, "rate_limited");
    let seconds: u64 = reply.header("retry-after").expect("a time to come again").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    message
}

/// How many of the requests were let through; the others were refused as they should be.
fn count_passed(callers: Vec<Http<TcpStream>>) -> usize {
    let is_passed = |mut caller: Http<TcpStream>| {
        let reply = caller.reply();
        let is_passed = (reply.status, reply.text().as_str()) == (200, "here");
        assert!(is_passed || assert_refused(&reply).contains("a second"), "{}", reply.head);
        is_passed
    };
    callers.into_iter().map(is_passed).filter(|is_passed| *is_passed).count()
}

#[test]
fn of_one_configuration_only_as_much_is_asked_as_the_provider_allows() {
    let server = Server::start();
    let daemon = daemon(&[server.route("acm", ""), server.route("free", "rate_limit = false")].concat());
    // As many as nobody sends so slowly that all of them could pass.
    for (at_once, a_second, most, ask) in [
        (15, 10, 200, (|daemon, name| read(daemon, "acm", name)) as fn(&Daemon, &str) -> Http<TcpStream>),
        (7, 5, 100, change),
    ] {
        let name = format!("hot{a_second}");
        let began = Instant::now();
        let passed = count_passed((0..most).map(|_| ask(&daemon, &name)).collect());
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
        assert_eq!(server.count(&name), passed);
        assert!(passed >= at_once && passed <= at_once + a_second * seconds, "{passed} of {most} in {seconds} seconds");
        let others = (0..40).map(|index| ask(&daemon, &format!("cold{index}"))).collect();
        assert_eq!(count_passed(others), 40);
    }
    // What is read is counted apart from what is changed.
    assert_eq!(count_passed(vec![read(&daemon, "acm", "hot5")]), 1);
    assert_eq!(count_passed((0..100).map(|_| read(&daemon, "free", "unlimited")).collect()), 100);
    let unnamed = "GET /diamond-server/basestone.do?method=getAllConfigByTenant&tenant=t";
    assert_eq!(count_passed((0..100).map(|_| send(&daemon, "acm", unnamed, "", "")).collect()), 100);
}

#[test]
fn a_batch_counts_for_each_that_it_names() {
    let server = Server::start();
    let daemon = daemon(&server.route("acm", ""));
    let batch = |ids: &str| {
        let line = "POST /diamond-server/config.co?method=batchGetConfig";
        send(&daemon, "acm", line, "", &format!("dataIds={ids}&group=g"))
    };
    assert_eq!(count_passed((0..20).map(|index| batch(&format!("a{index}%02b{index}"))).collect()), 20);
    let began = Instant::now();
    let passed = count_passed((0..200).map(|index| batch(&format!("hot%02c{index}"))).collect());
    let passed = passed + count_passed((0..200).map(|_| read(&daemon, "acm", "hot")).collect());
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!(passed >= 15 && passed <= 15 + 10 * seconds, "{passed} in {seconds} seconds");
}

#[test]
fn no_more_polls_wait_than_the_provider_allows() {
    let server = Server::start();
    let daemon = daemon(&[server.route("acm", ""), server.route("free", "rate_limit = false")].concat());
    let await_polls = |count| await_that("the polls are waiting", || server.count("=quiet") == count);
    let mut waiting: Vec<_> = (0..30).map(|_| poll(&daemon, "quiet")).collect();
    await_polls(30);
    assert!(assert_refused(&poll(&daemon, "quiet").reply()).contains("30 polls"));
    // Nothing else is held up by them, nor a poll that does not wait.
    assert_eq!(read(&daemon, "acm", "d").reply().status, 200);
    assert_eq!(poll_with(&daemon, "acm", "longPullingNoHangUp: true\r\n", "d").reply().text(), "here");
    assert_eq!(poll_with(&daemon, "free", "", "news").reply().text(), "here");
    // A caller that leaves makes room for another, whose end makes room for the next.
    drop(waiting.pop());
    await_that("a place is free", || poll(&daemon, "news").reply().status == 200);
    for _ in 0..3 {
        assert_eq!(poll(&daemon, "news").reply().text(), "here");
    }
    waiting.push(poll(&daemon, "quiet"));
    await_polls(31);
    assert_refused(&poll(&daemon, "news").reply());
}

#[test]
fn a_reload_forgets_nothing_of_what_was_asked() {
    let server = Server::start();
    let tables = format!("server.listen = [\"127.0.0.1:0\"]\n{}", server.route("acm", ""));
    let daemon = Daemon::start(&tables);
    let waiting: Vec<_> = (0..30).map(|_| poll(&daemon, "quiet")).collect();
    await_that("the polls are waiting", || server.count("=quiet") == 30);
    let reload = |tables: &str| {
        // At once, so that a part of it is never taken for all.
        let folder = tempfile::tempdir_in(daemon.folder()).unwrap();
        let file = crate::daemon::write_configuration(folder.path(), tables);
        std::fs::rename(file, daemon.folder().join("countersign.toml")).unwrap();
        daemon.signal(Signal::SIGHUP);
    };
    let other = tables.clone() + &server.route("other", "");
    reload(&other);
    await_that("the other route", || poll_with(&daemon, "other", "", "news").reply().text() == "here");
    assert_refused(&poll(&daemon, "news").reply());
    reload(&other.replace("\"sk\" }\n", "\"sk\" }\nrate_limit = false\n"));
    await_that("no limit", || poll(&daemon, "news").reply().text() == "here");
    drop(waiting);
}

#[test]
fn polls_do_not_hold_up_the_drain() {
    let server = Server::start();
    let tables = [server.route("acm", ""), server.route("free", "rate_limit = false")].concat();
    // One thread, so that the drain has begun for all of them once it has for one.
    let server_settings = "server = { listen = [\"127.0.0.1:0\"], workers = 1, drain_timeout = \"5m\" }";
    let mut daemon = Daemon::start(&format!("{server_settings}\n{tables}"));
    let mut waiting: Vec<_> = (0..4).map(|_| poll(&daemon, "quiet")).collect();
    waiting.extend((0..4).map(|_| poll_with(&daemon, "free", "", "quiet")));
    await_that("the polls are waiting", || server.count("=quiet") == 8);
    // This one comes later, on a connection that has been accepted before, and in two parts.
    let mut late = Http::new(daemon.connect());
    let body = "Probe-Modify-Request=late%02g%02%01";
    let head = "POST /diamond-server/config.co HTTP/1.1\r\nHost: acm.localhost\r\nlongPullingTimeout: 30000\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n";
    late.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
    assert_eq!(read(&daemon, "acm", "d").reply().status, 200);
    daemon.signal(Signal::SIGTERM);
    for caller in &mut waiting {
        let reply = caller.reply();
        assert_eq!((reply.status, reply.text().as_str(), reply.is_whole), (200, "", true), "{}", reply.head);
        assert_eq!((reply.code(), reply.header("content-length")), (None, Some("0")), "{}", reply.head);
    }
    late.stream.write_all(body.as_bytes()).unwrap();
    let reply = late.reply();
    assert_eq!((reply.status, reply.text().as_str()), (200, ""), "{}", reply.head);
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(server.count("=late"), 0);
    assert_eq!(daemon.log().matches("status=200 by=\"proxy\"").count(), 9, "{}", daemon.log());
}
