//! `countersign import`: files out of certificate services' replies.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::demo::certificates::{Authority, KeyFormat, Purpose, Validity, Wish};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::scene::{Scene, ask};

/// How a command ended, and what it printed.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Imports what is given on standard input, in a folder, under a umask.
fn import_under(umask: &str, folder: &Path, arguments: &[&str], input: &[u8]) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$0\" import \"$@\""), env!("CARGO_BIN_EXE_countersign")]);
    command.args(arguments).current_dir(folder).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without reading any of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn import(folder: &Path, arguments: &[&str], input: &[u8]) -> Ended {
    import_under("022", folder, arguments, input)
}

/// Every file of a folder, with its mode and its text.
fn files(folder: &Path) -> BTreeMap<String, (u32, String)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let read = entries.map(|entry| {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        (entry.file_name().into_string().unwrap(), (mode, fs::read_to_string(entry.path()).unwrap()))
    });
    read.collect()
}

/// The same as expected.
fn expected(ca: Option<&str>, cert: &str, key: &str) -> BTreeMap<String, (u32, String)> {
    let ca = ca.map(|ca| ("ca.pem", 0o644, ca));
    let files = ca.into_iter().chain([("cert.pem", 0o644, cert), ("key.pem", 0o600, key)]);
    files.map(|(name, mode, text)| (name.to_owned(), (mode, text.to_owned()))).collect()
}

/// Fails if a line of the key stands in what was printed.
fn assert_silent(ended: &Ended, key: &str) {
    let lines = key.lines().filter(|line| !line.starts_with("-----"));
    for line in lines.chain(["PRIVATE KEY", "hunter2"]) {
        assert!(!ended.out.contains(line) && !ended.err.contains(line), "{ended:?}");
    }
}

/// A CA, a certificate of its own, and the key to that.
fn issue() -> [String; 3] {
    let authority = Authority::new("a CA").unwrap();
    let client = authority.client("a client").unwrap();
    [authority.pem(), client.certificate_pem(), client.key_pem(KeyFormat::Traditional)]
}

#[test]
fn what_was_imported_lets_a_route_through() {
    let scene = Scene::new();
    let (ca, cert) = (scene.stage.authority.pem(), scene.stage.client.certificate_pem());
    let key = scene.stage.client.key_pem(KeyFormat::Pkcs8);
    let [_, other_cert, other_key] = issue();
    let damaged = json!({
        "ca": ca.replace('\n', "\\n"), "cert": cert.replace('\n', "\r\n"), "private_key": STANDARD.encode(key.trim_end()),
    });
    let of_three = json!({
        "id": "7", "ca": ca, "cert": other_cert, "private_key": other_key, "target_mgmt_cert": cert,
        "target_mgmt_private_key": key.replacen("-----\n", "-----", 1), "target_data_cert": "",
    });
    let chained = json!({ "certserverdata": cert, "certprivatekey": key, "certlinkdata": cert });
    let cases: [(&str, &[&str], Value, bool); 4] = [
        ("Alibaba's", &[], json!({ "ca": ca, "cert": cert, "key": key }), true),
        ("Huawei's, damaged", &["--identity", "source"], damaged, true),
        ("Huawei's, of three identities", &["--identity=target_mgmt"], of_three, true),
        ("Baidu's", &[], chained, false),
    ];
    for (name, options, reply, has_ca) in cases {
        let folder = tempfile::tempdir().unwrap();
        let ended = import(folder.path(), &[options, &["-", "."]].concat(), reply.to_string().as_bytes());
        let last = "valid until 4096-01-01T00:00:00Z\n";
        let of_ca = if has_ca { format!("./ca.pem: CA \"countersign demo CA\", {last}") } else { String::new() };
        let out =
            format!("{of_ca}./key.pem: the private key of cert.pem\n./cert.pem: \"countersign demo client\", {last}");
        assert_eq!(ended, Ended { code: Some(0), out, err: String::new() }, "{name}");
        assert_silent(&ended, &key);
        assert_eq!(files(folder.path()), expected(has_ca.then_some(&ca), &cert, &key), "{name}");
        if !has_ca {
            fs::write(folder.path().join("ca.pem"), &ca).unwrap();
        }
        let daemon = Daemon::start_in(
            folder,
            &format!("server.listen = [\"127.0.0.1:0\"]\n{}", scene.mtls("cluster", "")),
            |_| {},
        );
        let reply = ask(daemon.connect(), "GET /projects/ HTTP/1.1\nHost: cluster.localhost").passed_on();
        assert_eq!((reply.status, scene.accepted().site), (200, "cluster"), "{name}");
    }
}

#[test]
fn files_are_replaced_whole_and_with_modes_of_their_own() {
    let [ca, cert, key] = issue();
    let reply = json!({ "ca": ca, "cert": cert, "key": key }).to_string();
    for umask in ["0", "077"] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/folder");
        fs::write(folder.path().join("reply.json"), &reply).unwrap();
        let ended = import_under(umask, folder.path(), &["reply.json", "new/folder"], b"");
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(files(&target), expected(Some(&ca), &cert, &key));

        let before = folder.path().join("before");
        fs::create_dir(&before).unwrap();
        for (name, text) in [("ca.pem", "an old CA"), ("cert.pem", "an old certificate"), ("key.pem", "an old key")] {
            // Whoever has the old file open goes on reading the old file, as this other name of it does.
            fs::write(target.join(name), text).unwrap();
            fs::set_permissions(target.join(name), Permissions::from_mode(0o666)).unwrap();
            fs::hard_link(target.join(name), before.join(name)).unwrap();
        }
        let ended = import_under(umask, folder.path(), &["reply.json", "new/folder"], b"");
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        assert_eq!(files(&target), expected(Some(&ca), &cert, &key), "nothing else is left there");
        let texts: Vec<_> = files(&before).into_values().map(|(_, text)| text).collect();
        assert_eq!(texts, ["an old CA", "an old certificate", "an old key"]);
    }
}

#[test]
fn a_ca_that_the_reply_does_not_hold_stays_and_is_told_of() {
    let [_, cert, key] = issue();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), "an old CA").unwrap();
    fs::set_permissions(folder.path().join("ca.pem"), Permissions::from_mode(0o644)).unwrap();
    let reply = json!({ "certServerData": cert, "certPrivateData": key }).to_string();
    let ended = import(folder.path(), &["-", "."], reply.as_bytes());
    let warning = "countersign: warning: the reply holds no CA, so that ./ca.pem is what it was: \
                   delete it if it is another's\n";
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), warning));
    assert!(!ended.out.contains("ca.pem"), "{ended:?}");
    assert_eq!(files(folder.path()), expected(Some("an old CA"), &cert, &key));
}

#[test]
fn what_is_over_and_what_follows_is_said() {
    let authority = Authority::new("a \"CA\"\n\u{1b}[31m").unwrap();
    let wish = Wish { validity: Validity::Expired, ..Wish::new(Purpose::Client, "a client") };
    let client = authority.issue(&wish).unwrap();
    let (cert, key) = (client.certificate_pem(), client.key_pem(KeyFormat::Pkcs8));
    let ca = authority.pem() + &Authority::new("another").unwrap().pem();
    let folder = tempfile::tempdir().unwrap();
    let ended =
        import(folder.path(), &["-", "."], json!({ "ca": ca, "cert": cert, "key": key }).to_string().as_bytes());
    let out = "./ca.pem: CA \"a \\\"CA\\\"\\n\\u{1b}[31m\", valid until 4096-01-01T00:00:00Z, and 1 more\n\
               ./key.pem: the private key of cert.pem\n\
               ./cert.pem: \"a client\", expired on 2001-01-01T00:00:00Z\n";
    assert_eq!(ended, Ended { code: Some(0), out: out.to_owned(), err: String::new() });
}

#[test]
fn a_reply_that_is_not_right_changes_nothing_and_is_told_why() {
    let ([ca, cert, key], [_, _, others]) = (issue(), issue());
    let text = |reply: Value| reply.to_string().into_bytes();
    let source = ["-", "new"];
    let data = ["--identity", "target_data", "-", "new"];
    let cases: [(&[&str], Vec<u8>, &str); 12] = [
        (&["missing.json", "new"], Vec::new(), "cannot read missing.json: No such file or directory (os error 2)"),
        (&["there", "new"], Vec::new(), "cannot read there: Is a directory (os error 21)"),
        (&source, vec![b' '; 5 << 20], "cannot read standard input: larger than 4194304 octets"),
        (&source, b"hunter2".to_vec(), "standard input: not well-formed JSON at line 1, column 1"),
        (&source, text(json!(["hunter2"])), "standard input: expected an object in JSON"),
        (
            &source,
            text(json!({ "error_msg": "hunter2" })),
            "standard input: no certificate with its key: expected `cert` with `key`, or `cert` with `private_key`, or \
             `certServerData` with `certPrivateKey`, or `certServerData` with `certPrivateData`",
        ),
        (
            &data,
            text(json!({ "cert": cert, "private_key": key, "target_mgmt_cert": cert, "target_mgmt_private_key": key })),
            "standard input: no certificate with its key: expected `target_data_cert` with `target_data_private_key`; \
             choose the identity `source` or `target_mgmt`",
        ),
        (
            &source,
            text(json!({ "cert": cert, "key": others })),
            "standard input: `key`: not the key of the certificate: its public half is another",
        ),
        (
            &source,
            text(json!({ "cert": cert.replace("BEGIN ", "BEGIN"), "key": key })),
            "standard input: `cert`: its markers are damaged: expected `-----BEGIN …-----` and the `-----END …-----` to \
             it, in lines of their own",
        ),
        (
            &source,
            text(json!({ "ca": "hunter2", "cert": cert, "key": key })),
            "standard input: `ca`: no certificate in PEM",
        ),
        (
            &["-", "there"],
            text(json!({ "ca": ca, "cert": cert, "key": key })),
            "cannot write into there: cert.pem is a folder there, expected a file or nothing",
        ),
        (
            &["-", "file"],
            text(json!({ "ca": ca, "cert": cert, "key": key })),
            "cannot write into file: it is a file, expected a folder or nothing",
        ),
    ];
    for (arguments, input, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("there/cert.pem")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let ended = import(folder.path(), arguments, &input);
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{arguments:?}: {ended:?}");
        assert_eq!(ended.err, format!("countersign: {expected}\n"));
        assert_silent(&ended, &key);
        assert_silent(&ended, &others);
        assert!(!folder.path().join("new").exists(), "{expected}");
        assert_eq!(fs::read_dir(folder.path().join("there")).unwrap().count(), 1, "{expected}");
    }
}

#[test]
fn a_wrong_command_line_is_told_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, part) in [
        (&["-"][..], "DIR"),
        (&["--identity", "target", "-", "new"], "[possible values: source, target_mgmt, target_data]"),
    ] {
        let ended = import(folder.path(), arguments, b"");
        assert!(ended.code == Some(2) && ended.err.contains(part), "{ended:?}");
    }
}
