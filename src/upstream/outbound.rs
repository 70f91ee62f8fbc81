//! The outbound proxy: whether a connection goes through one, and through which.
//!
//! With "env" the variables are curl's (`ENVIRONMENT` in curl(1)), since that is what people have set. A proxy is spoken to
//! in plain HTTP; what is secret goes through it inside TLS, in a [tunnel](super::tunnel).

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use sha2::{Digest, Sha256};

use crate::settings::{Place, Remark};

use super::{Endpoint, Host, split_authority};

/// What a `proxy` key says.
#[derive(Clone, Debug, Default)]
pub enum Outbound {
    /// There is none.
    #[default]
    Direct,
    /// This one, for upstreams on loopback too: what is written out is meant.
    Proxy(Arc<ProxyServer>),
    /// Whatever the environment says.
    Environment {
        /// Where the key's value stands.
        place: Place,
        /// The key, with the tables around it.
        key: String,
    },
}

impl Outbound {
    /// What distinguishes it from others; a password goes into it as a digest.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::Direct => "direct".to_owned(),
            Self::Proxy(proxy) => proxy.identity(),
            Self::Environment { .. } => "env".to_owned(),
        }
    }

    /// The proxy through which a server is reached; `None` is straight. `dialled` is what is connected to in the end, be
    /// it an upstream, what its route says instead, or a service that hands out credentials.
    ///
    /// Services that tell a machine about itself are always asked straight: they answer that machine alone, and what they
    /// hand out is for no proxy to see.
    ///
    /// # Errors
    /// The variable that would decide cannot be used; never its value.
    pub fn for_endpoint(&self, dialled: &Endpoint) -> Result<Option<Arc<ProxyServer>>, Remark> {
        self.choose(dialled, |name| std::env::var_os(name))
    }

    /// How requests get to an endpoint, where `dialled` stands for another server that is connected to in its place. A
    /// proxy that is handed a request itself goes by its target, so that there only a tunnel leads on, as with curl's
    /// --connect-to.
    ///
    /// # Errors
    /// The variable that would decide cannot be used; never its value.
    pub fn passage(&self, endpoint: &Endpoint, dialled: Option<&Endpoint>) -> Result<Passage, Remark> {
        let Some(proxy) = self.for_endpoint(dialled.unwrap_or(endpoint))? else { return Ok(Passage::Direct) };
        if endpoint.secure || dialled.is_some() {
            return Ok(Passage::Tunnel(proxy));
        }
        let unfit = |_| Remark { place: Place::default(), message: format!("{endpoint} is not valid in a URL") };
        Ok(Passage::Forward(proxy, endpoint.authority().try_into().map_err(unfit)?))
    }

    /// True if even what is sent to this machine would leave it.
    #[must_use]
    pub fn leads_away(&self) -> bool {
        matches!(self, Self::Proxy(proxy) if !proxy.endpoint.is_loopback())
    }

    fn choose(
        &self,
        dialled: &Endpoint,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Arc<ProxyServer>>, Remark> {
        match self {
            _ if is_metadata(&dialled.host) => Ok(None),
            Self::Direct => Ok(None),
            Self::Proxy(proxy) => Ok(Some(Arc::clone(proxy))),
            Self::Environment { place, key } => match from_environment(dialled, variable) {
                Ok(proxy) => Ok(proxy.map(Arc::new)),
                Err(message) => Err(Remark { place: *place, message: format!("`{key}`: {message}") }),
            },
        }
    }
}

/// An HTTP proxy. Its `Display` is its address alone.
#[derive(Clone, Debug)]
pub struct ProxyServer {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What it is shown in `Proxy-Authorization`; marked sensitive, so that it is not printed.
    pub authorization: Option<HeaderValue>,
    /// The key or the variable that names it, for people.
    pub named_in: String,
}

impl ProxyServer {
    /// Parses `http://[USER[:PASSWORD]@]HOST[:PORT]`, user and password percent-encoded. The port is 80 if it is left out,
    /// as in every `http://` address.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str, named_in: String) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err("expected http://: proxies that speak TLS or SOCKS are not supported");
        }
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        let endpoint = Endpoint::parse(&format!("http://{authority}")).map_err(|_| EXPECTED)?;
        let authorization = user_info.map(basic).transpose()?;
        Ok(Self { endpoint, authorization, named_in })
    }

    /// What to do about its status 407, which came with these `Proxy-Authenticate`.
    pub fn denial<'a>(&self, challenges: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut schemes = challenges.into_iter().flat_map(|value| value.split(|octet| *octet == b',')).peekable();
        let is_basic =
            |scheme: &[u8]| scheme.trim_ascii_start().get(..5).is_some_and(|w| w.eq_ignore_ascii_case(b"basic"));
        let Self { endpoint, authorization, named_in } = self;
        if schemes.peek().is_some() && !schemes.any(is_basic) {
            return format!(
                "the outbound proxy {self} does not take a user and a password in the way that countersign knows, \
                 which is Basic (407): ask whoever runs it"
            );
        }
        match authorization {
            Some(_) => format!(
                "the outbound proxy {self} does not accept the user and the password (407): correct them in {named_in}"
            ),
            None => format!(
                "the outbound proxy {self} wants a user and a password (407): give them in {named_in}, \
                 as \"http://user:password@{}:{}\"",
                endpoint.host, endpoint.port
            ),
        }
    }
}

impl fmt::Display for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.endpoint.host, self.endpoint.port)
    }
}

impl ProxyServer {
    /// What distinguishes it from others, without a secret.
    fn identity(&self) -> String {
        let shown = self.authorization.as_ref().map(|value| hex::encode(Sha256::digest(value.as_bytes())));
        format!("{self} {}", shown.unwrap_or_default())
    }
}

/// How requests get to a server.
#[derive(Clone, Debug, Default)]
pub enum Passage {
    /// Straight.
    #[default]
    Direct,
    /// Through a tunnel, in which a proxy sees octets alone.
    Tunnel(Arc<ProxyServer>),
    /// By a proxy that reads them and sends them on to this authority.
    Forward(Arc<ProxyServer>, Authority),
}

impl Passage {
    /// The proxy on the way.
    #[must_use]
    pub fn proxy(&self) -> Option<&Arc<ProxyServer>> {
        match self {
            Self::Direct => None,
            Self::Tunnel(proxy) | Self::Forward(proxy, _) => Some(proxy),
        }
    }

    /// What distinguishes it from others, without a secret.
    #[must_use]
    pub fn identity(&self) -> String {
        let way = match self {
            Self::Direct => "direct",
            Self::Tunnel(_) => "tunnel",
            Self::Forward(..) => "forward",
        };
        self.proxy().map_or_else(|| way.to_owned(), |proxy| format!("{way} {}", proxy.identity()))
    }

    /// What a proxy says that forwards requests, and never an upstream: it wants to be shown who asks (RFC 9110, section
    /// 15.5.8), and what to do about it.
    #[must_use]
    pub fn denial<B>(&self, response: &Response<B>) -> Option<String> {
        let Self::Forward(proxy, _) = self else { return None };
        let challenges = response.headers().get_all(PROXY_AUTHENTICATE).iter().map(HeaderValue::as_bytes);
        let is_denied = response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        is_denied.then(|| proxy.denial(challenges))
    }

    /// Gives a signed request the form in which a proxy takes it: the target absolute (RFC 9112, section 3.2.2), and the
    /// proxy's own credential beside it. To an upstream it goes as it is.
    pub fn adapt<B>(&self, request: &mut Request<B>) {
        let Self::Forward(proxy, authority) = self else { return };
        let mut parts = request.uri().clone().into_parts();
        (parts.scheme, parts.authority) = (Some(Scheme::HTTP), Some(authority.clone()));
        // With the path that every target has, the parts are complete.
        if let Ok(absolute) = Uri::from_parts(parts) {
            *request.uri_mut() = absolute;
        }
        if let Some(authorization) = &proxy.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    }
}

/// What goes into `Proxy-Authorization` (RFC 7617, section 2).
fn basic(user_info: &str) -> Result<HeaderValue, &'static str> {
    let expected =
        "expected a user and a password of visible characters, others percent-encoded (% is %25, @ is %40, / is %2F)";
    let is_clean = user_info.bytes().all(|octet| octet.is_ascii_graphic() && !b"/?#".contains(&octet));
    let is_hex = |rest: &str| rest.get(..2).is_some_and(|hex| hex.bytes().all(|octet| octet.is_ascii_hexdigit()));
    if user_info.is_empty() || !is_clean || !user_info.split('%').skip(1).all(is_hex) {
        return Err(expected);
    }
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let decode = |text: &str| Zeroizing::new(percent_decode_str(text).collect::<Vec<u8>>());
    let (user, password) = (decode(user), decode(password));
    if user.contains(&b':') || user.iter().chain(password.iter()).any(u8::is_ascii_control) {
        return Err("expected no colon in the user, and no control characters in user and password");
    }
    let pair = Zeroizing::new([user.as_slice(), b":", &password].concat());
    let encoded = Zeroizing::new(STANDARD.encode(pair.as_slice()));
    let octets = Zeroizing::new(["Basic ", &encoded].concat().into_bytes());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(octets)).map_err(|_| expected)?;
    value.set_sensitive(true);
    Ok(value)
}

/// True for the addresses of services that tell a machine about itself: the link-local ones, and the one outside them.
fn is_metadata(host: &Host) -> bool {
    let Host::Address(address) = host else { return false };
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4 == Ipv4Addr::new(100, 100, 100, 200),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The proxy that the environment names for a server. Where a name has two spellings the lower one comes first, and
/// `HTTP_PROXY` is not read at all: in a CGI program it is a request's header.
fn from_environment(
    dialled: &Endpoint,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<ProxyServer>, String> {
    let first = |names: &[&'static str]| {
        names.iter().find_map(|name| Some((*name, variable(name).filter(|value| !value.is_empty())?)))
    };
    let is_excepted = |list: &str| list.split([',', ' ', '\t']).any(|entry| excepts(entry, dialled));
    if dialled.is_loopback()
        || first(&["no_proxy", "NO_PROXY"]).is_some_and(|(_, list)| is_excepted(&list.to_string_lossy()))
    {
        return Ok(None);
    }
    let own: &[_] = if dialled.secure { &["https_proxy", "HTTPS_PROXY"] } else { &["http_proxy"] };
    let Some((name, value)) = first(own).or_else(|| first(&["all_proxy", "ALL_PROXY"])) else { return Ok(None) };
    let parse = |text: &str| {
        let scheme = if text.contains("://") { "" } else { "http://" };
        ProxyServer::parse(&format!("{scheme}{text}"), name.to_owned())
    };
    let proxy = value.to_str().ok_or(EXPECTED).and_then(parse);
    proxy.map(Some).map_err(|expected| format!("the environment variable {name}: {expected}"))
}

/// True if an entry of `NO_PROXY` names a server: `*`, a domain with all below it, an address or a network. Names are not
/// resolved for it.
fn excepts(entry: &str, server: &Endpoint) -> bool {
    if entry == "*" {
        return true;
    }
    let network = entry.parse::<IpNet>().ok().or_else(|| Some(entry.parse::<IpAddr>().ok()?.to_canonical().into()));
    let domain = entry.strip_prefix('*').unwrap_or(entry);
    let named = split_authority(domain.strip_prefix('.').unwrap_or(domain));
    match (&server.host, network, named) {
        (Host::Address(address), Some(network), _) => network.contains(&address.to_canonical()),
        (Host::Address(address), None, Ok((Host::Address(named), port))) => {
            address.to_canonical() == named.to_canonical() && port.is_none_or(|port| port == server.port)
        }
        (Host::Name(name), None, Ok((Host::Name(domain), port))) => {
            let above = name.strip_suffix(domain.as_str());
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
                && port.is_none_or(|port| port == server.port)
        }
        _ => false,
    }
}

const EXPECTED: &str = "expected a proxy such as \"http://user:password@corp:3128\"";

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    fn parse(text: &str) -> Result<ProxyServer, &'static str> {
        ProxyServer::parse(text, "`proxy`".to_owned())
    }

    fn explicit() -> Outbound {
        Outbound::Proxy(Arc::new(parse("http://corp:3128").unwrap()))
    }

    /// What a server is reached through with "env" and these variables, `NAME=VALUE` each.
    fn through(variables: &[&str], server: &str) -> Result<String, String> {
        let variable = |name: &str| {
            let found = variables.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
            found.map(OsString::from)
        };
        let outbound = Outbound::Environment { place: Place::default(), key: "server.proxy".to_owned() };
        match outbound.choose(&endpoint(server), variable) {
            Ok(proxy) => Ok(proxy.map_or("nothing".to_owned(), |proxy| format!("{proxy} of {}", proxy.named_in))),
            Err(remark) => Err(remark.message),
        }
    }

    #[test]
    fn a_user_and_a_password_are_decoded_and_shown_to_nobody() {
        let encoded = |pair: &str| Some(format!("Basic {}", STANDARD.encode(pair)));
        for (text, address, expected) in [
            ("http://corp:3128", "http://corp:3128", None),
            ("HTTP://Corp.", "http://corp:80", None),
            ("http://[fd00::1]:3128/", "http://[fd00::1]:3128", None),
            ("http://user:hunter2@corp:3128", "http://corp:3128", encoded("user:hunter2")),
            ("http://user@corp:3128/", "http://corp:3128", encoded("user:")),
            ("http://a%40b:%2Fx%25:y%C3%A9@corp:3128", "http://corp:3128", encoded("a@b:/x%:yé")),
            ("http://user:p@ss@corp:3128", "http://corp:3128", encoded("user:p@ss")),
        ] {
            let proxy = parse(text).unwrap();
            let authorization = proxy.authorization.as_ref().map(|value| value.to_str().unwrap().to_owned());
            assert_eq!((proxy.to_string().as_str(), authorization.clone()), (address, expected), "{text}");
            let shown = format!("{proxy:?}");
            assert!(
                !shown.contains("hunter2") && !authorization.is_some_and(|value| shown.contains(&value)),
                "{shown}"
            );
        }
    }

    #[test]
    fn what_is_no_proxy_is_told_without_being_shown() {
        for (text, expected) in [
            ("corp:3128", "expected a proxy such as"),
            ("http://", "expected a proxy such as"),
            ("http://corp:3128/hunter2", "expected a proxy such as"),
            ("http://corp?hunter2", "expected a proxy such as"),
            ("http://corp:hunter2", "expected a proxy such as"),
            ("http://corp:0", "expected a proxy such as"),
            ("https://user:hunter2@corp", "expected http://: proxies that speak TLS"),
            ("socks5h://hunter2", "expected http://: proxies that speak TLS"),
            ("http://@corp", "others percent-encoded"),
            ("http://user:hunter%2@corp", "others percent-encoded"),
            ("http://user:hunter2/@corp", "others percent-encoded"),
            ("http://user:hüter@corp", "others percent-encoded"),
            ("http://us%3Aer:hunter2@corp", "no colon in the user"),
            ("http://user:hunter2%0d%0a@corp", "no control characters"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(expected) && !said.contains("hunter"), "{text}: {said}");
        }
    }

    #[test]
    fn a_proxy_that_is_written_out_is_for_all_but_services_about_the_machine() {
        for (server, is_proxied) in [
            ("https://example.com", true),
            ("http://127.0.0.1:8080", true),
            ("https://localhost", true),
            ("http://100.100.100.201", true),
            ("http://169.253.169.254", true),
            ("http://[fec0::1]", true),
            ("http://100.100.100.200", false),
            ("http://169.254.169.254", false),
            ("http://169.254.0.23:8080", false),
            ("http://[fe80::1]", false),
            ("http://[::ffff:169.254.169.254]", false),
        ] {
            let found = explicit().for_endpoint(&endpoint(server)).unwrap();
            assert_eq!(found.is_some(), is_proxied, "{server}");
            assert!(Outbound::Direct.for_endpoint(&endpoint(server)).unwrap().is_none());
            if !is_proxied {
                assert_eq!(through(&["all_proxy=corp:1"], server).unwrap(), "nothing", "{server}");
            }
        }
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        let (secure, plain) = ("https://example.com", "http://example.com");
        for (variables, server, expected) in [
            (&["https_proxy=http://a:1", "HTTPS_PROXY=http://b:2"] as &[_], secure, "http://a:1 of https_proxy"),
            (&["https_proxy=", "HTTPS_PROXY=http://b:2"], secure, "http://b:2 of HTTPS_PROXY"),
            (&["HTTPS_PROXY=b:2/"], secure, "http://b:2 of HTTPS_PROXY"),
            (&["http_proxy=http://a:1"], plain, "http://a:1 of http_proxy"),
            (&["http_proxy=http://a:1"], secure, "nothing"),
            (&["https_proxy=http://a:1"], plain, "nothing"),
            (&["HTTP_PROXY=http://a:1"], plain, "nothing"),
            (&["HTTP_PROXY=http://a:1", "ALL_PROXY=http://b:2"], plain, "http://b:2 of ALL_PROXY"),
            (&["all_proxy=user:hunter2@a:1", "ALL_PROXY=b:2"], secure, "http://a:1 of all_proxy"),
            (&["https_proxy=a:1", "all_proxy=b:2"], secure, "http://a:1 of https_proxy"),
            (&["all_proxy=a:1"], "https://localhost:8443", "nothing"),
            (&["all_proxy=a:1"], "https://127.0.0.2:8443", "nothing"),
            (&["all_proxy=a:1"], "http://[::1]", "nothing"),
            (&["all_proxy=a:1", "no_proxy=other.test", "NO_PROXY=*"], secure, "http://a:1 of all_proxy"),
            (&["all_proxy=a:1", "NO_PROXY=*"], secure, "nothing"),
            (&[], secure, "nothing"),
        ] {
            assert_eq!(through(variables, server).unwrap(), expected, "{variables:?} {server}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named_if_it_would_be() {
        let scheme = "`server.proxy`: the environment variable ALL_PROXY: expected http://: \
                      proxies that speak TLS or SOCKS are not supported";
        for value in ["ALL_PROXY=socks5://hunter2:1080", "ALL_PROXY=https://user:hunter2@corp"] {
            assert_eq!(through(&[value], "https://example.com").unwrap_err(), scheme);
        }
        let said = through(&["https_proxy=http://corp:hunter2"], "https://example.com").unwrap_err();
        assert_eq!(said, format!("`server.proxy`: the environment variable https_proxy: {EXPECTED}"));
        let socks = "all_proxy=socks5://corp";
        assert_eq!(through(&[socks, "https_proxy=a:1"], "https://example.com").unwrap(), "http://a:1 of https_proxy");
        assert_eq!(through(&[socks, "no_proxy=.com"], "https://example.com").unwrap(), "nothing");
    }

    #[test]
    fn exceptions_are_domains_addresses_and_networks() {
        for (list, server, is_excepted) in [
            ("example.com", "https://example.com", true),
            ("example.com", "https://www.Example.COM.", true),
            (".example.com", "https://www.example.com", true),
            (".example.com", "https://example.com", true),
            ("*.example.com", "https://a.b.example.com", true),
            ("EXAMPLE.com.", "https://example.com", true),
            ("example.com", "https://notexample.com", false),
            ("www.example.com", "https://example.com", false),
            ("example.com:443", "https://example.com", true),
            ("example.com:8443", "https://example.com", false),
            (".example.com:8443", "https://www.example.com:8443", true),
            ("a.test, example.com", "https://example.com", true),
            ("a.test  example.com", "https://example.com", true),
            (",,example.com,", "https://example.com", true),
            ("a.test,*", "https://example.com", true),
            ("", "https://example.com", false),
            (",", "https://example.com", false),
            ("ex*mple.com", "https://example.com", false),
            ("10.1.2.3", "https://10.1.2.3", true),
            ("10.1.2.3:443", "https://10.1.2.3", true),
            ("10.1.2.3:80", "https://10.1.2.3", false),
            ("10.1.2.3", "https://[::ffff:10.1.2.3]", true),
            ("10.1.2.3", "https://10.1.2.30", false),
            ("10.0.0.0/8", "https://10.1.2.3", true),
            ("10.1.2.9/8", "https://10.1.2.3", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("10.0.0.0/8", "https://10.example.com", false),
            ("2.3", "https://10.1.2.3", false),
            ("fd00::/8", "https://[fd12::1]", true),
            ("fd12::1", "https://[fd12::1]", true),
            ("[fd12::1]", "https://[fd12::1]:444", true),
            ("[fd12::1]:443", "https://[fd12::1]:444", false),
            ("0.0.0.0/0", "https://[fd12::1]", false),
        ] {
            let found = through(&["all_proxy=corp:1", &format!("no_proxy={list}")], server).unwrap();
            assert_eq!(found == "nothing", is_excepted, "{list:?} {server}");
        }
    }

    #[test]
    fn a_denial_says_what_would_help() {
        let (bare, known) = (parse("http://corp:3128").unwrap(), parse("http://user:hunter2@corp:3128").unwrap());
        let basic: [&[u8]; 2] = [b"Negotiate", b"NTLM, basic realm=\"a, b\""];
        assert!(
            bare.denial(basic).ends_with("in `proxy`, as \"http://user:password@corp:3128\""),
            "{}",
            bare.denial(basic)
        );
        assert!(known.denial([]).ends_with("(407): correct them in `proxy`"), "{}", known.denial([]));
        for challenges in [vec![b"Negotiate".as_slice()], vec![b"Digest realm=\"x\"", b"NTLM"]] {
            assert!(known.denial(challenges).contains("which is Basic"));
        }
    }
}
