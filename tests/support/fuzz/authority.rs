//! Looks for a route: the first line is the request target, each further one a `Host`. Nothing may panic, a foreign name
//! never finds a route on TCP, and what was parsed reads the same when it is written and parsed again.

use std::sync::LazyLock;

use countersign::proxy::route::{Door, Doors, Entrance, Found};
use countersign::upstream::{Endpoint, Host, split_authority};
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    let hosts = ["api.test", "port.test:8443", "192.0.2.7"].map(|text| split_authority(text).expect("an authority"));
    let domains = ["localhost".to_owned(), "corp.test".to_owned()];
    Doors::new(&domains, [("cert", hosts.as_slice()), ("cluster", &[])].into_iter())
});

const ENTRANCES: [Entrance; 3] = [
    Entrance { route: None, is_unix: false },
    Entrance { route: Some(1), is_unix: false },
    Entrance { route: None, is_unix: true },
];

pub(super) fn run(octets: &[u8]) {
    let mut lines = octets.split(|octet| *octet == b'\n');
    let target = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        if let Ok(text) = std::str::from_utf8(line) {
            written_and_parsed_again(text);
        }
        if let Ok(host) = HeaderValue::from_bytes(line) {
            let _ = headers.try_append(HOST, host);
        }
    }
    let Ok(uri) = Uri::try_from(target) else { return };
    for entrance in ENTRANCES {
        assert!(DOORS.find(entrance, &Method::CONNECT, Version::HTTP_11, &uri, &headers).is_err());
        for version in [Version::HTTP_10, Version::HTTP_11] {
            if let Ok(found) = DOORS.find(entrance, &Method::GET, version, &uri, &headers) {
                assert!(found.authority.is_some() || version == Version::HTTP_10);
                judge(entrance, &uri, &found);
            }
        }
    }
}

fn judge(entrance: Entrance, uri: &Uri, found: &Found) {
    assert!(found.route < 2);
    assert_eq!(found.door == Door::Listener, entrance.route.is_some());
    assert!(found.target.as_str().starts_with('/'), "{:?}", found.target);
    let given = uri.path_and_query().map_or("", |given| given.as_str());
    assert!(given.ends_with(found.target.as_str().trim_start_matches('/')), "{given} {:?}", found.target);
    if entrance.is_unix {
        return;
    }
    let Some((host, _)) = &found.authority else {
        assert!(entrance.route.is_some(), "a shared TCP listener wants an authority");
        return;
    };
    let is_ours = match host {
        Host::Address(address) => address.to_canonical().is_loopback() || address.to_string() == "192.0.2.7",
        Host::Name(name) => {
            let whole = ["localhost", "corp.test", "api.test", "port.test"].contains(&name.as_str());
            whole || name.ends_with(".localhost") || name.ends_with(".corp.test")
        }
    };
    assert!(is_ours, "{host} found a route");
}

fn written_and_parsed_again(text: &str) {
    if let Ok((host, port)) = split_authority(text) {
        let written = port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        assert_eq!(split_authority(&written), Ok((host, port)), "{text}");
    }
    if let Ok(endpoint) = Endpoint::parse(text) {
        assert!(HeaderValue::try_from(endpoint.authority()).is_ok(), "{text}");
        assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint), "{text}");
    }
}
