//! Every kind of file, replaced under load.

use std::os::unix::fs::symlink;
use std::path::Path;

use countersign::clock::Clock;
use countersign::credential::{AccessKey, ExposeSecret};
use countersign::demo::certificates::{Authority, KeyFormat};
use countersign::upstream::tls::provider;
use countersign::upstream::x509::{Certificate, common_name};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

use crate::cloud::Cloud;
use crate::daemon::Daemon;
use crate::load::{CHANGES, Load};
use crate::scene::{acm, key_of, start_cloud};
use crate::script::{Conn, Upstream, await_that, header};
use crate::{SERVER, caller, swap};

/// Writes a file now in place and now by putting another in its place.
fn replace(folder: &Path, name: &str, content: &str, number: usize) {
    if number.is_multiple_of(2) {
        swap(folder, name, content);
    } else {
        std::fs::write(folder.join(name), content).unwrap();
    }
}

/// A server that wants certificates of an authority's, and says whose it was shown.
pub(crate) fn asking(authority: &Authority) -> Upstream {
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_client_cert_verifier(clients);
    let config = builder.with_single_cert(vec![identity.certificate()], identity.key()).unwrap();
    let who = |conn: &Conn| {
        let shown = conn.session().unwrap().peer_certificates().and_then(<[_]>::first).unwrap();
        common_name(Certificate::parse(shown).unwrap().subject).unwrap()
    };
    Upstream::start_tls(config, move |mut conn| {
        while conn.request().is_some() {
            let who = who(&conn);
            if !conn.ok(who) {
                return;
            }
        }
    })
}

/// A client's certificate and its key in PEM.
pub(crate) fn pair(authority: &Authority, name: &str) -> (String, String) {
    let client = authority.client(name).unwrap();
    (client.certificate_pem(), client.key_pem(KeyFormat::Traditional))
}

fn mtls(upstream: &Upstream, tls: &str) -> String {
    format!("{SERVER}[routes.up]\nupstream = \"{}\"\ntls = {{ {tls} }}\n[routes.up.mtls]\n", upstream.url())
}

#[test]
fn a_secret_is_replaced_under_load() {
    let upstream = Upstream::start(|mut conn| {
        while let Some((head, _)) = conn.request() {
            let token = header(&head, "x-auth-token").unwrap().to_owned();
            if !conn.ok(token) {
                return;
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "token 0\n").unwrap();
    let route = format!(
        "[routes.up]\nupstream = \"{}\"\n[routes.up.header]\nheaders = {{ X-Auth-Token = {{ file = \"token\" }} }}\n",
        upstream.url()
    );
    let daemon = Daemon::start_in(folder, &(SERVER.to_owned() + &route), |_| {});
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        replace(daemon.folder(), "token", &format!("token {number}\n"), number);
        load.await_answer(&format!("token {number}"));
    }
    assert_eq!(load.end().len(), CHANGES + 1);
}

#[test]
fn a_certificate_and_its_key_are_replaced_under_load() {
    let authority = Authority::new("ours").unwrap();
    let upstream = asking(&authority);
    let folder = tempfile::tempdir().unwrap();
    let write = |folder: &Path, number: usize| {
        let (cert, key) = pair(&authority, &format!("client {number}"));
        replace(folder, "cert.pem", &cert, number);
        replace(folder, "key.pem", &key, number / 2);
        // Others beside the one that it takes to reach the server.
        let ca = authority.pem() + &Authority::new(&format!("other {number}")).unwrap().pem();
        replace(folder, "ca.pem", &ca, number / 3);
    };
    write(folder.path(), 0);
    let files = "ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\"";
    let daemon = Daemon::start_in(folder, &mtls(&upstream, files), |_| {});
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        write(daemon.folder(), number);
        load.await_answer(&format!("client {number}"));
    }
    assert!(load.end().len() > CHANGES);
}

#[test]
fn a_ca_is_replaced_under_load() {
    let authority = Authority::new("ours").unwrap();
    let upstream = asking(&authority);
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = pair(&authority, "anna");
    for (name, content) in [("ca.pem", &authority.pem()), ("cert.pem", &cert), ("key.pem", &key)] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let files = "ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\"";
    let daemon = Daemon::start_in(folder, &mtls(&upstream, files), |_| {});
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        let before = upstream.connections();
        let ca = authority.pem() + &Authority::new(&format!("other {number}")).unwrap().pem();
        crate::reload(&daemon, || replace(daemon.folder(), "ca.pem", &ca, number));
        await_that("a handshake with the new CA", || upstream.connections() > before);
    }
    load.end();
    std::fs::write(daemon.folder().join("ca.pem"), Authority::new("a stranger").unwrap().pem()).unwrap();
    await_that("no handshake with a stranger's", || caller(&daemon).get("/").code() == Some("upstream_tls"));
}

#[test]
fn a_bundle_is_replaced_under_load() {
    let authority = Authority::new("ours").unwrap();
    let upstream = asking(&authority);
    let bundle = |number: usize| {
        let (cert, key) = pair(&authority, &format!("client {number}"));
        json!({ "ca": authority.pem(), "cert": cert, "key": key }).to_string()
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("reply.json"), bundle(0)).unwrap();
    let daemon = Daemon::start_in(folder, &mtls(&upstream, "bundle = \"reply.json\""), |_| {});
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        replace(daemon.folder(), "reply.json", &bundle(number), number);
        load.await_answer(&format!("client {number}"));
    }
    assert_eq!(load.end().len(), CHANGES + 1);
}

/// A cloud that knows every key there will be.
fn knowing() -> Cloud {
    let cloud = start_cloud(&Clock::system());
    for number in 1..=CHANGES {
        cloud.add(&key_of(number));
    }
    cloud
}

fn rotate(cloud: &Cloud, daemon: &Daemon, write: impl Fn(&AccessKey, usize)) {
    let load = Load::start(daemon.address(), "up", "/diamond-server/config.co?dataId=a&group=G&tenant=T");
    for number in 1..=CHANGES {
        let key = key_of(number);
        write(&key, number);
        await_that("the new key", || cloud.acm.accepted(&key.access_key) > 0);
    }
    load.end();
    assert_eq!(cloud.acm.refused(""), 0, "of a new key and an old secret no request was made");
}

#[test]
fn a_credential_file_is_replaced_under_load() {
    let cloud = knowing();
    let json = |key: &AccessKey| {
        json!({ "AccessKeyId": key.access_key, "SecretAccessKey": key.secret_key.expose_secret() }).to_string()
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key.json"), json(&key_of(0))).unwrap();
    let service = acm(&cloud);
    let credentials = "{ source = \"file\", path = \"key.json\" }";
    let configuration = SERVER.to_owned() + &service.route_with("up", &service.http, "", credentials);
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    rotate(&cloud, &daemon, |key, number| replace(daemon.folder(), "key.json", &json(key), number));
}

/// Puts a folder in the place of another as Kubernetes does: by a link on the way to every file.
fn mount(volume: &Path, number: usize, files: &[(&str, &str)]) {
    let name = format!("..{number}");
    std::fs::create_dir_all(volume.join(&name)).unwrap();
    for (file, content) in files {
        std::fs::write(volume.join(&name).join(file), content).unwrap();
        if number == 0 {
            symlink(format!("..data/{file}"), volume.join(file)).unwrap();
        }
    }
    symlink(&name, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Some(old) = number.checked_sub(1) {
        std::fs::remove_dir_all(volume.join(format!("..{old}"))).unwrap();
    }
}

#[test]
fn a_mounted_key_is_replaced_under_load_and_never_mixed() {
    let cloud = knowing();
    let folder = tempfile::tempdir().unwrap();
    let write = |folder: &Path, key: &AccessKey, number: usize| {
        let files = [("access_key", key.access_key.as_str()), ("secret_key", key.secret_key.expose_secret())];
        mount(&folder.join("mount"), number, &files);
    };
    write(folder.path(), &key_of(0), 0);
    let service = acm(&cloud);
    let credentials = "{ access_key = { file = \"mount/access_key\" }, secret_key = { file = \"mount/secret_key\" } }";
    let configuration = SERVER.to_owned() + &service.route_with("up", &service.http, "", credentials);
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    rotate(&cloud, &daemon, |key, number| write(daemon.folder(), key, number));
}

#[test]
fn a_mounted_certificate_is_replaced_under_load_and_never_mixed() {
    let authority = Authority::new("ours").unwrap();
    let upstream = asking(&authority);
    let folder = tempfile::tempdir().unwrap();
    let write = |folder: &Path, number: usize| {
        let (cert, key) = pair(&authority, &format!("client {number}"));
        let ca = authority.pem() + &Authority::new(&format!("other {number}")).unwrap().pem();
        mount(&folder.join("mount"), number, &[("ca.pem", &ca), ("tls.crt", &cert), ("tls.key", &key)]);
    };
    write(folder.path(), 0);
    let files = "ca = \"mount/ca.pem\", cert = \"mount/tls.crt\", key = \"mount/tls.key\"";
    let daemon = Daemon::start_in(folder, &mtls(&upstream, files), |_| {});
    let load = Load::start(daemon.address(), "up", "/");
    for number in 1..=CHANGES {
        write(daemon.folder(), number);
        load.await_answer(&format!("client {number}"));
    }
    assert_eq!(load.end().len(), CHANGES + 1);
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn whoever_asks_for_credentials_trusts_the_new_roots() {
    let cloud = start_cloud(&Clock::system());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("roots.pem"), Authority::new("a stranger").unwrap().pem()).unwrap();
    let server = SERVER.replace("workers = 2", "workers = 2, extra_ca = [\"roots.pem\"]");
    let iam = format!("iam = \"{}\"\naccount = \"the-account\"\nuser = \"the-user\"", cloud.iam.https());
    let route = format!(
        "[routes.up]\nupstream = \"{}\"\nplaintext = true\n[routes.up.huawei-token]\n{iam}\npassword = \"the-password\"\n\
         scope = {{ domain = \"the-account\" }}\n",
        cloud.service.http()
    );
    let daemon = Daemon::start_in(folder, &(server + &route), |_| {});
    let message = caller(&daemon).get("/").expect(503, "credential_unavailable");
    assert!(message.contains("TLS"), "{message}");
    swap(daemon.folder(), "roots.pem", cloud.authority.pem());
    await_that("a token", || caller(&daemon).get("/").status == 200);
}
