//! Certificates that are taken back, replaced or due: what callers notice of it, and how often the API is asked.

use std::sync::Barrier;
use std::thread;

use countersign::clock::Clock;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, SupportedProtocolVersion};

use crate::Stage;
use crate::master::{Manner, Master};
use crate::scene::{later, now, retry};
use crate::script::await_that;

/// The alert comes in the handshake, and behind it.
static VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

#[test]
fn a_certificate_that_is_refused_is_fetched_anew_and_no_caller_notices() {
    for versions in VERSIONS {
        for why in [
            CertificateError::Revoked,
            CertificateError::Expired,
            CertificateError::UnknownIssuer,
            CertificateError::BadEncoding,
        ] {
            for (method, body) in [("GET", ""), ("POST", ""), ("POST", "{}")] {
                let case = format!("{versions:?} {why:?} {method} {body:?}");
                let (stage, first) = Stage::start(&Clock::fixed(now()));
                stage.master.speak(versions);
                let proxy = stage.proxy();
                assert!(proxy.get("/projects/").text().starts_with("first 0\n"), "{case}");
                stage.master.refuse(&first, why.clone());
                stage.hand_out("second");
                let reply = proxy.ask("up", method, "/projects/", body);
                assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{case}: {}", reply.text());
                assert!(reply.text().starts_with(&format!("second {}\n", body.len())), "{case}");
                assert_eq!(stage.fetches(), 2, "{case}");
            }
        }
    }
}

#[test]
fn one_sign_in_a_minute_has_it_fetched() {
    let clock = Clock::fixed(now());
    let (stage, first) = Stage::start(&clock);
    let proxy = stage.proxy();
    assert_eq!(proxy.get("/").status, 200);
    // The start does not count.
    stage.master.refuse(&first, CertificateError::Revoked);
    let second = stage.hand_out("second");
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(stage.fetches(), 2);
    stage.master.refuse(&second, CertificateError::Revoked);
    stage.hand_out("third");
    for seconds in [0, 59] {
        clock.set(later(clock.now(), seconds));
        let message = proxy.get("/").expect(502, "upstream_tls");
        assert!(message.contains("CertificateRevoked"), "{message}");
        assert_eq!(stage.fetches(), 2);
    }
    clock.set(later(clock.now(), 1));
    assert!(proxy.get("/").text().starts_with("third "));
    assert_eq!(stage.fetches(), 3);
}

#[test]
fn callers_of_one_moment_wait_for_one_fetch() {
    let (stage, first) = Stage::start(&Clock::fixed(now()));
    let proxy = stage.proxy();
    assert_eq!(proxy.get("/").status, 200);
    stage.master.refuse(&first, CertificateError::Revoked);
    stage.hand_out("second");
    stage.cloud.cluster.hold();
    let calls = stage.cloud.cluster.arrived();
    let together = Barrier::new(9);
    thread::scope(|scope| {
        let ask = |method| {
            together.wait();
            proxy.ask("up", method, "/", "").status
        };
        let asking: Vec<_> =
            ["GET", "POST"].repeat(4).into_iter().map(|method| scope.spawn(move || ask(method))).collect();
        together.wait();
        stage.cloud.cluster.await_arrivals(calls + 1);
        // All of them have been turned away by now, or will be.
        stage.master.upstream.await_connections(9);
        stage.cloud.cluster.release();
        for asked in asking {
            assert_eq!(asked.join().unwrap(), 200);
        }
    });
    assert_eq!(stage.fetches(), 2);
}

#[test]
fn a_ca_that_was_made_anew_is_fetched_as_well() {
    for method in ["GET", "POST"] {
        let (stage, _) = Stage::start(&Clock::fixed(now()));
        let proxy = stage.proxy();
        assert_eq!(proxy.get("/").status, 200);
        stage.master.change_authority();
        stage.hand_out("second");
        let reply = proxy.ask("up", method, "/", "");
        assert_eq!((reply.status, retry(&reply)), (200, Some("credential")), "{}", reply.text());
        assert_eq!(stage.fetches(), 2);
    }
}

#[test]
fn what_merely_breaks_is_no_sign() {
    let (stage, _) = Stage::start(&Clock::fixed(now()));
    let proxy = stage.proxy();
    assert_eq!(proxy.get("/").status, 200);
    stage.master.behave(Manner::Resetting);
    proxy.get("/").expect(502, "upstream_tls");
    assert_eq!(stage.fetches(), 1);
    stage.master.behave(Manner::Closing);
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn where_the_same_comes_again_the_caller_learns_why() {
    let (stage, first) = Stage::start(&Clock::fixed(now()));
    let proxy = stage.proxy();
    stage.master.refuse(&first, CertificateError::Revoked);
    let message = proxy.get("/").expect(502, "upstream_tls");
    assert!(message.contains("revoked"), "{message}");
    assert_eq!(stage.fetches(), 2);
}

#[test]
fn every_twelve_hours_they_are_fetched_and_the_old_connections_end() {
    let clock = Clock::fixed(now());
    let (stage, _) = Stage::start(&clock);
    stage.master.behave(Manner::Keeping);
    let proxy = stage.proxy();
    let before = [(); 4].map(|()| proxy.get("/").text());
    assert!(before.iter().all(|text| text.starts_with("first ")));
    let idle = stage.master.upstream.connections();
    // It is asked, but what comes is the same: nothing changes.
    let mut fetches = stage.fetches();
    for name in ["first", "second"] {
        if name == "second" {
            stage.hand_out(name);
        }
        clock.set(later(clock.now(), 12 * 3600 - 1));
        assert_eq!(stage.fetches(), fetches);
        let refreshed = proxy.keeper("up").status().refreshed;
        clock.set(later(clock.now(), 1));
        await_that("the next certificates", || proxy.keeper("up").status().refreshed != refreshed);
        fetches += 1;
        assert_eq!(stage.fetches(), fetches);
        for _ in 0..4 {
            assert!(proxy.get("/").text().starts_with(&format!("{name} ")));
        }
    }
    for index in 0..idle {
        stage.master.upstream.await_end(index);
    }
    assert_eq!(proxy.keeper("up").status().generation, Some(2));
}

#[test]
fn a_master_that_moved_is_found_with_the_next_certificates() {
    let clock = Clock::fixed(now());
    let (stage, _) = Stage::start(&clock);
    let proxy = stage.proxy();
    assert_eq!(proxy.get("/").status, 200);
    let other = Master::start();
    stage.cloud.cluster.play.set_master(other.upstream.address.to_string());
    stage.cloud.cluster.play.hand_out(&other.issue("moved").reply);
    stage.master.change_authority();
    assert!(proxy.get("/").text().starts_with("moved "));
    assert_eq!(other.seen(), ["moved: GET /"]);
}
