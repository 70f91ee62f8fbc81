//! Keys that are replaced while requests go on.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use countersign::clock::Clock;
use countersign::credential::keeper::Status;
use countersign::credential::{AccessKey, ExposeSecret};
use serde_json::json;
use tempfile::TempDir;

use crate::cloud::{Cloud, Fault};
use crate::scene::{
    HELD, Proxy, Service, acm, acs, baidu, gateway, key, key_of, later, now, retry, services, start_cloud, written,
};
use crate::script::{Upstream, await_that};

/// A pair of files. They are read again when they change, and when the key is refused, whichever comes first.
const FILES: &str = "{ access_key = { file = \"now/ak\" }, secret_key = { file = \"now/sk\" } }";

fn write(folder: &Path, key: &AccessKey) {
    let now = folder.join("now");
    // Whoever reads meanwhile finds no empty file, but perhaps half of the pair.
    for (name, text) in [("ak", &*key.access_key), ("sk", key.secret_key.expose_secret())] {
        std::fs::write(now.join("aside"), text).unwrap();
        std::fs::rename(now.join("aside"), now.join(name)).unwrap();
    }
}

/// Puts another pair in place at once: nobody finds half of it, however long this takes.
fn swap(folder: &Path, key: &AccessKey) {
    let pair = folder.join(&key.access_key);
    std::fs::create_dir(&pair).unwrap();
    std::fs::write(pair.join("ak"), &key.access_key).unwrap();
    std::fs::write(pair.join("sk"), key.secret_key.expose_secret()).unwrap();
    std::os::unix::fs::symlink(&key.access_key, folder.join("aside")).unwrap();
    std::fs::rename(folder.join("aside"), folder.join("now")).unwrap();
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    swap(folder.path(), &key());
    folder
}

/// The same printed by commands, which run again whenever a second has passed on a clock that a test sets.
struct Rotating {
    clock: Clock,
    proxy: Proxy,
}

impl Rotating {
    fn start(cloud: &Cloud, clock: &Clock, service: &Service, upstream: &str) -> Self {
        Self::start_with(cloud, clock, service, upstream, "")
    }

    /// The same with another route beside it.
    fn start_with(cloud: &Cloud, clock: &Clock, service: &Service, upstream: &str, other: &str) -> Self {
        let folder = folder();
        let print =
            |name| format!("{{ command = [\"cat\", \"{}\"], ttl = \"1s\" }}", folder.path().join(name).display());
        let credentials = format!("{{ access_key = {}, secret_key = {} }}", print("now/ak"), print("now/sk"));
        let route = service.route_with("up", upstream, "", &credentials) + other;
        Self { proxy: Proxy::start_in(folder, cloud, clock, &route), clock: clock.clone() }
    }

    fn status(&self) -> Status {
        self.proxy.keeper("up").status()
    }

    /// Hands out another key, and waits until it was read: then it is on trial, or in use where there was no good one.
    fn hand_out(&self, key: &AccessKey) {
        write(self.proxy.folder.path(), key);
        let (before, polls) = (self.clock.now(), Cell::new(0));
        await_that("the new key", || {
            // The pause before the next reading begins after the last one, so that it may take more than one second. When
            // this is over none is under way that could find only half of the next pair.
            if polls.replace(polls.get() + 1) % 10 == 0 {
                self.clock.set(later(self.clock.now(), 1));
            }
            self.status().refreshed.is_some_and(|refreshed| refreshed > before && refreshed == self.clock.now())
        });
    }
}

#[test]
fn a_key_that_was_revoked_is_read_anew_and_no_caller_notices() {
    let clock = Clock::system();
    for pick in [baidu, gateway, acs] {
        let cloud = start_cloud(&clock);
        let service = pick(&cloud);
        let proxy = Proxy::start_in(folder(), &cloud, &clock, &service.route_with("up", &service.https, "", FILES));
        assert_eq!(proxy.get(service.path).status, 200);
        for (generation, method, body) in
            [(1, "GET", String::new()), (2, "POST", "{}".to_owned()), (3, "POST", "x".repeat(HELD))]
        {
            cloud.add(&key_of(generation));
            cloud.revoke(&key_of(generation - 1).access_key);
            swap(proxy.folder.path(), &key_of(generation));
            let before = service.count();
            let replies = [(); 2].map(|()| proxy.ask("up", method, service.path, &body));
            assert!(replies.iter().all(|reply| reply.status == 200), "{}: {replies:?}", service.name);
            assert_eq!(retry(&replies[1]), None, "{}", service.name);
            let resent = replies.iter().filter(|reply| retry(reply) == Some("credential")).count();
            assert_eq!(service.count() - before, 2 + resent, "{}", service.name);
            assert_eq!(service.control.accepted(&key_of(generation).access_key), 2, "{}", service.name);
        }
    }
}

#[test]
fn many_callers_whose_key_was_revoked_have_it_read_anew_once() {
    const CALLERS: usize = 32;
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let proxy = Proxy::start_in(folder(), &cloud, &clock, &service.route_with("up", &service.http, "", FILES));
    service.control.hold();
    let replies: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| proxy.get(service.path))).collect();
        service.control.await_arrivals(CALLERS);
        cloud.add(&key_of(1));
        cloud.revoke(&key().access_key);
        swap(proxy.folder.path(), &key_of(1));
        service.control.release();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(replies.iter().all(|reply| reply.status == 200 && retry(reply) == Some("credential")));
    assert_eq!((service.count(), service.control.accepted(&key_of(1).access_key)), (2 * CALLERS, CALLERS));
    assert_eq!(proxy.keeper("up").status().generation, Some(2));
}

#[test]
fn a_post_that_streams_is_not_sent_again_and_the_next_one_need_not_be() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let proxy = Proxy::start_in(folder(), &cloud, &clock, &service.route_with("up", &service.http, "", FILES));
    cloud.add(&key_of(1));
    cloud.revoke(&key().access_key);
    swap(proxy.folder.path(), &key_of(1));
    let body = "x".repeat(HELD + 1);
    let reply = proxy.ask("up", "POST", service.path, &body);
    assert!(matches!(reply.status, 200 | 403) && retry(&reply).is_none(), "{}", reply.text());
    await_that("the new key", || proxy.keeper("up").status().generation == Some(2));
    let reply = proxy.ask("up", "POST", service.path, &body);
    assert_eq!((reply.status, retry(&reply)), (200, None));
}

#[test]
fn a_bad_new_key_is_tried_by_one_request_and_no_caller_notices() {
    const CALLERS: usize = 16;
    let bad_secret = AccessKey { secret_key: "another secret".into(), ..key() };
    for bad in [bad_secret, key_of(9)] {
        let clock = Clock::fixed(now());
        let cloud = start_cloud(&clock);
        for service in services(&cloud) {
            let rotating = Rotating::start(&cloud, &clock, &service, &service.https);
            assert_eq!(rotating.proxy.get(service.path).status, 200);
            rotating.hand_out(&bad);
            let before = service.count();
            let replies: Vec<_> = thread::scope(|scope| {
                let ask = || rotating.proxy.ask("up", "POST", service.path, "{}");
                let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(ask)).collect();
                callers.into_iter().map(|caller| caller.join().unwrap()).collect()
            });
            assert!(replies.iter().all(|reply| reply.status == 200), "{}", service.name);
            let resent = replies.iter().filter(|reply| retry(reply) == Some("credential")).count();
            assert_eq!((resent, service.count() - before), (1, CALLERS + 1), "{}", service.name);
            let status = rotating.status();
            assert_eq!((status.generation, status.is_on_trial), (Some(1), false), "{}", service.name);
            assert!(status.rotation_refused.is_some(), "{}", service.name);
            // Read again, it is not tried again, and a good one is.
            rotating.hand_out(&bad);
            assert!(!rotating.status().is_on_trial, "{}", service.name);
            cloud.add(&key_of(1));
            rotating.hand_out(&key_of(1));
            let reply = rotating.proxy.get(service.path);
            assert_eq!((reply.status, retry(&reply)), (200, None), "{}", service.name);
            assert_eq!(service.control.accepted(&key_of(1).access_key), 1, "{}", service.name);
            assert!(rotating.status().rotation_refused.is_none(), "{}", service.name);
        }
    }
}

#[test]
fn a_request_that_may_not_be_does_not_speak_against_a_new_key() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = acm(&cloud);
    let rotating = Rotating::start(&cloud, &clock, &service, &service.http);
    cloud.add(&key_of(1));
    rotating.hand_out(&key_of(1));
    // A namespace that neither key may use, which is refused in the same words as a wrong key.
    service.control.fail("/diamond-server/forbidden", usize::MAX, Fault::json(403, &json!("Forbidden")));
    assert_eq!(rotating.proxy.get("/diamond-server/forbidden").status, 403);
    cloud.revoke(&key().access_key);
    let reply = rotating.proxy.get(service.path);
    assert_eq!((reply.status, retry(&reply)), (200, None), "{}", reply.text());
    assert_eq!(rotating.status().generation, Some(2));
}

#[test]
fn a_new_key_that_the_upstream_came_to_know_late_is_used_once_the_old_one_is_refused() {
    for pick in [baidu, gateway, acs] {
        let clock = Clock::fixed(now());
        let cloud = start_cloud(&clock);
        let service = pick(&cloud);
        let rotating = Rotating::start(&cloud, &clock, &service, &service.http);
        rotating.hand_out(&key_of(1));
        let reply = rotating.proxy.get(service.path);
        assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", service.name);
        cloud.add(&key_of(1));
        cloud.revoke(&key().access_key);
        for expected in [Some("credential"), None] {
            let reply = rotating.proxy.get(service.path);
            assert_eq!((reply.status, retry(&reply)), (200, expected), "{}: {}", service.name, reply.text());
        }
    }
}

#[test]
fn what_was_signed_with_an_old_key_is_sent_again_with_the_new_one_even_after_a_renewal_in_vain() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let rotating = Rotating::start(&cloud, &clock, &service, &service.http);
    cloud.revoke(&key().access_key);
    // Nothing else is to be had yet, so that nobody asks for a while.
    assert_eq!(rotating.proxy.get(service.path).status, 403);
    service.control.hold();
    let reply = thread::scope(|scope| {
        let caller = scope.spawn(|| rotating.proxy.get(service.path));
        service.control.await_arrivals(2);
        cloud.add(&key_of(1));
        rotating.hand_out(&key_of(1));
        service.control.release();
        caller.join().unwrap()
    });
    assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", reply.text());
}

#[test]
fn what_was_signed_with_an_old_key_is_sent_again_where_a_refusal_does_not_say_why() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.contains("/slow") && head.contains(&key().access_key) {
                gone.lock().unwrap().recv().unwrap();
                conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nForbidden");
            } else {
                conn.ok("fine");
            }
        }
    });
    let rotating = Rotating::start(&cloud, &clock, &acm(&cloud), &upstream.url());
    let reply = thread::scope(|scope| {
        let caller = scope.spawn(|| rotating.proxy.get("/slow"));
        upstream.await_connections(1);
        rotating.hand_out(&key_of(1));
        assert_eq!(rotating.proxy.get("/fast").status, 200);
        assert_eq!(rotating.status().generation, Some(2));
        go.send(()).unwrap();
        caller.join().unwrap()
    });
    assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", reply.text());
}

/// Ends the callers whatever happens.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Rotates under load: the new key is added, handed out and, once it was seen so many times, the old one removed.
#[allow(clippy::print_stdout, reason = "how much was rotated is worth knowing")]
fn rotate(
    rotations: usize,
    seen: usize,
    (cloud, service, proxy): (&Cloud, &Service, &Proxy),
    hand_out: impl Fn(&AccessKey),
) {
    // More take longer: `CALLERS=1000` for who has the time.
    let callers = std::env::var("CALLERS").map_or(32, |callers| callers.parse().expect("a number of callers"));
    // Whether a POST may go again is the service's own matter.
    let methods = if service.name == "acm" { ["GET", "GET"] } else { ["GET", "POST"] };
    let (is_over, asked, resent) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..callers {
            let (is_over, asked, resent) = (&is_over, &asked, &resent);
            scope.spawn(move || {
                let mut caller = proxy.caller();
                let method = methods[number % methods.len()];
                let body = if method == "POST" { "{\"a\": 1}" } else { "" };
                while !is_over.load(Ordering::Relaxed) {
                    caller.send(crate::script::request(method, service.path, body));
                    let reply = caller.reply();
                    assert_eq!(reply.status, 200, "{}{}", reply.head, reply.text());
                    asked.fetch_add(1, Ordering::Relaxed);
                    resent.fetch_add(usize::from(retry(&reply).is_some()), Ordering::Relaxed);
                }
            });
        }
        let _over = Over(&is_over);
        for generation in 1..=rotations {
            let new = key_of(generation);
            cloud.add(&new);
            hand_out(&new);
            await_that("the new key in use", || service.control.accepted(&new.access_key) >= seen);
            cloud.revoke(&key_of(generation - 1).access_key);
        }
    });
    let (asked, resent) = (asked.into_inner(), resent.into_inner());
    let accepted: Vec<_> = (0..=rotations).map(|number| service.control.accepted(&key_of(number).access_key)).collect();
    let refused = service.count() - accepted.iter().sum::<usize>();
    println!("{}: {rotations} rotations, {asked} requests, {resent} of them sent again, {refused} times", service.name);
    // Each was found good once, and under one key; what was refused was sent again.
    assert!(accepted[1..].iter().all(|count| *count >= seen), "{accepted:?}");
    assert_eq!(accepted.iter().sum::<usize>(), asked);
    assert!(refused >= resent);
}

#[test]
fn a_hundred_rotations_under_load_lose_no_request() {
    rotate_by_commands(100, 1, baidu);
}

#[test]
fn rotations_lose_no_request_whatever_words_a_refusal_has() {
    rotate_by_commands(10, 1, gateway);
    rotate_by_commands(10, 1, acs);
    // A refusal that does not tell an unknown key from a bad signature helps only once the new key has passed its trial, of
    // which the second request that it signs is the proof.
    rotate_by_commands(10, 2, acm);
}

fn rotate_by_commands(rotations: usize, seen: usize, pick: impl Fn(&Cloud) -> Service) {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = pick(&cloud);
    let rotating = Rotating::start(&cloud, &clock, &service, &service.http);
    rotate(rotations, seen, (&cloud, &service, &rotating.proxy), |key| rotating.hand_out(key));
}

#[test]
fn rotations_of_files_lose_no_request() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let proxy = Proxy::start_in(folder(), &cloud, &clock, &service.route_with("up", &service.http, "", FILES));
    rotate(15, 1, (&cloud, &service, &proxy), |key| write(proxy.folder.path(), key));
}

#[test]
fn an_error_that_has_nothing_to_do_with_keys_does_not_speak_for_a_new_one() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    for (service, status) in services(&cloud).iter().flat_map(|service| [400, 404, 500].map(|status| (service, status)))
    {
        let rotating = Rotating::start(&cloud, &clock, service, &service.http);
        rotating.hand_out(&key_of(9));
        service.control.fail("/missing", 1, Fault::status(status));
        assert_eq!(rotating.proxy.get("/missing").status, status, "{}", service.name);
        let reply = rotating.proxy.get(service.path);
        assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{} after {status}", service.name);
        assert_eq!(rotating.status().generation, Some(1), "{}", service.name);
    }
}

#[test]
fn a_new_key_that_has_to_rest_leaves_the_old_one_serving() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = gateway(&cloud);
    let wrong = AccessKey { secret_key: "another secret".into(), ..key_of(1) };
    cloud.add(&key_of(1));
    let other = service.route_with("other", &service.http, "", &written(&wrong));
    let rotating = Rotating::start_with(&cloud, &clock, &service, &service.http, &other);
    for _ in 0..2 {
        assert_eq!(rotating.proxy.ask("other", "GET", service.path, "").status, 401);
    }
    rotating.hand_out(&key_of(1));
    for _ in 0..3 {
        let reply = rotating.proxy.get(service.path);
        assert_eq!((reply.status, retry(&reply)), (200, None), "{}", reply.text());
    }
    assert_eq!(service.control.accepted(&key().access_key), 3);
    clock.set(later(clock.now(), 60));
    assert_eq!(rotating.proxy.get(service.path).status, 200);
    assert_eq!(service.control.accepted(&key_of(1).access_key), 1);
}

#[test]
fn a_new_key_that_is_taken_back_before_anybody_tried_it_is_not_tried() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let rotating = Rotating::start(&cloud, &clock, &service, &service.http);
    cloud.add(&key_of(1));
    rotating.hand_out(&key_of(1));
    rotating.hand_out(&key());
    assert_eq!(rotating.proxy.get(service.path).status, 200);
    assert_eq!((service.control.accepted(&key().access_key), service.count()), (1, 1));
}

#[test]
fn a_trial_that_ends_badly_after_the_next_key_has_come_is_no_callers_trouble() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::start(move |mut conn| {
        while let Some((head, _)) = conn.request() {
            if head.contains(&key_of(1).access_key) {
                gone.lock().unwrap().recv().unwrap();
                let refusal = "{\"code\":\"SignatureDoesNotMatch\"}";
                conn.send(format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\n\r\n{refusal}", refusal.len()));
            } else {
                conn.ok("fine");
            }
        }
    });
    let rotating = Rotating::start(&cloud, &clock, &baidu(&cloud), &upstream.url());
    rotating.hand_out(&key_of(1));
    let reply = thread::scope(|scope| {
        let caller = scope.spawn(|| rotating.proxy.get("/"));
        upstream.await_connections(1);
        rotating.hand_out(&key_of(2));
        go.send(()).unwrap();
        caller.join().unwrap()
    });
    assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", reply.text());
    assert_eq!(rotating.proxy.get("/").status, 200);
    assert_eq!(rotating.status().generation, Some(3));
}
