//! The ways into routes that `countersign routes` tells are ways in.

use std::process::Command;

use crate::daemon::{Daemon, Ended, run, write_configuration};
use crate::scene::Scene;

/// What is told of a configuration, which stands in a folder of its own.
fn told(configuration: &str, name: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), configuration);
    run(folder.path(), &[&["routes", "-c", file.to_str().unwrap()], name].concat(), |_| {})
}

fn route(name: &str, keys: &str) -> String {
    format!(
        "[routes.{name}]\nupstream = \"http://127.0.0.1:1\"\n{keys}\n[routes.{name}.bce]\n\
         credentials = {{ access_key = \"ak\", secret_key = \"planted\" }}\n"
    )
}

/// The same doors at the ports that the daemon was given, with which it is running.
fn at_its_ports(daemon: &Daemon, configuration: &str, name: &str) -> String {
    let configuration = configuration
        .replacen("127.0.0.1:0", &daemon.address().to_string(), 1)
        .replacen("127.0.0.1:0", &daemon.own_address(name).to_string(), 1)
        .replace("unix:", &format!("unix:{}/", daemon.folder().display()));
    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(daemon.folder().join(file), folder.path().join(file)).unwrap();
    }
    let file = write_configuration(folder.path(), &configuration);
    let ended = run(folder.path(), &["routes", "-c", file.to_str().unwrap(), name], |_| {});
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    ended.out
}

#[test]
fn every_line_of_curl_is_a_way_in_when_a_shell_runs_it() {
    let scene = Scene::new();
    let keys = |name: &str| {
        format!(
            "hosts = [\"{name}.example.test\", \"ported.test:9000\"]\nlisten = [\"127.0.0.1:0\", \"unix:it's {name}.sock\"]"
        )
    };
    for (name, table, path) in [
        ("cert", scene.bce("cert", &keys("cert")), "v1/certificate"),
        ("echo", scene.header("echo", &keys("echo")), "a"),
        ("cluster", scene.mtls("cluster", &keys("cluster")), "projects/"),
    ] {
        let tables = format!("[server]\nlisten = [\"127.0.0.1:0\", \"unix:shared.sock\"]\n{table}");
        let daemon = Daemon::start_in(scene.folder(), &tables, |_| {});
        let told = at_its_ports(&daemon, &tables, name);
        let lines: Vec<_> = told.lines().filter(|line| line.split(' ').any(|word| word == "curl")).collect();
        let lines: Vec<_> = lines.into_iter().filter(|line| !line.starts_with('#')).collect();
        // Own port and socket, host and path prefix, two names, the shared socket.
        assert_eq!(lines.len(), 7, "{told}");
        for line in lines {
            let before = scene.count();
            let line = line.replace("curl ", "curl -sS -m 20 -o /dev/null -w '%{http_code}' ") + path;
            let output =
                Command::new("sh").arg("-c").arg(&line).env_clear().env("PATH", env!("PATH")).output().unwrap();
            let status = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && status == "200", "{line}: {output:?}");
            assert_eq!(scene.count(), before + 1, "{line}");
            assert!(scene.accepted().target.trim_start_matches('/').starts_with(path), "{line}");
        }
    }
}

#[test]
fn programs_are_told_the_door_that_needs_least_of_them() {
    let shared = "[server]\nlisten = [\"127.0.0.1:8080\", \"[::1]:8080\"]\n";
    let plain = told(&format!("{shared}{}", route("my-cert", "")), &[]).out;
    for line in [
        "# my-cert: bce -> http://127.0.0.1:1",
        "curl http://my-cert.localhost:8080/",
        "curl http://127.0.0.1:8080/my-cert/",
        "export COUNTERSIGN_MY_CERT_URL=http://127.0.0.1:8080/my-cert",
        "requests.get(\"http://127.0.0.1:8080/my-cert/\")",
        "HttpRequest.newBuilder(URI.create(\"http://127.0.0.1:8080/my-cert/\"))",
        "await fetch(\"http://127.0.0.1:8080/my-cert/\")",
        "    proxy_pass http://127.0.0.1:8080;",
        "    proxy_set_header Host my-cert.localhost;",
        "    proxy_redirect http://my-cert.localhost/ /;",
    ] {
        assert!(plain.lines().any(|told| told == line), "{line}: {plain}");
    }
    assert!(plain.contains("my-cert.localhost must resolve") && !plain.contains("http_proxy"), "{plain}");
    assert_eq!(plain.matches("curl ").count(), 2, "{plain}");

    let keys = "hosts = [\"real.example.test\"]\nlisten = [\"127.0.0.1:8081\", \"unix:/run/cert.sock\"]";
    let full = told(&format!("{shared}{}", route("cert", keys)), &["cert"]).out;
    for line in [
        "export COUNTERSIGN_CERT_URL=http://127.0.0.1:8081",
        "export http_proxy=http://127.0.0.1:8080",
        "export no_proxy=127.0.0.1${no_proxy:+,$no_proxy}",
        "requests.get(\"http://real.example.test/\", proxies={\"http\": \"http://127.0.0.1:8080\"})",
        "java -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 -jar app.jar  # for http://real.example.test/",
        "http.get({ socketPath: \"/run/cert.sock\", host: \"localhost\", path: \"/\" })",
        "    proxy_pass http://127.0.0.1:8081;",
        "    proxy_set_header Host localhost;",
        "BceClientConfiguration(credentials=BceCredentials(\"any\", \"any\"), endpoint=b\"http://127.0.0.1:8081\")",
    ] {
        assert!(full.lines().any(|told| told == line), "{line}: {full}");
    }
}

#[test]
fn a_client_certificates_route_is_a_docker_host() {
    let scene = Scene::new();
    for (listen, host) in [
        ("[\"127.0.0.1:8081\", \"unix:/run/cluster.sock\"]", "unix:///run/cluster.sock"),
        ("[\"127.0.0.1:8081\"]", "tcp://127.0.0.1:8081"),
        ("[]", "tcp://127.0.0.1:8080/cluster"),
    ] {
        let ended = told(&scene.mtls("cluster", &format!("listen = {listen}")), &[]);
        assert!(ended.out.lines().any(|line| line == format!("export DOCKER_HOST={host}")), "{ended:?}");
    }
    let fetched = "[routes.swarm.swarm]\ncluster_id = \"c0123456789abcdef0123456789abcdef\"\n\
                   credentials = { access_key = \"ak\", secret_key = \"planted\" }\n";
    let fetched = told(fetched, &[]).out;
    assert!(fetched.starts_with("# swarm: swarm -> servers that it finds out\n"), "{fetched}");
    assert!(fetched.contains("export DOCKER_HOST=tcp://127.0.0.1:8080/swarm\n"), "{fetched}");
    assert!(!told(&route("cert", ""), &[]).out.contains("DOCKER_HOST"));
}

#[test]
fn what_cannot_be_known_or_is_not_open_to_all_is_said() {
    let unknown = told(&format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{}", route("cert", "")), &[]).out;
    assert!(unknown.contains("# PORT is chosen anew at every start"), "{unknown}");
    assert!(unknown.contains("curl http://127.0.0.1:PORT/cert/\n"), "{unknown}");

    let keys = "allow = [\"GET /v1/**\"]\ncallers = { token = \"planted\" }";
    let narrow = told(&route("cert", keys), &[]);
    assert!(narrow.out.contains("`allow`") && narrow.out.contains("curl -u me:TOKEN"), "{narrow:?}");
    assert!(!format!("{narrow:?}").contains("planted"), "{narrow:?}");

    // Whoever comes from another machine needs a name that is one of ours.
    let far = "[server]\nlisten = [\"192.0.2.1:8080\"]\nallow_remote = true\n";
    let keys = "callers = { net = [\"192.0.2.0/24\"] }";
    let nameless = told(&format!("{far}{}", route("cert", keys)), &[]).out;
    assert!(nameless.contains("No way in can be told") && !nameless.contains("curl "), "{nameless}");
    let named = told(&format!("{far}domains = [\"cs.example.test\"]\n{}", route("cert", keys)), &[]).out;
    assert!(
        named.contains("curl http://cert.cs.example.test:8080/\ncurl http://cs.example.test:8080/cert/\n"),
        "{named}"
    );
    assert!(named.contains("proxy_pass http://192.0.2.1:8080;"), "{named}");
}

#[test]
fn a_route_that_is_not_there_ends_with_2_and_those_that_are() {
    let both = route("one", "") + &route("two", "");
    let ended = told(&both, &["three"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.err.contains("the routes are one, two"), "{ended:?}");
    assert!(told(&both, &[]).out.contains("\n\n# two: bce"));
    let none = told("", &[]);
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""), "{none:?}");
    assert!(none.err.contains("no routes are configured"), "{none:?}");
}
