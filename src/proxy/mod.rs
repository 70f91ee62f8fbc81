//! The way of a request, one file a step.

pub mod access;
pub mod activity;
pub mod attempts;
pub mod authorize;
pub mod body;
pub mod caller;
pub mod clean;
pub mod cookie;
pub mod daemon;
pub mod errands;
pub mod error;
pub mod guard;
pub mod head;
pub mod hold;
pub mod lasting;
pub mod limit;
pub mod listen;
pub mod located;
pub mod location;
pub mod lockout;
pub mod nonce;
pub mod refusals;
pub mod repeats;
pub mod respond;
pub mod route;
pub mod send;
pub mod serve;
pub mod servers;
pub mod signers;
pub mod state;
pub mod streams;
pub mod tally;
pub mod upgrade;
pub mod verdict;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::provider::{Provider, Registration};
use crate::settings::Place;
use crate::upstream::directory::Directory;
use crate::upstream::outbound::Outbound;
use crate::upstream::{Endpoint, Host, Timeouts, tls};

/// What callers may use at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Callers' connections at one time.
    pub connections: usize,
    /// Octets of a head, either way.
    pub header_bytes: usize,
    /// How long a caller may take over a head.
    pub header_timeout: Option<Duration>,
    /// How long a caller's connection may be idle between requests.
    pub idle_timeout: Option<Duration>,
    /// Octets of a body that a signature covers.
    pub signed_body: usize,
    /// Octets of a body that is held only so that it can be sent again.
    pub replay_body: usize,
    /// Octets of all held bodies together.
    pub held_bodies: usize,
}

/// A route as the configuration says it: secrets not read yet, files not opened.
#[derive(Debug)]
pub struct RouteSettings {
    /// Its name.
    pub name: String,
    /// Where its table stands.
    pub place: Place,
    /// The servers that it leads to, at least one unless they are found out.
    pub upstream: Vec<Endpoint>,
    /// Who knows the servers, if the configuration does not.
    pub directory: Option<Directory>,
    /// What is dialled instead of the upstream's own host and port.
    pub connect: Option<(Host, u16)>,
    /// The proxy between, if there is one.
    pub proxy: Outbound,
    /// Exact names that lead to it, with a port if that is to match as well.
    pub hosts: Vec<(Host, Option<u16>)>,
    /// Listeners of its own.
    pub listen: Vec<listen::Address>,
    /// What may pass; everything if absent.
    pub allow: Option<Vec<guard::Rule>>,
    /// Who may call; everybody who can if absent.
    pub callers: Option<guard::CallersSettings>,
    /// Headers that are set.
    pub headers: Vec<Field>,
    /// Headers that are set where the caller sent none.
    pub default_headers: Vec<Field>,
    /// Callers' credential headers that pass.
    pub keep: Vec<String>,
    /// Credential headers of replies that pass.
    pub expose: Vec<String>,
    /// True if an upstream's clock is followed where it differs from ours.
    pub follows_clock: bool,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Its TLS settings, for `https://` upstreams.
    pub tls: tls::Settings,
    /// Its provider's entry in the table.
    pub registration: &'static Registration,
    /// Its provider.
    pub provider: Arc<dyn Provider>,
}

/// A header that a route sets.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name as the configuration spells it, for people.
    pub spelling: String,
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderValue,
}

/// Settings of the listeners that all routes share.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// The shared listeners.
    pub listen: Vec<listen::Address>,
    /// `NAME.<domain>` leads to a route.
    pub domains: Vec<String>,
    /// Browser origins that the guard lets through, as browsers write them.
    pub origins: Vec<String>,
    /// Trust anchors beside the system's.
    pub extra_ca: Vec<tls::FileRef>,
}
