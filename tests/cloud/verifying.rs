//! Those that verify signatures, and how any of them can be made to misbehave.

use std::io::Read;
use std::thread;
use std::time::Duration;

use countersign::clock::Timestamp;
use countersign::credential::AccessKey;
use flate2::read::GzDecoder;
use serde_json::json;

use crate::client::{NOW, ask, connect, exchange, lasting, signed, start};
use crate::cloud::Fault;

fn wrong() -> AccessKey {
    AccessKey { secret_key: "another".into(), ..lasting() }
}

#[test]
fn acm_refuses_in_free_text_with_its_own_date() {
    let (cloud, _) = start();
    let read = |key: &AccessKey, time| {
        signed("acm", key, cloud.acm.plain, "/diamond-server/config.co?dataId=a&group=G&tenant=T", time, "")
    };
    assert_eq!(read(&lasting(), NOW).status, 403);
    cloud.add(&lasting());
    assert_eq!(read(&lasting(), NOW).status, 200);
    assert_eq!(read(&wrong(), NOW).status, 403);
    cloud.acm.shift(61);
    let late = read(&lasting(), NOW);
    assert_eq!((late.status, late.header("date")), (403, "Fri, 02 Jan 2026 03:05:06 GMT"));
    assert_eq!((late.header("content-type"), late.text().starts_with("timeStamp is")), ("text/plain", true));
    assert_eq!(read(&lasting(), NOW + 61_000).status, 200);
    assert_eq!((cloud.acm.accepted("AKlasting"), cloud.acm.refused("Forbidden")), (2, 3));
}

#[test]
fn baidu_refuses_in_json_with_a_code() {
    let (cloud, _) = start();
    let read = |key: &AccessKey, time| signed("bce", key, cloud.baidu.plain, "/v1/certificate", time, "");
    assert_eq!(read(&lasting(), NOW).code(), (403, "InvalidAccessKeyId".to_owned()));
    cloud.add(&lasting());
    assert_eq!(read(&lasting(), NOW).status, 200);
    assert_eq!(read(&wrong(), NOW).code(), (400, "SignatureDoesNotMatch".to_owned()));
    cloud.baidu.shift(1801);
    let late = read(&lasting(), NOW);
    assert_eq!(late.code(), (400, "RequestExpired".to_owned()));
    assert_eq!(late.header("x-bce-request-id"), late.json()["requestId"]);
    assert_eq!(cloud.baidu.refused("RequestExpired: Request has expired. Timestamp date is 2026-01-02T03:04:05Z"), 1);
    cloud.baidu.play.keys.remove("AKlasting");
    assert_eq!(read(&lasting(), NOW + 1_801_000).status, 403);
}

#[test]
fn the_gateway_tells_its_time_and_locks_a_key_after_five_bad_signatures() {
    let (cloud, clock) = start();
    cloud.add(&lasting());
    let read = |key: &AccessKey, time| signed("huawei-aksk", key, cloud.gateway.plain, "/v1/vpcs", time, "");
    assert_eq!(read(&lasting(), NOW).status, 200);
    let unknown = AccessKey { access_key: "AKunknown".to_owned(), ..lasting() };
    assert!(read(&unknown, NOW).text().contains("Get secretKey failed,ak:AKunknown,err:ak not exist"));
    cloud.gateway.shift(901);
    let late = read(&lasting(), NOW);
    assert_eq!(late.code(), (401, "APIGW.0301".to_owned()));
    let message = "signature expired, signature time:20260102T030405Z,server time:20260102T031906Z";
    assert!(late.text().contains(message), "{}", late.text());
    cloud.gateway.shift(0);
    for bad in [4, 5] {
        for _ in 0..bad {
            assert!(read(&wrong(), NOW).text().contains("verify aksk signature fail"));
        }
        let good = read(&lasting(), NOW);
        assert_eq!(
            (good.status, good.text().contains("AK access failed to reach the limit")),
            if bad == 4 { (200, false) } else { (401, true) }
        );
    }
    clock.set(Timestamp(NOW + 300_000));
    assert_eq!(read(&lasting(), NOW + 300_000).status, 200);
    assert_eq!(cloud.gateway.refused("verify aksk"), 9);
}

#[test]
fn acs_wants_a_new_nonce_every_time() {
    let (cloud, _) = start();
    let read = |key: &AccessKey, time, nonce: &str| signed("acs-roa", key, cloud.acs.plain, "/clusters", time, nonce);
    assert_eq!(read(&lasting(), NOW, "1").code(), (404, "InvalidAccessKeyId.NotFound".to_owned()));
    cloud.add(&lasting());
    assert_eq!(read(&lasting(), NOW, "1").status, 200);
    assert_eq!(read(&lasting(), NOW, "1").code(), (400, "SignatureNonceUsed".to_owned()));
    assert_eq!(read(&wrong(), NOW, "2").code(), (400, "SignatureDoesNotMatch".to_owned()));
    cloud.acs.shift(-901);
    assert_eq!(read(&lasting(), NOW, "3").code(), (400, "InvalidTimeStamp.Expired".to_owned()));
    assert_eq!(cloud.acs.accepted("AKlasting"), 1);
}

#[test]
fn a_site_cuts_throttles_redirects_and_comes_back() {
    let (cloud, _) = start();
    cloud.add(&lasting());
    let read = || signed("bce", &lasting(), cloud.baidu.plain, "/v1/certificate", NOW, "");
    cloud.baidu.fail("/v2", usize::MAX, Fault::status(500));
    cloud.baidu.fail("/v1", 2, Fault::throttle(429, 3));
    cloud.baidu.fail("/v1", 1, Fault::redirect("/elsewhere"));
    cloud.baidu.fail("/", 1, Fault::json(403, &json!({ "code": "AccessDenied" })));
    cloud.baidu.fail("/", 1, Fault::Cut);
    for _ in 0..2 {
        let throttled = read();
        assert_eq!((throttled.status, throttled.header("retry-after")), (429, "3"));
    }
    let redirected = read();
    assert_eq!((redirected.status, redirected.header("location")), (302, "/elsewhere"));
    assert_eq!(read().code(), (403, "AccessDenied".to_owned()));
    assert!(exchange(connect(cloud.baidu.plain), "GET /v1", &[], "").is_none());
    assert_eq!(read().status, 200);
    assert_eq!(ask(cloud.baidu.plain, "GET /v2", &[]).status, 500);
    cloud.baidu.behave(|manner| manner.is_down = true);
    assert!(exchange(connect(cloud.baidu.plain), "GET /v1", &[], "").is_none());
    cloud.baidu.recover();
    assert_eq!(ask(cloud.baidu.plain, "GET /v2", &[]).code(), (403, "AccessDenied".to_owned()));
    // What was cut was not answered, what was reset did not even arrive.
    assert_eq!((cloud.baidu.arrived(), cloud.baidu.calls().len()), (8, 7));
    assert_eq!(cloud.baidu.calls()[0].status, 429);
}

#[test]
fn refusals_come_packed_and_in_chunks() {
    let (cloud, _) = start();
    cloud.baidu.behave(|manner| (manner.gzip, manner.chunked) = (true, true));
    let refused = ask(cloud.baidu.plain, "GET /", &[]);
    assert_eq!((refused.header("content-encoding"), refused.header("transfer-encoding")), ("gzip", "chunked"));
    let mut text = String::new();
    GzDecoder::new(refused.body.as_slice()).read_to_string(&mut text).unwrap();
    assert!(text.contains("AccessDenied"), "{text}");
}

#[test]
fn requests_wait_while_a_site_is_held_and_are_counted() {
    let (cloud, _) = start();
    cloud.add(&lasting());
    cloud.baidu.behave(|manner| manner.delay = Duration::from_millis(1));
    cloud.baidu.hold();
    let address = cloud.baidu.plain;
    let callers: Vec<_> = (0..3)
        .map(|_| thread::spawn(move || signed("bce", &lasting(), address, "/v1/certificate", NOW, "").status))
        .collect();
    cloud.baidu.await_arrivals(3);
    assert_eq!(cloud.baidu.calls().len(), 0);
    cloud.baidu.release();
    cloud.baidu.await_calls(3);
    assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
    assert_eq!((cloud.baidu.most_at_once(), cloud.baidu.accepted("AKlasting")), (3, 3));
}
