//! `Location` in the caller's terms: a part of step 9.
//!
//! An upstream knows itself by its own name. What points there becomes the caller's own URL, so that a redirect comes back
//! through the proxy. What points at another door of ours is dropped: an upstream must not send its callers, who follow, to
//! a route with another credential. All else passes as it came.
//!
//! Readers differ about what is no good URL. Browsers take `\` for `/`, drop tabs and skip surplus slashes before an
//! authority (<https://url.spec.whatwg.org/#url-parsing>), curl counts one slash as two, some libraries decode before they
//! resolve. Where they may differ about who is meant, the header is dropped.

use std::net::SocketAddr;

use http::{HeaderValue, Uri};

use crate::upstream::{Host, split_authority};

use super::route::{Authority, Door, Doors, Entrance};
use super::servers::Endpoint;

/// What a caller sees of its route.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Every door there is.
    pub doors: &'a Doors,
    /// Our own TCP listeners.
    pub own: &'a [SocketAddr],
    /// What the request came in on.
    pub entrance: Entrance,
    /// The door through which it came.
    pub door: Door,
    /// The route's name.
    pub name: &'a str,
    /// The servers that the route leads to.
    pub endpoints: &'a [Endpoint],
    /// The target as the caller sent it.
    pub uri: &'a Uri,
    /// `Host` as the caller sent it.
    pub host: Option<&'a HeaderValue>,
    /// The authority that these two name.
    pub authority: Option<&'a Authority>,
}

/// What becomes of a header's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes as it is.
    Kept,
    /// It passes as this.
    Changed(Vec<u8>),
    /// It does not pass.
    Dropped,
}

/// Turns the value of a `Location` (RFC 9110, section 10.2.2) into the caller's terms.
#[must_use]
pub fn turn_back(value: &[u8], view: &View<'_>) -> Fate {
    let text = value.trim_ascii();
    let end = text.iter().position(|octet| matches!(octet, b'?' | b'#')).unwrap_or(text.len());
    let Some((place, rest)) = text.split_at_checked(end) else { return Fate::Dropped };
    match Reference::read(place) {
        Reference::Unclear => Fate::Dropped,
        Reference::At { is_secure, host, port, path } => view.at(is_secure, &(host, port), path, rest),
        Reference::Absolute(path) if view.door == Door::Path => view.beside(path, rest),
        Reference::Relative(path) if view.door == Door::Path => view.below(path, rest),
        Reference::Foreign | Reference::Absolute(_) | Reference::Relative(_) => Fate::Kept,
    }
}

/// What comes before the query and the fragment of a URI reference (RFC 3986, section 4.1).
enum Reference<'a> {
    /// `http://HOST:PORT/…`, or without the scheme.
    At { is_secure: Option<bool>, host: Host, port: Option<u16>, path: &'a [u8] },
    /// `/…`.
    Absolute(&'a [u8]),
    /// What belongs to the place where it is read.
    Relative(&'a [u8]),
    /// A URL of another scheme, which nobody speaks to us.
    Foreign,
    /// What readers differ about.
    Unclear,
}

impl<'a> Reference<'a> {
    fn read(text: &'a [u8]) -> Self {
        if text.contains(&b'\t') {
            return Self::Unclear;
        }
        let (is_secure, rest) = match scheme(text) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"http") => (Some(false), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"https") => (Some(true), rest),
            Some(_) => return Self::Foreign,
            None => (None, text),
        };
        match (is_secure, rest) {
            (_, [b'/', b'/', rest @ ..]) => Self::at(is_secure, rest).unwrap_or(Self::Unclear),
            (Some(_), _) | (None, [b'\\', ..] | [b'/', b'\\', ..]) => Self::Unclear,
            (None, [b'/', ..]) => Self::Absolute(rest),
            (None, _) => Self::Relative(rest),
        }
    }

    /// Reads what follows `//`; `None` if it names no host that everybody reads alike.
    fn at(is_secure: Option<bool>, text: &'a [u8]) -> Option<Self> {
        let end = text.iter().position(|octet| *octet == b'/').unwrap_or(text.len());
        let (authority, path) = text.split_at_checked(end)?;
        let authority = std::str::from_utf8(authority).ok().filter(|authority| !authority.contains('\\'))?;
        let (_, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (host, port) = split_authority(host).ok()?;
        Some(Self::At { is_secure, host, port, path })
    }
}

fn scheme(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (scheme, rest) = text.split_at_checked(text.iter().position(|octet| *octet == b':')?)?;
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|octet| octet.is_ascii_alphanumeric() || b"+-.".contains(octet));
    is_scheme.then_some((scheme, rest.get(1..)?))
}

/// True for a name that browsers and C libraries read as an IPv4 address, such as `127.1`, `0x7f.0.0.1` or `2130706433`.
fn is_number(host: &Host) -> bool {
    let Host::Name(name) = host else { return false };
    let last = name.rsplit('.').next().unwrap_or_default();
    last.bytes().all(|octet| octet.is_ascii_digit()) || last.starts_with("0x")
}

impl View<'_> {
    /// The fate of an absolute URL.
    fn at(&self, is_secure: Option<bool>, authority: &Authority, path: &[u8], rest: &[u8]) -> Fate {
        if self.endpoints.iter().any(|endpoint| is_at(endpoint, is_secure, authority)) {
            return self.home(path, rest);
        }
        let own_default = default_port(self.uri.scheme_str() == Some("https"));
        let port = authority.1.unwrap_or(is_secure.map_or(own_default, default_port));
        let own = self.authority.map(|(host, port)| (host, port.unwrap_or(own_default)));
        if own == Some((&authority.0, port)) {
            let is_here = self.door != Door::Path || first_segment(path) == Some(self.name.as_bytes());
            return if is_here { Fate::Kept } else { Fate::Dropped };
        }
        if is_number(&authority.0) {
            return Fate::Dropped;
        }
        let is_our_port = own.is_some_and(|(_, own)| own == port) || self.own.iter().any(|own| own.port() == port);
        let is_ours = self.doors.is_named(authority)
            || (is_our_port && self.doors.is_ours(&authority.0, authority.1))
            || (self.comes_here_anyway() && self.doors.may_lead(self.entrance, authority, first_segment(path)));
        if is_ours { Fate::Dropped } else { Fate::Kept }
    }

    /// True if the caller brings requests for whatever authority to this listener of all routes: as programs do that were
    /// given a socket or a proxy. Over HTTP/2 these cannot be told from others.
    fn comes_here_anyway(&self) -> bool {
        self.entrance.route.is_none() && (self.entrance.is_unix || self.uri.scheme().is_some())
    }

    /// The caller's own URL for a place at the upstream; with no authority known its path.
    fn home(&self, path: &[u8], rest: &[u8]) -> Fate {
        let authority = match self.uri.authority() {
            Some(authority) => Some(authority.as_str().as_bytes()),
            None => self.host.map(HeaderValue::as_bytes),
        };
        let scheme = self.uri.scheme_str().unwrap_or("http").as_bytes();
        match (authority, self.door) {
            (Some(authority), Door::Path) => match grounded(path) {
                Some(path) => {
                    Fate::Changed([scheme, b"://", authority, b"/", self.name.as_bytes(), path, rest].concat())
                }
                None => Fate::Dropped,
            },
            (Some(authority), _) => Fate::Changed([scheme, b"://", authority, path, rest].concat()),
            (None, Door::Path) => self.beside(path, rest),
            // Alone it would be an authority.
            (None, _) if matches!(path, [b'/', b'/' | b'\\', ..]) => Fate::Dropped,
            (None, _) if path.is_empty() => Fate::Changed([b"/", rest].concat()),
            (None, _) => Fate::Changed([path, rest].concat()),
        }
    }

    /// The path door's path for one of the upstream's.
    fn beside(&self, path: &[u8], rest: &[u8]) -> Fate {
        match grounded(path) {
            Some(path) => Fate::Changed([b"/", self.name.as_bytes(), path, rest].concat()),
            None => Fate::Dropped,
        }
    }

    /// The fate of a relative path on the path door: it passes unless it would lead out.
    fn below(&self, path: &[u8], rest: &[u8]) -> Fate {
        if path.is_empty() {
            return Fate::Kept;
        }
        let base = self.upstream_path().as_bytes();
        let end = base.iter().rposition(|octet| *octet == b'/').map_or(0, |slash| slash + 1);
        // `/NAME` itself is the upstream's root, but not a folder to its reader.
        let folder = base.get(..end).filter(|folder| !folder.is_empty());
        if folder.is_some_and(|folder| ![folder, path].into_iter().any(may_climb)) {
            return Fate::Kept;
        }
        let whole = [folder.unwrap_or(b"/"), path].concat();
        match grounded(&whole) {
            Some(path) if folder.is_some() && path.len() == whole.len() => Fate::Kept,
            _ => self.beside(&whole, rest),
        }
    }

    /// The path that the caller asked the upstream for; on the path door it may be empty.
    pub(super) fn upstream_path(&self) -> &str {
        let path = self.uri.path();
        let behind = || path.strip_prefix('/')?.strip_prefix(self.name);
        if self.door == Door::Path { behind().unwrap_or(path) } else { path }
    }
}

/// True if an authority is the endpoint's. Servers behind something that speaks TLS for them take themselves for `http`.
fn is_at(endpoint: &Endpoint, is_secure: Option<bool>, (host, port): &Authority) -> bool {
    let endpoint = &endpoint.target.endpoint;
    let default = default_port(is_secure.unwrap_or(endpoint.secure));
    let port = port.unwrap_or(default);
    let is_default = port == default && endpoint.port == default_port(endpoint.secure);
    *host == endpoint.host && (port == endpoint.port || is_default)
}

fn default_port(is_secure: bool) -> u16 {
    if is_secure { 443 } else { 80 }
}

/// The first segment of a path, if it is the same to all readers.
fn first_segment(path: &[u8]) -> Option<&[u8]> {
    let first = segments(path).nth(1).unwrap_or_default();
    let is_moved = may_climb(path) || segments(path).any(is_single_dot);
    let is_plain = !is_moved && !first.contains(&b'%') && (!first.is_empty() || path.len() <= 1);
    is_plain.then_some(first)
}

/// What is left of a path that begins with a slash, or is empty, when its climbs above the root have been made, since
/// behind a prefix they would lead out of it (RFC 3986, section 5.2.4). `None` if readers differ.
fn grounded(path: &[u8]) -> Option<&[u8]> {
    if path.contains(&b'\\') {
        return None;
    }
    let (mut depth, mut root, mut end) = (0_usize, 0, 0);
    for segment in segments(path) {
        end += segment.len();
        if is_double_dot(segment) {
            match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => root = end,
            }
        } else if !segment.is_empty() && !is_single_dot(segment) {
            // Empty ones are none to those who take several slashes for one.
            depth += 1;
        }
        end += 1;
    }
    path.get(root..)
}

/// True if some reader takes a part of the path for a step up.
fn may_climb(path: &[u8]) -> bool {
    path.contains(&b'\\') || segments(path).any(is_double_dot)
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|octet| *octet == b'/')
}

fn is_double_dot(segment: &[u8]) -> bool {
    [b"..".as_slice(), b".%2e", b"%2e.", b"%2e%2e"].iter().any(|dots| segment.eq_ignore_ascii_case(dots))
}

fn is_single_dot(segment: &[u8]) -> bool {
    segment == b"." || segment.eq_ignore_ascii_case(b"%2e")
}

/// What the tests of step 9 share.
#[cfg(test)]
pub(super) mod testing {
    use std::sync::Arc;
    use std::time::Duration;

    use http::header::HOST;
    use http::{HeaderMap, Method, Version};

    use super::*;
    use crate::clock::Rest;
    use crate::upstream::connect::Target;
    use crate::upstream::outbound::Passage;

    /// The route `cert` of two, as a caller sees it that sends this target and this `Host`; empty is none.
    pub(in super::super) fn seen<T>(
        entrance: Entrance,
        target: &str,
        host: &str,
        see: impl FnOnce(&View<'_>) -> T,
    ) -> T {
        let [named, other] = ["api.test", "other.test"].map(|text| [split_authority(text).unwrap()]);
        let domains = ["localhost".to_owned(), "corp.test".to_owned()];
        let doors = Doors::new(&domains, [("cert", named.as_slice()), ("cluster", other.as_slice())].into_iter());
        let endpoints = ["https://Up.Example.com", "https://10.0.0.7:8443"].map(|text| {
            let endpoint = crate::upstream::Endpoint::parse(text).unwrap();
            let authority = HeaderValue::try_from(endpoint.authority()).unwrap();
            let (host, port) = (endpoint.host.clone(), endpoint.port);
            let passage = Passage::Direct;
            Endpoint {
                target: Target { endpoint, host, port, passage, tls: None },
                authority,
                number: 0,
                skew: Arc::default(),
                rest: Arc::new(Rest::new(Duration::ZERO)),
            }
        });
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(HOST, host.parse().unwrap());
        }
        let uri: Uri = target.parse().unwrap();
        let found = doors.find(entrance, &Method::GET, Version::HTTP_10, &uri, &headers).unwrap();
        assert_eq!(found.route, 0);
        see(&View {
            doors: &doors,
            own: &["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9900"].map(|own| own.parse().unwrap()),
            entrance,
            door: found.door,
            name: "cert",
            endpoints: &endpoints,
            uri: &uri,
            host: headers.get(HOST),
            authority: found.authority.as_ref(),
        })
    }

    pub(in super::super) const TCP: Entrance = Entrance { route: None, is_unix: false };
    pub(in super::super) const OWN: Entrance = Entrance { route: Some(0), is_unix: false };
    pub(in super::super) const UNIX: Entrance = Entrance { route: None, is_unix: true };

    /// The fate in one word: what passes in its place, `=` for the same, `-` for nothing.
    pub(in super::super) fn told(fate: Fate) -> String {
        match fate {
            Fate::Kept => "=".to_owned(),
            Fate::Changed(value) => String::from_utf8_lossy(&value).into_owned(),
            Fate::Dropped => "-".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{OWN, TCP, UNIX, seen, told};
    use super::*;

    /// A request's way in: the entrance, the target, `Host`.
    type Way = (Entrance, &'static str, &'static str);

    const PATH: Way = (TCP, "/cert/a/b?q", "localhost:8080");
    const BARE: Way = (TCP, "/cert?q", "127.0.0.1:8080");
    const HOST: Way = (TCP, "/a/b?q", "Cert.LOCALHOST.:8080");
    const NAME: Way = (TCP, "http://api.test/a", "api.test");
    const LISTENER: Way = (OWN, "/a", "localhost:8081");
    const SOCKET: Way = (UNIX, "/cert/a", "docker");

    fn told_at((entrance, target, host): Way, value: &str) -> String {
        seen(entrance, target, host, |view| told(turn_back(value.as_bytes(), view)))
    }

    #[track_caller]
    fn check(cases: &[(Way, &str, &str)]) {
        for (way, value, expected) in cases {
            assert_eq!(told_at(*way, value), *expected, "{value:?} for {way:?}");
        }
    }

    #[test]
    fn what_is_at_the_upstream_becomes_the_callers_own_url() {
        check(&[
            (HOST, "https://up.example.com/x/../y?a=/b#c", "http://Cert.LOCALHOST.:8080/x/../y?a=/b#c"),
            (PATH, "https://up.example.com/x//y?a=%2f#c?d", "http://localhost:8080/cert/x//y?a=%2f#c?d"),
            (NAME, "https://up.example.com/x", "http://api.test/x"),
            (LISTENER, "https://up.example.com/x", "http://localhost:8081/x"),
            (SOCKET, "https://up.example.com/x", "http://docker/cert/x"),
            ((TCP, "https://api.test/a", ""), "https://up.example.com/x", "https://api.test/x"),
            // Case, final dot, default ports, either scheme or none, any of the endpoints, whoever is said to ask.
            (HOST, " HTTPS://UP.example.COM.:443/x ", "http://Cert.LOCALHOST.:8080/x"),
            (PATH, "http://up.example.com/x", "http://localhost:8080/cert/x"),
            (PATH, "http://up.example.com:80/x", "http://localhost:8080/cert/x"),
            (PATH, "http://up.example.com:443/x", "http://localhost:8080/cert/x"),
            (PATH, "//up.example.com/x", "http://localhost:8080/cert/x"),
            (PATH, "//up.example.com:443/x", "http://localhost:8080/cert/x"),
            (PATH, "https://10.0.0.7:8443/x", "http://localhost:8080/cert/x"),
            (PATH, "http://10.0.0.7:8443", "http://localhost:8080/cert"),
            (PATH, "https://user:secret@up.example.com/x", "http://localhost:8080/cert/x"),
            // A path may be missing.
            (PATH, "https://up.example.com?q", "http://localhost:8080/cert?q"),
            (HOST, "https://up.example.com#f", "http://Cert.LOCALHOST.:8080#f"),
            (HOST, "https://up.example.com//x/\\y", "http://Cert.LOCALHOST.:8080//x/\\y"),
            // Not the endpoint.
            (PATH, "https://up.example.com:8443/x", "="),
            (PATH, "https://10.0.0.7/x", "="),
            (PATH, "https://up.example.com.evil.example/x", "="),
        ]);
    }

    #[test]
    fn with_no_authority_known_its_path_is_what_is_left() {
        for (entrance, target, value, expected) in [
            (OWN, "/a", "https://up.example.com/x?q", "/x?q"),
            (OWN, "/a", "https://up.example.com", "/"),
            (OWN, "/a", "https://up.example.com?q#f", "/?q#f"),
            (OWN, "/a", "https://up.example.com//other.localhost:8080/x", "-"),
            (OWN, "/a", "https://up.example.com/\\other.localhost:8080/x", "-"),
            (OWN, "/a", "/x", "="),
            (UNIX, "/cert/a", "https://up.example.com//x?q", "/cert//x?q"),
            (UNIX, "/cert/a", "https://up.example.com", "/cert"),
            (UNIX, "/cert/a", "/x", "/cert/x"),
        ] {
            let told = seen(entrance, target, "", |view| told(turn_back(value.as_bytes(), view)));
            assert_eq!(told, expected, "{value}");
        }
    }

    #[test]
    fn paths_get_the_path_doors_prefix_and_nothing_else_does() {
        for way in [HOST, NAME, LISTENER] {
            for value in ["/x", "/", "/x/../../y", "/x\\y", "x", "../../x", "?q", "#f", "", "./x:y", "1:x"] {
                assert_eq!(told_at(way, value), "=", "{value:?} for {way:?}");
            }
        }
        check(&[
            (PATH, "/x?a=/b#c", "/cert/x?a=/b#c"),
            (PATH, "/", "/cert/"),
            (PATH, "/?q", "/cert/?q"),
            (PATH, "/cert/x", "/cert/cert/x"),
            (PATH, "/x//y/./z/../\u{e9}", "/cert/x//y/./z/../\u{e9}"),
            (PATH, "x", "="),
            (PATH, "../x", "="),
            (PATH, "./x/../..", "="),
            (PATH, "?q", "="),
            (PATH, "#f", "="),
            (PATH, "", "="),
            (BARE, "?q", "="),
        ]);
    }

    #[test]
    fn no_path_climbs_out_of_the_path_door() {
        check(&[
            (PATH, "/../cluster/x", "/cert/cluster/x"),
            (PATH, "/x/../../cluster?/..", "/cert/cluster?/.."),
            (PATH, "/%2E%2e/.%2e/cluster", "/cert/cluster"),
            (PATH, "/..", "/cert"),
            (PATH, "/x//../../cluster", "/cert/cluster"),
            (PATH, "https://up.example.com/../cluster/x", "http://localhost:8080/cert/cluster/x"),
            (PATH, "../../cluster/x?q", "/cert/cluster/x?q"),
            (PATH, "../..", "/cert"),
            (PATH, "../%2e%2e/../x/..", "/cert/x/.."),
            // What is relative to /cert is not below it.
            (BARE, "cluster/x", "/cert/cluster/x"),
            (BARE, "./cluster", "/cert/./cluster"),
            (BARE, "../cluster", "/cert/cluster"),
            ((TCP, "/cert/../a", "localhost"), "cluster/x", "/cert/cluster/x"),
            // Browsers take these for slashes.
            (PATH, "/x\\..\\..\\cluster", "-"),
            (PATH, "x\\..\\..\\..\\cluster", "-"),
            (PATH, "https://up.example.com/\\../cluster", "-"),
            (PATH, "https://up.example.com\\..\\cluster", "-"),
        ]);
    }

    #[test]
    fn other_servers_are_none_of_our_business() {
        for way in [PATH, HOST, NAME, LISTENER] {
            for value in [
                "https://accounts.example.com/login?to=http://cluster.localhost:8080/",
                "http://localhost.example.com:8080/cluster/",
                "//cdn.example.com/x",
                "https://user@example.com/x\\y",
                "http://192.168.1.5:8080/cluster",
                "urn:ietf:rfc:9110",
                "myapp://localhost:8080/cluster",
                "localhost:8080/cluster",
            ] {
                assert_eq!(told_at(way, value), "=", "{value:?} for {way:?}");
            }
        }
        // A port that nobody of ours listens on, unless the caller brings every port's requests.
        for value in ["http://localhost:3000/x", "https://localhost/x", "http://127.0.0.1:3000/cluster/x"] {
            for way in [PATH, HOST, LISTENER] {
                assert_eq!(told_at(way, value), "=", "{value:?} for {way:?}");
            }
        }
        check(&[(NAME, "http://localhost:3000/callback", "="), (NAME, "http://localhost:3000/cluster/x", "-")]);
    }

    #[test]
    fn what_points_at_another_door_of_ours_is_dropped() {
        for way in [PATH, BARE, HOST, NAME, LISTENER, SOCKET] {
            for value in [
                "http://cluster.localhost:8080/x",
                "https://CLUSTER.LocalHost.:8080/x",
                "//cluster.localhost:8080/x",
                "http://user@cluster.localhost:8080",
                "http://nobody.localhost:8080/x",
                "http://cluster.corp.test:8080?q",
                "http://cert.localhost:8081/x",
                "http://localhost:8080/cluster/x",
                "http://127.0.0.1:8080/cluster",
                "http://127.9.9.9:8081/x",
                "http://[::1]:8080/cluster/x",
                "http://[::ffff:127.0.0.1]:8080/cluster/x",
                "http://corp.test:8080/cluster/x",
                "http://localhost:9900/quit",
                "http://other.test/x",
                "https://other.test:12345/x",
                "//other.test",
                // As somebody reads it.
                "http://2130706433:8080/cluster",
                "http://127.1:8080/cluster",
                "http://0x7f.0.0.1:8080/cluster",
                "http://0177.0.0.01:8080/cluster",
                "http://cluster%2elocalhost:8080/x",
                "http://\u{ff43}luster.localhost:8080/x",
                "http://cluster.localhost\u{3002}:8080/x",
                "http:cluster.localhost:8080/x",
                "http:/cluster.localhost:8080/x",
                "http:/cluster/x",
                "https:cluster",
                "http:///cluster.localhost:8080/x",
                "http:\\\\cluster.localhost:8080/x",
                "http:/\\cluster.localhost:8080/x",
                "http://cluster.localhost:8080\\@example.com/x",
                "http://example.com\\@cluster.localhost:8080/x",
                "http://example.com@cluster.localhost:8080/x",
                "///cluster.localhost:8080/x",
                "/\\cluster.localhost:8080/x",
                "\\/cluster.localhost:8080/x",
                "\\\\cluster.localhost:8080/x",
                "\\cluster/x",
                "/\t/cluster.localhost:8080/x",
                "/\t../cluster/x",
                "ht\ttp://cluster.localhost:8080/x",
                "http://cluster.local\thost:8080/x",
                "http://cluster.localhost:8080:8080/x",
                "http://cluster.localhost:0000008080/x",
                "http:// cluster.localhost:8080/x",
                "http://",
                "//",
                "http://[::1/x",
                "http://@/x",
            ] {
                assert_eq!(told_at(way, value), "-", "{value:?} for {way:?}");
            }
        }
    }

    #[test]
    fn the_door_that_the_caller_used_stays() {
        check(&[
            (HOST, "http://cert.localhost:8080/x", "="),
            (HOST, "//CERT.localhost.:8080/../x", "="),
            (HOST, "https://cert.localhost:8080/x", "="),
            (HOST, "http://cert.localhost/x", "="),
            (NAME, "http://api.test:80/x", "="),
            (NAME, "http://api.test:8080/x", "-"),
            (LISTENER, "http://localhost:8081/cluster/x", "="),
            (SOCKET, "http://docker/cert/x", "="),
            (SOCKET, "http://docker/cluster/x", "-"),
            (SOCKET, "http://example.com/login", "="),
            (SOCKET, "http://example.com/x/../cluster/x", "-"),
            (SOCKET, "http://example.com/%63luster/x", "-"),
            (SOCKET, "http://example.com//cluster/x", "-"),
            (SOCKET, "http://cluster.localhost:3000/x", "-"),
            (PATH, "http://localhost:8080/cert/x?q", "="),
            (PATH, "http://localhost:8080/cert?q", "="),
            (PATH, "http://localhost:8080/cert", "="),
            (PATH, "http://localhost:8080/certs", "-"),
            (PATH, "http://localhost:8080/", "-"),
            (PATH, "http://localhost:8080", "-"),
            (PATH, "http://localhost:8080/Cert/x", "-"),
            (PATH, "http://localhost:8080/cert/../cluster/x", "-"),
            (PATH, "http://localhost:8080/cert/%2e%2E/cluster/x", "-"),
            (PATH, "http://localhost:8080/cert\\..\\cluster/x", "-"),
            (PATH, "http://localhost:8080/./cluster/x", "-"),
            (PATH, "http://localhost:8080//cert/x", "-"),
            // Where a port is forwarded to ours, that is our port too.
            ((TCP, "/cert/a", "localhost:49152"), "http://127.0.0.1:49152/cluster/x", "-"),
            ((TCP, "/cert/a", "localhost:49152"), "http://localhost:49152/cert/x", "="),
            ((TCP, "/cert/a", "localhost"), "http://localhost:80/cluster/x", "-"),
        ]);
    }
}
