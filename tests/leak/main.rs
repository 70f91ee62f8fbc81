//! No secret, token or signature shows anywhere: marked ones are planted, everything that can go wrong does, and whatever the
//! process printed or answered is searched for them, in every form that a word may take.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/scripted.rs"]
mod scripted;

mod evidence;
mod routes;
mod scene;
mod start;
mod troubles;

use std::fmt::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::Signal;

use daemon::{Daemon, run};
use evidence::{Evidence, as_it_is, forms};
use routes::{PLANTED, mark, secret};
use scene::Scene;
use troubles::TROUBLES;

/// Sends a request over the daemon's socket. The reply, if it is one of our own.
fn ask(folder: &Path, socket: &str, head: &str, body: &str) -> Option<String> {
    let stream = UnixStream::connect(folder.join(socket)).unwrap();
    stream.set_read_timeout(Some(daemon::PATIENCE)).unwrap();
    let reply = daemon::exchange(stream, format!("{head}Connection: close\r\n\r\n{body}"));
    let is_own = socket == ADMIN || reply.to_ascii_lowercase().contains("\r\nx-countersign-error: ");
    assert!(reply.starts_with("HTTP/1.1 "), "{head}: {reply}");
    is_own.then_some(reply)
}

const SHARED: &str = "shared.sock";
const ADMIN: &str = "admin.sock";

fn nothing_leaks(format: &str) {
    let scene = Scene::new();
    scene.recover();
    let routes = routes::all(&scene);
    let mut configuration = format!(
        "[server]\nlisten = [\"unix:{SHARED}\"]\n[admin]\nlisten = \"unix:{ADMIN}\"\n\
         [log]\nlevel = \"trace\"\nformat = \"{format}\"\n"
    );
    for route in &routes {
        let tables = route.tables.replace("NAME", route.name);
        let _ = write!(configuration, "[routes.{}]\nplaintext = true\n{tables}", route.name);
    }
    let secrets = |command: &mut std::process::Command| {
        command.env("TEMPORARY", secret("Temporary")).env("CALLER", secret("Caller"));
    };
    let in_folder = |command: &mut std::process::Command, folder: &Path| {
        secrets(command);
        command.current_dir(folder);
    };
    let folder = scene.folder();
    let path = folder.path().to_owned();
    let mut daemon = Daemon::start_in(folder, &configuration, |command| in_folder(command, &path));

    let (mut evidence, mut explained) = (Evidence::default(), Evidence::default());
    let mut own = 0;
    for (trouble, begin) in TROUBLES {
        scene.recover();
        begin(&scene, &path);
        for route in &routes {
            let head = |method: &str| {
                format!("{method} {} HTTP/1.1\r\nHost: {}.localhost\r\n{}", route.target, route.name, route.head)
            };
            for (head, body) in [(head("GET"), ""), (head("POST") + "Content-Length: 3\r\n", "a=b")] {
                if let Some(reply) = ask(&path, SHARED, &head, body) {
                    evidence.add(format!("the reply of {} while {trouble}", route.name), reply);
                    own += 1;
                }
            }
        }
        for page in ["/", "/metrics", "/status", "/last", "/readyz", "/readyz?strict"] {
            let reply = ask(&path, ADMIN, &format!("GET {page} HTTP/1.1\r\nHost: localhost\r\n"), "");
            evidence.add(format!("{page} while {trouble}"), reply.unwrap());
        }
    }
    let file = path.join("countersign.toml");
    let command = |arguments: &[&str]| {
        let file = file.to_str().unwrap();
        run(&path, &[&arguments[..1], &["-c", file], &arguments[1..]].concat(), secrets)
    };
    for arguments in
        [&["status"][..], &["last"], &["last", "--json"], &["status", "bce"], &["health"], &["status", "none"]]
    {
        evidence.add_ended(&arguments.join(" "), &command(arguments));
    }
    // Once with a file missing, once with all of them.
    evidence.add_ended("check without a file", &command(&["check"]));
    std::fs::write(path.join("rotated"), secret("Rotated")).unwrap();
    let check = command(&["check"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    evidence.add_ended("check", &check);
    for route in &routes {
        let (name, url) = (route.name, format!("http://{}.localhost:8080{}", route.name, route.target));
        explained.add_ended(&format!("sign --explain of {name}"), &command(&["sign", "--explain", &url]));
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    evidence.add("the log", daemon.log());

    // Or else nothing was looked at.
    assert!(own > 100, "{own}");
    let given = scene.given_secrets();
    assert!(given.len() > 4 && scene.cloud.iam.play.wrong_passwords() > 0, "{given:?}");
    let sent = scene.sent();
    assert!(sent.len() > 100, "{sent:?}");
    for verdict in ["signature", "credential", "clock", "throttled", "locked", "refused", "not sent"] {
        let told = format!("\"verdict\": \"{verdict}\"");
        assert!(evidence.0.iter().any(|(place, text)| place.starts_with("/last") && text.contains(&told)), "{told}");
    }
    let key = std::fs::read_to_string(path.join("key.pem")).unwrap();
    let key: Vec<_> = key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect();
    let planted: Vec<_> = PLANTED.iter().map(|name| mark(name)).chain(key).collect();
    evidence.holds_none_of(&planted, forms);
    explained.holds_none_of(&planted, forms);
    for evidence in [&evidence, &explained] {
        evidence.holds_none_of(&given, as_it_is);
    }
    evidence.holds_none_of(&sent, as_it_is);
}

#[test]
fn nothing_leaks_into_a_log_for_people_nor_into_replies() {
    nothing_leaks("text");
}

#[test]
fn nothing_leaks_into_a_log_for_machines_nor_into_replies() {
    nothing_leaks("json");
}
