//! `countersign sign`.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, Method, Uri, Version};
use tokio::runtime::LocalOptions;

use crate::canonical::time;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::credential::keeper::Generation;
use crate::credential::{Credential, MASK, Source};
use crate::provider::Explanation;
use crate::proxy::RouteSettings;
use crate::proxy::authorize::authorize;
use crate::proxy::body::Outgoing;
use crate::proxy::error::{Code, Error};
use crate::proxy::guard::{self, Permit};
use crate::proxy::head::Head;
use crate::proxy::hold::{self, Budget, Reason, Reservation};
use crate::proxy::lasting::Lasting;
use crate::proxy::listen::Address;
use crate::proxy::nonce::Nonces;
use crate::proxy::route::{Doors, Entrance, Found};
use crate::proxy::servers::{Endpoint, Servers};
use crate::proxy::state::Route;
use crate::upstream::ask::Asker;
use crate::upstream::tls::{self, ClientIdentity, Roots, Verify};
use crate::upstream::{Host, split_authority};

use super::{ConfigFile, Failed, complain, patiently, print};

/// Show the headers that the daemon would set on a request, without sending it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// The method [default: GET, or POST with -d]
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    method: Option<Method>,
    /// A header of the request: 'Name: value', or 'Name;' for an empty value
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<OsString>,
    /// The body, as it is; @FILE reads it from a file, @- from standard input
    #[arg(short = 'd', long = "data", value_name = "DATA or @FILE")]
    data: Option<OsString>,
    /// The time of signing: RFC 3339, or milliseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Timestamp>,
    /// The nonce, for schemes that have one
    #[arg(long, value_name = "N")]
    nonce: Option<String>,
    /// Show how the signature comes about, secrets masked
    #[arg(long)]
    explain: bool,
    /// Print a curl command for the upstream itself
    #[arg(long)]
    curl: bool,
    /// The request's URL, as a caller would use it
    url: String,
}

/// What was asked for, and what becomes of it.
struct Signing {
    settings: Description,
    route: Route,
    found: Found,
    request: http::Request<Outgoing>,
    explanation: Explanation,
    generation: Arc<Generation>,
    servers: Arc<Servers>,
}

/// What is shown of a route that its prepared form no longer knows.
struct Description {
    tls: tls::Settings,
    /// The names of the route's own headers, as its owner spells them.
    set: Vec<String>,
}

/// Walks the request through the daemon's own steps up to the sending.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let config = arguments.file.load()?;
    let path = config.path.clone();
    let signing = sign(arguments, config).map_err(|trouble| match trouble {
        Trouble::Refused(error) => {
            complain(format!("{}: {error}", error.code.name()));
            Failed::Running
        }
        Trouble::Usage(message) => {
            complain(message);
            Failed::Usage
        }
        Trouble::Unreadable(error) => {
            complain(format!("the data cannot be read: {error}"));
            Failed::Running
        }
        Trouble::Unusable(remarks) => {
            for remark in remarks {
                complain(remark.of(&path));
            }
            Failed::Running
        }
    })?;
    let text = match (arguments.curl, arguments.explain) {
        (true, false) => signing.curl(arguments.data.as_deref()),
        (false, true) => signing.explain(),
        (true, true) => [signing.explain(), b"\n".to_vec(), signing.curl(arguments.data.as_deref())].concat(),
        (false, false) => signing.headers(),
    };
    print(text);
    Ok(())
}

enum Trouble {
    Refused(Error),
    Usage(String),
    Unreadable(std::io::Error),
    Unusable(Vec<crate::settings::Remark>),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

fn sign(arguments: &Arguments, config: Config) -> Result<Signing, Trouble> {
    let body = body(arguments.data.as_deref())?;
    let method = arguments.method.clone().unwrap_or(if body.is_some() { Method::POST } else { Method::GET });
    let (authority, target) = local_url(&arguments.url)?;
    let headers = headers(&arguments.headers, authority, body.as_ref())?;
    let uri: Uri =
        target.parse().map_err(|_| Trouble::Usage("the URL's path is not valid: percent-encode it".to_owned()))?;

    let Config { server, routes, limits, .. } = config;
    let doors = Doors::new(&server.domains, routes.iter().map(|route| (route.name.as_str(), route.hosts.as_slice())));
    let entrance = Entrance { route: own_listener(&routes, authority), is_unix: false };
    let found = doors.find(entrance, &method, Version::HTTP_11, &uri, &headers)?;
    let settings = routes.into_iter().nth(found.route);
    let settings = settings.ok_or_else(|| Trouble::Usage("no such route".to_owned()))?;
    let mut description = Description {
        tls: settings.tls.clone(),
        set: settings
            .headers
            .iter()
            .chain(settings.default_headers.iter().filter(|field| !headers.contains_key(&field.name)))
            .map(|field| field.spelling.clone())
            .collect(),
    };
    let proxy = settings.proxy.clone();
    let lasting = Arc::new(Lasting::new(Clock::system(), Roots::new(server.extra_ca)));
    let route = Route::prepare(settings, &lasting).map_err(Trouble::Unusable)?;

    guard::browser(&headers, found.door, found.authority.as_ref(), &server.origins)?;
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    let (mut head, permit) = Head::ready(&route, method, found.target.clone(), headers)?;
    let octets = body.unwrap_or_default();
    let reason = head.hold_reason(&route, permit);
    let is_needed = reason == Reason::Needed;
    if is_needed && octets.len() > limits.signed_body {
        return Err(hold::too_large(limits.signed_body).into());
    }
    if permit == Permit::NeedsForm {
        head.permit(&route, Some(&octets))?;
    }
    let reservation = Reservation::new(&Arc::new(Budget::default()));
    let is_seen = is_needed || (reason == Reason::Presence && octets.is_empty());
    let is_empty = octets.is_empty() && !is_chunked;
    let body = if is_empty { Outgoing::Empty } else { Outgoing::holding(octets, None, reservation) };
    if is_chunked && !is_seen {
        // Such a body streams, so that its length is not known when its head is signed.
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else {
        head.announce(&body);
    }
    let defaults = route.provider.defaults().iter().filter(|name| !head.headers.contains_key(**name));
    description.set.splice(0..0, defaults.map(ToString::to_string));
    let time = arguments.at.unwrap_or_else(|| Clock::system().now());
    let fresh = Nonces::new().next_nonce();
    let nonce = arguments.nonce.as_deref().unwrap_or(&fresh);
    let mut explanation = Explanation::default();
    let unavailable = |message: String| Error::new(Code::CredentialUnavailable, message);
    let asker = lasting.asker(proxy, Arc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.map_err(|error| unavailable(format!("nothing can be fetched: {error}")))?;
    let fetched = patiently("the route's credential", credential(&route, &asker));
    let generation = runtime.block_on(fetched).map_err(unavailable)?;
    let armed = route.signers.of(&generation).map_err(unavailable)?;
    let servers = match &armed.servers {
        Some(servers) => Arc::clone(servers),
        None => runtime.block_on(patiently("the list of servers", route.located.ask(&asker, &lasting)))?,
    };
    let endpoint = servers.all().first();
    let endpoint = endpoint.ok_or_else(|| Trouble::Usage("the route has no upstream".to_owned()))?;
    let request = authorize(head, body, &*armed.signer, endpoint, (time, nonce), Some(&mut explanation))?;
    Ok(Signing { settings: description, route, found, request, explanation, generation, servers })
}

/// The route's credential, fetched if it must be.
async fn credential(route: &Route, asker: &Asker) -> Result<Arc<Generation>, String> {
    if !route.keeper.is_usable() {
        route.keeper.ask(asker).await.map_err(|failed| failed.message)?;
    }
    route.keeper.take().await.map(|taken| taken.generation).map_err(|trouble| trouble.0.to_string())
}

impl Signing {
    /// Every header that the daemon sets, in the vendor's spelling.
    fn set(&self) -> Vec<(String, &HeaderValue)> {
        let mut names = vec!["Host".to_owned()];
        names.extend(self.route.provider.sets());
        names.extend(self.settings.set.iter().cloned());
        let present = |name: String| self.request.headers().get(&name).map(|value| (name, value));
        names.into_iter().filter_map(present).collect()
    }

    fn headers(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (name, value) in self.set() {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        text
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.servers.all().first()
    }

    fn explain(&self) -> Vec<u8> {
        let mut text = String::new();
        let upstream = self.endpoint().map(|endpoint| endpoint.target.endpoint.to_string()).unwrap_or_default();
        let _ = writeln!(text, "route: {} (by {})", self.route.name, self.found.door.describe());
        let _ = writeln!(text, "provider: {}", self.route.provider_name);
        let _ = writeln!(text, "upstream: {upstream}");
        let _ = writeln!(text, "request: {} {}", self.request.method(), self.request.uri());
        let Generation { credential, expiry, .. } = &*self.generation;
        let source = self.route.keeper.source();
        let got = match source {
            Source::Fetched(fetch) => format!("fetched just now ({})", fetch.name()),
            _ => "read just now".to_owned(),
        };
        let until = expiry.map(|expiry| format!(", good until {}", time::iso(expiry))).unwrap_or_default();
        let _ = match credential {
            Credential::AccessKey(key) | Credential::Identified(key, _) => {
                writeln!(text, "credential: access key {}, {got}{until}", key.access_key)
            }
            Credential::Secrets(_) => match source {
                Source::Fetched(_) => writeln!(text, "credential: a token, {got}{until}"),
                _ => writeln!(text, "credential: secrets of the configuration, {got}"),
            },
            Credential::Certificate(_) => writeln!(text, "credential: a client certificate, {got}{until}"),
            Credential::Nothing => writeln!(text, "credential: the client certificate of `tls`"),
        };
        let Explanation { canonical_request, string_to_sign, signing_key_input, signed_headers, parameters } =
            &self.explanation;
        for (name, value) in parameters {
            let _ = writeln!(text, "parameter {name}: {}", value.as_deref().unwrap_or("(not there)"));
        }
        if !signed_headers.is_empty() {
            let _ = writeln!(text, "signed headers: {}", signed_headers.join(";"));
        }
        let stages = [
            ("canonical request", canonical_request),
            ("string to sign", string_to_sign),
            ("signing key input", signing_key_input),
        ];
        for (name, stage) in stages {
            let Some(stage) = stage else { continue };
            let _ = writeln!(text, "{name}:");
            // Before it is taken apart: a secret may have several lines.
            for line in self.generation.credential.mask(stage).split('\n') {
                let _ = writeln!(text, "  {line}");
            }
        }
        let _ = writeln!(text, "headers:");
        let is_as_good_as_a_secret = |value: &HeaderValue| value.is_sensitive() && self.route.provider.is_replayable();
        for (name, value) in self.set() {
            let shown = String::from_utf8_lossy(value.as_bytes());
            let _ = writeln!(text, "  {name}: {}", if is_as_good_as_a_secret(value) { MASK } else { &shown });
        }
        self.generation.credential.mask(&text).into_bytes()
    }

    /// A command that sends the same request without countersign.
    fn curl(&self, data: Option<&OsStr>) -> Vec<u8> {
        let Some(Endpoint { target, authority, .. }) = self.endpoint() else { return Vec::new() };
        let mut words = vec![b"curl".to_vec()];
        let mut word = |flag: &str, value: &[u8]| words.extend([flag.as_bytes().to_vec(), quote(value)]);
        word("-X", self.request.method().as_str().as_bytes());
        let headers = self.request.headers();
        for (name, value) in headers {
            let is_curls_own = *name == HOST || (*name == CONTENT_LENGTH && data.is_some());
            if is_curls_own {
                continue;
            }
            // curl takes `Name:` as the wish to leave a header out, and `Name;` as an empty value.
            let separator: &[u8] = if value.is_empty() { b";" } else { b": " };
            word("-H", &[name.as_str().as_bytes(), separator, value.as_bytes()].concat());
        }
        for (name, is_added) in [(ACCEPT, true), (USER_AGENT, true), (CONTENT_TYPE, data.is_some())] {
            if is_added && !headers.contains_key(&name) {
                word("-H", format!("{name}:").as_bytes());
            }
        }
        if let Some(data) = data {
            word("--data-binary", data.as_bytes());
        }
        if (&target.host, target.port) != (&target.endpoint.host, target.endpoint.port) {
            let own = format!("{}:{}", target.endpoint.host, target.endpoint.port);
            word("--connect-to", format!("{own}:{}:{}", target.host, target.port).as_bytes());
        }
        if let Some(proxy) = target.passage.proxy() {
            word("--proxy", proxy.to_string().as_bytes());
        }
        if target.endpoint.secure {
            let tls = &self.settings.tls;
            let mut file = |flag: &str, path: &Path| word(flag, path.as_os_str().as_encoded_bytes());
            if let Some(ca) = &tls.ca {
                file("--cacert", &ca.path);
            }
            let identity = tls.identity.as_ref().map(|identity| match identity {
                ClientIdentity::Files { cert, key } => (cert.path.as_path(), key.path.as_path()),
                // curl reads no bundle: these are the names that one is unpacked under.
                ClientIdentity::Bundle { .. } | ClientIdentity::Fetched { .. } => {
                    (Path::new("cert.pem"), Path::new("key.pem"))
                }
            });
            if let Some((cert, key)) = identity {
                file("--cert", cert);
                file("--key", key);
            }
            if let Verify::Pin(pins) = &tls.verify {
                let pins: Vec<_> = pins.iter().map(|pin| format!("sha256//{}", BASE64_STANDARD.encode(pin))).collect();
                word("--pinnedpubkey", pins.join(";").as_bytes());
            }
            if tls.verify != Verify::Full {
                // curl cannot leave out the name alone.
                words.push(b"--insecure".to_vec());
            }
        }
        let scheme = if target.endpoint.secure { "https" } else { "http" };
        let authority = String::from_utf8_lossy(authority.as_bytes());
        let url = format!("{scheme}://{authority}{}", self.request.uri());
        words.extend([b"--path-as-is".to_vec(), b"--globoff".to_vec(), quote(url.as_bytes())]);
        if self.request.method() == Method::HEAD {
            words.push(b"--head".to_vec());
        }
        let mut line = words.join(&b' ');
        line.push(b'\n');
        line
    }
}

/// A word as shells read it.
pub(super) fn quote(word: &[u8]) -> Vec<u8> {
    let is_plain = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._/:=@%+,".contains(octet);
    if !word.is_empty() && word.iter().all(is_plain) {
        return word.to_vec();
    }
    let mut quoted = vec![b'\''];
    for octet in word {
        match octet {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            octet => quoted.push(*octet),
        }
    }
    quoted.push(b'\'');
    quoted
}

fn local_url(url: &str) -> Result<(&str, String), Trouble> {
    let usage = || Trouble::Usage("expected a local URL: http://NAME.localhost:8080/…".to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(usage)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(usage());
    }
    let rest = rest.split('#').next().unwrap_or(rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(end).ok_or_else(usage)?;
    Ok((authority, if target.starts_with('/') { target.to_owned() } else { format!("/{target}") }))
}

/// The route whose own listener the URL leads to: its port on a loopback name or address.
fn own_listener(routes: &[RouteSettings], authority: &str) -> Option<usize> {
    let (host, port) = split_authority(authority).ok()?;
    let is_here = |address: &Address| match (address, &host) {
        (Address::Tcp(address), Host::Address(host)) => {
            address.port() == port.unwrap_or(80) && (address.ip() == *host || address.ip().is_unspecified())
        }
        (Address::Tcp(address), Host::Name(_)) => address.port() == port.unwrap_or(80),
        _ => false,
    };
    routes.iter().position(|route| route.listen.iter().any(is_here))
}

fn headers(given: &[OsString], authority: &str, body: Option<&Bytes>) -> Result<HeaderMap, Trouble> {
    let mut headers = HeaderMap::new();
    let mut left_out = Vec::new();
    for line in given {
        let usage = || Trouble::Usage("expected -H 'Name: value', or 'Name;' for an empty value".to_owned());
        let name = |name: &[u8]| HeaderName::from_bytes(name.trim_ascii()).map_err(|_| usage());
        let line = line.as_bytes();
        let colon = line.iter().position(|octet| *octet == b':').unwrap_or(line.len());
        match (line.split_at_checked(colon), line.strip_suffix(b";")) {
            (Some((left, [_, value @ ..])), _) if value.trim_ascii().is_empty() => left_out.push(name(left)?),
            (Some((left, [_, value @ ..])), _) => {
                let value = HeaderValue::from_bytes(value.trim_ascii()).map_err(|_| usage())?;
                headers.append(name(left)?, value);
            }
            (_, Some(left)) => drop(headers.append(name(left)?, HeaderValue::from_static(""))),
            (_, None) => return Err(usage()),
        }
    }
    if !headers.contains_key(HOST) && !left_out.contains(&HOST) {
        let host =
            HeaderValue::from_str(authority).map_err(|_| Trouble::Usage("the URL's host is not valid".to_owned()))?;
        headers.insert(HOST, host);
    }
    let is_framed =
        [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| headers.contains_key(name) || left_out.contains(name));
    if let Some(body) = body.filter(|_| !is_framed) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    Ok(headers)
}

fn body(data: Option<&OsStr>) -> Result<Option<Bytes>, Trouble> {
    let Some(data) = data.map(OsStr::as_bytes) else { return Ok(None) };
    let octets = match data.strip_prefix(b"@") {
        None => Ok(data.to_vec()),
        Some(b"-") => {
            let mut octets = Vec::new();
            std::io::stdin().lock().read_to_end(&mut octets).map(|_| octets)
        }
        Some(file) => std::fs::read(OsStr::from_bytes(file)),
    };
    octets.map(|octets| Some(octets.into())).map_err(Trouble::Unreadable)
}

fn moment(text: &str) -> Result<Timestamp, &'static str> {
    if let Ok(milliseconds) = text.parse() {
        return Ok(Timestamp(milliseconds));
    }
    let parsed = text.parse::<jiff::Timestamp>();
    parsed.map(|time| Timestamp(time.as_millisecond())).map_err(|_| "expected RFC 3339 or milliseconds since 1970")
}

const EXAMPLES: &str = "\
Examples:
  countersign sign http://cert.localhost:8080/v1/certificate
  countersign sign --explain -X PUT -H 'X-Id: 1' -d @body.json URL
  countersign sign --curl --at 2026-01-02T03:04:05Z URL";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quote(b"plain-word_1.txt"), b"plain-word_1.txt");
        assert_eq!(quote(b"it's $HOME `x`"), b"'it'\\''s $HOME `x`'");
        assert_eq!(quote(b""), b"''");
    }

    #[test]
    fn headers_are_read_as_curl_reads_them() {
        let given = [
            b"A: b ".as_slice(),
            b"Empty;",
            b"Host:",
            b"X: y: z",
            b"Gbk: \xd6\xd0;",
            "Wide:\u{3000}c\u{a0}".as_bytes(),
        ];
        let given = given.map(|line| OsStr::from_bytes(line).to_owned());
        let read = headers(&given, "cert.localhost", Some(&Bytes::from_static(b"abc"))).map_err(|_| ()).unwrap();
        let read: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected = [
            ("a", b"b".as_slice()),
            ("empty", b""),
            ("x", b"y: z"),
            ("gbk", b"\xd6\xd0;"),
            ("wide", "\u{3000}c\u{a0}".as_bytes()),
            ("content-length", b"3"),
        ];
        assert_eq!(read, expected);
        for wrong in ["no separator", ": nameless", ";", "two words: b"] {
            assert!(headers(&[wrong.into()], "h", None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn data_are_any_octets() {
        let octets = body(Some(OsStr::from_bytes(b"\xff\0@a"))).map_err(|_| ()).unwrap();
        assert_eq!(octets.as_deref(), Some(b"\xff\0@a".as_slice()));
    }

    #[test]
    fn times_are_milliseconds_or_rfc_3339() {
        assert_eq!(moment("1401663610999"), Ok(Timestamp(1_401_663_610_999)));
        assert_eq!(moment("2014-06-01T23:00:10Z"), Ok(Timestamp(1_401_663_610_000)));
        assert_eq!(moment("2014-06-02T01:00:10+02:00"), Ok(Timestamp(1_401_663_610_000)));
        assert!(moment("yesterday").is_err());
    }
}
