//! What cannot be taken over: the old state serves, the log and the status say why, and what is mended takes effect.

use std::net::TcpListener;

use countersign::demo::certificates::{Authority, KeyFormat, Purpose, Validity, Wish};

use crate::daemon::{Daemon, write_configuration};
use crate::files::{asking, pair};
use crate::script::{Upstream, await_that};
use crate::{SERVER, caller, metric, reload, route, status, swap};

/// True once the status says both that the old configuration serves and why.
fn is_told(daemon: &Daemon, why: &str) -> bool {
    let warnings = status(daemon)["warnings"].to_string();
    warnings.contains("the one before it goes on serving") && warnings.contains(why)
}

#[test]
fn a_configuration_that_cannot_be_taken_over_leaves_the_old_one() {
    let [old, new] = ["old", "new"].map(|name| Upstream::start(move |conn| conn.serve(name)));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = |upstream: &Upstream| SERVER.to_owned() + &route("up", &upstream.url(), "");
    let daemon = Daemon::start(&good(&old));
    let other = good(&new);
    let bad = [
        ("syntax", other.clone() + "[", "countersign.toml:"),
        ("unknown key", other.clone() + "[sever]\n", "`sever`"),
        ("blank", "\n".to_owned(), "the file is empty"),
        (
            "secret",
            other.replace("{ X-Auth-Token = \"t\" }", "{ X-Auth-Token = { file = \"no-such-file\" } }"),
            "no-such-file",
        ),
        (
            "ca",
            other.replace("[routes.up]", "[routes.up]\ntls.ca = \"none.pem\"").replace("http:", "https:"),
            "none.pem",
        ),
        (
            "address",
            other.replace(
                "[\"127.0.0.1:0\"]",
                &format!("[\"127.0.0.1:0\", \"unix:DIR/new.sock\", \"{}\"]", taken.local_addr().unwrap()),
            ),
            "another process does",
        ),
    ];
    for (name, configuration, why) in bad {
        write_configuration(daemon.folder(), &configuration);
        await_that(name, || is_told(&daemon, why));
        daemon.await_log(why);
        assert_eq!(caller(&daemon).get("/").text(), "old", "{name}");
        assert_eq!(metric(&daemon, SUCCESSFUL).to_bits(), 0.0_f64.to_bits(), "{name}");
    }
    let before = metric(&daemon, TIMESTAMP);
    assert!(!daemon.folder().join("new.sock").exists(), "what was bound for nothing leaves nothing behind");
    reload(&daemon, || drop(write_configuration(daemon.folder(), &other)));
    assert_eq!(caller(&daemon).get("/").text(), "new");
    assert_eq!(status(&daemon)["warnings"].as_array().map(Vec::len), Some(0));
    assert_eq!(metric(&daemon, SUCCESSFUL).to_bits(), 1.0_f64.to_bits());
    assert!(metric(&daemon, TIMESTAMP) > before);
}

const SUCCESSFUL: &str = "countersign_config_last_reload_successful";
const TIMESTAMP: &str = "countersign_config_last_reload_success_timestamp_seconds";

#[test]
fn an_identity_that_cannot_be_taken_over_leaves_the_old_one() {
    let authority = Authority::new("ours").unwrap();
    let upstream = asking(&authority);
    let folder = tempfile::tempdir().unwrap();
    let (anna, berta, carla) = (pair(&authority, "anna"), pair(&authority, "berta"), pair(&authority, "carla"));
    let wish = Wish { validity: Validity::Expired, ..Wish::new(Purpose::Client, "expired") };
    let expired = authority.issue(&wish).unwrap();
    let expired = (expired.certificate_pem(), expired.key_pem(KeyFormat::Pkcs8));
    for (name, content) in [("ca.pem", &authority.pem()), ("cert.pem", &anna.0), ("key.pem", &anna.1)] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let tls = "ca = \"ca.pem\", cert = \"cert.pem\", key = \"key.pem\"";
    let configuration =
        format!("{SERVER}[routes.up]\nupstream = \"{}\"\ntls = {{ {tls} }}\n[routes.up.mtls]\n", upstream.url());
    let daemon = Daemon::start_in(folder, &configuration, |_| {});
    let write = |cert: &str, key: &str| {
        swap(daemon.folder(), "cert.pem", cert);
        swap(daemon.folder(), "key.pem", key);
    };
    for (cert, key, why) in [
        (&berta.0, &carla.1, "not the key of the certificate"),
        (&"nothing".to_owned(), &carla.1, "no certificate in PEM"),
        (&expired.0, &expired.1, "expired on"),
    ] {
        write(cert, key);
        await_that(why, || is_told(&daemon, why));
        assert_eq!(caller(&daemon).get("/").text(), "anna", "{why}");
    }
    reload(&daemon, || write(&berta.0, &berta.1));
    assert_eq!(caller(&daemon).get("/").text(), "berta");
    // Where there is nothing better, at the start, it is taken: it may be the clock that is wrong.
    write(&expired.0, &expired.1);
    await_that("expired", || is_told(&daemon, "expired on"));
}
