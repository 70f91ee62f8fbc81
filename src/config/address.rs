//! Addresses: where callers are listened to, names that lead to routes, browser origins, the outbound proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::proxy::listen::Address;
use crate::settings::Value;
use crate::upstream::outbound::{Outbound, ProxyServer};
use crate::upstream::{Host, split_authority};

/// Reads the address of a listener.
pub(super) fn listener(value: &Value<'_>) -> Option<Address> {
    value.parse(|text| {
        if let Some(rest) = text.strip_prefix("unix:") {
            return unix(value, rest);
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            return is_name.then(|| Address::Systemd(name.to_owned())).ok_or("expected a name after `systemd:`");
        }
        text.parse().map(Address::Tcp).map_err(|_| {
            "expected an address and a port such as \"127.0.0.1:8080\" or \"[::1]:8080\", or \"unix:PATH\", \"systemd:NAME\""
        })
    })
}

/// True if both cannot be listened to at one time.
pub(super) fn collide(one: &Address, other: &Address) -> bool {
    match (one, other) {
        // Port 0 is a free one, different every time.
        (Address::Tcp(one), Address::Tcp(other)) => {
            let covers = |one: &SocketAddr, other: &SocketAddr| {
                one.ip().is_unspecified() && one.is_ipv4() == other.is_ipv4() || one.ip() == other.ip()
            };
            one.port() != 0 && one.port() == other.port() && (covers(one, other) || covers(other, one))
        }
        (Address::Unix { path: one, .. }, Address::Unix { path: other, .. }) => one == other,
        (Address::Systemd(one), Address::Systemd(other)) => one == other,
        _ => false,
    }
}

/// `PATH?mode=0660&group=app`.
fn unix(value: &Value<'_>, text: &str) -> Result<Address, &'static str> {
    let (path, parameters) = text.split_once('?').unwrap_or((text, ""));
    if path.is_empty() || path.contains('\0') {
        return Err("expected the path of a socket after `unix:`");
    }
    let path = value.reader().path(path);
    if path.as_os_str().len() > MOST_PATH {
        return Err("the path of a socket may have 107 octets at most, with its folder");
    }
    let (mut mode, mut group) = (None, None);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("mode", _)) if mode.is_some() => return Err("expected `mode` once"),
            Some(("group", _)) if group.is_some() => return Err("expected `group` once"),
            Some(("mode", digits)) => {
                let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                let octal = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
                mode = Some(octal.filter(|mode| *mode <= 0o777).ok_or("expected an octal `mode` such as 0660")?);
            }
            Some(("group", name)) if !name.is_empty() => group = Some(name.to_owned()),
            _ => {
                return Err(
                    "unknown parameter: known ones are `mode` and `group`, as in \"unix:PATH?mode=0660&group=app\"",
                );
            }
        }
    }
    Ok(Address::Unix { path, mode, group })
}

/// Reads a host name under which routes are found.
pub(super) fn domain(value: &Value<'_>) -> Option<String> {
    value.parse(|text| match Host::parse(text) {
        Ok(Host::Name(name)) => Ok(name),
        _ => Err("expected a host name such as \"localhost\""),
    })
}

/// Reads a host with or without a port.
pub(super) fn authority(value: &Value<'_>) -> Option<(Host, Option<u16>)> {
    value.parse(split_authority)
}

/// Reads a host with its port.
pub(super) fn host_and_port(value: &Value<'_>) -> Option<(Host, u16)> {
    value.parse(|text| match split_authority(text)? {
        (host, Some(port)) if port != 0 => Ok((host, port)),
        _ => Err("expected a host and a port such as \"10.0.0.7:443\""),
    })
}

/// Reads a browser origin as browsers write it: lower case, without the scheme's own port.
pub(super) fn origin(value: &Value<'_>) -> Option<String> {
    value.parse(|text| {
        let expected = "expected an origin such as \"https://app.example.com\" or \"http://localhost:3000\"";
        let (scheme, authority) = text.split_once("://").ok_or(expected)?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let (host, port) = split_authority(authority).map_err(|_| expected)?;
        if !is_scheme {
            return Err(expected);
        }
        let scheme = scheme.to_ascii_lowercase();
        Ok(match (scheme.as_str(), port) {
            (_, None) | ("http" | "ws", Some(80)) | ("https" | "wss", Some(443)) => format!("{scheme}://{host}"),
            (_, Some(port)) => format!("{scheme}://{host}:{port}"),
        })
    })
}

/// Reads an outbound proxy.
pub(super) fn outbound_proxy(value: &Value<'_>) -> Option<Outbound> {
    let key = value.path();
    value.parse(|text| match text {
        "none" => Ok(Outbound::Direct),
        "env" => Ok(Outbound::Environment { place: value.place(), key: key.to_owned() }),
        _ if !text.contains("://") => {
            Err("expected \"none\", \"env\" or a proxy such as \"http://user:password@corp:3128\"")
        }
        _ => {
            let proxy = ProxyServer::parse(text, format!("`{key}`"))?;
            // The first colon is the scheme's, and a user alone is a name.
            if text.rsplit_once('@').is_some_and(|(before, _)| before.matches(':').count() > 1) {
                value.bare_secret(
                    "a password",
                    "set \"env\" and name the proxy in the environment (HTTPS_PROXY, http_proxy)",
                );
            }
            Ok(Outbound::Proxy(Arc::new(proxy)))
        }
    })
}

/// `sun_path` of unix(7) without its final zero.
const MOST_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::{BareSecrets, Reader, Table};

    fn read<T>(text: &str, read: impl FnOnce(&Value<'_>) -> Option<T>) -> Option<T> {
        let text = format!("a = '{text}'");
        let reader = Reader::new(&text, Path::new("/etc"), BareSecrets::Accept);
        let document = reader.parse();
        read(&Table::root(&reader, &document).get("a").unwrap())
    }

    #[test]
    fn a_unix_socket_has_a_path_and_perhaps_a_mode_and_a_group() {
        let unix = |path: &str, mode, group: Option<&str>| {
            Some(Address::Unix { path: path.into(), mode, group: group.map(str::to_owned) })
        };
        for (text, expected) in [
            ("unix:cs.sock", unix("/etc/cs.sock", None, None)),
            ("unix:/run/cs.sock?mode=0660&group=app", unix("/run/cs.sock", Some(0o660), Some("app"))),
            ("unix:/run/cs.sock?group=33", unix("/run/cs.sock", None, Some("33"))),
            ("unix:", None),
            ("unix:?mode=0660", None),
            ("unix:a?mode=0888", None),
            ("unix:a?mode=7777", None),
            ("unix:a?mode=+660", None),
            ("unix:a?mode=660&mode=660", None),
            ("unix:a?group=", None),
            ("unix:a?owner=root", None),
        ] {
            assert_eq!(read(text, listener), expected, "{text}");
        }
        assert_eq!(read(&format!("unix:/{}", "a".repeat(107)), listener), None);
        assert!(read(&format!("unix:/{}", "a".repeat(106)), listener).is_some());
    }

    #[test]
    fn one_port_is_listened_to_once() {
        let do_collide = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| read(text, listener).unwrap());
            assert_eq!(collide(&one, &other), collide(&other, &one));
            collide(&one, &other)
        };
        assert!(do_collide("127.0.0.1:80", "127.0.0.1:80"));
        assert!(do_collide("127.0.0.1:80", "0.0.0.0:80"));
        assert!(do_collide("unix:a", "unix:/etc/./a?mode=0666"));
        assert!(!do_collide("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!do_collide("127.0.0.1:80", "[::]:80"));
        assert!(!do_collide("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!do_collide("unix:a", "systemd:a"));
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        for (text, expected) in [
            ("HTTPS://App.Example.com:443", Some("https://app.example.com")),
            ("http://localhost:3000", Some("http://localhost:3000")),
            ("http://[::1]:80", Some("http://[::1]")),
            ("chrome-extension://abcdefgh", Some("chrome-extension://abcdefgh")),
            ("https://a:80", Some("https://a:80")),
            ("null", None),
            ("*", None),
            ("https://", None),
            ("https://a/", None),
            ("https://u@a", None),
            ("://a", None),
        ] {
            assert_eq!(read(text, origin).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_dialled_has_a_port() {
        assert_eq!(read("10.0.0.7:80", host_and_port).map(|(_, port)| port), Some(80));
        assert!(read("[::1]:80", host_and_port).is_some());
        for wrong in ["10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "http://10.0.0.7:80", "::1:80"] {
            assert_eq!(read(wrong, host_and_port), None, "{wrong}");
        }
    }
}
