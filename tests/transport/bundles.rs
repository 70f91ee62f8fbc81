//! Client identities out of files and replies: those that work, those that cannot, and those that end soon.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::clock::Clock;
use countersign::demo::certificates::{Authority, KeyFormat};
use rcgen::{CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};

use super::caller;
use super::sessions::{server, who};
use crate::daemon::{Daemon, write_configuration};

/// A certificate and a key in PEM.
type Pair = (String, String);

fn pair(authority: &Authority, name: &str) -> Pair {
    let client = authority.client(name).unwrap();
    (client.certificate_pem(), client.key_pem(KeyFormat::Traditional))
}

fn write(folder: &Path, name: &str, reply: &Value) {
    std::fs::write(folder.join(name), reply.to_string()).unwrap();
}

fn configuration(upstream: &str, routes: &[(&str, &str)]) -> String {
    let mut configuration = "server = { listen = [\"127.0.0.1:0\"], extra_ca = [\"extra.pem\"] }\n".to_owned();
    for (name, tls) in routes {
        writeln!(configuration, "[routes.{name}]\nupstream = \"{upstream}\"\ntls = {{ {tls} }}\n[routes.{name}.mtls]")
            .unwrap();
    }
    configuration
}

/// What `check` writes to standard error, its folder left out, and its exit code.
fn check(folder: &Path, configuration: &str) -> (Option<i32>, String) {
    let file = write_configuration(folder, configuration);
    let output = Command::new(env!("CARGO_BIN_EXE_countersign")).arg("check").arg("-c").arg(file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said.replace(&format!("{}/", folder.display()), ""))
}

#[test]
fn an_identity_out_of_a_reply_is_shown_to_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("ours").unwrap(), Authority::new("a stranger").unwrap());
    std::fs::write(folder.path().join("extra.pem"), stranger.pem()).unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let [first, second, third, fourth] = ["one", "two", "three", "four"].map(|name| pair(&authority, name));
    write(folder.path(), "alibaba.json", &json!({ "ca": authority.pem(), "cert": first.0, "key": first.1 }));
    let huawei = json!({
        "ca": authority.pem().replace('\n', "\\n"), "cert": first.0.replace('\n', "\r\n"), "private_key": first.1,
        "target_mgmt_cert": second.0, "target_mgmt_private_key": second.1.trim_end(),
        "target_data_cert": third.0, "target_data_private_key": STANDARD.encode(&third.1),
    });
    write(folder.path(), "huawei.json", &huawei);
    let baidu = json!({ "certserverdata": fourth.0, "certprivatekey": fourth.1, "certlinkdata": authority.pem() });
    write(folder.path(), "baidu.json", &baidu);
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let upstream = server(&identity, &authority, rustls::ALL_VERSIONS, |mut conn| {
        while conn.request().is_some() {
            let who = who(&conn);
            conn.ok(who);
        }
    });
    let routes = [
        ("alibaba", "bundle = \"alibaba.json\"", "one"),
        ("ca-only", "bundle = \"alibaba.json\", verify = \"ca-only\"", "one"),
        ("source", "bundle = \"huawei.json\", identity = \"source\"", "one"),
        ("mgmt", "bundle = \"huawei.json\", identity = \"target_mgmt\"", "two"),
        ("data", "bundle = \"huawei.json\", identity = \"target_data\"", "three"),
        ("baidu", "bundle = \"baidu.json\", ca = \"ca.pem\"", "four"),
    ];
    let configuration = configuration(&upstream.url(), &routes.map(|(name, tls, _)| (name, tls)));
    let (code, said) = check(folder.path(), &configuration);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    let mut http = caller(&daemon);
    for (name, _, expected) in routes {
        http.send(format!("GET /{name}/ HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(http.reply().text(), expected, "{name}");
    }
}

#[test]
fn a_reply_that_makes_no_identity_is_told_where_it_is_named_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours").unwrap();
    std::fs::write(folder.path().join("extra.pem"), authority.pem()).unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let ((cert, key), (_, others)) = (pair(&authority, "one"), pair(&authority, "two"));
    write(folder.path(), "whole.json", &json!({ "ca": authority.pem(), "cert": cert, "key": key }));
    write(folder.path(), "no-ca.json", &json!({ "cert": cert, "key": key }));
    write(folder.path(), "others.json", &json!({ "cert": cert, "key": others }));
    std::fs::write(folder.path().join("cert.pem"), &cert).unwrap();
    std::fs::write(folder.path().join("others.pem"), &others).unwrap();
    std::fs::write(folder.path().join("text.json"), "hunter2").unwrap();
    std::fs::write(folder.path().join("large.json"), vec![b' '; 5 << 20]).unwrap();
    let cases = [
        (
            "bundle = \"whole.json\", ca = \"ca.pem\"",
            "37: `tls.ca`: the bundle brings a CA as well: leave this one out",
        ),
        (
            "bundle = \"no-ca.json\", verify = \"ca-only\"",
            "18: `tls.bundle`: no-ca.json: no CA, and without one `verify = \"ca-only\"` trusts nobody: name it in `tls.ca`",
        ),
        (
            "bundle = \"others.json\"",
            "18: `tls.bundle`: others.json: `key`: not the key of the certificate: its public half is another",
        ),
        ("bundle = \"text.json\"", "18: `tls.bundle`: text.json: not well-formed JSON at line 1, column 1"),
        ("bundle = \"large.json\"", "18: `tls.bundle`: cannot read large.json: larger than 4194304 octets"),
        ("bundle = \"none.json\"", "18: `tls.bundle`: cannot read none.json: No such file or directory (os error 2)"),
        (
            "bundle = \"whole.json\", identity = \"target_data\"",
            "18: `tls.bundle`: whole.json: no certificate with its key: expected `target_data_cert` with \
             `target_data_private_key`; choose the identity `source`",
        ),
        (
            "cert = \"cert.pem\", key = \"others.pem\"",
            "34: `tls.key`: others.pem: not the key of the certificate: its public half is another",
        ),
        (
            "cert = \"others.pem\", key = \"cert.pem\"",
            "16: `tls.cert`: others.pem: no certificate in PEM\ncountersign.toml:4:36: `tls.key`: cert.pem: no private key in PEM (PKCS#8, PKCS#1 or SEC1)",
        ),
    ];
    for (tls, expected) in cases {
        let (code, said) = check(folder.path(), &configuration("https://127.0.0.1:1", &[("up", tls)]));
        assert_eq!((code, said.as_str()), (Some(78), format!("countersign.toml:4:{expected}\n").as_str()), "{tls}");
    }
}

#[test]
fn what_ends_within_a_month_is_warned_about_at_start_and_by_check() {
    const DAY: Duration = Duration::from_secs(86_400);
    let folder = tempfile::tempdir().unwrap();
    let now = u64::try_from(Clock::system().now().seconds()).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(now + 3600);
    let issue = |name: &str, until: SystemTime| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = until.into();
        let certificate = params.self_signed(&key).unwrap().pem();
        let reply = json!({ "ca": certificate, "cert": certificate, "key": key.serialize_pem() });
        write(folder.path(), &format!("{name}.json"), &reply);
        std::fs::write(folder.path().join(format!("{name}.pem")), &certificate).unwrap();
        std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate
    };
    let good = issue("good", now + 31 * DAY);
    let soon = issue("soon", now + 5 * DAY);
    issue("over", now - 3 * DAY);
    std::fs::write(folder.path().join("both.pem"), soon + &good).unwrap();
    std::fs::write(folder.path().join("extra.pem"), &good).unwrap();
    let routes = [
        ("good", "ca = \"good.pem\", cert = \"good.pem\", key = \"good.key\""),
        ("rotated", "ca = \"both.pem\", cert = \"good.pem\", key = \"good.key\""),
        ("soon", "ca = \"good.pem\", cert = \"soon.pem\", key = \"soon.key\""),
        ("over", "ca = \"soon.pem\", cert = \"over.pem\", key = \"over.key\""),
        ("bundle", "bundle = \"over.json\""),
        ("unused", "bundle = \"soon.json\", verify = \"none\""),
    ];
    let configuration = configuration("https://127.0.0.1:1", &routes);
    let (code, said) = check(folder.path(), &configuration);
    let warned: Vec<_> = said
        .lines()
        .filter(|line| line.contains("expire"))
        .map(|line| {
            let (before, after) = line.split_once(" on ").unwrap();
            let (place, before) = before.split_once(": ").and_then(|(_, rest)| rest.split_once(": ")).unwrap();
            assert!(place.starts_with("countersign.toml:"), "{line}");
            format!("{before} {}", after.split_once(", ").unwrap().1)
        })
        .collect();
    let expected = [
        "`tls.cert`: soon.pem expires in 5 days: have it renewed",
        "`tls.cert`: over.pem expired 2 days ago: have it renewed",
        "`tls.ca`: the CA of soon.pem expires in 5 days: have it renewed",
        "`tls.bundle`: over.json expired 2 days ago: have it renewed",
        "`tls.bundle`: the CA of over.json expired 2 days ago: have it renewed",
        "`tls.bundle`: soon.json expires in 5 days: have it renewed",
    ];
    assert_eq!((code, warned), (Some(0), expected.map(str::to_owned).to_vec()), "{said}");
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    let logged = daemon.log().lines().filter(|line| line.contains("WARN") && line.contains(" expire")).count();
    assert_eq!(logged, expected.len(), "{}", daemon.log());
}
