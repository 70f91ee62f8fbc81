//! The servers that are called: endpoints, proxies on the way there, TLS identities and their verification, pools, timeouts.

pub mod ask;
pub mod bundle;
pub mod connect;
pub mod diagnosis;
pub mod directory;
mod endpoint;
pub mod flow;
pub mod http2;
pub mod links;
pub mod open;
pub mod outbound;
pub mod pem;
pub mod pool;
pub mod silence;
pub mod tls;
pub mod tunnel;
mod verify;
pub mod x509;

use std::time::Duration;

pub use endpoint::{Endpoint, Host, split_authority};

/// How long to wait for an upstream; `None` is "off".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Resolving, connecting, a tunnel through a proxy and the TLS handshake together.
    pub connect: Option<Duration>,
    /// From the request's last octet to the reply's head.
    pub response: Option<Duration>,
    /// Silence inside a body, either way.
    pub body: Option<Duration>,
    /// How long an idle connection is kept.
    pub pool_idle: Option<Duration>,
}
