//! The first certificates: how they come, what stands in the way, and that the key is nowhere but in memory.

use std::fs;

use countersign::clock::Clock;
use countersign::credential::ExposeSecret;
use serde_json::json;

use crate::Stage;
use crate::cloud::{CLUSTER, Fault};
use crate::daemon::Daemon;
use crate::scene::{key, now, written};
use crate::script::{Http, await_that, request};

/// The daemon as its users start it, at its most talkative.
fn daemon(stage: &Stage) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), stage.cloud.authority.pem()).unwrap();
    let text = format!(
        "[log]\nlevel = \"trace\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n{}",
        stage.route()
    );
    Daemon::start_in(folder, &text, |_| {})
}

#[test]
fn a_cluster_is_reached_with_what_its_api_hands_out() {
    let (stage, issued) = Stage::start(&Clock::system());
    let daemon = daemon(&stage);
    for (method, body) in [("GET", ""), ("POST", "{}")] {
        let mut caller = Http::new(daemon.connect());
        caller
            .send(request(method, "/projects/?q=a", body).replace("\r\n\r\n", "\r\nAuthorization: Basic YTpi\r\n\r\n"));
        let reply = caller.reply();
        let text = reply.text();
        assert_eq!(reply.status, 200, "{text}");
        assert!(text.starts_with(&format!("first {}\n{method} /projects/?q=a HTTP/1.1\r\n", body.len())), "{text}");
        assert!(text.contains(&format!("ost: {}\r\n", stage.master.upstream.address)), "{text}");
        assert!(!text.to_lowercase().contains("authorization"), "{text}");
    }
    assert_eq!(stage.fetches(), 1);

    let mut admin = Http::new(crate::daemon::connect(daemon.admin_address()));
    admin.send("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let status = admin.reply().text();
    assert!(
        status.contains("\"verify\": \"ca-only\"") && status.contains("the CA of the fetched certificates"),
        "{status}"
    );

    let (key, lines) = (key(), issued.key.lines().filter(|line| !line.starts_with('-')));
    assert!(!daemon.log().contains(key.secret_key.expose_secret()));
    for line in lines {
        assert!(!daemon.log().contains(line) && !status.contains(line));
        for file in fs::read_dir(daemon.folder()).unwrap() {
            assert!(!fs::read_to_string(file.unwrap().path()).unwrap().contains(line));
        }
    }
}

#[test]
fn without_the_api_the_daemon_starts_and_serves_once_it_is_there() {
    let (stage, _) = Stage::start(&Clock::system());
    stage.cloud.cluster.behave(|manner| manner.is_down = true);
    let daemon = daemon(&stage);
    let get = || Http::new(daemon.connect()).get("/");
    let message = get().expect(503, "credential_unavailable");
    assert!(message.contains(&stage.cloud.cluster.https()), "{message}");
    stage.cloud.cluster.recover();
    await_that("the certificates", || get().status == 200);
}

#[test]
fn an_address_that_is_not_known_yet_is_asked_for_again() {
    let (stage, _) = Stage::start(&Clock::system());
    stage.cloud.cluster.play.set_master("");
    let proxy = stage.proxy();
    let message = proxy.get("/").expect(503, "credential_unavailable");
    assert!(message.contains("it has no `master_url` yet (it is in the state \"running\")"), "{message}");
    stage.cloud.cluster.play.set_master(stage.master.url());
    await_that("the address", || proxy.get("/").status == 200);
}

#[test]
fn what_the_api_refuses_is_told_in_words() {
    let other = CLUSTER.replace('0', "f");
    let wrong = written(&key()).replace("the secret of", "not the secret of");
    let forbidden = json!({ "code": "Forbidden.RAM", "message": "no hunter2", "requestId": "R-1" });
    for (id, credentials, fault, expected) in [
        (&*other, written(&key()), None, "404 Not Found ErrorClusterNotFound (RequestId "),
        (CLUSTER, wrong, None, "SignatureDoesNotMatch (RequestId "),
        (CLUSTER, written(&key()), Some(forbidden), "403 Forbidden Forbidden.RAM (RequestId R-1): give the owner"),
    ] {
        let (stage, _) = Stage::start(&Clock::fixed(now()));
        if let Some(fault) = fault {
            stage.cloud.cluster.fail("/clusters", 9, Fault::json(403, &fault));
        }
        let proxy = stage.proxy_of(&stage.route_as(id, &credentials, ""));
        let message = proxy.get("/").expect(503, "credential_unavailable");
        assert!(message.contains(expected) && !message.contains("hunter2"), "{message}");
        assert_eq!(stage.fetches(), 0);
    }
}

#[test]
fn certificates_that_cannot_be_used_are_told_in_words() {
    let (stage, issued) = Stage::start(&Clock::fixed(now()));
    let mut without_ca = issued.reply.clone();
    without_ca.as_object_mut().unwrap().remove("ca");
    let mut anothers = issued.reply.clone();
    anothers["key"] = stage.master.issue("another").reply["key"].clone();
    for (reply, expected) in [
        (json!({}), "no certificate with its key"),
        (without_ca, "the certificates came without the cluster's `ca`"),
        (anothers, "`key`: "),
    ] {
        stage.cloud.cluster.play.hand_out(&reply);
        let message = stage.proxy().get("/").expect(503, "credential_unavailable");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_clock_that_is_off_is_corrected_by_the_apis() {
    let (stage, _) = Stage::start(&Clock::fixed(now()));
    stage.cloud.cluster.shift(3600);
    assert_eq!(stage.proxy().get("/").status, 200);
    assert_eq!((stage.cloud.cluster.refused("InvalidTimeStamp"), stage.fetches()), (1, 1));
}

#[test]
fn the_name_can_be_verified_too() {
    let (stage, _) = Stage::start(&Clock::fixed(now()));
    let proxy = stage.proxy_of(&stage.route_as(CLUSTER, &written(&key()), "[routes.up.tls]\nverify = \"full\""));
    let message = proxy.get("/").expect(502, "upstream_tls");
    assert!(message.contains("no subjectAltName"), "{message}");
    assert_eq!(stage.fetches(), 1);
}
