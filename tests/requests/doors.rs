//! Every door of every route.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::daemon::{Daemon, connect};
use crate::ports::reserve;
use crate::scene::{Reply, Scene, ask, connect_unix};

/// How a request comes in.
#[derive(Clone, Copy, Debug)]
enum Entrance {
    Shared,
    Own,
    SharedUnix,
    OwnUnix,
}

use Entrance::{Own, OwnUnix, Shared, SharedUnix};

fn ask_at(daemon: &Daemon, entrance: Entrance, name: &str, head: &str) -> Reply {
    let head = head.replace("NAME", name).replace("PORT", &daemon.address().port().to_string());
    let reply = match entrance {
        Shared => ask(daemon.connect(), &head),
        Own => ask(connect(daemon.own_address(name)), &head),
        SharedUnix => ask(connect_unix(&daemon.folder().join("shared.sock")), &head),
        OwnUnix => ask(connect_unix(&daemon.folder().join(format!("{name}.sock"))), &head),
    };
    reply.passed_on()
}

#[test]
fn every_door_leads_to_every_provider() {
    let scene = Scene::new();
    let keys = |name: &str| {
        format!(
            "listen = [\"127.0.0.1:0\", \"unix:{name}.sock\"]\n\
             hosts = [\"{name}.example.test\", \"ported.test:{}\"]",
            9000 + name.len()
        )
    };
    let tables = [
        scene.bce("cert", &keys("cert")),
        scene.header("token", &keys("token")),
        scene.mtls("cluster", &keys("cluster")),
        scene.mtls_verifying("full", "verified", &keys("verified")),
    ];
    let server = "listen = [\"127.0.0.1:0\", \"unix:shared.sock\"]\ndomains = [\"localhost\", \"corp.test\"]";
    let daemon = scene.start_listening(server, &tables.concat());
    let stage = &scene.stage;
    let routes =
        [("cert", stage.certificates), ("token", stage.echo), ("cluster", stage.cluster), ("verified", stage.cluster)];
    for (name, upstream) in routes {
        let ported = format!("GET /a?b HTTP/1.1\nHost: ported.test:{}", 9000 + name.len());
        for (entrance, head, target) in [
            (Own, "GET /a?b HTTP/1.1\nHost: localhost", "/a?b"),
            (Own, "GET /NAME/a HTTP/1.1\nHost: 127.0.0.1:PORT", "/NAME/a"),
            (Own, "GET /a HTTP/1.1\nHost: NAME.localhost", "/a"),
            (Own, "GET /a HTTP/1.0", "/a"),
            (OwnUnix, "GET /a HTTP/1.1\nHost: api.moby.localhost", "/a"),
            (OwnUnix, "GET /NAME/a HTTP/1.1\nHost: evil.example", "/NAME/a"),
            (OwnUnix, "GET /a HTTP/1.0", "/a"),
            (SharedUnix, "GET /a HTTP/1.1\nHost: NAME.localhost", "/a"),
            (SharedUnix, "GET /NAME/a HTTP/1.1\nHost: api.moby.localhost", "/a"),
            (SharedUnix, "GET /NAME/a HTTP/1.0", "/a"),
            (SharedUnix, "GET /a HTTP/1.1\nHost: NAME.example.test", "/a"),
            (Shared, "GET /a HTTP/1.1\nHost: NAME.example.test", "/a"),
            (Shared, "GET /NAME/a HTTP/1.1\nHost: NAME.EXAMPLE.test.:PORT", "/NAME/a"),
            (Shared, "GET http://NAME.example.test/a?b HTTP/1.1\nHost: NAME.example.test", "/a?b"),
            (Shared, "GET http://NAME.example.test:80/a HTTP/1.1\nHost: NAME.example.test", "/a"),
            (Shared, "GET http://NAME.example.test HTTP/1.1\nHost: NAME.example.test", "/"),
            (Shared, "GET http://NAME.example.test?q HTTP/1.1\nHost: NAME.example.test", "/?q"),
            (Shared, "GET http://NAME.localhost:PORT/a HTTP/1.1\nHost: NAME.localhost:PORT", "/a"),
            (Shared, "GET http://localhost:PORT/NAME/a HTTP/1.1\nHost: localhost:PORT", "/a"),
            (Shared, "GET http://NAME.localhost/a HTTP/1.0", "/a"),
            (Shared, ported.as_str(), "/a?b"),
            (Shared, "GET /a?b=%2f&c=%C3%A9 HTTP/1.1\nHost: NAME.localhost:PORT", "/a?b=%2f&c=%C3%A9"),
            (Shared, "GET /NAME/a HTTP/1.1\nHost: Name.LOCALHOST.", "/NAME/a"),
            (Shared, "GET /a HTTP/1.0\nHost: NAME.corp.test", "/a"),
            (Shared, "GET //a//./b/../%2e/ HTTP/1.1\nHost: NAME.localhost", "//a//./b/../%2e/"),
            (Shared, "GET /NAME HTTP/1.1\nHost: localhost", "/"),
            (Shared, "GET /NAME/ HTTP/1.1\nHost: 127.0.0.1:PORT", "/"),
            (Shared, "GET /NAME?q HTTP/1.1\nHost: [::1]:PORT", "/?q"),
            (Shared, "GET /NAME?q=/x?y HTTP/1.1\nHost: corp.test", "/?q=/x?y"),
            (Shared, "GET /NAME/a/NAME?b HTTP/1.1\nHost: localhost:PORT", "/a/NAME?b"),
            (Shared, "GET /NAME//a//b HTTP/1.1\nHost: localhost:PORT", "//a//b"),
            (Shared, "GET /NAME///?q HTTP/1.1\nHost: 127.0.0.2", "///?q"),
        ] {
            // `NAME` in another case is still the route's name in a host, but not in a path.
            let before = scene.count();
            let head = head.replace("Host: Name.", &format!("Host: {}.", name.to_ascii_uppercase()));
            ask_at(&daemon, entrance, name, &head);
            let seen = scene.accepted();
            let context = format!("{name} {entrance:?} {head:?}");
            assert_eq!(scene.count(), before + 1, "{context}");
            assert_eq!(seen.target, target.replace("NAME", name), "{context}");
            assert_eq!(seen.headers["host"], upstream.to_string(), "{context}");
            assert_eq!(seen.headers.get_all("host").iter().count(), 1, "{context}");
        }
    }
}

#[test]
fn every_method_and_its_body_pass() {
    let scene = Scene::new();
    let daemon = scene.start(&scene.all(""));
    for name in ["cert", "echo", "cluster"] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
            let head = format!("{method} /a HTTP/1.1\nHost: {name}.localhost\nContent-Length: 5");
            crate::scene::ask_with_body(daemon.connect(), &head, "hello").passed_on();
            let seen = scene.accepted();
            assert_eq!((seen.method.as_str(), seen.body_len), (method, 5), "{name}");
        }
    }
}

#[test]
fn unix_sockets_have_the_mode_and_the_group_that_were_asked_for() {
    let scene = Scene::new();
    let group = nix::unistd::getgid().as_raw();
    let listen = format!("listen = [\"unix:cert.sock?mode=0666&group={group}\", \"unix:grouped.sock?group={group}\"]");
    let server = "listen = [\"127.0.0.1:0\", \"unix:shared.sock\"]";
    let mut daemon = scene.start_listening(server, &scene.bce("cert", &listen));
    for (name, mode) in [("cert.sock", 0o666), ("grouped.sock", 0o660), ("shared.sock", 0o600)] {
        let metadata = std::fs::metadata(daemon.folder().join(name)).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (mode, group), "{name}");
    }
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!daemon.folder().join("shared.sock").exists() && !daemon.folder().join("cert.sock").exists());
}

#[test]
fn no_route_leads_to_a_listener_of_ours() {
    let [(shared, _shared), (own, _own), (admin, _admin)] = [(); 3].map(|()| reserve());
    let scene = Scene::new();
    let routes = [("shared", shared), ("own", own), ("admin", admin)];
    let tables = routes.map(|(name, address)| scene.bce_to(&address.to_string(), name, ""));
    let tables = tables.concat().replace("[routes.own]", &format!("[routes.own]\nlisten = [\"{own}\"]"));
    let server = format!("listen = [\"{shared}\"]\n[admin]\nlisten = \"{admin}\"\nquit = true");
    let daemon = scene.start_listening(&server, &tables);
    for (name, _) in routes {
        let refusal = ask(daemon.connect(), &format!("POST /quit HTTP/1.1\nHost: {name}.localhost")).refused();
        assert_eq!((refusal.status, refusal.code.as_str()), (502, "upstream_unreachable"), "{name}");
        assert!(refusal.message.contains("one of countersign's own listeners"), "{}", refusal.message);
    }
}
