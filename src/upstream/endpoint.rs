//! Where an upstream is: scheme, host and port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use rustls_pki_types::ServerName;

/// A host as an authority names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name in lower case without its final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// Parses the host of an authority: a name, an IPv4 address, or an IPv6 address in brackets.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
            return address.map(|v6| Self::Address(v6.into())).ok_or("expected an IPv6 address in brackets");
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // Looking costs less than trying, and every request names a host.
        if (name.contains(':') || name.ends_with(|last: char| last.is_ascii_digit()))
            && let Ok(address) = name.parse::<IpAddr>()
        {
            return match address {
                IpAddr::V4(_) => Ok(Self::Address(address)),
                IpAddr::V6(_) => Err("expected brackets around the IPv6 address"),
            };
        }
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err("expected a host name or an address");
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }

    /// What it is called in TLS, if it can be.
    #[must_use]
    pub fn to_server_name(&self) -> Option<ServerName<'static>> {
        match self {
            Self::Name(name) => ServerName::try_from(name.clone()).ok(),
            Self::Address(address) => Some(ServerName::from(*address)),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(v4)) => v4.fmt(f),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
        }
    }
}

/// Splits an authority into its host and its port, an empty port being none.
///
/// # Errors
/// What was expected.
pub fn split_authority(text: &str) -> Result<(Host, Option<u16>), &'static str> {
    let host_end = if text.starts_with('[') {
        text.find(']').map_or(text.len(), |at| at + 1)
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let (host, rest) = text.split_at_checked(host_end).ok_or("expected host[:port]")?;
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| "expected a port up to 65535")?)
        }
        _ => return Err("expected host[:port]"),
    };
    Ok((Host::parse(host)?, port))
}

/// A server to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// True for `https://`.
    pub secure: bool,
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    /// Parses a scheme and an authority, nothing after it but a lone `/`. `tcp://` is read as `https://`, since that is
    /// how consoles write the addresses of container clusters.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("expected http:// or https:// and a host")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" | "tcp" => true,
            _ => return Err("expected http:// or https://"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err("expected a scheme and a host only: the path is the caller's");
        }
        if authority.contains('@') {
            return Err("expected no user or password in the address");
        }
        let (host, port) = split_authority(authority)?;
        let port = port.unwrap_or(if secure { 443 } else { 80 });
        if port == 0 {
            return Err("expected a port from 1 to 65535");
        }
        Ok(Self { secure, host, port })
    }

    /// What goes into `Host`: the port only where it is not the scheme's own.
    #[must_use]
    pub fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.to_string(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// True if it is this machine, by address or as `localhost`: nothing sent there crosses a network.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::Address(address) => address.to_canonical().is_loopback(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ports_are_left_out_of_the_authority() {
        for (text, authority) in [
            ("http://Certificate.BaiduBCE.com.", "certificate.baidubce.com"),
            ("http://bj.bcebos.com:443", "bj.bcebos.com:443"),
            ("https://bj.bcebos.com:443/", "bj.bcebos.com"),
            ("tcp://123.123.123.123:1234", "123.123.123.123:1234"),
            ("https://[::1]:8443", "[::1]:8443"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().authority(), authority, "{text}");
        }
    }

    #[test]
    fn an_address_is_none_the_less_one_for_its_final_dot() {
        assert_eq!(Host::parse("127.0.0.1."), Host::parse("127.0.0.1"));
        assert_eq!(Host::parse("127.0.0.1"), Ok(Host::Address([127, 0, 0, 1].into())));
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "certificate.baidubce.com",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://a?b",
            "https://u:p@a",
            "https://a:b",
            "https://a:65536",
            "https://a:0",
            "https://::1",
            "https://[::1",
            "https://a b",
            "https://a..b",
            "https://é.com",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
