//! What of a caller's head and trailers goes no further, what is set in its place, and that nothing else changes.

use std::collections::BTreeSet;
use std::fmt::Write;

use countersign::demo::upstream::Seen;
use countersign::provider;

use crate::daemon::exchange;
use crate::scene::{Scene, ask, ask_with_body};
use crate::scripted::Scripted;

const ROUTES: [&str; 3] = ["cert", "echo", "cluster"];
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Every header that carries a credential of any provider.
fn credential_headers() -> BTreeSet<String> {
    let own = provider::ALL.iter().flat_map(|registration| registration.credential_headers);
    own.chain(provider::ALWAYS).map(|name| name.replace('*', "-Anything")).collect()
}

/// Spellings that some server takes for the same header.
fn spellings(name: &str) -> [String; 7] {
    let mut is_upper = false;
    let mixed = name.chars().map(|c| {
        is_upper = !is_upper;
        if is_upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
    });
    [
        name.to_owned(),
        name.to_ascii_lowercase(),
        name.to_ascii_uppercase(),
        mixed.collect(),
        name.replace('-', "_"),
        name.replace('-', "."),
        format!("{}_", name.replace('-', "")),
    ]
}

fn assert_nothing_forged(seen: &Seen, context: &str) {
    for (name, value) in &seen.headers {
        assert!(!value.as_bytes().windows(6).any(|part| part == b"forged"), "{context}: {name}");
    }
}

/// The names of the headers, those that come twice twice.
fn names(seen: &Seen) -> Vec<&str> {
    let mut names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn forged_credentials_never_arrive_however_they_are_spelt() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    for route in ROUTES {
        for spelling in 0..7 {
            let mut head = format!("POST /a HTTP/1.1\nHost: {route}.localhost\nContent-Length: 2\nX-Kept: yes");
            for name in credential_headers() {
                let name = &spellings(&name)[spelling];
                write!(head, "\n{name}: forged one\n{name}: forged two").unwrap();
            }
            ask_with_body(daemon.connect(), &head, "{}").passed_on();
            let seen = scene.accepted();
            assert_nothing_forged(&seen, &format!("{route} {spelling}"));
            let expected = match route {
                "cert" => ["authorization", "content-length", "host", "x-bce-date", "x-kept"].as_slice(),
                "echo" => &["content-length", "host", "x-auth-token", "x-kept"],
                _ => &["content-length", "host", "x-kept"],
            };
            assert_eq!(names(&seen), expected, "{route} {spelling}");
        }
    }
}

#[test]
fn what_a_route_sets_itself_is_never_the_callers() {
    let scene = Scene::new();
    let token = secrecy::ExposeSecret::expose_secret(&scene.stage.token);
    let own = format!("{{ \"X-Auth-Token\" = \"{token}\", \"PRIVATE-TOKEN\" = \"ours\" }}");
    let daemon = scene.start(&format!(
        "[routes.own]\nupstream = \"https://{}\"\n[routes.own.tls]\nca = \"ca.pem\"\n[routes.own.header]\nheaders = {own}\n{}",
        scene.stage.echo,
        scene.mtls("cluster", ""),
    ));
    for spelling in spellings("Private-Token") {
        let head =
            format!("GET /a HTTP/1.1\nHost: own.localhost\n{spelling}: forged\nX-Countersign-Request-Id: forged");
        ask(daemon.connect(), &head).passed_on();
        let seen = scene.accepted();
        assert_nothing_forged(&seen, &spelling);
        assert_eq!(names(&seen), ["host", "private-token", "x-auth-token"], "{spelling}");
        assert_eq!(seen.headers["private-token"], "ours");
        // On another route the name means nothing.
        ask(daemon.connect(), &head.replace("own.localhost", "cluster.localhost")).passed_on();
        assert_eq!(names(&scene.accepted()), ["host", spelling.to_ascii_lowercase().as_str()]);
    }
}

#[test]
fn forged_credentials_do_not_arrive_behind_the_body_either() {
    let scene = Scene::new();
    let upstream = Scripted::start(OK);
    let address = upstream.address.to_string();
    let header = format!(
        "[routes.token]\nupstream = \"http://{address}\"\n[routes.token.header]\nheaders = {{ X-Auth-Token = \"ours\" }}\n"
    );
    let daemon = scene.start(&[scene.bce_to(&address, "cert", ""), header].concat());
    for route in ["cert", "token"] {
        for spelling in 0..7 {
            let forged: Vec<_> = credential_headers().iter().map(|name| spellings(name)[spelling].clone()).collect();
            let mut trailers = String::from("X-Checksum: kept\r\nContent-Length: 5\r\nHost: forged.example\r\n");
            for name in &forged {
                write!(trailers, "{name}: forged\r\n").unwrap();
            }
            let head = format!(
                "POST /{spelling} HTTP/1.1\nHost: {route}.localhost\nTransfer-Encoding: chunked\n\
                 Trailer: X-Checksum, Content-Length, Host, {}",
                forged.join(", ")
            );
            let reply = ask_with_body(daemon.connect(), &head, format!("5\r\nhello\r\n0\r\n{trailers}\r\n"));
            assert_eq!(reply.passed_on().status, 200);
            let received = upstream.heard().concat();
            let received = received.split("POST ").last().unwrap().to_ascii_lowercase();
            let (head, body) = received.split_once("\r\n\r\n").unwrap();
            assert!(!received.contains(": forged"), "{route} {spelling}: {received}");
            assert!(head.contains("transfer-encoding: chunked"), "{received}");
            assert_eq!(body, "5\r\nhello\r\n0\r\nx-checksum: kept\r\n\r\n", "{route} {spelling}");
        }
    }
}

#[test]
fn connection_takes_away_what_it_names_but_nothing_that_is_set() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all("headers = { X-Set = \"ours\" }"));
    let named = "host, Authorization, X-Bce-Date, x-auth-token, Content-Length, Transfer-Encoding, x-hop, x-set, close";
    for route in ROUTES {
        let injected = match route {
            "cert" => ["authorization", "x-bce-date"].as_slice(),
            "echo" => &["x-auth-token"],
            _ => &[],
        };
        for (framing, body, framed) in [
            ("Content-Length: 5", "hello", Some("content-length")),
            ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", Some("transfer-encoding")),
            ("X-No: body", "", Some("x-no")),
        ] {
            let head = format!(
                "POST /a HTTP/1.1\nHost: {route}.localhost\n{framing}\nX-Hop: 1\nX-End: 2\nX-Set: theirs\nTE: trailers\n\
                 Keep-Alive: timeout=5\nProxy-Connection: close\nUpgrade: websocket\nConnection: {named}"
            );
            ask_with_body(daemon.connect(), &head, body).passed_on();
            let seen = scene.accepted();
            let mut expected = [&["connection", "host", "te", "x-end", "x-set"], injected].concat();
            expected.extend(framed);
            expected.sort_unstable();
            assert_eq!(names(&seen), expected, "{route} {framing}");
            assert_eq!(seen.headers["x-set"], "ours");
            assert_eq!(seen.headers["te"], "trailers");
            assert_eq!(seen.headers["connection"], "TE");
            assert_eq!(seen.body_len, if body.is_empty() { 0 } else { 5 }, "{route} {framing}");
        }
    }
}

#[test]
fn nothing_is_added_but_what_authenticates() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    for route in ROUTES {
        let injected = match route {
            "cert" => ["authorization", "x-bce-date"].as_slice(),
            "echo" => &["x-auth-token"],
            _ => &[],
        };
        for (headers, expected) in [
            ("", [].as_slice()),
            (
                "\nUser-Agent: app/1\nAccept: */*\nAccept: text/html\nVia: 1.1 other\nX-Forwarded-For: 10.0.0.1\n\
                 Forwarded: for=10.0.0.1\nCookie: a=b; c=d\nX-Empty:\nX-Spaces:   a  b\t\nx_under: 1\nDate: yesterday\n\
                 Content-MD5: x\nAccept-Encoding: gzip\nRange: bytes=0-\nX-Latin: \u{e9}\nAuthorization-Info: 1",
                &[
                    "accept",
                    "accept",
                    "accept-encoding",
                    "authorization-info",
                    "content-md5",
                    "cookie",
                    "date",
                    "forwarded",
                    "range",
                    "user-agent",
                    "via",
                    "x-empty",
                    "x-forwarded-for",
                    "x-latin",
                    "x-spaces",
                    "x_under",
                ],
            ),
        ] {
            ask(daemon.connect(), &format!("GET /a?b HTTP/1.1\nHost: {route}.localhost{headers}")).passed_on();
            let seen = scene.accepted();
            let mut expected = [&["host"], injected, expected].concat();
            expected.sort_unstable();
            assert_eq!(names(&seen), expected, "{route}");
            if !headers.is_empty() {
                assert_eq!(seen.headers.get_all("accept").iter().collect::<Vec<_>>(), ["*/*", "text/html"]);
                assert_eq!(seen.headers["x-spaces"], "a  b");
                assert_eq!(seen.headers["x-empty"], "");
                assert_eq!(seen.headers["x-latin"].as_bytes(), "\u{e9}".as_bytes());
                assert_eq!(seen.headers["date"], "yesterday");
            }
        }
    }
}

#[test]
fn a_route_keeps_what_its_owner_names_and_nothing_beside_it() {
    let scene = Scene::new();
    let daemon = scene.start(&[scene.mtls("cluster", "keep = [\"Authorization\"]"), scene.mtls("other", "")].concat());
    let head = "GET /projects/ HTTP/1.1\nHost: cluster.localhost\nAuthorization: Bearer theirs\n\
                Proxy-Authorization: forged\nX-Auth-Token: forged";
    assert_eq!(ask(daemon.connect(), head).passed_on().status, 200);
    let seen = scene.accepted();
    assert_eq!(names(&seen), ["authorization", "host"]);
    assert_eq!(seen.headers["authorization"], "Bearer theirs");
    ask(daemon.connect(), &head.replace("cluster", "other")).passed_on();
    assert_eq!(names(&scene.accepted()), ["host"]);
}

#[test]
fn a_routes_own_headers_are_set_and_its_defaults_stand_in() {
    let scene = Scene::new();
    let keys = "headers = { \"Content-Type\" = \"application/json; charset=utf-8\", \"X-Set\" = \"ours\" }\n\
                default_headers = { \"Accept\" = \"application/json\", \"User-Agent\" = \"default\" }";
    let daemon = scene.start(&scene.all(keys));
    for route in ROUTES {
        let head = format!(
            "GET /a HTTP/1.1\nHost: {route}.localhost\nContent-Type: text/plain\ncontent-type: text/html\n\
             x-set: theirs\nX-SET: again\nAccept: text/html"
        );
        ask(daemon.connect(), &head).passed_on();
        let seen = scene.accepted();
        for (name, value) in [
            ("content-type", "application/json; charset=utf-8"),
            ("x-set", "ours"),
            ("accept", "text/html"),
            ("user-agent", "default"),
        ] {
            assert_eq!(seen.headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{route} {name}");
        }
    }
}

#[test]
fn replies_keep_their_headers_but_those_of_the_connection_and_ours() {
    let scene = Scene::new();
    let upstream = Scripted::start(
        "HTTP/1.1 299 Quite Fine\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nWWW-Authenticate: Basic\r\nX-Countersign-Error: forged\r\n\
         X-Countersign-Request-Id: forged\r\nX-Bce-Request-Id: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Server: upstream\r\nContent-Length: 2\r\n\r\nok",
    );
    let daemon = scene.start(&scene.bce_to(&upstream.address.to_string(), "cert", ""));
    let octets = "GET /a HTTP/1.1\r\nHost: cert.localhost\r\nConnection: close\r\n\r\n";
    let reply = exchange(daemon.connect(), octets);
    let mut names: Vec<_> =
        reply.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    names.sort_unstable();
    let expected = [
        "connection",
        "content-length",
        "server",
        "set-cookie",
        "set-cookie",
        "www-authenticate",
        "x-bce-request-id",
        "x-countersign-request-id",
    ];
    assert_eq!(names, expected, "{reply}");
    assert!(reply.starts_with("HTTP/1.1 299 ") && !reply.contains("forged") && reply.ends_with("ok"), "{reply}");
}

#[test]
fn trailers_of_replies_say_nothing_in_our_name_or_about_the_framing() {
    let scene = Scene::new();
    let upstream = Scripted::start(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Sum, X-Countersign-Error, Content-Length, Access-Control-Allow-Origin\r\n\r\n2\r\nok\r\n0\r\n\
         X-Sum: 1\r\nX-Countersign-Error: forged\r\nContent-Length: 9\r\nAccess-Control-Allow-Origin: *\r\n\r\n",
    );
    let daemon = scene.start(&scene.bce_to(&upstream.address.to_string(), "cert", ""));
    let octets = "GET /a HTTP/1.1\r\nHost: cert.localhost\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let reply = exchange(daemon.connect(), octets);
    let (_, body) = reply.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", "{reply}");
}
