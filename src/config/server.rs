//! What all routes share: `[server]`, `[admin]`, `[log]`, `[limits]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tracing::Level;

use crate::proxy::listen::Address;
use crate::proxy::{Limits, ServerSettings};
use crate::settings::{Table, Value};
use crate::upstream::outbound::Outbound;

use super::claims::{Claims, Owner};
use super::{Admin, Format, Log, address, tls};

/// What `[server]` says.
pub(super) struct Shared {
    pub(super) settings: ServerSettings,
    /// For routes that have no `proxy` of their own.
    pub(super) proxy: Outbound,
    pub(super) workers: usize,
    pub(super) drain_timeout: Duration,
    pub(super) drain_delay: Duration,
}

/// Reads `[server]`.
pub(super) fn shared<'a>(table: Table<'a>, claims: &mut Claims<'a>) -> Shared {
    let listen = if let Some(value) = table.get("listen") {
        claims.listeners(Owner::Server, &value)
    } else {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let listen = loopback.map(|ip| Address::Tcp(SocketAddr::new(ip, 8080)));
        for address in &listen {
            claims.listener(Owner::Server, address, None);
        }
        listen.to_vec()
    };
    let shared = Shared {
        settings: ServerSettings {
            listen,
            allow_remote: table.read("allow_remote", false, Value::boolean),
            domains: table.read("domains", vec!["localhost".to_owned()], |v| v.list_of(address::domain)),
            origins: table.read("origins", Vec::new(), |v| v.list_of(address::origin)),
            extra_ca: table.read("extra_ca", Vec::new(), |v| v.list_of(tls::file)),
        },
        proxy: table.read("proxy", Outbound::Direct, address::outbound_proxy),
        workers: table.read("workers", 0, |v| v.integer(0, 1024)) as usize,
        drain_timeout: table.read("drain_timeout", Duration::from_secs(30), Value::duration),
        drain_delay: table.read("drain_delay", Duration::ZERO, Value::duration),
    };
    table.finish();
    shared
}

/// Reads `[admin]`; without `listen` there is no such listener.
pub(super) fn admin<'a>(table: Table<'a>, claims: &mut Claims<'a>) -> Option<Admin> {
    let quit = table.read("quit", false, Value::boolean);
    let listen = table.get("listen").and_then(|value| {
        let listen = address::listener(&value)?;
        if matches!(listen, Address::Systemd(_)) || !listen.is_local() {
            value.error("expected a loopback address such as \"127.0.0.1:9900\", or \"unix:PATH\"");
            return None;
        }
        claims.listener(Owner::Admin, &listen, Some(value));
        Some(listen)
    });
    table.finish();
    Some(Admin { listen: listen?, quit })
}

/// Reads `[log]`.
pub(super) fn log(table: Table<'_>) -> Log {
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let log = Log {
        level: table.read("level", Level::INFO, |v| v.choice(&levels)),
        format: table.read("format", Format::Text, |v| v.choice(&[("text", Format::Text), ("json", Format::Json)])),
        access: table.read("access", true, Value::boolean),
        query: table.read("query", false, Value::boolean),
    };
    table.finish();
    log
}

/// Reads `[limits]`.
pub(super) fn limits(table: Table<'_>) -> Limits {
    let limits = Limits {
        connections: table.read("connections", 10_000, |v| v.integer(1, 1_000_000)) as usize,
        header_bytes: table.read("header_bytes", 64 << 10, header_bytes),
        header_timeout: table.read("header_timeout", Some(Duration::from_secs(10)), Value::timeout),
        idle_timeout: table.read("idle_timeout", Some(Duration::from_secs(90)), Value::timeout),
        signed_body: table.read("signed_body", 16 << 20, Value::size),
        replay_body: table.read("replay_body", 64 << 10, Value::size),
        held_bodies: table.read("held_bodies", 256 << 20, Value::size),
    };
    for (key, size) in [("signed_body", limits.signed_body), ("replay_body", limits.replay_body)] {
        if size > limits.held_bodies
            && let Some(value) = table.get(key).or_else(|| table.get("held_bodies"))
        {
            value.warning(format!("a body of `{key}` does not fit into `held_bodies`, and so is never held"));
        }
    }
    table.finish();
    limits
}

/// hyper reads heads into a buffer that it does not make smaller than 8 KiB.
fn header_bytes(value: &Value<'_>) -> Option<usize> {
    let size = value.size()?;
    if !(8 << 10..=16 << 20).contains(&size) {
        value.error("expected a size from \"8KiB\" to \"16MiB\"");
        return None;
    }
    Some(size)
}
