//! Configuration files, good and bad, and what is said about them.
//!
//! `tests/config/NAME.toml` is the input, `NAME.err` what is said, a line a remark with warnings marked; no such file:
//! nothing is wrong. `UPDATE=1 cargo test --test config` writes them anew, and review reads the difference.

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign::config::{self, Config, Invalid};
use countersign::demo::certificates::{Authority, KeyFormat};
use countersign::provider;
use countersign::settings::BareSecrets;

#[test]
fn every_mistake_is_told_with_its_place_and_without_its_value() {
    let mut wrong = Vec::new();
    for file in files("tests/config") {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = Path::new(file.file_name().unwrap());
        let bare_secrets = match text.lines().next() {
            Some("# others can read this file") => BareSecrets::Refuse,
            Some("# its group can read this file") => BareSecrets::Warn,
            _ => BareSecrets::Accept,
        };
        let said = said(config::parse(&text, name, bare_secrets), name);
        assert!(!said.contains("hunter2"), "{} gives a secret away:\n{said}", name.display());
        let golden = file.with_extension("err");
        if std::env::var_os("UPDATE").is_some() {
            if said.is_empty() {
                let _ = std::fs::remove_file(&golden);
            } else {
                std::fs::write(&golden, &said).unwrap();
            }
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{}: expected\n{expected}but it said\n{said}", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_example_loads() {
    let files = files("config");
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let config = config::parse(&text, &file, BareSecrets::Refuse).unwrap_or_else(|invalid| panic!("{invalid}"));
        assert!(!config.routes.is_empty(), "{}", file.display());
    }
}

#[test]
fn every_example_passes_the_check_once_its_secrets_are_there() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let authority = Authority::new("example CA").unwrap();
    let client = authority.client("example client").unwrap();
    let cluster = at(".docker/aliyun/ClusterName");
    std::fs::create_dir_all(&cluster).unwrap();
    std::fs::write(cluster.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(cluster.join("cert.pem"), client.certificate_pem()).unwrap();
    std::fs::write(cluster.join("key.pem"), client.key_pem(KeyFormat::Pkcs8)).unwrap();
    std::fs::write(at("git-token"), "token\n").unwrap();
    for file in files("config") {
        let text = std::fs::read_to_string(&file).unwrap();
        for secret in references(&text, "file") {
            std::fs::write(at(secret), "secret\n").unwrap();
        }
        // Beside the example, as its relative paths want it.
        let copy = at("countersign.toml");
        std::fs::copy(&file, &copy).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.arg("check").arg("-c").arg(copy).env("HOME", home.path()).env("CREDENTIALS_DIRECTORY", home.path());
        command
            .envs(references(&text, "env").map(|name| (name, "secret")))
            .env("SSL_CERT_FILE", cluster.join("ca.pem"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
        assert!(output.status.success(), "{}: {said:?}", file.display());
        assert!(said[0].lines().all(|line| line.ends_with(": ok")), "{said:?}");
    }
}

/// What follows `{ KIND = "` in a configuration.
fn references<'t>(text: &'t str, kind: &str) -> impl Iterator<Item = &'t str> {
    let start = format!("{{ {kind} = \"");
    text.lines().flat_map(move |line| {
        let found: Vec<_> = line.split(&start).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        found
    })
}

#[test]
fn the_long_example_explains_every_key() {
    let contract = include_str!("config/design.toml");
    let example = include_str!("../config/countersign.toml");
    let keys = contract.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let keys = keys.chain(provider::ALL.iter().flat_map(|provider| provider.keys).map(|key| key.name));
    for key in keys.chain(["pin", "server_name", "bundle", "identity", "security_token"]) {
        let is_there = example.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == key);
        assert!(is_there, "{key}");
    }
}

fn said(read: Result<Config, Invalid>, name: &Path) -> String {
    match read {
        Ok(config) => {
            let warnings = config.warnings.iter();
            warnings.fold(String::new(), |said, remark| said + "warning: " + &remark.of(name) + "\n")
        }
        Err(invalid) => format!("{invalid}\n"),
    }
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let files = files.map(|entry| entry.expect("its entries can be listed").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    files.sort();
    files
}
