//! The `Spas-*` headers on requests that no vector holds: compared with a second, naive implementation of the rules.

#[path = "support/signing.rs"]
mod signing;

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use countersign::clock::Timestamp;
use countersign::provider::{BodyNeed, Explanation, Fields, Request};
use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sha1::{Digest, Sha1};

const ACCESS_KEY: &str = "8c5cbb849ae04682ad9f455a96aa0001";

#[derive(Clone, Debug)]
struct Case {
    secret_key: String,
    security_token: Option<String>,
    charset: &'static str,
    is_first_entry: bool,
    time: i64,
    query: Option<String>,
    content_type: Option<&'static str>,
    body: Vec<u8>,
}

impl Case {
    fn sign(&self) -> Result<(Fields, Explanation), String> {
        let listen_sign = if self.is_first_entry { "first-entry" } else { "timestamp" };
        let mut table = format!(
            "charset = '{}'\nlisten_sign = '{listen_sign}'\ncredentials.access_key = '{ACCESS_KEY}'\n\
             credentials.secret_key = {:?}\n",
            self.charset, self.secret_key
        );
        if let Some(token) = &self.security_token {
            let _ = writeln!(table, "credentials.security_token = {token:?}");
        }
        let (provider, signer) = signing::configure("acm", &table);
        let content_type = self.content_type.map(|value| ("content-type", HeaderValue::from_static(value)));
        let headers = content_type.into_iter().map(|(name, value)| (name.parse().expect("a name"), value));
        let headers: HeaderMap = headers.collect();
        let needs_body = provider.body(&Method::POST, &headers) == BodyNeed::Whole;
        assert_eq!(needs_body, naive::is_form(self));
        let request = Request {
            method: &Method::POST,
            path: "/diamond-server/config.co",
            query: self.query.as_deref(),
            headers: &headers,
            body: if needs_body { &self.body } else { b"" },
            time: Timestamp(self.time),
            nonce: "",
        };
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation));
        assert_eq!(fields, signer.sign(&request, None));
        Ok((fields?, explanation))
    }
}

/// The rules once more, step by step as the vendor's documents and clients give them.
mod naive {
    use super::*;

    /// `None` for a request that is refused.
    pub(super) fn string_to_sign(case: &Case) -> Option<String> {
        let form_charset = match case.charset {
            "auto" => case.content_type.map_or("gbk", charset_of),
            charset => charset,
        };
        let query_charset = if case.charset == "auto" { "gbk" } else { case.charset };
        let mut parameters = Vec::new();
        for piece in case.query.as_deref().unwrap_or("").split('&') {
            parameters.push((piece.as_bytes().to_vec(), query_charset));
        }
        if is_form(case) {
            for piece in case.body.split(|octet| *octet == b'&') {
                parameters.push((piece.to_vec(), form_charset));
            }
        }
        let first = |wanted: &[u8]| {
            for (piece, charset) in &parameters {
                if piece.is_empty() {
                    continue;
                }
                let mut parts = piece.splitn(2, |octet| *octet == b'=');
                let (name, value) = (parts.next().unwrap_or(b""), parts.next().unwrap_or(b""));
                if decode(name).as_deref() == Some(wanted) {
                    return Some((value.to_vec(), *charset));
                }
            }
            None
        };
        let (mut tenant, mut group) = (first(b"tenant"), first(b"group"));
        let probe = first(b"Probe-Modify-Request").filter(|(value, _)| !value.is_empty());
        let mut is_raw = true;
        if let (true, Some((probe, charset))) = (case.is_first_entry, probe) {
            let probe = decode(&probe)?;
            let entry: Vec<u8> = probe.into_iter().take_while(|octet| *octet != 1).collect();
            let fields: Vec<&[u8]> = entry.split(|octet| *octet == 2).collect();
            group = fields.get(1).map(|field| (field.to_vec(), charset));
            tenant = fields.get(3).map(|field| (field.to_vec(), charset));
            is_raw = false;
        }
        let mut parts = Vec::new();
        for (value, charset) in [tenant, group].into_iter().flatten() {
            let octets = if is_raw { decode(&value)? } else { value };
            let text = text(&octets, charset)?;
            if !text.is_empty() {
                parts.push(text);
            }
        }
        parts.push(case.time.to_string());
        Some(parts.join("+"))
    }

    pub(super) fn is_form(case: &Case) -> bool {
        let media_type = case.content_type.unwrap_or("").split(';').next().unwrap_or("");
        media_type.trim().to_lowercase() == "application/x-www-form-urlencoded"
    }

    fn charset_of(content_type: &'static str) -> &'static str {
        match content_type.to_lowercase().split_once("charset=").map(|(_, charset)| charset.trim_matches('"')) {
            None | Some("gbk") => "gbk",
            Some("utf-8") => "utf-8",
            Some(_) => "unknown",
        }
    }

    fn decode(text: &[u8]) -> Option<Vec<u8>> {
        let mut decoded = Vec::new();
        let mut at = 0;
        while let Some(octet) = text.get(at) {
            at += 1;
            decoded.push(match octet {
                b'+' => b' ',
                b'%' => {
                    let digits = text.get(at..at + 2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
                    at += 2;
                    u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?
                }
                octet => *octet,
            });
        }
        Some(decoded)
    }

    fn text(octets: &[u8], charset: &str) -> Option<String> {
        if charset == "utf-8" || octets.is_ascii() {
            return String::from_utf8(octets.to_vec()).ok();
        }
        if charset == "unknown" {
            return None;
        }
        let mut text = String::new();
        let mut rest = octets.iter();
        while let Some(octet) = rest.next() {
            let one = [*octet];
            let two = [*octet, rest.as_slice().first().copied().unwrap_or(0)];
            let character: &[u8] = if octet.is_ascii() { &one } else { &two };
            if character.len() == 2 {
                rest.next()?;
            }
            let (decoded, had_errors) = encoding_rs::GBK.decode_without_bom_handling(character);
            // One character for each, of those that GBK had before GB 18030.
            if had_errors || decoded.chars().count() != 1 || is_later(u16::from_be_bytes(two), character.len()) {
                return None;
            }
            text += &decoded;
        }
        Some(text)
    }

    /// Where Java's table and the web's give different characters, row by row.
    fn is_later(code: u16, length: usize) -> bool {
        let [row, cell] = code.to_be_bytes();
        length == 2
            && match row {
                0xa3 => cell == 0xa0,
                0xa6 => (0xd9..=0xdf).contains(&cell) || [0xec, 0xed, 0xf3].contains(&cell),
                0xa8 => [0x92, 0xbc, 0xbf].contains(&cell),
                0xa9 => (0x89..=0x95).contains(&cell),
                0xfe => (0x50..=0xa0).contains(&cell),
                _ => false,
            }
    }

    /// RFC 2104.
    pub(super) fn signature(secret: &str, text: &str) -> String {
        let mut key = if secret.len() > 64 { Sha1::digest(secret).to_vec() } else { secret.as_bytes().to_vec() };
        key.resize(64, 0);
        let inner: Vec<u8> = key.iter().map(|octet| octet ^ 0x36).chain(text.bytes()).collect();
        let outer: Vec<u8> = key.iter().map(|octet| octet ^ 0x5c).chain(Sha1::digest(inner)).collect();
        BASE64_STANDARD.encode(Sha1::digest(outer))
    }
}

/// Pieces of queries and forms; those of a query must be text.
const PIECES: [&[u8]; 32] = [
    b"&",
    b"&",
    b"&",
    b"=",
    b"=",
    b"&tenant=",
    b"&group=",
    b"&tenant=t",
    b"&group=g",
    b"&%67roup=",
    b"tenan%74=",
    b"&Probe-Modify-Request=",
    b"%01",
    b"%02",
    b"%02",
    b"\x01",
    b"\x02",
    b"a",
    b"F",
    b"+",
    b"%2B",
    b"%20",
    b"%",
    b"%z",
    b"%C5%E4",
    b"%E9F",
    b"%a6%d9",
    b"%80",
    b"%E9%85%8D",
    b"Tenant=x",
    b"tenantId=x",
    b";",
];

fn query() -> impl Strategy<Value = Option<String>> {
    let text = |pieces: Vec<&[u8]>| String::from_utf8(pieces.concat()).expect("pieces of text");
    prop::option::of(prop_oneof![vec(select(&PIECES[..]), 0..16).prop_map(text), any::<String>()])
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let raw: Vec<&[u8]> = vec![b"\xb7\xd6", b"\xff", b"\xfe\xa0", b"\xfeO", b"\xe9\x85\x8d", b"\x81\x30\x81\x30"];
    let piece = prop_oneof![4 => select(&PIECES[..]), 1 => select(raw)];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

prop_compose! {
    fn case()(
        secret_key in "[ -~]{1,80}",
        security_token in prop::option::of("[!-~]{1,20}"),
        charset in select(vec!["gbk", "gbk", "utf-8", "auto"]),
        is_first_entry: bool,
        time in 0..10_000_000_000_000_i64,
        query in query(),
        content_type in prop::option::weighted(0.9, select(vec![
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded; charset=GBK",
            " Application/X-WWW-Form-Urlencoded ;charset=\"utf-8\"",
            "application/x-www-form-urlencoded; charset=iso-8859-1",
            "text/plain; charset=GBK",
        ])),
        body in body(),
    ) -> Case {
        Case { secret_key, security_token, charset, is_first_entry, time, query, content_type, body }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_request_is_signed_as_the_rules_say_or_refused(case in case()) {
        match (case.sign(), naive::string_to_sign(&case)) {
            (Ok((fields, explanation)), Some(expected)) => {
                prop_assert_eq!(explanation.string_to_sign.as_deref(), Some(expected.as_str()));
                let found: Vec<_> = explanation.parameters.iter().filter_map(|(_, value)| value.clone()).collect();
                prop_assert_eq!([found, vec![case.time.to_string()]].concat().join("+"), expected.as_str());
                let signature = naive::signature(&case.secret_key, &expected);
                let mut headers = vec![
                    ("spas-accesskey", ACCESS_KEY.to_owned()),
                    ("timestamp", case.time.to_string()),
                    ("spas-signature", signature),
                ];
                headers.extend(case.security_token.map(|token| ("spas-securitytoken", token)));
                let is_secret = |name: &str| name == "spas-signature" || name == "spas-securitytoken";
                for (name, value) in &fields {
                    prop_assert_eq!(value.is_sensitive(), is_secret(name.as_str()));
                }
                let fields: Vec<_> =
                    fields.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII").to_owned())).collect();
                prop_assert_eq!(fields, headers);
            }
            (Err(_), None) => {}
            (signed, expected) => {
                let signed = signed.map(|(_, explanation)| explanation.string_to_sign);
                prop_assert!(false, "{:?} where {:?} was expected", signed, expected);
            }
        }
    }
}
