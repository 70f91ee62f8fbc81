//! What comes back: places in the caller's terms, no fresh token, nothing of the connection that it came on.

use std::fmt::Write;

use crate::daemon::{Daemon, connect, exchange};
use crate::scene::{Reply, Scene, ask, connect_unix};
use crate::script::Upstream;

/// An upstream that answers every request with the headers that it is told: `X-Say-NAME: VALUE` becomes `NAME: VALUE`, in
/// which UP stands for its own address. A request of a length gets a body of chunks, with all that behind it.
fn echo() -> Upstream {
    Upstream::start(|mut conn| {
        while let Some((head, body)) = conn.request() {
            let up = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
            let said = head.lines().filter_map(|line| line.strip_prefix("x-say-"));
            let said: String = said.map(|line| line.replace("UP", &up) + "\r\n").collect();
            let is_sent = if body.is_empty() {
                conn.send(format!("HTTP/1.1 302 Found\r\n{said}Content-Length: 2\r\n\r\n"))
                    && (head.starts_with("HEAD ") || conn.send("ok"))
            } else {
                let names: Vec<_> = said.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
                let framing = format!("Transfer-Encoding: chunked\r\nTrailer: {}\r\n", names.join(", "));
                conn.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n2\r\nok\r\n0\r\n{said}\r\n"))
            };
            if !is_sent {
                return;
            }
        }
    })
}

/// Through which door a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Path,
    Prefix,
    Host,
    /// As a proxy's client asks.
    Name,
    Own,
    OwnUnix,
    SharedUnix,
    /// HTTP/1.0, which names no host.
    Nameless,
}

use Door::{Host, Name, Nameless, Own, OwnUnix, Path, Prefix, SharedUnix};

const ALL: [Door; 8] = [Path, Prefix, Host, Name, Own, OwnUnix, SharedUnix, Nameless];

struct Stage {
    upstream: Upstream,
    daemon: Daemon,
}

impl Stage {
    fn new() -> Self {
        let upstream = echo();
        let route = |name: &str, more: &str| {
            format!(
                "[routes.{name}]\nupstream = \"{}\"\nhosts = [\"{name}.example.test\"]\n\
                 listen = [\"127.0.0.1:0\", \"unix:{name}.sock\"]\n{more}\n",
                upstream.url()
            )
        };
        let token = "huawei-token = { token = \"ours\" }";
        let server = "listen = [\"127.0.0.1:0\", \"unix:shared.sock\"]\ndomains = [\"localhost\", \"corp.test\"]\n\
                      origins = [\"https://app.example\"]";
        let tables = [
            route("cert", token),
            route("cluster", "bearer = { token = \"other\" }"),
            route("iam", &format!("expose = [\"X_Subject_Token\"]\n{token}")),
        ];
        let daemon = Daemon::start(&format!("[server]\n{server}\n{}", tables.concat()));
        Self { upstream, daemon }
    }

    /// The authority that a caller at a door uses.
    fn authority(&self, door: Door) -> String {
        let port = self.daemon.address().port();
        match door {
            Path | Prefix => format!("127.0.0.1:{port}"),
            Host => format!("Cert.localhost:{port}"),
            Name => "cert.example.test".to_owned(),
            Own => format!("localhost:{}", self.daemon.own_address("cert").port()),
            OwnUnix | SharedUnix => "docker".to_owned(),
            Nameless => String::new(),
        }
    }

    /// A value with its placeholders filled in, but for UP.
    fn fill(&self, door: Door, value: &str) -> String {
        let other = self.daemon.own_address("cluster").port().to_string();
        value
            .replace("SELF", &self.authority(door))
            .replace("PORT", &self.daemon.address().port().to_string())
            .replace("OTHER", &other)
    }

    fn ask(&self, door: Door, method: &str, headers: &str) -> Reply {
        let authority = self.authority(door);
        let target = match door {
            Path | SharedUnix => "/cert/a/b?q",
            Prefix => "/cert?q",
            Name => "http://cert.example.test/a/b?q",
            Host | Own | OwnUnix | Nameless => "/a/b?q",
        };
        let named = if door == Nameless {
            format!("{method} {target} HTTP/1.0{headers}")
        } else {
            format!("{method} {target} HTTP/1.1\nHost: {authority}{headers}")
        };
        let unix = |name: &str| connect_unix(&self.daemon.folder().join(name));
        let reply = match door {
            Own => ask(connect(self.daemon.own_address("cert")), &named),
            OwnUnix | Nameless => ask(unix("cert.sock"), &named),
            SharedUnix => ask(unix("shared.sock"), &named),
            _ => ask(self.daemon.connect(), &named),
        };
        reply.passed_on()
    }

    /// What becomes of a header, every value of it.
    fn back(&self, door: Door, name: &str, values: &[&str]) -> Vec<String> {
        let mut headers = String::new();
        for value in values {
            write!(headers, "\nX-Say-{name}: {}", self.fill(door, value)).unwrap();
        }
        let reply = self.ask(door, "GET", &headers);
        assert_eq!((reply.status, reply.body.as_str()), (302, "ok"), "{reply:?}");
        reply.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_location_is_in_the_callers_terms_at_every_door() {
    let stage = Stage::new();
    // By the path door, by the others; `=` is as it came, `-` not at all.
    for (value, by_path, by_others) in [
        ("http://UP/x/../y?a=%2f#b", "http://SELF/cert/x/../y?a=%2f#b", "http://SELF/x/../y?a=%2f#b"),
        ("HTTPS://UP/x", "http://SELF/cert/x", "http://SELF/x"),
        ("//UP/x", "http://SELF/cert/x", "http://SELF/x"),
        ("http://UP", "http://SELF/cert", "http://SELF"),
        ("/x?q#f", "/cert/x?q#f", "="),
        ("/../cluster/x", "/cert/cluster/x", "="),
        ("../../../cluster/x", "/cert/cluster/x", "="),
        ("?q", "=", "="),
        ("#f", "=", "="),
        ("", "=", "="),
        ("https://example.com/login", "=", "="),
        ("http://localhost:3/callback", "=", "="),
        ("http://SELF/cert/x", "=", "="),
        ("http://SELF/cluster/x", "-", "="),
        ("http://cluster.localhost:PORT/x", "-", "-"),
        ("http://localhost:PORT/cluster/x", "-", "-"),
        ("http://[::1]:OTHER/x", "-", "-"),
        ("//corp.test:PORT/cluster/x", "-", "-"),
        ("http://cluster.example.test/x", "-", "-"),
        ("http://127.1:PORT/cluster/x", "-", "-"),
        ("/\\cluster.localhost:PORT/x", "-", "-"),
        ("http:/cluster/x", "-", "-"),
        ("http://me@cluster.localhost:PORT/x", "-", "-"),
    ] {
        for door in ALL {
            if door == Nameless && value.contains("SELF") {
                continue;
            }
            let mut expected = if matches!(door, Path | Prefix | SharedUnix) { by_path } else { by_others };
            if door == Nameless && expected.starts_with("http://SELF") {
                expected = expected.strip_prefix("http://SELF").filter(|path| !path.is_empty()).unwrap_or("/");
            }
            let expected = match expected {
                "=" => Some(stage.fill(door, value)),
                "-" => None,
                changed => Some(stage.fill(door, changed)),
            };
            let back = stage.back(door, "Location", &[value]);
            assert_eq!(back, Vec::from_iter(expected), "{value:?} by {door:?}");
        }
    }
    // What is relative to /cert is not below it, and to a socket every server is at hand.
    assert_eq!(stage.back(Prefix, "Location", &["cluster/x"]), ["/cert/cluster/x"]);
    assert_eq!(stage.back(Path, "Location", &["cluster/x"]), ["cluster/x"]);
    assert_eq!(stage.back(SharedUnix, "Location", &["http://example.com/cluster/x"]), [""; 0]);
    let several = ["/x", "http://cluster.localhost:PORT/", "https://example.com/"];
    assert_eq!(stage.back(Path, "Location", &several), ["/cert/x", "https://example.com/"]);
}

#[test]
fn a_redirect_leads_through_the_proxy_to_its_end() {
    let scene = Scene::new();
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            assert!(head.contains("\r\nauthorization: bce-auth-v1/"), "{head}");
            let up = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
            let location = match head.split(' ').nth(1).unwrap() {
                "/start" => format!("http://{up}/a/second?x=%2f"),
                "/a/second?x=%2f" => "/third/".to_owned(),
                "/third/" => "fourth".to_owned(),
                "/third/fourth" => format!("//{up}?fifth"),
                target => {
                    assert_eq!(target, "/?fifth");
                    conn.ok("the end");
                    continue;
                }
            };
            conn.send(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let daemon = scene.start(&scene.bce_to(&upstream.address.to_string(), "cert", ""));
    let port = daemon.address().port();
    for (host, start) in [("127.0.0.1", "/cert/start"), ("cert.localhost", "/start")] {
        let authority = format!("{host}:{port}");
        let mut path = start.to_owned();
        let mut hops = 0;
        let reply = loop {
            let reply = ask(daemon.connect(), &format!("GET {path} HTTP/1.1\nHost: {authority}")).passed_on();
            let Some(location) = reply.header("location") else { break reply };
            path = match location.strip_prefix(&format!("http://{authority}")) {
                Some(path) => format!("/{}", path.trim_start_matches('/')),
                None if location.starts_with('/') => location.to_owned(),
                None => format!("{}/{location}", path.rsplit_once('/').unwrap().0),
            };
            hops += 1;
        };
        assert_eq!((hops, reply.status, reply.body.as_str()), (4, 200, "the end"), "{path}");
    }
}

#[test]
fn cookies_are_the_callers_own() {
    let stage = Stage::new();
    for (value, by_path, by_host) in [
        ("a=b; Path=/; HttpOnly", "a=b; Path=/cert/; HttpOnly", "="),
        ("a=b;path=/x;Secure", "a=b;path=/cert/x;Secure", "="),
        ("a=b; Path=x; Expires=Wed, 21 Oct 2026 07:28:00 GMT", "=", "="),
        ("a=b; Domain=localhost; Path=/x", "a=b; Path=/cert/x", "a=b; Path=/x"),
        ("a=b; Domain=.corp.test", "a=b", "a=b"),
        ("a=b; Domain=example.com", "=", "="),
    ] {
        for door in ALL {
            let expected = if matches!(door, Path | SharedUnix) { by_path } else { by_host };
            let back = stage.back(door, "Set-Cookie", &[value, "c=d; Path=/c"]);
            if door == Prefix {
                continue;
            }
            let second = if matches!(door, Path | SharedUnix) { "c=d; Path=/cert/c" } else { "c=d; Path=/c" };
            assert_eq!(back, [if expected == "=" { value } else { expected }, second], "{value} by {door:?}");
        }
    }
    // What gets its path from /cert would be every route's.
    assert_eq!(stage.back(Prefix, "Set-Cookie", &["a=b"]), ["a=b; Path=/cert/"]);
    // The upstream here is an address, which covers itself alone.
    let domain = format!("a=b; Domain={}", stage.upstream.address.ip());
    assert_eq!(stage.back(Host, "Set-Cookie", &[&domain]), ["a=b"]);
    assert_eq!(stage.back(Path, "Set-Cookie", &[&domain]), [domain]);
}

#[test]
fn a_fresh_token_is_shown_only_where_the_route_exposes_it() {
    let stage = Stage::new();
    let say = "\nX-Say-X-Subject-Token: MIIT\nX-Say-X_Subject.Token: MIIT\nX-Say-X-Subject: 1";
    for (route, count) in [("cert", 0), ("iam", 2), ("cluster", 2)] {
        let head = format!("POST /v3/auth/tokens HTTP/1.1\nHost: {route}.localhost{say}");
        let reply = ask(stage.daemon.connect(), &head).passed_on();
        let shown = reply.headers.iter().filter(|(_, value)| *value == "MIIT").count();
        assert_eq!((shown, reply.header("x-subject")), (count, Some("1")), "{route}: {reply:?}");
        // Behind the body as well.
        let octets =
            head.replace('\n', "\r\n") + "\r\nTE: trailers\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        let reply = exchange(stage.daemon.connect(), octets);
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.matches(": MIIT\r\n").count(), count, "{route}: {reply}");
        assert!(body.starts_with("2\r\nok\r\n0\r\n") && body.contains("x-subject: 1\r\n"), "{route}: {reply}");
    }
    assert!(!stage.daemon.log().contains("MIIT"));
}

#[test]
fn a_connection_takes_no_length_away_and_tls_is_not_spoken_of() {
    let stage = Stage::new();
    let say = "\nX-Say-Connection: content-length, x-hop\nX-Say-X-Hop: 1\nX-Say-Keep-Alive: timeout=5\n\
               X-Say-Proxy-Authenticate: Basic\nX-Say-Alt-Svc: h3=\":443\"\nX-Say-Strict-Transport-Security: max-age=1\n\
               X-Say-Etag: kept";
    for method in ["GET", "HEAD"] {
        let reply = stage.ask(Host, method, say);
        let body = if method == "HEAD" { "" } else { "ok" };
        assert_eq!((reply.header("content-length"), reply.body.as_str()), (Some("2"), body), "{reply:?}");
        let mut names: Vec<_> = reply.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "content-length", "etag", "x-countersign-request-id"], "{reply:?}");
    }
}

#[test]
fn nothing_that_is_decided_at_the_head_comes_behind_the_body() {
    let stage = Stage::new();
    let names = ["Location", "Set-Cookie", "Access-Control-Allow-Origin", "X-Countersign-Error", "Alt-Svc", "X-Sum"];
    for origin in ["", "Origin: https://app.example\r\n"] {
        let mut octets =
            format!("POST /cert/a HTTP/1.1\r\nHost: {}\r\n{origin}TE: trailers\r\n", stage.authority(Path));
        for name in names {
            write!(octets, "X-Say-{name}: /x\r\n").unwrap();
        }
        let reply = exchange(stage.daemon.connect(), octets + "Connection: close\r\nContent-Length: 2\r\n\r\nhi");
        let (_, body) = reply.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "2\r\nok\r\n0\r\nx-sum: /x\r\n\r\n", "{reply}");
    }
}
