//! `Set-Cookie` in the caller's terms: a part of step 9.
//!
//! Attributes are read as RFC 6265, section 5.2, has it; what is not changed passes to the octet. `Path` gets the path door's
//! prefix. `Domain` is removed where every client would reject the cookie for it, since it names the upstream: what is left
//! is a cookie of the very host that the caller used. It is removed as well where the cookie would reach other routes.

use std::net::IpAddr;

use crate::upstream::Host;

use super::location::{Fate, View};
use super::route::Door;

/// Turns the value of a `Set-Cookie` into the caller's terms.
#[must_use]
pub fn turn_back(value: &[u8], view: &View<'_>) -> Fate {
    let mut attributes = value.split(|octet| *octet == b';');
    let pair = attributes.next().unwrap_or_default();
    let lacks_path = lacks_path(attributes.clone(), view);
    if !lacks_path && attributes.clone().all(|attribute| Edit::of(attribute, view) == Edit::Nothing) {
        return Fate::Kept;
    }
    let mut changed = pair.to_vec();
    for attribute in attributes {
        let edit = Edit::of(attribute, view);
        if edit == Edit::Remove {
            continue;
        }
        changed.push(b';');
        if let Edit::Prefix(at) = edit
            && let Some((before, path)) = attribute.split_at_checked(at)
        {
            changed.extend([before, b"/", view.name.as_bytes(), path].concat());
        } else {
            changed.extend_from_slice(attribute);
        }
    }
    if lacks_path {
        changed.extend([b"; Path=/", view.name.as_bytes(), b"/"].concat());
    }
    Fate::Changed(changed)
}

/// What is done to an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Nothing,
    Remove,
    /// The path door's prefix goes in here.
    Prefix(usize),
}

impl Edit {
    fn of(attribute: &[u8], view: &View<'_>) -> Self {
        let (name, value) = read(attribute);
        // Browsers take quotes for a part of the value, some libraries do not.
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        if name.eq_ignore_ascii_case(b"path") && view.door == Door::Path && value.starts_with(b"/") {
            return attribute.iter().position(|octet| *octet == b'/').map_or(Self::Nothing, Self::Prefix);
        }
        let value = value.strip_suffix(b"\"").unwrap_or(value);
        if name.eq_ignore_ascii_case(b"domain") && is_in_the_way(value, view) { Self::Remove } else { Self::Nothing }
    }
}

fn read(attribute: &[u8]) -> (&[u8], &[u8]) {
    let end = attribute.iter().position(|octet| *octet == b'=').unwrap_or(attribute.len());
    let (name, value) = attribute.split_at_checked(end).unwrap_or((attribute, b""));
    (name.trim_ascii(), value.strip_prefix(b"=").unwrap_or(value).trim_ascii())
}

/// True for a cookie that gets its path from the URL `/NAME` alone, which would make it `/` and a cookie of all routes.
fn lacks_path<'a>(attributes: impl Iterator<Item = &'a [u8]>, view: &View<'_>) -> bool {
    if view.door != Door::Path || !view.upstream_path().is_empty() {
        return false;
    }
    let paths = attributes.map(read).filter(|(name, _)| name.eq_ignore_ascii_case(b"path"));
    !paths.last().is_some_and(|(_, path)| path.starts_with(b"/"))
}

/// True if no client could take a cookie for this domain from us, or if other routes would get it.
fn is_in_the_way(domain: &[u8], view: &View<'_>) -> bool {
    let Ok(domain) = std::str::from_utf8(domain) else { return false };
    let domain = domain.strip_prefix('.').unwrap_or(domain);
    let domain = domain.strip_suffix('.').unwrap_or(domain).to_ascii_lowercase();
    if domain.is_empty() {
        return false;
    }
    let is_caller = view.authority.is_some_and(|(host, _)| covers(&domain, host));
    let is_upstream = view.endpoints.iter().any(|endpoint| covers(&domain, &endpoint.target.endpoint.host));
    (is_upstream && !is_caller) || view.doors.is_shared(&domain)
}

/// True if a cookie for the domain goes to the host (RFC 6265, section 5.1.3).
fn covers(domain: &str, host: &Host) -> bool {
    match host {
        Host::Name(name) => name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        Host::Address(address) => domain.parse::<IpAddr>().is_ok_and(|domain| domain == *address),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::location::testing::{OWN, TCP, UNIX, seen, told};
    use super::super::route::Entrance;
    use super::*;

    /// A request's way in: the entrance, the target, `Host`.
    type Way = (Entrance, &'static str, &'static str);

    const PATH: Way = (TCP, "/cert/a", "localhost:8080");
    const HOST: Way = (TCP, "/a", "cert.localhost:8080");
    const NAME: Way = (TCP, "http://api.test/a", "api.test");
    const LISTENER: Way = (OWN, "/a", "127.0.0.1:8081");
    const SOCKET: Way = (UNIX, "/cert/a", "");

    fn told_at((entrance, target, host): Way, value: &str) -> String {
        seen(entrance, target, host, |view| told(turn_back(value.as_bytes(), view)))
    }

    #[test]
    fn paths_get_the_path_doors_prefix() {
        for (value, expected) in [
            ("a=b; Path=/x", "a=b; Path=/cert/x"),
            ("a=b; Path=/", "a=b; Path=/cert/"),
            ("a=b;path=/x;HttpOnly", "a=b;path=/cert/x;HttpOnly"),
            ("a=b; Secure; PATH = /x ; SameSite=Lax", "a=b; Secure; PATH = /cert/x ; SameSite=Lax"),
            ("a=b; Path=\"/x\"", "a=b; Path=\"/cert/x\""),
            ("a=b; Path=/x; Path=/y", "a=b; Path=/cert/x; Path=/cert/y"),
            ("a=b; Path=/../cluster", "a=b; Path=/cert/../cluster"),
            ("a=b; Path=/cluster=/x", "a=b; Path=/cert/cluster=/x"),
            ("a=b", "="),
            ("a=b; Path", "="),
            ("a=b; Path=", "="),
            ("a=b; Path=x", "="),
            ("a=b; Pathx=/x; X-Path=/x", "="),
            ("path=/x", "="),
            ("a=/x; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Max-Age=5", "="),
            ("", "="),
            (";;", "="),
        ] {
            for way in [PATH, SOCKET] {
                assert_eq!(told_at(way, value), expected, "{value}");
            }
            for way in [HOST, NAME, LISTENER] {
                assert_eq!(told_at(way, value), "=", "{value}");
            }
        }
    }

    #[test]
    fn a_cookie_for_the_prefix_alone_is_not_one_for_all_routes() {
        for (value, expected) in [
            ("a=b", "a=b; Path=/cert/"),
            ("a=b; Path=x; Secure", "a=b; Path=x; Secure; Path=/cert/"),
            ("a=b; Path=/x; Path=", "a=b; Path=/cert/x; Path=; Path=/cert/"),
            ("a=b; Path=\"/x\"", "a=b; Path=\"/cert/x\"; Path=/cert/"),
            ("a=b; Path=/x", "a=b; Path=/cert/x"),
        ] {
            assert_eq!(told_at((TCP, "/cert?q", "localhost:8080"), value), expected, "{value}");
        }
        assert_eq!(told_at((TCP, "/cert/", "localhost:8080"), "a=b"), "=");
        assert_eq!(told_at((TCP, "/", "cert.localhost:8080"), "a=b"), "=");
    }

    #[test]
    fn no_domain_keeps_a_cookie_from_the_caller_or_gives_it_to_other_routes() {
        for (value, by_others, by_name) in [
            ("a=b; Domain=up.example.com", "a=b", "a=b"),
            ("a=b; domain = .UP.example.com. ; Secure", "a=b; Secure", "a=b; Secure"),
            ("a=b; Domain=example.com; Domain=\"com\"; HttpOnly", "a=b; HttpOnly", "a=b; HttpOnly"),
            ("a=b; Domain=10.0.0.7", "a=b", "a=b"),
            ("a=b; Domain=localhost", "a=b", "a=b"),
            ("a=b; Domain=.corp.test", "a=b", "a=b"),
            // The names of one domain end in it, too.
            ("a=b; Domain=test", "a=b", "a=b"),
            ("a=b; Domain=api.test", "=", "="),
            ("a=b; Domain=other.example", "=", "="),
            ("a=b; Domain=up.example", "=", "="),
            ("a=b; Domain=p.example.com", "=", "="),
            ("a=b; Domain=0.0.7", "=", "="),
            ("a=b; Domain=", "=", "="),
            ("a=b; Domain=.", "=", "="),
            ("domain=up.example.com", "=", "="),
        ] {
            for way in [PATH, HOST, LISTENER, SOCKET] {
                assert_eq!(told_at(way, value), by_others, "{value} for {way:?}");
            }
            assert_eq!(told_at(NAME, value), by_name, "{value}");
        }
        // A caller that uses the upstream's own name gets its cookies as they are.
        let way = (UNIX, "/cert/a", "www.up.example.com");
        assert_eq!(told_at(way, "a=b; Domain=up.example.com"), "=");
        let both = "a=b; Domain=up.example.com; Path=/x";
        assert_eq!(told_at(PATH, both), "a=b; Path=/cert/x");
    }

    proptest! {
        #[test]
        fn what_a_cookie_says_is_never_lost(
            pieces in proptest::collection::vec(
                prop_oneof!["(?i) ?path ?= ?\"?/?[a-z/]{0,4}\"?", "(?i) ?domain=\\.?(localhost|up\\.example\\.com|x)", "[ -:<-~]{0,8}"],
                1..6,
            ),
            is_bare: bool,
        ) {
            let value = format!("a=b;{}", pieces.join(";"));
            let target = if is_bare { "/cert" } else { "/cert/a" };
            let told = seen(TCP, target, "localhost:8080", |view| turn_back(value.as_bytes(), view));
            if let Fate::Changed(changed) = told {
                let changed = String::from_utf8(changed).unwrap();
                let left = changed.strip_suffix("; Path=/cert/").filter(|_| is_bare).unwrap_or(&changed);
                let mut pieces = pieces.iter();
                for piece in left.strip_prefix("a=b").unwrap().split(';').skip(1) {
                    let plain = piece.replacen("/cert/", "/", 1);
                    prop_assert!(pieces.any(|given| *given == plain || given == piece), "{value} {changed}");
                }
                prop_assert!(!changed.to_ascii_lowercase().contains(" domain=localhost"), "{changed}");
            }
        }
    }
}
