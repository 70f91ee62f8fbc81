//! The admin listener: what a supervisor asks, and how the daemon is told to stop.

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
