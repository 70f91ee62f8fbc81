//! Refusals: which are worth another attempt, and that all reach the caller as they came.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use countersign::clock::Clock;
use countersign::credential::AccessKey;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::cloud::{Cloud, Fault, Reply as Answer};
use crate::daemon;
use crate::scene::{HELD, Proxy, Service, acm, acs, baidu, gateway, key, retry, services, start_cloud, written};
use crate::script::{Conn, Http, Upstream};

/// A daemon before an upstream that a test plays, by the rules of one of the services.
fn before(upstream: &Upstream, service: impl Fn(&Cloud) -> Service) -> Proxy {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    Proxy::start(&cloud, &clock, &service(&cloud).route(&upstream.url()))
}

fn wrong() -> AccessKey {
    AccessKey { secret_key: "another secret".into(), ..key() }
}

#[test]
fn whoever_is_throttled_is_told_for_how_long_and_not_sent_again() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let throttling = json!({ "Code": "Throttling.User", "Message": "Request was denied due to user flow control." });
    let too_many = json!({ "error_code": "APIGW.0308", "error_msg": "The throttling threshold has been reached" });
    for (service, status, body) in [
        (acs(&cloud), 503, &throttling),
        (acs(&cloud), 429, &throttling),
        (acs(&cloud), 400, &throttling),
        (gateway(&cloud), 429, &too_many),
        (baidu(&cloud), 429, &json!({ "code": "RequestLimitExceeded" })),
        (acm(&cloud), 503, &json!("busy")),
    ] {
        let (proxy, before) = (Proxy::start(&cloud, &clock, &service.route(&service.https)), service.count());
        let answer = Answer::json(status, body, Err("throttled".to_owned())).with("retry-after", "7");
        service.control.fail("/", 1, Fault::Answer(answer));
        let reply = proxy.get(service.path);
        assert_eq!((reply.status, reply.header("retry-after")), (status, Some("7")), "{}", service.name);
        assert_eq!((reply.text(), retry(&reply)), (body.to_string(), None));
        assert_eq!(service.count() - before, 1, "{}", service.name);
        assert_eq!(proxy.get(service.path).status, 200);
    }
}

#[test]
fn a_wrong_secret_is_sent_once_and_its_refusal_passed_on() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    for service in services(&cloud) {
        for upstream in [&service.http, &service.https] {
            let route = service.route_with("up", upstream, "", &written(&wrong()));
            let (proxy, before) = (Proxy::start(&cloud, &clock, &route), service.count());
            let reply = proxy.get(service.path);
            assert!(matches!(reply.status, 400..404) && reply.code().is_none(), "{}", reply.head);
            assert!(!reply.body.is_empty() && retry(&reply).is_none());
            assert_eq!(service.count() - before, 1, "{}", service.name);
            let refusal = proxy.refusals().pop().unwrap();
            assert_eq!((refusal.verdict, refusal.sent_again), ("signature", None), "{}", service.name);
        }
    }
}

#[test]
fn an_error_that_is_not_about_the_signature_is_not_sent_again() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    for (service, body) in [
        (baidu(&cloud), json!({ "code": "ParametersNotChanged", "message": "nothing to change", "requestId": "1" })),
        (baidu(&cloud), json!({ "code": "AccessDenied", "message": "Access denied." })),
        (gateway(&cloud), json!({ "error_code": "APIGW.0302", "error_msg": "Forbidden" })),
        (acs(&cloud), json!({ "Code": "Forbidden.RAM", "Message": "User not authorized" })),
    ] {
        let (proxy, before) = (Proxy::start(&cloud, &clock, &service.route(&service.https)), service.count());
        service.control.fail("/", 1, Fault::json(403, &body));
        let reply = proxy.ask("up", "POST", service.path, "{}");
        assert_eq!((reply.status, reply.text(), retry(&reply)), (403, body.to_string(), None));
        assert_eq!(service.count() - before, 1, "{body}");
    }
}

#[test]
fn a_nonce_that_was_seen_before_is_replaced_once() {
    let clock = Clock::system();
    let cloud = start_cloud(&clock);
    let service = acs(&cloud);
    let proxy = Proxy::start(&cloud, &clock, &service.route(&service.https));
    let used = json!({ "Code": "SignatureNonceUsed", "Message": "Specified signature nonce was used already." });
    for (times, status) in [(1, 200), (2, 400)] {
        service.control.fail("/", times, Fault::json(400, &used));
        let before = service.count();
        let reply = proxy.ask("up", "POST", service.path, "{}");
        assert_eq!((reply.status, retry(&reply)), (status, Some("credential")), "{}", reply.text());
        let calls = &service.control.calls()[before..];
        let nonces: BTreeSet<_> = calls.iter().map(|call| &call.headers["x-acs-signature-nonce"]).collect();
        assert_eq!((calls.len(), nonces.len()), (2, 2));
    }
}

/// Says no to everything, in these octets, and goes on if they say how long they are.
fn refusing(octets: Vec<u8>, ends: bool) -> impl Fn(Conn) + Send + Sync + 'static {
    move |mut conn| {
        while conn.request().is_some() {
            if !conn.send(&octets) || ends {
                return;
            }
        }
    }
}

fn chunked(body: &[u8], size: usize, end: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for piece in body.chunks(size) {
        octets.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        octets.extend_from_slice(piece);
        octets.extend_from_slice(b"\r\n");
    }
    [&octets, end.as_bytes()].concat()
}

#[test]
fn a_refusal_reaches_the_caller_octet_for_octet() {
    let small = br#"{"code":"SignatureDoesNotMatch","message":"\u00e9 and \ud83d\ude00","requestId":"1"}"#.to_vec();
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(&small).unwrap();
    let compressed = packer.finish().unwrap();
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let sized = |body: &[u8]| [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    let pieces = |body: &[u8], end| {
        [&b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n"[..], &chunked(body, 1000, end)].concat()
    };
    let until_end = |body: &[u8]| [&b"Connection: close\r\n\r\n"[..], body].concat();
    for (body, rest, ends) in [
        (&small, sized(&small), false),
        (&small, pieces(&small, "0\r\n\r\n"), false),
        (&small, pieces(&small, "0\r\nX-Trailer: carried\r\n\r\n"), false),
        (&small, until_end(&small), true),
        (&compressed, [&b"Content-Encoding: gzip\r\n"[..], &sized(&compressed)].concat(), false),
        (&compressed, [&b"Content-Encoding: gzip\r\n"[..], &pieces(&compressed, "0\r\n\r\n")].concat(), false),
        // What says that it is packed need not be.
        (&large, [&b"Content-Encoding: gzip\r\n"[..], &sized(&large)].concat(), false),
        (&large, sized(&large), false),
        (&large, pieces(&large, "0\r\nX-Trailer: carried\r\n\r\n"), false),
        (&large, until_end(&large), true),
        (&Vec::new(), sized(b""), false),
        (&Vec::new(), pieces(b"", "0\r\n\r\n"), false),
    ] {
        let said = String::from_utf8_lossy(&rest[..60.min(rest.len())]).into_owned();
        let octets = [&b"HTTP/1.1 400 Bad Request\r\n"[..], &rest].concat();
        let upstream = Upstream::start(refusing(octets.clone(), ends));
        let proxy = before(&upstream, baidu);
        let mut caller = proxy.caller();
        for _ in 0..2 {
            let reply = caller.get("/v1/certificate");
            assert_eq!((reply.status, reply.is_whole, retry(&reply)), (400, true, None), "{said}");
            assert!(reply.body == *body, "{said}: {} octets instead of {}", reply.body.len(), body.len());
        }
        if octets.ends_with(b"carried\r\n\r\n") {
            let request =
                "GET /v1/certificate HTTP/1.1\r\nHost: up.localhost\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n";
            let raw = daemon::exchange(daemon::connect(proxy.address), request);
            assert!(raw.to_ascii_lowercase().ends_with("x-trailer: carried\r\n\r\n"), "{said}");
        }
    }
}

#[test]
fn a_refusal_that_is_cut_off_is_cut_off_for_the_caller() {
    for rest in [
        "Content-Length: 1000\r\n\r\n{\"code\":\"RequestExpired\"}".to_owned(),
        "Transfer-Encoding: chunked\r\n\r\n19\r\n{\"code\":\"RequestExpired\"}\r\n".to_owned(),
        format!("Content-Length: 1000000\r\n\r\n{}", "x".repeat(100_000)),
    ] {
        let (_, body) = rest.split_once("\r\n\r\n").unwrap();
        let body = body.trim_start_matches("19\r\n").trim_end().to_owned();
        let upstream = Upstream::start(refusing(format!("HTTP/1.1 400 Bad Request\r\n{rest}").into_bytes(), true));
        let proxy = before(&upstream, baidu);
        let reply = proxy.get("/v1/certificate");
        assert_eq!((reply.status, reply.is_whole, reply.text()), (400, false, body));
        assert_eq!(upstream.connections(), 1);
    }
}

#[test]
fn a_refusal_that_comes_slowly_is_not_waited_for_to_the_end() {
    let beginning = "{\"code\":\"AccessDenied\",\"message\":\"";
    for filling in [0, 70_000] {
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let first = format!("{beginning}{}", "x".repeat(filling));
        let whole = format!("{first}slowly\"}}");
        let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{first}", whole.len());
        let upstream = Upstream::start(move |mut conn| {
            conn.request();
            conn.send(&head);
            gone.lock().unwrap().recv().unwrap();
            conn.send("slowly\"}");
            conn.await_end();
        });
        let proxy = before(&upstream, baidu);
        let mut caller: Http<_> = proxy.caller();
        caller.send("GET /v1/certificate HTTP/1.1\r\nHost: up.localhost\r\nConnection: close\r\n\r\n");
        let head = caller.head().unwrap();
        assert!(head.contains(" 403 "), "{head}");
        let mut body = caller.octets(first.len()).unwrap();
        go.send(()).unwrap();
        body.extend(caller.rest());
        assert!(body == whole.as_bytes(), "{} octets instead of {}", body.len(), whole.len());
    }
}

#[test]
fn the_next_attempt_goes_over_the_connection_that_the_refusal_came_on() {
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(45);
    let date = ahead.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for (method, service, head) in [
        (
            "GET",
            baidu as fn(&Cloud) -> Service,
            "400 Bad Request\r\nContent-Length: 25\r\n\r\n{\"code\":\"RequestExpired\"}",
        ),
        (
            "GET",
            baidu,
            "400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n{\"code\":\"RequestExpired\"}\r\n0\r\n\r\n",
        ),
        ("GET", acm, "403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
        ("HEAD", acm, "403 Forbidden\r\nContent-Length: 9\r\n\r\n"),
    ] {
        let (start, rest) = head.split_once("\r\n").unwrap();
        let refusal = format!("HTTP/1.1 {start}\r\nDate: {date}\r\n{rest}");
        let upstream = Upstream::start(move |mut conn| {
            if conn.index == 0 && conn.request().is_some() {
                conn.send(&refusal);
            }
            conn.serve("fine");
        });
        let proxy = before(&upstream, service);
        let reply = proxy.ask("up", method, "/diamond-server/config.co", "");
        assert_eq!((reply.status, retry(&reply)), (200, Some("clock")), "{method} {head}");
        assert_eq!(upstream.connections(), 1, "{method} {head}");
    }
}

#[test]
fn a_post_that_is_refused_before_it_was_read_is_sent_again_whole() {
    let date = (jiff::Timestamp::now() + jiff::SignedDuration::from_mins(45)).strftime("%a, %d %b %Y %H:%M:%S GMT");
    let refusal = format!(
        "HTTP/1.1 400 Bad Request\r\nDate: {date}\r\nContent-Length: 25\r\n\r\n{{\"code\":\"RequestExpired\"}}"
    );
    let refused = AtomicBool::new(false);
    let upstream = Upstream::start(move |mut conn| {
        while let Some(head) = conn.head() {
            if !refused.swap(true, Ordering::SeqCst) {
                conn.send(&refusal);
                conn.body(&head);
            } else if let Some(body) = conn.body(&head) {
                let is_whole = body == "x".repeat(HELD).as_bytes();
                conn.ok(if is_whole { "whole" } else { "not whole" });
            }
        }
    });
    let proxy = before(&upstream, baidu);
    let reply = proxy.ask("up", "POST", "/v1/certificate", &"x".repeat(HELD));
    assert_eq!((reply.status, retry(&reply)), (200, Some("clock")), "{}", reply.text());
    assert_eq!(reply.text(), "whole");
}
