//! Alibaba Cloud: the ROA signature, version 1.0, as the container service and other services of its time take it
//! (<https://www.alibabacloud.com/help/doc-detail/167752.htm>,
//! <https://www.alibabacloud.com/help/en/sdk/product-overview/roa-mechanism>, and the vendor's SDKs).
//!
//! ```text
//! METHOD                          acs-roa signs these lines, each but the last ended by one "\n"
//! Accept
//! Content-MD5                     empty if there is none
//! Content-Type                    as sent, empty if there is none
//! Date                            Wed, 16 Dec 2015 11:18:47 GMT
//! x-acs-name:value                every x-acs-* header in the order of names, no space behind the colon
//! path?name=value&name            the path as sent; the query decoded, in the order of names alone
//!
//! Authorization: acs access key:base64(HMAC-SHA1(secret key, lines))
//! ```
//!
//! - The formula in the documentation has one more "\n" before the path: no client has.
//! - The path is signed as it is sent, escapes and all; the query is signed decoded (`+` is a space) and nothing in it
//!   escaped anew. Equal names keep their order, a name without `=` stands alone, `?` stands only before a parameter.
//! - `a` sorts before `a-b`, since names are compared and not pairs, octet by octet.
//! - The signature covers text. A query whose escapes are not UTF-8 has no text, so it is refused.
//! - A header that came twice is refused where it is signed: what a server makes of two is its own affair.
//! - The body is covered by Content-MD5 alone, which is off by default, so that bodies can stream.
//! - Every attempt wants a nonce of its own, and a Date within 15 minutes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use md5::{Digest, Md5};
use sha1::Sha1;
use smallvec::SmallVec;

use super::verdict::{Cause, Reply, Row, Verdict, Wording};
use super::{BodyNeed, Explanation, Fields, Key, Provider, Registration, Request, Signer, concealed};
use crate::canonical::{query, time};
use crate::clock::Timestamp;
use crate::credential::{AccessKey, Credential, ExposeSecret, Source};
use crate::settings::{Table, Value};

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "acs-roa",
    summary: "Authorization: acs …, x-acs-*, Date",
    keys: &[
        Key {
            name: "credentials",
            default: "",
            meaning: "{ access_key = S, secret_key = S }, for temporary keys with security_token = S",
        },
        Key {
            name: "version",
            default: "\"2015-12-15\"",
            meaning: "the API's version, for requests without an x-acs-version of their own",
        },
        Key {
            name: "content_md5",
            default: "false",
            meaning: "true signs bodies too, which are held until they are complete",
        },
        Key {
            name: "sts_accesskey_id_header",
            default: "false",
            meaning: "true sends x-acs-accesskey-id beside a security token",
        },
    ],
    credential_headers: &[
        "Authorization",
        "x-acs-signature*",
        "x-acs-security-token",
        "x-acs-accesskey-id",
        "x-acs-bearer-token",
        "x-acs-credentials-provider",
    ],
    id_headers: ID_HEADERS,
    finds_upstream: false,
    read: |table| AcsRoa::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct AcsRoa {
    source: Source,
    version: HeaderValue,
    has_content_md5: bool,
    names_access_key: bool,
}

impl AcsRoa {
    fn read(table: &Table<'_>) -> Option<Self> {
        let source = Source::read(table);
        let default = HeaderValue::from_static(DEFAULT_VERSION);
        let version = table.get("version").map_or(Some(default), |value| value.parse(version));
        let switch = |key| table.get(key).map_or(Some(false), |value: Value<'_>| value.boolean());
        let (has_content_md5, names_access_key) = (switch("content_md5"), switch("sts_accesskey_id_header"));
        Some(Self {
            source: source?,
            version: version?,
            has_content_md5: has_content_md5?,
            names_access_key: names_access_key?,
        })
    }
}

fn version(text: &str) -> Result<HeaderValue, &'static str> {
    let is_date = text.len() == 10
        && text.bytes().enumerate().all(|(at, octet)| match at {
            4 | 7 => octet == b'-',
            _ => octet.is_ascii_digit(),
        });
    let version = HeaderValue::from_str(text).ok().filter(|_| is_date);
    version.ok_or("expected the version of an API, such as \"2015-12-15\"")
}

impl Provider for AcsRoa {
    fn source(&self) -> &Source {
        &self.source
    }

    fn mints_at(&self) -> &'static [&'static str] {
        &["cs", "sts", "ram"]
    }

    fn sets(&self) -> Vec<String> {
        [
            "Content-MD5",
            "Date",
            "x-acs-signature-method",
            "x-acs-signature-nonce",
            "x-acs-signature-version",
            "x-acs-security-token",
            "x-acs-accesskey-id",
            "Authorization",
            // Of other versions of the signature: they would contradict this one.
            "x-acs-date",
            "x-acs-content-sha256",
            "x-acs-signature",
            "x-acs-signature-type",
            "x-acs-bearer-token",
            "x-acs-credentials-provider",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn defaults(&self) -> &'static [&'static str] {
        &["Accept", "x-acs-version"]
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::AccessKey(AccessKey { access_key, secret_key, security_token }) = credential else {
            return Err("expected an access key and its secret".to_owned());
        };
        let is_sendable = |octet: u8| octet.is_ascii_graphic() && octet != b':';
        let id = HeaderValue::from_str(access_key).ok();
        let id = id.filter(|_| !access_key.is_empty() && access_key.bytes().all(is_sendable));
        let id = id.ok_or("the access key must be visible ASCII characters without `:`")?;
        let secret_key = secret_key.expose_secret().as_bytes();
        if secret_key.is_empty() {
            return Err("the secret key is empty".to_owned());
        }
        let mut temporary = Fields::new();
        if let Some(token) = security_token {
            let token = token.expose_secret().trim_ascii();
            let value = concealed(&[token]).filter(|_| !token.is_empty());
            let token = value.ok_or("the security token is empty or holds octets that no header can carry")?;
            temporary.push((SECURITY_TOKEN.clone(), token));
            if self.names_access_key {
                temporary.push((ACCESS_KEY_ID.clone(), id));
            }
        }
        Ok(Arc::new(AcsRoaSigner {
            start: format!("acs {access_key}:"),
            secret: Hmac::new_from_slice(secret_key).expect("HMAC takes keys of any length"),
            version: self.version.clone(),
            temporary,
            has_content_md5: self.has_content_md5,
        }))
    }

    fn sdk(&self, authority: &str) -> Option<String> {
        let request = "version=\"2015-12-15\", action_name=\"DescribeClusters\", uri_pattern=\"/clusters\"";
        Some(format!(
            "request = CommonRequest(domain=\"{authority}\", {request})\n\
             request.set_protocol_type(\"http\")\n\
             request.set_method(\"GET\")\n\
             AcsClient(\"any\", \"any\", \"cn-hangzhou\").do_action_with_exception(request)"
        ))
    }

    fn body(&self, _method: &Method, _headers: &HeaderMap) -> BodyNeed {
        if self.has_content_md5 { BodyNeed::Whole } else { BodyNeed::Nothing }
    }

    fn judges(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 400 | 401 | 403 | 404 | 429 | 503)
    }

    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        let mut verdict = WORDING.judge(reply, REFUSALS);
        // The reply to a HEAD has no body: the clocks are all there is to go by.
        if *reply.method == Method::HEAD && reply.is_off_by(WINDOW) {
            (verdict.cause, verdict.advice) = (Cause::Clock(None), CLOCK.into());
        }
        verdict
    }
}

/// The headers of a GET without a query that is asked of our own accord.
///
/// # Errors
/// Why the access key cannot be used.
pub(super) fn sign_get(key: &AccessKey, path: &str, time: Timestamp, nonce: &str) -> Result<HeaderMap, String> {
    let (version, source) = (HeaderValue::from_static(DEFAULT_VERSION), Source::Nothing);
    let provider = AcsRoa { source, version, has_content_md5: false, names_access_key: false };
    let signer = provider.signer(&Credential::AccessKey(key.clone()))?;
    let (method, headers) = (&Method::GET, &HeaderMap::new());
    let request = Request { method, path, query: None, headers, body: b"", time, nonce };
    Ok(signer.sign(&request, None)?.into_iter().collect())
}

struct AcsRoaSigner {
    /// `acs {access key}:`.
    start: String,
    /// Keyed with the secret.
    secret: Hmac<Sha1>,
    version: HeaderValue,
    /// What temporary keys need beside the signature.
    temporary: Fields,
    has_content_md5: bool,
}

impl Signer for AcsRoaSigner {
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        let mut fields = self.fields(request)?;
        let text = string_to_sign(request, &fields)?;

        let signature = self.secret.clone().chain_update(&text).finalize().into_bytes();
        let mut authorization = String::with_capacity(self.start.len() + 28);
        authorization.push_str(&self.start);
        BASE64_STANDARD.encode_string(signature, &mut authorization);
        let authorization = HeaderValue::try_from(authorization);
        let mut authorization = authorization.map_err(|_| "the signature does not fit into a header".to_owned())?;
        authorization.set_sensitive(true);
        fields.push((AUTHORIZATION, authorization));
        if let Some(explain) = explain {
            explain.string_to_sign = Some(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(fields)
    }
}

impl AcsRoaSigner {
    /// What is set, but for the signature.
    fn fields(&self, request: &Request<'_>) -> Result<Fields, String> {
        let mut fields = Fields::with_capacity(10);
        if !request.headers.contains_key(ACCEPT) {
            fields.push((ACCEPT, HeaderValue::from_static("application/json")));
        }
        if self.has_content_md5 && !request.body.is_empty() {
            let digest = BASE64_STANDARD.encode(Md5::digest(request.body));
            fields.push((CONTENT_MD5.clone(), header_value(digest)?));
        }
        fields.push((DATE, header_value(time::http(request.time))?));
        fields.push((SIGNATURE_METHOD.clone(), HeaderValue::from_static("HMAC-SHA1")));
        fields.push((SIGNATURE_NONCE.clone(), header_value(request.nonce.to_owned())?));
        fields.push((SIGNATURE_VERSION.clone(), HeaderValue::from_static("1.0")));
        if !request.headers.contains_key(&VERSION) {
            fields.push((VERSION.clone(), self.version.clone()));
        }
        fields.extend(self.temporary.iter().cloned());
        Ok(fields)
    }
}

fn header_value(text: String) -> Result<HeaderValue, String> {
    HeaderValue::try_from(text).map_err(|_| "the nonce holds octets that no header can carry".to_owned())
}

fn string_to_sign(request: &Request<'_>, fields: &Fields) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b'\n');
    for name in [&ACCEPT, &CONTENT_MD5, &CONTENT_TYPE, &DATE] {
        let own = fields.iter().find(|(own, _)| own == name).map(|(_, value)| value);
        let mut callers = request.headers.get_all(name).iter();
        let value = own.or_else(|| callers.next());
        if own.is_none() && callers.next().is_some() {
            return Err(came_twice(name));
        }
        out.extend_from_slice(value.map(HeaderValue::as_bytes).unwrap_or_default().trim_ascii());
        out.push(b'\n');
    }

    let is_replaced = |name: &HeaderName| fields.iter().any(|(own, _)| own == name);
    let callers = request.headers.iter().filter(|(name, _)| !is_replaced(name));
    let own = fields.iter().map(|(name, value)| (name, value));
    let signed = callers.chain(own).filter(|(name, _)| name.as_str().starts_with("x-acs-"));
    let mut lines: SmallVec<[(&HeaderName, &HeaderValue); 12]> = signed.collect();
    lines.sort_unstable_by_key(|(name, _)| name.as_str());
    for pair in lines.windows(2) {
        if let [(name, _), (next, _)] = pair
            && name == next
        {
            return Err(came_twice(name));
        }
    }
    for (name, value) in lines {
        out.extend_from_slice(name.as_str().as_bytes());
        out.push(b':');
        let value = value.as_bytes().trim_ascii();
        out.extend(value.iter().map(|octet| if *octet == b'\t' { b' ' } else { *octet }));
        out.push(b'\n');
    }

    out.extend_from_slice(request.path.as_bytes());
    parameters(&mut out, request.query.unwrap_or_default())?;
    Ok(out)
}

fn came_twice(name: &HeaderName) -> String {
    format!("header `{name}` came twice, but is signed as one: send it once")
}

/// Appends the query, decoded and sorted.
fn parameters(out: &mut Vec<u8>, query: &str) -> Result<(), String> {
    let mut pairs: SmallVec<[_; 8]> = SmallVec::new();
    for (name, value) in query::pairs(query) {
        pairs.push((decode(name)?, value.map(decode).transpose()?));
    }
    pairs.sort_by(|(name, _), (other, _)| name.cmp(other));
    for (index, (name, value)) in pairs.iter().enumerate() {
        out.push(if index == 0 { b'?' } else { b'&' });
        out.extend_from_slice(name);
        if let Some(value) = value {
            out.push(b'=');
            out.extend_from_slice(value);
        }
    }
    Ok(())
}

fn decode(text: &str) -> Result<Cow<'_, [u8]>, String> {
    let decoded = query::form_decode(text.as_bytes());
    let not_text = |_| "the query's escapes are not UTF-8, and it is signed decoded: escape text in UTF-8".to_owned();
    str::from_utf8(&decoded).map_err(not_text)?;
    Ok(decoded)
}

const ID_HEADERS: &[&str] = &["x-acs-request-id"];

static WORDING: Wording = Wording {
    names: &[("Code", "Message"), ("code", "message")],
    ids: &["RequestId", "requestId"],
    id_headers: ID_HEADERS,
    has_xml: true,
};

/// From the vendor's table of common errors and its SDKs. Which status goes with a code varies by service.
static REFUSALS: &[Row] = &[
    Row::of(
        &["SignatureDoesNotMatch"],
        Cause::Signature,
        "compare the text at the end of the reply's message with what `countersign sign --explain` shows for the same time and \
         nonce: if they are equal, the secret key is wrong, else something changed the request on its way",
    ),
    Row::of(
        &["IncompleteSignature"],
        Cause::Other,
        "check that nothing on the way to the server changes the header `Authorization`",
    ),
    Row::of(&["InvalidTimeStamp", "IllegalTimestamp"], Cause::Clock(None), CLOCK),
    Row::of(
        &["SignatureNonceUsed"],
        Cause::Spent,
        "check that nothing on the way to the server sends requests a second time",
    ),
    Row::of(&["InvalidAccessKeyId.Inactive"], Cause::Other, "enable the access key, or use another one"),
    Row::of(
        &["InvalidAccessKeyId"],
        Cause::Credential,
        "check that the access key exists, and that a temporary one has not expired",
    ),
    Row::of(
        &["InvalidSecurityToken", "MissingSecurityToken"],
        Cause::Credential,
        "fetch the temporary keys anew: key, secret and security token belong together and expire together",
    ),
    Row::of(
        &["Forbidden", "NoPermission"],
        Cause::Other,
        "give the owner of the access key a policy that allows the request",
    ),
    Row::of(&["Throttling"], Cause::Throttled, "send fewer requests"),
    Row::of(&[], Cause::Throttled, "send fewer requests").at(429),
];

const DEFAULT_VERSION: &str = "2015-12-15";

const CLOCK: &str = "set this machine's clock: it is more than 15 minutes off";

/// How far the server's clock may be off ours.
const WINDOW: Duration = Duration::from_secs(900);

static ACCESS_KEY_ID: HeaderName = HeaderName::from_static("x-acs-accesskey-id");
static CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
static SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-acs-security-token");
static SIGNATURE_METHOD: HeaderName = HeaderName::from_static("x-acs-signature-method");
static SIGNATURE_NONCE: HeaderName = HeaderName::from_static("x-acs-signature-nonce");
static SIGNATURE_VERSION: HeaderName = HeaderName::from_static("x-acs-signature-version");
static VERSION: HeaderName = HeaderName::from_static("x-acs-version");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing;
    use crate::settings::Remark;

    fn read(text: &str) -> (Option<AcsRoa>, Vec<Remark>) {
        let (provider, errors, _) = testing::read(text, AcsRoa::read);
        (provider, errors)
    }

    fn refusal(access_key: &str, secret_key: &str, security_token: Option<&str>) -> Option<String> {
        testing::refusal(&read("").0.unwrap(), access_key, secret_key, security_token)
    }

    #[test]
    fn bodies_are_held_only_for_their_digest() {
        let need = |text| read(text).0.unwrap().body(&Method::POST, &HeaderMap::new());
        assert_eq!(need(""), BodyNeed::Nothing);
        assert_eq!(need("content_md5 = false"), BodyNeed::Nothing);
        assert_eq!(need("content_md5 = true"), BodyNeed::Whole);
    }

    #[test]
    fn wrong_values_are_noted_at_their_place_and_not_shown() {
        for text in [
            "version = 'hunter2'",
            "version = '2015-12-15 '",
            "version = '2015-12-1é'",
            "version = '20151215-1'",
            "version = 2015-12-15",
            "content_md5 = 'true'",
            "sts_accesskey_id_header = 1",
        ] {
            let (provider, errors) = read(text);
            assert!(provider.is_none(), "{text}");
            let [error] = errors.as_slice() else { panic!("{text}: {errors:?}") };
            assert_eq!(error.place.line, 2, "{text}");
            assert!(!error.message.contains("hunter"), "{text}: {}", error.message);
        }
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused_unseen() {
        for access_key in ["", "hunter:2", "hunter2\n", "hunter 2", "hünter2"] {
            let message = refusal(access_key, "sk", None).unwrap();
            assert_eq!(message, "the access key must be visible ASCII characters without `:`");
        }
        for token in ["hunter2\r\nX-Evil: 1", "hunter2\0", "hunter2\u{7f}x", "", " \t"] {
            let message = refusal("ak", "sk", Some(token)).unwrap();
            assert_eq!(message, "the security token is empty or holds octets that no header can carry");
        }
        assert_eq!(refusal("ak", "", None).unwrap(), "the secret key is empty");
        assert_eq!(refusal("STS.ak", "sk\n\0 ", Some("token/==")), None);
        assert!(read("").0.unwrap().signer(&Credential::Nothing).is_err());
        assert!(!format!("{:?}", read("").0).contains("hunter2"));
    }
}
