//! IAM as it may be: behind a CA of its own, with another time, long-winded, or asked by the callers themselves.

use std::time::Duration;

use countersign::clock::Clock;

use crate::cloud::{Cloud, Expiry, Fault, Reply};
use crate::scene::{Proxy, later, now};
use crate::script::await_that;
use crate::token::{TOKEN, Token, await_pauses, get};

#[test]
fn a_fresh_token_in_a_reply_is_shown_to_nobody_unless_that_is_wanted() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    let open = Token { name: "open", keys: "expose = [\"X-Subject-Token\"]", ..TOKEN };
    let proxy = Proxy::start(&cloud, &clock, &[TOKEN, open].map(|route| route.route(&cloud)).concat());
    for status in [200, 201, 401, 404, 500] {
        let reply = Reply::text(status, "told", Ok(String::new())).with("x-subject-token", "fresh");
        let reply = reply.with("x_subject_token", "fresh").with("x-subject", "kept");
        cloud.service.fail("/", 4, Fault::Answer(reply));
        let (hidden, shown) = (get(proxy.address, "up"), get(proxy.address, "open"));
        assert_eq!((hidden.status, shown.status), (status, status));
        assert_eq!((hidden.header("x-subject"), shown.header("x-subject")), (Some("kept"), Some("kept")));
        assert!(!hidden.head.contains("fresh"), "{}", hidden.head);
        assert_eq!(shown.header("x-subject-token"), Some("fresh"));
        cloud.service.recover();
    }
}

#[test]
fn a_private_ca_of_iam_is_trusted_and_no_other() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    let (other, https) = (Cloud::start(&clock), cloud.iam.https());
    let good = format!("iam = \"{https}\"\niam_ca = \"ca.pem\"");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.pem"), other.authority.pem()).unwrap();
    let wrong = format!("iam = \"{https}\"\niam_ca = \"other.pem\"");
    let none = format!("iam = \"{https}\"");
    let routes = [
        Token { iam: &good, ..TOKEN },
        Token { name: "wrong", iam: &wrong, ..TOKEN },
        Token { name: "none", iam: &none, ..TOKEN },
    ];
    let routes = routes.map(|route| route.route(&cloud)).concat();
    let proxy = Proxy::start_in(folder, &cloud, &clock, &routes);
    assert_eq!(get(proxy.address, "up").status, 200);
    for route in ["wrong", "none"] {
        let message = get(proxy.address, route).expect(503, "credential_unavailable");
        assert!(message.contains(&https) && message.contains("`iam_ca`"), "{message}");
    }
    assert_eq!(cloud.iam.arrived(), 1);
}

#[test]
fn the_end_of_a_token_is_reckoned_by_the_clock_of_iam() {
    for (shift, expiry) in
        [(-3600, Expiry::Micros), (0, Expiry::Seconds), (3600, Expiry::Seconds), (3600, Expiry::Micros)]
    {
        let start = now();
        let clock = Clock::fixed(start);
        let cloud = Cloud::start(&clock);
        cloud.iam.shift(shift);
        cloud.service.shift(shift);
        cloud.iam.play.set(|settings| (settings.life, settings.expiry) = (Duration::from_secs(3000), expiry));
        let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
        assert_eq!(get(proxy.address, "up").status, 200, "{shift}");
        cloud.iam.behave(|manner| manner.is_down = true);
        clock.set(later(start, 2967));
        assert_eq!(get(proxy.address, "up").status, 200, "{shift} {expiry:?}");
        clock.set(later(start, 2973));
        get(proxy.address, "up").expect(503, "credential_unavailable");
        assert_eq!((cloud.service.arrived(), cloud.service.refused("")), (2, 0));
    }
}

#[test]
fn a_token_without_an_end_is_not_used() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    cloud.iam.play.set(|settings| settings.expiry = Expiry::Absent);
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    let message = get(proxy.address, "up").expect(503, "credential_unavailable");
    assert!(message.contains("`expires_at`"), "{message}");
    assert_eq!(cloud.service.arrived(), 0);
}

#[test]
fn tokens_of_every_length_up_to_64_kib_arrive_whole() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    cloud.iam.play.set(|settings| settings.length = 1 << 10);
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    assert_eq!(get(proxy.address, "up").status, 200);
    for kib in [4, 16, 32, 48, 64] {
        cloud.iam.play.set(|settings| settings.length = (kib << 10) - 3);
        cloud.iam.play.tokens.revoke_all();
        let reply = get(proxy.address, "up");
        assert_eq!(reply.status, 200, "{kib} KiB: {}", reply.text());
        let sent = cloud.service.calls().pop().unwrap();
        assert_eq!(sent.headers["x-auth-token"].len(), kib << 10);
    }
}

#[test]
fn what_iam_answers_amiss_is_told_and_tried_again() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    cloud.iam.fail("/v3/auth/tokens", 1, Fault::throttle(429, 30));
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    cloud.iam.await_calls(1);
    let message = get(proxy.address, "up").expect(503, "credential_unavailable");
    assert!(message.contains("429"), "{message}");
    await_pauses(&clock, "a token", || cloud.iam.play.tokens.count() == 1);
    await_that("an answer", || get(proxy.address, "up").status == 200);
    assert_eq!(cloud.iam.arrived(), 2);
}
