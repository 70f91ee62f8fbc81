//! The ways into a route: its doors, as the configuration has them, and what programs are to be told to use them.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::proxy::listen::Address;
use crate::proxy::route::Authority;
use crate::proxy::{RouteSettings, ServerSettings};

use super::sign::quote;

/// A door of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// An URL without its final `/`.
    Url {
        /// The host, and the port.
        authority: String,
        /// What comes before the paths: nothing, or `/NAME`.
        prefix: String,
        /// The name in it, which many programs cannot resolve, and the listener's own host and port.
        named: Option<(String, String)>,
    },
    /// One of the route's names, through countersign as an HTTP proxy.
    Proxied {
        /// Where countersign listens.
        proxy: (String, String),
        /// The name, and the port if it is to match.
        name: String,
    },
    /// A Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// The host to name there.
        host: String,
    },
}

impl Door {
    /// True if its port is not known before the start.
    pub(super) fn has_unknown_port(&self) -> bool {
        match self {
            Self::Url { authority, .. } => authority.ends_with(UNKNOWN_PORT),
            Self::Proxied { proxy: (_, port), .. } => port == UNKNOWN_PORT,
            Self::Unix { .. } => false,
        }
    }

    /// Its URL, if there is one that every program can use.
    fn plain_url(&self) -> Option<String> {
        match self {
            Self::Url { authority, prefix, named: None } => Some(format!("http://{authority}{prefix}/")),
            _ => None,
        }
    }

    /// The host of that URL, as `no_proxy` has it.
    fn plain_host(&self) -> Option<&str> {
        match self {
            Self::Url { authority, named: None, .. } => Some(authority.rsplit_once(':')?.0.trim_matches(['[', ']'])),
            _ => None,
        }
    }
}

/// Every door of a route: what needs least of a program and changes least about its requests comes first.
pub(super) fn doors(route: &RouteSettings, server: &ServerSettings) -> Vec<Door> {
    let own = route.listen.iter().filter_map(|address| match address {
        Address::Tcp(address) => {
            let authority = of_listener(*address, &server.domains)?;
            Some(Door::Url { authority, prefix: String::new(), named: None })
        }
        Address::Unix { path, .. } => Some(Door::Unix { path: path.clone(), host: "localhost".to_owned() }),
        Address::Systemd(_) => None,
    });
    let mut doors: Vec<_> = own.collect();
    let mut seen = Vec::new();
    for address in &server.listen {
        match address {
            Address::Tcp(address) => {
                // The same port of both loopback addresses is one door to whoever uses a name.
                let place = (is_near(*address), address.port());
                if !seen.contains(&place) {
                    seen.push(place);
                    doors.extend(shared(*address, route, &server.domains));
                }
            }
            Address::Unix { path, .. } => {
                let host = server.domains.first().map(|domain| format!("{}.{domain}", route.name));
                doors.extend(host.map(|host| Door::Unix { path: path.clone(), host }));
            }
            Address::Systemd(_) => {}
        }
    }
    doors
}

/// The doors of a route at a listener that all routes share.
fn shared(address: SocketAddr, route: &RouteSettings, domains: &[String]) -> Vec<Door> {
    let name = &route.name;
    let by_host = domain(address, domains).map(|domain| {
        let name = format!("{name}.{domain}");
        let named = Some((name.clone(), with_port(&host(address), address)));
        Door::Url { authority: with_port(&name, address), prefix: String::new(), named }
    });
    let by_path =
        of_listener(address, domains).map(|authority| Door::Url { authority, prefix: format!("/{name}"), named: None });
    let proxy = (host(address), port(address));
    let by_name = route.hosts.iter().map(|name| Door::Proxied { proxy: proxy.clone(), name: authority(name) });
    by_host.into_iter().chain(by_path).chain(by_name).collect()
}

/// What programs are to be told, under titles.
pub(super) fn snippets(route: &RouteSettings, doors: &[Door]) -> Vec<(String, Vec<String>)> {
    let mut snippets = vec![("curl".to_owned(), doors.iter().map(|door| curl(door, "/")).collect())];
    let mut add = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            snippets.push((title.to_owned(), lines));
        }
    };
    // A name in the URL is left to curl: many programs cannot resolve it.
    let url = doors.iter().find_map(Door::plain_url);
    let proxied = doors.iter().find_map(|door| match door {
        Door::Proxied { proxy: (host, port), name } => Some((host, port, name)),
        _ => None,
    });
    let socket = doors.iter().find_map(|door| match door {
        Door::Unix { path, host } => Some((path, host)),
        _ => None,
    });

    let variable = variable(&route.name);
    let base = url.iter().map(|url| format!("export {variable}={}", url.trim_end_matches('/')));
    let http_proxy = proxied.iter().map(|(host, port, _)| format!("export http_proxy=http://{host}:{port}"));
    // The URL above would go to the proxy too, which does not know another listener's paths.
    let no_proxy = doors.iter().find_map(Door::plain_host).filter(|_| proxied.is_some());
    let no_proxy = no_proxy.map(|host| format!("export no_proxy={host}${{no_proxy:+,$no_proxy}}"));
    add("Environment variables", base.chain(http_proxy).chain(no_proxy).collect());

    let direct = url.iter().map(|url| format!("requests.get(\"{url}\")"));
    let through = proxied.iter().map(|(host, port, name)| {
        format!("requests.get(\"http://{name}/\", proxies={{\"http\": \"http://{host}:{port}\"}})")
    });
    add("Python, with requests", direct.chain(through).collect());

    let direct = url.iter().map(|url| format!("HttpRequest.newBuilder(URI.create(\"{url}\"))"));
    let through = proxied.iter().map(|(host, port, name)| {
        let host = host.trim_matches(['[', ']']);
        format!("java -Dhttp.proxyHost={host} -Dhttp.proxyPort={port} -jar app.jar  # for http://{name}/")
    });
    add("Java", direct.chain(through).collect());

    let direct = url.iter().map(|url| format!("await fetch(\"{url}\")"));
    let local = socket.iter().map(|(path, host)| {
        format!("http.get({{ socketPath: {}, host: \"{host}\", path: \"/\" }})", in_quotes(&path.to_string_lossy()))
    });
    add("Node", direct.chain(local).collect());

    add("nginx", doors.iter().find_map(nginx).unwrap_or_default());

    let mut unprefixed = doors.iter().filter_map(|door| match door {
        Door::Url { authority, prefix, named } if prefix.is_empty() => Some((authority, named)),
        _ => None,
    });
    // Own listeners come first, and need no name.
    if let Some((authority, named)) = unprefixed.next()
        && let Some(text) = route.provider.sdk(authority)
    {
        let note = named.as_ref().map(|(name, _)| format!("; {name} must resolve, if need be in /etc/hosts"));
        add(&format!("The vendor's SDK for Python, with any keys{}", note.unwrap_or_default()), vec![text]);
    }

    // A credential that leads to its server shows a certificate there.
    if route.provider.needs_client_certificate() || route.registration.finds_upstream {
        let local = socket.filter(|(_, host)| *host == "localhost");
        let local = local.map(|(path, _)| [b"unix://", path.as_os_str().as_bytes()].concat());
        let remote = url.map(|url| url.trim_end_matches('/').replacen("http://", "tcp://", 1).into_bytes());
        let host = local.or(remote).map(|host| String::from_utf8_lossy(&quote(&host)).into_owned());
        add("Docker, without --tls", host.iter().map(|host| format!("export DOCKER_HOST={host}")).collect());
    }
    snippets
}

/// The environment variable for the URL of a route.
pub(super) fn variable(route: &str) -> String {
    format!("COUNTERSIGN_{}_URL", route.to_ascii_uppercase().replace('-', "_"))
}

/// A command that asks for a target, one without what a shell would take for its own, through a door.
pub(super) fn curl(door: &Door, target: &str) -> String {
    match door {
        Door::Url { authority, prefix, .. } => format!("curl http://{authority}{prefix}{target}"),
        Door::Proxied { proxy: (host, port), name } => {
            format!("http_proxy=http://{host}:{port} curl http://{name}{target}")
        }
        Door::Unix { path, host } => {
            let path = quote(path.as_os_str().as_bytes());
            format!("curl --unix-socket {} http://{host}{target}", String::from_utf8_lossy(&path))
        }
    }
}

/// A location, if the door is one that keeps paths as they are.
fn nginx(door: &Door) -> Option<Vec<String>> {
    let (to, host) = match door {
        Door::Url { authority, prefix, named: None } if prefix.is_empty() => (authority.clone(), "localhost"),
        // Its name is said, not resolved.
        Door::Url { named: Some((name, at)), .. } => (at.clone(), name.as_str()),
        Door::Unix { path, host } => (format!("unix:{}", path.display()), host.as_str()),
        _ => return None,
    };
    let to = format!("http://{to}");
    let is_plain = to.bytes().all(|octet| octet.is_ascii_alphanumeric() || b":/.-_[]".contains(&octet));
    // Behind an address without a path nginx puts the request's target as it came, instead of one that it has decoded.
    let to = if is_plain { to } else { in_quotes(&to) };
    Some(vec![
        "location / {".to_owned(),
        format!("    proxy_pass {to};"),
        format!("    proxy_set_header Host {host};"),
        format!("    proxy_redirect http://{host}/ /;"),
        "    proxy_http_version 1.1;".to_owned(),
        "}".to_owned(),
    ])
}

/// The authority that a listener itself is known by: on other than loopback addresses a domain of ours, since a foreign
/// host is refused there.
fn of_listener(address: SocketAddr, domains: &[String]) -> Option<String> {
    if is_near(address) {
        return Some(with_port(&host(address), address));
    }
    domain(address, domains).map(|domain| with_port(domain, address))
}

/// The domain that leads to a listener: on loopback `localhost`, if that is one.
fn domain(address: SocketAddr, domains: &[String]) -> Option<&str> {
    let is_local = |domain: &&String| *domain == "localhost";
    let local = domains.iter().find(is_local).filter(|_| is_near(address));
    local.or_else(|| domains.iter().find(|domain| !is_local(domain))).map(String::as_str)
}

/// True if this machine reaches it over loopback.
fn is_near(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    ip.is_loopback() || ip.is_unspecified()
}

fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => "[::1]".to_owned(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

fn port(address: SocketAddr) -> String {
    if address.port() == 0 { UNKNOWN_PORT.to_owned() } else { address.port().to_string() }
}

fn with_port(host: &str, address: SocketAddr) -> String {
    format!("{host}:{}", port(address))
}

fn authority((host, port): &Authority) -> String {
    port.map_or(host.to_string(), |port| format!("{host}:{port}"))
}

/// A string of JavaScript, or of nginx.
fn in_quotes(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const UNKNOWN_PORT: &str = "PORT";
