//! Services that tell a machine about itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use countersign::clock::Timestamp;

use super::ports::reserve;
use super::server::{Server, dated, reply};
use super::{NOW, asker, key, place, trouble};

const ECS_KEYS: &str = r#"{"Code":"Success","AccessKeyId":"STS.id","AccessKeySecret":"hunter2","SecurityToken":"st","Expiration":"2026-01-02T09:04:05Z","LastUpdated":"2026-01-02T03:04:05Z"}"#;
const HUAWEI_KEYS: &str = r#"{"credential":{"access":"HST","secret":"hunter2","securitytoken":"st","expires_at":"2026-01-02T09:04:05.678000Z"}}"#;
const SIX_HOURS: i64 = 6 * 3_600_000;

fn ecs(server: &Server, more: &str) -> String {
    format!("{{ source = 'ecs-ram-role', endpoint = 'http://{}'{more} }}", server.address)
}

fn huawei(server: &Server) -> String {
    format!("{{ source = 'huawei-metadata', endpoint = 'http://{}' }}", server.address)
}

#[tokio::test]
async fn an_ecs_role_is_found_and_its_token_kept_for_its_life() {
    let server = Server::start(|request| match request.split(' ').nth(1).unwrap() {
        "/latest/api/token" => reply("200 OK", "mt"),
        "/latest/meta-data/ram/security-credentials/" => reply("200 OK", "my.role-1\n"),
        "/latest/meta-data/ram/security-credentials/my.role-1" => reply("200 OK", ECS_KEYS),
        path => panic!("{path}"),
    });
    let (place, asker) = (place(&ecs(&server, "")), asker());
    for _ in 0..2 {
        // A date leaves out the fraction of its second: half a one is the best guess.
        let expected = ("STS.id hunter2 st".to_owned(), Some(NOW.0 + SIX_HOURS - 500));
        assert_eq!(key(place.fetch(&asker).await), expected);
    }
    let (role, keys) =
        ("GET /latest/meta-data/ram/security-credentials/", "GET /latest/meta-data/ram/security-credentials/my.role-1");
    assert_eq!(server.asked(), ["PUT /latest/api/token", role, keys, role, keys]);
    let heard = server.heard();
    assert!(heard[0].contains("\r\nx-aliyun-ecs-metadata-token-ttl-seconds: 21600\r\n"), "{}", heard[0]);
    assert!(heard[1..].iter().all(|request| request.contains("\r\nx-aliyun-ecs-metadata-token: mt\r\n")));
    assert!(heard.iter().all(|request| request.contains(&format!("\r\nhost: {}\r\n", server.address))));

    asker.clock.set(Timestamp(NOW.0 + SIX_HOURS - 299_000));
    place.fetch(&asker).await.unwrap();
    assert_eq!(server.asked().iter().filter(|asked| asked.starts_with("PUT")).count(), 2);
}

#[tokio::test]
async fn an_ecs_instance_without_tokens_is_asked_plainly() {
    let server = Server::start(|request| match request {
        request if request.starts_with("PUT") => reply("403 Forbidden", "hunter2"),
        request => {
            assert!(!request.contains("x-aliyun"), "{request}");
            reply("200 OK", ECS_KEYS)
        }
    });
    let place = place(&ecs(&server, ", role = 'r'"));
    assert_eq!(key(place.fetch(&asker()).await).0, "STS.id hunter2 st");
    assert_eq!(place.identity(), format!("ecs-ram-role http://{} r", server.address));
}

#[tokio::test]
async fn an_ecs_service_that_refuses_a_token_is_asked_without() {
    let server = Server::start(|request| match request {
        request if request.starts_with("PUT") => reply("200 OK", "mt"),
        request if request.contains("x-aliyun-ecs-metadata-token: mt") => reply("401 Unauthorized", ""),
        _ => reply("200 OK", ECS_KEYS),
    });
    assert_eq!(key(place(&ecs(&server, ", role = 'r'")).fetch(&asker()).await).0, "STS.id hunter2 st");
}

#[tokio::test]
async fn what_an_ecs_service_answers_amiss_is_told_in_words() {
    for (status, body, expected) in [
        ("404 Not Found", "hunter2", "knows no role \"r\": attach it"),
        ("500 Oops", "hunter2", "answered 500 Internal Server Error"),
        ("302 Found", "hunter2", "answered 302 Found"),
        ("200 OK", "hunter2", "it is no JSON object"),
        ("200 OK", r#"{"Code":"Failed","AccessKeySecret":"hunter2"}"#, "`Code` is \"Failed\""),
        ("200 OK", r#"{"AccessKeySecret":"hunter2"}"#, "`Code` is missing"),
        ("200 OK", r#"{"Code":"Success","AccessKeySecret":"hunter2"}"#, "`AccessKeyId` is missing"),
    ] {
        let server = Server::start(move |request| match request {
            request if request.starts_with("PUT") => reply("404 Not Found", ""),
            _ => reply(status, body),
        });
        let said = trouble(place(&ecs(&server, ", role = 'r'")).fetch(&asker()).await);
        assert!(said.starts_with(&format!("http://{} ", server.address)) && said.contains(expected), "{body}: {said}");
    }
    for (status, body) in [("404 Not Found", ""), ("200 OK", "\n")] {
        let server = Server::start(move |_| reply(status, body));
        let said = trouble(place(&ecs(&server, "")).fetch(&asker()).await);
        assert!(said.contains("names no RAM role: attach one"), "{said}");
    }
}

#[tokio::test]
async fn the_end_of_keys_is_reckoned_by_the_clock_of_who_names_it() {
    let server = Server::start(|_| dated("Fri, 02 Jan 2026 04:04:05 GMT", "200 OK", "", HUAWEI_KEYS));
    let (_, expiry) = key(place(&huawei(&server)).fetch(&asker()).await);
    // Its clock is an hour ahead, and half a second more or less.
    assert_eq!(expiry, Some(NOW.0 + SIX_HOURS + 678 - 3_600_500));
}

#[tokio::test]
async fn huawei_keys_come_with_a_token_that_is_renewed_when_it_is_stale() {
    let tokens = AtomicUsize::new(0);
    let server = Server::start(move |request| match request {
        request if request.starts_with("PUT") => {
            reply("200 OK", &format!("mt{}", tokens.fetch_add(1, Ordering::Relaxed)))
        }
        request if request.contains("x-metadata-token: mt1\r\n") => reply("200 OK", HUAWEI_KEYS),
        _ => reply("401 Unauthorized", "no"),
    });
    let (place, asker) = (place(&huawei(&server)), asker());
    for _ in 0..2 {
        assert_eq!(key(place.fetch(&asker).await).0, "HST hunter2 st");
    }
    let (token, keys) = ("PUT /meta-data/latest/api/token", "GET /openstack/latest/securitykey");
    assert_eq!(server.asked(), [token, keys, token, keys, keys]);
    assert!(server.heard()[0].contains("\r\nx-metadata-token-ttl-seconds: 21600\r\n"));
}

#[tokio::test]
async fn a_host_without_huawei_tokens_is_not_asked_for_one_for_a_day() {
    for status in ["404 Not Found", "405 Method Not Allowed", "503 Service Unavailable"] {
        let server = Server::start(move |request| match request {
            request if request.starts_with("PUT") => reply(status, ""),
            _ => reply("200 OK", HUAWEI_KEYS),
        });
        let (place, asker) = (place(&huawei(&server)), asker());
        for hours in [0, 23, 24] {
            asker.clock.set(Timestamp(NOW.0 + hours * 3_600_000));
            place.fetch(&asker).await.unwrap();
        }
        let (token, keys) = ("PUT /meta-data/latest/api/token", "GET /openstack/latest/securitykey");
        assert_eq!(server.asked(), [token, keys, keys, token, keys]);
    }
}

#[tokio::test]
async fn an_instance_without_an_agency_is_told_what_it_lacks() {
    let server = Server::start(|request| match request {
        request if request.starts_with("PUT") => reply("200 OK", "mt"),
        _ => reply("401 Unauthorized", "Please configure Cloud Service Agency first."),
    });
    let said = trouble(place(&huawei(&server)).fetch(&asker()).await);
    assert!(said.contains("this instance has no agency: configure one"), "{said}");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn what_a_huawei_service_answers_amiss_is_told_in_words() {
    for (token, status, body, expected) in [
        ("500 Oops", "200 OK", HUAWEI_KEYS, "refuses a token of metadata: it answered 500"),
        ("404 Not Found", "401 Unauthorized", "", "wants a token of metadata, but hands out none"),
        ("404 Not Found", "403 Forbidden", "hunter2", "answered 403 Forbidden"),
        ("404 Not Found", "200 OK", "hunter2", "it is no JSON object"),
        ("404 Not Found", "200 OK", r#"{"credential":"hunter2"}"#, "`credential` is missing"),
        ("404 Not Found", "200 OK", r#"{"credential":{"access":"hunter2"}}"#, "is missing"),
    ] {
        let server = Server::start(move |request| match request {
            request if request.starts_with("PUT") => reply(token, ""),
            _ => reply(status, body),
        });
        let said = trouble(place(&huawei(&server)).fetch(&asker()).await);
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named() {
    let (address, _socket) = reserve();
    for source in ["ecs-ram-role", "huawei-metadata"] {
        let place = place(&format!("{{ source = '{source}', endpoint = 'http://{address}' }}"));
        let said = trouble(place.fetch(&asker()).await);
        assert!(said.starts_with(&format!("http://{address} cannot be reached at {address}")), "{said}");
    }
}
