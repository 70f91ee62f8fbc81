//! The calls that the first users make: Baidu's certificate service, and a Swarm cluster behind mutual TLS.

use std::path::Path;

use countersign::demo::certificates::{Authority, KeyFormat, KeyKind, Purpose, Validity, Wish};
use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::FixedHeader;
use http::HeaderName;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::scene::{Reply, Scene, ask, ask_with_body};

/// A call to the route `cert`, answered with 200.
fn call(daemon: &Daemon, line: &str, body: &Value) -> Reply {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let framing = if body.is_null() { String::new() } else { format!("\nContent-Length: {}", text.len()) };
    let head = format!("{line} HTTP/1.1\nHost: cert.localhost{framing}");
    let reply = ask_with_body(daemon.connect(), &head, &text).passed_on();
    assert_eq!(reply.status, 200, "{line}: {reply:?}");
    assert!(reply.header("x-bce-request-id").is_some(), "{line}: {reply:?}");
    reply
}

#[test]
fn a_certificate_lives_from_create_to_delete() {
    for signed_headers in ["minimal", "default", "default-unlisted"] {
        let scene = Scene::new();
        let content_type = "headers = { \"Content-Type\" = \"application/json; charset=utf-8\" }";
        let options = format!("signed_headers = \"{signed_headers}\"\n");
        let daemon = scene.start(&(scene.bce("cert", content_type) + &options));
        let check = |line: &str| {
            let seen = scene.accepted();
            assert_eq!(format!("{} {}", seen.method, seen.target), line);
            assert_eq!(seen.headers["content-type"], "application/json; charset=utf-8");
        };
        let certificate = |name: &str, key: &str| json!({ "certName": name, "certServerData": "a certificate", "certPrivateData": key, "certType": 1 });

        let created = call(&daemon, "POST /v1/certificate", &certificate("one", "first")).json();
        check("POST /v1/certificate");
        let id = created["certId"].as_str().unwrap();
        let summary = json!({ "certId": id, "certName": "one", "certType": 1 });
        for line in ["GET /v1/certificate", "GET /v1/certificate?certName=one", "GET /v1/certificate/detail"] {
            assert_eq!(call(&daemon, line, &Value::Null).json(), json!({ "certs": [summary] }));
            check(line);
        }
        let none = call(&daemon, "GET /v1/certificate?certname=one", &Value::Null).json();
        assert_eq!(none, json!({ "certs": [summary] }), "another key, so not a search");

        let one = format!("/v1/certificate/{id}");
        assert_eq!(call(&daemon, &format!("GET {one}"), &Value::Null).json(), summary);
        let line = format!("PUT {one}?certName");
        assert!(call(&daemon, &line, &json!({ "certName": "two" })).body.is_empty());
        check(&line);
        let line = format!("PUT {one}?certData");
        assert!(call(&daemon, &line, &certificate("two", "second")).body.is_empty());
        check(&line);
        let line = format!("GET {one}/rawdata");
        let raw = call(&daemon, &line, &Value::Null).json();
        assert_eq!((&raw["certName"], &raw["certPrivateKey"]), (&json!("two"), &json!("second")));
        check(&line);
        let line = format!("DELETE {one}");
        assert!(call(&daemon, &line, &Value::Null).body.is_empty());
        check(&line);
        assert_eq!(call(&daemon, "GET /v1/certificate", &Value::Null).json(), json!({ "certs": [] }));
    }
}

#[test]
fn what_needs_escaping_is_signed_as_it_is_sent() {
    let scene = Scene::new();
    let plus = scene.bce("literal", "") + "plus = \"literal\"\n";
    let options = ["default", "default-unlisted"]
        .map(|option| scene.bce(option, "") + &format!("signed_headers = \"{option}\"\n"));
    let daemon = scene.start(&[scene.bce("cert", ""), plus, options.concat()].concat());
    for route in ["cert", "literal", "default", "default-unlisted"] {
        let space = if route == "literal" { "%2B" } else { "%20" };
        for (target, sent) in [
            ("/v1/certificate?certName=%E8%AF%81%E4%B9%A6%201", None),
            ("/v1/certificate?certName=a%2Bb%2fc%3d%26", None),
            ("/v1/certificate?certName=a%2bb%7E~%41", None),
            ("/v1/certificate?certName=a!'()*@:,;/$", None),
            ("/v1/certificate?certName=[a]{b}|^`", None),
            ("/v1/certificate?certName=100%", None),
            ("/v1/certificate?certName=%zz", None),
            ("/v1/certificate?certName=a=b==c", None),
            ("/v1/certificate?&&certName=&=&=x&", None),
            ("/v1/certificate?", None),
            ("/v1/certificate?certName=b&certName=a&CertName=c&certName", None),
            ("/v1/certificate?a=1&a-b=2&a.b=3&A=4&a%3D=5", None),
            ("/v1/certificate?x?y=/z", None),
            ("/v1/certificate//%2e%2E/./a%2Fb;c/%25", None),
            ("/v1/certificate/%E8%AF%81/\u{e9}", None),
            ("/v1/certificate?certName=a+b", Some(format!("/v1/certificate?certName=a{space}b"))),
            ("/v1/certificate?a+b=+&+", Some(format!("/v1/certificate?a{space}b={space}&{space}"))),
            ("/v1/a+b?c=%2B", None),
        ] {
            for (method, framing, body) in [
                ("GET", "", ""),
                ("POST", "", ""),
                ("POST", "\nContent-Length: 0", ""),
                ("PUT", "\nContent-Length: 2\nContent-MD5: x y\nX-Bce-Meta: \u{e9} /:", "{}"),
                ("PUT", "\nTransfer-Encoding: chunked\nContent-Type: text/plain", "2\r\n{}\r\n0\r\n\r\n"),
            ] {
                let head = format!("{method} {target} HTTP/1.1\nHost: {route}.localhost{framing}");
                ask_with_body(daemon.connect(), &head, body).passed_on();
                let seen = scene.accepted();
                assert_eq!(seen.target, sent.clone().unwrap_or_else(|| target.to_owned()), "{head}");
            }
        }
    }
}

#[test]
fn temporary_keys_bring_their_token() {
    let scene = Scene::new();
    let key = countersign::credential::AccessKey {
        access_key: "temporary".to_owned(),
        secret_key: "their secret".into(),
        security_token: Some("their token/==".into()),
    };
    let site = Site {
        name: "temporary",
        transport: Transport::Plain,
        scheme: Box::new(countersign::demo::verify::Bce { keys: vec![key].into() }),
        service: Service::Echo,
    };
    let mut scene = scene;
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    let credentials =
        "{ access_key = \"temporary\", secret_key = \"their secret\", security_token = \"their token/==\" }";
    let route =
        format!("[routes.cert]\nupstream = \"http://{address}\"\n[routes.cert.bce]\ncredentials = {credentials}\n");
    let daemon = scene.start(&route);
    let head = "GET /a HTTP/1.1\nHost: cert.localhost\nx-bce-security-token: forged";
    assert_eq!(ask(daemon.connect(), head).passed_on().status, 200);
    assert_eq!(scene.accepted().headers["x-bce-security-token"], "their token/==");
}

#[test]
fn the_upstreams_refusal_is_passed_on_untouched_and_not_repeated() {
    let scene = Scene::new();
    let access_key = &scene.stage.access_key.access_key;
    let route = |name: &str, access_key: &str| {
        format!(
            "[routes.{name}]\nupstream = \"http://{}\"\n[routes.{name}.bce]\n\
             credentials = {{ access_key = \"{access_key}\", secret_key = \"not the secret\" }}\n",
            scene.stage.certificates
        )
    };
    let token = format!(
        "[routes.token]\nupstream = \"https://{}\"\n[routes.token.tls]\nca = \"ca.pem\"\n\
         [routes.token.header]\nheaders = {{ X-Auth-Token = \"not the token\" }}\n",
        scene.stage.echo
    );
    let daemon = scene.start(&[route("wrong", access_key), route("unknown", "nobody"), token].concat());
    for (name, status, code) in [
        ("wrong", 400, "SignatureDoesNotMatch"),
        ("unknown", 403, "InvalidAccessKeyId"),
        ("token", 401, "Unauthorized"),
    ] {
        let before = scene.count();
        let head = format!("GET /v1/certificate HTTP/1.1\nHost: {name}.localhost");
        let reply = ask(daemon.connect(), &head).passed_on();
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(scene.count(), before + 1, "{name}: sent more than once");
        assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
        let body = reply.json();
        if name == "token" {
            assert_eq!(body["error"]["title"], code);
        } else {
            assert_eq!(body["code"], code);
            assert_eq!(body["requestId"].as_str(), reply.header("x-bce-request-id"));
        }
    }
    assert!(!daemon.log().contains("not the "), "{}", daemon.log());
}

fn swarm(name: &str, upstream: &str, tls: &str) -> String {
    format!("[routes.{name}]\nupstream = \"{upstream}\"\n[routes.{name}.tls]\n{tls}\n[routes.{name}.mtls]\n")
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[test]
fn every_form_of_a_private_key_opens_a_cluster() {
    let scene = Scene::new();
    let folder = scene.folder();
    let mut tables = String::from("[server]\nlisten = [\"127.0.0.1:0\"]\n");
    let mut names = Vec::new();
    for (key, kind) in [(KeyKind::EcdsaP256, "ec"), (KeyKind::Rsa2048, "rsa")] {
        let wish = Wish { key, ..Wish::new(Purpose::Client, kind) };
        let identity = scene.stage.authority.issue(&wish).unwrap();
        write(folder.path(), &format!("{kind}.pem"), &identity.certificate_pem());
        for (format, form) in [(KeyFormat::Pkcs8, "pkcs8"), (KeyFormat::Traditional, "traditional")] {
            let name = format!("{kind}-{form}");
            write(folder.path(), &format!("{name}.pem"), &identity.key_pem(format));
            let tls = format!("ca = \"ca.pem\"\ncert = \"{kind}.pem\"\nkey = \"{name}.pem\"\nverify = \"ca-only\"");
            for (scheme, route) in [("https", name.clone()), ("tcp", format!("{name}-tcp"))] {
                tables += &swarm(&route, &format!("{scheme}://{}", scene.stage.cluster), &tls);
                names.push((route, kind));
            }
        }
    }
    let daemon = Daemon::start_in(folder, &tables, |_| {});
    for (route, client) in names {
        let reply = ask(daemon.connect(), &format!("GET /projects/ HTTP/1.1\nHost: {route}.localhost")).passed_on();
        assert_eq!(reply.status, 200, "{route}: {reply:?}");
        assert_eq!(reply.json()[0]["client"], client, "{route}");
        let seen = scene.accepted();
        assert_eq!((seen.site, seen.client.as_deref()), ("cluster", Some(client)), "{route}");
    }
}

#[test]
fn what_is_wrong_with_a_handshake_is_said_with_the_setting_that_helps() {
    let mut scene = Scene::new();
    let stranger = Authority::new("a stranger").unwrap();
    let mut site = |authority: &Authority, names: &[&str], validity| {
        let wish = Wish { names, validity, ..Wish::new(Purpose::Server, "a server") };
        let site = Site {
            name: "site",
            transport: Transport::Tls(authority.issue(&wish).unwrap()),
            scheme: Box::new(FixedHeader {
                name: HeaderName::from_static("x-auth-token"),
                value: scene.stage.token.clone(),
            }),
            service: Service::Echo,
        };
        scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap()
    };
    let authority = Authority::new("another authority").unwrap();
    let elsewhere = site(&authority, &["elsewhere.test"], Validity::Now);
    let nameless = site(&authority, &[], Validity::Now);
    let expired = site(&authority, &["127.0.0.1"], Validity::Expired);
    let too_new = site(&authority, &["127.0.0.1"], Validity::NotYet);
    let unknown = site(&stranger, &["127.0.0.1"], Validity::Now);
    let folder = scene.folder();
    write(folder.path(), "another.pem", &authority.pem());
    let client = stranger.client("a stranger").unwrap();
    write(folder.path(), "stranger.pem", &client.certificate_pem());
    write(folder.path(), "stranger-key.pem", &client.key_pem(KeyFormat::Pkcs8));

    let token = scene.stage.token.expose_secret().to_owned();
    let route = |name: &str, address, tls: &str| {
        format!(
            "[routes.{name}]\nupstream = \"https://{address}\"\n[routes.{name}.tls]\n{tls}\n\
             [routes.{name}.header]\nheaders = {{ X-Auth-Token = \"{token}\" }}\n"
        )
    };
    let another = "ca = \"another.pem\"";
    let cluster = format!("https://{}", scene.stage.cluster);
    let tables = [
        "[server]\nlisten = [\"127.0.0.1:0\"]\n".to_owned(),
        route("wrong-name", elsewhere, another),
        route("right-name", elsewhere, "ca = \"another.pem\"\nserver_name = \"elsewhere.test\""),
        route("no-name", elsewhere, "ca = \"another.pem\"\nverify = \"ca-only\""),
        route("nameless", nameless, another),
        route("nameless-ca-only", nameless, "ca = \"another.pem\"\nverify = \"ca-only\""),
        route("expired", expired, another),
        route("expired-ca-only", expired, "ca = \"another.pem\"\nverify = \"ca-only\""),
        route("too-new", too_new, another),
        route("unknown-ca", unknown, another),
        route("unknown-ca-only", unknown, "ca = \"another.pem\"\nverify = \"ca-only\""),
        route("unverified", unknown, "verify = \"none\""),
        route("in-the-clear", scene.stage.certificates, another),
        route("no-certificate", scene.stage.cluster, "ca = \"ca.pem\""),
        swarm("wrong-certificate", &cluster, "ca = \"ca.pem\"\ncert = \"stranger.pem\"\nkey = \"stranger-key.pem\""),
        swarm(
            "wrong-ca",
            &cluster,
            "ca = \"another.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\nverify = \"ca-only\"",
        ),
    ];
    let daemon = Daemon::start_in(folder, &tables.concat(), |_| {});
    for (route, help) in [
        ("wrong-name", "`tls.server_name`"),
        ("right-name", ""),
        ("no-name", ""),
        ("nameless", "`tls.verify = \"ca-only\"`"),
        ("nameless-ca-only", ""),
        ("expired", "must renew it"),
        ("expired-ca-only", "must renew it"),
        ("too-new", "set the clock right"),
        ("unknown-ca", "`tls.ca`"),
        ("unknown-ca-only", "`tls.ca`"),
        ("unverified", ""),
        ("in-the-clear", "is not TLS"),
        ("no-certificate", "it wants a client certificate"),
        ("wrong-certificate", "is of a CA that it does not trust"),
        ("wrong-ca", "`tls.ca`"),
    ] {
        let before = scene.count();
        let reply = ask(daemon.connect(), &format!("GET /projects/ HTTP/1.1\nHost: {route}.localhost"));
        if help.is_empty() {
            assert_eq!(reply.passed_on().status, 200, "{route}");
            continue;
        }
        let refusal = reply.refused();
        assert_eq!((refusal.status, refusal.code.as_str()), (502, "upstream_tls"), "{route}: {refusal:?}");
        assert_eq!(refusal.route.as_deref(), Some(route));
        assert!(refusal.message.contains(help) && refusal.message.contains("https://127.0.0.1:"), "{refusal:?}");
        assert_eq!(scene.count(), before, "{route}");
    }
}
