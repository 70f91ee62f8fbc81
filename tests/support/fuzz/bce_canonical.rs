//! Signs a request: the first line is the target, each further one a header, `name:value`. Nothing may panic, the
//! canonical form has its four parts, and signing is a pure function.

use std::sync::{Arc, LazyLock};

use countersign::clock::Timestamp;
use countersign::provider::{Explanation, Request, Signer};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::signing;

static SIGNERS: LazyLock<[Arc<dyn Signer>; 3]> = LazyLock::new(|| {
    ["'minimal'", "'default-unlisted'", "['range', 'x-bce-request-id']"].map(|signed_headers| {
        let table =
            format!("credentials = {{ access_key = 'a', secret_key = 'b' }}\nsigned_headers = {signed_headers}");
        signing::configure("bce", &table).1
    })
});

pub(super) fn run(octets: &[u8]) {
    let mut lines = octets.split(|octet| *octet == b'\n');
    let target = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
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
    let time = Timestamp(1_401_663_610_000);
    let request = Request { method: &Method::GET, path, query, headers: &headers, body: b"", time, nonce: "" };
    for signer in &*SIGNERS {
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation));
        assert_eq!(fields, signer.sign(&request, None));
        let Some(canonical) = explanation.canonical_request else { continue };
        assert!(canonical.is_ascii());
        let parts: Vec<_> = canonical.splitn(4, '\n').collect();
        let ["GET", _, _, headers] = parts.as_slice() else { panic!("{canonical:?}") };
        assert!(headers.lines().all(|line| line.contains(':')));
        assert_eq!(explanation.signed_headers.len(), headers.lines().count());
        assert!(explanation.signed_headers.is_sorted());
    }
}
