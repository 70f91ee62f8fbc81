//! Turns a `Location` back, for callers at every door. Nothing may panic or grow out of bounds, and whoever follows what is
//! left comes to the caller's own route or to none of ours, in whichever of the known ways it reads a URL.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use countersign::clock::Rest;
use countersign::proxy::location::{Fate, View, turn_back};
use countersign::proxy::route::{Door, Doors, Entrance};
use countersign::proxy::servers::Endpoint;
use countersign::upstream::connect::Target;
use countersign::upstream::outbound::Passage;
use countersign::upstream::{self, split_authority};
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};

const TCP: Entrance = Entrance { route: None, is_unix: false };
const UNIX: Entrance = Entrance { route: None, is_unix: true };

/// Our ports, and what comes in there.
const PORTS: [(u16, Entrance); 3] = [
    (8080, TCP),
    (8081, Entrance { route: Some(0), is_unix: false }),
    (8082, Entrance { route: Some(1), is_unix: false }),
];

/// Callers of the first route: where they come in, the target, `Host`.
const CALLERS: [(Entrance, &str, &str); 10] = [
    (TCP, "/cert/a/b?q", "localhost:8080"),
    (TCP, "/cert?q", "127.0.0.1:8080"),
    (TCP, "/cert/a", "localhost:49152"),
    (TCP, "/a/b", "cert.localhost:8080"),
    (TCP, "http://api.test/a", "api.test"),
    (TCP, "http://localhost:8080/cert/a", "localhost:8080"),
    (Entrance { route: Some(0), is_unix: false }, "/a", "localhost:8081"),
    (UNIX, "/cert/a/b/c", "docker"),
    (UNIX, "/a", "cert.localhost"),
    (UNIX, "/cert/a", ""),
];

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    let [own, other] = ["api.test", "other.test"].map(|text| [split_authority(text).expect("an authority")]);
    let domains = ["localhost".to_owned(), "corp.test".to_owned()];
    Doors::new(&domains, [("cert", own.as_slice()), ("cluster", other.as_slice())].into_iter())
});

static ENDPOINTS: LazyLock<Vec<Endpoint>> = LazyLock::new(|| {
    let endpoint = |text: &&str| {
        let endpoint = upstream::Endpoint::parse(text).expect("an endpoint");
        let authority = HeaderValue::try_from(endpoint.authority()).expect("an authority");
        let (host, port) = (endpoint.host.clone(), endpoint.port);
        let passage = Passage::Direct;
        Endpoint {
            target: Target { endpoint, host, port, passage, tls: None },
            authority,
            number: 0,
            skew: Arc::default(),
            rest: Arc::new(Rest::new(Duration::ZERO)),
        }
    };
    ["https://up.test", "https://127.0.0.1:9000"].iter().map(endpoint).collect()
});

pub(super) fn run(octets: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(octets) else { return };
    for (entrance, target, host) in CALLERS {
        let uri: Uri = target.parse().expect("a target");
        let mut headers = HeaderMap::new();
        if !host.is_empty() {
            headers.insert(HOST, HeaderValue::from_static(host));
        }
        let found = DOORS.find(entrance, &Method::GET, Version::HTTP_10, &uri, &headers).expect("a route");
        let view = View {
            doors: &DOORS,
            own: &PORTS.map(|(port, _)| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            entrance,
            door: found.door,
            name: "cert",
            endpoints: &ENDPOINTS,
            uri: &uri,
            host: headers.get(HOST),
            authority: found.authority.as_ref(),
        };
        let left = match turn_back(value.as_bytes(), &view) {
            Fate::Kept => value.clone(),
            Fate::Changed(changed) => {
                assert!(changed.len() <= value.len() + target.len() + host.len() + "http:///cert/".len());
                HeaderValue::try_from(changed).expect("what a header can hold")
            }
            Fate::Dropped => continue,
        };
        let base = Base { host: if host.is_empty() { "docker" } else { host }, path: uri.path() };
        let places: HashSet<_> =
            (0..16).filter_map(|habits| base.resolve(left.as_bytes(), Reader::with(habits))).collect();
        for place in places {
            follow(&view, &base, &place, &format!("{value:?} became {left:?} for {target} at {host:?}"));
        }
    }
}

/// Where a caller came to.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    authority: String,
    port: u16,
    path: String,
}

fn follow(view: &View<'_>, base: &Base<'_>, place: &Place, what: &str) {
    let Ok(uri) = Uri::try_from(place.path.as_str()) else { return };
    let Ok(host) = HeaderValue::try_from(place.authority.as_str()) else { return };
    let headers = HeaderMap::from_iter([(HOST, host)]);
    let find = |entrance| DOORS.find(entrance, &Method::GET, Version::HTTP_11, &uri, &headers);
    let is_home = place.authority == base.host;
    let is_brought = view.entrance.route.is_none() && (view.entrance.is_unix || view.uri.scheme().is_some());
    // A port that is forwarded to ours is as good as ours.
    let own_port = view.authority.map(|(_, port)| port.unwrap_or(80));
    let here = (is_home || is_brought || own_port == Some(place.port)).then_some(view.entrance);
    let there = PORTS.iter().filter(|(port, _)| !is_home && *port == place.port).map(|(_, entrance)| *entrance);
    for entrance in here.into_iter().chain(there) {
        if let Ok(found) = find(entrance) {
            assert_eq!(found.route, 0, "{what}: {}{}", place.authority, place.path);
        }
    }
    // Who has us as a proxy brings the names in `hosts` whatever the port.
    if let Ok(found) = find(TCP) {
        assert!(found.door != Door::Name || found.route == 0, "{what}: {}", place.authority);
    }
}

/// A caller's URL, always an http:// one.
struct Base<'a> {
    host: &'a str,
    path: &'a str,
}

/// How a URL is read, beyond RFC 3986.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "every combination of these habits is a reader")]
struct Reader {
    /// As browsers: `\` is a slash, tabs are nothing, surplus slashes before an authority too.
    is_browser: bool,
    /// As curl: one slash is as good as two.
    counts_no_slashes: bool,
    /// As Python: escapes that are not needed are undone first.
    decodes: bool,
    /// As Java: several slashes in a path are one.
    collapses: bool,
}

impl Reader {
    fn with(habits: u8) -> Self {
        let has = |habit: u8| habits & (1 << habit) != 0;
        Self { is_browser: has(0), counts_no_slashes: has(1), decodes: has(2), collapses: has(3) }
    }

    fn slashes(self, text: &str) -> Option<&str> {
        if self.is_browser || self.counts_no_slashes && !text.starts_with("//") {
            return text.starts_with('/').then(|| text.trim_start_matches('/'));
        }
        text.strip_prefix("//")
    }
}

impl Base<'_> {
    /// The place that a reader takes a reference for; `None` for one that is not spoken of over HTTP.
    fn resolve(&self, reference: &[u8], reader: Reader) -> Option<Place> {
        let mut text = String::from_utf8_lossy(reference).trim_matches(|c: char| c <= ' ').to_owned();
        if reader.is_browser {
            text.retain(|c| c != '\t');
        }
        text.truncate(text.find('#').unwrap_or(text.len()));
        let (place, query) = text.split_once('?').map_or((text.as_str(), None), |(place, query)| (place, Some(query)));
        let mut place = place.to_owned();
        if reader.is_browser {
            place = place.replace('\\', "/");
        }
        let (scheme, rest) = match place.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, place.as_str()),
        };
        let default_port = match scheme.as_deref() {
            None | Some("http") => 80,
            Some("https") => 443,
            Some(_) => return None,
        };
        let behind = match scheme.as_deref() {
            // Browsers take http: without two slashes for no scheme at all where the base is http:// too.
            _ if rest.starts_with("//") => reader.slashes(rest),
            Some("https") if reader.is_browser => Some(rest.trim_start_matches('/')),
            Some(_) if !reader.is_browser => Some(reader.slashes(rest)?),
            _ => None,
        };
        let (authority, path) = match behind {
            Some(behind) => {
                let (authority, path) = behind.split_at(behind.find('/').unwrap_or(behind.len()));
                (host_of(authority, reader), path.to_owned())
            }
            None if rest.starts_with('/') => (self.host.to_owned(), rest.to_owned()),
            None if rest.is_empty() => (self.host.to_owned(), self.path.to_owned()),
            None => {
                let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                (self.host.to_owned(), format!("{folder}/{rest}"))
            }
        };
        let (_, port) = split_authority(&authority).ok()?;
        let path = resolve_dots(&path, reader);
        let path = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        Some(Place { authority, port: port.unwrap_or(default_port), path })
    }
}

fn host_of(authority: &str, reader: Reader) -> String {
    let host = authority.rsplit('@').next().unwrap_or_default();
    // A part of what IDNA maps, which browsers do after they have decoded.
    let host: String = host.chars().map(ascii).collect();
    let host = if reader.is_browser || reader.decodes { decode(&host) } else { host };
    let (name, port) = host.rsplit_once(':').map_or((host.as_str(), None), |(name, port)| (name, Some(port)));
    let name = number(name.strip_suffix('.').unwrap_or(name)).map_or_else(|| name.to_owned(), |ip| ip.to_string());
    port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"+-.".contains(&octet))
}

fn resolve_dots(path: &str, reader: Reader) -> String {
    let path = if reader.decodes { decode(path) } else { path.to_owned() };
    let mut left = Vec::new();
    let mut is_folder = true;
    for segment in path.split('/').skip(1) {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        is_folder = matches!(plain.as_str(), "." | "..");
        match plain.as_str() {
            ".." => drop(left.pop()),
            "." => {}
            "" if reader.collapses => is_folder = true,
            _ => left.push(segment),
        }
    }
    let end = if is_folder && !left.is_empty() { "/" } else { "" };
    format!("/{}{end}", left.join("/"))
}

/// Undoes the escapes of letters, digits and dots.
fn decode(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut decoded = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let octet = piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
        match octet.filter(|c| c.is_ascii_alphanumeric() || ".-_~".contains(*c)) {
            Some(c) => decoded.extend(std::iter::once(c).chain(piece.chars().skip(2))),
            None => decoded.extend(["%", piece]),
        }
    }
    decoded
}

fn ascii(c: char) -> char {
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        '\u{3002}' => '.',
        _ => c,
    }
}

/// An IPv4 address as `inet_aton(3)` reads it.
fn number(text: &str) -> Option<Ipv4Addr> {
    let part = |part: &str| match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<_> = text.split('.').map(part).collect::<Option<_>>()?;
    let (last, leading) = parts.split_last()?;
    let mut address = *last;
    for (index, part) in leading.iter().enumerate() {
        address = address.checked_add(part.checked_shl(24_u32.checked_sub(8 * u32::try_from(index).ok()?)?)?)?;
    }
    Some(Ipv4Addr::from(address))
}
