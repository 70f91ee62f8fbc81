//! What may be claimed once only, by whatever part of the file: listeners, and names that lead to routes. And who may
//! reach what.

use std::fmt;

use crate::proxy::listen::Address;
use crate::settings::Value;
use crate::upstream::Host;

use super::address;

/// Who claims something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// `[server]`.
    Server,
    /// `[admin]`.
    Admin,
    /// A route, by its name.
    Route(&'a str),
}

impl Owner<'_> {
    /// True if the route is reached through this one's listeners.
    fn leads_to(&self, route: &Claimant<'_>) -> bool {
        matches!(self, Self::Server) || matches!(self, Self::Route(name) if *name == route.name)
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("`server.listen`"),
            Self::Admin => f.write_str("`admin.listen`"),
            Self::Route(name) => write!(f, "route \"{name}\""),
        }
    }
}

/// Everything claimed so far.
#[derive(Default)]
pub(super) struct Claims<'a> {
    listeners: Vec<(Owner<'a>, Address, Option<Value<'a>>)>,
    hosts: Vec<Named<'a>>,
    routes: Vec<Claimant<'a>>,
}

/// A name that leads to a route.
struct Named<'a> {
    route: &'a str,
    host: (Host, Option<u16>),
    value: Value<'a>,
}

/// A route that callers may reach.
struct Claimant<'a> {
    name: &'a str,
    key: Value<'a>,
    asks_callers: bool,
    /// Its `callers.gid`.
    gid: Option<Value<'a>>,
}

impl<'a> Claims<'a> {
    /// Reads a list of listeners and claims them.
    pub(super) fn listeners(&mut self, owner: Owner<'a>, list: &Value<'a>) -> Vec<Address> {
        let read = list.list_of(|value| {
            let address = address::listener(value)?;
            self.listener(owner, &address, Some(value.clone()));
            Some(address)
        });
        read.unwrap_or_default()
    }

    /// Claims a listener, which stands in the file unless it is a default.
    pub(super) fn listener(&mut self, owner: Owner<'a>, address: &Address, value: Option<Value<'a>>) {
        if let Some(value) = &value
            && let Some((other, ..)) = self.listeners.iter().find(|(_, other, _)| address::collide(address, other))
        {
            value.error(format!("{other} listens there already"));
        }
        self.listeners.push((owner, address.clone(), value));
    }

    /// Claims a name that leads to a route.
    pub(super) fn host(&mut self, route: &'a str, value: &Value<'a>) -> Option<(Host, Option<u16>)> {
        let host = address::authority(value)?;
        // A name without a port is found under every port that nobody names, HTTP's own among them.
        let is_same = |other: &(Host, Option<u16>)| other.0 == host.0 && other.1.unwrap_or(80) == host.1.unwrap_or(80);
        if let Some(other) = self.hosts.iter().find(|other| other.route != route && is_same(&other.host)) {
            value.error(format!("{} has this name already", Owner::Route(other.route)));
        }
        self.hosts.push(Named { route, host: host.clone(), value: value.clone() });
        Some(host)
    }

    /// Enters a route; `asks_callers` is true if it has `callers`, of which `gid` is a part.
    pub(super) fn route(&mut self, name: &'a str, key: &Value<'a>, asks_callers: bool, gid: Option<Value<'a>>) {
        self.routes.push(Claimant { name, key: key.clone(), asks_callers, gid });
    }

    /// Reports what can be seen only once the whole file was read.
    pub(super) fn check(&self, domains: &[String], allow_remote: bool) {
        self.check_hosts(domains);
        self.check_groups();
        for (owner, address, value) in &self.listeners {
            let Some(value) = value.as_ref().filter(|_| !address.is_local()) else { continue };
            if !allow_remote {
                value.error(
                    "not a loopback address: other machines could use the credentials; listen on 127.0.0.1, \
                     or set `allow_remote = true` in [server] and give the routes `callers`",
                );
                continue;
            }
            for route in &self.routes {
                if owner.leads_to(route) && !route.asks_callers {
                    route.key.error_at_key("`callers` is missing: other machines can reach this route");
                }
            }
        }
    }

    fn check_groups(&self) {
        for route in &self.routes {
            let mut leading = self.listeners.iter().filter(|(owner, ..)| owner.leads_to(route));
            if let Some(gid) = &route.gid
                && leading.all(|(_, address, _)| matches!(address, Address::Tcp(_)))
            {
                gid.warning("lets nobody in: groups are known on Unix sockets alone, and none leads here");
            }
        }
    }

    fn check_hosts(&self, domains: &[String]) {
        for Named { route, host: (host, port), value } in &self.hosts {
            let name = host.to_string();
            let label = domains.iter().find_map(|domain| name.strip_suffix(domain)?.strip_suffix('.'));
            let other = self.routes.iter().find(|other| Some(other.name) == label && other.name != *route);
            if let Some(other) = other {
                value.error(format!("{} has this name already, by its own name", Owner::Route(other.name)));
            }
            let is_loopback = match host {
                Host::Name(name) => name == "localhost" || domains.contains(name),
                Host::Address(address) => address.is_loopback(),
            };
            if is_loopback && port.is_none() {
                value.warning("takes this name from the paths `/NAME/…` that lead to the other routes");
            }
        }
    }
}
