//! `countersign check`.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::config::{self, Config};
use crate::proxy::state::Route;
use crate::upstream::tls::Roots;

use super::{ConfigFile, Failed, print};

/// Validate a configuration and every secret it refers to, without printing any
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
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
    let mut err = std::io::stderr().lock();
    if let Some(Config { routes, server, warnings, .. }) = config {
        let width = routes.iter().map(|route| route.name.len()).max().unwrap_or(0);
        let has_extra = !server.extra_ca.is_empty();
        let roots = Roots::new(server.extra_ca);
        if has_extra {
            // Even where no route uses them yet.
            remarks.extend(roots.get().err());
        }
        for route in routes {
            let (name, provider) = (route.name.clone(), route.registration.name);
            let mut upstream: Vec<_> = route.upstream.iter().map(ToString::to_string).collect();
            let verdict = match Route::prepare(route, &roots) {
                Ok(route) => {
                    // Now with the proxies between.
                    upstream = route.endpoints.iter().map(|endpoint| endpoint.target.to_string()).collect();
                    "ok"
                }
                Err(found) => {
                    remarks.extend(found);
                    "not usable"
                }
            };
            let _ = writeln!(lines, "{name:width$}  {provider} -> {}: {verdict}", upstream.join(", "));
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
    if remarks.is_empty() { Ok(()) } else { Err(Failed::Configuration) }
}
