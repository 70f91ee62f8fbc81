//! What the daemon tells of itself, over its admin listener and through the commands that ask it.

use std::path::Path;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::daemon::{Daemon, Ended, PATIENCE, run, write_configuration};
use crate::ports::reserve;
use crate::scene::{Reply, Scene, ask, connect_unix};
use crate::scripted::Scripted;

const SECRET: &str = "planted-secret";

/// A daemon with a route that is refused for its wrong secret, and one that is accepted.
fn start(scene: &Scene) -> Daemon {
    let key = &scene.stage.access_key.access_key;
    let wrong = format!(
        "[routes.wrong]\nupstream = \"http://{}\"\n[routes.wrong.bce]\n\
         credentials = {{ access_key = \"{key}\", secret_key = \"{SECRET}\" }}\n",
        scene.stage.certificates
    );
    let admin = "[admin]\nlisten = \"unix:admin.sock\"\n";
    scene.start(&format!("{admin}{wrong}{}", scene.mtls_verifying("none", "cluster", "")))
}

fn ask_admin(daemon: &Daemon, target: &str) -> Reply {
    ask(connect_unix(&daemon.folder().join("admin.sock")), &format!("GET {target} HTTP/1.1\nHost: localhost"))
}

fn command(folder: &Path, arguments: &[&str]) -> Ended {
    let file = folder.join("countersign.toml");
    let (name, rest) = arguments.split_first().unwrap();
    run(folder, &[&[*name, "-c", file.to_str().unwrap()], rest].concat(), |_| {})
}

fn refuse(daemon: &Daemon) -> Reply {
    ask(daemon.connect(), "GET /v1/certificate?certName=a HTTP/1.1\nHost: wrong.localhost").passed_on()
}

#[test]
fn the_status_tells_of_every_route_or_of_one() {
    let scene = Scene::new();
    let daemon = start(&scene);
    let reply = ask_admin(&daemon, "/status");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let told = reply.json();
    assert_eq!((&told["ready"], &told["draining"]), (&json!(true), &json!(false)));
    let names: Vec<_> = told["routes"].as_array().unwrap().iter().map(|route| &route["name"]).collect();
    assert_eq!(names, ["wrong", "cluster"]);
    let cluster = &told["routes"][1];
    assert_eq!((&cluster["verify"], &cluster["credential"]["source"]), (&json!("none"), &json!("none")));
    assert!(told["warnings"].to_string().contains("the server is not verified"), "{told:#}");
    let certificate = &cluster["certificates"][0];
    assert!(certificate["what"].as_str().unwrap().contains("`tls.cert`"), "{told:#}");
    assert!(certificate["until"].as_str().unwrap().ends_with('Z'), "{told:#}");

    let one = ask_admin(&daemon, "/status?route=cluster").json();
    assert_eq!(one["routes"], json!([cluster]));
    let nobody = ask_admin(&daemon, "/status?route=nobody");
    assert_eq!((nobody.status, nobody.body.as_str()), (404, "no route has this name: there is wrong, cluster\n"));
}

#[test]
fn the_log_has_the_providers_code_and_its_name_for_the_request() {
    let scene = Scene::new();
    let daemon = start(&scene);
    let refused = refuse(&daemon).json();
    let said = format!("provider_code=\"SignatureDoesNotMatch\" provider_id={}", refused["requestId"]);
    daemon.await_log(&said);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(&said)).unwrap();
    for part in ["route=\"wrong\"", "by=\"upstream\"", "attempts=1"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains(" code="), "{line}");
    let metrics = ask_admin(&daemon, "/metrics").body;
    let counted = "countersign_upstream_refusals_total{route=\"wrong\",verdict=\"signature\"} 1";
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
}

#[test]
fn a_refused_signature_is_told_with_the_providers_code_and_what_was_signed() {
    let scene = Scene::new();
    let daemon = start(&scene);
    assert_eq!(ask_admin(&daemon, "/last").json(), json!({ "refusals": [] }));
    let refused = refuse(&daemon);
    let told = ask_admin(&daemon, "/last").json();
    let last = &told["refusals"][0];
    assert_eq!(
        json!([last["route"], last["method"], last["path"], last["status"], last["verdict"], last["code"]]),
        json!(["wrong", "GET", "/v1/certificate", refused.status, "signature", "SignatureDoesNotMatch"]),
        "{told:#}"
    );
    assert_eq!(last["request_id"], refused.header("x-countersign-request-id").unwrap());
    assert_eq!(last["provider_request_id"], refused.json()["requestId"], "{told:#}");
    let canonical = last["canonical_request"].as_str().unwrap();
    assert!(canonical.starts_with("GET\n/v1/certificate\ncertName=a\n"), "{canonical}");
    assert!(!last["advice"].as_str().unwrap().is_empty(), "{told:#}");
    assert_eq!((&last["sent_again"], told.to_string().contains(SECRET)), (&Value::Null, false), "{told:#}");
    assert_eq!(ask_admin(&daemon, "/last?route=cluster").json(), json!({ "refusals": [] }));
    assert_eq!(ask_admin(&daemon, "/last?route=wrong").json(), told);
    assert_eq!(ask_admin(&daemon, "/last?route=nobody").status, 404);
}

/// Asks for the status until it is as wanted.
fn await_status(daemon: &Daemon, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let told = ask_admin(daemon, "/status").json();
        if is_it(&told) {
            return told;
        }
        assert!(began.elapsed() < PATIENCE, "not {what}: {told:#}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_file_with_a_bad_secret_is_told_as_a_refused_rotation() {
    let scene = Scene::new();
    let folder = scene.folder();
    let file = folder.path().join("bce.sk");
    std::fs::write(&file, scene.stage.access_key.secret_key.expose_secret()).unwrap();
    let (key, upstream) = (&scene.stage.access_key.access_key, scene.stage.certificates);
    let route = format!(
        "[routes.cert]\nupstream = \"http://{upstream}\"\n[routes.cert.bce]\n\
         credentials = {{ access_key = \"{key}\", secret_key = {{ file = \"bce.sk\" }} }}\n"
    );
    let tables = format!("server.listen = [\"127.0.0.1:0\"]\nadmin.listen = \"unix:admin.sock\"\n{route}");
    let daemon = Daemon::start_in(folder, &tables, |_| {});
    let request = || ask(daemon.connect(), "GET /v1/certificate HTTP/1.1\nHost: cert.localhost").passed_on();
    assert_eq!(request().status, 200);
    std::fs::write(&file, SECRET).unwrap();
    let rotation = |told: &Value| told["routes"][0]["credential"]["rotation"]["state"].clone();
    await_status(&daemon, "on trial", |told| rotation(told) == "on trial");
    let reply = request();
    assert_eq!((reply.status, reply.header("x-countersign-retry")), (200, Some("credential")));
    let told = ask_admin(&daemon, "/status").json();
    assert_eq!(rotation(&told), "refused", "{told:#}");
    assert_eq!((&told["ready"], &told["routes"][0]["ready"]), (&json!(true), &json!(true)), "{told:#}");
    let ended = command(daemon.folder(), &["status", "cert"]);
    assert!(ended.out.contains("the old credential goes on serving"), "{ended:?}");
    let last = ask_admin(&daemon, "/last").json();
    assert_eq!(last["refusals"][0]["sent_again"], "credential", "{last:#}");
}

#[test]
fn a_configuration_that_cannot_be_taken_over_is_told() {
    let scene = Scene::new();
    let daemon = start(&scene);
    let file = daemon.folder().join("countersign.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let warned = |told: &Value| told["warnings"].to_string().contains("the one before it goes on serving");
    write_configuration(daemon.folder(), "[server]\nlistne = 1\n");
    await_status(&daemon, "refused", warned);
    write_configuration(daemon.folder(), &good);
    let told = await_status(&daemon, "reloaded", |told| !warned(told));
    assert_eq!(told["routes"].as_array().map(Vec::len), Some(2), "{told:#}");
}

#[test]
fn the_page_shows_the_same_and_does_nothing() {
    let scene = Scene::new();
    let daemon = start(&scene);
    refuse(&daemon);
    let page = ask_admin(&daemon, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for part in ["<h2>wrong: ready</h2>", "none: anyone on the way", "SignatureDoesNotMatch", "<summary>"] {
        assert!(page.body.contains(part), "{part}: {}", page.body);
    }
    assert!(!page.body.contains("<script") && !page.body.contains(SECRET), "{}", page.body);
}

#[test]
fn commands_ask_the_running_daemon() {
    let scene = Scene::new();
    let daemon = start(&scene);
    let nothing = command(daemon.folder(), &["last"]);
    assert_eq!(
        (nothing.code, nothing.out.as_str()),
        (Some(0), "no request has been refused since the daemon was started\n")
    );
    refuse(&daemon);
    for (arguments, parts) in [
        (&["status"][..], &["countersign ", "\nwrong: ready\n", "\ncluster: ready\n", "  provider     mtls\n"][..]),
        (&["status", "cluster"], &["\ncluster: ready\n", "none: anyone on the way can read"]),
        (
            &["last"],
            &[
                " wrong: GET /v1/certificate\n",
                "  code           SignatureDoesNotMatch\n",
                "  what to do     ",
                "  canonical request\n    GET\n    /v1/certificate\n    certName=a\n",
            ],
        ),
        (&["last", "cluster"], &["no request has been refused"]),
        (&["health"], &["ready\n"]),
    ] {
        let ended = command(daemon.folder(), arguments);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{arguments:?}: {ended:?}");
        for part in parts {
            assert!(ended.out.contains(part), "{arguments:?}: {part:?} in {}", ended.out);
        }
    }
    let as_it_came = command(daemon.folder(), &["last", "--json", "wrong"]).out;
    assert_eq!(as_it_came, ask_admin(&daemon, "/last?route=wrong").body);
    for name in ["nobody", "No body", "../status"] {
        let ended = command(daemon.folder(), &["status", name]);
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.err.contains("name"), "{ended:?}");
    }
}

#[test]
fn commands_ask_over_tcp_too() {
    let scene = Scene::new();
    let daemon = scene.start(&format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", scene.bce("cert", "")));
    let folder = tempfile::tempdir().unwrap();
    write_configuration(folder.path(), &format!("[admin]\nlisten = \"{}\"\n", daemon.admin_address()));
    let ended = command(folder.path(), &["status", "cert"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("cert: ready\n"), "{ended:?}");
}

#[test]
fn who_cannot_ask_is_told_what_to_do() {
    let (address, _socket) = reserve();
    for (configuration, code, said) in [
        (String::new(), 78, "no admin listener to ask: add `[admin]`"),
        ("[admin]\nlisten = \"127.0.0.1:0\"\n".to_owned(), 78, "another one at every start"),
        (format!("[admin]\nlisten = \"{address}\"\n"), 1, "start the daemon with `countersign run -c "),
        ("[admin]\nlisten = \"unix:nobody.sock\"\n".to_owned(), 1, "start the daemon with `countersign run -c "),
        ("[admin]\nlisten = 1\n".to_owned(), 78, "countersign.toml:2:10: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_configuration(folder.path(), &configuration);
        for verb in ["status", "last", "health"] {
            let ended = command(folder.path(), &[verb]);
            assert_eq!((ended.code, ended.out.as_str()), (Some(code), ""), "{verb} {configuration}: {ended:?}");
            assert!(ended.err.contains(said) && ended.err.lines().count() <= 2, "{verb} {configuration}: {ended:?}");
        }
    }
}

#[test]
fn health_says_in_a_line_why_not() {
    let scene = Scene::new();
    let daemon = scene
        .start_listening("listen = [\"127.0.0.1:0\"]\ndrain_delay = \"1h\"", "[admin]\nlisten = \"unix:admin.sock\"\n");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.await_log("told to stop");
    let ended = command(daemon.folder(), &["health"]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(1), "countersign: draining\n"), "{ended:?}");
}

#[test]
fn something_else_behind_the_address_is_told_apart() {
    let other = Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let refusing = Scripted::start("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    for address in [other.address, refusing.address] {
        let folder = tempfile::tempdir().unwrap();
        write_configuration(folder.path(), &format!("[admin]\nlisten = \"{address}\"\n"));
        let ended = command(folder.path(), &["status"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("something else than this countersign"), "{ended:?}");
    }
}
