//! TLS sessions and pooled connections: taken up again by the route that they belong to, never by another.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use countersign::demo::certificates::{Authority, Identity, KeyFormat};
use countersign::upstream::tls::provider;
use countersign::upstream::x509::{Certificate, common_name};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::caller;
use super::script::{Conn, Upstream};
use crate::daemon::Daemon;

/// A server that takes certificates of an authority's, and callers without one.
pub(super) fn server(
    identity: &Identity,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
    script: impl Fn(Conn) + Send + Sync + 'static,
) -> Upstream {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
    let builder = builder.with_client_cert_verifier(clients.build().unwrap());
    Upstream::start_tls(builder.with_single_cert(vec![identity.certificate()], identity.key()).unwrap(), script)
}

/// Whose certificate the other side showed.
pub(super) fn who(conn: &Conn) -> String {
    let shown = conn.session().unwrap().peer_certificates().and_then(<[_]>::first);
    shown.map_or("nobody".to_owned(), |shown| common_name(Certificate::parse(shown).unwrap().subject).unwrap())
}

/// A daemon with a route to the upstream for every name and its `tls`.
fn start(folder: tempfile::TempDir, upstream: &Upstream, routes: &[(&str, String)]) -> Daemon {
    let mut configuration = "server = { listen = [\"127.0.0.1:0\"], workers = 2 }\n".to_owned();
    for (name, tls) in routes {
        let route = format!("[routes.{name}]\nupstream = \"{}\"\ntls = {{ {tls} }}\n", upstream.url());
        writeln!(configuration, "{route}[routes.{name}.header]\nheaders = {{ X-Auth-Token = \"t\" }}").unwrap();
    }
    Daemon::start_in(folder, &configuration, |_| {})
}

fn get(route: &str) -> String {
    format!("GET /{route}/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A folder with a CA and clients' certificates of its own, and that CA.
fn folder(clients: &[&str]) -> (tempfile::TempDir, Authority) {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("ours").unwrap());
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.pem", authority.pem());
    for name in clients {
        let client = authority.client(name).unwrap();
        write(&format!("{name}.pem"), client.certificate_pem());
        write(&format!("{name}.key"), client.key_pem(KeyFormat::Pkcs8));
    }
    (folder, authority)
}

/// No certificate.
const NOBODY: &str = "ca = \"ca.pem\"";

fn showing(client: &str) -> String {
    format!("ca = \"ca.pem\", cert = \"{client}.pem\", key = \"{client}.key\"")
}

#[test]
fn a_second_handshake_resumes_the_first_ones_session() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (folder, authority) = folder(&["anna"]);
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&kinds);
        let upstream = server(&authority.server(&["127.0.0.1"]).unwrap(), &authority, &[version], move |mut conn| {
            conn.request();
            seen.lock().unwrap().push(conn.session().unwrap().handshake_kind());
            let who = who(&conn);
            conn.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{who}", who.len()));
            conn.close();
        });
        let daemon = start(folder, &upstream, &[("up", showing("anna"))]);
        let mut http = caller(&daemon);
        for _ in 0..4 {
            http.send(get("up"));
            assert_eq!(http.reply().text(), "anna");
        }
        let kinds = kinds.lock().unwrap();
        // A server may want another group first, which is a full handshake too.
        assert!(kinds.first().is_some_and(|kind| *kind != Some(HandshakeKind::Resumed)), "{kinds:?}");
        assert!(kinds.iter().skip(1).all(|kind| *kind == Some(HandshakeKind::Resumed)), "{version:?}: {kinds:?}");
    }
}

#[test]
fn no_route_shows_anothers_certificate_on_whatever_connection() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (folder, authority) = folder(&["anna", "berta"]);
        let upstream = server(&authority.server(&["127.0.0.1"]).unwrap(), &authority, &[version], |mut conn| {
            // Each connection answers a few requests, so that there are pooled ones and resumed sessions.
            for left in (0..3).rev() {
                if conn.request().is_none() {
                    return;
                }
                let resumed = conn.session().unwrap().handshake_kind() == Some(HandshakeKind::Resumed);
                let said = format!("{} {}", who(&conn), if resumed { "resumed" } else { "anew" });
                let end = if left == 0 { "Connection: close\r\n" } else { "" };
                conn.send(format!("HTTP/1.1 200 OK\r\n{end}Content-Length: {}\r\n\r\n{said}", said.len()));
            }
            conn.close();
        });
        let routes = [("anna", showing("anna")), ("berta", showing("berta")), ("nobody", NOBODY.to_owned())];
        let daemon = start(folder, &upstream, &routes);
        let resumed = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|shift| {
                    let daemon = &daemon;
                    scope.spawn(move || {
                        let (mut http, mut resumed) = (caller(daemon), 0);
                        for turn in 0..30 {
                            let route = ["anna", "berta", "nobody"][(shift + turn * (1 + shift % 2)) % 3];
                            http.send(get(route));
                            let said = http.reply().text();
                            let (who, how) = said.split_once(' ').unwrap();
                            assert_eq!(who, route);
                            resumed += usize::from(how == "resumed");
                        }
                        resumed
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).sum::<usize>()
        });
        assert!(resumed > 0 && upstream.connections() < 180, "{resumed} of {}", upstream.connections());
    }
}

#[test]
fn a_server_that_one_route_does_not_verify_is_verified_by_the_others_all_the_same() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (folder, authority) = folder(&[]);
        let stranger = Authority::new("a stranger").unwrap();
        let identity = stranger.server(&["127.0.0.1"]).unwrap();
        let upstream = server(&identity, &authority, &[version], |mut conn| {
            while conn.request().is_some() {
                conn.ok("ok");
            }
        });
        let routes =
            [("none", "verify = \"none\""), ("full", NOBODY), ("ca-only", "ca = \"ca.pem\", verify = \"ca-only\"")];
        let routes = routes.map(|(name, tls)| (name, tls.to_owned()));
        let daemon = start(folder, &upstream, &routes);
        let mut http = caller(&daemon);
        for _ in 0..3 {
            http.send(get("none"));
            assert_eq!(http.reply().text(), "ok");
            for route in ["full", "ca-only"] {
                http.send(get(route));
                let message = http.reply().expect(502, "upstream_tls");
                assert!(message.contains("\"a stranger\", which is not in `tls.ca`"), "{message}");
            }
        }
    }
}
