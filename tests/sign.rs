//! `countersign sign` as a person uses it: the vendor's vectors through the command line, what it explains, what it refuses.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

#[path = "support/daemon.rs"]
mod daemon;

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

fn sign(folder: &Path, configuration: &str, arguments: &[&str]) -> Output {
    let file = daemon::write_configuration(folder, configuration);
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.arg("sign").arg("-c").arg(file).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

const CONFIGURATION: &str = r#"
[server]
domains = ["localhost"]
[routes.cert]
upstream = "http://certificate.baidubce.com"
hosts = ["certificate.baidubce.com"]
listen = ["127.0.0.1:8081"]
allow = ["GET /**", "PUT /v1/certificate/*?certName", "POST /form?a=1"]
headers = { "Content-Type" = "application/json; charset=utf-8" }
[routes.cert.bce]
credentials = { access_key = "the-key", secret_key = "hunter2/secret", security_token = "hunter2+token" }
[routes.config]
upstream = "http://192.0.2.10:8080"
[routes.config.acm]
credentials = { access_key = "the-key", secret_key = "hunter2/secret", security_token = "hunter2+token" }
[routes.token]
upstream = "https://localhost"
[routes.token.header]
headers = { "X-Auth-Token" = "hunter2token" }
"#;

#[test]
fn every_vector_of_bce_comes_out_of_the_command_line() {
    let table = |vector: &Value| {
        let options = &vector["options"];
        let own = format!(
            "expires_in = '{}s'\nsigned_headers = {}\n",
            options["expiration_seconds"], options["signed_headers"]
        );
        ("bce", credentials(vector, "access_key_id", "secret_access_key") + &own)
    };
    assert_eq!(compare("bce-auth-v1", table), 46);
}

#[test]
fn every_vector_of_huawei_comes_out_of_the_command_line() {
    let table = |vector: &Value| {
        let options = &vector["options"];
        let mut table = credentials(vector, "access_key", "secret_key");
        for key in ["project_id", "domain_id"] {
            if let Some(id) = vector["credentials"].get(key) {
                let _ = writeln!(table, "{key} = {id}");
            }
        }
        let _ = writeln!(table, "payload = {}\nsigned_headers = {}", options["payload"], options["signed_headers"]);
        if let (Some(region), Some(service)) = (options.get("region_id"), options.get("derived_service")) {
            let _ = writeln!(table, "derived = {{ region = {region}, service = {service} }}");
        }
        ("huawei-aksk", table)
    };
    assert_eq!(compare("sdk-hmac-sha256", table), 44);
}

#[test]
fn every_vector_of_acm_tem_and_roa_comes_out_of_the_command_line() {
    for (vectors, provider, secret, count) in [
        ("spas", "acm", "secret_key", 45),
        ("tem-auth", "tem", "secret_key", 41),
        ("acs-roa", "acs-roa", "access_key_secret", 42),
    ] {
        let access_key = if provider == "acs-roa" { "access_key_id" } else { "access_key" };
        let table = |vector: &Value| {
            let options = vector["options"].as_object().unwrap();
            let own = options.iter().map(|(key, value)| format!("{key} = {value}\n"));
            (provider, credentials(vector, access_key, secret) + &own.collect::<String>())
        };
        assert_eq!(compare(vectors, table), count);
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn credentials(vector: &Value, access_key: &str, secret_key: &str) -> String {
    let credentials = &vector["credentials"];
    let token = credentials.get("security_token").map(|token| format!(", security_token = {token}"));
    let (access_key, secret_key) = (&credentials[access_key], &credentials[secret_key]);
    format!("credentials = {{ access_key = {access_key}, secret_key = {secret_key}{} }}\n", token.unwrap_or_default())
}

/// Compares what the command prints with what a file of vectors expects; `table` makes the provider's table of a vector.
/// Returns how many there were.
fn compare(vectors: &str, table: impl Fn(&Value) -> (&'static str, String)) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format!("{vectors}.jsonl"));
    let vectors = fs::read_to_string(file).unwrap();
    for line in vectors.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let request = &vector["request"];
        let url = string(&request["url"]);
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (provider, table) = table(&vector);
        let configuration = format!("[routes.r]\nupstream = '{scheme}://{authority}'\n[routes.r.{provider}]\n{table}");
        let (at, method) = (vector["time_unix_ms"].to_string(), string(&request["method"]));
        let local = format!("http://r.localhost:8080{target}");
        let mut arguments = vec!["--at".to_owned(), at, "-X".to_owned(), method];
        for header in request["headers"].as_array().unwrap() {
            let (name, value) = (string(&header[0]), string(&header[1]));
            if name.eq_ignore_ascii_case("host") {
                continue;
            }
            arguments.push("-H".to_owned());
            arguments.push(if value.trim().is_empty() { format!("{name};") } else { format!("{name}: {value}") });
        }
        let body = BASE64_STANDARD.decode(string(&request["body_base64"])).unwrap();
        if !body.is_empty() {
            let file = folder.path().join("body");
            fs::write(&file, body).unwrap();
            arguments.extend(["-d".to_owned(), format!("@{}", file.display())]);
        }
        if let Some(nonce) = vector["nonce"].as_str() {
            arguments.extend(["--nonce".to_owned(), nonce.to_owned()]);
        }
        arguments.push(local);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let found = text(&sign(folder.path(), &configuration, &arguments));
        let mut found: Vec<_> = found.lines().map(str::to_owned).collect();
        let mut expected: Vec<_> = vector["expect"]["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|header| format!("{}: {}", string(&header[0]), string(&header[1])))
            .collect();
        if !expected.iter().any(|line| line.starts_with("Host: ")) {
            // These schemes sign no host, and their vectors leave it out.
            found.retain(|line| !line.starts_with("Host: "));
        }
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{}", vector["id"]);
    }
    vectors.lines().count()
}

#[test]
fn each_door_leads_to_the_same_signature() {
    let folder = tempfile::tempdir().unwrap();
    let urls = [
        "http://cert.localhost:8080/v1/x?q",
        "http://127.0.0.1:8080/cert/v1/x?q",
        "http://certificate.baidubce.com/v1/x?q",
        "http://127.0.0.1:8081/v1/x?q",
    ];
    let lines = urls.map(|url| text(&sign(folder.path(), CONFIGURATION, &["--at", "0", url])));
    assert!(
        lines[0]
            .starts_with("Host: certificate.baidubce.com\nAuthorization: bce-auth-v1/the-key/1970-01-01T00:00:00Z/")
    );
    assert!(lines[0].contains("\nContent-Type: application/json; charset=utf-8\n"), "{}", lines[0]);
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
}

#[test]
fn the_explanation_shows_every_stage_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let url = "http://cert.localhost/v1/certificate?b=2&a=1";
    let found = text(&sign(folder.path(), CONFIGURATION, &["--at", "2014-06-01T23:00:10Z", "--explain", url]));
    for stage in [
        "route: cert (by the host prefix)",
        "provider: bce",
        "upstream: http://certificate.baidubce.com",
        "credential: access key the-key",
        "signed headers: host;x-bce-date;x-bce-security-token",
        "  a=1&b=2\n  host:certificate.baidubce.com\n  x-bce-date:2014-06-01T23%3A00%3A10Z\n  x-bce-security-token:********",
        "signing key input:\n  bce-auth-v1/the-key/2014-06-01T23:00:10Z/1800",
    ] {
        assert!(found.contains(stage), "{stage:?} is not in\n{found}");
    }
    let fixed = text(&sign(folder.path(), CONFIGURATION, &["--explain", "http://token.localhost/"]));
    assert!(fixed.contains("X-Auth-Token: ********"), "{fixed}");
    assert!(!found.contains("hunter2") && !fixed.contains("hunter2"));
}

const OTHERS: &str = r#"
[routes.tem]
upstream = "https://tem.example"
tem = { credentials = { access_key = "ak", secret_key = "hunter2\nof two lines" } }
[routes.l0]
upstream = "https://tem.example"
tem = { algorithm = "L0.SHA1", credentials = { access_key = "ak", secret_key = "hunter2" } }
[routes.plain]
upstream = "https://tem.example"
tem = { algorithm = "L0.PAINTEXT", credentials = { access_key = "ak", secret_key = "hunter2" } }
[routes.cs]
upstream = "https://cs.aliyuncs.com"
acs-roa = { credentials = { access_key = "ak", secret_key = "hunter2", security_token = "hunter2token" } }
[routes.bearer]
upstream = "https://example.com"
bearer = { token = "hunter2" }
[routes.basic]
upstream = "https://example.com"
basic = { user = "me", password = "hunter2" }
"#;

#[test]
fn no_explanation_shows_a_secret_in_any_form() {
    let folder = tempfile::tempdir().unwrap();
    let explain = |arguments: &[&str]| {
        let arguments = [&["--at", "1450264727000", "--nonce", "n", "--explain"], arguments].concat();
        let found = text(&sign(folder.path(), OTHERS, &arguments));
        // The password in base64, and the SHA-1 of the secret.
        for secret in ["hunter2", "of two lines", "bWU6aHVudGVyMg", "f3bbbd66a63d4bf1747940578ec3d0103530e21d"] {
            assert!(!found.contains(secret), "{found}");
        }
        found
    };
    let found = explain(&["-d", "{}", "http://tem.localhost/a?b"]);
    let shown = "string to sign:\n  ak:ak|sk:********|time:1450264727|method:POST|url:/a?b|params:{}\n";
    assert!(found.contains(shown), "{found}");
    for route in ["l0", "plain", "bearer", "basic"] {
        let found = explain(&[&format!("http://{route}.localhost/")]);
        assert!(found.contains("headers:\n") && found.ends_with("\n  Authorization: ********\n"), "{found}");
    }
    let found = explain(&["http://cs.localhost/clusters"]);
    assert!(found.contains("\n  x-acs-security-token:********\n"), "{found}");
}

#[test]
fn headers_that_are_set_by_default_are_shown_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let found = |arguments: &[&str]| {
        let arguments = [&["--at", "1450264727000", "--nonce", "n"], arguments].concat();
        let mut lines: Vec<_> = text(&sign(folder.path(), OTHERS, &arguments)).lines().map(str::to_owned).collect();
        lines.retain(|line| !line.starts_with("Authorization: acs ak:"));
        lines
    };
    let always = [
        "Host: cs.aliyuncs.com",
        "Date: Wed, 16 Dec 2015 11:18:47 GMT",
        "x-acs-signature-method: HMAC-SHA1",
        "x-acs-signature-nonce: n",
        "x-acs-signature-version: 1.0",
        "x-acs-security-token: hunter2token",
    ];
    let own = ["-H", "Accept: text/xml", "-H", "X-Acs-Version: 2018-04-18", "http://cs.localhost/"];
    assert_eq!(found(&own), always);
    let all = [&always[..], &["Accept: application/json", "x-acs-version: 2015-12-15"]].concat();
    assert_eq!(found(&["http://cs.localhost/"]), all);
}

#[test]
fn the_explanation_shows_what_was_found_and_what_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let form = "Content-Type: application/x-www-form-urlencoded; charset=GBK";
    let url = "http://config.localhost/diamond-server/datum.do?method=deleteAllDatums";
    let arguments = ["--at", "1546300800123", "--explain", "-H", form, "-d", "dataId=d&group=%C5%E4%D6%C3", url];
    let found = text(&sign(folder.path(), CONFIGURATION, &arguments));
    for stage in [
        "\nparameter tenant: (not there)\nparameter group: 配置\nstring to sign:\n  配置+1546300800123\n",
        "\nheaders:\n  Host: 192.0.2.10:8080\n  Spas-AccessKey: the-key\n  timeStamp: 1546300800123\n  Spas-Signature: ",
        "\n  Spas-SecurityToken: ********\n",
    ] {
        assert!(found.contains(stage), "{stage:?} is not in\n{found}");
    }
    assert!(!found.contains("hunter2"));
}

#[test]
fn the_curl_command_sends_what_the_daemon_would() {
    let folder = tempfile::tempdir().unwrap();
    let url = "http://cert.localhost/v1/certificate/c-1?certName";
    let arguments = ["--curl", "-X", "PUT", "-H", "X-Note: it's", "-H", "X-Empty;", "-d", "{\"certName\":\"é\"}", url];
    let found = text(&sign(folder.path(), CONFIGURATION, &arguments));
    for word in [
        "curl -X PUT ",
        " -H 'x-note: it'\\''s' ",
        " -H 'x-empty;' ",
        " -H 'content-type: application/json; charset=utf-8' ",
        " -H accept: ",
        " --data-binary '{\"certName\":\"é\"}' ",
        " 'http://certificate.baidubce.com/v1/certificate/c-1?certName'\n",
    ] {
        assert!(found.contains(word), "{word:?} is not in\n{found}");
    }
}

#[test]
fn what_the_daemon_would_refuse_is_refused_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let form = "Content-Type: application/x-www-form-urlencoded";
    for (arguments, expected) in [
        (&["http://nobody.localhost/"][..], "unknown_host: "),
        (&["http://evil.example/"], "unknown_host: "),
        (&["-X", "DELETE", "http://cert.localhost/v1/certificate/x"], "not_allowed: "),
        (&["http://cert.localhost/v1/../x"], "not_allowed: "),
        (&["-X", "TRACE", "http://cert.localhost/"], "bad_request: "),
        (&["-H", "X-Bce-Meta: 1", "-H", "x-bce-meta: 2", "http://cert.localhost/"], "bad_request: "),
        (&["-H", "Origin: http://evil.example", "http://cert.localhost/"], "cross_site: "),
        (&["-d", "a=2", "-H", form, "http://cert.localhost/form"], "not_allowed: "),
        (&["http://config.localhost/a?group=%C5"], "bad_request: "),
        (&["http://config.localhost/diamond-server/diamond"], "bad_request: "),
        (&["-d", "@/no/such/file", "http://cert.localhost/"], "the data cannot be read"),
    ] {
        let output = sign(folder.path(), CONFIGURATION, arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {complaint}");
        assert!(complaint.starts_with(&format!("countersign: {expected}")), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty() && !complaint.contains("hunter2"));
    }
}

#[test]
fn exit_codes_tell_the_command_line_from_the_request_and_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for (code, arguments) in [
        (2, &["https://cert.localhost/"][..]),
        (2, &["cert.localhost/"]),
        (2, &["http://cert.localhost/a b"]),
        (2, &["-H", "no separator", "http://cert.localhost/"]),
        (2, &["-X", "NO METHOD", "http://cert.localhost/"]),
        (2, &["--at", "yesterday", "http://cert.localhost/"]),
        (1, &["-d", "@/no/such/file", "http://cert.localhost/"]),
        (1, &["http://nobody.localhost/"]),
        (1, &["-X", "DELETE", "http://cert.localhost/"]),
    ] {
        let ended = sign(folder.path(), CONFIGURATION, arguments);
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    }
    assert_eq!(sign(folder.path(), "[sever]", &["http://cert.localhost/"]).status.code(), Some(78));
}

#[test]
fn a_routes_own_headers_are_spelt_as_its_owner_does_and_defaults_only_where_they_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let configuration =
        CONFIGURATION.replace("[routes.token]\n", "[routes.token]\ndefault_headers = { \"X-TeaM\" = \"ours\" }\n");
    let url = "http://token.localhost/";
    assert!(text(&sign(folder.path(), CONFIGURATION, &["http://cert.localhost/"])).contains("\nContent-Type: app"));
    assert!(text(&sign(folder.path(), &configuration, &[url])).contains("\nX-TeaM: ours\n"));
    assert!(!text(&sign(folder.path(), &configuration, &["-H", "x-team: theirs", url])).contains("X-TeaM"));
}

#[test]
fn the_demonstrations_keys_are_nobody_elses_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .arg("demo")
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(demo.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let own = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    let mode = own.metadata().unwrap().permissions().mode();
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn a_listener_on_all_addresses_is_found_and_curl_pins_what_the_route_pins() {
    let folder = tempfile::tempdir().unwrap();
    let pin = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let configuration = format!(
        "[routes.a]\nupstream = 'https://up.test'\nlisten = ['0.0.0.0:9001']\n\
         callers = {{ net = ['10.0.0.0/8'] }}\n[routes.a.tls]\nverify = 'pin'\npin = ['sha256/{pin}']\n\
         [routes.a.header]\nheaders = {{ X-Token = 'hunter2' }}\n[server]\nallow_remote = true\n"
    );
    let curl = text(&sign(folder.path(), &configuration, &["--curl", "http://127.0.0.1:9001/"]));
    assert!(curl.contains(&format!(" --pinnedpubkey sha256//{pin} --insecure ")), "{curl}");
}
