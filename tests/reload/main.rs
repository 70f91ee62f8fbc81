//! What a running daemon takes over: another configuration, other files, other listeners, other servers.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "what helps a test may panic as a test may"
)]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../living/scene.rs"]
#[allow(dead_code, reason = "another crate's scene, of which this one uses its own part")]
mod scene;
#[path = "../support/script.rs"]
mod script;

mod bad;
mod discovery;
mod files;
mod listeners;
mod lists;
mod load;
mod restart;

use std::net::TcpStream;
use std::path::Path;

use daemon::{Daemon, exchange, write_configuration};
use script::{Http, await_that};
use serde_json::Value;

/// Listeners that the kernel chooses ports for.
const SERVER: &str = "server = { listen = [\"127.0.0.1:0\"], workers = 2 }\nadmin.listen = \"unix:DIR/admin.sock\"\n";

/// A route that sets a header.
fn route(name: &str, upstream: &str, keys: &str) -> String {
    format!(
        "[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n[routes.{name}.header]\nheaders = {{ X-Auth-Token = \"t\" }}\n"
    )
}

/// A caller's connection to a daemon.
fn caller(daemon: &Daemon) -> Http<TcpStream> {
    Http::new(daemon.connect())
}

/// Puts a file in the place of another at once.
fn swap(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

/// Writes the configuration by putting another file in its place.
fn swap_configuration(folder: &Path, configuration: &str) {
    let aside = tempfile::tempdir_in(folder).unwrap();
    let written = write_configuration(aside.path(), &configuration.replace("DIR", folder.to_str().unwrap()));
    std::fs::rename(written, folder.join("countersign.toml")).unwrap();
}

/// How many times a text is in the log.
fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.log().matches(text).count()
}

/// Changes something and waits until that was taken over.
fn reload(daemon: &Daemon, change: impl FnOnce()) {
    let before = count(daemon, " reloaded");
    change();
    await_that("a reload", || count(daemon, " reloaded") > before);
}

/// What `/status` tells.
fn status(daemon: &Daemon) -> Value {
    serde_json::from_str(&admin(daemon, "/status")).unwrap()
}

/// The value of a metric without labels.
fn metric(daemon: &Daemon, name: &str) -> f64 {
    let metrics = admin(daemon, "/metrics");
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

fn admin(daemon: &Daemon, path: &str) -> String {
    let stream = std::os::unix::net::UnixStream::connect(daemon.folder().join("admin.sock")).unwrap();
    let reply = exchange(stream, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    reply.split_once("\r\n\r\n").unwrap().1.to_owned()
}
