//! SDK-HMAC-SHA256 and its derived form V11-HMAC-SHA256, as a gateway of Huawei Cloud checks them.
//!
//! ```text
//! Authorization: SDK-HMAC-SHA256 Access={access key}, SignedHeaders={names}, Signature={signature}
//! signature = hex(HMAC-SHA256(secret key, algorithm \n x-sdk-date \n hex(SHA256(canonical request))))
//! canonical request = METHOD \n path/ \n query \n name:value \n … \n names \n payload hash
//!
//! Authorization: V11-HMAC-SHA256 Credential={access key}/{day}/{region}/{service}, SignedHeaders=…, Signature=…
//! key  = hex(HKDF-SHA256(salt: access key, secret key, info: "{day}/{region}/{service}", 32 octets)) as text
//! text = algorithm \n x-sdk-date \n info \n hex(SHA256(canonical request))
//! ```
//!
//! Stricter than the vendor's: what names a project, an account, a token or a payload must be signed where it is sent.

use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Keys, Received, Refusal, Scheme};
use crate::credential::AccessKey;

/// The access keys that a gateway knows, and the form of the signature that it wants.
pub struct SdkHmac {
    /// All of them; one with a security token is temporary.
    pub keys: Keys,
    /// Region and service of the derived form, which alone is accepted then.
    pub derived: Option<(String, String)>,
}

impl Scheme for SdkHmac {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let authorization =
            request.header("authorization").ok_or_else(|| refused("Authorization header is missing"))?;
        let Authorization { algorithm, credential, signed_headers, signature } =
            Authorization::read(authorization).ok_or_else(|| refused("Authorization header is malformed"))?;
        let date = request.header("x-sdk-date").ok_or_else(|| refused("x-sdk-date is missing"))?;
        let (access_key, info) = match &self.derived {
            None if algorithm == "SDK-HMAC-SHA256" => credential.strip_prefix("Access=").map(|key| (key, None)),
            Some((region, service)) if algorithm == "V11-HMAC-SHA256" => {
                let day: String = date.chars().take(8).collect();
                let info = format!("{day}/{region}/{service}");
                let key =
                    credential.strip_prefix("Credential=").and_then(|rest| rest.strip_suffix(&format!("/{info}")));
                key.map(|key| (key, Some(info)))
            }
            _ => None,
        }
        .ok_or_else(|| refused("algorithm or credential is not the expected one"))?;
        let key = self.key(access_key, request)?;
        let age = check_time(date, request)?;
        let headers = canonical_headers(request, &signed_headers)?;
        let (payload, hash) = payload(request)?;
        let list = signed_headers.join(";");
        let head = [request.method.as_str(), &canonical_path(request.path), &canonical_query(request.query)].join("\n");
        let mut canonical = head.into_bytes();
        canonical.push(b'\n');
        canonical.extend_from_slice(&headers);
        canonical.extend_from_slice(format!("\n{list}\n{hash}").as_bytes());
        let digest = hex::encode(Sha256::digest(&canonical));
        let secret = key.secret_key.expose_secret().as_bytes();
        let expected = match info {
            None => hex::encode(hmac(secret, format!("{algorithm}\n{date}\n{digest}").as_bytes())),
            Some(info) => {
                let extracted = hmac(access_key.as_bytes(), secret);
                let derived = hex::encode(hmac(&extracted, format!("{info}\u{1}").as_bytes()));
                hex::encode(hmac(derived.as_bytes(), format!("{algorithm}\n{date}\n{info}\n{digest}").as_bytes()))
            }
        };
        if expected != signature {
            return Err(refused("verify aksk signature fail"));
        }
        let temporary = if key.security_token.is_some() { ", temporary" } else { "" };
        let names = signed_headers.join(", ");
        Ok(format!("{algorithm} signature of {access_key} over {names}, payload {payload} ({age} s old{temporary})"))
    }

    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value {
        json!({ "error_msg": refusal.message, "error_code": refusal.code, "request_id": request_id })
    }
}

impl SdkHmac {
    fn key(&self, access_key: &str, request: &Received<'_>) -> Result<AccessKey, Refusal> {
        let token = request.header("x-security-token");
        let unknown = || refused(&format!("Get secretKey failed,ak:{access_key},err:ak not exist"));
        self.keys.find(access_key, token, request.time).ok_or_else(unknown)
    }
}

/// The header's value, taken apart.
struct Authorization<'a> {
    algorithm: &'a str,
    credential: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn read(value: &'a str) -> Option<Self> {
        let (algorithm, rest) = value.split_once(' ')?;
        let mut parts = rest.split(", ");
        let credential = parts.next()?;
        let signed_headers: Vec<_> = parts.next()?.strip_prefix("SignedHeaders=")?.split(';').collect();
        let signature = parts.next()?.strip_prefix("Signature=")?;
        let is_whole = parts.next().is_none() && !credential.contains([' ', ',']);
        let is_signature =
            signature.len() == 64 && signature.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'));
        (is_whole && is_signature).then_some(Self { algorithm, credential, signed_headers, signature })
    }
}

/// How old the signature is, in seconds.
fn check_time(date: &str, request: &Received<'_>) -> Result<i64, Refusal> {
    let time = DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok().filter(|_| date.len() == 16);
    let time = time.and_then(|time| Offset::UTC.to_timestamp(time).ok());
    let time = time.ok_or_else(|| refused("x-sdk-date is not a time like 20191115T033655Z"))?;
    let age = request.time.seconds() - time.as_second();
    if age.abs() > WINDOW {
        let now = Offset::UTC.to_datetime(jiff::Timestamp::from_second(request.time.seconds()).unwrap_or_default());
        let now = now.strftime("%Y%m%dT%H%M%SZ");
        return Err(refused(&format!("signature expired, signature time:{date},server time:{now}")));
    }
    Ok(age)
}

/// The lines of the signed headers, each with its newline.
fn canonical_headers(request: &Received<'_>, names: &[&str]) -> Result<Vec<u8>, Refusal> {
    let is_sorted = names.windows(2).all(|pair| matches!(pair, [one, next] if one < next));
    if !is_sorted || names.iter().any(|name| *name != name.to_lowercase() || name.contains('_')) {
        return Err(refused("SignedHeaders is not a sorted list of names in lower case"));
    }
    let present = WANTED.iter().filter(|name| request.headers.contains_key(**name));
    if let Some(unsigned) = ["host", "x-sdk-date"].iter().chain(present).find(|name| !names.contains(name)) {
        return Err(refused(&format!("{unsigned} is not signed")));
    }
    let mut lines = Vec::new();
    for name in names {
        let mut values = request.headers.get_all(*name).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(refused(&format!("{name} is signed, but was not received once")));
        };
        lines.extend_from_slice(name.as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes().trim_ascii());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What stands for the payload: in words, and in the canonical request.
fn payload(request: &Received<'_>) -> Result<(&'static str, String), Refusal> {
    let hash = hex::encode(Sha256::digest(request.body));
    match request.header("x-sdk-content-sha256") {
        None if request.headers.contains_key("x-sdk-content-sha256") => {
            Err(refused("x-sdk-content-sha256 is there twice"))
        }
        None => Ok(("hashed", hash)),
        // The vendor's SDKs do not agree on what is signed then.
        Some("UNSIGNED-PAYLOAD") if request.body.is_empty() => Err(refused("there is no payload to leave unsigned")),
        Some("UNSIGNED-PAYLOAD") => Ok(("unsigned", "UNSIGNED-PAYLOAD".to_owned())),
        Some(given) if given == hash => Ok(("hashed by the caller", hash)),
        Some(_) => Err(refused("x-sdk-content-sha256 is not that of the body")),
    }
}

/// The canonical path: decoded as a whole, `%2F` with it, encoded part by part, with a slash at its end.
fn canonical_path(path: &str) -> String {
    let decoded = decode(path.as_bytes());
    let parts: Vec<String> = decoded.split(|octet| *octet == b'/').map(encode).collect();
    let path = parts.join("/");
    if path.ends_with('/') { path } else { path + "/" }
}

/// The query's pairs, sorted while they are decoded. A raw `+` is a space, as servers that read forms have it.
fn canonical_query(query: Option<&str>) -> String {
    let pieces = query.unwrap_or_default().split('&').filter(|piece| !piece.is_empty());
    let pairs = pieces.map(|piece| piece.split_once('=').unwrap_or((piece, "")));
    let text = |raw: &str| decode(raw.replace('+', " ").as_bytes());
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = pairs.map(|(name, value)| (text(name), text(value))).collect();
    pairs.sort();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

/// Undoes every well-formed `%XX` once; a stray `%` stands for itself.
fn decode(mut rest: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(rest.len());
    while let [first, following @ ..] = rest {
        let digits =
            following.first_chunk::<2>().filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        if let Some(octet) = digits.and_then(|digits| hex::decode(digits).ok()) {
            octets.extend(octet);
            rest = following.get(2..).unwrap_or_default();
        } else {
            octets.push(*first);
            rest = following;
        }
    }
    octets
}

fn encode(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len());
    for &octet in octets {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            text.push(char::from(octet));
        } else {
            text.push('%');
            text.push_str(&hex::encode_upper([octet]));
        }
    }
    text
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(text).finalize().into_bytes().to_vec()
}

fn refused(why: &str) -> Refusal {
    let message = format!("Incorrect IAM authentication information: {why}");
    Refusal::new(StatusCode::UNAUTHORIZED, "APIGW.0301", message)
}

/// Must be signed where they are sent.
const WANTED: [&str; 4] = ["x-project-id", "x-domain-id", "x-security-token", "x-sdk-content-sha256"];

/// How far x-sdk-date may be off, in seconds.
const WINDOW: i64 = 15 * 60;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;

    const ACCESS_KEY: &str = "QTWAOYTTINDUT2QVKYUC";
    const SECRET_KEY: &str = "MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc";

    type Change = (&'static str, fn(&mut Case));

    struct Case {
        method: Method,
        target: String,
        headers: HeaderMap,
        body: Vec<u8>,
        now: i64,
        token: Option<&'static str>,
    }

    impl Case {
        /// The example of the vendor's manual, signature included (vector hw-001).
        fn worked() -> Self {
            let mut case = Self {
                method: Method::GET,
                target: "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs?limit=2&marker=13551d6b-755d-4757-b956-536f674975c0"
                    .to_owned(),
                headers: HeaderMap::new(),
                body: Vec::new(),
                now: 1_573_789_015,
                token: None,
            };
            case.set("host", "service.region.example.com");
            case.set("content-type", "application/json");
            case.set("x-sdk-date", "20191115T033655Z");
            case.set(
                "authorization",
                "SDK-HMAC-SHA256 Access=QTWAOYTTINDUT2QVKYUC, SignedHeaders=content-type;host;x-sdk-date, \
                 Signature=7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe",
            );
            case
        }

        fn set(&mut self, name: &'static str, value: &str) {
            self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }

        /// Replaces a part of the Authorization header.
        fn edit(&mut self, from: &str, to: &str) {
            let value = self.headers["authorization"].to_str().unwrap();
            assert!(value.contains(from));
            let value = value.replacen(from, to, 1);
            self.set("authorization", &value);
        }

        fn verdict(&self) -> Result<String, String> {
            let (path, query) = self.target.split_once('?').map_or((self.target.as_str(), None), |(p, q)| (p, Some(q)));
            let request = Received {
                method: &self.method,
                path,
                query,
                headers: &self.headers,
                body: &self.body,
                client: None,
                time: Timestamp(self.now * 1000),
            };
            let security_token = self.token.map(Into::into);
            let key = AccessKey { access_key: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.into(), security_token };
            SdkHmac { keys: vec![key].into(), derived: None }.verify(&request).map_err(|refusal| {
                assert_eq!((refusal.status, refusal.code), (StatusCode::UNAUTHORIZED, "APIGW.0301"));
                assert!(!refusal.message.contains(SECRET_KEY), "{refusal:?}");
                refusal.message
            })
        }
    }

    #[test]
    fn the_manuals_own_example_is_accepted() {
        let expected = "SDK-HMAC-SHA256 signature of QTWAOYTTINDUT2QVKYUC over content-type, host, x-sdk-date, \
                        payload hashed (0 s old)";
        assert_eq!(Case::worked().verdict().unwrap(), expected);
    }

    #[test]
    fn the_same_request_in_other_words_is_accepted() {
        let changes: [Change; 5] = [
            ("another order", |case| {
                case.target = "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs\
                               ?&marker=13551d6b-755d-4757-b956-536f674975c0&&limit=2"
                    .to_owned();
            }),
            ("a slash at the end", |case| case.target = case.target.replace("vpcs", "vpcs/")),
            ("needless escapes", |case| case.target = case.target.replace("v1", "%761").replace("limit", "%6Cimi%74")),
            ("an unsigned header", |case| case.set("user-agent", "curl")),
            ("a quarter of an hour", |case| case.now += 900),
        ];
        for (what, change) in changes {
            let mut case = Case::worked();
            change(&mut case);
            assert!(case.verdict().is_ok(), "{what}: {:?}", case.verdict());
        }
    }

    #[test]
    fn whatever_is_changed_is_refused() {
        let changes: [(Change, &str); 20] = [
            (
                ("no Authorization", |case| drop(case.headers.remove("authorization"))),
                "Authorization header is missing",
            ),
            (("another algorithm", |case| case.edit("SDK", "V11")), "algorithm"),
            (("no space", |case| case.edit(", Sig", ",Sig")), "malformed"),
            (("two spaces", |case| case.edit(", Sig", ",  Sig")), "malformed"),
            (("more", |case| case.edit("6ebe", "6ebe, X=1")), "malformed"),
            (("upper case", |case| case.edit("6ebe", "6EBE")), "malformed"),
            (("another key", |case| case.edit("QTW", "QTX")), "ak not exist"),
            (("a token", |case| case.set("x-security-token", "t")), "ak not exist"),
            (("no token", |case| case.token = Some("t")), "ak not exist"),
            (("too late", |case| case.now += 901), "signature expired"),
            (("too early", |case| case.now -= 901), "signature expired"),
            (("no date", |case| drop(case.headers.remove("x-sdk-date"))), "x-sdk-date is missing"),
            (("unsorted", |case| case.edit("content-type;host", "host;content-type")), "sorted"),
            (("unsigned host", |case| case.edit("host;", "")), "host is not signed"),
            (("unsigned project", |case| case.set("x-project-id", "p")), "x-project-id is not signed"),
            (("a missing header", |case| case.edit(";host", ";cookie;host")), "cookie is signed"),
            (("another method", |case| case.method = Method::PUT), "signature fail"),
            (("another path", |case| case.target = case.target.replace("vpcs", "vpcx")), "signature fail"),
            (("another query", |case| case.target += "&a"), "signature fail"),
            (("a body", |case| case.body = b"x".to_vec()), "signature fail"),
        ];
        for ((what, change), why) in changes {
            let mut case = Case::worked();
            change(&mut case);
            let message = case.verdict().unwrap_err();
            assert!(message.contains(why), "{what}: {message}");
        }
    }
}
