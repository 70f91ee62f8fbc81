//! What can go wrong before.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use countersign::demo::certificates::Authority;
use serde_json::json;

use crate::daemon::{run, write_configuration};
use crate::evidence::{Evidence, forms};
use crate::routes::{mark, secret};

#[test]
fn a_start_that_fails_tells_no_secret() {
    let secret = secret("Start");
    let encoded = BASE64_STANDARD.encode(format!("not a key: {secret}"));
    let route = |lines: &str| format!("[routes.a]\nupstream = \"https://127.0.0.1:1\"\n{lines}\n");
    let bce = |reference: &str| {
        route(&format!("[routes.a.bce]\ncredentials = {{ access_key = \"ak\", secret_key = {reference} }}"))
    };
    let bearer = |reference: &str| route(&format!("[routes.a.bearer]\ntoken = {reference}"));
    let mtls = |keys: &str| route(&format!("[routes.a.tls]\n{keys}\n[routes.a.mtls]"));
    let mut evidence = Evidence::default();
    for (name, configuration) in [
        ("no TOML", format!("[routes.a.bearer]\ntoken = \"{secret}\" oops \"{secret}\"\n")),
        ("an open string", format!("[routes.a.bearer]\ntoken = \"{secret}\n")),
        ("a misspelt key", bce("\"x\"").replace("secret_key", "secret_kye").replace("\"x\"", &format!("\"{secret}\""))),
        ("a secret as a key", format!("[routes.a]\n\"{secret}\" = 1\n")),
        ("a secret as a table", format!("[\"{secret}\"]\na = 1\n")),
        ("a secret where a number is wanted", format!("[limits]\nconnections = \"{secret}\"\n")),
        ("a secret where an address is wanted", format!("[server]\nlisten = [\"{secret}\"]\n")),
        (
            "a secret in an upstream",
            format!("[routes.a]\nupstream = \"https://u:{secret}@h\"\n[routes.a.bearer]\ntoken = \"x\"\n"),
        ),
        ("a secret in a proxy", format!("[server]\nproxy = \"http://u:{secret}@h:99999\"\n")),
        (
            "a proxy of the environment",
            format!(
                "[server]\nlisten = [\"127.0.0.1:0\"]\nproxy = \"env\"\n{}",
                bearer("{ env = \"SECRET\" }").replace("127.0.0.1:1", "192.0.2.1")
            ),
        ),
        ("octets that no header takes", bearer("{ env = \"SECRET_LINES\" }")),
        ("an empty file", bearer("{ file = \"empty\" }")),
        ("octets that are no text", bce("{ file = \"binary\" }")),
        ("a folder", bce("{ file = \".\" }")),
        ("a failing command", bce("{ command = [\"sh\", \"-c\", \"cat secret; exit 3\"] }")),
        ("a command that says too much", bearer("{ command = [\"sh\", \"-c\", \"cat secret; echo; cat secret\"] }")),
        ("an argument of a command", bce(&format!("{{ command = [\"no-such-program\", \"{secret}\"] }}"))),
        ("a key that is none", mtls("cert = \"cert.pem\"\nkey = \"key.pem\"")),
        ("a certificate that is none", mtls("cert = \"key.pem\"\nkey = \"secret\"")),
        ("a bundle that is none", mtls("bundle = \"bundle.json\"")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
        let authority = Authority::new("a test's").unwrap();
        write("cert.pem", authority.client("client").unwrap().certificate_pem().as_bytes());
        write("key.pem", format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n").as_bytes());
        write("bundle.json", json!({ "cert": secret, "key": encoded, "privateKey": secret }).to_string().as_bytes());
        write("secret", secret.as_bytes());
        write("binary", &[secret.as_bytes(), b"\xff\xfe"].concat());
        write("empty", b"");
        let listen = if configuration.contains("[server]") { "" } else { "[server]\nlisten = [\"127.0.0.1:0\"]\n" };
        let log = "[log]\nlevel = \"trace\"\n";
        let file = write_configuration(folder.path(), &format!("{log}{listen}{configuration}"));
        for arguments in [&["run"][..], &["check"], &["status"], &["sign", "--explain", "http://a.localhost/"]] {
            let arguments = [&arguments[..1], &["-c", file.to_str().unwrap()], &arguments[1..]].concat();
            let ended = run(folder.path(), &arguments, |command| {
                command.env("SECRET", &secret).env("SECRET_LINES", format!("{secret}\r\nB: {secret}"));
                command.env("https_proxy", format!("http://u:{secret}@h:99999"));
            });
            assert!(matches!(ended.code, Some(1 | 78)), "{name}: {arguments:?}: {ended:?}");
            assert!(!ended.err.is_empty(), "{name}: {arguments:?}");
            evidence.add_ended(&format!("{} with {name}", arguments[0]), &ended);
        }
    }
    evidence.holds_none_of(&[mark("Start")], forms);
}
