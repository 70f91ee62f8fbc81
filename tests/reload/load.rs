//! Callers that never stop asking, and changes under their load.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;

use crate::daemon::{Daemon, PATIENCE, connect, write_configuration};
use crate::script::{Http, Upstream, await_that, header};
use crate::{SERVER, caller, swap_configuration};

/// Callers over HTTP/1.1 and HTTP/2 that keep their connections and ask a route again and again.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// How often each answer came.
    answers: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Load {
    /// Asks the route of this name for this path.
    pub(crate) fn start(address: SocketAddr, route: &str, path: &str) -> Self {
        let (is_over, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let mut threads = Vec::new();
        for index in 0..4 {
            let (route, path) = (route.to_owned(), path.to_owned());
            let (is_over, seen) = (Arc::clone(&is_over), Arc::clone(&seen));
            threads.push(std::thread::spawn(move || {
                let note = |status: u16, text: String| {
                    let mut seen = seen.lock().unwrap();
                    if status == 200 {
                        *seen.answers.entry(text).or_default() += 1;
                    } else {
                        seen.failures.push(format!("{status} {text}"));
                    }
                    // Others want to run as well.
                    drop(seen);
                    std::thread::sleep(Duration::from_millis(3));
                    !is_over.load(Ordering::Relaxed)
                };
                if index % 2 == 0 {
                    in_turns(address, &route, &path, note);
                } else {
                    in_streams(address, &route, &path, note);
                }
            }));
        }
        Self { is_over, seen, threads }
    }

    /// Waits for an answer.
    pub(crate) fn await_answer(&self, text: &str) {
        await_that(&format!("the answer {text:?}"), || {
            let (failures, is_there) = {
                let seen = self.seen.lock().unwrap();
                (seen.failures.clone(), seen.answers.contains_key(text))
            };
            assert_eq!(failures, [] as [String; 0]);
            is_there
        });
    }

    /// Ends it, and returns how often each answer came; panics if anything but answers came.
    pub(crate) fn end(self) -> BTreeMap<String, usize> {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        assert_eq!(seen.failures, [] as [String; 0]);
        #[expect(clippy::print_stdout, reason = "what a test has seen is for whoever asks for it")]
        {
            println!("{} requests, none of which failed", seen.answers.values().sum::<usize>());
        }
        seen.answers
    }
}

fn in_turns(address: SocketAddr, route: &str, path: &str, note: impl Fn(u16, String) -> bool) {
    let mut http = Http::new(connect(address));
    loop {
        http.send(format!("GET {path} HTTP/1.1\r\nHost: {route}.localhost\r\n\r\n"));
        let Some(reply) = http.try_reply() else {
            note(0, "the connection ended".to_owned());
            return;
        };
        if !note(reply.status, reply.text()) {
            return;
        }
    }
}

fn in_streams(address: SocketAddr, route: &str, path: &str, note: impl Fn(u16, String) -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let _connection = tokio::spawn(connection);
        loop {
            let ask = async {
                sender = sender.clone().ready().await?;
                let request = http::Request::get(format!("http://{route}.localhost{path}")).body(()).unwrap();
                let (response, _) = sender.send_request(request, true)?;
                let (head, mut body) = response.await?.into_parts();
                let mut text = Vec::<Bytes>::new();
                while let Some(piece) = body.data().await {
                    text.push(piece?);
                }
                Ok::<_, h2::Error>((head.status.as_u16(), String::from_utf8(text.concat()).unwrap()))
            };
            let (status, text) = match tokio::time::timeout(PATIENCE, ask).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => (0, error.to_string()),
                Err(_) => (0, "no answer".to_owned()),
            };
            if !note(status, text) || status == 0 {
                return;
            }
        }
    });
}

/// Answers with its name and the version that the daemon has set.
fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            let version = header(&head, "x-version").unwrap_or("-").to_owned();
            if !conn.ok(format!("{name} {version}")) {
                return;
            }
        }
    })
}

fn ask(daemon: &Daemon, route: &str, path: &str) -> u16 {
    let mut caller = caller(daemon);
    caller.send(format!("GET {path} HTTP/1.1\r\nHost: {route}.localhost\r\n\r\n"));
    caller.reply().status
}

/// As many as the daemon is asked to survive.
pub(crate) const CHANGES: usize = 50;

#[test]
fn every_change_of_the_configuration_is_taken_over_without_a_failed_request() {
    let upstreams = [named("first"), named("second")];
    let version = |number: usize| {
        let upstream = upstreams[number / 4 % 2].url();
        let other = number % 4 == 3;
        let keys = format!("headers = {{ X-Version = \"{number}\" }}\nallow = [\"GET /\", \"GET /only-{number}\"]");
        let other = if other { crate::route(&format!("other-{number}"), &upstream, "") } else { String::new() };
        SERVER.to_owned() + &crate::route("up", &upstream, &keys) + &other
    };
    let daemon = Daemon::start(&version(0));
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        let configuration = version(number);
        if number % 2 == 0 {
            swap_configuration(daemon.folder(), &configuration);
        } else {
            write_configuration(daemon.folder(), &configuration);
        }
        if number % 5 == 0 {
            daemon.signal(Signal::SIGHUP);
        }
        let name = ["first", "second"][number / 4 % 2];
        load.await_answer(&format!("{name} {number}"));
        await_that("the new `allow`", || ask(&daemon, "up", &format!("/only-{number}")) == 200);
        // Another thread may take it over a moment later.
        await_that("no old `allow`", || ask(&daemon, "up", &format!("/only-{}", number - 1)) == 403);
        if number % 4 == 3 {
            await_that("the new route", || ask(&daemon, &format!("other-{number}"), "/") == 200);
        } else if number % 4 == 0 {
            await_that("no old route", || ask(&daemon, &format!("other-{}", number - 1), "/") == 421);
        }
    }
    assert_eq!(load.end().len(), CHANGES + 1);
}
