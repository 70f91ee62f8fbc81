//! Signs a request: the first line is the target, each further one a header, `name:value`. Nothing may panic, signing is a
//! pure function, and what is signed has the parts that it must have: what no part of a request can forge.

use std::sync::{Arc, LazyLock};

use countersign::clock::Timestamp;
use countersign::provider::{Explanation, Request, Signer};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::signing;

static SIGNERS: LazyLock<[Arc<dyn Signer>; 2]> = LazyLock::new(|| {
    ["", ", security_token = 'c'"].map(|token| {
        let table = format!(
            "credentials = {{ access_key = 'a', secret_key = 'b'{token} }}\n\
             content_md5 = true\nsts_accesskey_id_header = true"
        );
        signing::configure("acs-roa", &table).1
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
    let time = Timestamp(1_450_264_727_000);
    let request = Request { method: &Method::GET, path, query, headers: &headers, body: octets, time, nonce: "n" };
    for signer in &*SIGNERS {
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation));
        assert_eq!(fields, signer.sign(&request, None));
        let (Ok(fields), Some(text)) = (fields, explanation.string_to_sign) else { continue };

        let mut sent = headers.clone();
        for (name, value) in fields {
            sent.insert(name, value);
        }
        let mut names: Vec<_> = sent.keys().filter(|name| name.as_str().starts_with("x-acs-")).collect();
        names.sort_unstable_by_key(|name| name.as_str());
        let parts: Vec<_> = text.splitn(6 + names.len(), '\n').collect();
        let ["GET", _, _, _, "Wed, 16 Dec 2015 11:18:47 GMT", rest @ ..] = parts.as_slice() else { panic!("{text:?}") };
        let (resource, lines) = rest.split_last().expect("a resource");
        assert_eq!(lines.len(), names.len());
        for (line, name) in lines.iter().zip(names) {
            assert!(line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(':')), "{text:?}");
        }
        let parameters = resource.strip_prefix(path).expect("the path as it is sent");
        assert!(parameters.is_empty() || parameters.starts_with('?'), "{resource:?}");
    }
}
