//! Baidu Cloud: `bce-auth-v1` (<https://cloud.baidu.com/doc/Reference/s/njwvz1yfu>).
//!
//! ```text
//! prefix     = "bce-auth-v1/" access key "/" 2014-06-01T23:00:10Z "/" seconds of validity
//! signingKey = hex(HMAC-SHA256(secret key, prefix))
//! canonical  = METHOD "\n" path "\n" query "\n" headers         no final newline
//! signature  = hex(HMAC-SHA256(signingKey, canonical))
//! Authorization: prefix "/" signed header names, joined with ";" "/" signature
//! ```
//!
//! - The second HMAC is keyed with the 64 hex digits, not with the 32 octets that they stand for.
//! - Path, keys, values and headers are decoded once and encoded again, all but the unreserved characters of RFC 3986;
//!   in the path `/` is kept. Neither double slashes nor dot segments are resolved.
//! - Query pairs and header lines are sorted as whole lines, the list of names by name: `-` sorts below `:` and `=`.
//! - A query key `authorization` and headers with empty values take no part.
//! - With a written list the service looks at the listed headers only. With an empty one it takes its default set from
//!   what it received, so that a gateway between us that adds an `x-bce-` header breaks the signature.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;
use smallvec::SmallVec;

use super::verdict::{Cause, Reply, Row, Verdict, Wording};
use super::{Explanation, Fields, Key, PLUS, Provider, Registration, Request, Signer, concealed};
use crate::canonical::headers::signable;
use crate::canonical::percent::{self, Kept};
use crate::canonical::query::{self, Plus};
use crate::canonical::{sorted, time};
use crate::credential::{AccessKey, Credential, ExposeSecret, Source};
use crate::settings::{Table, Value};

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "bce",
    summary: "Authorization (bce-auth-v1), x-bce-date, x-bce-security-token",
    keys: &[
        Key {
            name: "credentials",
            default: "",
            meaning: "{ access_key = S, secret_key = S }, for temporary keys with security_token = S",
        },
        Key { name: "expires_in", default: "\"30m\"", meaning: "how long a signature is valid, in whole seconds" },
        Key {
            name: "signed_headers",
            default: "\"minimal\"",
            meaning: "\"minimal\": Host and every x-bce-*; \"default\": Content-Length, Content-Type and Content-MD5 too; \
                      \"default-unlisted\": the same with an empty list; or a list of names beside Host and x-bce-*",
        },
        PLUS,
    ],
    credential_headers: &["Authorization", "x-bce-date", "x-bce-security-token"],
    id_headers: ID_HEADERS,
    finds_upstream: false,
    read: |table| Bce::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Bce {
    source: Source,
    /// In seconds.
    expires_in: u64,
    signed_headers: SignedHeaders,
    plus: Plus,
}

/// What is signed beside `Host` and `x-bce-*`.
#[derive(Clone, Debug)]
struct SignedHeaders {
    others: Vec<HeaderName>,
    /// False if the list in `Authorization` stays empty.
    is_listed: bool,
}

impl Bce {
    fn read(table: &Table<'_>) -> Option<Self> {
        let source = Source::read(table);
        let expires_in = table.get("expires_in").map_or(Some(1800), |value| {
            let duration = value.duration()?;
            let is_right = duration >= Duration::from_secs(1) && duration.subsec_nanos() == 0;
            if !is_right {
                value.error("expected whole seconds, at least \"1s\"");
            }
            is_right.then_some(duration.as_secs())
        });
        let signed_headers = match table.get("signed_headers") {
            None => Some(SignedHeaders { others: Vec::new(), is_listed: true }),
            Some(value) => SignedHeaders::read(&value),
        };
        let plus = Plus::read(table);
        Some(Self { source: source?, expires_in: expires_in?, signed_headers: signed_headers?, plus: plus? })
    }
}

impl SignedHeaders {
    fn read(value: &Value<'_>) -> Option<Self> {
        if value.is_list() {
            let names = value.list()?;
            let others: Option<Vec<_>> = names.iter().map(header_name).collect();
            return others.map(|others| Self { others, is_listed: true });
        }
        let default = vec![CONTENT_LENGTH, CONTENT_MD5.clone(), CONTENT_TYPE];
        match value.is_string().then(|| value.string()).flatten() {
            Some("minimal") => Some(Self { others: Vec::new(), is_listed: true }),
            Some("default") => Some(Self { others: default, is_listed: true }),
            Some("default-unlisted") => Some(Self { others: default, is_listed: false }),
            _ => {
                value.error("expected \"minimal\", \"default\", \"default-unlisted\", or a list of header names");
                None
            }
        }
    }
}

fn header_name(value: &Value<'_>) -> Option<HeaderName> {
    let name = value.parse(signable)?;
    if name == REQUEST_ID {
        value.warning("x-bce-request-id is never signed in a written list, since gateways rewrite it");
    }
    Some(name)
}

impl Provider for Bce {
    fn source(&self) -> &Source {
        &self.source
    }

    fn mints_at(&self) -> &'static [&'static str] {
        &["sts", "iam"]
    }

    fn sets(&self) -> Vec<String> {
        ["Authorization", "x-bce-date", "x-bce-security-token"].map(str::to_owned).to_vec()
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::AccessKey(credential) = credential else {
            return Err("expected an access key and its secret".to_owned());
        };
        Ok(Arc::new(BceSigner::new(credential, self.expires_in, self.signed_headers.clone())?))
    }

    fn rewrite_query(&self, query: &str) -> Option<String> {
        self.plus.rewrite(query)
    }

    fn sdk(&self, authority: &str) -> Option<String> {
        let credentials = "BceCredentials(\"any\", \"any\")";
        Some(format!("BceClientConfiguration(credentials={credentials}, endpoint=b\"http://{authority}\")"))
    }

    /// Which status goes with a code varies by service.
    fn judges(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 400 | 401 | 403)
    }

    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        let mut verdict = WORDING.judge(reply, REFUSALS);
        // The reply to a HEAD has no body: the clocks are all there is to go by.
        if *reply.method == Method::HEAD && reply.ahead.is_some_and(|ahead| self.is_expired(ahead)) {
            (verdict.cause, verdict.advice) = (Cause::Clock(None), CLOCK.into());
        }
        verdict
    }
}

impl Bce {
    /// True if a server whose clock is so many milliseconds ahead of the signature takes it for expired, or for too far
    /// from its own time.
    fn is_expired(&self, ahead: i64) -> bool {
        let limit = if ahead < 0 { WINDOW } else { self.expires_in.min(WINDOW) };
        ahead.unsigned_abs() > limit * 1000
    }
}

struct BceSigner {
    /// `bce-auth-v1/{access key}/`.
    start: String,
    /// `/{seconds of validity}`.
    validity: String,
    /// Keyed with the secret.
    secret: Hmac<Sha256>,
    security_token: Option<HeaderValue>,
    signed_headers: SignedHeaders,
}

impl BceSigner {
    fn new(credential: &AccessKey, expires_in: u64, signed_headers: SignedHeaders) -> Result<Self, &'static str> {
        let AccessKey { access_key, secret_key, security_token } = credential;
        if access_key.is_empty() || access_key.bytes().any(|octet| !octet.is_ascii_graphic() || octet == b'/') {
            return Err("the access key must be visible ASCII characters without `/`");
        }
        if secret_key.expose_secret().is_empty() {
            return Err("the secret key is empty");
        }
        let security_token = security_token.as_ref().map(|token| {
            let token = token.expose_secret().trim_ascii();
            let value = concealed(&[token]).filter(|_| !token.is_empty());
            value.ok_or("the security token is empty or holds octets that no header can carry")
        });
        Ok(Self {
            start: format!("bce-auth-v1/{access_key}/"),
            validity: format!("/{expires_in}"),
            secret: hmac(secret_key.expose_secret().as_bytes()),
            security_token: security_token.transpose()?,
            signed_headers,
        })
    }

    /// What is signed, by name: of the request's headers those chosen, and ours.
    fn signed<'r>(&'r self, headers: &'r HeaderMap, date: &'r str) -> Result<Lines<'r>, String> {
        let chosen = headers.iter().filter(|(name, _)| self.signs(name));
        let mut lines: Lines<'r> = chosen.map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii())).collect();
        lines.push((DATE.as_str(), date.as_bytes()));
        if let Some(token) = &self.security_token {
            lines.push((SECURITY_TOKEN.as_str(), token.as_bytes()));
        }
        lines.sort_unstable_by_key(|(name, _)| *name);
        for pair in lines.windows(2) {
            if let [(name, _), (next, _)] = pair
                && name == next
            {
                return Err(format!("header `{name}` came twice, but is signed as one: send it once"));
            }
        }
        let is_unsigned = |name: &str| self.signed_headers.is_listed && REQUEST_ID == *name;
        lines.retain(|(name, value)| !value.is_empty() && !is_unsigned(name));
        if lines.iter().all(|(name, _)| HOST != *name) {
            return Err("a request without `Host` cannot be signed".to_owned());
        }
        Ok(lines)
    }

    fn signs(&self, name: &HeaderName) -> bool {
        if *name == DATE || *name == SECURITY_TOKEN && self.security_token.is_some() {
            return false;
        }
        *name == HOST || name.as_str().starts_with("x-bce-") || self.signed_headers.others.contains(name)
    }
}

/// Lower-case names with their trimmed values.
type Lines<'r> = SmallVec<[(&'r str, &'r [u8]); 12]>;

impl Signer for BceSigner {
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        let date = time::iso(request.time);
        let lines = self.signed(request.headers, &date)?;

        let canonical = canonical_request(request, &lines);
        let list_length: usize = lines.iter().map(|(name, _)| name.len() + 1).sum();
        let length = self.start.len() + date.len() + self.validity.len() + 1 + list_length + 1 + HEX;
        let mut authorization = Vec::with_capacity(length);
        for part in [&self.start, &date, &self.validity] {
            authorization.extend_from_slice(part.as_bytes());
        }
        let prefix = authorization.len();
        let signing_key = Zeroizing::new(hex_digest(self.secret.clone(), &authorization));
        authorization.push(b'/');
        if self.signed_headers.is_listed {
            for (index, (name, _)) in lines.iter().enumerate() {
                if index > 0 {
                    authorization.push(b';');
                }
                authorization.extend_from_slice(name.as_bytes());
            }
        }
        authorization.push(b'/');
        authorization.extend_from_slice(&hex_digest(hmac(signing_key.as_slice()), &canonical));

        if let Some(explain) = explain {
            let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
            explain.signing_key_input = authorization.get(..prefix).map(text);
            explain.signed_headers = lines.iter().map(|(name, _)| (*name).to_owned()).collect();
            explain.canonical_request = Some(text(&canonical));
        }
        drop(lines);

        let unfit = |_| "the signature does not fit into a header".to_owned();
        let mut authorization = HeaderValue::try_from(authorization).map_err(unfit)?;
        authorization.set_sensitive(true);
        let mut fields = Fields::new();
        fields.push((DATE.clone(), HeaderValue::try_from(date).map_err(unfit)?));
        fields.extend(self.security_token.iter().map(|token| (SECURITY_TOKEN.clone(), token.clone())));
        fields.push((AUTHORIZATION, authorization));
        Ok(fields)
    }
}

fn canonical_request(request: &Request<'_>, lines: &Lines<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b'\n');
    let path = if request.path.is_empty() { "/" } else { request.path };
    percent::recode(&mut out, path.as_bytes(), &IN_PATH);
    out.push(b'\n');
    canonical_query(&mut out, request.query.unwrap_or_default());
    out.push(b'\n');

    let start = out.len();
    for (name, value) in lines {
        if out.len() > start {
            out.push(b'\n');
        }
        percent::encode(&mut out, name.as_bytes(), &UNRESERVED);
        out.push(b':');
        percent::encode(&mut out, value, &UNRESERVED);
    }
    sorted::sort(&mut out, start, b'\n');
    out
}

fn canonical_query(out: &mut Vec<u8>, query: &str) {
    let start = out.len();
    for (key, value) in query::pairs(query) {
        let before = out.len();
        if before > start {
            out.push(b'&');
        }
        let at = out.len();
        percent::recode(out, key.as_bytes(), &UNRESERVED);
        if out.get(at..).is_some_and(|key| key.eq_ignore_ascii_case(b"authorization")) {
            out.truncate(before);
            continue;
        }
        out.push(b'=');
        percent::recode(out, value.unwrap_or("").as_bytes(), &UNRESERVED);
    }
    sorted::sort(out, start, b'&');
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hex_digest(mut hmac: Hmac<Sha256>, text: &[u8]) -> [u8; HEX] {
    hmac.update(text);
    let mut digits = [0; HEX];
    hex::encode_to_slice(hmac.finalize().into_bytes(), &mut digits).expect("two digits for each of 32 octets");
    digits
}

const ID_HEADERS: &[&str] = &["x-bce-request-id"];

static WORDING: Wording =
    Wording { names: &[("code", "message")], ids: &["requestId"], id_headers: ID_HEADERS, has_xml: false };

/// The common codes (<https://intl.cloud.baidu.com/en/doc/BCC/s/Ojwvyo6nc-intl-en>). Older services answer a bad signature with
/// 401 and codes of their own.
static REFUSALS: &[Row] = &[
    Row::of(&["RequestExpired"], Cause::Clock(None), CLOCK),
    Row::of(&["SignatureDoesNotMatch", "AuthError"], Cause::Signature, SIGNATURE),
    Row::of(
        &["InvalidHTTPAuthHeader"],
        Cause::Other,
        "leave out a parameter `authorization` of the query: the server does not take it beside the header",
    ),
    Row::of(
        &["InvalidAccessKeyId"],
        Cause::Credential,
        "check that the access key exists and is enabled, and that a temporary one has not expired",
    ),
    Row::of(&["AccessDenied"], Cause::Other, "give the owner of the access key a policy that allows the request"),
    Row::of(&[], Cause::Signature, SIGNATURE).at(401),
];

const CLOCK: &str = "set this machine's clock, or a longer `expires_in` if requests wait for long on their way";
const SIGNATURE: &str = "check the secret key; `countersign sign --explain` shows what is signed";

/// How far `x-bce-date` may be from the server's time, in seconds.
const WINDOW: u64 = 1800;

const HEX: usize = 64;
static UNRESERVED: Kept = Kept::alphanumeric_and(b"-._~");
static IN_PATH: Kept = Kept::alphanumeric_and(b"-._~/");

static CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
static DATE: HeaderName = HeaderName::from_static("x-bce-date");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-bce-request-id");
static SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-bce-security-token");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing;
    use crate::settings::Remark;

    fn read(text: &str) -> (Option<Bce>, Vec<Remark>, Vec<Remark>) {
        testing::read(text, Bce::read)
    }

    fn refusal(access_key: &str, secret_key: &str, security_token: Option<&str>) -> Option<String> {
        testing::refusal(&read("").0.unwrap(), access_key, secret_key, security_token)
    }

    #[test]
    fn defaults_are_thirty_minutes_the_minimal_list_and_spaces() {
        let provider = read("").0.unwrap();
        assert_eq!(provider.expires_in, 1800);
        assert!(provider.signed_headers.is_listed && provider.signed_headers.others.is_empty());
        assert_eq!(provider.rewrite_query("a=1+2+"), Some("a=1%202%20".to_owned()));
        assert_eq!(provider.rewrite_query("a=1%202"), None);
        let literal = read("plus = 'literal'").0.unwrap();
        assert_eq!(literal.rewrite_query("a+b"), Some("a%2Bb".to_owned()));
    }

    #[test]
    fn wrong_values_are_noted_at_their_place_and_not_shown() {
        for text in [
            "expires_in = '0s'",
            "expires_in = '1500ms'",
            "expires_in = 1800",
            "expires_in = 'off'",
            "plus = 'hunter2'",
            "signed_headers = 'hunter2'",
            "signed_headers = 1",
            "signed_headers = ['hunter 2']",
            "signed_headers = ['range', 1]",
            "signed_headers = ['Authorization']",
            "signed_headers = ['Transfer-Encoding']",
        ] {
            let (provider, errors, _) = read(text);
            assert!(provider.is_none(), "{text}");
            let [error] = errors.as_slice() else { panic!("{text}: {errors:?}") };
            assert_eq!(error.place.line, 2, "{text}");
            assert!(!error.message.contains("hunter"), "{text}: {}", error.message);
        }
    }

    #[test]
    fn a_name_that_is_never_signed_is_warned_about() {
        let (provider, errors, warnings) = read("signed_headers = ['X-Bce-Request-Id', 'Range', 'host']");
        assert!(provider.is_some() && errors.is_empty());
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused_unseen() {
        for access_key in ["", "hunter/2", "hunter2\n", "hunter 2", "hünter2"] {
            let message = refusal(access_key, "sk", None).unwrap();
            assert_eq!(message, "the access key must be visible ASCII characters without `/`");
        }
        for token in ["hunter2\r\nX-Evil: 1", "hunter2\0", "hunter2\u{7f}x", "", " \t"] {
            let message = refusal("ak", "sk", Some(token)).unwrap();
            assert_eq!(message, "the security token is empty or holds octets that no header can carry");
        }
        assert_eq!(refusal("ak", "", None).unwrap(), "the secret key is empty");
        assert_eq!(refusal("ak", "sk\n\0", Some("töken/==")), None);
        assert!(read("").0.unwrap().signer(&Credential::Nothing).is_err());
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert!(!format!("{:?}", read("").0).contains("hunter2"));
    }
}
