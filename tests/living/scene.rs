//! The played clouds, a daemon before them whose clock a test can set, and callers.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use countersign::clock::{Clock, Timestamp};
use countersign::config::{self, Config};
use countersign::credential::keeper::Keeper;
use countersign::credential::{AccessKey, ExposeSecret};
use countersign::proxy::daemon::{Daemon, Plan, Wishes};
use countersign::proxy::handed::Handed;
use countersign::proxy::listen::Address;
use countersign::proxy::refusals::Refusal;
use countersign::proxy::state::Access;
use countersign::settings::BareSecrets;
use tempfile::TempDir;

use crate::cloud::{Cloud, Control, Site};
use crate::daemon;
use crate::script::{Http, Reply};

/// The longest body that is held so that it can be sent again, by default.
pub(crate) const HELD: usize = 64 << 10;

/// The key that every service knows.
pub(crate) fn key() -> AccessKey {
    key_of(0)
}

/// The key of a generation.
pub(crate) fn key_of(generation: usize) -> AccessKey {
    AccessKey {
        access_key: format!("AKgeneration{generation:03}"),
        secret_key: format!("the secret of generation {generation}").into(),
        security_token: None,
    }
}

/// The clouds, in which the key is known.
pub(crate) fn start_cloud(clock: &Clock) -> Cloud {
    let cloud = Cloud::start(clock);
    cloud.add(&key());
    cloud
}

/// A service of the clouds, and how it is asked.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) http: String,
    pub(crate) https: String,
    pub(crate) control: Arc<Control>,
    /// What it wants to be asked.
    pub(crate) path: &'static str,
    /// By how many seconds clocks may differ.
    pub(crate) window: i64,
    table: &'static str,
}

/// Those that verify signatures.
pub(crate) fn services(cloud: &Cloud) -> [Service; 4] {
    [acm(cloud), baidu(cloud), gateway(cloud), acs(cloud)]
}

pub(crate) fn acm(cloud: &Cloud) -> Service {
    let path = "/diamond-server/config.co?dataId=a&group=G&tenant=T";
    Service::of("acm", &cloud.acm, path, 60, "[routes.NAME.acm]\nrate_limit = false\n")
}

pub(crate) fn baidu(cloud: &Cloud) -> Service {
    Service::of("baidu", &cloud.baidu, "/v1/certificate", 1800, "[routes.NAME.bce]\n")
}

pub(crate) fn gateway(cloud: &Cloud) -> Service {
    Service::of("gateway", &cloud.gateway, "/v1/vpcs", 900, "[routes.NAME.huawei-aksk]\n")
}

pub(crate) fn acs(cloud: &Cloud) -> Service {
    Service::of("acs", &cloud.acs, "/clusters", 900, "[routes.NAME.acs-roa]\nversion = \"2015-12-15\"\n")
}

impl Service {
    fn of<S>(name: &'static str, site: &Site<S>, path: &'static str, window: i64, table: &'static str) -> Self {
        let control = Arc::clone(&site.control);
        Self { name, http: site.http(), https: site.https(), control, path, window, table }
    }

    /// A route `up` to it, with the key that it knows.
    pub(crate) fn route(&self, upstream: &str) -> String {
        self.route_with("up", upstream, "", &written(&key()))
    }

    /// A route to it.
    pub(crate) fn route_with(&self, name: &str, upstream: &str, keys: &str, credentials: &str) -> String {
        let tls = if upstream.starts_with("https") {
            format!("[routes.{name}.tls]\nca = \"ca.pem\"\n")
        } else {
            String::new()
        };
        let table = self.table.replace("NAME", name);
        format!("[routes.{name}]\nupstream = \"{upstream}\"\n{keys}\n{tls}{table}credentials = {credentials}\n")
    }

    /// How many requests it has answered.
    pub(crate) fn count(&self) -> usize {
        self.control.calls().len()
    }
}

/// Credentials that stand in the file.
pub(crate) fn written(key: &AccessKey) -> String {
    format!("{{ access_key = \"{}\", secret_key = \"{}\" }}", key.access_key, key.secret_key.expose_secret())
}

/// A daemon with a clock of its own, which stops when it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) folder: TempDir,
    daemon: Daemon,
}

impl Proxy {
    /// With this clock, trusting the clouds' certificates.
    pub(crate) fn start(cloud: &Cloud, clock: &Clock, routes: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), cloud, clock, routes)
    }

    /// The same with a folder that is there already.
    pub(crate) fn start_in(folder: TempDir, cloud: &Cloud, clock: &Clock, routes: &str) -> Self {
        std::fs::write(folder.path().join("ca.pem"), cloud.authority.pem()).unwrap();
        let text = format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{routes}");
        let parsed = config::parse(&text, &folder.path().join("countersign.toml"), BareSecrets::Accept);
        let Config { server, routes, limits, .. } = parsed.unwrap_or_else(|invalid| panic!("{invalid}"));
        let wishes = Wishes { server, routes, limits, access: Access::Off, file: None };
        let plan = Plan { wishes, others: Vec::new(), handed: Handed::default(), workers: 2, clock: clock.clone() };
        let daemon = Daemon::start(plan).unwrap_or_else(|error| panic!("{error}"));
        let Some((_, &Address::Tcp(address))) = daemon.listening().next() else { panic!("it does not listen") };
        Self { address, folder, daemon }
    }

    /// A caller's connection.
    pub(crate) fn caller(&self) -> Http<TcpStream> {
        Http::new(daemon::connect(self.address))
    }

    /// A GET to the route `up` on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Reply {
        self.caller().get(path)
    }

    /// The same to another route, with any method and body.
    pub(crate) fn ask(&self, route: &str, method: &str, path: &str, body: &str) -> Reply {
        let mut caller = self.caller();
        let request = crate::script::request(method, path, body);
        caller.send(request.replace("Host: up.localhost", &format!("Host: {route}.localhost")));
        if method == "HEAD" { caller.reply_without_body() } else { caller.reply() }
    }

    /// What keeps a route's credential.
    pub(crate) fn keeper(&self, route: &str) -> Arc<Keeper> {
        let state = self.daemon.state.load();
        Arc::clone(&state.routes.iter().find(|known| known.name == route).unwrap().keeper)
    }

    /// Whether every route has been able to send a request at some time.
    pub(crate) fn has_been_ready(&self) -> bool {
        self.daemon.state.load().has_been_ready()
    }

    /// What was refused, the newest last.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.daemon.state.load().lasting.refusals.last()
    }
}

/// The machine's time, for clocks that stand still: certificates must be valid.
pub(crate) fn now() -> Timestamp {
    Clock::system().now()
}

/// So many seconds later.
pub(crate) fn later(time: Timestamp, seconds: i64) -> Timestamp {
    Timestamp(time.0 + seconds * 1000)
}

/// Why a reply says that it was sent again.
pub(crate) fn retry(reply: &Reply) -> Option<&str> {
    reply.header("x-countersign-retry")
}
