//! The ROA signature from end to end: the calls of the container service, and what of a caller's head counts.

use countersign::credential::AccessKey;
use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::AcsRoa;

use crate::scene::{Scene, ask, ask_with_body};

const CLUSTER: &str = "/clusters/Cccfd68c474454665ace07efce924f75f";

/// A service that knows one key, and a route to it over TLS.
fn route(scene: &mut Scene, name: &str, token: Option<&str>, keys: &str) -> String {
    let key = AccessKey {
        access_key: "acs-key".to_owned(),
        secret_key: "acs-secret".into(),
        security_token: token.map(Into::into),
    };
    let identity = scene.stage.authority.server(&["127.0.0.1"]).unwrap();
    let site = Site {
        name: "acs",
        transport: Transport::Tls(identity),
        scheme: Box::new(AcsRoa::new(vec![key])),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    let token = token.map(|token| format!(", security_token = \"{token}\"")).unwrap_or_default();
    format!(
        "[routes.{name}]\nupstream = \"https://{address}\"\ntls = {{ ca = \"ca.pem\" }}\n[routes.{name}.acs-roa]\n{keys}\n\
         credentials = {{ access_key = \"acs-key\", secret_key = \"acs-secret\"{token} }}\n"
    )
}

#[test]
fn the_container_services_calls_are_signed() {
    let mut scene = Scene::new();
    let tables = [
        route(&mut scene, "cs", None, ""),
        route(&mut scene, "sts", Some("CAIS8wF1q6Ft5B2y/fSjIr5fR+A=="), ""),
        route(&mut scene, "id", Some("token"), "sts_accesskey_id_header = true\nversion = \"2018-04-18\""),
    ];
    let daemon = scene.start(&tables.concat());
    for route in ["cs", "sts", "id"] {
        for target in [
            "/clusters",
            CLUSTER,
            &format!("{CLUSTER}/certs"),
            "/clusters/a%20b%2F//./c?name=my%20cluster%2B1+x&page_size=10&A&&a-b=1&a=%E4%B8%AD&a=&a",
            "/?",
        ] {
            let reply = ask(daemon.connect(), &format!("GET {target} HTTP/1.1\nHost: {route}.localhost"));
            assert_eq!(reply.passed_on().status, 200, "{route} {target}: {:?}", scene.stage.upstream.last_seen());
            let seen = scene.accepted();
            assert_eq!(seen.target, target);
            assert_eq!(seen.headers["accept"], "application/json");
            assert_eq!(seen.headers["x-acs-version"], if route == "id" { "2018-04-18" } else { "2015-12-15" });
            assert_eq!(seen.headers.contains_key("x-acs-security-token"), route != "cs");
            assert_eq!(seen.headers.contains_key("x-acs-accesskey-id"), route == "id");
        }
    }
}

#[test]
fn a_callers_own_headers_are_signed_and_only_they() {
    let mut scene = Scene::new();
    let tables = route(&mut scene, "cs", None, "");
    let daemon = scene.start(&tables);
    let own = "Accept: application/xml\nX-Acs-Version: 2014-11-11\nx-acs-action: DescribeClusters\nX-Acs-Meta: a \t b";
    let forged = "Date: forged\nContent-MD5: forged\nAuthorization: acs forged:x\nx-acs-signature: forged\n\
                  X_Acs_Date: forged\nx-acs-content-sha256: forged\nX-Acs-Signature-Nonce: forged\n\
                  x-acs-signature-type: forged\nx-acs-security-token: forged\nX-Acs-AccessKey-Id: forged\n\
                  x-acs-bearer-token: forged\nx-acs-credentials-provider: forged";
    let head = format!("GET /clusters HTTP/1.1\nHost: cs.localhost\n{own}\n{forged}\n{forged}");
    assert_eq!(ask(daemon.connect(), &head).passed_on().status, 200);
    let seen = scene.accepted();
    let mut names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "authorization",
        "date",
        "host",
        "x-acs-action",
        "x-acs-meta",
        "x-acs-signature-method",
        "x-acs-signature-nonce",
        "x-acs-signature-version",
        "x-acs-version",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (&seen.headers["accept"], &seen.headers["x-acs-version"]),
        (&"application/xml".parse().unwrap(), &"2014-11-11".parse().unwrap())
    );
    assert!(seen.headers.values().all(|value| !value.to_str().unwrap().contains("forged")));
}

#[test]
fn what_cannot_be_signed_is_the_callers_to_mend() {
    let mut scene = Scene::new();
    let tables = route(&mut scene, "cs", None, "");
    let daemon = scene.start(&tables);
    for (target, header, help) in [
        ("/", "x-acs-meta: hunter2\nX-Acs-Meta: hunter2", "header `x-acs-meta` came twice"),
        ("/", "x-acs-version: hunter2\nx-acs-version: hunter2", "header `x-acs-version` came twice"),
        ("/", "Accept: hunter2\nAccept: hunter2", "header `accept` came twice"),
        ("/?hunter2=%e4", "X-Any: 1", "UTF-8"),
        ("/?%ff", "X-Any: 1", "UTF-8"),
    ] {
        let head = format!("GET {target} HTTP/1.1\nHost: cs.localhost\n{header}");
        let refusal = ask(daemon.connect(), &head).refused();
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "bad_request"), "{refusal:?}");
        assert!(refusal.message.contains(help) && !refusal.message.contains("hunter2"), "{refusal:?}");
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn a_body_streams_unless_its_digest_is_signed() {
    let mut scene = Scene::new();
    let limits = "[limits]\nsigned_body = \"64B\"\nreplay_body = \"64B\"\n".to_owned();
    let with_digest = route(&mut scene, "on", None, "content_md5 = true");
    let tables = limits + &with_digest + &route(&mut scene, "off", None, "");
    let daemon = scene.start(&tables);
    for (method, body) in [("POST", "{\"name\":\"größer\"}"), ("PUT", "x"), ("DELETE", "a body"), ("GET", "")] {
        for route in ["on", "off"] {
            for is_chunked in [false, true] {
                let (framing, wire) = match (is_chunked, body.len()) {
                    (true, 0) => ("Transfer-Encoding: chunked".to_owned(), "0\r\n\r\n".to_owned()),
                    (true, length) => {
                        ("Transfer-Encoding: chunked".to_owned(), format!("{length:x}\r\n{body}\r\n0\r\n\r\n"))
                    }
                    (false, length) => (format!("Content-Length: {length}"), body.to_owned()),
                };
                let head = format!("{method} /clusters?b&a HTTP/1.1\nHost: {route}.localhost\n{framing}");
                let reply = ask_with_body(daemon.connect(), &head, &wire).passed_on();
                assert_eq!((reply.status, &reply.json()["body"]), (200, &body.into()), "{route} {method} {framing}");
                let seen = scene.accepted();
                let has_digest = route == "on" && !body.is_empty();
                assert_eq!(seen.headers.contains_key("content-md5"), has_digest, "{route} {method} {framing}");
                assert_eq!(seen.verdict.unwrap().contains("and its body"), has_digest);
            }
        }
    }
    let long = "x".repeat(65);
    for (route, status) in [("on", 413), ("off", 200)] {
        let head = format!("POST / HTTP/1.1\nHost: {route}.localhost\nContent-Length: 65");
        assert_eq!(ask_with_body(daemon.connect(), &head, &long).status, status, "{route}");
    }
}
