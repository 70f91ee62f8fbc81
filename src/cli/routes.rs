//! `countersign routes`.

use std::fmt::Write as _;

use crate::config::Config;
use crate::proxy::listen::Address;
use crate::proxy::{RouteSettings, ServerSettings};

use super::ways::{self, Door};
use super::{ConfigFile, Failed, complain, print};

/// Show every way into each route, ready to paste
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// One route alone
    name: Option<String>,
}

/// Prints the ways into the routes, out of the configuration alone.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let Config { server, routes, .. } = arguments.file.load()?;
    let is_wanted = |route: &&RouteSettings| arguments.name.as_ref().is_none_or(|name| route.name == *name);
    let wanted: Vec<_> = routes.iter().filter(is_wanted).map(|route| described(route, &server)).collect();
    if wanted.is_empty() {
        let names: Vec<_> = routes.iter().map(|route| route.name.as_str()).collect();
        complain(match names.as_slice() {
            [] => "no routes are configured".to_owned(),
            names => format!("there is no such route: the routes are {}", names.join(", ")),
        });
        return if arguments.name.is_some() { Err(Failed::Usage) } else { Ok(()) };
    }
    print(wanted.join("\n"));
    Ok(())
}

fn described(route: &RouteSettings, server: &ServerSettings) -> String {
    let servers: Vec<_> = route.upstream.iter().map(ToString::to_string).collect();
    let servers = if servers.is_empty() { "servers that it finds out".to_owned() } else { servers.join(", ") };
    let mut text = format!("# {}: {} -> {servers}\n", route.name, route.registration.name);
    let doors = ways::doors(route, server);
    let handed: Vec<_> = server.listen.iter().chain(&route.listen).filter_map(handed_over).collect();
    if !handed.is_empty() {
        let names = handed.join(", ");
        let _ = writeln!(
            text,
            "# At what systemd hands over as {names}: ListenStream= of the .socket unit says where that is."
        );
    }
    if doors.is_empty() && !handed.is_empty() {
        return text;
    }
    if doors.is_empty() {
        text += "# No way in can be told: add a loopback address or a Unix socket to `listen`, or a domain to `server.domains`.\n";
        return text;
    }
    if doors.iter().any(Door::has_unknown_port) {
        text += "# PORT is chosen anew at every start, another one for each listener: the log tells them.\n";
    }
    if route.allow.is_some() {
        text += "# Only what its `allow` names may pass.\n";
    }
    if let Some(callers) = &route.callers {
        text += "# Only its `callers` may call";
        text += match callers.token {
            Some(_) => ", with the token as password: curl -u me:TOKEN, or --proxy-user me:TOKEN beside http_proxy.\n",
            None => ".\n",
        };
    }
    for (title, lines) in ways::snippets(route, &doors) {
        let _ = write!(text, "\n# {title}\n{}\n", lines.join("\n"));
    }
    text
}

fn handed_over(address: &Address) -> Option<&str> {
    match address {
        Address::Systemd(name) => Some(name),
        _ => None,
    }
}

const EXAMPLES: &str = "\
Examples:
  countersign routes
  countersign routes -c countersign.toml cert";
