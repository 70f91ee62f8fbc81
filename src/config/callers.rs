//! A route's `callers`: who may call.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::credential::SecretRef;
use crate::proxy::guard::CallersSettings;
use crate::proxy::peer::NOBODY;
use crate::settings::{Table, Value};

/// Reads a `callers` table; also returns its `gid`, which does not make sense everywhere.
pub(super) fn read(table: Table<'_>) -> (CallersSettings, Option<Value<'_>>) {
    let gid = table.get("gid");
    let callers = CallersSettings {
        uid: table.get("uid").and_then(|value| value.some_of(id)),
        gid: gid.as_ref().and_then(|value| value.some_of(id)),
        net: table.get("net").and_then(|value| value.some_of(network)),
        token: table.get("token").and_then(|value| SecretRef::secret(&value)),
    };
    if table.is_empty() {
        table.error("nothing is asked of callers: give `uid`, `gid`, `net` or `token`, or leave `callers` out");
    }
    table.finish();
    (callers, gid)
}

fn id(value: &Value<'_>) -> Option<u32> {
    // The highest number is the kernel's "no one".
    let id = value.integer(0, u32::MAX - 1)?;
    if id == NOBODY {
        value.warning("lets nobody in: the kernel says this number of everybody whom it has none for");
    }
    Some(id)
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
