//! The `Spas-*` headers, as an ACM server checks them.
//!
//! ```text
//! timeStamp:      milliseconds since 1970
//! Spas-Signature: base64(HMAC-SHA1(secret key, "{tenant}+{group}+{timeStamp}"))
//! ```
//!
//! A servlet's view: the query's parameters, then those of a form, decoded into text; of a name the first. What is not there,
//! or blank, is left out of the text that is signed, with its plus sign.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use encoding_rs::Encoding;
use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use secrecy::ExposeSecret;
use serde_json::Value;
use sha1::Sha1;

use super::{Keys, Received, Refusal, Scheme};

/// The access keys that a server knows.
pub struct Acm {
    /// All of them; one with a security token is temporary.
    pub keys: Keys,
    /// What parameters are written in.
    pub charset: &'static Encoding,
}

impl Scheme for Acm {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let required =
            |name: &str| request.header(name).ok_or_else(|| denied(format!("the header {name} is not there once")));
        let (access_key, signature) = (required("Spas-AccessKey")?, required("Spas-Signature")?);
        let time = required("timeStamp")?;
        let signed_at: i64 = time.parse().map_err(|_| denied("timeStamp is no number"))?;
        if signed_at.to_string() != time {
            return Err(denied("timeStamp is padded"));
        }
        let age = request.time.0 - signed_at;
        if age.abs() > WINDOW {
            return Err(denied(format!("timeStamp is {age} ms away")));
        }
        let token = request.headers.get("Spas-SecurityToken").map(|_| required("Spas-SecurityToken")).transpose()?;
        let key = self.keys.find(access_key, token, request.time).ok_or_else(|| denied("no such access key"))?;
        for (what, text) in self.candidates(request, time) {
            let hmac = Hmac::<Sha1>::new_from_slice(key.secret_key.expose_secret().as_bytes());
            let hmac = hmac.expect("HMAC takes keys of any length").chain_update(text);
            if BASE64_STANDARD.encode(hmac.finalize().into_bytes()) == signature {
                let temporary = if token.is_some() { ", temporary" } else { "" };
                return Ok(format!("spas signature of {access_key} over {what} ({age} ms old{temporary})"));
            }
        }
        Err(denied("the signature does not match"))
    }

    /// Free text, as it comes.
    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        refusal.message.as_str().into()
    }
}

impl Acm {
    /// The texts that may be signed, each with a name for it. Of a poll the clients sign the time alone, the vendor's page
    /// would have them sign its first entry: one server takes both.
    fn candidates(&self, request: &Received<'_>, time: &str) -> Vec<(&'static str, String)> {
        let mut parameters = self.parameters(request.query.unwrap_or_default().as_bytes());
        let content_type = request.header("Content-Type").unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default();
        if media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            parameters.extend(self.parameters(request.body));
        }
        let first = |wanted: &str| {
            parameters
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
                .filter(|v| !v.is_empty())
        };
        let own = match (first("tenant"), first("group")) {
            (Some(tenant), Some(group)) => ("tenant, group and time", format!("{tenant}+{group}+{time}")),
            (Some(tenant), None) => ("tenant and time", format!("{tenant}+{time}")),
            (None, Some(group)) => ("group and time", format!("{group}+{time}")),
            (None, None) => ("the time alone", time.to_owned()),
        };
        let mut candidates = vec![own];
        if let Some(probe) = first("Probe-Modify-Request") {
            let entry = probe.split('\u{1}').next().unwrap_or_default();
            match entry.split('\u{2}').collect::<Vec<_>>().as_slice() {
                [_, group, _] => candidates.push(("the group of the first entry", format!("{group}+{time}"))),
                [_, group, _, tenant] => {
                    candidates.push(("tenant and group of the first entry", format!("{tenant}+{group}+{time}")));
                }
                _ => {}
            }
        }
        candidates
    }

    fn parameters(&self, form: &[u8]) -> Vec<(String, String)> {
        let mut parameters = Vec::new();
        for piece in form.split(|octet| *octet == b'&').filter(|piece| !piece.is_empty()) {
            let mut parts = piece.splitn(2, |octet| *octet == b'=');
            let mut text = || self.text(parts.next().unwrap_or_default());
            parameters.push((text(), text()));
        }
        parameters
    }

    /// What is not well written becomes replacement characters, which nobody signs.
    fn text(&self, raw: &[u8]) -> String {
        let mut octets = Vec::with_capacity(raw.len());
        let mut rest = raw.iter();
        while let Some(octet) = rest.next() {
            octets.push(match octet {
                b'+' => b' ',
                b'%' => {
                    let digits =
                        [rest.next(), rest.next()].map(|digit| digit.and_then(|d| char::from(*d).to_digit(16)));
                    let [Some(high), Some(low)] = digits else { return char::REPLACEMENT_CHARACTER.to_string() };
                    u8::try_from(high * 16 + low).unwrap_or_default()
                }
                octet => *octet,
            });
        }
        self.charset.decode_without_bom_handling(&octets).0.into_owned()
    }
}

fn denied(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message)
}

/// How far, in milliseconds, a signature's time may be from the server's.
const WINDOW: i64 = 60_000;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;
    use crate::credential::AccessKey;

    const TIME: i64 = 1_546_300_800_123;

    fn verify(adjust: impl FnOnce(&mut HeaderMap)) -> Result<String, String> {
        let key = AccessKey {
            access_key: "8c5cbb849ae04682ad9f455a96aa0001".to_owned(),
            secret_key: "lwO5T7vfPJu27FclPa+/CyIG0001".into(),
            security_token: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert("spas-accesskey", HeaderValue::from_static("8c5cbb849ae04682ad9f455a96aa0001"));
        headers.insert("timestamp", HeaderValue::from_static("1546300800123"));
        headers.insert("spas-signature", HeaderValue::from_static("QZsp4nRS9KkgzxlbcA/qpIsHVgM="));
        adjust(&mut headers);
        let request = Received {
            method: &Method::GET,
            path: "/diamond-server/config.co",
            query: Some("group=DEFAULT_GROUP&tenant=04754ad1-4f67-4d67-b2bf-1f73a04a0001"),
            headers: &headers,
            body: b"",
            client: None,
            time: Timestamp(TIME + 60_000),
        };
        Acm { keys: vec![key].into(), charset: encoding_rs::GBK }.verify(&request).map_err(|refusal| refusal.message)
    }

    #[test]
    fn the_documented_answer_is_accepted() {
        assert!(verify(|_| {}).unwrap().contains("over tenant, group and time (60000 ms old)"));
    }

    #[test]
    fn anything_else_is_not() {
        for (name, value) in [
            ("timestamp", "1546300800122"),
            ("timestamp", "1546300800124"),
            ("timestamp", "01546300800123"),
            ("timestamp", "soon"),
            ("spas-accesskey", "another"),
            ("spas-signature", "QZsp4nRS9KkgzxlbcA/qpIsHVgM"),
            ("spas-securitytoken", "a token"),
        ] {
            let verdict = verify(|headers| drop(headers.insert(name, HeaderValue::from_static(value))));
            assert!(verdict.is_err(), "{name}: {value}");
        }
        for name in ["spas-accesskey", "timestamp", "spas-signature"] {
            assert!(verify(|headers| drop(headers.remove(name))).is_err(), "{name}");
            let twice = verify(|headers| assert!(headers.append(name, headers[name].clone())));
            assert!(twice.is_err(), "{name} twice");
        }
    }
}
