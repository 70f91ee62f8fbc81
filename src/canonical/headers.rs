//! Names of headers: which a signature cannot rest on, and which servers take for the same.

use http::HeaderName;
use http::header::AUTHORIZATION;

/// The headers of one connection, which a proxy does not pass on (RFC 9110 section 7.6.1, and the older ones that are
/// treated alike).
pub const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Beside those, what says how a request is framed and where it goes (RFC 9112 section 6).
pub const FRAMING: [&str; 3] = ["content-length", "expect", "host"];

/// True for a header of one connection, by its name in lower case.
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// The name of a header that a signature in `Authorization` can cover.
///
/// # Errors
/// What is wrong with it, without showing it.
pub fn signable(text: &str) -> Result<HeaderName, &'static str> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "expected the name of a header")?;
    if name == AUTHORIZATION {
        return Err("`Authorization` holds the signature and cannot be signed");
    }
    if is_hop_by_hop(name.as_str()) {
        return Err("expected the name of a header that reaches the upstream: this one belongs to a connection");
    }
    Ok(name)
}

/// What two names have in common that are the same to some server on the way: everything but letters and digits is
/// dropped, as are capitals. Servers that make `X_Auth_Token` of `X-Auth-Token` exist.
pub fn fold(name: &str) -> impl Iterator<Item = u8> + Clone + '_ {
    name.bytes().filter(u8::is_ascii_alphanumeric).map(|octet| octet.to_ascii_lowercase())
}

/// True for two names that are the same to some server on the way.
#[must_use]
pub fn is_same(one: &str, other: &str) -> bool {
    fold(one).eq(fold(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_connection_are_known() {
        assert!(is_hop_by_hop("transfer-encoding"));
        assert!(is_hop_by_hop("te"));
        assert!(!is_hop_by_hop("content-length"));
        assert!(!is_hop_by_hop(""));
    }

    #[test]
    fn letters_and_digits_make_a_name() {
        assert!(is_same("X-Auth-Token", "x_auth.token"));
        assert!(!is_same("X-Auth-Token", "X-Auth-Token2"));
        assert!(!is_same("X-Auth-Token", "X-Auth"));
    }
}
