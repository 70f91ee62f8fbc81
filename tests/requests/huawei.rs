//! Huawei Cloud's calls, with a token and signed with an access key.

use std::io::Write;
use std::time::{Duration, Instant};

use countersign::credential::AccessKey;
use countersign::demo::service::Service;
use countersign::demo::upstream::{Seen, Site, Transport};
use countersign::demo::verify::{FixedHeader, SdkHmac};
use http::HeaderName;
use secrecy::SecretString;

use crate::daemon::{Daemon, PATIENCE, exchange};
use crate::scene::{Reply, Scene, ask, ask_with_body};
use crate::scripted::Scripted;

const CERTKEY: &str = "/v3/tasks/7a9941f6-3dc4-4ac2-8d3f-3b5b39f12a3c/certkey?enable_ca_cert=true";
const DOMAIN: &str = "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e";

/// A route that signs, to a gateway of its own.
fn aksk(scene: &mut Scene, name: &str, keys: &str) -> String {
    signing(scene, name, keys, None, None)
}

fn signing(scene: &mut Scene, name: &str, keys: &str, token: Option<&str>, derived: Option<(&str, &str)>) -> String {
    let security_token = token.map(Into::into);
    let key = AccessKey { access_key: "the-key".to_owned(), secret_key: "hunter2".into(), security_token };
    let derived = derived.map(|(region, service)| (region.to_owned(), service.to_owned()));
    let site = Site {
        name: "gateway",
        transport: Transport::Plain,
        scheme: Box::new(SdkHmac { keys: vec![key].into(), derived }),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    let token = token.map(|token| format!(", security_token = \"{token}\"")).unwrap_or_default();
    format!(
        "[routes.{name}]\nupstream = \"http://{address}\"\n[routes.{name}.huawei-aksk]\n\
         credentials = {{ access_key = \"the-key\", secret_key = \"hunter2\"{token} }}\n{keys}\n"
    )
}

/// A route with a token, to a server of its own.
fn token(scene: &mut Scene, name: &str, token: &str) -> String {
    let identity = scene.stage.authority.server(&["127.0.0.1"]).unwrap();
    let site = Site {
        name: "token",
        transport: Transport::Tls(identity),
        scheme: Box::new(FixedHeader {
            name: HeaderName::from_static("x-auth-token"),
            value: SecretString::from(token),
        }),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    format!(
        "[routes.{name}]\nupstream = \"https://{address}\"\n[routes.{name}.tls]\nca = \"ca.pem\"\n\
         [routes.{name}.huawei-token]\ntoken = \"{token}\"\n"
    )
}

fn get(daemon: &Daemon, route: &str, target: &str, headers: &str) -> Reply {
    ask(daemon.connect(), &format!("GET {target} HTTP/1.1\nHost: {route}.localhost{headers}")).passed_on()
}

fn post(daemon: &Daemon, route: &str, headers: &str, body: &str) -> Reply {
    let head = format!("POST /v3/tasks HTTP/1.1\nHost: {route}.localhost{headers}");
    ask_with_body(daemon.connect(), &head, body)
}

/// The names that the signature covers.
fn signed(seen: &Seen) -> &str {
    let authorization = seen.headers["authorization"].to_str().unwrap();
    authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap()
}

fn text<'s>(seen: &'s Seen, name: &str) -> Option<&'s str> {
    assert!(seen.headers.get_all(name).iter().count() < 2, "{name}");
    seen.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn the_keys_of_a_migration_are_asked_for_with_a_token_and_with_a_signature() {
    let mut scene = Scene::new();
    let routes = [
        aksk(&mut scene, "signed", &format!("domain_id = \"{DOMAIN}\"")),
        // Long enough for any that IAM issues.
        token(&mut scene, "token", &"MIIToken/+=-_.0x".repeat(1024)),
    ];
    let daemon = scene.start(&routes.concat());
    let forged = "\nContent-Type: application/json\nX-Auth-Token: forged\nX_Auth_Token: forged\nX-Domain-Id: forged\n\
                  x_domain_id: forged\nX-Security-Token: forged\nX-Sdk-Date: 20010101T000000Z\n\
                  X-Sdk-Content-Sha256: UNSIGNED-PAYLOAD\nAuthorization: forged\nX-Language: en-us";
    for route in ["signed", "token"] {
        let reply = get(&daemon, route, CERTKEY, forged);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["query"], "enable_ca_cert=true");
        let seen = scene.accepted();
        assert_eq!(seen.target, CERTKEY);
        assert_eq!((text(&seen, "x-language"), text(&seen, "content-type")), (Some("en-us"), Some("application/json")));
        let values: Vec<_> = seen.headers.values().map(|value| value.to_str().unwrap()).collect();
        let is_domain_ours = route == "signed";
        assert_eq!(text(&seen, "x-domain-id"), Some(if is_domain_ours { DOMAIN } else { "forged" }));
        let forged = values.iter().filter(|value| **value == "forged").count();
        // Without one of ours, an id is an ordinary header.
        assert_eq!(forged, if is_domain_ours { 0 } else { 2 }, "{route}");
        assert!(!values.contains(&"20010101T000000Z") && !seen.headers.contains_key("x-sdk-content-sha256"), "{route}");
        if route == "signed" {
            assert_eq!(signed(&seen), "host;x-domain-id;x-sdk-date");
            assert!(!seen.headers.contains_key("x-auth-token"));
        } else {
            assert_eq!(text(&seen, "x-auth-token").unwrap().len(), 16384);
            assert!(!seen.headers.contains_key("authorization"));
        }
    }
    assert!(!daemon.log().contains("hunter2") && !daemon.log().contains("MIIToken"), "{}", daemon.log());
}

#[test]
fn a_body_is_signed_however_it_is_framed() {
    let mut scene = Scene::new();
    let project = aksk(&mut scene, "ecs", "project_id = \"p\"\nsigned_headers = \"all\"");
    let daemon = scene.start(&project);
    let (json, body) = ("\nContent-Type: application/json", "{\"name\":\"größe\"}");
    let length = format!("{json}\nContent-Length: {}", body.len());
    assert_eq!(post(&daemon, "ecs", &length, body).passed_on().status, 200);
    let seen = scene.accepted();
    assert_eq!((seen.body_len, signed(&seen)), (body.len(), "content-length;host;x-project-id;x-sdk-date"));
    assert!(seen.verdict.unwrap().contains("payload hashed"));

    let chunks = format!("6\r\n{{\"name\r\n{:x}\r\n{}\r\n0\r\n\r\n", body.len() - 6, body.split_at(6).1);
    assert_eq!(post(&daemon, "ecs", &format!("{json}\nTransfer-Encoding: chunked"), &chunks).passed_on().status, 200);
    let seen = scene.accepted();
    assert_eq!((seen.body_len, text(&seen, "transfer-encoding")), (body.len(), None));

    for empty in ["", "\nContent-Length: 0"] {
        assert_eq!(post(&daemon, "ecs", &format!("{json}{empty}"), "").passed_on().status, 200);
        assert_eq!(scene.accepted().body_len, 0);
    }
    assert_eq!(post(&daemon, "ecs", "\nTransfer-Encoding: chunked", "0\r\n\r\n").passed_on().status, 200);
    assert_eq!(scene.accepted().body_len, 0);
}

#[test]
fn a_body_that_is_not_signed_streams_and_may_be_large() {
    let mut scene = Scene::new();
    let routes = [
        "[limits]\nsigned_body = \"1KiB\"\n".to_owned(),
        aksk(&mut scene, "unsigned", "payload = \"unsigned\""),
        aksk(&mut scene, "auto", "payload = \"auto\""),
        aksk(&mut scene, "hash", ""),
    ];
    let daemon = scene.start(&routes.concat());
    let large = "x".repeat(3000);
    let chunked = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let framings = [
        ("\nTransfer-Encoding: chunked".to_owned(), &chunked),
        (format!("\nContent-Length: {}", large.len()), &large),
        // With trailers, which no signature covers.
        (
            "\nTransfer-Encoding: chunked\nTrailer: x-sum".to_owned(),
            &chunked.replace("0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n"),
        ),
    ];
    for (framing, body) in framings {
        for (route, kind) in [
            ("unsigned", "application/json"),
            ("unsigned", "text/plain"),
            ("auto", "application/octet-stream"),
            ("auto", "application/vnd.api+json"),
        ] {
            let headers = format!("\nContent-Type: {kind}{framing}");
            assert_eq!(post(&daemon, route, &headers, body).passed_on().status, 200, "{route} {headers}");
            let seen = scene.accepted();
            assert_eq!(text(&seen, "x-sdk-content-sha256"), Some("UNSIGNED-PAYLOAD"), "{route} {headers}");
            assert_eq!(signed(&seen), "host;x-sdk-content-sha256;x-sdk-date");
            let is_chunked = framing.contains("chunked");
            assert_eq!((seen.body_len, text(&seen, "transfer-encoding")), (3000, is_chunked.then_some("chunked")));
        }
        for (route, kind) in [
            ("hash", "\nContent-Type: text/plain"),
            ("hash", ""),
            ("auto", "\nContent-Type: application/json; charset=utf-8"),
            ("auto", "\nContent-Type: application/bson"),
            ("auto", ""),
        ] {
            let before = scene.count();
            let refusal = post(&daemon, route, &format!("{kind}{framing}"), body).refused();
            assert_eq!((refusal.status, refusal.code.as_str()), (413, "body_too_large"), "{route} {kind}");
            assert!(refusal.message.contains("`limits.signed_body`"), "{refusal:?}");
            assert_eq!(scene.count(), before, "{route} {kind}");
        }
    }
    for route in ["unsigned", "auto"] {
        for empty in ["", "\nContent-Length: 0"] {
            post(&daemon, route, &format!("\nContent-Type: text/plain{empty}"), "").passed_on();
            let seen = scene.accepted();
            assert_eq!(text(&seen, "x-sdk-content-sha256"), None, "{route} {empty}: nothing to leave unsigned");
        }
        // That a body in chunks is empty shows only when it has come.
        for empty in ["0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n"] {
            post(&daemon, route, "\nContent-Type: text/plain\nTransfer-Encoding: chunked", empty).passed_on();
            let seen = scene.accepted();
            assert_eq!(text(&seen, "x-sdk-content-sha256"), None, "{route} {empty:?}");
            assert_eq!((text(&seen, "content-length"), text(&seen, "transfer-encoding")), (Some("0"), None));
        }
        let cut = "POST / HTTP/1.1\r\nHost: unsigned.localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n";
        let refusal = Reply::parse(&daemon.exchange(cut)).refused();
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "bad_request"), "{refusal:?}");
    }
}

#[test]
fn a_body_that_is_not_signed_is_passed_on_as_it_comes() {
    let scene = Scene::new();
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let daemon = scene.start(&format!(
        "[routes.edge]\nupstream = \"http://{}\"\n[routes.edge.huawei-aksk]\npayload = \"unsigned\"\n\
         credentials = {{ access_key = \"the-key\", secret_key = \"hunter2\" }}\n",
        upstream.address
    ));
    let mut stream = daemon.connect();
    let head =
        "PUT /v2/images/1 HTTP/1.1\r\nHost: edge.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).unwrap();
    let began = Instant::now();
    while !upstream.heard().concat().contains("first") {
        assert!(began.elapsed() < PATIENCE, "nothing arrives before the end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Reply::parse(&exchange(stream, "4\r\nlast\r\n0\r\n\r\n")).passed_on().status == 200);
    let arrived = upstream.heard_once();
    assert!(arrived.contains("x-sdk-content-sha256: UNSIGNED-PAYLOAD\r\n") && arrived.contains("last"), "{arrived}");
}

#[test]
fn the_derived_form_is_for_one_region_and_service() {
    let mut scene = Scene::new();
    let derived = "project_id = \"p\"\nderived = { region = \"cn-north-4\", service = \"iotda\" }";
    let routes = [
        signing(&mut scene, "edge", derived, None, Some(("cn-north-4", "iotda"))),
        signing(&mut scene, "elsewhere", derived, None, Some(("cn-north-4", "sms"))),
        aksk(&mut scene, "plain", derived),
    ];
    let daemon = scene.start(&routes.concat());
    assert_eq!(get(&daemon, "edge", "/v2/x?a=1", "").status, 200);
    let seen = scene.accepted();
    let authorization = text(&seen, "authorization").unwrap();
    assert!(authorization.starts_with("V11-HMAC-SHA256 Credential=the-key/2"), "{authorization}");
    assert!(authorization.contains("/cn-north-4/iotda, SignedHeaders=host;x-project-id;x-sdk-date, Signature="));
    for route in ["elsewhere", "plain"] {
        assert_eq!(get(&daemon, route, "/v2/x", "").status, 401, "{route}");
    }
}

#[test]
fn temporary_keys_bring_their_token_and_it_is_signed() {
    let mut scene = Scene::new();
    let keep = "signed_headers = [\"x-a\", \"X_B\", \"range\"]";
    let route = signing(&mut scene, "sms", keep, Some("gQpjbi1ub3J0aC00ig/+==xyz"), None);
    let daemon = scene.start(&route.replace("\nupstream", "\nkeep = [\"x-auth-token\"]\nupstream"));
    let headers = "\nX-A:  b  c \nX_B: 1\nX-Security-Token: forged\nX-Auth-Token: kept\nX-Project-Id: theirs";
    assert_eq!(get(&daemon, "sms", "/v3/tasks", headers).status, 200);
    let seen = scene.accepted();
    assert_eq!(text(&seen, "x-security-token"), Some("gQpjbi1ub3J0aC00ig/+==xyz"));
    assert_eq!((text(&seen, "x_b"), text(&seen, "x-auth-token")), (Some("1"), Some("kept")));
    assert_eq!(signed(&seen), "host;x-a;x-project-id;x-sdk-date;x-security-token");
}

#[test]
fn what_needs_escaping_is_signed_as_it_is_sent() {
    let mut scene = Scene::new();
    let routes = [
        aksk(&mut scene, "minimal", ""),
        aksk(&mut scene, "all", "signed_headers = \"all\""),
        aksk(&mut scene, "literal", "plus = \"literal\""),
        signing(&mut scene, "v11", "derived = { region = \"globe\", service = \"sms\" }", None, Some(("globe", "sms"))),
    ];
    let daemon = scene.start(&routes.concat());
    for route in ["minimal", "all", "literal", "v11"] {
        let space = if route == "literal" { "%2B" } else { "%20" };
        for (target, sent) in [
            ("/", None),
            ("/v3/%74asks/a%20b/%e4%b8%ad/%7e%2D%252F", None),
            ("/v3/!$&'()*+,;=:@", None),
            ("/v3//%2e%2E/./a%2Fb;c/%25/", None),
            ("/v3/\u{e9}/%ff%zz%", None),
            ("/v3/x?", None),
            ("/v3/x?&a=1&&b=2&", None),
            ("/v3/x?b=1&B=2&a=3&A=4&_c=5&1=6&a:=7&a1=8&%E5%90%8D=9", None),
            ("/v3/x?a-b=1&a=2&a.b=3&a=1&a", None),
            ("/v3/x?q=a%20b%2Bc%2fd~e*f%25g%7Eh&=&=x", None),
            ("/v3/x?t=00:00:00Z&u=a/b?c@d,e;f!g'(h)$[i]{j}|k^l`", None),
            ("/v3/x?a=b=c==&%=100%&%z=%e", None),
            ("/v3/x?a+b=+&+", Some(format!("/v3/x?a{space}b={space}&{space}"))),
            ("/v3/a+b?c=%2B", None),
        ] {
            let headers = "\nX-U: \u{4e2d}\u{6587}\nX-Empty:\nX-A:  a  b; c=d \nX_Under: 1\nCookie: a=1; b=2";
            assert_eq!(get(&daemon, route, target, headers).status, 200, "{route} {target}");
            assert_eq!(scene.accepted().target, sent.clone().unwrap_or_else(|| target.to_owned()));
        }
    }
}

#[test]
fn a_header_that_cannot_be_signed_as_one_is_refused_by_name() {
    let mut scene = Scene::new();
    let routes = [aksk(&mut scene, "all", "signed_headers = \"all\""), aksk(&mut scene, "few", "")];
    let daemon = scene.start(&routes.concat());
    for (route, header, is_refused) in
        [("all", "X-Twice", true), ("few", "X-Project-Id", true), ("few", "X-Twice", false), ("all", "X_Twice", false)]
    {
        let head = format!("GET / HTTP/1.1\nHost: {route}.localhost\n{header}: tip1\n{header}: tip2");
        let reply = ask(daemon.connect(), &head);
        if is_refused {
            let refusal = reply.refused();
            assert_eq!((refusal.status, refusal.code.as_str()), (400, "bad_request"), "{refusal:?}");
            assert!(
                refusal.message.contains(&header.to_lowercase()) && !refusal.message.contains("tip"),
                "{refusal:?}"
            );
        } else {
            assert_eq!(reply.passed_on().status, 200, "{route} {header}");
        }
    }
}

#[test]
fn the_gateways_refusal_is_passed_on_untouched_and_not_repeated() {
    let mut scene = Scene::new();
    let routes = [
        aksk(&mut scene, "wrong", "").replace("hunter2", "hunter3"),
        aksk(&mut scene, "unknown", "").replace("the-key", "nobody"),
        token(&mut scene, "token", "right").replace("\"right\"", "\"hunter3\""),
    ];
    let daemon = scene.start(&routes.concat());
    for (route, message) in [
        ("wrong", "verify aksk signature fail"),
        ("unknown", "Get secretKey failed,ak:nobody,err:ak not exist"),
        ("token", "another value"),
    ] {
        let before = scene.count();
        let reply = get(&daemon, route, CERTKEY, "");
        assert_eq!(reply.status, 401, "{reply:?}");
        assert!(reply.body.contains(message), "{reply:?}");
        if route != "token" {
            assert_eq!(reply.json()["request_id"].as_str(), reply.header("x-request-id"));
        }
        assert_eq!(scene.count(), before + 1, "{route}: sent more than once");
        assert!(!reply.body.contains("hunter"));
    }
    assert!(!daemon.log().contains("hunter"), "{}", daemon.log());
}
