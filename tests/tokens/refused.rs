//! Tokens that die before their time.

use countersign::clock::Clock;
use serde_json::json;

use crate::cloud::{Cloud, Fault, TokenRefusal};
use crate::scene::{HELD, Proxy, later, now, retry};
use crate::script::await_that;
use crate::token::{TOKEN, get, post, send, start};

#[test]
fn callers_do_not_notice_that_a_token_was_revoked() {
    let cloud = Cloud::start(&Clock::system());
    let daemon = start(&cloud, "", &TOKEN.route(&cloud));
    let address = daemon.address();
    let tokens = &cloud.iam.play.tokens;
    assert_eq!((get(address, "up").status, tokens.count()), (200, 1));
    for refusal in [TokenRefusal::Outdated, TokenRefusal::Undecipherable, TokenRefusal::Keystone] {
        cloud.service.play.refuse_with(refusal);
        for length in [None, Some(0), Some(1), Some(HELD)] {
            let before = tokens.count();
            tokens.revoke_all();
            let reply = length.map_or_else(|| get(address, "up"), |length| post(address, "up", length));
            assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{refusal:?} {}", reply.text());
            let reply = get(address, "up");
            assert_eq!((reply.status, retry(&reply), tokens.count()), (200, None, before + 1));
        }
    }
    assert_eq!(cloud.iam.most_at_once(), 1);
}

#[test]
fn fifty_requests_at_the_moment_of_the_revocation_take_one_token() {
    let cloud = Cloud::start(&Clock::system());
    let daemon = start(&cloud, "", &TOKEN.route(&cloud));
    let tokens = &cloud.iam.play.tokens;
    assert_eq!(get(daemon.address(), "up").status, 200);
    for round in 1..=5 {
        cloud.service.hold();
        let before = cloud.service.arrived();
        let mut callers: Vec<_> = (0..50).map(|_| send(daemon.address(), "up", "GET", "")).collect();
        cloud.service.await_arrivals(before + 50);
        tokens.revoke_all();
        cloud.service.release();
        for caller in &mut callers {
            let reply = caller.reply();
            assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", reply.text());
        }
        assert_eq!((tokens.count(), cloud.iam.arrived(), cloud.iam.most_at_once()), (round + 1, round + 1, 1));
    }
}

#[test]
fn callers_do_not_notice_that_the_next_token_was_revoked_together_with_the_first() {
    for at_once in [1, 20] {
        let start = now();
        let clock = Clock::fixed(start);
        let cloud = Cloud::start(&clock);
        let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
        let tokens = &cloud.iam.play.tokens;
        assert_eq!(get(proxy.address, "up").status, 200);
        clock.set(later(start, 22 * 3600));
        await_that("the next token", || proxy.keeper("up").status().is_on_trial);
        tokens.revoke_all();
        cloud.service.hold();
        let before = cloud.service.arrived();
        let mut callers: Vec<_> = (0..at_once).map(|_| send(proxy.address, "up", "GET", "")).collect();
        cloud.service.await_arrivals(before + at_once);
        cloud.service.release();
        for caller in &mut callers {
            let reply = caller.reply();
            assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{at_once}: {}", reply.text());
        }
        assert_eq!((tokens.count(), cloud.iam.most_at_once()), (3, 1));
    }
}

#[test]
fn a_body_that_was_not_held_meets_the_refusal_and_the_next_request_a_new_token() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    let tokens = &cloud.iam.play.tokens;
    assert_eq!(get(proxy.address, "up").status, 200);
    tokens.revoke_all();
    let refused = post(proxy.address, "up", HELD + 1);
    assert_eq!((refused.status, refused.code(), retry(&refused)), (401, None, None));
    await_that("a new token", || tokens.count() == 2);
    let reply = get(proxy.address, "up");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = post(proxy.address, "up", HELD + 1);
    assert_eq!((reply.status, retry(&reply), tokens.count()), (200, None, 2));
}

/// Whatever the token.
fn refuse_all(cloud: &Cloud) {
    let body = json!({ "error_code": "APIGW.0307", "error_msg": "The token must be updated.", "request_id": "r" });
    cloud.service.fail("/", usize::MAX, Fault::json(401, &body));
}

#[test]
fn a_service_that_refuses_every_token_causes_one_more_a_minute() {
    for length in [None, Some(HELD + 1)] {
        let start = now();
        let clock = Clock::fixed(start);
        let cloud = Cloud::start(&clock);
        let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
        let tokens = &cloud.iam.play.tokens;
        assert_eq!(get(proxy.address, "up").status, 200);
        refuse_all(&cloud);
        for minute in 0..3 {
            for second in [0, 1, 20, 40, 59] {
                clock.set(later(start, minute * 60 + second));
                for _ in 0..5 {
                    let reply =
                        length.map_or_else(|| get(proxy.address, "up"), |length| post(proxy.address, "up", length));
                    assert_eq!((reply.status, reply.code()), (401, None), "{}", reply.text());
                }
                let expected = usize::try_from(minute + 2).unwrap();
                await_that("the minute's token", || tokens.count() >= expected);
                assert_eq!(tokens.count(), expected, "{length:?} {minute}:{second}");
            }
        }
        // Callers get their answers all the same as soon as there is one.
        cloud.service.recover();
        assert_eq!(get(proxy.address, "up").status, 200);
        assert_eq!(cloud.iam.most_at_once(), 1);
    }
}
