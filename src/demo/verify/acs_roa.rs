//! The ROA signature, version 1.0, as a service of Alibaba Cloud checks it.
//!
//! ```text
//! Authorization: acs {access key}:{base64(HMAC-SHA1(secret key, string to sign))}
//! string to sign = METHOD \n Accept \n Content-MD5 \n Content-Type \n Date \n x-acs lines, each with \n, resource
//! ```
//!
//! The resource is the raw path and, if there are any, the parameters as a server has read them, in the order of names.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use md5::{Digest, Md5};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha1::Sha1;

use super::{Keys, Received, Refusal, Scheme};
use crate::credential::AccessKey;

/// The access keys that a service knows, and the nonces that it has seen.
pub struct AcsRoa {
    /// All keys; one with a security token is temporary.
    pub keys: Keys,
    nonces: Mutex<HashSet<String>>,
}

impl AcsRoa {
    /// A service that has seen nothing yet.
    pub fn new(keys: impl Into<Keys>) -> Self {
        Self { keys: keys.into(), nonces: Mutex::default() }
    }
}

impl Scheme for AcsRoa {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let malformed = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, "IncompleteSignature", message);
        let authorization = request.header("authorization").and_then(|value| value.strip_prefix("acs "));
        let (name, signature) = authorization
            .and_then(|value| value.split_once(':'))
            .ok_or_else(|| malformed("The request has no Authorization of the form acs ID:SIGNATURE."))?;
        for (header, expected) in [("x-acs-signature-method", "HMAC-SHA1"), ("x-acs-signature-version", "1.0")] {
            if request.header(header) != Some(expected) {
                return Err(malformed("Another method or version of the signature."));
            }
        }
        let version = request.header("x-acs-version").filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "MissingVersion", "No version."))?;
        let age = check_time(request)?;
        let key = self.key(name, request)?;
        let text = string_to_sign(request).ok_or_else(|| malformed("A signed header came twice."))?;
        let mac = Hmac::<Sha1>::new_from_slice(key.secret_key.expose_secret().as_bytes());
        let mac = mac.expect("HMAC takes a key of any length").chain_update(&text);
        if STANDARD.encode(mac.finalize().into_bytes()) != signature {
            let message = "Specified signature is not matched with our calculation.";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "SignatureDoesNotMatch", message));
        }
        let digest = request.headers.get("content-md5");
        if digest.is_some_and(|digest| digest.as_bytes() != STANDARD.encode(Md5::digest(request.body)).as_bytes()) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "ContentMD5NotMatched", "The body is another one."));
        }
        self.check_nonce(request)?;
        let body = if digest.is_some() { " and its body" } else { "" };
        let temporary = if key.security_token.is_some() { ", temporary" } else { "" };
        Ok(format!("ROA signature of {name} for version {version}{body} ({age} s old{temporary})"))
    }

    fn request_id_header(&self) -> &'static str {
        "x-acs-request-id"
    }

    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value {
        json!({ "RequestId": request_id, "Code": refusal.code, "Message": refusal.message })
    }
}

impl AcsRoa {
    fn key(&self, name: &str, request: &Received<'_>) -> Result<AccessKey, Refusal> {
        let token = request.header("x-acs-security-token");
        let is_whole = token.is_some() || !request.headers.contains_key("x-acs-security-token");
        let is_stated = request.headers.get("x-acs-accesskey-id").is_none_or(|id| id == name);
        let key = if is_whole && is_stated { self.keys.find(name, token, request.time) } else { None };
        key.ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        })
    }

    fn check_nonce(&self, request: &Received<'_>) -> Result<(), Refusal> {
        let nonce = request.header("x-acs-signature-nonce").unwrap_or_default().to_owned();
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonce.is_empty() || !nonces.insert(nonce) {
            let message = "Specified signature nonce was used already.";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "SignatureNonceUsed", message));
        }
        Ok(())
    }
}

/// How old the request is, in seconds.
fn check_time(request: &Received<'_>) -> Result<i64, Refusal> {
    let refusal = |code, message: &str| Refusal::new(StatusCode::BAD_REQUEST, code, message);
    let date = request.header("date").unwrap_or_default();
    let time = DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", date).ok().filter(|_| date.len() == 29);
    let time = time.and_then(|time| Offset::UTC.to_timestamp(time).ok());
    let time = time.ok_or_else(|| refusal("InvalidTimeStamp.Format", "Specified date is not well formatted."))?;
    let age = request.time.seconds() - time.as_second();
    if age.abs() > WINDOW {
        return Err(refusal("InvalidTimeStamp.Expired", "Specified date is expired."));
    }
    Ok(age)
}

/// `None` if a header that is signed is there twice.
fn string_to_sign(request: &Received<'_>) -> Option<Vec<u8>> {
    let mut lines = vec![request.method.as_str().as_bytes().to_vec()];
    for name in ["accept", "content-md5", "content-type", "date"] {
        let mut values = request.headers.get_all(name).iter();
        lines.push(values.next().map(|value| value.as_bytes().trim_ascii().to_vec()).unwrap_or_default());
        if values.next().is_some() {
            return None;
        }
    }
    let mut names: Vec<&str> = request.headers.keys().map(http::HeaderName::as_str).collect();
    names.retain(|name| name.starts_with("x-acs-"));
    names.sort_unstable();
    for name in names {
        let mut values = request.headers.get_all(name).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        let value = value.as_bytes().trim_ascii().iter().map(|octet| if *octet == b'\t' { b' ' } else { *octet });
        lines.push([name.as_bytes(), b":"].concat().into_iter().chain(value).collect());
    }
    lines.push(resource(request));
    Some(lines.join(&b'\n'))
}

fn resource(request: &Received<'_>) -> Vec<u8> {
    let pieces = request.query.unwrap_or_default().split('&').filter(|piece| !piece.is_empty());
    let mut parameters: Vec<(Vec<u8>, Vec<u8>)> = pieces
        .map(|piece| match piece.find('=') {
            Some(at) => {
                let (name, value) = piece.split_at(at);
                (decode(name), [decode(name), decode(value)].concat())
            }
            None => (decode(piece), decode(piece)),
        })
        .collect();
    parameters.sort_by(|(name, _), (other, _)| name.cmp(other));
    let shown: Vec<Vec<u8>> = parameters.into_iter().map(|(_, shown)| shown).collect();
    let mark: &[u8] = if shown.is_empty() { b"" } else { b"?" };
    [request.path.as_bytes(), mark, &shown.join(&b'&')].concat()
}

/// Reads a form's text: `+` is a space, every well-formed `%XX` an octet, any other `%` itself.
fn decode(text: &str) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, following)) = rest.split_first() {
        let digits = following.get(..2).filter(|digits| first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let octet = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        octets.push(octet.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = following.get(if octet.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    octets
}

/// How far Date may be off, in seconds.
const WINDOW: i64 = 15 * 60;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;

    const SECRET_KEY: &str = "OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV";
    /// 2015-12-16T11:18:47Z.
    const THEN: i64 = 1_450_264_727;
    const PATH: &str = "/clusters/Cccfd68c474454665ace07efce924f75f/certs";

    fn service() -> AcsRoa {
        AcsRoa::new(vec![AccessKey {
            access_key: "LTAItestAccessKeyId".to_owned(),
            secret_key: SECRET_KEY.into(),
            security_token: None,
        }])
    }

    fn known_answer() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("accept", "application/json"),
            ("date", "Wed, 16 Dec 2015 11:18:47 GMT"),
            ("x-acs-signature-method", "HMAC-SHA1"),
            ("x-acs-signature-nonce", "f63659d4-10ac-483b-99da-ea8fde61eae3"),
            ("x-acs-signature-version", "1.0"),
            ("x-acs-version", "2015-12-15"),
            ("authorization", "acs LTAItestAccessKeyId:GjN5DRe8TOg14QerbqU4zWtTmAY="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    }

    fn verdict(service: &AcsRoa, path: &str, headers: &HeaderMap, later: i64) -> Result<String, &'static str> {
        let time = Timestamp((THEN + later) * 1000);
        let request = Received { method: &Method::GET, path, query: None, headers, body: b"", client: None, time };
        service.verify(&request).map_err(|refusal| {
            assert!(!refusal.message.contains(SECRET_KEY), "{refusal:?}");
            refusal.code
        })
    }

    #[test]
    fn the_known_answer_is_accepted_once() {
        let service = service();
        let verified = verdict(&service, PATH, &known_answer(), 1);
        assert_eq!(verified, Ok("ROA signature of LTAItestAccessKeyId for version 2015-12-15 (1 s old)".to_owned()));
        assert_eq!(verdict(&service, PATH, &known_answer(), 2), Err("SignatureNonceUsed"));
    }

    #[test]
    fn what_was_altered_or_is_missing_is_refused() {
        for (name, value, code) in [
            ("accept", "*/*", "SignatureDoesNotMatch"),
            ("content-type", "text/plain", "SignatureDoesNotMatch"),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==", "SignatureDoesNotMatch"),
            ("date", "Wed, 16 Dec 2015 11:18:48 GMT", "SignatureDoesNotMatch"),
            ("date", "2015-12-16T11:18:47Z", "InvalidTimeStamp.Format"),
            ("date", "", "InvalidTimeStamp.Format"),
            ("x-acs-region-id", "cn-beijing", "SignatureDoesNotMatch"),
            ("x-acs-signature-nonce", "another", "SignatureDoesNotMatch"),
            ("x-acs-signature-method", "HMAC-SHA256", "IncompleteSignature"),
            ("x-acs-signature-version", "2.0", "IncompleteSignature"),
            ("x-acs-version", "", "MissingVersion"),
            ("x-acs-security-token", "unasked for", "InvalidAccessKeyId.NotFound"),
            ("x-acs-accesskey-id", "another", "InvalidAccessKeyId.NotFound"),
            ("authorization", "acs another:GjN5DRe8TOg14QerbqU4zWtTmAY=", "InvalidAccessKeyId.NotFound"),
            ("authorization", "acs LTAItestAccessKeyId:gjN5DRe8TOg14QerbqU4zWtTmAY=", "SignatureDoesNotMatch"),
            ("authorization", "Bearer x", "IncompleteSignature"),
        ] {
            let mut headers = known_answer();
            headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
            assert_eq!(verdict(&service(), PATH, &headers, 0), Err(code), "{name}: {value}");
        }
        assert_eq!(verdict(&service(), "/clusters", &known_answer(), 0), Err("SignatureDoesNotMatch"));
        let mut twice = known_answer();
        twice.append("x-acs-version", HeaderValue::from_static("2015-12-15"));
        assert_eq!(verdict(&service(), PATH, &twice, 0), Err("MissingVersion"));
        for (name, code) in [("accept", "SignatureDoesNotMatch"), ("authorization", "IncompleteSignature")] {
            let mut headers = known_answer();
            headers.remove(name);
            assert_eq!(verdict(&service(), PATH, &headers, 0), Err(code), "{name}");
        }
    }

    #[test]
    fn a_quarter_of_an_hour_is_the_most() {
        for (later, code) in [
            (900, None),
            (-900, None),
            (901, Some("InvalidTimeStamp.Expired")),
            (-901, Some("InvalidTimeStamp.Expired")),
        ] {
            assert_eq!(verdict(&service(), PATH, &known_answer(), later).err(), code, "{later}");
        }
    }

    #[test]
    fn parameters_are_read_and_sorted_by_name_alone() {
        let request = Received {
            method: &Method::GET,
            path: "/a%20b",
            query: Some("a1=1&a-b=2&&a=%2B+%&a&b=c=d&%E4%B8%AD=&a="),
            headers: &HeaderMap::new(),
            body: b"",
            client: None,
            time: Timestamp(0),
        };
        let text = String::from_utf8(resource(&request)).unwrap();
        assert_eq!(text, "/a%20b?a=+ %&a&a=&a-b=2&a1=1&b=c=d&中=");
        assert_eq!(resource(&Received { query: Some("&"), ..request }), b"/a%20b");
    }
}
