//! What the commands print, and how they end.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use secrecy::ExposeSecret;

use crate::daemon::{Daemon, Ended, run, write_configuration};
use crate::ports::reserve;
use crate::scene::{Scene, ask};

/// Runs a command on a configuration of its own.
fn run_with(command: &str, configuration: &str) -> (tempfile::TempDir, Ended) {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), configuration);
    let ended = run(folder.path(), &[command, "-c", file.to_str().unwrap()], |_| {});
    (folder, ended)
}

/// A route whose secret is referred to like this; its reference stands in line 4, column 49.
fn referring_to(secret: &str) -> String {
    format!(
        "[routes.cert]\nupstream = \"http://127.0.0.1:1\"\n[routes.cert.bce]\n\
         credentials = {{ access_key = \"ak\", secret_key = {secret} }}\n[server]\nlisten = [\"127.0.0.1:0\"]\n"
    )
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["nonsense"],
        &["run", "--nonsense"],
        &["run", "-c"],
        &["run", "one", "two"],
        &["check", "--no-sandbox"],
    ] {
        let ended = run(folder.path(), arguments, |_| {});
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.out.is_empty() && ended.err.contains("--help"), "{arguments:?}: {ended:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["check", "-h"]] {
        let ended = run(folder.path(), arguments, |_| {});
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        assert!(ended.out.contains("countersign") && ended.err.is_empty(), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), "server.listen = [\"127.0.0.1:0\"]\n");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("ulimit -S -n 64; exec \"$0\" run -c \"$1\"")
        .arg(env!("CARGO_BIN_EXE_countersign"))
        .arg(file);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("serving")));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_whitespace().collect();
    assert_eq!(numbers.first(), numbers.get(1), "{limits}");
}

#[test]
fn a_wrong_configuration_ends_with_78_and_every_mistake_with_its_place() {
    let configuration = "[server]\nlisten = [\"nowhere\"]\n[routes.cert]\nupstrem = \"http://127.0.0.1:1\"\n\
                         [routes.cert.bce]\ncredentials = { access_key = \"ak\", secret_kye = \"planted\" }\n\
                         expires_in = \"planted\"\n";
    for command in ["run", "check"] {
        let (folder, ended) = run_with(command, configuration);
        assert_eq!(ended.code, Some(78), "{command}: {ended:?}");
        assert!(ended.out.is_empty(), "{command}: {ended:?}");
        let start = format!("{}:", folder.path().join("countersign.toml").display());
        let places: Vec<_> = ended
            .err
            .lines()
            .map(|line| {
                let place = line.strip_prefix(&start).unwrap_or_else(|| panic!("no place: {line}"));
                place.split_once(": ").unwrap().0.to_owned()
            })
            .collect();
        assert_eq!(places, ["2:11", "3:9", "4:1", "6:1", "6:36", "7:14"], "{command}: {}", ended.err);
        for help in ["did you mean `upstream`?", "did you mean `secret_key`?", "127.0.0.1:8080"] {
            assert!(ended.err.contains(help), "{command}: {help}: {}", ended.err);
        }
        assert!(!ended.err.contains("planted"), "{command}: {}", ended.err);
    }
}

#[test]
fn a_check_tells_of_dead_references_beside_other_mistakes() {
    let configuration = referring_to("{ env = \"NO_SUCH_VARIABLE\" }").replace("[server]", "[server]\nworker = 1");
    let (folder, ended) = run_with("check", &configuration);
    let file = folder.path().join("countersign.toml");
    let expected = format!(
        "{0}:4:49: `routes.cert.bce.credentials.secret_key`: the environment variable NO_SUCH_VARIABLE is not set\n\
         {0}:6:1: unknown key `worker` in `server`: did you mean `workers`?\n",
        file.display()
    );
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(78), "", expected.as_str()));
}

#[test]
fn a_check_reads_trust_anchors_that_no_route_uses() {
    let (_folder, ended) = run_with("check", "[server]\nextra_ca = [\"missing.pem\"]\n");
    assert!(ended.code == Some(78) && ended.err.contains(":2:13: `server.extra_ca`: cannot read"), "{ended:?}");
}

#[test]
fn a_configuration_that_is_not_there_ends_with_78_and_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    // A file in the working directory could run commands.
    write_configuration(folder.path(), "");
    for command in ["run", "check"] {
        let ended = run(folder.path(), &[command], |_| {});
        assert_eq!(ended.code, Some(78), "{ended:?}");
        assert!(ended.err.contains("/etc/countersign/countersign.toml") && ended.err.contains("-c"), "{ended:?}");
        let ended = run(folder.path(), &[command, "-c", "missing.toml"], |_| {});
        assert_eq!(ended.code, Some(78), "{ended:?}");
        assert!(ended.err.contains("missing.toml"), "{ended:?}");
    }
}

#[test]
fn the_configuration_is_found_where_it_belongs() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str, route: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, scene.bce(route, "")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let finds = |arguments: &[&str], adjust: &dyn Fn(&mut Command), route: &str| {
        let ended = run(folder.path(), arguments, adjust);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.out.starts_with(&format!("{route} ")), "{ended:?}");
    };
    at(".config/countersign/countersign.toml", "home");
    at("xdg/countersign/countersign.toml", "xdg");
    let (variable, given) = (at("variable.toml", "variable"), at("given.toml", "given"));
    let xdg = |command: &mut Command| {
        command.env("XDG_CONFIG_HOME", folder.path().join("xdg"));
    };
    let named = |command: &mut Command| {
        xdg(command);
        command.env("COUNTERSIGN_CONFIG", &variable);
    };
    finds(&["check"], &|_| {}, "home");
    finds(&["check"], &xdg, "xdg");
    finds(&["check"], &named, "variable");
    finds(&["check", "--config", given.to_str().unwrap()], &named, "given");
}

#[test]
fn a_secret_that_cannot_be_read_now_ends_run_with_1_and_check_with_78() {
    for (reference, part) in [
        ("{ env = \"NOT_SET\" }", "the environment variable NOT_SET is not set"),
        ("{ file = \"missing\" }", "missing: No such file or directory"),
        ("{ credential = \"missing\" }", "LoadCredential="),
        ("{ command = [\"sh\", \"-c\", \"echo planted; exit 3\"] }", "sh ended with exit status: 3"),
        ("{ command = [\"no-such-program\"] }", "cannot run no-such-program"),
        ("{ command = [\"true\"] }", "the secret is empty"),
    ] {
        let (folder, ended) = run_with("run", &referring_to(reference));
        let file = folder.path().join("countersign.toml");
        assert_eq!(ended.code, Some(1), "{reference}: {ended:?}");
        let place = format!("{}:4:49: ", file.display());
        assert!(ended.err.contains(&place) && ended.err.contains(part), "{reference}: {ended:?}");
        assert!(!ended.err.contains("serving") && ended.out.is_empty(), "{reference}: {ended:?}");
        let ended = run(folder.path(), &["check", "-c", file.to_str().unwrap()], |_| {});
        assert_eq!(ended.code, Some(78), "{reference}: {ended:?}");
        assert!(
            ended.err.lines().any(|line| line.starts_with(&place) && line.contains(part)),
            "{reference}: {ended:?}"
        );
        assert_eq!(ended.out, "cert  bce -> http://127.0.0.1:1: not usable\n", "{reference}");
        assert!(!ended.err.contains("planted"), "{reference}: {ended:?}");
    }
}

#[test]
fn everything_that_cannot_be_used_is_said_at_once() {
    let tables = "[server]\nlisten = [\"127.0.0.1:0\"]\n\
                  [routes.one]\nupstream = \"https://127.0.0.1:1\"\n[routes.one.tls]\nca = \"no-ca\"\ncert = \"no-cert\"\nkey = \"no-key\"\n\
                  [routes.one.header]\nheaders = { A = { env = \"NO_A\" }, B = { file = \"no-b\" } }\n\
                  [routes.two]\nupstream = \"http://127.0.0.1:1\"\ncallers = { token = { env = \"NO_TOKEN\" } }\n[routes.two.bce]\n\
                  credentials = { access_key = { env = \"NO_KEY\" }, secret_key = { env = \"NO_SECRET\" } }\n";
    for (command, code) in [("run", 1), ("check", 78)] {
        let (_folder, ended) = run_with(command, tables);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        for part in ["no-ca", "no-cert", "no-key", "NO_A", "no-b", "NO_TOKEN", "NO_KEY", "NO_SECRET"] {
            assert_eq!(ended.err.lines().filter(|line| line.contains(part)).count(), 1, "{part}: {}", ended.err);
        }
    }
}

#[test]
fn an_address_in_use_ends_run_with_1_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listening = |listen: &str| referring_to("\"sk\"").replace("\"127.0.0.1:0\"", listen);
    let in_use = format!("cannot listen on 127.0.0.1:{port}: another process does; stop it, or choose another address");
    let (_folder, ended) = run_with("run", &listening(&format!("\"127.0.0.1:0\", \"127.0.0.1:{port}\"")));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains(&in_use) && !ended.err.contains("serving"), "{ended:?}");
    let admin = format!("{}[admin]\nlisten = \"127.0.0.1:{port}\"\n", referring_to("\"sk\""));
    let (_folder, ended) = run_with("run", &admin);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains(&in_use) && !ended.err.contains("serving"), "{ended:?}");
    let (_folder, ended) = run_with("run", &listening("\"unix:countersign.toml\""));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("the file exists and is no socket"), "{ended:?}");
    let (_folder, ended) = run_with("run", &listening("\"unix:no/such/folder.sock\""));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("No such file or directory"), "{ended:?}");
}

#[test]
fn check_says_a_line_a_route_and_warns_aside() {
    let scene = Scene::new();
    let folder = scene.folder();
    let tables = [scene.all(""), scene.bce_to("certificate.example.com", "abroad", "")];
    let file = write_configuration(folder.path(), &tables.concat());
    let ended = run(folder.path(), &["check", "-c", file.to_str().unwrap()], |_| {});
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let expected = format!(
        "cert     bce -> http://{}: ok\necho     header -> https://{}: ok\ncluster  mtls -> https://{}: ok\n\
         abroad   bce -> http://certificate.example.com: ok\n",
        scene.stage.certificates, scene.stage.echo, scene.stage.cluster
    );
    assert_eq!(ended.out, expected);
    let warning = format!("warning: {}:", file.display());
    assert!(ended.err.starts_with(&warning) && ended.err.contains("does not encrypt"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
}

#[test]
fn a_live_check_reaches_every_server_and_says_what_stands_in_the_way() {
    let scene = Scene::new();
    let folder = scene.folder();
    let ((ours, _ours), (gone, _gone)) = (reserve(), reserve());
    let good = scene.all("");
    let check = |text: &str| {
        let file = write_configuration(folder.path(), &format!("server.listen = [\"{ours}\"]\n{text}"));
        run(folder.path(), &["check", "--live", "-c", file.to_str().unwrap()], |_| {})
    };
    let ended = check(&good);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (name, address) in
        [("cert", scene.stage.certificates), ("echo", scene.stage.echo), ("cluster", scene.stage.cluster)]
    {
        assert!(ended.out.lines().any(|line| line.starts_with(name) && line.ends_with(": ok")), "{}", ended.out);
        let answers =
            |line: &str| line.starts_with("  good  http") && line.contains(&format!("{address}: answers after"));
        assert!(ended.out.lines().any(answers), "{name}: {}", ended.out);
    }
    assert!(ended.out.contains("its clock agrees with this machine's"), "{}", ended.out);
    assert!(!ended.out.contains(scene.stage.access_key.secret_key.expose_secret()));

    let troubles = [
        (scene.bce_to(&gone.to_string(), "gone", ""), "cannot be reached"),
        (scene.bce_to(&ours.to_string(), "round", ""), "one of countersign's own listeners"),
        (scene.header("stranger", "").replace("ca = \"ca.pem\"", "server_name = \"elsewhere.test\""), "TLS with"),
    ];
    for (route, trouble) in &troubles {
        let ended = check(&format!("{good}{route}"));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let lines: Vec<_> = ended.out.lines().filter(|line| line.starts_with("  BAD ")).collect();
        assert!(matches!(lines.as_slice(), [line] if line.contains(trouble)), "{trouble}: {}", ended.out);
    }
}

#[test]
fn providers_are_listed_with_their_keys() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["providers"], |_| {});
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.out.lines().all(|line| line.chars().count() <= 80), "{}", ended.out);
    let words = ended.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for registration in countersign::provider::ALL {
        assert!(ended.out.contains(&format!("\n{}: ", registration.name)) || ended.out.starts_with(registration.name));
        assert!(words.contains(&format!("{}: {}", registration.name, registration.summary)), "{}", ended.out);
        for key in registration.keys {
            assert!(ended.out.contains(&format!("\n  {}", key.name)), "{}: {}", key.name, ended.out);
            assert!(words.contains(key.default), "{}: {}", key.name, ended.out);
        }
    }
}

#[test]
fn secrets_come_from_wherever_they_are_kept_and_are_never_shown() {
    let scene = Scene::new();
    let folder = scene.folder();
    let token = scene.stage.token.expose_secret();
    let key = &scene.stage.access_key;
    let secret_key = key.secret_key.expose_secret();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("bare", token);
    write("newline", &format!("{token}\n"));
    write("windows", &format!("{token}\r\n"));
    write("sk", &format!("{secret_key}\n"));
    std::fs::create_dir(folder.path().join("credentials")).unwrap();
    write("credentials/token", &format!("{token}\n"));
    let mut tables = String::from("[server]\nlisten = [\"127.0.0.1:0\"]\n[log]\nlevel = \"trace\"\nquery = true\n");
    let references = [
        ("here", format!("\"{token}\"")),
        ("env", "{ env = \"PLANTED_TOKEN\" }".to_owned()),
        ("file", "{ file = \"bare\" }".to_owned()),
        ("newline", "{ file = \"newline\" }".to_owned()),
        ("windows", "{ file = \"DIR/windows\" }".to_owned()),
        ("systemd", "{ credential = \"token\" }".to_owned()),
        ("command", "{ command = [\"cat\", \"DIR/newline\"], ttl = \"1h\" }".to_owned()),
    ];
    for (name, reference) in &references {
        tables += &scene.header(name, "").replace(&format!("\"{token}\""), reference);
    }
    tables += &scene.bce("cert", "callers = { token = { env = \"PLANTED_CALLERS_TOKEN\" } }").replace(
        &format!("access_key = \"{}\", secret_key = \"{secret_key}\"", key.access_key),
        "access_key = { env = \"PLANTED_AK\" }, secret_key = { file = \"sk\" }",
    );
    let credentials = folder.path().join("credentials");
    let mut daemon = Daemon::start_in(folder, &tables, |command| {
        command.env("PLANTED_TOKEN", token).env("PLANTED_AK", &key.access_key);
        command.env("PLANTED_CALLERS_TOKEN", "open sesame").env("CREDENTIALS_DIRECTORY", credentials);
    });
    for (name, _) in &references {
        let head = format!("GET /a?b HTTP/1.1\nHost: {name}.localhost");
        assert_eq!(ask(daemon.connect(), &head).passed_on().status, 200, "{name}");
        assert_eq!(scene.accepted().site, "echo", "{name}");
    }
    let head = "GET /v1/certificate HTTP/1.1\nHost: cert.localhost\nAuthorization: Bearer open sesame";
    assert_eq!(ask(daemon.connect(), head).passed_on().status, 200);
    let authorization = scene.accepted().headers["authorization"].to_str().unwrap().to_owned();
    let signature = authorization.rsplit('/').next().unwrap();
    let refused = ask(daemon.connect(), &head.replace("sesame", "barley")).refused();
    assert_eq!(refused.code, "caller_denied");
    ask(daemon.connect(), &head.replace("cert.localhost", "nobody.localhost")).refused();
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let log = daemon.log();
    assert!(log.contains("route=\"newline\"") && log.contains("/a?b"), "{log}");
    for planted in [token, secret_key, "sesame", "barley", signature] {
        assert!(!log.contains(planted), "{log}");
    }
}

#[test]
fn nothing_planted_is_printed_whatever_is_wrong() {
    for (command, secret) in [
        (
            "a misspelt key",
            "[routes.a]\nupstream = \"http://127.0.0.1\"\ntokem = \"planted\"\n[routes.a.header]\nheaders = { A = \"planted\" }\n",
        ),
        ("syntax", "[routes.a.header]\nheaders = { A = \"planted\n"),
        (
            "a secret as a name",
            "[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.header]\nheaders = { \"planted secret\" = 1 }\n",
        ),
        ("a secret as a route", "[routes.\"planted secret\"]\nupstream = \"http://127.0.0.1\"\n"),
        (
            "a secret in the upstream",
            "[routes.a]\nupstream = \"http://user:planted@127.0.0.1\"\n[routes.a.header]\nheaders = { A = \"planted\" }\n",
        ),
        ("a secret in the proxy", "[server]\nproxy = \"http://user:planted@127.0.0.1:99999\"\n"),
        (
            "a line break in it",
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.header]\nheaders = { A = \"planted\\r\\nB: 1\" }\n",
        ),
        (
            "no header's octets",
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.bce]\ncredentials = { access_key = \"planted/\", secret_key = \"planted\" }\n",
        ),
        (
            "an empty one",
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.bce]\ncredentials = { access_key = \"planted\", secret_key = \"\" }\n",
        ),
        (
            "a table for it",
            "[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.header]\nheaders = { A = { enw = \"planted\" } }\n",
        ),
    ] {
        for verb in ["run", "check"] {
            let (_folder, ended) = run_with(verb, secret);
            assert!(matches!(ended.code, Some(1 | 78)), "{verb} with {command}: {ended:?}");
            assert!(!ended.err.is_empty(), "{verb} with {command}");
            assert!(
                !ended.err.contains("planted") && !ended.out.contains("planted"),
                "{verb} with {command}: {ended:?}"
            );
        }
    }
}

#[test]
fn a_bare_secret_is_taken_only_from_a_file_that_is_closed_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), &referring_to("\"planted\""));
    for (mode, code, said) in [(0o600, 0, ""), (0o640, 0, "its group can read"), (0o644, 78, "chmod 600")] {
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        let ended = run(folder.path(), &["check", "-c", file.to_str().unwrap()], |_| {});
        assert_eq!(ended.code, Some(code), "{mode:o}: {ended:?}");
        assert!(ended.err.contains(said) && !ended.err.contains("planted"), "{mode:o}: {ended:?}");
    }
}

#[test]
fn a_signal_right_after_the_start_does_not_wait_for_the_drain_timeout() {
    let scene = Scene::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        let mut daemon = scene.start(&scene.bce("cert", "listen = [\"unix:cert.sock\"]"));
        let began = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}:\n{}", began.elapsed(), daemon.log());
    }
}

#[test]
fn a_line_a_request_shows_the_query_only_where_that_was_asked_for() {
    let scene = Scene::new();
    for (keys, shown) in [("", (true, false)), ("query = true", (true, true)), ("access = false", (false, false))] {
        let mut daemon = scene.start(&format!("[log]\n{keys}\n{}", scene.bce("cert", "")));
        ask(daemon.connect(), "GET /v1/certificate?token=planted HTTP/1.1\nHost: cert.localhost").passed_on();
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
        let log = daemon.log();
        assert_eq!((log.contains("/v1/certificate"), log.contains("planted")), shown, "{log}");
    }
}

#[test]
fn a_long_wait_says_what_is_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let keys = r#"{"AccessKeyId": "ak", "SecretAccessKey": "planted"}"#;
    std::fs::write(folder.path().join("keys.json"), keys).unwrap();
    let table = "[routes.cert]\nupstream = \"http://127.0.0.1:9\"\n[routes.cert.bce]\n\
        credentials = { source = \"command\", command = [\"sh\", \"-c\", \"sleep 2; cat DIR/keys.json\"] }\n";
    let file = write_configuration(folder.path(), table);
    let arguments = ["sign", "-c", file.to_str().unwrap(), "http://cert.localhost/"];
    let ended = run(folder.path(), &arguments, |_| {});
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.err, "countersign: waiting for the route's credential …\n");
    let ended = run(folder.path(), &["check", "--live", "-c", file.to_str().unwrap()], |_| {});
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.err.starts_with("countersign: waiting for what the route \"cert\" needs from others …\n"),
        "{ended:?}"
    );
}
