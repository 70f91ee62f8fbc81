//! An IAM that is not there, or that takes no password of ours.

use std::time::Duration;

use countersign::clock::Clock;

use crate::cloud::{Cloud, Fault};
use crate::daemon::{connect, exchange};
use crate::scene::{Proxy, later, now};
use crate::script::await_that;
use crate::token::{TOKEN, Token, await_pauses, get, start, start_in};

#[test]
fn a_token_serves_to_its_end_while_iam_is_down_and_the_first_question_after_that_helps() {
    for is_down in [false, true] {
        let start = now();
        let clock = Clock::fixed(start);
        let cloud = Cloud::start(&clock);
        let hour = |settings: &mut crate::cloud::IamSettings| settings.life = Duration::from_secs(3600);
        cloud.iam.play.set(hour);
        let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
        assert_eq!(get(proxy.address, "up").status, 200);
        // Ten per cent of an hour before its end the next one is due.
        if is_down {
            cloud.iam.behave(|manner| manner.is_down = true);
        } else {
            cloud.iam.fail("/v3/auth/tokens", usize::MAX, Fault::status(503));
        }
        let cause = if is_down { "onnection " } else { "it answered 503 Service Unavailable" };
        let (mut answered, mut turned_away) = (0, 0);
        for second in (3240..3840).step_by(10) {
            clock.set(later(start, second));
            let reply = get(proxy.address, "up");
            // Half a minute before its end it counts as gone; IAM's `Date` has no fraction.
            if second < 3568 {
                assert_eq!(reply.status, 200, "{second}: {}", reply.text());
                answered += 1;
            } else if second > 3572 {
                let message = reply.expect(503, "credential_unavailable");
                assert!(message.starts_with(&cloud.iam.http()) && message.contains(cause), "{message}");
                turned_away += 1;
            }
        }
        assert_eq!((answered, turned_away, cloud.service.refused("")), (33, 26, 0));
        let asked = cloud.iam.arrived();
        assert!(is_down || (2..100).contains(&asked), "{asked}");
        cloud.iam.recover();
        await_pauses(&clock, "a token", || cloud.iam.play.tokens.count() == 2);
        await_that("an answer", || get(proxy.address, "up").status == 200);
        assert_eq!((cloud.iam.play.tokens.count(), cloud.iam.most_at_once()), (2, 1));
    }
}

#[test]
fn a_wrong_password_is_shown_once_in_minutes_whatever_is_asked() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    let proxy = Proxy::start(&cloud, &clock, &Token { password: "\"not-it\"", ..TOKEN }.route(&cloud));
    let ask = |count| {
        for _ in 0..count {
            let message = get(proxy.address, "up").expect(503, "credential_unavailable");
            assert!(message.contains("correct `account`, `user` or `password`"), "{message}");
            assert!(!message.contains("not-it"), "{message}");
        }
    };
    for second in (0..300).step_by(20) {
        clock.set(later(start, second));
        ask(3);
    }
    assert_eq!((cloud.iam.play.wrong_passwords(), cloud.service.arrived()), (1, 0));
    clock.set(later(start, 361));
    await_that("another attempt", || cloud.iam.play.wrong_passwords() == 2);
    await_that("the end of the attempt", || cloud.iam.calls().len() == 2);
    ask(3);
    assert_eq!((cloud.iam.play.wrong_passwords(), cloud.iam.play.is_locked()), (2, false));
}

#[test]
fn a_password_works_as_soon_as_its_file_is_right() {
    let cloud = Cloud::start(&Clock::system());
    let folder = tempfile::tempdir().unwrap();
    let write = |folder: &std::path::Path, password| {
        let (aside, file) = (folder.join("aside"), folder.join("password"));
        std::fs::write(&aside, password).unwrap();
        std::fs::rename(aside, file).unwrap();
    };
    write(folder.path(), "not-it\n");
    let daemon = start_in(folder, "", &Token { password: "{ file = \"password\" }", ..TOKEN }.route(&cloud));
    cloud.iam.await_calls(1);
    for _ in 0..20 {
        get(daemon.address(), "up").expect(503, "credential_unavailable");
    }
    assert_eq!(cloud.iam.arrived(), 1);
    write(daemon.folder(), "the-password\n");
    await_that("an answer", || get(daemon.address(), "up").status == 200);
    assert_eq!((cloud.iam.arrived(), cloud.iam.play.wrong_passwords()), (2, 1));

    // One that is wrong again does no harm as long as the token lives.
    write(daemon.folder(), "not-it-either\n");
    await_that("another attempt", || cloud.iam.play.wrong_passwords() == 2);
    assert_eq!(get(daemon.address(), "up").status, 200);
    for secret in ["the-password", "not-it"] {
        assert!(!daemon.log().contains(secret), "{}", daemon.log());
    }
}

#[test]
fn the_daemon_is_ready_once_the_first_token_was_there_and_stays_so() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    cloud.iam.hold();
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    cloud.iam.await_arrivals(1);
    assert!(!proxy.has_been_ready());
    cloud.iam.release();
    await_that("ready", || proxy.has_been_ready());
    cloud.iam.behave(|manner| manner.is_down = true);
    clock.set(later(start, 86_400));
    get(proxy.address, "up").expect(503, "credential_unavailable");
    assert!(proxy.has_been_ready());
}

#[test]
fn supervisors_are_told_when_the_first_token_was_there_and_not_that_it_was_lost() {
    let cloud = Cloud::start(&Clock::system());
    cloud.iam.hold();
    let daemon = start(&cloud, "", &format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", TOKEN.route(&cloud)));
    let ready = || {
        let head = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", daemon.admin_address());
        exchange(connect(daemon.admin_address()), head).split(' ').nth(1).unwrap().to_owned()
    };
    cloud.iam.await_arrivals(1);
    assert_eq!(ready(), "503");
    cloud.iam.release();
    await_that("ready", || ready() == "200");
    // Gone for good: nobody gives another.
    cloud.iam.behave(|manner| manner.is_down = true);
    cloud.iam.play.tokens.revoke_all();
    assert_eq!((get(daemon.address(), "up").status, ready().as_str()), (401, "200"));
}
