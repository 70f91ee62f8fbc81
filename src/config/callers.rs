//! A route's `callers`: who may call.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::credential::SecretRef;
use crate::proxy::guard::CallersSettings;
use crate::settings::{Table, Value};

/// Reads a `callers` table.
pub(super) fn read(table: Table<'_>) -> CallersSettings {
    // The highest number is the kernel's "no one".
    let id = |value: &Value<'_>| value.integer(0, u32::MAX - 1);
    let ids = |key, missing: &str| {
        let value = table.get(key)?;
        value.warning(missing);
        value.some_of(id)
    };
    let callers = CallersSettings {
        uid: ids("uid", "over TCP not in effect yet: callers are denied there, whoever they are"),
        gid: ids("gid", "supplementary groups are not looked at yet: the caller's primary group alone counts"),
        net: table.get("net").and_then(|value| value.some_of(network)),
        token: table.get("token").and_then(|value| SecretRef::secret(&value)),
    };
    if table.is_empty() {
        table.error("nothing is asked of callers: give `uid`, `gid`, `net` or `token`, or leave `callers` out");
    }
    table.finish();
    callers
}

fn network(value: &Value<'_>) -> Option<IpNet> {
    value.parse(|text| {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let net: IpNet = text.parse().map_err(|_| "expected a network such as \"10.0.0.0/8\", or an address")?;
        if net.addr() != net.network() {
            return Err("expected the first address of the network before the slash, or one address without a slash");
        }
        Ok(net)
    })
}
