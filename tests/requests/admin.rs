//! The admin listener: what a supervisor asks, and how the daemon is told to stop.

use std::collections::{BTreeSet, HashSet};

use nix::sys::signal::Signal;

use crate::daemon::{Daemon, connect};
use crate::scene::{Reply, Scene, ask};

fn start(scene: &Scene, server: &str, quit: bool) -> Daemon {
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\nquit = {quit}\n");
    scene.start_listening(&format!("listen = [\"127.0.0.1:0\"]\n{server}\n{admin}"), &scene.bce("cert", ""))
}

fn ask_admin(daemon: &Daemon, line: &str) -> Reply {
    ask(connect(daemon.admin_address()), &format!("{line} HTTP/1.1\nHost: localhost"))
}

#[test]
fn health_is_told_and_nothing_else() {
    let scene = Scene::new();
    let daemon = start(&scene, "", false);
    for (line, status, body) in [
        ("GET /livez", 200, "live\n"),
        ("GET /readyz", 200, "ready\n"),
        ("HEAD /readyz", 200, ""),
        ("POST /readyz", 405, "GET it\n"),
        ("GET /quit", 405, "POST it\n"),
        ("POST /quit", 403, "set `admin.quit` to allow it\n"),
        ("GET /cert/v1/certificate", 404, "there is /, /livez, /readyz, /metrics, /status, /last and /quit\n"),
        ("HEAD /metrics", 200, ""),
        ("POST /metrics", 405, "GET it\n"),
        ("HEAD /status", 200, ""),
        ("HEAD /", 200, ""),
        ("DELETE /last", 405, "GET it\n"),
        ("POST /nothing", 404, "there is /, /livez, /readyz, /metrics, /status, /last and /quit\n"),
    ] {
        let reply = ask_admin(&daemon, line);
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{line}");
    }
    for (head, status) in [("Host: evil.example", 421), ("Host: localhost\nOrigin: http://evil.example", 403)] {
        for path in ["/livez", "/metrics", "/status", "/last", "/"] {
            let reply = ask(connect(daemon.admin_address()), &format!("GET {path} HTTP/1.1\n{head}"));
            assert_eq!(reply.status, status, "{path} {head}");
        }
    }
    assert_eq!(ask_admin(&daemon, "POST /").header("allow"), Some("GET, HEAD"));
    assert_eq!(ask_admin(&daemon, "GET /quit").header("allow"), Some("POST"));
    assert_eq!(scene.count(), 0);
}

#[test]
fn metrics_have_the_names_of_the_configuration_for_labels() {
    let scene = Scene::new();
    let server = "listen = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let daemon = scene.start_listening(server, &scene.all(""));
    let reply = ask_admin(&daemon, "GET /metrics");
    assert_eq!(reply.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let upstream = format!("http://{}", scene.stage.certificates);
    for line in [
        "countersign_config_last_reload_successful 1".to_owned(),
        "countersign_route_ready{route=\"cert\"} 1.0".to_owned(),
        "countersign_requests_total{route=\"cert\",status=\"2xx\"} 0".to_owned(),
        format!("countersign_build_info{{version=\"{}\",commit=\"\"}} 1", env!("CARGO_PKG_VERSION")),
        format!("countersign_clock_ahead_seconds{{route=\"cert\",upstream=\"{upstream}\"}} 0.0"),
    ] {
        assert!(reply.body.lines().any(|known| known == line), "{line}: {}", reply.body);
    }
    assert!(
        reply.body.contains("countersign_certificate_expiry_timestamp_seconds{route=\"cluster\"} "),
        "{}",
        reply.body
    );
    assert!(reply.body.ends_with("# EOF\n"), "{}", reply.body);
}

/// The names of all samples, by what `TYPE` says of them, of a text that is checked as `promtool check metrics` does.
fn check_metrics(text: &str) -> BTreeSet<String> {
    let (mut names, mut family, mut seen) = (BTreeSet::new(), String::new(), HashSet::new());
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(declared) = line.strip_prefix("# ") {
            let [kind, name, rest] = declared.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            assert!(name.starts_with("countersign_") && !rest.is_empty(), "{line}");
            match kind {
                "HELP" => name.clone_into(&mut family),
                "TYPE" => {
                    let suffix = match rest {
                        "counter" => "_total",
                        "info" => "_info",
                        "gauge" | "histogram" => "",
                        _ => panic!("{line}"),
                    };
                    assert!(names.insert(format!("{name}{suffix}")), "twice: {line}");
                }
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(family, name, "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && seen.insert(sample.to_owned()), "{line}");
        let name = sample.split('{').next().unwrap();
        let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("not of {family}: {line}"));
        assert!(["", "_total", "_info", "_sum", "_count", "_bucket"].contains(&suffix), "{line}");
    }
    names
}

#[test]
fn the_readme_lists_the_metrics_there_are() {
    let scene = Scene::new();
    let daemon = start(&scene, "", false);
    ask(daemon.connect(), "GET /v1/certificate HTTP/1.1\nHost: cert.localhost").passed_on();
    let reply = ask_admin(&daemon, "GET /metrics");
    let told = check_metrics(&reply.body);
    let (_, section) = include_str!("../../README.md").split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let listed: BTreeSet<_> =
        rows.flat_map(|row| row.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect();
    assert_eq!(listed, told);
}

#[test]
fn who_may_quit_ends_the_daemon_well() {
    let scene = Scene::new();
    let mut daemon = start(&scene, "", true);
    assert_eq!(ask_admin(&daemon, "POST /quit").status, 200);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_drain_is_told_before_it_begins() {
    let scene = Scene::new();
    let mut daemon = start(&scene, "drain_delay = \"1h\"", false);
    daemon.signal(Signal::SIGTERM);
    daemon.await_log("told to stop");
    let reply = ask_admin(&daemon, "GET /readyz");
    assert_eq!((reply.status, reply.body.as_str()), (503, "draining\n"));
    assert_eq!(ask_admin(&daemon, "GET /readyz?strict").status, 503);
    assert_eq!(ask_admin(&daemon, "GET /livez").status, 200);
    // Whoever has not noticed yet is still served.
    ask(daemon.connect(), "GET /v1/certificate HTTP/1.1\nHost: cert.localhost").passed_on();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
}
