//! ACM's calls as its clients make them.

use std::sync::{Mutex, mpsc};

use countersign::credential::AccessKey;
use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::Acm;

use crate::daemon::{self, Daemon};
use crate::scene::{Reply, Scene, ask, ask_with_body};
use crate::script::{Http, Upstream, await_that};

const GBK: &str = "Content-Type: application/x-www-form-urlencoded; charset=GBK";

/// A server that echoes what it found good.
fn server() -> (Scene, String) {
    let mut scene = Scene::new();
    let lasting = AccessKey { access_key: "lasting".to_owned(), secret_key: "its secret".into(), security_token: None };
    let temporary = AccessKey {
        access_key: "STS.temporary".to_owned(),
        secret_key: "another secret".into(),
        security_token: Some("CAIS/+==".into()),
    };
    let site = Site {
        name: "acm",
        transport: Transport::Plain,
        scheme: Box::new(Acm { keys: vec![lasting, temporary].into(), charset: encoding_rs::GBK }),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    (scene, format!("http://{address}"))
}

/// A route to a server; `keys` are the route's, `options` the provider's.
fn route(upstream: &str, name: &str, keys: &str, options: &str) -> String {
    format!(
        "[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n[routes.{name}.acm]\n\
         credentials = {{ access_key = \"lasting\", secret_key = \"its secret\" }}\n{options}\n"
    )
}

/// Sends a request; its head ends with its framing.
fn call(daemon: &Daemon, line: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let length = body.as_ref().len();
    let framing = if length == 0 { String::new() } else { format!("\nContent-Length: {length}") };
    let headers = if headers.is_empty() { String::new() } else { format!("\n{headers}") };
    ask_with_body(daemon.connect(), &format!("{line} HTTP/1.1\nHost: acm.localhost{headers}{framing}"), body)
}

#[test]
fn every_call_of_the_clients_is_signed_over_what_it_names() {
    let (scene, server) = server();
    let daemon = scene.start(&route(&server, "acm", "", ""));
    let probe = "Probe-Modify-Request=app.conf%02G%0200000000000000000000000000000000%02t%01b%02H%02%02t%01";
    for (line, headers, body, covered) in [
        ("GET /diamond-server/config.co?dataId=d&group=G&tenant=t", "", "", "tenant, group and time"),
        ("GET /diamond-server/config.co?dataId=d&group=%C5%E4%D6%C3%D7%E9&tenant=", "", "", "group and time"),
        ("GET /diamond-server/config.co?dataId=d&group=G&tenant=t", GBK, "", "tenant, group and time"),
        (
            "GET /diamond-server/basestone.do?method=getAllConfigByTenant&tenant=t&pageNo=1&pageSize=10",
            "",
            "",
            "tenant and time",
        ),
        ("POST /diamond-server/config.co", GBK, probe, "the time alone"),
        (
            "POST /diamond-server/basestone.do?method=syncUpdateAll",
            GBK,
            "dataId=d&%67%72%6F%75%70=%C5%E4%D6%C3%D7%E9&tenant=t&content=k%3Dv%0A%D6%D0%CE%C4+%zz",
            "tenant, group and time",
        ),
        (
            "POST /diamond-server//datum.do?method=deleteAllDatums",
            GBK,
            "dataId=d&group=%E9F&tenant=t",
            "tenant, group and time",
        ),
        ("POST /diamond-server/datum.do?method=deleteAllDatums&group=G", "", "tenant=t", "group and time"),
        ("POST /diamond-server/config.co?method=batchGetConfig", GBK, "dataIds=a%02b&group=G", "group and time"),
        ("POST /diamond-server/diamond", "", "", "the time alone"),
    ] {
        let reply = call(&daemon, line, headers, body).passed_on();
        assert_eq!(reply.status, 200, "{line}: {reply:?}");
        assert_eq!(reply.json()["body"], body, "{line}");
        let seen = scene.accepted();
        assert_eq!(format!("{} {}", seen.method, seen.target), line);
        let verdict = seen.verdict.unwrap();
        assert!(verdict.starts_with(&format!("spas signature of lasting over {covered} (")), "{line}: {verdict}");
    }
}

#[test]
fn raw_octets_of_gbk_go_on_as_they_came() {
    let upstream = Upstream::start(|mut conn| {
        let (head, body) = conn.request().unwrap();
        conn.ok([head.as_bytes(), &body].concat());
    });
    let daemon =
        Daemon::start(&format!("server.listen = [\"127.0.0.1:0\"]\n{}", route(&upstream.url(), "acm", "", "")));
    let mut caller = Http::new(daemon.connect());
    let body = b"tenant=t&group=\xb7\xd6\xd7\xe9&content=\xff\x80";
    let head = format!("POST /a HTTP/1.1\r\nHost: acm.localhost\r\n{GBK}\r\nContent-Length: {}\r\n\r\n", body.len());
    caller.send([head.as_bytes(), body].concat());
    let reply = caller.reply();
    assert!(reply.status == 200 && reply.body.ends_with(body), "{}", reply.text());
    assert!(reply.text().contains("spas-signature: "), "{}", reply.text());
}

#[test]
fn a_poll_may_take_longer_than_other_replies() {
    let (release, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |mut conn| {
        let (head, _) = conn.request().unwrap();
        if head.to_ascii_lowercase().contains("\r\nlongpullingtimeout: 30000\r\n") {
            gate.lock().unwrap().recv().unwrap();
            conn.ok("app.conf%02G%02t%01");
        }
        conn.await_end();
    });
    let patience = "timeouts = { response = \"1s\", body = \"1s\" }";
    let limits = "limits = { header_timeout = \"1s\", idle_timeout = \"1s\" }";
    let daemon = Daemon::start(&format!(
        "server.listen = [\"127.0.0.1:0\"]\n{limits}\n{}",
        route(&upstream.url(), "acm", patience, "")
    ));
    let probe = "Probe-Modify-Request=app.conf%02G%02%02t%01";
    let mut poll = Http::new(daemon.connect());
    let framing = format!("{GBK}\r\nContent-Length: {}", probe.len());
    poll.send(format!(
        "POST /diamond-server/config.co HTTP/1.1\r\nHost: acm.localhost\r\nlongPullingTimeout: 30000\r\n{framing}\r\n\r\n{probe}"
    ));
    upstream.await_connections(1);
    // What began later and is not a poll is over before it.
    for _ in 0..2 {
        let reply = call(&daemon, "GET /diamond-server/config.co?dataId=d&group=G", "", "").refused();
        assert_eq!((reply.status, reply.code.as_str()), (504, "upstream_timeout"), "{reply:?}");
    }
    release.send(()).unwrap();
    let reply = poll.reply();
    assert_eq!((reply.status, reply.text().as_str()), (200, "app.conf%02G%02t%01"), "{}", reply.head);
}

#[test]
fn a_poll_may_be_signed_over_its_first_entry() {
    let (scene, server) = server();
    let daemon = scene.start(&route(&server, "acm", "", "listen_sign = \"first-entry\""));
    for (probe, covered) in [
        ("app.conf%02%C5%E4%D6%C3%D7%E9%02%02t%01b%02%zz", None),
        ("app.conf%02%C5%E4%D6%C3%D7%E9%02%02t%01b%02H%02%02u%01", Some("tenant and group of the first entry")),
        ("app.conf%02G%0200000000000000000000000000000000%01", Some("the group of the first entry")),
        ("", Some("the time alone")),
    ] {
        let body = format!("Probe-Modify-Request={probe}");
        let reply = call(&daemon, "POST /diamond-server/config.co", GBK, &body);
        let Some(covered) = covered else {
            assert_eq!(reply.refused().code, "bad_request");
            continue;
        };
        assert_eq!(reply.passed_on().status, 200, "{probe}");
        let verdict = scene.accepted().verdict.unwrap();
        assert!(verdict.contains(&format!(" over {covered} (")), "{probe}: {verdict}");
    }
    let other = call(&daemon, "GET /diamond-server/config.co?dataId=d&group=G&tenant=t", "", "");
    assert_eq!(other.passed_on().status, 200);
}

#[test]
fn temporary_keys_bring_their_token_and_callers_bring_nothing() {
    let (scene, server) = server();
    let sts = "{ access_key = \"STS.temporary\", secret_key = \"another secret\", security_token = \"CAIS/+==\" }";
    let daemon = scene.start(&format!(
        "[routes.acm]\nupstream = \"{server}\"\n[routes.acm.acm]\ncredentials = {sts}\n{}",
        route(&server, "lasting", "", "")
    ));
    let forged = "spas-accesskey: x\nTimestamp: 1\nSPAS_SIGNATURE: AAAA\nSpas-SecurityToken: forged";
    let reply = call(&daemon, "GET /a?tenant=t&group=g", forged, "").passed_on();
    assert_eq!(reply.status, 200, "{reply:?}");
    let seen = scene.accepted();
    assert_eq!(seen.headers["spas-securitytoken"], "CAIS/+==");
    assert!(seen.verdict.unwrap().ends_with(" ms old, temporary)"));

    let head = format!("GET /a?group=g HTTP/1.1\nHost: lasting.localhost\n{forged}");
    assert_eq!(ask(daemon.connect(), &head).passed_on().status, 200);
    let seen = scene.accepted();
    assert!(!seen.headers.contains_key("spas-securitytoken") && !seen.headers.contains_key("spas_signature"));
}

#[test]
fn who_looks_for_servers_finds_the_daemon() {
    let (scene, server) = server();
    let keys = "hosts = [\"acm.aliyun.test\"]\nlisten = [\"127.0.0.1:0\"]\nallow = [\"GET /diamond-server/*\"]";
    let daemon = scene.start(&route(&server, "acm", keys, ""));
    for (host, target, expected) in [
        ("acm.localhost:8080", "/diamond-server/diamond", "acm.localhost:8080\n"),
        ("ACM.localhost", "/diamond-server/diamond?nofix=1", "acm.localhost:80\n"),
        ("localhost:8080", "/acm/diamond-server/diamond", "localhost:8080\n"),
        ("acm.aliyun.test:8080", "http://acm.aliyun.test:8080/diamond-server/diamond", "acm.aliyun.test:8080\n"),
    ] {
        let reply = ask(daemon.connect(), &format!("GET {target} HTTP/1.1\nHost: {host}"));
        assert_eq!((reply.status, reply.body.as_str()), (200, expected), "{host}{target}");
        assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
        assert!(reply.header("x-countersign-request-id").is_some() && reply.header("x-countersign-error").is_none());
        let head = ask(daemon.connect(), &format!("HEAD {target} HTTP/1.1\nHost: {host}"));
        let length = expected.len().to_string();
        assert_eq!((head.status, head.body.as_str(), head.header("content-length")), (200, "", Some(length.as_str())));
    }
    let own = daemon::connect(daemon.own_address("acm"));
    assert_eq!(ask(own, "GET /diamond-server/diamond HTTP/1.1\nHost: [::1]:8081").body, "[::1]:8081\n");
    // Without an authority there is nothing to answer, and the servers are not to be asked either.
    let own = daemon::connect(daemon.own_address("acm"));
    let refusal = ask(own, "GET /diamond-server/diamond HTTP/1.0").refused();
    assert!(refusal.code == "bad_request" && refusal.message.contains("`Host`"), "{refusal:?}");
    assert_eq!(scene.count(), 0);
    daemon.await_log("code=\"bad_request\"");
    let own_answers = |log: &str| -> Vec<String> {
        log.lines().filter(|line| line.contains("/diamond-server/diamond")).map(str::to_owned).collect()
    };
    await_that("a line for each", || own_answers(&daemon.log()).len() >= 10);
    let log = daemon.log();
    assert!(own_answers(&log).iter().all(|line| line.contains("by=\"proxy\"")), "{log}");
    let unit = call(&daemon, "GET /diamond-server/diamond-unit-a?nofix=1", "", "").passed_on();
    assert_eq!((unit.status, scene.count()), (200, 1));
}

#[test]
fn a_form_that_is_too_large_to_be_signed_is_refused_and_other_bodies_are_not() {
    let (scene, server) = server();
    let tables = format!("[limits]\nsigned_body = \"1KiB\"\n{}", route(&server, "acm", "", ""));
    let daemon = scene.start(&tables);
    let body = format!("group=G&content={}", "x".repeat(1009));
    assert_eq!(body.len(), 1025);
    let refusal = call(&daemon, "POST /a", GBK, &body).refused();
    assert_eq!((refusal.status, refusal.code.as_str()), (413, "body_too_large"));
    let chunked = format!("401\r\n{body}\r\n0\r\n\r\n");
    let head = format!("POST /a HTTP/1.1\nHost: acm.localhost\n{GBK}\nTransfer-Encoding: chunked");
    assert_eq!(ask_with_body(daemon.connect(), &head, &chunked).refused().status, 413);
    assert_eq!(scene.count(), 0);
    assert_eq!(call(&daemon, "POST /a", GBK, body.split_at(1024).0).passed_on().status, 200);
    assert_eq!(call(&daemon, "POST /a", "Content-Type: text/plain", &body).passed_on().status, 200);
}

#[test]
fn what_could_never_be_signed_right_is_refused_and_not_sent() {
    let (scene, server) = server();
    let utf8 = route(&server, "utf8", "", "charset = \"utf-8\"");
    let daemon = scene.start(&[route(&server, "acm", "", ""), utf8].concat());
    for (group, what) in [
        ("%C5", "GBK"),
        ("%C5%E4%D6", "GBK"),
        ("a%80", "GBK"),
        ("%81%30%81%30", "GBK"),
        ("%A6%D9", "GBK"),
        ("%E9%85%8D", "GBK"),
        ("%", "escape"),
        ("a%4", "escape"),
        ("%zz", "escape"),
        ("%%41", "escape"),
        ("%u914D", "escape"),
    ] {
        let query = call(&daemon, &format!("GET /a?group={group}&tenant=t"), "", "").refused();
        let form = call(&daemon, "POST /a", GBK, format!("tenant=t&group={group}")).refused();
        let other = call(&daemon, "POST /a", GBK, format!("tenant={group}")).refused();
        for (refusal, name) in [(query, "group"), (form, "group"), (other, "tenant")] {
            assert_eq!((refusal.status, refusal.code.as_str()), (400, "bad_request"), "{group}");
            let message = refusal.message;
            assert!(message.contains(what) && message.contains(&format!("`{name}`")), "{group}: {message}");
        }
    }
    let head = "GET /a?group=%C5%E4 HTTP/1.1\nHost: utf8.localhost";
    assert!(ask(daemon.connect(), head).refused().message.contains("UTF-8"));
    let twice = call(&daemon, "POST /a", &format!("{GBK}\nContent-Type: text/plain"), "group=G").refused();
    assert!(twice.message.contains("one Content-Type"), "{twice:?}");
    assert_eq!(scene.count(), 0);
    // It is only the two that matter, and of each only the first.
    let line = "GET /a?dataId=%zz&content=%C5&%zz=%&group=G&group=%zz&tenant=&tenant=%C5";
    assert_eq!(call(&daemon, line, "", "").passed_on().status, 200);
    assert!(scene.accepted().verdict.unwrap().contains(" over group and time "));
}

#[test]
fn the_servers_refusal_is_passed_on() {
    let (scene, server) = server();
    let daemon = scene.start(&route(&server, "acm", "", "").replace("its secret", "not its secret"));
    let reply = call(&daemon, "GET /diamond-server/config.co?dataId=d&group=G", "", "").passed_on();
    assert_eq!((reply.status, reply.body.contains("the signature does not match")), (403, true), "{reply:?}");
    assert_eq!(scene.count(), 1);
}
