//! The daemon between sockets that misbehave: connections that die, silences, bodies, TLS, signals.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "what helps a test may panic as a test may"
)]

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/frames.rs"]
mod frames;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/script.rs"]
mod script;

mod bodies;
mod bundles;
mod cuts;
mod h2;
mod h2c;
mod leaving;
mod outbound;
mod process;
mod refused;
mod reuse;
mod sessions;
mod streaming;
mod timeouts;
mod tls;
mod told;
mod upgrades;

use std::net::TcpStream;

use countersign::demo::certificates::{Authority, Identity};
use countersign::upstream::tls::provider;
use daemon::Daemon;
use rustls::ServerConfig;
use script::{Http, Upstream};

/// A daemon on one port with one route, `up`, that sets a header. `top` holds keys before any table, such as
/// `limits.connections = 1`; `route` those of the route.
fn daemon(upstream: &str, top: &str, route: &str) -> Daemon {
    Daemon::start(&configuration(upstream, top, route))
}

fn configuration(upstream: &str, top: &str, route: &str) -> String {
    format!(
        r#"
        server.listen = ["127.0.0.1:0"]
        {top}
        [routes.up]
        upstream = "{upstream}"
        {route}
        [routes.up.header]
        headers = {{ "X-Auth-Token" = "the token" }}
        "#
    )
}

/// A caller's connection to a daemon.
fn caller(daemon: &Daemon) -> Http<TcpStream> {
    Http::new(daemon.connect())
}

/// What a server needs to show a certificate.
fn server_config(identity: &Identity) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    builder.with_no_client_auth().with_single_cert(vec![identity.certificate()], identity.key()).unwrap()
}

/// An upstream over TLS on 127.0.0.1, its CA in `ca.pem` of the folder that a daemon is to be started in.
fn secure_upstream(script: impl Fn(script::Conn) + Send + Sync + 'static) -> (Upstream, tempfile::TempDir) {
    let authority = Authority::new("a test CA").unwrap();
    let identity = authority.server(&["127.0.0.1"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    (Upstream::start_tls(server_config(&identity), script), folder)
}
