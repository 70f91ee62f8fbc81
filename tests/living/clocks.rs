//! Clocks that differ: who notices, and how often.

use countersign::clock::Clock;
use serde_json::json;

use crate::cloud::{Cloud, Fault, Reply as Answer};
use crate::scene::{self, Proxy, Service, acm, acs, baidu, gateway, later, now, retry, services, start_cloud};

const MINUTES: i64 = 60;
const HOURS: i64 = 3600;

/// Asks twenty times. Everybody gets what they asked for, and how many of the requests were sent twice is returned.
fn ask_twenty_times(proxy: &Proxy, service: &Service, context: &str) -> usize {
    let (before, mut resent) = (service.count(), 0);
    let mut caller = proxy.caller();
    for number in 0..20 {
        let reply = caller.get(service.path);
        assert_eq!(reply.status, 200, "{context}, request {number}: {}{}", reply.head, reply.text());
        assert!(matches!(retry(&reply), None | Some("clock")), "{context}: {}", reply.head);
        resent += usize::from(retry(&reply).is_some());
    }
    assert_eq!(service.count() - before, 20 + resent, "{context}: what was sent again says so");
    resent
}

#[test]
fn an_upstream_whose_clock_is_off_costs_one_request_one_more_attempt() {
    let clock = Clock::system();
    for shift in [10 * MINUTES, -10 * MINUTES, 23 * HOURS, -23 * HOURS] {
        let cloud = start_cloud(&clock);
        for service in services(&cloud) {
            service.control.shift(shift);
            let is_off = shift.abs() > service.window;
            let in_the_clear = Some(&service.http).filter(|_| shift.abs() < HOURS);
            for upstream in in_the_clear.into_iter().chain([&service.https]) {
                let proxy = Proxy::start(&cloud, &clock, &service.route(upstream));
                let context = format!("{upstream} of {}, {shift} s off", service.name);
                assert_eq!(ask_twenty_times(&proxy, &service, &context), usize::from(is_off), "{context}");
            }
        }
    }
}

#[test]
fn a_clock_too_far_off_to_be_believed_teaches_nothing() {
    let clock = Clock::system();
    for shift in [2 * HOURS, -2 * HOURS, 25 * HOURS, -25 * HOURS] {
        let cloud = start_cloud(&clock);
        for service in services(&cloud) {
            let upstream = if shift.abs() < 24 * HOURS { &service.http } else { &service.https };
            let proxy = Proxy::start(&cloud, &clock, &service.route(upstream));
            service.control.shift(shift);
            let context = format!("{}, {shift} s off", service.name);
            for number in 1..=3 {
                let reply = proxy.get(service.path);
                assert!(matches!(reply.status, 400..404) && reply.code().is_none(), "{context}: {}", reply.head);
                assert_eq!((retry(&reply), service.count()), (None, number), "{context}");
            }
            assert_eq!(proxy.refusals().last().unwrap().verdict, "clock", "{context}");
            service.control.shift(0);
            assert_eq!(ask_twenty_times(&proxy, &service, &context), 0, "{context}");
        }
    }
}

#[test]
fn a_route_that_keeps_to_its_own_clock_passes_the_refusal_on() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    for service in services(&cloud) {
        let route = service.route_with("up", &service.https, "clock = \"local\"", &scene::written(&scene::key()));
        let proxy = Proxy::start(&cloud, &clock, &route);
        service.control.shift(45 * MINUTES);
        for number in 1..=3 {
            let reply = proxy.get(service.path);
            assert!(matches!(reply.status, 400..404) && reply.code().is_none(), "{}", reply.head);
            assert_eq!((retry(&reply), service.count()), (None, number), "{}", service.name);
        }
    }
}

#[test]
fn a_reply_out_of_a_cache_teaches_nothing() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let said = "signature expired, signature time:20230527T000431Z,server time:SERVER";
    let server_time = |shift| {
        let time = jiff::Timestamp::from_millisecond(later(now(), shift).0).unwrap();
        time.strftime("%Y%m%dT%H%M%SZ").to_string()
    };
    for service in services(&cloud) {
        let proxy = Proxy::start(&cloud, &clock, &service.route(&service.http));
        service.control.shift(45 * MINUTES);
        let message = said.replace("SERVER", &server_time(45 * MINUTES));
        let (status, body) = match service.name {
            "acm" => (403, json!("timeStamp is expired")),
            "baidu" => (400, json!({ "code": "RequestExpired", "message": "Request has expired" })),
            "gateway" => (401, json!({ "error_code": "APIGW.0301", "error_msg": message })),
            _ => (400, json!({ "Code": "InvalidTimeStamp.Expired", "Message": "Specified time stamp is expired" })),
        };
        let cached = Answer::json(status, &body, Err("out of a cache".to_owned())).with("age", "2700");
        service.control.fail("/", 1, Fault::Answer(cached));
        let reply = proxy.get(service.path);
        assert_eq!(
            (reply.status, retry(&reply), service.count()),
            (status, None, 1),
            "{}: {}",
            service.name,
            reply.head
        );
        assert_eq!(reply.header("age"), Some("2700"));
        service.control.shift(0);
        assert_eq!(ask_twenty_times(&proxy, &service, service.name), 0, "{}", service.name);
    }
}

#[test]
fn a_success_teaches_nothing() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = acm(&cloud);
    let proxy = Proxy::start(&cloud, &clock, &service.route(&service.http));
    service.control.shift(45);
    assert_eq!(ask_twenty_times(&proxy, &service, "ahead"), 0);
    service.control.shift(-40);
    assert_eq!(ask_twenty_times(&proxy, &service, "behind"), 0);
}

#[test]
fn a_jump_of_our_own_clock_costs_one_request_one_more_attempt() {
    let began = now();
    for (jumps, is_secure) in [
        (&[10 * MINUTES, -10 * MINUTES, 0][..], false),
        (&[10 * MINUTES, -10 * MINUTES, 3 * HOURS, -3 * HOURS, 0], true),
    ] {
        let cloud = start_cloud(&Clock::fixed(began));
        for service in services(&cloud) {
            let ours = Clock::fixed(began);
            let upstream = if is_secure { &service.https } else { &service.http };
            let proxy = Proxy::start(&cloud, &ours, &service.route(upstream));
            assert_eq!(ask_twenty_times(&proxy, &service, service.name), 0, "before any jump");
            // What is signed is off by how far the clock has jumped since something was learned.
            let mut learned = 0;
            for jump in jumps {
                ours.set(later(began, *jump));
                let is_off = (jump - learned).abs() > service.window;
                if is_off {
                    learned = *jump;
                }
                let context = format!("{} after a jump to {jump} s", service.name);
                assert_eq!(ask_twenty_times(&proxy, &service, &context), usize::from(is_off), "{context}");
            }
        }
    }
}

#[test]
fn what_one_route_has_learned_of_a_clock_the_others_know() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    for service in services(&cloud) {
        let keys = scene::written(&scene::key());
        let [one, two] = ["one", "two"].map(|name| service.route_with(name, &service.https, "", &keys));
        let proxy = Proxy::start(&cloud, &clock, &(one + &two));
        service.control.shift(-45 * MINUTES);
        let [first, second] = ["one", "two"].map(|route| proxy.ask(route, "GET", service.path, ""));
        assert_eq!((first.status, retry(&first)), (200, Some("clock")), "{}", service.name);
        assert_eq!((second.status, retry(&second)), (200, None), "{}", service.name);
    }
}

#[test]
fn a_post_is_sent_again_if_its_body_was_held() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    // Two whose signatures cover the body, and one whose does not.
    for service in [gateway(&cloud), acs(&cloud), baidu(&cloud)] {
        service.control.shift(45 * MINUTES);
        let proxy = Proxy::start(&cloud, &clock, &service.route(&service.https));
        let reply = proxy.ask("up", "POST", service.path, "{\"a\": 1}");
        assert_eq!((reply.status, retry(&reply)), (200, Some("clock")), "{}: {}", service.name, reply.text());
        assert_eq!(service.count(), 2);
    }
}

#[test]
fn a_post_that_streams_is_not_sent_again_but_what_it_taught_helps_the_next() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = baidu(&cloud);
    let path = service.path;
    let long = "x".repeat(scene::HELD + 1);
    let lengthy = format!("POST {path} HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    for request in [chunked, lengthy] {
        let proxy = Proxy::start(&cloud, &clock, &service.route(&service.https));
        service.control.shift(45 * MINUTES);
        let before = service.count();
        let [first, second] = [(); 2].map(|()| {
            let mut caller = proxy.caller();
            caller.send(&request);
            caller.reply()
        });
        assert_eq!((first.status, retry(&first)), (400, None), "{}", first.text());
        assert!(first.text().contains("RequestExpired"));
        assert_eq!((second.status, retry(&second)), (200, None), "{}", second.text());
        assert_eq!(service.count() - before, 2);
    }
}

#[test]
fn refusals_are_understood_packed_and_in_chunks() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    for service in services(&cloud) {
        service.control.behave(|manner| (manner.gzip, manner.chunked) = (true, true));
        service.control.shift(45 * MINUTES);
        let proxy = Proxy::start(&cloud, &clock, &service.route(&service.https));
        assert_eq!(ask_twenty_times(&proxy, &service, service.name), 1, "{}", service.name);
    }
}

#[test]
fn a_head_is_sent_again_though_its_refusal_has_no_body() {
    let clock = Clock::system();
    let cloud: Cloud = start_cloud(&clock);
    for service in services(&cloud) {
        service.control.shift(-45 * MINUTES);
        let proxy = Proxy::start(&cloud, &clock, &service.route(&service.https));
        for expected in [Some("clock"), None] {
            let reply = proxy.ask("up", "HEAD", service.path, "");
            assert_eq!((reply.status, retry(&reply)), (200, expected), "{}: {}", service.name, reply.head);
        }
    }
}
