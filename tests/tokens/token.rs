//! Routes with tokens of the played IAM, and their callers.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use countersign::clock::Clock;

use crate::cloud::Cloud;
use crate::daemon::{self, Daemon};
use crate::script::{Http, Reply, await_that, request};

/// A route with a token of IAM's.
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) name: &'a str,
    /// More keys of the route.
    pub(crate) keys: &'a str,
    /// Where IAM is, if not in the clear.
    pub(crate) iam: &'a str,
    /// As the configuration writes it.
    pub(crate) password: &'a str,
    pub(crate) scope: &'a str,
}

pub(crate) const TOKEN: Token<'_> =
    Token { name: "up", keys: "", iam: "", password: "\"the-password\"", scope: "{ project = \"cn-north-4\" }" };

impl Token<'_> {
    /// The route to the service that wants such a token.
    pub(crate) fn route(self, cloud: &Cloud) -> String {
        let Self { name, keys, iam, password, scope } = self;
        let iam = if iam.is_empty() { format!("iam = \"{}\"", cloud.iam.http()) } else { iam.to_owned() };
        let upstream = cloud.service.http();
        format!(
            "[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n[routes.{name}.huawei-token]\n{iam}\n\
             account = \"the-account\"\nuser = \"the-user\"\npassword = {password}\nscope = {scope}\n"
        )
    }
}

/// The binary, with these routes.
pub(crate) fn start(cloud: &Cloud, server: &str, tables: &str) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), cloud.authority.pem()).unwrap();
    start_in(folder, server, tables)
}

/// The same with a folder that is there already.
pub(crate) fn start_in(folder: tempfile::TempDir, server: &str, tables: &str) -> Daemon {
    Daemon::start_in(folder, &format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n{tables}"), |_| {})
}

/// A caller's connection, with a request sent.
pub(crate) fn send(address: SocketAddr, route: &str, method: &str, body: &str) -> Http<TcpStream> {
    let mut caller = Http::new(daemon::connect(address));
    caller.send(request(method, "/v1/vpcs", body).replace("Host: up.", &format!("Host: {route}.")));
    caller
}

/// A GET on a connection of its own.
pub(crate) fn get(address: SocketAddr, route: &str) -> Reply {
    send(address, route, "GET", "").reply()
}

/// A POST on a connection of its own.
pub(crate) fn post(address: SocketAddr, route: &str, length: usize) -> Reply {
    send(address, route, "POST", &"x".repeat(length)).reply()
}

/// Lets pauses pass, each at most a minute, until something has come of it.
pub(crate) fn await_pauses(clock: &Clock, what: &str, condition: impl Fn() -> bool) {
    await_that(what, || {
        let is_so = condition();
        if !is_so {
            clock.set(clock.now().after(Duration::from_secs(60)));
        }
        is_so
    });
}
