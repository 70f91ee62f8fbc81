//! Connections that are used again, and die between two requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

use countersign::clock::Clock;
use countersign::credential::AccessKey;
use countersign::demo::Stage;
use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::AcsRoa;
use secrecy::ExposeSecret;

use super::script::{Conn, Http, Upstream, await_that, header, request};
use super::{caller, configuration, daemon, secure_upstream};
use crate::daemon::{Daemon, connect};

/// The POSTs that an upstream got, by their ids.
pub(super) type Delivered = Arc<Mutex<HashMap<String, usize>>>;

/// Answers, but ends the connection at random: while it is idle, when a request arrives, or when it has been read. A
/// first request is always answered.
fn whimsical(delivered: Delivered) -> impl Fn(Conn) + Send + Sync + 'static {
    let seed = AtomicU64::new(1);
    move |mut conn| {
        let mut chance = Chance(seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed));
        let mut is_first = true;
        while let Some(head) = conn.head() {
            if !is_first && chance.one_in(12) {
                // Unread octets make the kernel send a reset.
                return if chance.one_in(2) { conn.reset() } else { conn.close() };
            }
            let Some(body) = conn.body(&head) else { return };
            if head.starts_with("POST ") {
                *delivered.lock().unwrap().entry(String::from_utf8(body).unwrap()).or_default() += 1;
            }
            if !is_first && chance.one_in(12) {
                return conn.close();
            }
            let is_answered = if head.starts_with("HEAD ") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
            } else {
                conn.ok("yes")
            };
            if !is_answered {
                return;
            }
            if chance.one_in(8) {
                return if chance.one_in(2) { conn.close() } else { drop(conn) };
            }
            is_first = false;
        }
    }
}

/// xorshift64: enough to be whimsical with.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(n)
    }
}

const CALLERS: usize = 8;
const READS: usize = 250;

fn read_and_write(daemon: &Daemon, delivered: &Delivered) {
    let address = daemon.address();
    let refused: usize = std::thread::scope(|scope| {
        let callers = (0..CALLERS).map(|number| scope.spawn(move || call(&mut Http::new(connect(address)), number)));
        callers.collect::<Vec<_>>().into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    let delivered = delivered.lock().unwrap();
    let total = CALLERS * READS / 5;
    assert!(delivered.values().all(|times| *times == 1), "a POST was delivered twice");
    assert!(delivered.len() + refused >= total, "{} of {total} arrived, {refused} were refused", delivered.len());
    assert!(delivered.len() > total / 2, "only {} of {total} arrived", delivered.len());
}

/// Sends a caller's share; returns how many of its POSTs were refused.
fn call(http: &mut Http<std::net::TcpStream>, number: usize) -> usize {
    let mut refused = 0;
    for round in 0..READS {
        let (method, body) = match round % 10 {
            0..=6 => ("GET", ""),
            7 => ("GET", "a small body"),
            8 => ("OPTIONS", ""),
            _ => ("HEAD", ""),
        };
        http.send(request(method, &format!("/{number}/{round}"), body));
        let reply = if method == "HEAD" { http.reply_without_body() } else { http.reply() };
        assert_eq!(reply.status, 200, "{method} {number}/{round}: {}{}", reply.head, reply.text());
        if round % 5 == 0 {
            http.send(request("POST", "/", &format!("{number}/{round}")));
            let reply = http.reply();
            if reply.status != 200 {
                reply.expect(502, "upstream_protocol");
                refused += 1;
            }
        }
    }
    refused
}

#[test]
fn no_read_fails_and_no_write_is_doubled_when_idle_connections_die() {
    let delivered = Delivered::default();
    let upstream = Upstream::start(whimsical(Arc::clone(&delivered)));
    read_and_write(&daemon(&upstream.url(), "log.access = false", ""), &delivered);
    assert!(upstream.connections() > READS, "too few connections died");
}

#[test]
fn no_read_fails_and_no_write_is_doubled_when_idle_connections_die_over_tls() {
    let delivered = Delivered::default();
    let (upstream, folder) = secure_upstream(whimsical(Arc::clone(&delivered)));
    let configuration = configuration(&upstream.url(), "log.access = false", "tls.ca = \"ca.pem\"");
    read_and_write(&Daemon::start_in(folder, &configuration, |_| {}), &delivered);
    assert!(upstream.connections() > READS, "too few connections died");
}

#[test]
fn a_read_goes_again_once_and_on_a_fresh_connection() {
    let (together, again) = (Barrier::new(2), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&again);
    let upstream = Upstream::start(move |mut conn| {
        conn.request();
        if conn.index < 2 {
            together.wait();
            conn.ok("first");
            if conn.request().is_some() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            return conn.close();
        }
        conn.ok("fresh");
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let (mut one, mut other) = (caller(&daemon), caller(&daemon));
    for caller in [&mut one, &mut other] {
        caller.send(request("GET", "/", ""));
    }
    for caller in [&mut one, &mut other] {
        assert_eq!(caller.reply().text(), "first");
    }
    assert_eq!(one.get("/").text(), "fresh");
    assert_eq!(again.load(Ordering::Relaxed), 1);
}

#[test]
fn a_fresh_connection_that_dies_is_not_tried_again() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.close();
    });
    let daemon = daemon(&upstream.url(), "", "");
    let message = caller(&daemon).get("/").expect(502, "upstream_protocol");
    assert!(message.contains("closed the connection before a reply"), "{message}");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_that_dies_inside_a_reply_is_not_tried_again() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.ok("first");
        conn.request();
        conn.send("HTTP/1.1 200");
        conn.close();
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    assert_eq!(caller.get("/").text(), "first");
    caller.get("/").expect(502, "upstream_protocol");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_that_says_close_is_not_used_again() {
    let upstream = Upstream::start(|mut conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1");
        conn.await_end();
    });
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    let mut caller = caller(&daemon);
    for _ in 0..3 {
        let reply = caller.get("/");
        assert_eq!((reply.status, reply.header("connection")), (200, None));
    }
    assert_eq!(upstream.connections(), 3);
    upstream.await_end(2);
}

#[test]
fn requests_one_after_the_other_share_a_connection() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "server.workers = 1", "");
    for _ in 0..5 {
        let mut caller = caller(&daemon);
        for _ in 0..20 {
            assert_eq!(caller.get("/").text(), "yes");
        }
        caller.send(request("POST", "/", "with a body"));
        assert_eq!(caller.reply().status, 200);
        caller.send(request("HEAD", "/", ""));
        assert_eq!(caller.reply_without_body().status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn idle_connections_are_closed_in_time() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "server.workers = 1", r#"timeouts.pool_idle = "100ms""#);
    let mut caller = caller(&daemon);
    assert_eq!(caller.get("/").status, 200);
    let began = Instant::now();
    upstream.await_end(0);
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert_eq!(caller.get("/").status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn idle_connections_are_kept_where_the_time_is_off() {
    let upstream = Upstream::start(|conn| conn.serve("yes"));
    let daemon = daemon(&upstream.url(), "server.workers = 1", r#"timeouts.pool_idle = "off""#);
    for _ in 0..3 {
        assert_eq!(caller(&daemon).get("/").status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_is_signed_anew() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let AccessKey { access_key, secret_key, .. } = &stage.access_key;
    let secret_key = secret_key.expose_secret();
    let table = format!("bce = {{ credentials = {{ access_key = \"{access_key}\", secret_key = \"{secret_key}\" }} }}");
    let heads = sent_again(stage.certificates, table, |head| {
        // The signature has whole seconds: a new one shows in the next.
        let signed = header(head, "x-bce-date").unwrap().to_owned();
        await_that("the next second", || jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string() > signed);
    });
    let heads = heads.await;
    assert!(stage.upstream.last_seen().unwrap().verdict.is_ok());
    let signatures = heads.each_ref().map(|head| header(head, "authorization").unwrap());
    assert_ne!(signatures[1], signatures[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_has_a_nonce_of_its_own() {
    let mut stage = Stage::start(Clock::system()).await.unwrap();
    let site = Site {
        name: "acs",
        transport: Transport::Plain,
        scheme: Box::new(AcsRoa::new(vec![stage.access_key.clone()])),
        service: Service::Echo,
    };
    let verifying = stage.upstream.listen(site).await.unwrap();
    let AccessKey { access_key, secret_key, .. } = &stage.access_key;
    let secret_key = secret_key.expose_secret();
    let table =
        format!("acs-roa = {{ credentials = {{ access_key = \"{access_key}\", secret_key = \"{secret_key}\" }} }}");
    let heads = sent_again(verifying, table, |_| {}).await;
    assert!(stage.upstream.last_seen().unwrap().verdict.is_ok());
    for name in ["x-acs-signature-nonce", "authorization"] {
        let values = heads.each_ref().map(|head| header(head, name).unwrap());
        assert!(values[0] != values[1] && values[1] != values[2] && values[0] != values[2], "{name}");
    }
}

/// Makes two calls over one connection, which dies when it has read the second: the heads of the three attempts. Those
/// that are answered are answered by `verifying`; `before_it_dies` sees the one that is not.
async fn sent_again(
    verifying: SocketAddr,
    provider: String,
    before_it_dies: impl Fn(&str) + Send + Sync + 'static,
) -> [String; 3] {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let upstream = Upstream::start({
        let heads = Arc::clone(&heads);
        move |mut conn| {
            let mut verifier = Http::new(connect(verifying));
            for round in 0.. {
                let Some((head, _)) = conn.request() else { return };
                heads.lock().unwrap().push(head.clone());
                if conn.index == 0 && round == 1 {
                    before_it_dies(&head);
                    return conn.close();
                }
                verifier.send(&head);
                let reply = verifier.reply();
                conn.send([reply.head.as_bytes(), &reply.body].concat());
            }
        }
    });
    let server = "server = { listen = [\"127.0.0.1:0\"], workers = 1 }";
    let configuration = format!("{server}\n[routes.up]\nupstream = \"{}\"\n{provider}\n", upstream.url());
    let calling = tokio::task::spawn_blocking(move || {
        let daemon = Daemon::start(&configuration);
        let mut caller = caller(&daemon);
        for _ in 0..2 {
            let reply = caller.get("/v1/certificate");
            assert_eq!(reply.status, 200, "{}{}", reply.head, reply.text());
        }
    });
    calling.await.unwrap();
    let heads = std::mem::take(&mut *heads.lock().unwrap());
    heads.try_into().unwrap()
}
