//! TEM-AUTH from end to end: each algorithm, and which bodies are held for it.

use countersign::credential::AccessKey;
use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::{Tem, TemAlgorithm};

use crate::scene::{Reply, Scene, ask_with_body};

const ALGORITHMS: [(&str, TemAlgorithm); 4] = [
    ("L3.SHA256", TemAlgorithm::Sha256),
    ("L3.SHA1", TemAlgorithm::Sha1),
    ("L0.SHA1", TemAlgorithm::Sha1OfSecret),
    ("L0.PAINTEXT", TemAlgorithm::PlainText),
];

/// A TEM that knows one key and is reached in the clear, and a route to it.
fn route(scene: &mut Scene, name: &str, algorithm: (&str, TemAlgorithm), keys: &str) -> String {
    let key = AccessKey { access_key: "tem-key".to_owned(), secret_key: "tem-secret".into(), security_token: None };
    let site = Site {
        name: "tem",
        transport: Transport::Plain,
        scheme: Box::new(Tem::new(vec![key], algorithm.1)),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    format!(
        "[routes.{name}]\nupstream = \"http://{address}\"\n[routes.{name}.tem]\nalgorithm = \"{}\"\n{keys}\n\
         credentials = {{ access_key = \"tem-key\", secret_key = \"tem-secret\" }}\n",
        algorithm.0
    )
}

/// Sends a request whose body the echo must have got as it was.
fn call(stream: std::net::TcpStream, line: &str, framing: &str, wire: &str, body: &str) -> Reply {
    let reply = ask_with_body(stream, &format!("{line} HTTP/1.1\n{framing}"), wire).passed_on();
    assert_eq!(reply.status, 200, "{line}: {reply:?}");
    assert_eq!(reply.json()["body"], body, "{line}");
    reply
}

#[test]
fn each_algorithm_signs_every_kind_of_call() {
    for (index, algorithm) in ALGORITHMS.into_iter().enumerate() {
        let mut scene = Scene::new();
        let tables = route(&mut scene, "tem", algorithm, "");
        let daemon = scene.start(&tables);
        let body = "{ \"Alias\" : \"größer\" }\n";
        let length = format!("Host: tem.localhost\nContent-Type: application/json\nContent-Length: {}", body.len());
        let chunked = "Host: tem.localhost\nContent-Type: application/json\nTransfer-Encoding: chunked";
        let (head, tail) = body.split_at(5);
        let chunks = format!("{:x}\r\n{head}\r\n{:x}\r\n{tail}\r\n0\r\n\r\n", head.len(), tail.len());
        for (line, framing, wire, expected) in [
            ("GET /api/v1/resource/monitor?ip=172.17.0.15", "Host: tem.localhost", "", ""),
            ("GET //api//v1/%2e/a%20b?b=2&a=+%2f&&c=?", "Host: tem.localhost", "", ""),
            ("GET /api/v1/x?", "Host: tem.localhost\nAuthorization: Bearer forged", "", ""),
            ("GET /api/v1/with/a/body", &length, body, body),
            ("POST /api/v1/cluster/tidbs/1/start", "Host: tem.localhost", "", ""),
            ("POST /api/v1/cluster/tidbs?dry=true", &length, body, body),
            ("POST /api/v1/cluster/tidbs", chunked, &chunks, body),
            ("PUT /api/v1/cluster/tidbs/1", &length, body, body),
            ("PATCH /api/v1/cluster/tidbs/1", &length, body, body),
            ("PATCH /api/v1/cluster/tidbs/1", chunked, &chunks, body),
            ("DELETE /api/v1/cluster/tidbs/1?force=true", "Host: tem.localhost", "", ""),
            ("DELETE /api/v1/cluster/tidbs/1", &length, body, body),
            ("DELETE /api/v1/cluster/tidbs/1", chunked, &chunks, body),
        ] {
            call(daemon.connect(), line, framing, wire, expected);
            let seen = scene.accepted();
            assert_eq!(format!("{} {}", seen.method, seen.target), line);
            assert_eq!(seen.headers.get_all("authorization").iter().count(), 1, "{line}");
            // A body that is signed is held, so that its length is known; others stream as they came.
            let is_held = index < 2 && (line.starts_with("POST") || line.starts_with("PATCH"));
            assert_eq!(seen.headers.contains_key("transfer-encoding"), framing == chunked && !is_held, "{line}");
        }
    }
}

#[test]
fn a_prefix_that_a_door_takes_off_is_not_signed() {
    let mut scene = Scene::new();
    let tables = route(&mut scene, "tem", ALGORITHMS[0], "");
    let daemon = scene.start(&tables);
    call(daemon.connect(), "GET /tem/api/v1/x?a", "Host: localhost", "", "");
    assert_eq!(scene.accepted().target, "/api/v1/x?a");
}

#[test]
fn a_body_is_held_up_to_the_limit_where_it_is_signed() {
    let mut scene = Scene::new();
    let tables = [
        "[limits]\nsigned_body = \"16B\"\nreplay_body = \"16B\"\n".to_owned(),
        route(&mut scene, "tem", ALGORITHMS[0], ""),
        route(&mut scene, "none", ALGORITHMS[0], "params_methods = []"),
    ];
    let daemon = scene.start(&tables.concat());
    let body = "seventeen octets.";
    for (route, method, is_held) in
        [("tem", "POST", true), ("tem", "PUT", true), ("tem", "DELETE", false), ("none", "OPTIONS", false)]
    {
        let head = format!("{method} / HTTP/1.1\nHost: {route}.localhost\nContent-Length: {}", body.len());
        let reply = ask_with_body(daemon.connect(), &head, body);
        if is_held {
            let refusal = reply.refused();
            assert_eq!((refusal.status, refusal.code.as_str()), (413, "body_too_large"), "{method}");
        } else {
            assert_eq!(reply.passed_on().json()["body"], body, "{method}");
        }
    }
}

#[test]
fn another_algorithm_than_the_keys_is_refused_and_the_refusal_passed_on() {
    let mut scene = Scene::new();
    let tables = route(&mut scene, "tem", ("L3.SHA1", TemAlgorithm::Sha256), "");
    let daemon = scene.start(&tables);
    let reply = ask_with_body(daemon.connect(), "GET / HTTP/1.1\nHost: tem.localhost", "").passed_on();
    assert_eq!((reply.status, &reply.json()["Success"]), (401, &false.into()));
}
