//! Signs a form, and counts what it names: the first line is the query, the rest the body. Nothing may panic, signing is a
//! pure function, what is signed is what was found and the time, and what the web's decoder has no character for is never
//! signed.

use std::sync::{Arc, LazyLock};

use countersign::clock::Timestamp;
use countersign::provider::{Explanation, Provider, Request, Signer, Usage};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};

use super::signing;

type Configured = (Box<dyn Provider>, Arc<dyn Signer>);

static CONFIGURED: LazyLock<[Configured; 4]> = LazyLock::new(|| {
    [("gbk", "timestamp"), ("gbk", "first-entry"), ("utf-8", "first-entry"), ("auto", "timestamp")].map(
        |(charset, listen_sign)| {
            let table = format!(
                "credentials = {{ access_key = 'a', secret_key = 'b' }}\ncharset = '{charset}'\nlisten_sign = '{listen_sign}'"
            );
            signing::configure("acm", &table)
        },
    )
});

const TYPES: [&str; 3] = [
    "application/x-www-form-urlencoded",
    "application/x-www-form-urlencoded;charset=\"utf-8\"",
    "application/x-www-form-urlencoded; charset=big5",
];

pub(super) fn run(octets: &[u8]) {
    let (query, body) = octets.split_at(octets.iter().position(|octet| *octet == b'\n').unwrap_or(0));
    let query = String::from_utf8_lossy(query);
    for content_type in TYPES {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let request = Request {
            method: &Method::POST,
            path: "/diamond-server/basestone.do",
            query: Some(&query),
            headers: &headers,
            body: body.get(1..).unwrap_or_default(),
            time: Timestamp(1_546_300_800_123),
            nonce: "",
        };
        for (provider, signer) in &*CONFIGURED {
            let usage = provider.usage(request.method, request.query, request.headers, request.body);
            if let Usage::Reads(things) | Usage::Changes(things) = usage {
                assert!(!things.names.is_empty() && things.names.iter().all(|name| !name.is_empty()));
            }
            let mut explanation = Explanation::default();
            let fields = signer.sign(&request, Some(&mut explanation));
            assert_eq!(fields, signer.sign(&request, None));
            let Some(signed) = explanation.string_to_sign else {
                assert!(fields.is_err());
                continue;
            };
            let found: Vec<_> = explanation.parameters.into_iter().filter_map(|(_, value)| value).collect();
            assert!(found.iter().all(|value| !value.is_empty()));
            assert_eq!(signed, [found, vec!["1546300800123".to_owned()]].concat().join("+"));
            let may_be_replaced = [query.as_bytes(), body].iter().any(|part| is_replacement_there(part));
            assert!(may_be_replaced || !signed.contains(char::REPLACEMENT_CHARACTER), "{signed:?}");
        }
    }
}

/// True if the octets of U+FFFD itself may be there, escaped or not.
fn is_replacement_there(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_uppercase();
    ["%EF", "\u{fffd}"].iter().any(|sign| text.contains(sign))
}
