//! Step 3: what may pass, and for whom.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderName, ORIGIN, PROXY_AUTHORIZATION, UPGRADE};
use http::{HeaderMap, Method};
use ipnet::IpNet;
use subtle::ConstantTimeEq;

use crate::canonical::query::{form_decode, form_pairs, is_form};
use crate::credential::{ExposeSecret, SecretRef, SecretString};
use crate::upstream::split_authority;

use super::error::{Code, Error};
use super::peer::{Asks, Peer};
use super::route::{Authority, Door};

/// Refuses what a web page of another origin asks for. True if a page of one of the `origins` asked.
///
/// # Errors
/// `cross_site`, unless `origins` names the origin.
pub fn browser(
    headers: &HeaderMap,
    door: Door,
    authority: Option<&Authority>,
    origins: &[String],
) -> Result<bool, Error> {
    let mut is_named = false;
    for origin in headers.get_all(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        is_named = origins.iter().any(|named| named.eq_ignore_ascii_case(origin));
        // Not every browser says with an upgrade from which site it comes, so there an origin that all routes share is
        // a stranger's.
        let is_shared = door == Door::Path && headers.contains_key(UPGRADE);
        if !is_named && (is_shared || !is_same_origin(origin, authority)) {
            return Err(cross_site());
        }
    }
    if is_named {
        return Ok(true);
    }
    // All routes share one origin on the path door, so a page that one of them serves is a stranger to the others.
    let is_welcome = |site: &[u8]| site == b"none" || (site == b"same-origin" && door != Door::Path);
    if !headers.get_all(&SEC_FETCH_SITE).iter().all(|site| is_welcome(site.as_bytes())) {
        return Err(cross_site());
    }
    if headers.contains_key(&REQUEST_PRIVATE_NETWORK) {
        return Err(cross_site());
    }
    Ok(false)
}

fn is_same_origin(origin: &str, authority: Option<&Authority>) -> bool {
    let origin = origin.strip_prefix("http://").and_then(|origin| split_authority(origin).ok());
    match (origin, authority) {
        (Some((host, port)), Some((own_host, own_port))) => {
            host == *own_host && port.unwrap_or(80) == own_port.unwrap_or(80)
        }
        _ => false,
    }
}

fn cross_site() -> Error {
    Error::new(Code::CrossSite, "a web page of another origin asked: name its origin in `server.origins` to let it")
}

/// One entry of a route's `allow`: a method, a path pattern, and query terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    method: Method,
    path: Vec<Segment>,
    terms: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    AnyOne,
    Rest,
}

impl Rule {
    /// Parses `METHOD /path?name&name=value`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (method, target) = text.split_once(' ').ok_or("expected a method, a space and a path: \"GET /v1/**\"")?;
        let method = Some(method).filter(|method| method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'));
        let method = method.and_then(|method| method.parse().ok()).ok_or("expected a method in capitals")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix('/').ok_or("expected a path that begins with /")?;
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("expected a path as it is sent: other characters percent-encoded");
        }
        let mut segments = Vec::new();
        for segment in path.split('/') {
            if segments.last() == Some(&Segment::Rest) {
                return Err("`**` stands for the rest of a path: nothing can follow it");
            }
            segments.push(match segment {
                "*" => Segment::AnyOne,
                "**" => Segment::Rest,
                _ if segment.contains('*') => return Err("`*` stands for a whole segment"),
                _ => Segment::Exactly(segment.to_owned()),
            });
        }
        let own_path = format!("/{path}");
        if is_ambiguous(&own_path) {
            return Err("expected a path without dot segments, //, \\, ; or escaped separators: such never match");
        }
        let term = |(name, value): (&str, Option<&str>)| {
            (form_decode(name.as_bytes()).into_owned(), value.map(|value| form_decode(value.as_bytes()).into_owned()))
        };
        Ok(Self { method, path: segments, terms: crate::canonical::query::pairs(query).map(term).collect() })
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        if self.method != *method && !(self.method == Method::GET && *method == Method::HEAD) {
            return false;
        }
        let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
        for pattern in &self.path {
            let segment = match pattern {
                Segment::Rest => return true,
                _ => segments.next(),
            };
            let is_match = match (pattern, segment) {
                (Segment::Exactly(expected), Some(segment)) => expected == segment,
                (Segment::AnyOne, Some(segment)) => !segment.is_empty(),
                _ => false,
            };
            if !is_match {
                return false;
            }
        }
        segments.next().is_none()
    }

    fn terms_met(&self, parameters: &[Parameter<'_>]) -> bool {
        self.terms.iter().all(|(name, value)| {
            let mut named = parameters.iter().filter(|(given, _)| given.as_ref() == name);
            match (named.next(), named.next()) {
                (Some((_, given)), None) => value.as_ref().is_none_or(|value| given.as_ref() == value),
                _ => false,
            }
        })
    }
}

/// What `allow` says of a request before its body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may pass.
    Granted,
    /// It depends on the form in the body, which must be held.
    NeedsForm,
}

/// Decides whether a request may pass, on the very octets that are signed and sent.
///
/// `form` is the body, if it is a form that was held.
///
/// # Errors
/// `not_allowed`.
pub fn allow(
    rules: Option<&[Rule]>,
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    form: Option<&[u8]>,
) -> Result<Permit, Error> {
    let Some(rules) = rules else { return Ok(Permit::Granted) };
    if is_ambiguous(path) {
        let message = "the route's `allow` accepts no path with dot segments, //, \\, ; or escaped separators";
        return Err(Error::new(Code::NotAllowed, message));
    }
    let mut matching = rules.iter().filter(|rule| rule.matches(method, path)).peekable();
    if matching.peek().is_none() {
        return Err(not_allowed());
    }
    let mut matching = matching.collect::<Vec<_>>();
    if matching.iter().any(|rule| rule.terms.is_empty()) {
        return Ok(Permit::Granted);
    }
    if form.is_none() && is_form(headers).ok_or_else(ambiguous_type)? {
        return Ok(Permit::NeedsForm);
    }
    let parameters: Vec<_> =
        parameters(query.unwrap_or("").as_bytes()).chain(parameters(form.unwrap_or(b""))).collect();
    matching.retain(|rule| rule.terms_met(&parameters));
    if matching.is_empty() { Err(not_allowed()) } else { Ok(Permit::Granted) }
}

fn not_allowed() -> Error {
    Error::new(Code::NotAllowed, "the route's `allow` does not name this request: its owner can add it there")
}

/// A name and its value, decoded.
type Parameter<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

fn parameters(text: &[u8]) -> impl Iterator<Item = Parameter<'_>> {
    form_pairs(text).map(|(name, value)| (form_decode(name), form_decode(value)))
}

/// Rules that look into forms refuse what may be one or not.
fn ambiguous_type() -> Error {
    Error::new(Code::NotAllowed, "the route's `allow` looks into forms: send one Content-Type with one media type")
}

/// True for a path that two parsers may read differently, so that a pattern could be walked around.
fn is_ambiguous(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    ["//", "\\", ";", "%2f", "%5c", "%00"].iter().any(|trick| lower.contains(trick))
        || lower.split('/').any(|segment| matches!(segment.replace("%2e", ".").as_str(), "." | ".."))
}

/// A route's `callers`. Each that is given must be met; of `uid` and `gid` one is enough.
#[derive(Clone, Debug, Default)]
pub struct CallersSettings {
    /// Users, by the kernel's word.
    pub uid: Option<Vec<u32>>,
    /// Groups, by the kernel's word.
    pub gid: Option<Vec<u32>>,
    /// Networks that the caller's address must be in.
    pub net: Option<Vec<IpNet>>,
    /// A token that the caller must show.
    pub token: Option<SecretRef>,
}

/// A route's `callers`, the token read.
#[derive(Debug)]
pub struct Callers {
    /// What was configured.
    pub settings: CallersSettings,
    /// The token.
    pub token: Option<SecretString>,
}

impl Callers {
    /// What must be asked about callers.
    #[must_use]
    pub fn asks(&self) -> Asks {
        Asks { users: self.settings.uid.is_some(), groups: self.settings.gid.is_some() }
    }

    /// Lets a caller through; the headers in which it showed its token are removed and go no further.
    ///
    /// # Errors
    /// `caller_denied`; what is unknown is denied.
    pub fn admit(&self, peer: &Peer, headers: &mut HeaderMap) -> Result<(), Error> {
        let CallersSettings { uid, gid, net, .. } = &self.settings;
        if uid.is_some() || gid.is_some() {
            let among = |ids: &Option<Vec<u32>>, id: u32| ids.as_ref().is_some_and(|ids| ids.contains(&id));
            let mut groups = peer.gid.iter().chain(&peer.groups);
            if !peer.uid.is_some_and(|id| among(uid, id)) && !groups.any(|id| among(gid, *id)) {
                return Err(denied(if peer.uid.is_none() && uid.is_some() {
                    "the kernel does not tell who the caller is, and the route's `callers` name users: a caller on TCP must be \
                     on this machine, and keep its side of the connection open"
                } else {
                    "the caller's user is none of the route's `callers`"
                }));
            }
        }
        if let Some(net) = net {
            let address = peer.address.map(|address| address.to_canonical());
            if !address.is_some_and(|address| net.iter().any(|net| net.contains(&address))) {
                return Err(denied("the caller's address is in none of the route's `callers.net`"));
            }
        }
        if let Some(token) = &self.token {
            let mut is_shown = false;
            for name in [AUTHORIZATION, PROXY_AUTHORIZATION] {
                if shows(headers, &name, token) {
                    headers.remove(name);
                    is_shown = true;
                }
            }
            if !is_shown {
                return Err(denied(
                    "the route wants its callers' token, as Bearer or as Basic password, in Proxy-Authorization or Authorization",
                ));
            }
        }
        Ok(())
    }
}

fn denied(message: &'static str) -> Error {
    Error::new(Code::CallerDenied, message)
}

fn shows(headers: &HeaderMap, name: &HeaderName, token: &SecretString) -> bool {
    headers.get_all(name).iter().any(|value| {
        let Some((scheme, rest)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return false };
        let rest = rest.trim();
        let is_token = |shown: &[u8]| bool::from(shown.ct_eq(token.expose_secret().as_bytes()));
        if scheme.eq_ignore_ascii_case("bearer") {
            return is_token(rest.as_bytes());
        }
        let decoded = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(rest).ok()).flatten();
        decoded.is_some_and(|pair| {
            let password = pair.iter().position(|octet| *octet == b':').and_then(|colon| pair.get(colon + 1..));
            password.is_some_and(is_token)
        })
    })
}

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn passes(rules: &[&str], method: &str, target: &str) -> bool {
        let rules: Vec<_> = rules.iter().map(|rule| Rule::parse(rule).unwrap()).collect();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        allow(Some(&rules), &method.parse().unwrap(), path, query, &HeaderMap::new(), None) == Ok(Permit::Granted)
    }

    impl PartialEq for Error {
        fn eq(&self, other: &Self) -> bool {
            self.code == other.code
        }
    }

    #[test]
    fn rules_match_whole_segments() {
        let rules = ["GET /v1/certificate/**", "PUT /v1/certificate/*?certName", "DELETE /v1/*/x?a=1&b"];
        for (method, target) in [
            ("GET", "/v1/certificate"),
            ("HEAD", "/v1/certificate/"),
            ("GET", "/v1/certificate/a/b?anything"),
            ("PUT", "/v1/certificate/c-1?certName"),
            ("PUT", "/v1/certificate/c-1?x=y&certName=z"),
            ("DELETE", "/v1/q/x?b&a=1"),
        ] {
            assert!(passes(&rules, method, target), "{method} {target}");
        }
        for (method, target) in [
            ("POST", "/v1/certificate"),
            ("get", "/v1/certificate"),
            ("GET", "/v1/certificates"),
            ("GET", "/v1/%63ertificate"),
            ("GET", "/v1"),
            ("PUT", "/v1/certificate/c-1"),
            ("PUT", "/v1/certificate/c-1?certname"),
            ("PUT", "/v1/certificate/c-1?certName&certName"),
            ("PUT", "/v1/certificate/c-1?certName&cert%4eame=2"),
            ("PUT", "/v1/certificate/?certName"),
            ("PUT", "/v1/certificate/a/b?certName"),
            ("DELETE", "/v1/q/x?b&a=2"),
            ("DELETE", "/v1/q/x?b&a=1&a=1"),
        ] {
            assert!(!passes(&rules, method, target), "{method} {target}");
        }
    }

    #[test]
    fn a_path_that_could_be_read_in_two_ways_never_passes_a_list() {
        for path in [
            "/v1/../x",
            "/v1/%2e%2E/x",
            "/v1/.%2e",
            "/.",
            "/v1//x",
            "/v1/a\\b",
            "/v1/a;b",
            "/v1/a%2Fb",
            "/v1/a%5cb",
            "/v1/%00",
        ] {
            assert!(!passes(&["GET /**"], "GET", path), "{path}");
            let free = allow(None, &Method::GET, path, None, &HeaderMap::new(), None);
            assert_eq!(free, Ok(Permit::Granted), "{path}");
        }
        assert!(passes(&["GET /**"], "GET", "/v1/..a/b..c/%252f"));
    }

    #[test]
    fn rules_that_could_never_match_are_refused() {
        for rule in
            ["", "GET", "GET v1", "get /v1", "GET /a*", "GET /**/x", "GET /a/../b", "GET /a;b", "GET  /a", "GET /é"]
        {
            assert!(Rule::parse(rule).is_err(), "{rule}");
        }
    }

    #[test]
    fn a_form_body_counts_as_query() {
        let rules = [Rule::parse("POST /x?a=1").unwrap()];
        let form = headers(&[("content-type", "Application/X-WWW-Form-Urlencoded; charset=GBK")]);
        let decide = |query, body| allow(Some(&rules), &Method::POST, "/x", query, &form, body);
        assert_eq!(decide(Some("a=1"), None), Ok(Permit::NeedsForm));
        assert_eq!(decide(None, Some(b"b=2&a=1".as_slice())), Ok(Permit::Granted));
        assert!(decide(Some("a=1"), Some(b"%61=1")).is_err());
        assert!(decide(None, Some(b"a=2")).is_err());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let own = split_authority("cert.localhost:8080").unwrap();
        let origins = ["https://app.example".to_owned()];
        let check = |door, pairs: &[(&str, &str)]| browser(&headers(pairs), door, Some(&own), &origins).is_ok();
        for pairs in [
            &[][..],
            &[("origin", "http://cert.localhost:8080")],
            &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://CERT.localhost:8080")],
        ] {
            assert!(check(Door::Host, pairs), "{pairs:?}");
        }
        for pairs in [
            &[("origin", "null")][..],
            &[("origin", "http://evil.example")],
            &[("origin", "http://cert.localhost")],
            &[("origin", "https://cert.localhost:8080")],
            &[("origin", "https://app.example"), ("origin", "http://evil.example")],
            &[("origin", "http://evil.example"), ("origin", "https://app.example")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
            &[("access-control-request-private-network", "true")],
        ] {
            assert!(!check(Door::Host, pairs), "{pairs:?}");
        }
        let upgrade = [("origin", "http://cert.localhost:8080"), ("upgrade", "websocket")];
        assert!(check(Door::Host, &upgrade) && !check(Door::Path, &upgrade));
        assert!(check(Door::Path, &[("origin", "https://app.example"), ("upgrade", "websocket")]));
        assert!(check(Door::Path, &[("upgrade", "websocket")]));
        assert!(check(Door::Path, &[("sec-fetch-site", "none")]));
        assert!(!check(Door::Path, &[("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn callers_show_their_token_once_and_it_goes_no_further() {
        let callers = Callers { settings: CallersSettings::default(), token: Some("t0ken".into()) };
        let basic = format!("Basic {}", BASE64_STANDARD.encode("user:t0ken"));
        for (name, value) in [
            ("authorization", "Bearer t0ken"),
            ("proxy-authorization", "bearer  t0ken"),
            ("authorization", basic.as_str()),
        ] {
            let mut headers = headers(&[(name, value), ("x", "y")]);
            callers.admit(&Peer::default(), &mut headers).unwrap();
            assert_eq!(headers.len(), 1, "{name}: {value}");
        }
        let user_only = format!("Basic {}", BASE64_STANDARD.encode("t0ken"));
        for value in ["t0ken", "Bearer t0kem", "Bearer ", "Basic dDBrZW4", user_only.as_str()] {
            assert!(callers.admit(&Peer::default(), &mut headers(&[("authorization", value)])).is_err(), "{value}");
        }
    }

    #[test]
    fn unknown_callers_are_denied() {
        let callers = |settings| Callers { settings, token: None };
        let by_uid = callers(CallersSettings { uid: Some(vec![1000]), gid: Some(vec![33]), ..Default::default() });
        let by_net = callers(CallersSettings { net: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..Default::default() });
        let admit = |callers: &Callers, peer| callers.admit(&peer, &mut HeaderMap::new()).is_ok();
        assert!(!admit(&by_uid, Peer::default()));
        assert!(admit(&by_uid, Peer { uid: Some(1000), ..Peer::default() }));
        assert!(admit(&by_uid, Peer { uid: Some(1), gid: Some(33), ..Peer::default() }));
        assert!(admit(&by_uid, Peer { uid: Some(1), gid: Some(0), groups: vec![0, 33], ..Peer::default() }));
        assert!(!admit(&by_uid, Peer { uid: Some(0), gid: Some(0), groups: vec![1000, 4], ..Peer::default() }));
        assert!(!admit(&by_net, Peer { uid: Some(1000), ..Peer::default() }));
        assert!(admit(&by_net, Peer { address: Some("::ffff:10.1.2.3".parse().unwrap()), ..Peer::default() }));
        assert!(!admit(&by_net, Peer { address: Some("127.0.0.1".parse().unwrap()), ..Peer::default() }));
    }
}
