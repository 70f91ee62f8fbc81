//! Who may ask for what: pages of other origins, a route's `allow`, its `callers`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::daemon::Daemon;
use crate::scene::{Scene, ask, ask_with_body, connect_unix};
use crate::scripted::Scripted;

fn listening(more: &str) -> String {
    format!("listen = [\"127.0.0.1:0\"]\n{more}")
}

/// True if it passes; a refusal must be one with this code, of this route.
fn passes(daemon: &Daemon, head: &str, body: &str, code: &str, route: &str) -> bool {
    let reply = ask_with_body(daemon.connect(), head, body);
    if reply.header("x-countersign-error").is_none() {
        return true;
    }
    let refusal = reply.refused();
    assert_eq!((refusal.status, refusal.code.as_str()), (403, code), "{head}: {refusal:?}");
    assert_eq!(refusal.route.as_deref(), Some(route), "{head}: {refusal:?}");
    false
}

#[test]
fn pages_of_other_origins_are_refused_at_every_door() {
    let scene = Scene::new();
    let server = listening("origins = [\"https://app.example\", \"http://localhost:3000\"]");
    let tables = [scene.bce("cert", "hosts = [\"one.test\"]"), scene.header("echo", "hosts = [\"two.test\"]")];
    let daemon = scene.start_listening(&server, &tables.concat());
    let port = daemon.address().port();
    let host = format!("cert.localhost:{port}");
    let local = format!("localhost:{port}");
    for (is_by_host, is_by_path, headers) in [
        (true, true, ""),
        (true, false, "Origin: http://HOST"),
        (false, true, "Origin: http://LOCAL"),
        (true, false, "Origin: http://HOST\nSec-Fetch-Site: same-origin"),
        (false, false, "Origin: http://LOCAL\nSec-Fetch-Site: same-origin"),
        (false, false, "Origin: null"),
        (false, false, "Origin:"),
        (false, false, "Origin: http://evil.example"),
        (false, false, "Origin: https://HOST"),
        (false, false, "Origin: http://cert.localhost"),
        (false, false, "Origin: http://echo.localhost"),
        (false, false, "Origin: http://HOST.evil.example"),
        (false, false, "Origin: http://HOST\nOrigin: http://evil.example"),
        (false, false, "Origin: https://app.example\nOrigin: http://evil.example"),
        (false, false, "Origin: https://app.example.evil.example"),
        (false, false, "Origin: http://app.example"),
        (true, true, "Origin: https://app.example"),
        (true, true, "Origin: https://app.example\nSec-Fetch-Site: cross-site"),
        (true, true, "Origin: http://localhost:3000\nSec-Fetch-Site: same-site"),
        (true, true, "Sec-Fetch-Site: none"),
        (true, false, "Sec-Fetch-Site: same-origin"),
        (false, false, "Sec-Fetch-Site: same-site"),
        (false, false, "Sec-Fetch-Site: cross-site"),
        (false, false, "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate"),
        (false, false, "Sec-Fetch-Site: unheard-of"),
        (false, false, "Sec-Fetch-Site:"),
        (false, false, "Sec-Fetch-Site: none\nSec-Fetch-Site: cross-site"),
        (false, false, "Access-Control-Request-Private-Network: true"),
        (true, true, "Access-Control-Request-Private-Network: true\nOrigin: https://app.example"),
        (false, false, "Access-Control-Request-Private-Network: true\nOrigin: http://evil.example"),
    ] {
        let headers = headers.replace("HOST", &host).replace("LOCAL", &local);
        for method in ["GET", "POST", "OPTIONS"] {
            for (is_welcome, line) in [
                (is_by_host, format!("{method} /v1/certificate HTTP/1.1\nHost: {host}")),
                (is_by_path, format!("{method} /cert/v1/certificate HTTP/1.1\nHost: {local}")),
            ] {
                let before = scene.count();
                let head = format!("{line}\n{headers}").trim_end().to_owned();
                assert_eq!(passes(&daemon, &head, "", "cross_site", "cert"), is_welcome, "{head}");
                assert_eq!(scene.count() - before, usize::from(is_welcome), "{head}");
            }
        }
    }
    // A page that was made to resolve one.test here is of that origin, and only that.
    let own = "GET /v1/certificate HTTP/1.1\nHost: one.test\nOrigin: http://one.test";
    assert!(passes(&daemon, own, "", "cross_site", "cert"));
    assert!(!passes(&daemon, &own.replace("http://one", "http://two"), "", "cross_site", "cert"));
}

#[test]
fn replies_are_opened_only_to_pages_of_named_origins() {
    let scene = Scene::new();
    let upstream = Scripted::start(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n\
         Access-Control-Allow-Private-Network: true\r\nContent-Length: 2\r\n\r\nok",
    );
    let server = listening("origins = [\"https://app.example\"]");
    let daemon = scene.start_listening(&server, &scene.bce_to(&upstream.address.to_string(), "cert", ""));
    for (headers, count) in [
        ("", 0),
        ("\nOrigin: http://cert.localhost", 0),
        ("\nSec-Fetch-Site: none", 0),
        ("\nSec-Fetch-Site: same-origin", 0),
        ("\nOrigin: https://app.example", 3),
        ("\nOrigin: HTTPS://App.Example\nSec-Fetch-Site: cross-site", 3),
    ] {
        let reply = ask(daemon.connect(), &format!("GET /a HTTP/1.1\nHost: cert.localhost{headers}")).passed_on();
        assert_eq!((reply.status, reply.body.as_str()), (200, "ok"));
        let found = reply.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).count();
        assert_eq!(found, count, "{headers:?}: {reply:?}");
    }
}

#[test]
fn only_what_allow_names_is_forwarded() {
    let scene = Scene::new();
    let allow =
        "allow = [\"GET /v1/certificate/**\", \"PUT /v1/certificate/*?certName\", \"POST /form?Action=Get&Id\"]";
    let daemon = scene.start(&scene.all(allow));
    for (is_allowed, line) in [
        (true, "GET /v1/certificate"),
        (true, "HEAD /v1/certificate/"),
        (true, "GET /v1/certificate/a/rawdata?any=thing"),
        (true, "PUT /v1/certificate/cert-1?certName"),
        (true, "PUT /v1/certificate/cert-1?certName="),
        (true, "PUT /v1/certificate/cert-1?x&cert%4eame=y"),
        (true, "POST /form?Id=1&Action=Get"),
        (true, "POST /form?Id=+&Action=%47et"),
        (false, "get /v1/certificate"),
        (false, "DELETE /v1/certificate/cert-1"),
        (false, "POST /v1/certificate"),
        (false, "OPTIONS /v1/certificate"),
        (false, "PUT /v1/certificate/cert-1"),
        (false, "PUT /v1/certificate/cert-1?certname"),
        (false, "PUT /v1/certificate/cert-1?certName&certName"),
        (false, "PUT /v1/certificate/cert-1?certName&cert%4Eame"),
        (false, "PUT /v1/certificate/cert-1?certData"),
        (false, "PUT /v1/certificate/?certName"),
        (false, "PUT /v1/certificate/a/b?certName"),
        (false, "PUT /v1/certificate/cert-1%3FcertName"),
        (false, "GET /v1/certificates"),
        (false, "GET /v1/Certificate"),
        (false, "GET /v1/%63ertificate"),
        (false, "GET /v1"),
        (false, "GET //v1/certificate"),
        (false, "GET /v1//certificate"),
        (false, "GET /v1/certificate//a"),
        (false, "GET /v1/certificate/../../v2"),
        (false, "GET /v1/certificate/%2e%2E/x"),
        (false, "GET /v1/certificate/.%2e/x"),
        (false, "GET /v1/certificate/."),
        (false, "GET /v1/certificate/a;b"),
        (false, "GET /v1/certificate/a%2fb"),
        (false, "GET /v1/certificate/a%5Cb"),
        (false, "GET /v1/certificate/a\\b"),
        (false, "GET /v1/certificate/%00"),
        (false, "POST /form?Action=Get"),
        (false, "POST /form?Action=Delete&Id=1"),
        (false, "POST /form?Action=Get&Action=Delete&Id=1"),
    ] {
        for route in ["cert", "echo", "cluster"] {
            let (method, target) = line.split_once(' ').unwrap();
            let by_path = format!("{method} /{route}{target} HTTP/1.1\nHost: localhost");
            for head in [format!("{line} HTTP/1.1\nHost: {route}.localhost"), by_path] {
                let before = scene.count();
                assert_eq!(passes(&daemon, &head, "", "not_allowed", route), is_allowed, "{head}");
                assert_eq!(scene.count() - before, usize::from(is_allowed), "{head}");
            }
        }
    }
    for target in ["/v1/certificates", "/form?Action=Get&Id"] {
        let reply = ask(daemon.connect(), &format!("HEAD {target} HTTP/1.1\nHost: cert.localhost"));
        assert_eq!((reply.status, reply.body.as_str()), (403, ""), "{target}");
    }
    // The path door is closed to the lists of others: the name of a route is not part of what is matched.
    assert!(!passes(&daemon, "GET /cert/x/v1/certificate HTTP/1.1\nHost: localhost", "", "not_allowed", "cert"));
}

#[test]
fn a_form_counts_as_query_and_arrives_as_it_was_sent() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all("allow = [\"POST /form?Action=Get&Id\"]"));
    let form = "application/x-www-form-urlencoded";
    for (is_allowed, kind, query, body) in [
        (true, form, "", "Action=Get&Id=7"),
        (true, form, "?Action=Get", "Id=7"),
        (true, form, "?Id", "Action=%47et&more=x+y"),
        (true, "Application/X-WWW-Form-Urlencoded; charset=GBK", "", "Action=Get&Id=%D6%D0"),
        (false, form, "", "Action=Delete&Id=7"),
        (false, form, "", "Action=Get"),
        (false, form, "?Action=Get&Id=7", "Action=Delete"),
        (false, form, "?Action=Get&Id=7", "Action=Get"),
        (false, form, "", "Action=Get&Action=Delete&Id=7"),
        (false, form, "", ""),
        (false, "application/json", "", "Action=Get&Id=7"),
        (true, "application/json", "?Action=Get&Id=7", "Action=Delete"),
        (false, "application/x-www-form-urlencoded, text/plain", "?Action=Get&Id=7", "Action=Delete"),
        (false, "application/x-www-form-urlencoded charset=GBK", "?Action=Get&Id=7", "Action=Delete"),
        (false, "text/plain\nContent-Type: application/x-www-form-urlencoded", "", "Action=Get&Id=7"),
        (false, "text/plain\nContent-Type: application/json", "?Action=Get&Id=7", "Action=Delete"),
    ] {
        for route in ["cert", "echo", "cluster"] {
            let length = body.len();
            let chunks = if body.is_empty() { String::new() } else { format!("{length:x}\r\n{body}\r\n") };
            let (whole, chunked) = (format!("Content-Length: {length}"), "Transfer-Encoding: chunked".to_owned());
            for (framing, sent) in [(whole, body.to_owned()), (chunked, format!("{chunks}0\r\n\r\n"))] {
                let before = scene.count();
                let head =
                    format!("POST /form{query} HTTP/1.1\nHost: {route}.localhost\nContent-Type: {kind}\n{framing}");
                let context = format!("{head}\n{body}");
                assert_eq!(passes(&daemon, &head, &sent, "not_allowed", route), is_allowed, "{context}");
                assert_eq!(scene.count() - before, usize::from(is_allowed), "{context}");
                if is_allowed {
                    assert_eq!(scene.accepted().body_len, length, "{context}");
                }
            }
        }
    }
    let head = "POST /form HTTP/1.1\nHost: echo.localhost\nContent-Type: application/x-www-form-urlencoded\nContent-Length: 22";
    let reply = ask_with_body(daemon.connect(), head, "Action=Get&Id=%D6+&a=b").passed_on();
    assert_eq!(reply.json()["body"], "Action=Get&Id=%D6+&a=b");
}

#[test]
fn callers_show_their_token_and_it_goes_no_further() {
    let scene = Scene::new();
    let callers = "callers = { token = \"open sesame\" }";
    let keeping = format!("{callers}\nkeep = [\"authorization\", \"proxy-authorization\"]");
    let daemon = scene.start(&[scene.all(callers), scene.mtls("keeping", &keeping)].concat());
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    for route in ["cert", "echo", "cluster", "keeping"] {
        for shown in [
            "Bearer open sesame".to_owned(),
            "bearer  open sesame".to_owned(),
            basic("anybody:open sesame"),
            basic(":open sesame").replace("Basic", "BASIC"),
        ] {
            for headers in [
                format!("Authorization: {shown}"),
                format!("Proxy-Authorization: {shown}"),
                format!("Authorization: {shown}\nProxy-Authorization: {shown}"),
                format!("Connection: authorization, proxy-authorization\nAuthorization: {shown}"),
                format!("Authorization: Basic other\nAuthorization: {shown}"),
            ] {
                let head = format!("GET /projects/ HTTP/1.1\nHost: {route}.localhost\n{headers}");
                assert!(passes(&daemon, &head, "", "caller_denied", route), "{head}");
                for (name, value) in &scene.accepted().headers {
                    let value = value.to_str().unwrap();
                    let token = [shown.as_str(), "sesame"].iter().any(|part| value.contains(part));
                    assert!(!token, "{head}: {name}");
                }
            }
        }
        let before = scene.count();
        for headers in [
            "X-None: 1".to_owned(),
            "Authorization: open sesame".to_owned(),
            "Authorization: Bearer open sesam".to_owned(),
            "Authorization: Bearer open sesamee".to_owned(),
            "Authorization: Bearer".to_owned(),
            "Authorization: Basic open sesame".to_owned(),
            format!("Authorization: {}", basic("open sesame")),
            format!("Authorization: {}", basic("open sesame:")),
            "X-Auth-Token: open sesame".to_owned(),
        ] {
            let head = format!("GET /projects/ HTTP/1.1\nHost: {route}.localhost\n{headers}");
            assert!(!passes(&daemon, &head, "", "caller_denied", route), "{head}");
        }
        assert_eq!(scene.count(), before);
    }
    // A caller's own credential passes where it is kept, its token shown in the other header.
    let head = "GET /projects/ HTTP/1.1\nHost: keeping.localhost\nProxy-Authorization: Bearer open sesame\n\
                Authorization: Bearer own";
    assert!(passes(&daemon, head, "", "caller_denied", "keeping"));
    assert_eq!(scene.accepted().headers["authorization"], "Bearer own");
    assert!(!daemon.log().contains("sesame"), "{}", daemon.log());
}

#[test]
fn callers_come_from_their_networks() {
    let scene = Scene::new();
    let tables = [
        scene.bce("near", "callers = { net = [\"10.0.0.0/8\", \"127.0.0.0/8\"] }\nlisten = [\"unix:near.sock\"]"),
        scene.bce("far", "callers = { net = [\"10.0.0.0/8\", \"::1\"] }"),
        scene.bce("both", "callers = { net = [\"127.0.0.1\"], token = \"open sesame\" }"),
    ];
    let daemon = scene.start(&tables.concat());
    let head = |route: &str| format!("GET /v1/certificate HTTP/1.1\nHost: {route}.localhost");
    assert!(passes(&daemon, &head("near"), "", "caller_denied", "near"));
    assert!(!passes(&daemon, &head("far"), "", "caller_denied", "far"));
    assert!(!passes(&daemon, &head("both"), "", "caller_denied", "both"));
    let with_token = format!("{}\nAuthorization: Bearer open sesame", head("both"));
    assert!(passes(&daemon, &with_token, "", "caller_denied", "both"));
    // Somebody on a Unix socket has no address, and what is unknown is denied.
    let unix = ask(connect_unix(&daemon.folder().join("near.sock")), &head("near")).refused();
    assert_eq!((unix.status, unix.code.as_str()), (403, "caller_denied"));
    assert_eq!(scene.count(), 2);
}

#[test]
fn callers_on_a_unix_socket_are_who_the_kernel_says() {
    let scene = Scene::new();
    let (user, group) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let (stranger, strangers) = (user + 1, group + 1);
    let routes = [
        ("uid", format!("uid = [{stranger}, {user}]"), true),
        ("other-uid", format!("uid = [{stranger}]"), false),
        ("gid", format!("gid = [{group}]"), true),
        ("other-gid", format!("gid = [{strangers}]"), false),
        ("either", format!("uid = [{stranger}], gid = [{group}]"), true),
        ("neither", format!("uid = [{stranger}], gid = [{strangers}]"), false),
        ("uid-and-net", format!("uid = [{user}], net = [\"127.0.0.0/8\"]"), false),
    ];
    let tables = routes.each_ref().map(|(name, callers, _)| {
        scene.bce(name, &format!("callers = {{ {callers} }}\nlisten = [\"127.0.0.1:0\", \"unix:{name}.sock\"]"))
    });
    let daemon = scene.start_listening("listen = [\"127.0.0.1:0\", \"unix:shared.sock\"]", &tables.concat());
    for (name, _, is_welcome) in routes {
        let before = scene.count();
        let head = format!("GET /v1/certificate HTTP/1.1\nHost: {name}.localhost");
        for socket in [format!("{name}.sock"), "shared.sock".to_owned()] {
            let reply = ask(connect_unix(&daemon.folder().join(socket)), &head);
            if is_welcome {
                assert_eq!(reply.passed_on().status, 200, "{name}");
            } else {
                assert_eq!(reply.refused().code, "caller_denied", "{name}");
            }
        }
        assert_eq!(scene.count() - before, if is_welcome { 2 } else { 0 }, "{name}");
    }
}
