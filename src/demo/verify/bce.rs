//! bce-auth-v1, as a service of Baidu Cloud checks it.
//!
//! ```text
//! Authorization: bce-auth-v1/{access key}/{timestamp}/{expires}/{signed headers}/{signature}
//! signing key = hex(HMAC-SHA256(secret key, "bce-auth-v1/{access key}/{timestamp}/{expires}"))
//! signature   = hex(HMAC-SHA256(signing key as text, METHOD \n path \n query \n headers))
//! ```
//!
//! The canonical parts are rebuilt from what was received: escapes are undone and made anew in one form, the query's
//! pairs and the headers' lines are sorted when they are finished. An empty list of signed headers stands for a default set.

use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Keys, Received, Refusal, Scheme};
use crate::credential::AccessKey;

/// The access keys that a service knows.
pub struct Bce {
    /// All of them; one with a security token is temporary.
    pub keys: Keys,
}

impl Scheme for Bce {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        if request.headers.get("authorization").is_none() {
            return Err(denied("the request has no Authorization header"));
        }
        let malformed = || {
            let message = "The HTTP authorization header is invalid. Consult the service documentation for details.";
            Refusal::new(StatusCode::BAD_REQUEST, "InvalidHTTPAuthHeader", message)
        };
        let authorization = request.header("authorization").and_then(Authorization::read).ok_or_else(malformed)?;
        let pairs = pairs(request.query.unwrap_or_default());
        if pairs.iter().any(|(key, _)| key.eq_ignore_ascii_case(b"authorization")) {
            return Err(malformed());
        }
        let key = self.key(&authorization, request)?;
        let age = check_time(&authorization, request)?;
        if !authorization.signed_headers.is_empty() && !authorization.signs("host") {
            return Err(malformed());
        }
        let (names, headers) = canonical_headers(request, &authorization);
        let canonical =
            [request.method.as_str(), &canonical_path(request.path), &canonical_query(&pairs), &headers].join("\n");
        let signing_key = hmac(key.secret_key.expose_secret(), &authorization.prefix());
        if hmac(&signing_key, &canonical) != authorization.signature {
            let message = "The request signature we calculated does not match the signature you provided. \
                           Check your Secret Access Key and signing method. Consult the service documentation for details.";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "SignatureDoesNotMatch", message));
        }
        let temporary = if key.security_token.is_some() { ", temporary" } else { "" };
        Ok(format!(
            "bce-auth-v1 signature of {} over {} ({age} s old{temporary})",
            authorization.access_key,
            names.join(", ")
        ))
    }

    fn request_id_header(&self) -> &'static str {
        "x-bce-request-id"
    }

    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value {
        json!({ "requestId": request_id, "code": refusal.code, "message": refusal.message })
    }
}

impl Bce {
    fn key(&self, authorization: &Authorization<'_>, request: &Received<'_>) -> Result<AccessKey, Refusal> {
        let token = request.header("x-bce-security-token").filter(|token| !token.is_empty());
        self.keys.find(authorization.access_key, token, request.time).ok_or_else(|| {
            let message = "The Access Key ID you provided does not exist in our records.";
            Refusal::new(StatusCode::FORBIDDEN, "InvalidAccessKeyId", message)
        })
    }
}

/// The header's value, taken apart.
struct Authorization<'a> {
    access_key: &'a str,
    timestamp: &'a str,
    signed_at: i64,
    expires: &'a str,
    expires_in: i64,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn read(value: &'a str) -> Option<Self> {
        let mut parts = value.split('/');
        if parts.next()? != "bce-auth-v1" {
            return None;
        }
        let (access_key, timestamp, expires) = (parts.next()?, parts.next()?, parts.next()?);
        let (list, signature) = (parts.next()?, parts.next()?);
        let is_number = !expires.is_empty() && expires.bytes().all(|octet| octet.is_ascii_digit());
        let is_signature =
            signature.len() == 64 && signature.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'));
        let is_list =
            list.is_empty() || list.split(';').all(|name| !name.is_empty() && name == name.to_ascii_lowercase());
        if parts.next().is_some() || access_key.is_empty() || !is_number || !is_signature || !is_list {
            return None;
        }
        Some(Self {
            access_key,
            timestamp,
            signed_at: seconds(timestamp)?,
            expires,
            expires_in: expires.parse::<u32>().ok()?.into(),
            signed_headers: list.split(';').filter(|name| !name.is_empty()).collect(),
            signature,
        })
    }

    /// What the signing key is made from.
    fn prefix(&self) -> String {
        format!("bce-auth-v1/{}/{}/{}", self.access_key, self.timestamp, self.expires)
    }

    fn signs(&self, name: &str) -> bool {
        if self.signed_headers.is_empty() {
            DEFAULT_SET.contains(&name) || name.starts_with("x-bce-")
        } else {
            self.signed_headers.contains(&name)
        }
    }
}

/// How old the signature is, in seconds.
fn check_time(authorization: &Authorization<'_>, request: &Received<'_>) -> Result<i64, Refusal> {
    let now = request.time.seconds();
    // The manual takes Date in its place; the signers all send it, so this service insists.
    let date = request.header("x-bce-date").ok_or_else(|| denied("the request has no x-bce-date header"))?;
    let dated = seconds(date.trim()).ok_or_else(|| denied("x-bce-date is not a time like 2014-06-01T23:00:10Z"))?;
    let age = now - authorization.signed_at;
    if (now - dated).abs() > WINDOW || age < -WINDOW || age > authorization.expires_in {
        let message = format!("Request has expired. Timestamp date is {}", authorization.timestamp);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "RequestExpired", message));
    }
    Ok(age)
}

/// The canonical path: `%2F` counts as a slash, as everything else is decoded once as well.
fn canonical_path(path: &str) -> String {
    let path = if path.is_empty() { "/" } else { path };
    encode(&decode(path.as_bytes()), true)
}

/// The query's pairs, decoded. A raw `+` is a space, as servers that read forms have it.
fn pairs(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let text = |raw: &str| decode(raw.replace('+', " ").as_bytes());
    let pieces = query.split('&').filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .map(|(key, value)| (text(key), text(value)))
        .collect()
}

fn canonical_query(pairs: &[(Vec<u8>, Vec<u8>)]) -> String {
    let mut pairs: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", encode(key, false), encode(value, false))).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// The names of the headers that the signature covers, and their canonical lines.
fn canonical_headers<'a>(request: &Received<'a>, authorization: &Authorization<'_>) -> (Vec<&'a str>, String) {
    let (mut names, mut lines) = (Vec::new(), Vec::new());
    for name in request.headers.keys().map(http::HeaderName::as_str).filter(|name| authorization.signs(name)) {
        let values: Vec<&[u8]> =
            request.headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
        let value = values.join(&b',');
        if !value.is_empty() {
            names.push(name);
            lines.push(format!("{}:{}", encode(name.as_bytes(), false), encode(&value, false)));
        }
    }
    names.sort_unstable();
    lines.sort_unstable();
    (names, lines.join("\n"))
}

/// Undoes every well-formed `%XX` once; a stray `%` stands for itself.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, following)) = rest.split_first() {
        let escaped = match following {
            [high, low, ..] if first == b'%' => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        octets.push(escaped.map_or(first, |(high, low)| high << 4 | low));
        rest = following.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    octets
}

fn hex_digit(octet: u8) -> Option<u8> {
    char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn encode(octets: &[u8], is_path: bool) -> String {
    let mut text = String::with_capacity(octets.len());
    for &octet in octets {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) || (is_path && octet == b'/') {
            text.push(char::from(octet));
        } else {
            text.push('%');
            text.push_str(&hex::encode_upper([octet]));
        }
    }
    text
}

/// Seconds since 1970 for a time like `2014-06-01T23:00:10Z`.
fn seconds(text: &str) -> Option<i64> {
    let time = DateTime::strptime("%Y-%m-%dT%H:%M:%SZ", text).ok().filter(|_| text.len() == 20)?;
    Offset::UTC.to_timestamp(time).ok().map(jiff::Timestamp::as_second)
}

fn hmac(key: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn denied(why: &str) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "AccessDenied", format!("Access denied: {why}."))
}

/// Signed, beside every `x-bce-` header, where no list is given.
const DEFAULT_SET: [&str; 4] = ["host", "content-length", "content-type", "content-md5"];

/// How far x-bce-date may be off, in seconds.
const WINDOW: i64 = 30 * 60;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;

    const ACCESS_KEY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const SECRET_KEY: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    /// 2014-06-01T23:00:10Z.
    const THEN: i64 = 1_401_663_610;
    /// Vectors bce-002, bce-013 and bce-007.
    const WORKED: [(&str, &str, &str); 3] = [
        ("GET", "/v1/certificate", "09ea41d7af9b0c3a81c87a58f46cd32179d16240676875dc164595db75f797b1"),
        (
            "GET",
            "/v1/certificate/cert-5atue8m3sxsv/rawdata",
            "66a1026b7ee216a1e47d225da992056235a06adb1bb8433f13747fac4cd91456",
        ),
        (
            "PUT",
            "/v1/certificate/cert-5atue8m3sxsv?certName",
            "1e18f702d31dadc7d53b469b4802ef78c979c6eb923698578e4d8664ca448e05",
        ),
    ];

    type Change = (&'static str, fn(&mut Case));

    struct Case {
        method: Method,
        target: String,
        headers: HeaderMap,
        now: i64,
        keys: Vec<AccessKey>,
    }

    impl Case {
        /// The first worked example.
        fn worked() -> Self {
            Self::of("GET", "/v1/certificate", WORKED[0].2)
        }

        fn of(method: &str, target: &str, signature: &str) -> Self {
            let prefix = format!("bce-auth-v1/{ACCESS_KEY}/2014-06-01T23:00:10Z/1800");
            let mut case = Self {
                method: method.parse().unwrap(),
                target: target.to_owned(),
                headers: HeaderMap::new(),
                now: THEN,
                keys: vec![key(None)],
            };
            case.set("host", "certificate.baidubce.com");
            case.set("x-bce-date", "2014-06-01T23:00:10Z");
            case.set("authorization", &format!("{prefix}/host;x-bce-date/{signature}"));
            case
        }

        fn set(&mut self, name: &str, value: &str) {
            let name: HeaderName = name.parse().unwrap();
            self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }

        /// Replaces a part of the Authorization header.
        fn edit(&mut self, from: &str, to: &str) {
            let value = self.headers["authorization"].to_str().unwrap();
            assert!(value.contains(from));
            let value = value.replacen(from, to, 1);
            self.set("authorization", &value);
        }

        fn verdict(&self) -> Result<String, &'static str> {
            let (path, query) = self.target.split_once('?').map_or((self.target.as_str(), None), |(p, q)| (p, Some(q)));
            let request = Received {
                method: &self.method,
                path,
                query,
                headers: &self.headers,
                body: b"",
                client: None,
                time: Timestamp(self.now * 1000),
            };
            Bce { keys: self.keys.clone().into() }.verify(&request).map_err(|refusal| {
                assert!(!refusal.message.contains(SECRET_KEY), "{refusal:?}");
                refusal.code
            })
        }
    }

    fn key(token: Option<&str>) -> AccessKey {
        let security_token = token.map(Into::into);
        AccessKey { access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.into(), security_token }
    }

    #[test]
    fn the_worked_examples_are_accepted() {
        for (method, target, signature) in WORKED {
            let verified = Case::of(method, target, signature).verdict().unwrap();
            let expected = format!("bce-auth-v1 signature of {ACCESS_KEY} over host, x-bce-date (0 s old)");
            assert_eq!(verified, expected, "{method} {target}");
        }
    }

    /// Vector bce-001, which the vendor's manual prints, signature and all.
    #[test]
    fn the_manuals_own_example_is_accepted() {
        let mut case = Case::of("PUT", "/v1/test/myfolder/readme.txt", "");
        case.target += "?partNumber=9&uploadId=a44cc9bab11cbd156984767aad637851";
        case.now = 1_430_123_029;
        for (name, value) in [
            ("host", "bj.bcebos.com"),
            ("date", "Mon, 27 Apr 2015 16:23:49 +0800"),
            ("content-type", "text/plain"),
            ("content-length", "8"),
            ("content-md5", "NFzcPqhviddjRNnSOGo4rw=="),
            ("x-bce-date", "2015-04-27T08:23:49Z"),
            (
                "authorization",
                "bce-auth-v1/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/2015-04-27T08:23:49Z/1800//\
                 d74a04362e6a848f5b39b15421cb449427f419c95a480fd6b8cf9fc783e2999e",
            ),
        ] {
            case.set(name, value);
        }
        let verified = case.verdict().unwrap();
        assert!(verified.contains("over content-length, content-md5, content-type, host, x-bce-date"), "{verified}");
        case.set("content-type", "text/html");
        assert_eq!(case.verdict(), Err("SignatureDoesNotMatch"));
    }

    #[test]
    fn what_was_altered_after_signing_does_not_match() {
        let changes: [Change; 8] = [
            ("secret", |case| case.keys[0].secret_key = "c".repeat(32).into()),
            ("method", |case| case.method = Method::DELETE),
            ("path", |case| case.target += "/"),
            ("query", |case| case.target += "?certName"),
            ("host", |case| case.set("host", "certificate.baidubce.com:8080")),
            ("x-bce-date", |case| case.set("x-bce-date", "2014-06-01T23:00:11Z")),
            ("timestamp", |case| case.edit("23:00:10Z", "23:00:09Z")),
            ("list", |case| case.edit("host;x-bce-date", "host")),
        ];
        for (what, change) in changes {
            let mut case = Case::worked();
            change(&mut case);
            assert_eq!(case.verdict(), Err("SignatureDoesNotMatch"), "{what}");
        }
    }

    #[test]
    fn headers_outside_a_written_list_may_change() {
        let mut case = Case::worked();
        case.set("content-type", "text/plain");
        case.set("x-bce-request-id", "of a gateway");
        assert!(case.verdict().is_ok());
    }

    #[test]
    fn equivalent_escapes_are_the_same_request() {
        let mut case = Case::worked();
        for target in ["/v1/%63ertificate", "/v1%2Fcertificate", "/v1/certificate?", "/v1/certificate?&"] {
            target.clone_into(&mut case.target);
            assert!(case.verdict().is_ok(), "{target}");
        }
    }

    #[test]
    fn a_signature_is_good_for_as_long_as_it_says() {
        for (later, expected) in
            [(1800, None), (1801, Some("RequestExpired")), (-1800, None), (-1801, Some("RequestExpired"))]
        {
            let mut case = Case::worked();
            case.now += later;
            assert_eq!(case.verdict().err(), expected, "{later}");
        }
        // The signature is checked after the time: one that expires sooner is refused for that.
        let mut case = Case::worked();
        case.edit("/1800/", "/60/");
        case.now += 61;
        assert_eq!(case.verdict(), Err("RequestExpired"));
        case.edit("/60/", "/86400/");
        case.now = THEN + 1801;
        assert_eq!(case.verdict(), Err("RequestExpired"), "x-bce-date is too old, whatever the signature says");
    }

    #[test]
    fn the_date_must_be_there_and_be_a_time() {
        let mut case = Case::worked();
        for wrong in ["", "2014-06-01", "2014-06-01T23:00:10", "2014-06-01T23:00:10.5Z", "2014-13-01T23:00:10Z"] {
            case.set("x-bce-date", wrong);
            assert_eq!(case.verdict(), Err("AccessDenied"), "{wrong}");
        }
        case.headers.remove("x-bce-date");
        assert_eq!(case.verdict(), Err("AccessDenied"));
    }

    #[test]
    fn an_authorization_is_there_once_and_well_formed() {
        for (from, to) in [
            ("bce-auth-v1", "bce-auth-v2"),
            ("bce-auth-v1", "Bearer bce-auth-v1"),
            (ACCESS_KEY, ""),
            ("2014-06-01T", "20140601T"),
            ("1800", ""),
            ("1800", "-1"),
            ("1800", "99999999999"),
            ("host;", "Host;"),
            ("host;", "host;;"),
            ("host;x", "x"),
            ("/host;x-bce-date", ""),
            ("/host;x-bce-date", "//host"),
            (WORKED[0].2, ""),
            ("09ea", "09EA"),
        ] {
            let mut case = Case::worked();
            case.edit(from, to);
            assert_eq!(case.verdict(), Err("InvalidHTTPAuthHeader"), "{from} -> {to}");
        }
        let mut case = Case::worked();
        case.headers.append("authorization", HeaderValue::from_static("Basic YTpi"));
        assert_eq!(case.verdict(), Err("InvalidHTTPAuthHeader"));
        case.headers.remove("authorization");
        assert_eq!(case.verdict(), Err("AccessDenied"));
        let mut case = Case::worked();
        case.target += "?%41uthorization=x";
        assert_eq!(case.verdict(), Err("InvalidHTTPAuthHeader"), "in the query as well");
    }

    #[test]
    fn a_key_is_known_together_with_its_security_token() {
        let mut case = Case::worked();
        case.edit(ACCESS_KEY, "somebody");
        assert_eq!(case.verdict(), Err("InvalidAccessKeyId"));

        let mut case = Case::worked();
        case.set("x-bce-security-token", "unasked for");
        assert_eq!(case.verdict(), Err("InvalidAccessKeyId"));

        let mut case = Case::worked();
        case.keys = vec![key(Some("a token"))];
        assert_eq!(case.verdict(), Err("InvalidAccessKeyId"));
        case.set("x-bce-security-token", "another");
        assert_eq!(case.verdict(), Err("InvalidAccessKeyId"));
        case.set("x-bce-security-token", "a token");
        assert!(case.verdict().unwrap().contains("temporary"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(octets: Vec<u8>, is_path: bool) {
            prop_assert_eq!(decode(encode(&octets, is_path).as_bytes()), octets);
        }
    }

    #[test]
    fn decoding_undoes_one_layer_and_leaves_stray_signs() {
        for (raw, decoded) in
            [("%41%7e", "A~"), ("%252F", "%2F"), ("%", "%"), ("%4", "%4"), ("%%41", "%A"), ("%4g%", "%4g%")]
        {
            assert_eq!(decode(raw.as_bytes()), decoded.as_bytes(), "{raw}");
        }
        assert_eq!(canonical_query(&pairs("b=+&a=%2B&&a-b&a:")), "a%3A=&a-b=&a=%2B&b=%20");
        assert_eq!((canonical_path(""), canonical_path("/a%2fb//%e4!")), ("/".to_owned(), "/a/b//%E4%21".to_owned()));
    }
}
