//! What every command says, as a person sees it: each `*.txt` beside this is what was typed, and what came back. With
//! `UPDATE=1` in the environment they are written anew.

#![allow(clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/daemon.rs"]
mod daemon;

use std::fmt::Write as _;
use std::path::Path;

use countersign::clock::Clock;
use countersign::demo::Stage;
use countersign::demo::certificates::{Authority, KeyFormat};
use secrecy::ExposeSecret;

use daemon::{Daemon, run, write_configuration};

/// Compares what the commands say with what stands in the file of this name; a `~` in a command is a space within a word.
/// Replacements make up for what is different each time, in this order.
fn compare(name: &str, folder: &Path, commands: &[&str], replacements: &[(String, &str)]) {
    let mut transcript = String::new();
    for line in commands {
        let words: Vec<_> = line.split(' ').map(|word| word.replace('~', " ")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let ended = run(folder, &words, |command| {
            command.env("BCE_AK", "AKEXAMPLE").env("TZ", "UTC");
        });
        let typed = line
            .split(' ')
            .map(|word| if word.contains('~') { format!("'{}'", word.replace('~', " ")) } else { word.into() });
        let typed: Vec<String> = typed.collect();
        let _ = write!(transcript, "$ countersign {}\n{}{}", typed.join(" "), ended.out, ended.err);
        if ended.code != Some(0) {
            let _ = writeln!(transcript, "[{}]", ended.code.unwrap_or(-1));
        }
        transcript.push('\n');
    }
    transcript = transcript.replace(folder.to_str().unwrap(), "FOLDER");
    for (found, instead) in replacements {
        transcript = transcript.replace(found, instead);
    }
    transcript = transcript.split_inclusive('\n').map(blurred).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name).with_extension("txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &transcript).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(transcript, expected, "what {name} says is not what {} has", path.display());
}

/// A line without the times, but for those that the test has set, and without the names of requests.
fn blurred(line: &str) -> String {
    let line = match line.rsplit_once(", ") {
        Some((before, age)) if age.ends_with(" ago\n") => format!("{before}, AGE ago\n"),
        _ => line.to_owned(),
    };
    if line.trim_start().starts_with("x-bce-date:2") && !line.contains("2026-01-02") {
        return "    x-bce-date:TIME\n".to_owned();
    }
    let word = |word: &str| {
        let name = word.trim_end_matches(|c: char| c.is_whitespace() || c == ',');
        let is_time = name.len() == 20 && name.ends_with('Z') && name.get(10..11) == Some("T");
        let is_set = ["2026-01-02", "4096"].iter().any(|set| name.starts_with(set));
        let is_id = name.len() >= 16 && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let end = word.strip_prefix(name).unwrap_or_default();
        match (is_time && !is_set, is_id) {
            (true, _) => format!("TIME{end}"),
            (_, true) => format!("ID{end}"),
            _ => word.to_owned(),
        }
    };
    line.split_inclusive(char::is_whitespace).map(word).collect()
}

/// No line is wider than a terminal, unless it is one word that cannot be broken.
fn assert_narrow(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name).with_extension("txt");
    for line in std::fs::read_to_string(path).unwrap().lines() {
        assert!(line.chars().count() <= 80, "{name}: {line}");
    }
}

const CERT: &str = r#"
[routes.cert]
upstream = "http://certificate.baidubce.com"
hosts = ["certificate.baidubce.com"]
listen = ["unix:cert.sock"]
allow = ["GET /v1/certificate/**"]

[routes.cert.bce]
credentials = { access_key = { env = "BCE_AK" }, secret_key = { file = "bce.sk" } }
"#;

/// A folder with a configuration and its secret.
fn folder(configuration: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_configuration(folder.path(), configuration);
    std::fs::write(folder.path().join("bce.sk"), "SKEXAMPLE").unwrap();
    folder
}

#[test]
fn help() {
    let folder = tempfile::tempdir().unwrap();
    let main = run(folder.path(), &["--help"], |_| {}).out;
    let (_, list) = main.split_once("Commands:\n").unwrap();
    let names = list.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let mut commands = vec!["--help".to_owned()];
    commands.extend(names.map(|line| format!("{} --help", line.split_whitespace().next().unwrap())));
    commands.extend(["providers", "frobnicate", "sign", "routes --nonsense"].map(str::to_owned));
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    compare("help", folder.path(), &commands, &[]);
    assert_narrow("help");
}

#[test]
fn configuration() {
    let folder = folder(CERT);
    let mistaken = CERT.replace("upstream", "upsteam").replace("secret_key", "secret_kee").replace("GET ", "GIT ");
    std::fs::write(folder.path().join("mistaken.toml"), mistaken).unwrap();
    std::fs::write(folder.path().join("dead.toml"), CERT.replace("bce.sk", "bce.skk").replace("BCE_AK", "BCE_A"))
        .unwrap();
    std::fs::write(folder.path().join("empty.toml"), "").unwrap();
    let commands = [
        "check -c countersign.toml",
        "check -c mistaken.toml",
        "check -c dead.toml",
        "check -c empty.toml",
        "check -c missing.toml",
        "check",
        "run -c mistaken.toml",
        "routes -c countersign.toml",
        "routes -c countersign.toml nonsense",
        "init countersign.toml",
        "init new.toml",
        "check -c new.toml",
    ];
    compare("configuration", folder.path(), &commands, &[]);
}

#[test]
fn sign() {
    let folder = folder(CERT);
    let commands = [
        "sign -c countersign.toml --at 2026-01-02T03:04:05Z http://cert.localhost:8080/v1/certificate?certName=test",
        "sign -c countersign.toml --at 2026-01-02T03:04:05Z --explain http://localhost:8080/cert/v1/certificate",
        "sign -c countersign.toml --at 2026-01-02T03:04:05Z --curl -H X-Id:~1 http://cert.localhost/v1/certificate",
        "sign -c countersign.toml http://cert.localhost:8080/v2/other",
        "sign -c countersign.toml http://unknown.localhost:8080/",
        "sign -c countersign.toml --at noon http://cert.localhost:8080/v1/certificate",
    ];
    compare("sign", folder.path(), &commands, &[]);
}

#[test]
fn import() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("a CA").unwrap();
    let client = authority.client("a client").unwrap();
    let reply = serde_json::json!({
        "ca": authority.pem(), "cert": client.certificate_pem(), "private_key": client.key_pem(KeyFormat::Pkcs8),
    });
    std::fs::write(folder.path().join("reply.json"), reply.to_string()).unwrap();
    std::fs::write(folder.path().join("other.json"), "{\"cert\": \"hunter2\"}").unwrap();
    let commands =
        ["import reply.json there", "import reply.json there", "import other.json elsewhere", "import gone.json ."];
    compare("import", folder.path(), &commands, &[]);
}

/// What the commands say that ask the running daemon, before and after a refused signature.
#[test]
fn status() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stage = runtime.block_on(Stage::start(Clock::system())).unwrap();
    let route = |name: &str, secret: &str| {
        format!(
            "[routes.{name}]\nupstream = \"http://{}\"\nclock = \"local\"\n[routes.{name}.bce]\n\
             credentials = {{ access_key = \"{}\", secret_key = \"{secret}\" }}\n",
            stage.certificates, stage.access_key.access_key
        )
    };
    let tables = [
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"unix:admin.sock\"\n".to_owned(),
        route("cert", stage.access_key.secret_key.expose_secret()),
        route("wrong", "hunter2"),
    ];
    let daemon = Daemon::start_in(tempfile::tempdir().unwrap(), &tables.concat(), |_| {});
    let place = daemon.address();
    let before = ["health -c countersign.toml", "last -c countersign.toml"];
    compare("status-before", daemon.folder(), &before, &[]);
    for name in ["cert", "wrong"] {
        let reply = daemon
            .exchange(format!("GET /v1/certificate HTTP/1.1\r\nHost: {name}.localhost\r\nConnection: close\r\n\r\n"));
        assert!(reply.starts_with(if name == "cert" { "HTTP/1.1 200" } else { "HTTP/1.1 4" }), "{reply}");
    }
    let commands = ["status -c countersign.toml", "last -c countersign.toml", "status -c countersign.toml nonsense"];
    let replacements = [
        (place.to_string(), "127.0.0.1:8080"),
        (stage.certificates.to_string(), "certificate.baidubce.com"),
        (stage.certificates.to_string().replace(':', "%3A"), "certificate.baidubce.com"),
        (stage.access_key.access_key.clone(), "AKEXAMPLE"),
    ];
    compare("status", daemon.folder(), &commands, &replacements);
    drop(daemon);
    let folder = folder("[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"unix:admin.sock\"\n");
    compare("status-after", folder.path(), &["status -c countersign.toml", "health -c countersign.toml"], &[]);
}
