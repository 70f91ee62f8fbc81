//! Bad signatures, which lock an access key for everybody who uses it: none is multiplied here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use countersign::clock::Clock;
use countersign::credential::AccessKey;
use serde_json::json;

use crate::cloud::{Cloud, Fault};
use crate::scene::{Proxy, Service, gateway, key, later, now, start_cloud, written};
use crate::script::{Reply, Upstream};

const BAD: &str = "verify aksk signature fail";

fn wrong() -> AccessKey {
    AccessKey { secret_key: "another secret".into(), ..key() }
}

fn start(credentials: &AccessKey) -> (Cloud, Clock, Service, Proxy) {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = gateway(&cloud);
    let proxy = Proxy::start(&cloud, &clock, &service.route_with("up", &service.https, "", &written(credentials)));
    (cloud, clock, service, proxy)
}

/// Sends as many requests at once, and returns their replies.
fn at_once(count: usize, proxy: &Proxy, path: &str, meanwhile: impl FnOnce()) -> Vec<Reply> {
    let start = Barrier::new(count);
    thread::scope(|scope| {
        let ask = || {
            let mut caller = proxy.caller();
            start.wait();
            caller.get(path)
        };
        let callers: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
        meanwhile();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    })
}

fn rejected(replies: &[Reply]) -> usize {
    replies.iter().filter(|reply| reply.code() == Some("credential_rejected")).count()
}

#[test]
fn a_wrong_secret_that_fifty_callers_use_costs_two_bad_signatures() {
    let (_cloud, clock, service, proxy) = start(&wrong());
    let began = clock.now();
    service.control.hold();
    let replies = at_once(50, &proxy, service.path, || {
        service.control.await_arrivals(1);
        service.control.release();
    });
    assert_eq!((rejected(&replies), service.control.refused(BAD), service.count()), (48, 2, 2));
    for reply in &replies {
        match reply.code() {
            Some(code) => assert!(reply.expect(503, code).contains("stopped for a minute"), "{}", reply.text()),
            None => assert!(reply.status == 401 && reply.text().contains(BAD), "{}", reply.text()),
        }
    }
    assert_eq!(service.control.most_at_once(), 1);
    for (passed, count) in [(59, 2), (60, 3), (119, 3), (120, 4)] {
        clock.set(later(began, passed));
        let replies = at_once(50, &proxy, service.path, || {});
        assert_eq!((service.control.refused(BAD), service.count()), (count, count), "after {passed} s");
        assert!(rejected(&replies) >= 49, "after {passed} s");
    }
}

#[test]
fn a_right_secret_is_tried_alone_and_then_used_by_all() {
    const OTHERS: usize = 19;
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (arrived, all) = (Arc::new(AtomicUsize::new(0)), Barrier::new(OTHERS));
    let count = Arc::clone(&arrived);
    let upstream = Upstream::start(move |mut conn| {
        while conn.request().is_some() {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                released.lock().unwrap().recv().unwrap();
            } else {
                // Passed only if all of them are here at one time.
                all.wait();
            }
            conn.ok("fine");
        }
    });
    let (cloud, clock) = (start_cloud(&Clock::system()), Clock::system());
    let service = gateway(&cloud);
    let aside = service.route_with("aside", &service.https, "", "{ access_key = \"AKanother\", secret_key = \"x\" }");
    let proxy = Proxy::start(&cloud, &clock, &(service.route(&upstream.url()) + &aside));
    let replies = at_once(OTHERS + 1, &proxy, service.path, || {
        upstream.await_connections(1);
        // While these come and go, the others would have come as well.
        for _ in 0..20 {
            assert_eq!(proxy.ask("aside", "GET", service.path, "").status, 401);
        }
        assert_eq!((arrived.load(Ordering::SeqCst), upstream.connections()), (1, 1));
        release.send(()).unwrap();
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(arrived.load(Ordering::SeqCst), OTHERS + 1);
}

#[test]
fn routes_with_the_same_access_key_count_its_bad_signatures_together() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let service = gateway(&cloud);
    let route = |name, key: &AccessKey| service.route_with(name, &service.http, "", &written(key));
    let other = AccessKey { access_key: "AKother".to_owned(), ..key() };
    cloud.add(&other);
    let routes = route("one", &wrong()) + &route("two", &wrong()) + &route("right", &key()) + &route("other", &other);
    let proxy = Proxy::start(&cloud, &clock, &routes);
    let ask = |name| proxy.ask(name, "GET", service.path, "");
    assert_eq!([ask("one").status, ask("two").status], [401, 401]);
    for name in ["one", "two", "right"] {
        ask(name).expect(503, "credential_rejected");
    }
    assert_eq!(service.control.refused(BAD), 2);
    assert_eq!(ask("other").status, 200);
    clock.set(later(clock.now(), 60));
    // One that is right sets the count back.
    assert_eq!([ask("right").status, ask("one").status, ask("right").status], [200, 401, 200]);
    assert_eq!([ask("one").status, ask("two").status], [401, 401]);
    ask("right").expect(503, "credential_rejected");
    assert_eq!(service.control.refused(BAD), 5);
}

#[test]
fn a_key_that_the_provider_has_locked_is_left_alone_for_five_minutes() {
    let (_cloud, clock, service, proxy) = start(&key());
    let began = clock.now();
    assert_eq!(proxy.get(service.path).status, 200);
    let locked = json!({ "error_code": "APIGW.0301", "error_msg": "AK access failed to reach the limit,forbidden.", "request_id": "1" });
    service.control.fail("/", 1, Fault::json(401, &locked));
    let reply = proxy.get(service.path);
    assert_eq!((reply.status, reply.text()), (401, locked.to_string()));
    for (passed, status) in [(0, 503), (299, 503), (300, 200), (301, 200)] {
        clock.set(later(began, passed));
        let before = service.count();
        let reply = proxy.get(service.path);
        assert_eq!((reply.status, service.count() - before), (status, usize::from(status == 200)), "after {passed} s");
        if status == 503 {
            assert!(reply.expect(503, "credential_rejected").contains("locked by the provider"));
        }
    }
}

#[test]
fn a_head_whose_signature_is_refused_without_a_word_counts_as_well() {
    let (_cloud, _clock, service, proxy) = start(&wrong());
    let statuses = [(); 5].map(|()| proxy.ask("up", "HEAD", service.path, "").status);
    assert_eq!((statuses, service.control.refused(BAD)), ([401, 401, 503, 503, 503], 2));
}

#[test]
fn a_clock_that_is_off_is_no_bad_signature() {
    let (_cloud, _clock, service, proxy) = start(&key());
    service.control.shift(45 * 60);
    let replies = at_once(50, &proxy, service.path, || {});
    assert!(replies.iter().all(|reply| reply.status == 200));
    // The first alone is refused, since the others wait for it.
    assert_eq!((service.control.refused("signature expired"), service.control.accepted("AK")), (1, 50));
}

#[test]
fn a_path_that_there_is_not_proves_no_key() {
    let (_cloud, _clock, service, proxy) = start(&wrong());
    service.control.fail("/missing", usize::MAX, Fault::json(404, &json!({ "error_code": "APIGW.0101" })));
    assert_eq!(proxy.get("/missing").status, 404);
    let replies = at_once(20, &proxy, service.path, || {});
    assert_eq!((rejected(&replies), service.control.refused(BAD)), (18, 2));
}
