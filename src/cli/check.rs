//! `countersign check`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::{LocalOptions, LocalRuntime};

use crate::clock::Clock;
use crate::config::{self, Admin, Config};
use crate::proxy::lasting::Lasting;
use crate::proxy::listen::Address;
use crate::proxy::state::Route;
use crate::proxy::{RouteSettings, ServerSettings};
use crate::upstream::tls::Roots;

use super::live::{self, Report};
use super::{ConfigFile, Failed, complain, patiently, print};

/// Validate a configuration and every secret it refers to, without printing any
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Also fetch what must be fetched, reach every server and compare clocks
    #[arg(long)]
    live: bool,
}

/// Makes every route ready, as the daemon would, and says what it found. Of a wrong configuration it does so for whatever
/// could be read, so that everything wrong is told at once.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let path = arguments.file.locate()?;
    let (config, mut remarks) = match config::load(&path) {
        Ok(config) => (Some(config), Vec::new()),
        Err(invalid) => (invalid.rest.map(|rest| *rest), invalid.remarks),
    };
    let is_right = remarks.is_empty();
    let mut lines = String::new();
    let mut troubles = 0;
    let mut err = std::io::stderr().lock();
    if let Some(Config { routes, server, mut warnings, admin, .. }) = config {
        let own = own(&server, &routes, admin.as_ref());
        let live = (arguments.live && is_right).then(runtime).transpose()?;
        let now = Clock::system().now();
        let width = routes.iter().map(|route| route.name.len()).max().unwrap_or(0);
        let has_extra = !server.extra_ca.is_empty();
        let lasting = Arc::new(Lasting::new(Clock::system(), Roots::new(server.extra_ca)));
        if has_extra {
            // Even where no route uses them yet.
            remarks.extend(lasting.roots.load().get().err());
        }
        for route in routes {
            let (name, provider) = (route.name.clone(), route.registration.name);
            let (proxy, mut report) = (route.proxy.clone(), Report::default());
            let mut upstream: Vec<_> = route.upstream.iter().map(ToString::to_string).collect();
            let verdict = match Route::prepare(route, &lasting) {
                Ok(route) => {
                    let servers = route.located.now();
                    warnings.extend(servers.validities.iter().filter_map(|validity| validity.remark(now)));
                    // Now with the proxies between.
                    upstream = servers.all().iter().map(|endpoint| endpoint.target.to_string()).collect();
                    if let Some(runtime) = &live {
                        let what = format!("what the route \"{name}\" needs from others");
                        let examined = live::examine(&route, &lasting, proxy, Arc::clone(&own));
                        report = runtime.block_on(patiently(&what, examined));
                    }
                    "ok"
                }
                Err(found) => {
                    remarks.extend(found);
                    "not usable"
                }
            };
            if upstream.is_empty() {
                upstream.push("whatever is found out".to_owned());
            }
            let _ = writeln!(lines, "{name:width$}  {provider} -> {}: {verdict}", upstream.join(", "));
            lines.push_str(&report.lines);
            troubles += report.troubles;
        }
        for warning in &warnings {
            let _ = writeln!(err, "warning: {}", warning.of(&path));
        }
    }
    // Routes share what `[server]` says, so they share its mistakes.
    remarks.sort();
    remarks.dedup();
    for remark in &remarks {
        let _ = writeln!(err, "{}", remark.of(&path));
    }
    // What is left of a route that is partly wrong is nothing to be judged.
    if is_right {
        print(lines);
    }
    match (remarks.is_empty(), troubles) {
        (false, _) => Err(Failed::Configuration),
        (true, 0) => Ok(()),
        (true, _) => Err(Failed::Running),
    }
}

/// Our own listeners, which no route should lead to.
fn own(server: &ServerSettings, routes: &[RouteSettings], admin: Option<&Admin>) -> Arc<[SocketAddr]> {
    let admin = admin.map(|admin| &admin.listen);
    let addresses = server.listen.iter().chain(routes.iter().flat_map(|route| &route.listen)).chain(admin);
    let tcp = addresses.filter_map(|address| match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    });
    tcp.collect()
}

fn runtime() -> Result<LocalRuntime, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(|error| {
        complain(format!("nothing can be tried out: {error}"));
        Failed::Running
    })
}

const EXAMPLES: &str = "\
Examples:
  countersign check
  countersign check -c countersign.toml --live";
