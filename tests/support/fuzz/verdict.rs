//! Judges a reply: lines of headers, an empty line, the body; without an empty line all is body. Nothing may panic, a
//! verdict is a pure function, and what is shown to people is safe to show: short names, and advice of our own.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use countersign::provider::Provider;
use countersign::provider::verdict::{Reply, Used};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::signing;

static PROVIDERS: LazyLock<[(&str, Box<dyn Provider>); 10]> = LazyLock::new(|| {
    let keys = "credentials = { access_key = 'a', secret_key = 'b' }";
    [
        ("acm", keys),
        ("acs-roa", keys),
        ("basic", "user = 'a'\npassword = 'b'"),
        ("bce", keys),
        ("bearer", "token = 'a'"),
        ("header", "headers = { a = 'b' }"),
        ("huawei-aksk", keys),
        ("huawei-token", "token = 'a'"),
        ("mtls", ""),
        ("tem", keys),
    ]
    .map(|(name, table)| (name, signing::configure(name, table).0))
});

pub(super) fn run(octets: &[u8]) {
    let (lines, body) = octets.split_at(octets.windows(2).position(|pair| pair == b"\n\n").unwrap_or(0));
    let body = body.strip_prefix(b"\n\n").unwrap_or(body);
    let headers = lines.split(|octet| *octet == b'\n').filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|octet| *octet == b':')?);
        Some((
            HeaderName::from_bytes(name).ok()?,
            HeaderValue::from_bytes(value.strip_prefix(b":")?.trim_ascii()).ok()?,
        ))
    });
    let headers: &HeaderMap = &headers.collect();
    for (name, provider) in &*PROVIDERS {
        for status in (100..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
            if !provider.judges(status) {
                continue;
            }
            for (method, ahead) in
                [(&Method::GET, None), (&Method::HEAD, Some(i64::MIN)), (&Method::POST, Some(i64::MAX))]
            {
                let credential = Used { is_temporary: ahead.is_none(), age: Duration::MAX };
                let reply = Reply { method, status, headers, body, ahead, credential };
                let verdict = provider.verdict(&reply);
                assert_eq!(verdict, provider.verdict(&reply));
                for shown in [&verdict.code, &verdict.request_id].into_iter().flatten() {
                    let is_safe = |octet: u8| octet.is_ascii_alphanumeric() || b"-._:".contains(&octet);
                    assert!((1..=128).contains(&shown.len()) && shown.bytes().all(is_safe), "{name}: {shown:?}");
                }
                // The one that is made says by how much the clocks differ.
                assert!(matches!(verdict.advice, Cow::Borrowed(_)) || *name == "tem", "{name}: {}", verdict.advice);
            }
        }
    }
}
