//! Step 2: which route a request is for, and through which of its doors it came.
//!
//! Everything is decided by the listener, the authority and, on the path door, the first segment of the path. What no
//! parser should guess at is refused: two authorities, an empty one, one that differs from the request target's.

use std::collections::HashMap;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, Version};

use crate::upstream::{Host, split_authority};

use super::error::{Code, Error};

/// The way through which a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The route's own listener.
    Listener,
    /// An exact name of the route.
    Name,
    /// The prefix of a host name: `NAME.<domain>`.
    Host,
    /// The prefix of a path: `/NAME/…`.
    Path,
}

impl Door {
    /// In words, for a person.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Listener => "its own listener",
            Self::Name => "one of its `hosts`",
            Self::Host => "the host prefix",
            Self::Path => "the path prefix",
        }
    }
}

/// What a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// The route whose own listener it is.
    pub route: Option<usize>,
    /// True for a Unix socket, which no web page reaches: it takes any one authority.
    pub is_unix: bool,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Found {
    /// The index of the route.
    pub route: usize,
    /// The door.
    pub door: Door,
    /// The target as it goes upstream.
    pub target: PathAndQuery,
    /// The authority that the caller used.
    pub authority: Option<Authority>,
}

/// The authority of a request: the host and, if it was given, the port.
pub type Authority = (Host, Option<u16>);

/// Every door of every route.
#[derive(Debug, Default)]
pub struct Doors {
    names: Vec<String>,
    by_name: HashMap<String, usize>,
    hosts: HashMap<Host, Vec<(Option<u16>, usize)>>,
    domains: Vec<String>,
}

impl Doors {
    /// Builds the doors for `domains` and routes, given in order by their names and exact hosts.
    #[must_use]
    pub fn new<'a>(domains: &[String], routes: impl Iterator<Item = (&'a str, &'a [Authority])>) -> Self {
        Self::numbered(domains, routes.enumerate())
    }

    /// The same for routes that have numbers of their own.
    #[must_use]
    pub fn numbered<'a>(domains: &[String], routes: impl Iterator<Item = (usize, (&'a str, &'a [Authority]))>) -> Self {
        let mut doors = Self { domains: domains.to_vec(), ..Self::default() };
        for (number, (name, hosts)) in routes {
            doors.names.push(name.to_owned());
            doors.by_name.insert(name.to_owned(), number);
            for (host, port) in hosts {
                doors.hosts.entry(host.clone()).or_default().push((*port, number));
            }
        }
        doors
    }

    /// Finds the route for a request head.
    ///
    /// # Errors
    /// `bad_request` for what no parser should guess at, `unknown_host` where no route belongs to the authority.
    pub fn find(
        &self,
        entrance: Entrance,
        method: &Method,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Found, Error> {
        let target = target(method, uri)?;
        let authority = self.admit(entrance, version, uri, headers)?;
        if let Some(route) = entrance.route {
            return Ok(Found { route, door: Door::Listener, target, authority });
        }
        if let Some(authority) = &authority {
            if let Some(route) = self.exact(authority) {
                return Ok(Found { route, door: Door::Name, target, authority: Some(authority.clone()) });
            }
            match self.prefix(&authority.0).map(|name| self.by_name.get(name)) {
                Some(Some(&route)) => {
                    return Ok(Found { route, door: Door::Host, target, authority: Some(authority.clone()) });
                }
                Some(None) if !entrance.is_unix => {
                    return Err(unknown_host(format!("no route has this name: {}", self.list())));
                }
                _ => {}
            }
        }
        match self.behind_path(&target) {
            Some((route, target)) => Ok(Found { route, door: Door::Path, target, authority }),
            None => Err(unknown_host(format!(
                "no route belongs to this path: put a route's name first, as in /NAME/…; {}",
                self.list()
            ))),
        }
    }

    /// The authority that a request names, if this listener takes it: on TCP no foreign name that somebody made resolve
    /// to this machine.
    ///
    /// # Errors
    /// `bad_request` for what no parser should guess at, `unknown_host` for a foreign name.
    pub fn admit(
        &self,
        entrance: Entrance,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Option<Authority>, Error> {
        let authority = authority(version, uri, headers)?;
        let is_local = match &authority {
            None if entrance.route.is_none() && !entrance.is_unix => return Err(no_host()),
            None => true,
            Some((host, port)) => entrance.is_unix || self.is_ours(host, *port),
        };
        if is_local {
            return Ok(authority);
        }
        Err(unknown_host(
            "this host name is none of countersign's: use NAME.localhost, or name it in a route's `hosts`",
        ))
    }

    /// True for what cannot be a foreign name that was made to resolve to this machine.
    pub(super) fn is_ours(&self, host: &Host, port: Option<u16>) -> bool {
        match host {
            Host::Address(address) if address.to_canonical().is_loopback() => true,
            Host::Name(name) if name == "localhost" || self.domains.contains(name) => true,
            _ => self.exact_host(host, port).is_some() || self.prefix(host).is_some(),
        }
    }

    /// True if one of the routes' `hosts` is this authority.
    pub(super) fn is_named(&self, authority: &Authority) -> bool {
        self.exact(authority).is_some()
    }

    /// True if a request for this authority may find a route at an entrance that all routes share; `segment` is the first
    /// of its path, if that is certain.
    pub(super) fn may_lead(&self, entrance: Entrance, authority: &Authority, segment: Option<&[u8]>) -> bool {
        let (host, port) = authority;
        let is_route = |name: &str| self.by_name.contains_key(name);
        let has_path_door = entrance.is_unix || self.is_ours(host, *port);
        self.is_named(authority)
            || self.prefix(host).is_some_and(is_route)
            || (has_path_door && segment.is_none_or(|segment| std::str::from_utf8(segment).is_ok_and(is_route)))
    }

    /// True if hosts of several routes lie under this name, so that a cookie for it would reach them all.
    pub(super) fn is_shared(&self, name: &str) -> bool {
        let is_under =
            |domain: &str| domain.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        is_under("localhost") || self.domains.iter().any(|domain| is_under(domain))
    }

    fn exact(&self, (host, port): &Authority) -> Option<usize> {
        self.exact_host(host, *port)
    }

    fn exact_host(&self, host: &Host, port: Option<u16>) -> Option<usize> {
        let claims = self.hosts.get(host)?;
        let port = port.unwrap_or(80);
        let with_port = claims.iter().find(|(claimed, _)| *claimed == Some(port));
        with_port.or_else(|| claims.iter().find(|(claimed, _)| claimed.is_none())).map(|(_, route)| *route)
    }

    /// The NAME of `NAME.<domain>`, be there a route of that name or not.
    fn prefix<'h>(&self, host: &'h Host) -> Option<&'h str> {
        let Host::Name(host) = host else { return None };
        self.domains.iter().find_map(|domain| host.strip_suffix(domain.as_str())?.strip_suffix('.'))
    }

    fn behind_path(&self, target: &PathAndQuery) -> Option<(usize, PathAndQuery)> {
        let rest = target.as_str().strip_prefix('/')?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at_checked(end)?;
        let route = *self.by_name.get(name)?;
        let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        Some((route, rest.try_into().ok()?))
    }

    fn list(&self) -> String {
        if self.names.is_empty() {
            return "no routes are configured".to_owned();
        }
        format!("the routes are {}", self.names.join(", "))
    }
}

/// The target in origin form.
fn target(method: &Method, uri: &Uri) -> Result<PathAndQuery, Error> {
    if method == Method::CONNECT {
        return Err(bad_request(
            "CONNECT is not served: send the request itself as http://, countersign speaks TLS to the upstream",
        ));
    }
    if method == Method::TRACE {
        return Err(bad_request("TRACE is not served: it would show the credential"));
    }
    match uri.path_and_query() {
        Some(target) if target.as_str().starts_with('/') => Ok(target.clone()),
        Some(target) if target.as_str().starts_with('?') => {
            format!("/{}", target.as_str()).try_into().map_err(|_| bad_request("the request target is not valid"))
        }
        _ => Err(bad_request("the request target must be a path or an http:// URL")),
    }
}

/// The one authority that the request names, if it names one.
fn authority(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Error> {
    let mut hosts = headers.get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(bad_request("the request names its host twice: send one Host header")),
        (Some(host), None) => Some(parse(host.to_str().unwrap_or_default())?),
        (None, _) if version == Version::HTTP_11 || (version > Version::HTTP_11 && uri.authority().is_none()) => {
            return Err(no_host());
        }
        (None, _) => None,
    };
    let Some(scheme) = uri.scheme_str() else { return Ok(header) };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(bad_request("the request target must be a path or an http:// URL")),
    };
    let target = parse(uri.authority().map_or("", |authority| authority.as_str()))?;
    let normal = |authority: &Authority| (authority.0.clone(), authority.1.unwrap_or(default_port));
    if header.as_ref().is_some_and(|header| normal(header) != normal(&target)) {
        return Err(bad_request("the Host header and the request target name different hosts"));
    }
    Ok(Some(target))
}

fn parse(text: &str) -> Result<Authority, Error> {
    split_authority(text).map_err(|expected| bad_request(format!("the host is not valid: {expected}")))
}

fn no_host() -> Error {
    bad_request("the request names no host: send a Host header")
}

fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::BadRequest, message)
}

fn unknown_host(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::UnknownHost, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Entrance = Entrance { route: None, is_unix: false };
    const UNIX: Entrance = Entrance { route: None, is_unix: true };
    const OWN: Entrance = Entrance { route: Some(1), is_unix: false };

    fn doors() -> Doors {
        let hosts = [split_authority("certificate.baidubce.com").unwrap(), split_authority("api.test:8443").unwrap()];
        let domains = ["localhost".to_owned(), "corp.test".to_owned()];
        Doors::new(&domains, [("cert", hosts.as_slice()), ("cluster", &[])].into_iter())
    }

    fn find(entrance: Entrance, target: &str, hosts: &[&str]) -> Result<(usize, Door, String), Code> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        let uri: Uri = target.parse().unwrap();
        let found = doors().find(entrance, &Method::GET, Version::HTTP_11, &uri, &headers);
        found.map(|found| (found.route, found.door, found.target.to_string())).map_err(|error| error.code)
    }

    #[test]
    fn each_door_leads_to_its_route() {
        for (entrance, target, host, expected) in [
            (TCP, "/v1?x", "cert.localhost:8080", (0, Door::Host, "/v1?x")),
            (TCP, "/v1", "CERT.LocalHost.:8080", (0, Door::Host, "/v1")),
            (TCP, "/v1", "cluster.corp.test", (1, Door::Host, "/v1")),
            (TCP, "/v1", "certificate.baidubce.com:8080", (0, Door::Name, "/v1")),
            (TCP, "/v1", "api.test:8443", (0, Door::Name, "/v1")),
            (TCP, "http://certificate.baidubce.com/v1", "certificate.baidubce.com:80", (0, Door::Name, "/v1")),
            (TCP, "http://cert.localhost", "cert.localhost", (0, Door::Host, "/")),
            (TCP, "http://cert.localhost?a", "cert.localhost", (0, Door::Host, "/?a")),
            (TCP, "/cert/v1?x", "localhost:8080", (0, Door::Path, "/v1?x")),
            (TCP, "/cert", "127.0.0.1:8080", (0, Door::Path, "/")),
            (TCP, "/cert?q", "[::1]:8080", (0, Door::Path, "/?q")),
            (TCP, "/cert//v1//b///", "corp.test", (0, Door::Path, "//v1//b///")),
            (TCP, "//v1//b", "cert.localhost", (0, Door::Host, "//v1//b")),
            (OWN, "/cert/v1", "localhost:8081", (1, Door::Listener, "/cert/v1")),
            (OWN, "/v1", "cert.localhost", (1, Door::Listener, "/v1")),
            (UNIX, "/v1", "cert.localhost", (0, Door::Host, "/v1")),
            (UNIX, "/cert/v1", "api.moby.localhost", (0, Door::Path, "/v1")),
            (UNIX, "/cert/v1", "evil.example", (0, Door::Path, "/v1")),
        ] {
            let (route, door, path) = expected;
            assert_eq!(find(entrance, target, &[host]), Ok((route, door, path.to_owned())), "{host} {target}");
        }
    }

    #[test]
    fn foreign_names_are_misdirected() {
        for (entrance, target, host) in [
            (TCP, "/cert/v1", "evil.example"),
            (TCP, "/cert/v1", "127.0.0.1.evil.example"),
            (TCP, "/cert/v1", "169.254.169.254"),
            (TCP, "/cert/v1", "nobody.localhost"),
            (TCP, "/v1", "a.cert.localhost"),
            (TCP, "/v1", "localhost.evil.example"),
            (TCP, "/v1", "api.test:8444"),
            (TCP, "/nobody/v1", "localhost"),
            (TCP, "/certs", "localhost"),
            (TCP, "/%63ert/v1", "localhost"),
            (TCP, "/", "localhost"),
            (OWN, "/v1", "evil.example"),
            (UNIX, "/nobody", "x"),
        ] {
            assert_eq!(find(entrance, target, &[host]), Err(Code::UnknownHost), "{host} {target}");
        }
    }

    #[test]
    fn what_no_parser_should_guess_at_is_refused() {
        for (target, hosts) in [
            ("/v1", &["cert.localhost", "cert.localhost"][..]),
            ("/v1", &[]),
            ("/v1", &[""]),
            ("/v1", &[" "]),
            ("/v1", &["cert.localhost:"; 2]),
            ("/v1", &["cert.localhost:8o80"]),
            ("/v1", &["cert.localhost:99999"]),
            ("/v1", &["user@cert.localhost"]),
            ("/v1", &["cert.localhost, cluster.localhost"]),
            ("/v1", &["cert.localhost/x"]),
            ("/v1", &["cert%2elocalhost"]),
            ("/v1", &["[::1"]),
            ("http://cert.localhost/v1", &["cluster.localhost"]),
            ("http://cert.localhost/v1", &["cert.localhost:8080"]),
            ("http://user@cert.localhost/v1", &["cert.localhost"]),
            ("ftp://cert.localhost/v1", &["cert.localhost"]),
            ("http://cert.localhost/v1", &[]),
            ("*", &["cert.localhost"]),
            ("cert.localhost", &["cert.localhost"]),
            ("cluster.localhost:80", &["cert.localhost"]),
        ] {
            assert_eq!(find(TCP, target, hosts), Err(Code::BadRequest), "{hosts:?} {target}");
        }
    }

    #[test]
    fn http_1_0_may_leave_its_host_out_only_where_the_listener_says_enough() {
        let find = |entrance| {
            let found =
                doors().find(entrance, &Method::GET, Version::HTTP_10, &"/cert/v1".parse().unwrap(), &HeaderMap::new());
            found.map(|found| (found.route, found.door)).map_err(|error| error.code)
        };
        assert_eq!(find(TCP), Err(Code::BadRequest));
        assert_eq!(find(OWN), Ok((1, Door::Listener)));
        assert_eq!(find(UNIX), Ok((0, Door::Path)));
    }
}
