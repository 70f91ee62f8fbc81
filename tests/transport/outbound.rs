//! Outbound proxies: what they are asked, what they answer, and what then reaches the upstream.

use std::fmt::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign::clock::Clock;
use countersign::credential::AccessKey;
use countersign::demo::certificates::Authority;
use countersign::demo::verify::{Bce, Received, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rustls::ServerConfig;

use super::script::{Conn, Http, Reply, Upstream, header};
use super::{caller, configuration, server_config};
use crate::daemon::{Daemon, write_configuration};
use crate::ports::reserve;

/// `user:pass word`, in a URL and in a header.
const USER_INFO: &str = "user:pass%20word";
const BASIC: &str = "Basic dXNlcjpwYXNzIHdvcmQ=";

/// What the tests say about proxies comes from their configuration alone.
const VARIABLES: [&str; 8] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/// The key that names a proxy.
fn through(proxy: &Upstream) -> String {
    format!("proxy = \"http://{}\"", proxy.address)
}

/// The same with a user and a password.
fn known_to(proxy: &Upstream) -> String {
    format!("proxy = \"http://{USER_INFO}@{}\"", proxy.address)
}

/// A CA in `ca.pem` of a folder, and a server for these names.
fn certified(names: &[&str]) -> (tempfile::TempDir, Arc<ServerConfig>) {
    let authority = Authority::new("a test CA").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    (folder, Arc::new(server_config(&authority.server(names).unwrap())))
}

/// A proxy that opens every tunnel and is at its other end itself, over TLS.
fn tunnels(config: &Arc<ServerConfig>, script: impl Fn(Conn) + Send + Sync + 'static) -> Upstream {
    let config = Arc::clone(config);
    Upstream::start(move |mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 200 Connection established\r\nX-Proxy: yes\r\n\r\n");
        conn.start_tls(&config);
        script(conn);
    })
}

/// A daemon with routes, each a name, an upstream and its other keys.
fn routes(
    folder: tempfile::TempDir,
    server: &str,
    routes: &[(&str, &str, &str)],
    adjust: impl FnOnce(&mut Command),
) -> Daemon {
    Daemon::start_in(folder, &tables(server, routes), |command| {
        remove_variables(command);
        adjust(command);
    })
}

fn remove_variables(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}

fn tables(server: &str, routes: &[(&str, &str, &str)]) -> String {
    let mut tables = format!("[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n{server}\n");
    for (name, upstream, keys) in routes {
        let route = format!("[routes.{name}]\nupstream = \"{upstream}\"\nplaintext = true\n{keys}\n");
        writeln!(tables, "{route}[routes.{name}.header]\nheaders = {{ X-Auth-Token = \"the token\" }}").unwrap();
    }
    tables
}

fn ask(daemon: &Daemon, route: &str) -> Reply {
    let mut http: Http<_> = caller(daemon);
    http.send(format!("GET /{route}/ HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    http.reply()
}

/// The lines of what was received, and those that credentials stand in apart.
fn without(received: &str, name: &str) -> (String, Vec<String>) {
    let (found, rest): (Vec<_>, Vec<_>) =
        received.split_inclusive("\r\n").partition(|line| line.to_ascii_lowercase().starts_with(name));
    (rest.concat(), found.into_iter().map(str::to_owned).collect())
}

#[test]
fn a_tunnel_is_asked_for_once_and_carries_many_requests() {
    for (key, authorization) in [("", String::new()), (USER_INFO, format!("Proxy-Authorization: {BASIC}\r\n"))] {
        let (folder, config) = certified(&["up.test"]);
        let proxy = tunnels(&config, |conn| conn.serve("through"));
        let server = if key.is_empty() { through(&proxy) } else { known_to(&proxy) };
        // This name leads nowhere here: resolving it is the proxy's part.
        let daemon = routes(folder, &server, &[("up", "https://up.test:8443", "tls.ca = \"ca.pem\"")], |_| {});
        let mut caller = caller(&daemon);
        for _ in 0..3 {
            assert_eq!(caller.get("/a%2Fb?x&y=?").text(), "through");
        }
        assert_eq!(proxy.connections(), 1);
        let received = proxy.received(0);
        let (asked, requests) = received.split_at(received.find("\r\n\r\n").unwrap() + 4);
        assert_eq!(asked, format!("CONNECT up.test:8443 HTTP/1.1\r\nHost: up.test:8443\r\n{authorization}\r\n"));
        assert_eq!(requests.matches("GET /a%2Fb?x&y=? HTTP/1.1\r\n").count(), 3, "{requests}");
        assert_eq!(header(requests, "host"), Some("up.test:8443"));
        assert!(!requests.to_ascii_lowercase().contains("proxy"), "{requests}");
    }
}

#[test]
fn an_answer_in_pieces_after_interim_ones_opens_a_tunnel() {
    let (folder, config) = certified(&["up.test"]);
    let proxy = Upstream::start(move |mut conn| {
        conn.head().unwrap();
        for octet in
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 \r\nX: y\r\n\r\nHTTP/1.0 200\r\nContent-Length: 5\r\n\r\n"
                .chars()
        {
            conn.send(octet.to_string());
        }
        conn.start_tls(&config);
        conn.serve("through");
    });
    let daemon = routes(folder, &through(&proxy), &[("up", "https://up.test", "tls.ca = \"ca.pem\"")], |_| {});
    assert_eq!(ask(&daemon, "up").text(), "through");
    assert!(proxy.received(0).starts_with("CONNECT up.test:443 HTTP/1.1\r\n"));
}

#[test]
fn a_plain_request_is_handed_to_the_proxy_with_its_target_absolute() {
    let requests = [
        "GET /a//b/../%7e?q=%20&&x= HTTP/1.1\r\nHost: up.localhost\r\nAccept: */*\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
        "GET /? HTTP/1.1\r\nHost: up.localhost\r\n\r\n",
        "POST /form HTTP/1.1\r\nHost: up.localhost\r\nContent-Length: 4\r\n\r\nbody",
        "PUT / HTTP/1.1\r\nHost: up.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nHost: up.localhost\r\n\r\n",
    ];
    let upstream = Upstream::start(|conn| conn.serve("straight"));
    let proxy = Upstream::start(|conn| conn.serve("by proxy"));
    let url = upstream.url();
    let route = [("up", url.as_str(), "")];
    let exchange = |server: &str, expected: &str| {
        let daemon = routes(tempfile::tempdir().unwrap(), server, &route, |_| {});
        let mut caller = caller(&daemon);
        for request in requests {
            caller.send(request);
            assert_eq!(caller.reply().text(), expected, "{request}");
        }
    };
    exchange("", "straight");
    // A proxy that is written out is for loopback too.
    exchange(&known_to(&proxy), "by proxy");
    exchange(&through(&proxy), "by proxy");
    assert_eq!((upstream.connections(), proxy.connections()), (1, 2));
    let mut expected = upstream.received(0);
    for method in ["GET", "POST", "PUT", "OPTIONS"] {
        expected = expected.replace(&format!("{method} /"), &format!("{method} {url}/"));
    }
    assert!(!expected.contains("Basic"), "{expected}");
    let (known, credentials) = without(&proxy.received(0), "proxy-authorization");
    assert_eq!(known, expected);
    assert_eq!(credentials, vec![format!("proxy-authorization: {BASIC}\r\n"); requests.len()]);
    assert_eq!(proxy.received(1), expected);
}

/// Verifies a request that came to a proxy in absolute form, as the upstream behind it would.
fn verify(head: &str, scheme: &dyn Scheme) -> Result<String, String> {
    let (line, rest) = head.split_once("\r\n").unwrap();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let target = target.strip_prefix("http://bce.test:8080").ok_or("the target is not absolute")?;
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut headers = HeaderMap::new();
    for (name, value) in rest.lines().filter_map(|line| line.split_once(": ")) {
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let method = &Method::try_from(method).unwrap();
    let time = Clock::system().now();
    let received = Received { method, path, query, headers: &headers, body: b"", client: None, time };
    scheme.verify(&received).map_err(|refusal| refusal.message)
}

#[test]
fn a_signature_is_good_behind_a_proxy() {
    let key = AccessKey { access_key: "the-key".to_owned(), secret_key: "the-secret".into(), security_token: None };
    let scheme = Bce { keys: vec![key].into() };
    let proxy = Upstream::start(move |mut conn| {
        while let Some(head) = conn.head() {
            conn.ok(verify(&head, &scheme).unwrap_or_else(|message| format!("refused: {message}")));
        }
    });
    let daemon = Daemon::start(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{}\n[routes.up]\nupstream = \"http://bce.test:8080\"\n[routes.up.bce]\n\
         credentials = {{ access_key = \"the-key\", secret_key = \"the-secret\" }}",
        known_to(&proxy)
    ));
    let mut caller = caller(&daemon);
    for target in ["/v1/certificate", "/v1/%E4%BD%A0?name=%2B&b&a=1", "/?"] {
        let verdict = caller.get(target).text();
        assert!(verdict.contains("over host, x-bce-date"), "{target}: {verdict}");
    }
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn what_a_proxy_answers_instead_of_a_tunnel_is_told_as_its_own_word() {
    const BODY: &str = "Content-Length: 12\r\n\r\nthe body of it";
    let large = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000));
    let cases: [(&str, String, &str); 14] = [
        (
            "wants",
            format!("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"corp\"\r\n{BODY}"),
            "wants a user and a password (407)",
        ),
        (
            "known",
            format!("HTTP/1.1 407 No {BASIC}\r\nProxy-Authenticate: Basic\r\n{BODY}"),
            "not accept the user and the password (407)",
        ),
        ("other", format!("HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n{BODY}"), "which is Basic (407)"),
        ("forbidden", format!("HTTP/1.1 403 Forbidden\r\n{BODY}"), "answered 403 Forbidden when asked for a tunnel to"),
        (
            "unresolved",
            format!("HTTP/1.1 500 Internal Server Error\r\n{BODY}"),
            "500 Internal Server Error when asked for a tunnel to unresolved.test:443: it cannot reach",
        ),
        ("bad-gateway", format!("HTTP/1.1 502 Bad Gateway\r\n{BODY}"), "502 Bad Gateway when"),
        (
            "unavailable",
            format!("HTTP/1.1 503\r\n{BODY}"),
            "503 when asked for a tunnel to unavailable.test:443: it cannot reach",
        ),
        ("timeout", format!("HTTP/1.1 504 \x1b[1mGateway\u{7} Timeout\r\n{BODY}"), "504 [1mGateway Timeout when"),
        ("not-found", format!("HTTP/1.1 404 Not Found\r\n{BODY}"), "404 Not Found when"),
        ("garbage", "220 smtp.example.com ESMTP\r\n".to_owned(), "does not answer in HTTP/1"),
        ("large", large, "more than 16384 octets"),
        ("half", "HTTP/1.1 200 OK\r\nX:".to_owned(), "closed the connection before a tunnel to half.test:443 was open"),
        ("nothing", String::new(), "closed the connection before a tunnel"),
        ("echo", format!("HTTP/1.1 403 {BASIC}\r\n{BODY}"), "answered 403 when"),
    ];
    let answers = cases.clone();
    let proxy = Upstream::start(move |mut conn| {
        let head = conn.head().unwrap();
        let (_, answer, _) = answers.iter().find(|(name, ..)| head.contains(&format!(" {name}.test:443 "))).unwrap();
        conn.send(answer);
    });
    let upstreams = cases.each_ref().map(|(name, ..)| format!("https://{name}.test"));
    let known = known_to(&proxy);
    let (folder, _) = certified(&[]);
    let mut table = Vec::new();
    for ((name, ..), upstream) in cases.iter().zip(&upstreams) {
        table.push((*name, upstream.as_str(), if matches!(*name, "known" | "echo") { known.as_str() } else { "" }));
    }
    let daemon = routes(folder, &format!("{}\nextra_ca = [\"ca.pem\"]", through(&proxy)), &table, |_| {});
    for (index, (name, _, expected)) in cases.iter().enumerate() {
        let reply = ask(&daemon, name);
        assert!(!reply.text().contains("body of it"));
        let message = reply.expect(502, "upstream_unreachable");
        assert!(
            message.contains(expected) && message.contains(&format!("outbound proxy http://{}", proxy.address)),
            "{message}"
        );
        assert_eq!(proxy.connections(), index + 1, "{name}");
    }
    let message = ask(&daemon, "wants").expect(502, "upstream_unreachable");
    assert!(
        message.contains(&format!("in `server.proxy`, as \"http://user:password@{}\"", proxy.address)),
        "{message}"
    );
    let message = ask(&daemon, "known").expect(502, "upstream_unreachable");
    assert!(message.ends_with("correct them in `routes.known.proxy`"), "{message}");
    let log = daemon.log();
    assert!(!log.contains("pass word") && !log.contains(USER_INFO) && !log.contains("dXNlcj"), "{log}");
}

#[test]
fn a_proxy_that_does_not_answer_in_time_is_a_timeout() {
    let (folder, _) = certified(&[]);
    let proxy = Upstream::start(move |mut conn| {
        let head = conn.head().unwrap();
        if head.contains("drips") {
            let drip = "HTTP/1.1 100 Continue\r\n\r\n".bytes().cycle();
            for octet in drip {
                if !conn.send([octet]) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        } else if head.contains("open") {
            conn.send("HTTP/1.1 200 OK\r\n\r\n");
        }
        conn.await_end();
    });
    let keys = "timeouts = { connect = \"1s\", response = \"1s\" }\ntls.ca = \"ca.pem\"";
    let plain = "timeouts.response = \"1s\"";
    let table = [
        ("silent", "https://silent.test", keys),
        ("drips", "https://drips.test", keys),
        ("open", "https://open.test", keys),
        ("forwarded", "http://up.test", plain),
    ];
    let daemon = routes(folder, &through(&proxy), &table, |_| {});
    for (route, expected) in [
        ("silent", "its answer to CONNECT took longer than 1 s (`timeouts.connect`)"),
        ("drips", "its answer to CONNECT took longer than 1 s (`timeouts.connect`)"),
        ("open", "the TLS handshake took longer than 1 s (`timeouts.connect`)"),
        ("forwarded", "did not answer within 1 s"),
    ] {
        let began = Instant::now();
        let message = ask(&daemon, route).expect(504, "upstream_timeout");
        assert!(message.contains(expected) && message.contains("outbound proxy"), "{route}: {message}");
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{route}: {took:?}");
    }
}

#[test]
fn a_denial_is_the_proxys_own_where_it_forwards_and_the_upstreams_elsewhere() {
    const DENIAL: &str = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 4\r\n\r\npage";
    let deny = |mut conn: Conn| {
        while conn.request().is_some() {
            conn.send(DENIAL);
        }
    };
    let (folder, config) = certified(&["tunnel.test"]);
    let (forwards, tunnels, upstream) = (Upstream::start(deny), tunnels(&config, deny), Upstream::start(deny));
    let daemon = routes(
        folder,
        "",
        &[
            ("bare", "http://up.test", &through(&forwards)),
            ("known", "http://up.test", &known_to(&forwards)),
            ("tunnel", "https://tunnel.test", &format!("{}\ntls.ca = \"ca.pem\"", through(&tunnels))),
            ("straight", &upstream.url(), ""),
        ],
        |_| {},
    );
    for (route, expected) in
        [("bare", "wants a user and a password"), ("known", "correct them in `routes.known.proxy`")]
    {
        let reply = ask(&daemon, route);
        assert!(!reply.text().contains("page"));
        let message = reply.expect(502, "upstream_unreachable");
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(forwards.connections(), 2);
    for route in ["tunnel", "straight"] {
        let reply = ask(&daemon, route);
        assert_eq!((reply.status, reply.code(), reply.text().as_str()), (407, None, "page"), "{route}");
    }
}

#[test]
fn a_proxy_that_cannot_be_reached_is_told_from_an_upstream_that_cannot() {
    let ((upstream, _upstream), (proxy, _proxy)) = (reserve(), reserve());
    let upstream = format!("http://{upstream}");
    let by_proxy = format!("proxy = \"http://{USER_INFO}@{proxy}\"");
    let daemon = routes(
        tempfile::tempdir().unwrap(),
        "",
        &[
            ("straight", &upstream, ""),
            ("forwarded", &upstream, &by_proxy),
            ("tunnelled", "https://up.test", &format!("{by_proxy}\ntls.verify = \"none\"")),
        ],
        |_| {},
    );
    let message = ask(&daemon, "straight").expect(502, "upstream_unreachable");
    assert!(message.starts_with(&format!("{upstream} cannot be reached at")), "{message}");
    for route in ["forwarded", "tunnelled"] {
        let message = ask(&daemon, route).expect(502, "upstream_unreachable");
        assert!(
            message.starts_with(&format!("the outbound proxy http://{proxy} cannot be reached at {proxy} (")),
            "{message}"
        );
    }
}

#[test]
fn we_are_not_our_own_proxy() {
    let (own, _socket) = reserve();
    let proxy = format!("server.proxy = \"http://localhost:{}\"", own.port());
    for upstream in ["http://up.test", "https://up.test"] {
        let verify = if upstream.starts_with("https") { "tls.verify = \"none\"" } else { "plaintext = true" };
        let configuration = configuration(upstream, &proxy, verify).replace("127.0.0.1:0", &own.to_string());
        let message = caller(&Daemon::start(&configuration)).get("/").expect(502, "upstream_unreachable");
        let expected = format!("leads to {own}, one of countersign's own listeners: correct `server.proxy`");
        assert!(
            message.starts_with("the outbound proxy http://localhost") && message.ends_with(&expected),
            "{message}"
        );
    }
}

#[test]
fn what_a_route_connects_to_is_what_its_tunnel_leads_to() {
    let (folder, config) = certified(&["up.test"]);
    let secure = tunnels(&config, |conn| conn.serve("secure"));
    let plain = Upstream::start(|mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 200 OK\r\n\r\n");
        conn.serve("plain");
    });
    let connect = "connect = \"10.0.0.7:8443\"";
    let daemon = routes(
        folder,
        "",
        &[
            ("secure", "https://up.test", &format!("{connect}\n{}\ntls.ca = \"ca.pem\"", through(&secure))),
            ("plain", "http://up.test", &format!("{connect}\n{}", known_to(&plain))),
        ],
        |_| {},
    );
    for (route, proxy) in [("secure", &secure), ("plain", &plain)] {
        assert_eq!(ask(&daemon, route).text(), route);
        let received = proxy.received(0);
        let (asked, request) = received.split_at(received.find("\r\n\r\n").unwrap() + 4);
        assert!(asked.starts_with("CONNECT 10.0.0.7:8443 HTTP/1.1\r\nHost: 10.0.0.7:8443\r\n"), "{asked}");
        assert!(request.starts_with("GET / HTTP/1.1\r\n"), "{request}");
        assert_eq!(header(request, "host"), Some("up.test"));
        assert!(!request.to_ascii_lowercase().contains("proxy"), "{request}");
    }
}

#[test]
fn a_route_has_the_last_word_on_its_proxy() {
    let [servers, own] = ["the server's", "its own"].map(|name| Upstream::start(move |conn| conn.serve(name)));
    let upstream = Upstream::start(|conn| conn.serve("none"));
    let url = upstream.url();
    let table = [("general", url.as_str(), ""), ("own", &url, &through(&own)), ("none", &url, "proxy = \"none\"")];
    let daemon = routes(tempfile::tempdir().unwrap(), &through(&servers), &table, |_| {});
    for (route, expected) in [("general", "the server's"), ("own", "its own"), ("none", "none")] {
        assert_eq!(ask(&daemon, route).text(), expected, "{route}");
    }
}

#[test]
fn the_environment_names_the_proxy_if_it_is_asked() {
    let (folder, config) = certified(&["up.test"]);
    let secure = tunnels(&config, |conn| conn.serve("https_proxy"));
    let plain = Upstream::start(|conn| conn.serve("http_proxy"));
    let upstream = Upstream::start(|conn| conn.serve("straight"));
    let url = upstream.url();
    let named = format!("http://localhost.test:{}", upstream.address.port());
    let straight = format!("connect = \"{}\"", upstream.address);
    let table = [
        ("secure", "https://up.test", "tls.ca = \"ca.pem\""),
        ("plain", "http://up.test", ""),
        ("loopback", &url, ""),
        ("connect", named.as_str(), &straight),
        ("own", "http://up.test", &through(&secure)),
    ];
    let adjust = |command: &mut Command| {
        command.env("HTTPS_PROXY", format!("http://{USER_INFO}@{}", secure.address));
        command.env("http_proxy", plain.address.to_string()).env("NO_PROXY", "a.test,.b.test");
    };
    let daemon = routes(folder, "proxy = \"env\"", &table, adjust);
    for (route, expected) in
        [("secure", "https_proxy"), ("plain", "http_proxy"), ("loopback", "straight"), ("connect", "straight")]
    {
        assert_eq!(ask(&daemon, route).text(), expected, "{route}");
    }
    assert_eq!(header(&secure.received(0), "proxy-authorization"), Some(BASIC));
    // Excepted, so that the name itself is looked for.
    let excepted = routes(tempfile::tempdir().unwrap(), "proxy = \"env\"", &table[1..3], |command| {
        command.env("http_proxy", plain.address.to_string()).env("no_proxy", "*");
    });
    assert_eq!(ask(&excepted, "loopback").text(), "straight");
    assert_eq!(plain.connections(), 1);
}

/// Runs a command on a configuration to its end: its exit code, and what it printed.
fn run_to_its_end(verb: &str, configuration: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), configuration);
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.args(verb.split(' ')).arg("-c").arg(&file).stdin(Stdio::null()).env("NO_COLOR", "1");
    if verb.starts_with("sign") {
        command.arg("http://plain.localhost:8080/");
    }
    remove_variables(&mut command);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    (output.status.code(), [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat())
}

#[test]
fn a_variable_that_cannot_be_used_is_named_and_not_shown() {
    let configuration = tables("proxy = \"env\"", &[("up", "http://up.test", "")]);
    for value in ["socks5://user:hunter2@corp:1080", "https://hunter2", "http://user:hunter2@"] {
        for (verb, code) in [("run", 1), ("check", 78)] {
            let (ended, said) = run_to_its_end(verb, &configuration, &[("all_proxy", value)]);
            assert_eq!(ended, Some(code), "{said}");
            assert!(said.contains(":4:9: `server.proxy`: the environment variable all_proxy: expected"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}

#[test]
fn proxies_are_shown_without_their_passwords() {
    let configuration = tables(
        &format!("proxy = \"http://{USER_INFO}@corp.test:3128\""),
        &[("plain", "http://up.test", ""), ("near", "http://127.0.0.1:9", "proxy = \"env\"")],
    );
    let (code, said) = run_to_its_end("check", &configuration, &[("all_proxy", "http://user:hunter2@other.test")]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("plain  header -> http://up.test through the outbound proxy http://corp.test:3128: ok\n"),
        "{said}"
    );
    assert!(said.contains("near   header -> http://127.0.0.1:9: ok\n"), "{said}");
    let (code, curl) = run_to_its_end("sign --curl", &configuration, &[]);
    assert_eq!(code, Some(0), "{curl}");
    assert!(curl.contains(" --proxy http://corp.test:3128 "), "{curl}");
    assert!(!said.contains("pass") && !curl.contains("pass%20"), "{said}{curl}");
}

#[test]
fn a_proxy_that_inspects_tls_wants_its_ca_among_the_roots() {
    // Whatever it is asked for, it shows a certificate of its own making.
    let (folder, config) = certified(&["up.test", "own.test"]);
    let other = Authority::new("another CA").unwrap();
    std::fs::write(folder.path().join("other.pem"), other.pem()).unwrap();
    let proxy = tunnels(&config, |conn| conn.serve("inspected"));
    let (key, hint) = (through(&proxy), "if the proxy inspects TLS, name its CA in `server.extra_ca`");
    let table = [("up", "https://up.test", ""), ("own", "https://own.test", "tls.ca = \"other.pem\"")];
    let daemon = routes(folder, &format!("{key}\nextra_ca = [\"ca.pem\"]"), &table, |_| {});
    assert_eq!(ask(&daemon, "up").text(), "inspected");
    // A route with a CA of its own trusts nobody else's.
    let message = ask(&daemon, "own").expect(502, "upstream_tls");
    assert!(message.contains("through the outbound proxy") && message.contains(hint), "{message}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.pem"), other.pem()).unwrap();
    // Where no proxy is between there is nothing to hint at.
    let upstream = Upstream::start_tls(ServerConfig::clone(&config), |conn| conn.serve("never"));
    let url = upstream.url();
    let table = [("up", "https://up.test", ""), ("straight", &url, "proxy = \"none\"")];
    let daemon = routes(folder, &format!("{key}\nextra_ca = [\"other.pem\"]"), &table, |_| {});
    for (route, is_hinted) in [("up", true), ("straight", false)] {
        let message = ask(&daemon, route).expect(502, "upstream_tls");
        assert!(message.contains("tls.ca") && message.contains(hint) == is_hinted, "{route}: {message}");
    }
}
