//! Signs a request: the first line is the target, the second a body, each further one a header, `name:value`. Nothing may
//! panic, the canonical form has its parts, and signing is a pure function.

use std::sync::{Arc, LazyLock};

use countersign::clock::Timestamp;
use countersign::provider::{BodyNeed, Explanation, Provider, Request, Signer};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::signing;

type Configured = (Box<dyn Provider>, Arc<dyn Signer>);

static SIGNERS: LazyLock<[Configured; 4]> = LazyLock::new(|| {
    [
        "",
        "signed_headers = 'all'\npayload = 'unsigned'\ndomain_id = 'd'",
        "signed_headers = ['range', 'x_a']\npayload = 'auto'\ncredentials.security_token = 't'",
        "derived = { region = 'r', service = 's' }\nplus = 'literal'\nproject_id = 'p'",
    ]
    .map(|keys| {
        let table = format!("credentials.access_key = 'a'\ncredentials.secret_key = 'b'\n{keys}");
        signing::configure("huawei-aksk", &table)
    })
});

pub(super) fn run(octets: &[u8]) {
    let mut lines = octets.split(|octet| *octet == b'\n');
    let target = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
    let whole = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |octet| *octet == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            // A map that is full refuses: the daemon's limits are far below.
            let _ = headers.try_append(name, value);
        }
    }
    for (provider, signer) in &*SIGNERS {
        let rewritten = query.and_then(|query| provider.rewrite_query(query));
        let query = rewritten.as_deref().or(query);
        assert!(query.is_none_or(|query| !query.contains('+')));
        let method = &Method::POST;
        let body = if provider.body(method, &headers) == BodyNeed::Whole { whole } else { b"" };
        let time = Timestamp(1_401_663_610_000);
        let request = Request { method, path, query, headers: &headers, body, time, nonce: "" };
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation));
        assert_eq!(fields, signer.sign(&request, None));
        let (Ok(fields), Some(canonical)) = (fields, explanation.canonical_request) else { continue };
        let sets: Vec<_> = provider.sets().iter().map(|name| name.to_ascii_lowercase()).collect();
        assert!(fields.iter().all(|(name, _)| sets.contains(&name.as_str().to_owned())));
        judge(&canonical, &explanation.signed_headers);
    }
}

fn judge(canonical: &str, signed: &[String]) {
    let parts: Vec<_> = canonical.splitn(4, '\n').collect();
    let ["POST", path, query, rest] = parts.as_slice() else { panic!("{canonical:?}") };
    assert!(path.is_ascii() && path.ends_with('/') && !path.contains('?'), "{path}");
    assert!(query.is_ascii() && !query.contains(['+', '/', '?']), "{query}");
    assert!(query.is_empty() || query.split('&').all(|pair| pair.matches('=').count() == 1), "{query}");
    // No value holds a newline, so that the first empty line ends the headers.
    let (headers, end) = rest.split_once("\n\n").expect("headers");
    let names: Vec<_> = headers.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let (list, hash) = end.split_once('\n').expect("a list and a hash");
    assert_eq!(names.join(";"), list);
    assert!(signed.iter().map(String::as_str).eq(names.iter().copied()));
    assert!(signed.is_sorted() && signed.iter().all(|name| !name.contains('_')));
    assert_eq!(hash == "UNSIGNED-PAYLOAD", names.contains(&"x-sdk-content-sha256"));
    assert!(hash == "UNSIGNED-PAYLOAD" || hash.len() == 64);
}
