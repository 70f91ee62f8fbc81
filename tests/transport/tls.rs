//! Servers that are who they should be, and servers that are not.

use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::demo::certificates::{Authority, Identity, KeyFormat, KeyKind, Purpose, Validity, Wish};
use countersign::upstream::tls::provider;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};

use super::script::{Conn, Http, Reply, Upstream, header};
use super::{caller, server_config};
use crate::daemon::Daemon;

/// Answers with the name that it was asked by.
fn host(mut conn: Conn) {
    while let Some((head, _)) = conn.request() {
        conn.ok(header(&head, "host").unwrap());
    }
}

fn server(identity: &Identity) -> Upstream {
    Upstream::start_tls(server_config(identity), host)
}

/// A route with its `upstream` and the rest of its keys, `tls` and `connect` among them.
struct Case {
    name: &'static str,
    upstream: String,
    keys: String,
    /// What the message must say; none if the request must succeed.
    trouble: Option<&'static str>,
}

impl Case {
    fn new(name: &'static str, upstream: &Upstream, keys: &str, trouble: Option<&'static str>) -> Self {
        Self { name, upstream: upstream.url(), keys: keys.to_owned(), trouble }
    }

    /// The same server under another name.
    fn named(self, host: &str) -> Self {
        Self { upstream: self.upstream.replace("127.0.0.1", host), ..self }
    }
}

fn start(folder: tempfile::TempDir, top: &str, cases: &[Case]) -> Daemon {
    let mut configuration = format!("server.listen = [\"127.0.0.1:0\"]\n{top}\n");
    for Case { name, upstream, keys, .. } in cases {
        let route = format!("[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n[routes.{name}.header]\n");
        writeln!(configuration, "{route}headers = {{ X-Auth-Token = \"t\" }}").unwrap();
    }
    Daemon::start_in(folder, &configuration, |_| {})
}

fn ask(daemon: &Daemon, method: &str, route: &str) -> Reply {
    let mut http: Http<_> = caller(daemon);
    http.send(format!("{method} /{route}/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"));
    http.reply()
}

/// Sends a request through each route, and compares all outcomes at once.
fn judge(daemon: &Daemon, cases: &[Case]) {
    let mut wrong = String::new();
    for Case { name, trouble, .. } in cases {
        for method in ["GET", "POST"] {
            let reply = ask(daemon, method, name);
            let is_right = match trouble {
                None => reply.status == 200,
                Some(said) => {
                    reply.code() == Some("upstream_tls") && reply.status == 502 && reply.text().contains(said)
                }
            };
            if !is_right {
                writeln!(wrong, "{name}, {method}: expected {trouble:?}: {} {}", reply.status, reply.text()).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn pin(identity: &Identity) -> String {
    let certificate = identity.certificate();
    let key = ParsedCertificate::try_from(&certificate).unwrap().subject_public_key_info();
    format!("sha256/{}", STANDARD.encode(Sha256::digest(key.as_ref())))
}

#[test]
fn servers_are_verified_as_the_route_says() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("ours").unwrap(), Authority::new("another").unwrap());
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.path().join("another.pem"), stranger.pem()).unwrap();
    let issue = |wish: Wish<'_>| authority.issue(&wish).unwrap();
    let wish = Wish { names: &["127.0.0.1", "localhost"], ..Wish::new(Purpose::Server, "localhost") };
    let (good, nameless) = (issue(wish), issue(Wish { names: &[], ..wish }));
    let by_address = server(&good);
    let other_name = server(&issue(Wish { names: &["other.test"], ..wish }));
    let (expired, early) = (
        server(&issue(Wish { validity: Validity::Expired, ..wish })),
        server(&issue(Wish { validity: Validity::NotYet, ..wish })),
    );
    let rsa = server(&issue(Wish { key: KeyKind::Rsa2048, ..wish }));
    let not_a_server = server(&issue(Wish { purpose: Purpose::Client, ..wish }));
    let unnamed = server(&nameless);
    let full = "tls.ca = \"ca.pem\"";
    let ca_only = "tls = { ca = \"ca.pem\", verify = \"ca-only\" }";
    let none = "tls.verify = \"none\"";
    let pinned = |identity: &Identity| format!("tls = {{ verify = \"pin\", pin = [\"{}\"] }}", pin(identity));
    let dialled = format!("{full}\nconnect = \"{}\"", other_name.address);
    let cases = [
        Case::new("full-address", &by_address, full, None),
        Case::new("full-name", &by_address, full, None).named("localhost"),
        Case::new("full-rsa", &rsa, full, None),
        Case::new("full-wrong-name", &other_name, full, Some("`tls.server_name`")),
        Case::new("full-no-name", &unnamed, full, Some("no subjectAltName")),
        Case::new("full-wrong-ca", &by_address, "tls.ca = \"another.pem\"", Some("`tls.ca`")),
        Case::new("full-no-ca", &other_name, "", Some("`tls.ca`")),
        Case::new("full-expired", &expired, full, Some("must renew it")),
        Case::new("full-early", &early, full, Some("clock")),
        Case::new("full-client", &not_a_server, full, Some("upstream's owner")),
        Case::new("server-name", &other_name, &format!("{full}\ntls.server_name = \"other.test\""), None),
        Case::new(
            "server-name-wrong",
            &by_address,
            &format!("{full}\ntls.server_name = \"x.test\""),
            Some("server_name"),
        ),
        Case::new("connect", &other_name, &dialled, None).named("other.test"),
        Case::new("ca-only", &by_address, ca_only, None),
        Case::new("ca-only-name", &other_name, ca_only, None),
        Case::new("ca-only-no-name", &unnamed, ca_only, None),
        Case::new("ca-only-wrong-ca", &by_address, &ca_only.replace("ca.pem", "another.pem"), Some("`tls.ca`")),
        Case::new("ca-only-expired", &expired, ca_only, Some("must renew it")),
        Case::new("pin", &by_address, &pinned(&good), None),
        Case::new("pin-no-name", &unnamed, &pinned(&nameless), None),
        Case::new("pin-wrong", &by_address, &pinned(&nameless), Some("none of `tls.pin`")),
        Case::new("none", &by_address, none, None),
        Case::new("none-name", &other_name, none, None),
        Case::new("none-expired", &expired, none, None),
    ];
    // The CA of another system's roots is as good as none.
    let daemon = start(folder, "server.extra_ca = [\"another.pem\"]", &cases);
    judge(&daemon, &cases);
    assert_eq!(ask(&daemon, "GET", "connect").text(), format!("other.test:{}", other_name.address.port()));
    assert_eq!(ask(&daemon, "GET", "server-name").text(), other_name.address.to_string());
    let warnings = daemon.log().lines().filter(|line| line.contains("WARN") && line.contains("not verified")).count();
    assert_eq!(warnings, 3, "{}", daemon.log());
}

#[test]
fn further_roots_are_trusted_for_every_route() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours").unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let upstream = server(&authority.server(&["127.0.0.1"]).unwrap());
    let cases = [Case::new("up", &upstream, "", None)];
    judge(&start(folder, "server.extra_ca = [\"ca.pem\"]", &cases), &cases);
}

/// A server that wants a certificate of this authority's.
fn wants_certificate(
    identity: &Identity,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
) -> Upstream {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
    let builder = builder.with_client_cert_verifier(clients);
    Upstream::start_tls(builder.with_single_cert(vec![identity.certificate()], identity.key()).unwrap(), host)
}

#[test]
fn client_certificates_are_shown_to_servers_that_want_them() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("ours").unwrap(), Authority::new("another").unwrap());
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", authority.pem());
    for (name, key) in [("ec", KeyKind::EcdsaP256), ("rsa", KeyKind::Rsa2048)] {
        let identity = authority.issue(&Wish { key, ..Wish::new(Purpose::Client, name) }).unwrap();
        write(&format!("{name}.pem"), identity.certificate_pem());
        write(&format!("{name}-pkcs8.key"), identity.key_pem(KeyFormat::Pkcs8));
        write(&format!("{name}-old.key"), identity.key_pem(KeyFormat::Traditional));
    }
    let foreign = stranger.client("somebody").unwrap();
    write("foreign.pem", foreign.certificate_pem());
    write("foreign.key", foreign.key_pem(KeyFormat::Pkcs8));
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let modern = wants_certificate(&identity, &authority, &[&rustls::version::TLS13]);
    let old = wants_certificate(&identity, &authority, &[&rustls::version::TLS12]);
    let shown =
        |cert: &str, key: &str| format!("tls = {{ ca = \"ca.pem\", cert = \"{cert}.pem\", key = \"{key}.key\" }}");
    let (absent, unknown) = (Some("it wants a client certificate"), Some("is of a CA that it does not trust"));
    let cases = [
        Case::new("ec-pkcs8", &modern, &shown("ec", "ec-pkcs8"), None),
        Case::new("ec-old", &modern, &shown("ec", "ec-old"), None),
        Case::new("rsa-pkcs8", &modern, &shown("rsa", "rsa-pkcs8"), None),
        Case::new("rsa-old", &modern, &shown("rsa", "rsa-old"), None),
        Case::new("tls12-ec", &old, &shown("ec", "ec-old"), None),
        Case::new("tls12-rsa", &old, &shown("rsa", "rsa-old"), None),
        Case::new("absent", &modern, "tls.ca = \"ca.pem\"", absent),
        Case::new("foreign", &modern, &shown("foreign", "foreign"), unknown),
        Case::new("tls12-absent", &old, "tls.ca = \"ca.pem\"", absent),
        Case::new("tls12-foreign", &old, &shown("foreign", "foreign"), unknown),
    ];
    let daemon = start(folder, "", &cases);
    for _ in 0..5 {
        judge(&daemon, &cases);
    }
}

#[test]
fn servers_that_share_little_with_us_are_served_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours").unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS12]);
    let builder = builder.unwrap().with_no_client_auth();
    let old = builder.with_single_cert(vec![identity.certificate()], identity.key()).unwrap();
    let mut speaks_neither = server_config(&identity);
    speaks_neither.alpn_protocols = vec![b"spdy/3".to_vec()];
    let mut speaks_http1 = server_config(&identity);
    speaks_http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let old = Upstream::start_tls(old, host);
    let speaks_neither = Upstream::start_tls(speaks_neither, host);
    let speaks_http1 = Upstream::start_tls(speaks_http1, host);
    let cases = [
        Case::new("tls12", &old, "tls.ca = \"ca.pem\"", None),
        Case::new("http1", &speaks_http1, "tls.ca = \"ca.pem\"", None),
        Case::new("neither", &speaks_neither, "tls.ca = \"ca.pem\"", Some("HTTP/1.1")),
    ];
    judge(&start(folder, "", &cases), &cases);
}
