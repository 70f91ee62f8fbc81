//! Servers that an address server names (spec/acm.md, section 5): the list, and the way through it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use countersign::clock::Clock;

use crate::cloud::Cloud;
use crate::lists::{Does, FINE, Server};
use crate::ports::reserve;
use crate::scene::{Proxy, acm, key, later, now, start_cloud, written};
use crate::script::{Reply, Upstream, await_that, header};

const CONFIG: &str = "/diamond-server/config.co?dataId=a&group=G&tenant=T";

/// An address server that says what it is told to.
struct Directory {
    answer: Arc<Mutex<String>>,
    upstream: Upstream,
    asked: Arc<Mutex<usize>>,
}

fn list(servers: &[SocketAddr]) -> String {
    let lines: Vec<_> = servers.iter().map(ToString::to_string).collect();
    answer(200, &(lines.join("\r\n") + "\n"))
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

impl Directory {
    fn start(answer: String) -> Self {
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::<Mutex<usize>>::default());
        let (now, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let upstream = Upstream::start(move |mut conn| {
            let Some(head) = conn.head() else { return };
            assert!(head.starts_with("GET /diamond-server/diamond HTTP/1.1\r\n"), "{head}");
            assert_eq!(header(&head, "spas-signature"), None, "{head}");
            let answer = now.lock().unwrap().clone();
            conn.send(answer);
            *count.lock().unwrap() += 1;
        });
        Self { answer, upstream, asked }
    }

    fn says(&self, answer: String) {
        *self.answer.lock().unwrap() = answer;
    }
}

/// A daemon whose servers the directory names, and its clock.
struct Scene {
    clock: Clock,
    directory: Directory,
    proxy: Proxy,
    _cloud: Cloud,
}

impl Scene {
    fn start(servers: &[SocketAddr], keys: &str, option: &str) -> Self {
        Self::start_with(list(servers), keys, option, &Clock::fixed(now()))
    }

    fn start_with(answer: String, keys: &str, option: &str, clock: &Clock) -> Self {
        let cloud = start_cloud(clock);
        let directory = Directory::start(answer);
        let credentials = written(&key());
        let route = acm(&cloud).route_with("up", "http://unused", keys, &credentials);
        let address = format!("address_server = \"{}\"\n{option}\n", directory.upstream.url());
        let route = route
            .replace("upstream = \"http://unused\"\n", "")
            .replace("[routes.up.acm]\n", &format!("[routes.up.acm]\n{address}"));
        let proxy = Proxy::start(&cloud, clock, &route);
        Self { clock: clock.clone(), directory, proxy, _cloud: cloud }
    }

    /// Lets the directory be asked again, and waits until that was answered.
    fn refresh(&self) {
        let before = *self.directory.asked.lock().unwrap();
        await_that("the directory is asked again", || {
            self.clock.set(later(self.clock.now(), 31));
            std::thread::sleep(std::time::Duration::from_millis(20));
            *self.directory.asked.lock().unwrap() > before
        });
    }

    fn get(&self) -> Reply {
        self.proxy.get(CONFIG)
    }

    fn post(&self) -> Reply {
        self.proxy.ask("up", "POST", "/diamond-server/basestone.do?method=syncUpdateAll", "")
    }
}

fn retry(reply: &Reply) -> Option<&str> {
    crate::scene::retry(reply)
}

fn addresses<const N: usize>(servers: &[Server; N]) -> [SocketAddr; N] {
    servers.each_ref().map(|server| server.address)
}

#[test]
fn the_list_is_learned_at_the_start_and_one_server_is_stayed_with() {
    let servers = [Server::start(FINE), Server::start(FINE), Server::start(FINE)];
    let scene = Scene::start(&addresses(&servers), "", "");
    let first = scene.get();
    assert_eq!((first.status, retry(&first)), (200, None), "{}", first.text());
    for _ in 0..10 {
        assert_eq!(scene.get().text(), first.text());
    }
    // Another order is no news.
    let mut reversed = addresses(&servers);
    reversed.reverse();
    scene.directory.says(list(&reversed));
    for _ in 0..3 {
        scene.refresh();
        assert_eq!(scene.get().text(), first.text());
    }
}

#[test]
fn a_good_list_outlives_every_bad_one() {
    let server = Server::start(FINE);
    let scene = Scene::start(&[server.address], "", "");
    assert_eq!(scene.get().status, 200);
    for bad in [
        answer(500, &server.address.to_string()),
        answer(404, ""),
        answer(200, ""),
        answer(200, "\r\n \n\n"),
        answer(200, "<html>\nno server here, sorry\n</html>"),
        answer(200, "\u{fffd}\0\u{1}"),
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n127.0".to_owned(),
        "no HTTP at all\r\n\r\n".to_owned(),
        String::new(),
    ] {
        scene.directory.says(bad.clone());
        scene.refresh();
        let reply = scene.get();
        assert_eq!((reply.status, reply.text()), (200, server.address.to_string()), "{bad:?}");
    }
    let other = Server::start(FINE);
    scene.directory.says(list(&[other.address]));
    await_that("the next good list", || {
        scene.refresh();
        scene.get().text() == other.address.to_string()
    });
}

#[test]
fn without_any_list_the_caller_is_told_why_until_there_is_one() {
    let server = Server::start(FINE);
    let scene = Scene::start_with(answer(500, ""), "", "", &Clock::system());
    let message = scene.get().expect(502, "upstream_unreachable");
    assert!(message.contains("answered 500") && message.contains("list of servers"), "{message}");
    scene.directory.says(list(&[server.address]));
    await_that("a list", || scene.get().status == 200);
}

#[test]
fn a_get_goes_round_the_servers_signed_anew_for_each() {
    let clock = Clock::fixed(now());
    let servers: Vec<_> =
        [Does::Answer(500, ""), Does::Answer(502, ""), Does::Answer(503, "Retry-After: 7\r\n"), Does::Reset]
            .into_iter()
            .map(|does| {
                let clock = clock.clone();
                // Time passes, so that what was signed shows when.
                Server::start_then(does, move || clock.set(later(clock.now(), 1)))
            })
            .collect();
    let (nobody, _socket) = reserve();
    let mut all: Vec<_> = servers.iter().map(|server| server.address).collect();
    all.push(nobody);
    let scene = Scene::start_with(list(&all), "", "", &clock);
    let reply = scene.get();
    assert_eq!(retry(&reply), Some("endpoint"), "{}", reply.head);
    assert!(matches!(reply.status, 500 | 502 | 503), "{}", reply.head);
    let heads: Vec<_> = servers
        .iter()
        .flat_map(|server| {
            let heads = server.heads();
            assert_eq!(heads.len(), 1, "each is asked once");
            assert_eq!(header(&heads[0], "host"), Some(&*server.address.to_string()));
            heads
        })
        .collect();
    for name in ["timestamp", "spas-signature"] {
        let distinct: BTreeSet<_> = heads.iter().map(|head| header(head, name).unwrap()).collect();
        assert_eq!(distinct.len(), servers.len(), "{name}");
    }
    // The one that is good again gets everything.
    servers[1].turn(FINE);
    let reply = scene.get();
    assert_eq!((reply.status, reply.text()), (200, servers[1].address.to_string()));
    for _ in 0..5 {
        let reply = scene.get();
        assert_eq!((reply.text(), retry(&reply)), (servers[1].address.to_string(), None));
    }
}

#[test]
fn a_silent_server_is_left_and_rests() {
    let servers = [Server::start(Does::Nothing), Server::start(Does::Nothing)];
    let scene = Scene::start(&addresses(&servers), "timeouts = { response = \"3s\" }", "");
    scene.get().expect(504, "upstream_timeout");
    assert_eq!((servers[0].count(), servers[1].count()), (1, 1));
    servers[0].turn(FINE);
    assert_eq!(scene.get().text(), servers[0].address.to_string());
    servers[1].heads();
    for _ in 0..5 {
        let reply = scene.get();
        assert_eq!((reply.text(), retry(&reply)), (servers[0].address.to_string(), None));
    }
    assert_eq!(servers[1].count(), 0);
}

#[test]
fn answers_are_no_failures() {
    for status in [400, 403, 404, 409] {
        let servers = [Server::start(Does::Answer(status, "")), Server::start(Does::Answer(status, ""))];
        let scene = Scene::start(&addresses(&servers), "", "");
        let reply = scene.get();
        assert_eq!((reply.status, retry(&reply)), (status, None));
        assert_eq!(servers[0].count() + servers[1].count(), 1);
    }
}

#[test]
fn a_post_goes_on_only_if_it_was_never_sent_unless_the_route_says_always() {
    for (does, passed_on) in
        [(Does::Reset, None), (Does::Answer(503, ""), Some(503)), (Does::Answer(500, ""), Some(500))]
    {
        for always in [false, true] {
            let servers = [Server::start(does), Server::start(does)];
            let option = if always { "retry_post = \"always\"" } else { "" };
            let scene = Scene::start(&addresses(&servers), "", option);
            let reply = scene.post();
            assert_eq!(reply.status, passed_on.unwrap_or(502), "{does:?} {always}");
            let asked = servers[0].count() + servers[1].count();
            assert_eq!(asked, if always { 2 } else { 1 }, "{does:?} {always}");
            let good = usize::from(servers[0].count() == usize::from(!always));
            servers[1 - good].turn(FINE);
        }
    }
    let ((nobody, _socket), good) = (reserve(), Server::start(FINE));
    for _ in 0..4 {
        let scene = Scene::start(&[nobody, good.address], "", "");
        for _ in 0..3 {
            assert_eq!(scene.post().text(), good.address.to_string());
        }
    }
}

#[test]
fn a_server_that_fails_a_post_is_not_asked_next() {
    let (bad, good) = (Server::start(Does::Reset), Server::start(FINE));
    for _ in 0..4 {
        bad.heads();
        let scene = Scene::start(&[bad.address, good.address], "", "");
        let failed = (0..5).filter(|_| scene.post().status != 200).count();
        assert!(failed <= 1 && failed == bad.count(), "{failed} of 5 failed");
    }
}

#[test]
fn whoever_leaves_the_list_is_left() {
    let servers = [Server::start(FINE), Server::start(FINE), Server::start(FINE)];
    let scene = Scene::start(&addresses(&servers), "", "");
    let mut all = addresses(&servers).to_vec();
    while all.len() > 1 {
        let current = scene.get().text();
        all.retain(|address| address.to_string() != current);
        scene.directory.says(list(&all));
        await_that("another server", || {
            scene.refresh();
            let reply = scene.get();
            assert_eq!((reply.status, retry(&reply)), (200, None));
            reply.text() != current
        });
    }
    // Others that come and go do not matter.
    let current = scene.get().text();
    for all in [addresses(&servers).to_vec(), all.clone(), addresses(&servers).to_vec()] {
        scene.directory.says(list(&all));
        scene.refresh();
        scene.refresh();
        assert_eq!(scene.get().text(), current);
    }
}

#[test]
fn a_request_that_goes_on_while_its_server_leaves_the_list_is_answered() {
    let server = Server::start_then(FINE, || std::thread::sleep(std::time::Duration::from_millis(300)));
    let other = Server::start(FINE);
    let scene = Scene::start(&[server.address], "", "");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| scene.get());
        await_that("the request", || server.count() == 1);
        scene.directory.says(list(&[other.address]));
        scene.refresh();
        assert_eq!(asking.join().unwrap().text(), server.address.to_string());
    });
    await_that("the other", || scene.get().text() == other.address.to_string());
}
