//! What is refused before it is anybody's request: each answer says the same in its status, its headers and its body, and
//! nothing is forwarded.

use std::time::{Duration, Instant};

use crate::daemon::{Daemon, connect, exchange};
use crate::ports::reserve;
use crate::scene::{Refusal, Reply, Scene, ask, ask_with_body, connect_unix};
use crate::scripted::Scripted;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn start(scene: &Scene) -> Daemon {
    let own = "listen = [\"127.0.0.1:0\", \"unix:cert.sock\"]\nhosts = [\"certificate.test\", \"ported.test:8443\"]";
    let tables = [scene.bce("cert", own), scene.header("echo", ""), scene.mtls("cluster", "")];
    scene.start_listening("listen = [\"127.0.0.1:0\", \"unix:shared.sock\"]", &tables.concat())
}

fn expect(refusal: &Refusal, status: u16, code: &str, part: &str, context: &str) {
    assert_eq!((refusal.status, refusal.code.as_str()), (status, code), "{context}: {refusal:?}");
    assert!(refusal.message.contains(part), "{context}: {refusal:?}");
}

#[test]
fn an_upstream_that_leads_back_to_us_is_not_dialled() {
    let scene = Scene::new();
    let ((port, _port), (admin, _admin)) = (reserve(), reserve());
    let [port, admin] = [port, admin].map(|address| address.port());
    let tables = [
        scene.bce_to(&format!("127.0.0.1:{admin}"), "admin", ""),
        scene.bce_to(&format!("127.0.0.1:{port}"), "address", ""),
        scene.bce_to(&format!("localhost:{port}"), "name", ""),
        scene.bce("dialled", &format!("connect = \"127.0.0.1:{port}\"")),
    ];
    let server = format!("listen = [\"127.0.0.1:{port}\"]\n[admin]\nlisten = \"127.0.0.1:{admin}\"");
    let daemon = scene.start_listening(&server, &tables.concat());
    for route in ["address", "name", "dialled", "admin"] {
        let refusal = ask(daemon.connect(), &format!("GET / HTTP/1.1\nHost: {route}.localhost")).refused();
        expect(&refusal, 502, "upstream_unreachable", "own listeners", route);
    }
    assert!(!daemon.log().contains("unknown_host"), "{}", daemon.log());
}

#[test]
fn a_request_names_one_host_and_names_it_once() {
    let scene = Scene::new();
    let daemon = start(&scene);
    for (head, part) in [
        ("GET /v1 HTTP/1.1\nHost: cert.localhost\nHost: cert.localhost", "twice"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhost\nhOST: evil.example", "twice"),
        ("GET http://cert.localhost/v1 HTTP/1.1\nHost: cert.localhost\nHost: cert.localhost", "twice"),
        ("GET /v1 HTTP/1.1", "send a Host header"),
        ("GET /cert/v1 HTTP/1.1", "send a Host header"),
        ("GET http://cert.localhost/v1 HTTP/1.1", "send a Host header"),
        ("GET /cert/v1 HTTP/1.0", "send a Host header"),
        ("GET /v1 HTTP/1.1\nHost:", "not valid"),
        ("GET /v1 HTTP/1.1\nHost:  ", "not valid"),
        ("GET /v1 HTTP/1.0\nHost:", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: :80", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhost, cert.localhost", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhost:80:80", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhost:+80", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhost:65536", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: user@cert.localhost", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: http://cert.localhost", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert..localhost", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: cert.localhöst", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: [::1", "not valid"),
        ("GET /v1 HTTP/1.1\nHost: ::1", "not valid"),
        ("GET http://cert.localhost/v1 HTTP/1.1\nHost: echo.localhost", "different hosts"),
        ("GET http://cert.localhost/v1 HTTP/1.1\nHost: cert.localhost:8080", "different hosts"),
        ("GET http://evil.example/v1 HTTP/1.1\nHost: cert.localhost", "different hosts"),
        ("GET http://cert.localhost/v1 HTTP/1.1\nHost:", "not valid"),
        ("GET https://cert.localhost/v1 HTTP/1.1\nHost: cert.localhost:80", "different hosts"),
        ("GET http://user@cert.localhost/v1 HTTP/1.1\nHost: cert.localhost", "not valid"),
        ("GET ftp://cert.localhost/v1 HTTP/1.1\nHost: cert.localhost", "http:// URL"),
        ("GET file://cert.localhost/v1 HTTP/1.0", "http:// URL"),
    ] {
        let refusal = ask(daemon.connect(), head).refused();
        expect(&refusal, 400, "bad_request", part, head);
        assert_eq!(refusal.route, None, "{head}");
        // What one listener calls ambiguous is so on all.
        if head.contains("HTTP/1.1") {
            let own = ask(connect(daemon.own_address("cert")), head).refused();
            expect(&own, 400, "bad_request", part, head);
            for socket in ["cert.sock", "shared.sock"] {
                let unix = ask(connect_unix(&daemon.folder().join(socket)), head).refused();
                expect(&unix, 400, "bad_request", part, head);
            }
        }
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn http_1_0_needs_no_host_where_the_listener_says_enough() {
    let scene = Scene::new();
    let daemon = start(&scene);
    let refusal = ask(daemon.connect(), "GET /cert/v1/certificate HTTP/1.0").refused();
    expect(&refusal, 400, "bad_request", "send a Host header", "shared TCP");
    assert_eq!(scene.count(), 0);
    let replies = [
        ask(connect(daemon.own_address("cert")), "GET /v1/certificate HTTP/1.0"),
        ask(connect_unix(&daemon.folder().join("cert.sock")), "GET /v1/certificate HTTP/1.0"),
        ask(connect_unix(&daemon.folder().join("shared.sock")), "GET /cert/v1/certificate HTTP/1.0"),
    ];
    for reply in replies {
        assert_eq!(reply.passed_on().status, 200);
        assert_eq!(scene.accepted().target, "/v1/certificate");
    }
}

#[test]
fn targets_that_are_no_path_are_refused() {
    let scene = Scene::new();
    let daemon = start(&scene);
    for (line, part) in [
        ("CONNECT cert.localhost:443", "CONNECT"),
        ("CONNECT evil.example:443", "CONNECT"),
        ("CONNECT /v1", "CONNECT"),
        ("TRACE /v1", "TRACE"),
        ("TRACE http://cert.localhost/v1", "TRACE"),
        ("OPTIONS *", "must be a path"),
        ("GET *", "must be a path"),
        ("GET cert.localhost", "must be a path"),
        ("GET cert.localhost:80", "must be a path"),
    ] {
        for address in [daemon.address(), daemon.own_address("cert")] {
            let head = format!("{line} HTTP/1.1\nHost: cert.localhost");
            let reply = ask(connect(address), &head);
            // A CONNECT names an authority beside the header, which may differ: that alone is a 400 as well.
            expect(&reply.refused(), 400, "bad_request", part, line);
        }
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn foreign_names_are_misdirected_on_every_tcp_listener() {
    let scene = Scene::new();
    let daemon = start(&scene);
    for host in [
        "evil.example",
        "cert.localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8080",
        "cert.evil.example",
        "evillocalhost",
        "8.8.8.8",
        "169.254.169.254",
        "10.0.0.7:8080",
        "0.0.0.0",
        "[::]",
        "[2001:db8::1]",
        "[::ffff:8.8.8.8]",
        "0x7f.1",
        "2130706433",
        "ported.test",
        "ported.test:8444",
        "a.certificate.test",
    ] {
        for target in ["/v1/certificate", "/cert/v1/certificate"] {
            for (address, listener) in [(daemon.address(), "shared"), (daemon.own_address("cert"), "own")] {
                let refusal = ask(connect(address), &format!("GET {target} HTTP/1.1\nHost: {host}")).refused();
                expect(&refusal, 421, "unknown_host", "name it in a route's `hosts`", &format!("{host} {listener}"));
                assert_eq!(refusal.route, None);
                assert!(!refusal.message.contains("echo"), "a stranger learns the routes' names: {refusal:?}");
                let absolute = format!("GET http://{host}{target} HTTP/1.1\nHost: {host}");
                expect(&ask(connect(address), &absolute).refused(), 421, "unknown_host", "", host);
            }
        }
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn a_loopback_name_without_a_route_is_told_which_there_are() {
    let scene = Scene::new();
    let daemon = start(&scene);
    for (host, target) in [
        ("nobody.localhost", "/v1"),
        ("a.cert.localhost:8080", "/v1"),
        ("nobody.localhost", "/cert/v1"),
        ("localhost", "/"),
        ("localhost", "/v1"),
        ("localhost", "//cert/v1"),
        ("localhost", "/CERT/v1"),
        ("localhost", "/%63ert/v1"),
        ("localhost", "/certs/v1"),
        ("localhost", "/../cert/v1"),
        ("127.0.0.1:8080", "/?cert"),
        ("[::1]", "/nobody"),
    ] {
        let head = format!("GET {target} HTTP/1.1\nHost: {host}");
        let refusal = ask(daemon.connect(), &head).refused();
        expect(&refusal, 421, "unknown_host", "the routes are cert, echo, cluster", &head);
        assert_eq!(refusal.route, None);
    }
    let unix = connect_unix(&daemon.folder().join("shared.sock"));
    let refusal = ask(unix, "GET /nobody HTTP/1.1\nHost: api.moby.localhost").refused();
    expect(&refusal, 421, "unknown_host", "the routes are cert, echo, cluster", "Unix socket");
    assert_eq!(scene.count(), 0);
}

#[test]
fn transfer_codings_that_nobody_undoes_are_refused() {
    let scene = Scene::new();
    let daemon = start(&scene);
    for name in ["cert", "echo", "cluster"] {
        for coding in [
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: ,chunked",
            "Content-Length: 5\nTransfer-Encoding: gzip, chunked",
            "Transfer-Encoding: gzip, chunked\nContent-Length: 5",
        ] {
            let head = format!("POST /v1 HTTP/1.1\nHost: {name}.localhost\n{coding}");
            let refusal = ask_with_body(daemon.connect(), &head, "5\r\nhello\r\n0\r\n\r\n").refused();
            expect(&refusal, 400, "bad_request", "one plain `chunked`", &head);
            assert_eq!(refusal.route.as_deref(), Some(name), "{head}");
        }
    }
    assert_eq!(scene.count(), 0);
}

/// Sends octets and reads to the end, which must come long before any timeout would bring it about.
fn promptly(daemon: &Daemon, octets: impl AsRef<[u8]>) -> String {
    let began = Instant::now();
    let reply = exchange(daemon.connect(), octets);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}: {reply}", began.elapsed());
    reply
}

#[test]
fn heads_that_cannot_be_read_get_an_empty_answer_and_a_close() {
    let scene = Scene::new();
    let tables = format!("[limits]\nheader_bytes = \"8KiB\"\n{}", scene.all(""));
    let daemon = scene.start(&tables);
    let host = "Host: cert.localhost\r\n";
    let many = "X-A: 1\r\n".repeat(200);
    for (octets, status) in [
        ("garbage\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n".to_owned(), 400),
        (format!("GET /v1\r\n{host}\r\n"), 400),
        (format!("GET /v1 HTTP/1.2\r\n{host}\r\n"), 400),
        (format!("GET /v1 HTTP/2.0\r\n{host}\r\n"), 400),
        (format!("GET /v1 HTTP/0.9\r\n{host}\r\n"), 400),
        (format!("GET  /v1 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET /v1 x HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET /v\u{1} HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("G(T /v1 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET v1/x HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET http://[::1 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET /v1 HTTP/1.1\r\n{host}X-A : 1\r\n\r\n"), 400),
        (format!("GET /v1 HTTP/1.1\r\n{host}X-A: 1\r\n folded\r\n\r\n"), 400),
        (format!("GET /v1 HTTP/1.1\r\n{host}X-A: \0\r\n\r\n"), 400),
        (format!("GET /v1 HTTP/1.1\r\n{host}no colon\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Transfer-Encoding: identity\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Transfer-Encoding: \r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: 5, 5\r\n\r\nhello"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\nhello"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: 0x5\r\n\r\nhello"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: \r\n\r\n"), 400),
        (format!("POST /v1 HTTP/1.1\r\n{host}Content-Length: 99999999999999999999\r\n\r\n"), 400),
        (format!("GET /v1 HTTP/1.1\r\n{host}X-Long: {}\r\n\r\n", "a".repeat(20_000)), 431),
        (format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(20_000)), 431),
        (format!("GET /v1 HTTP/1.1\r\n{host}{many}\r\n"), 431),
    ] {
        let shown: String = octets.chars().take(80).collect();
        let reply = promptly(&daemon, &octets);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {reply:?}");
        let reply = Reply::parse(&reply);
        assert!(reply.body.is_empty() && reply.header("content-length") == Some("0"), "{shown:?}: {reply:?}");
        assert_eq!(reply.header("connection"), Some("close"), "{shown:?}");
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn what_only_begins_like_http_2_is_no_request() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    for start in
        ["PRI * HTTP/1.1\r\nHost: cert.localhost\r\nConnection: close\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"]
    {
        let reply = promptly(&daemon, start);
        assert!(!reply.starts_with("HTTP/1.1 2"), "{start:?}: {reply:?}");
    }
    assert_eq!(scene.count(), 0);
}

#[test]
fn the_same_length_twice_is_one_length() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    let head = "POST /v1 HTTP/1.1\nHost: echo.localhost\nContent-Length: 5\nContent-Length: 5";
    assert_eq!(ask_with_body(daemon.connect(), head, "hello").passed_on().status, 200);
    let seen = scene.accepted();
    assert_eq!((seen.headers.get_all("content-length").iter().count(), seen.body_len), (1, 5));
}

#[test]
fn no_framing_smuggles_a_second_request() {
    let scene = Scene::new();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: cert.localhost\r\n\r\n";
    let hidden = format!("0\r\n\r\n{smuggled}");
    let length = hidden.len();
    for framing in [
        "Transfer-Encoding: chunked\r\nContent-Length: 4".to_owned(),
        "Content-Length: 4\r\nTransfer-Encoding: chunked".to_owned(),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        "Content-Length: 4\r\nContent-Length: 4\r\nTransfer-Encoding: chunked".to_owned(),
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 5".to_owned(),
        "Transfer-Encoding: CHUNKED\r\nContent-Length: 4".to_owned(),
        "Content_Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 4".to_owned(),
        format!("Connection: content-length\r\nContent-Length: {length}"),
        format!("Connection: transfer-encoding, content-length\r\nContent-Length: {length}"),
        format!("Transfer_Encoding: chunked\r\nContent-Length: {length}"),
        format!("Transfer.Encoding: chunked\r\nContent-Length: {length}"),
    ] {
        let upstream = Scripted::start(OK);
        let daemon = scene.start(&scene.bce_to(&upstream.address.to_string(), "cert", ""));
        let head = format!("POST /v1 HTTP/1.1\r\nHost: cert.localhost\r\n{framing}\r\n");
        let closing = if framing.contains("Connection") || !framing.contains("Transfer-Encoding") {
            "Connection: close\r\n"
        } else {
            ""
        };
        let reply = promptly(&daemon, format!("{head}{closing}\r\n{hidden}"));
        assert_eq!(reply.matches("HTTP/1.1 ").count(), 1, "{framing}: {reply:?}");
        let received = upstream.heard_once();
        let (head, body) = received.split_once("\r\n\r\n").unwrap();
        let framings: Vec<_> = head
            .lines()
            .filter(|line| line.starts_with("transfer-encoding:") || line.starts_with("content-length:"))
            .collect();
        match framings.as_slice() {
            ["transfer-encoding: chunked"] => assert_eq!(body, "0\r\n\r\n", "{framing}"),
            [one] => {
                assert_eq!(*one, format!("content-length: {length}"), "{framing}");
                assert_eq!(body, hidden, "{framing}");
            }
            _ => panic!("{framing}: {received:?}"),
        }
        let spelt = head.lines().filter(|line| line.contains("_encoding") || line.contains(".encoding"));
        assert_eq!(spelt.count(), 0, "{framing}: an upstream that reads names loosely sees two framings: {head}");
        assert!(!head.contains("content_length"), "{framing}: {head}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order_on_their_own_routes() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    let octets = "GET /one HTTP/1.1\r\nHost: echo.localhost\r\n\r\n\
                  GET /two HTTP/1.1\r\nHost: evil.example\r\n\r\n\
                  GET /projects/ HTTP/1.1\r\nHost: cluster.localhost\r\nConnection: close\r\n\r\n\
                  GET /never HTTP/1.1\r\nHost: echo.localhost\r\n\r\n";
    let reply = promptly(&daemon, octets);
    let lines: Vec<_> = reply.match_indices("HTTP/1.1 ").filter_map(|(at, _)| reply.get(at + 9..at + 12)).collect();
    assert_eq!(lines, ["200", "421", "200"], "{reply}");
    let targets: Vec<_> = scene.stage.upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/one", "/projects/"]);
}
