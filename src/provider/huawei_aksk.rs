//! Huawei Cloud with an access key: `SDK-HMAC-SHA256`
//! (<https://support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-algorithm-002.html>).
//!
//! ```text
//! canonical = METHOD "\n" path "\n" query "\n" (name ":" value "\n")… "\n" names "\n" payload hash
//! toSign    = "SDK-HMAC-SHA256" "\n" 20191115T033655Z "\n" hex(SHA256(canonical))
//! signature = hex(HMAC-SHA256(secret key, toSign))
//! Authorization: SDK-HMAC-SHA256 Access=access key, SignedHeaders=names joined with ";", Signature=signature
//! ```
//!
//! The derived form, for endpoints outside the vendor's domains, differs in its last lines:
//!
//! ```text
//! info      = 20191115 "/" region "/" service
//! key       = hex(HKDF-SHA256(salt = access key, ikm = secret key, info, 32 octets))     keyed with the 64 digits
//! toSign    = "V11-HMAC-SHA256" "\n" 20191115T033655Z "\n" info "\n" hex(SHA256(canonical))
//! Authorization: V11-HMAC-SHA256 Credential=access key "/" info, SignedHeaders=…, Signature=…
//! ```
//!
//! - Path, names and values of the query are decoded once and encoded again, all but the unreserved characters of RFC 3986;
//!   in the path `/` is kept, and one stands at its end, in the canonical form alone. Dot segments are not resolved.
//! - The query is sorted by decoded name, then by decoded value, and every name has its `=`.
//! - Header lines are sorted by name; values are trimmed and nothing else, empty ones stay. A name with `_` is never signed.
//! - The payload hash is the value of `X-Sdk-Content-Sha256` where that is sent, which is then signed as well.
//! - The service hashes bodies up to 12 MB. Its clock may be 15 minutes off ours.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::huawei_token::{FORBIDDEN, THROTTLED, WORDING};
use super::verdict::{Cause, Reply, Row, Verdict};
use super::{BodyNeed, Explanation, Fields, Key, PLUS, Provider, Registration, Request, Signer, secret_value};
use crate::canonical::headers::{is_hop_by_hop, signable};
use crate::canonical::percent::{self, Kept};
use crate::canonical::query::{self, Plus};
use crate::canonical::time;
use crate::clock::Timestamp;
use crate::credential::{AccessKey, Credential, ExposeSecret, HuaweiIds, Ids, Source, Wanted};
use crate::settings::{Table, Value};

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "huawei-aksk",
    summary: "Authorization (SDK-HMAC-SHA256), X-Sdk-Date, X-Sdk-Content-Sha256, X-Project-Id, X-Domain-Id, X-Security-Token",
    keys: &[
        Key {
            name: "credentials",
            default: "",
            meaning: "{ access_key = S, secret_key = S }, for temporary keys with security_token = S",
        },
        Key {
            name: "project_id",
            default: "",
            meaning: "the id sent as X-Project-Id, \"auto\" finds it out; without it the caller's goes on",
        },
        Key {
            name: "domain_id",
            default: "",
            meaning: "the id sent as X-Domain-Id, \"auto\" finds it out; without it the caller's goes on",
        },
        Key { name: "region", default: "", meaning: "whose project is found out where `project_id` is \"auto\"" },
        Key { name: "iam", default: "", meaning: "who is asked for ids that are \"auto\"" },
        Key { name: "iam_ca", default: "", meaning: "the file of a private CA that signed the certificate of `iam`" },
        Key {
            name: "sts",
            default: "",
            meaning: "who is asked for the account where `iam` does not tell it; the one beside `iam` by default",
        },
        Key {
            name: "payload",
            default: "\"hash\"",
            meaning: "\"hash\" signs the body; \"auto\", as the vendor's SDKs do, only of JSON, BSON and unnamed types; \
                      \"unsigned\" none, so that it can stream",
        },
        Key {
            name: "signed_headers",
            default: "\"minimal\"",
            meaning: "\"minimal\": Host and what is set; \"all\": the caller's too, but Content-Type; \
                      or a list of names beside the minimal ones",
        },
        Key {
            name: "derived",
            default: "",
            meaning: "{ region = \"…\", service = \"…\" } signs with V11-HMAC-SHA256; global services have the region \"globe\"",
        },
        PLUS,
    ],
    credential_headers: &["Authorization", "X-Sdk-Date", "X-Sdk-Content-Sha256", "X-Security-Token"],
    id_headers: super::huawei_token::ID_HEADERS,
    finds_upstream: false,
    read: |table| Aksk::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Aksk {
    source: Source,
    options: Options,
    plus: Plus,
}

#[derive(Clone, Debug)]
struct Options {
    project_id: Id,
    domain_id: Id,
    payload: Payload,
    signed_headers: SignedHeaders,
    derived: Option<Derived>,
}

/// What is sent as an id.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Id {
    /// What the caller sends.
    Callers,
    /// This.
    Given(HeaderValue),
    /// What the credential brings.
    Found,
}

/// How the body takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payload {
    Hash,
    Auto,
    Unsigned,
}

/// What is signed beside `Host` and what is set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SignedHeaders {
    Listed(Vec<HeaderName>),
    All,
}

/// What the key of the V11 form is derived for.
#[derive(Clone, Debug)]
struct Derived {
    region: String,
    service: String,
}

impl Aksk {
    fn read(table: &Table<'_>) -> Option<Self> {
        let source = Source::read(table);
        let id = |key| table.get(key).map_or(Some(Id::Callers), |value| id(&value));
        let (project_id, domain_id) = (id("project_id"), id("domain_id"));
        let is_found = |id: &Option<Id>| matches!(id, Some(Id::Found));
        let wanted = Wanted { project: is_found(&project_id), domain: is_found(&domain_id) };
        let source = if wanted.project || wanted.domain {
            // Also where the source is wrong, so that all that is wrong is told.
            let ids = HuaweiIds::read(table, source.clone().unwrap_or(Source::Nothing), wanted, sign_question);
            source.and(ids).map(|ids| Source::Fetched(Arc::new(ids)))
        } else {
            for value in ["region", "iam", "iam_ca", "sts"].into_iter().filter_map(|key| table.get(key)) {
                value.warning("not used: it is for ids that are \"auto\"");
            }
            source
        };
        let choices = [("hash", Payload::Hash), ("auto", Payload::Auto), ("unsigned", Payload::Unsigned)];
        let payload = table.get("payload").map_or(Some(Payload::Hash), |value| value.choice(&choices));
        let minimal = SignedHeaders::Listed(Vec::new());
        let signed_headers = table.get("signed_headers").map_or(Some(minimal), |value| SignedHeaders::read(&value));
        let derived = table.get("derived").map_or(Some(None), |value| Derived::read(&value).map(Some));
        let plus = Plus::read(table);
        let options = Options {
            project_id: project_id?,
            domain_id: domain_id?,
            payload: payload?,
            signed_headers: signed_headers?,
            derived: derived?,
        };
        Some(Self { source: source?, options, plus: plus? })
    }
}

fn id(value: &Value<'_>) -> Option<Id> {
    value.parse(|text| match HeaderValue::from_str(text) {
        _ if text == "auto" => Ok(Id::Found),
        Ok(id) if is_graphic(text) => Ok(Id::Given(id)),
        _ => Err("expected an id, which is visible characters of ASCII, or \"auto\""),
    })
}

/// Signs a question to one of the vendor's own services, in the ordinary form and without ids.
fn sign_question(key: &AccessKey, authority: &str, target: &str, time: Timestamp) -> Result<HeaderMap, String> {
    let options = Options {
        project_id: Id::Callers,
        domain_id: Id::Callers,
        payload: Payload::Hash,
        signed_headers: SignedHeaders::Listed(Vec::new()),
        derived: None,
    };
    let host = HeaderValue::from_str(authority).map_err(|_| "the host does not fit into a header")?;
    let mut headers = HeaderMap::from_iter([(HOST, host)]);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let method = &Method::GET;
    let request = Request { method, path, query, headers: &headers, body: b"", time, nonce: "" };
    let fields = AkskSigner::new(key, &Ids::default(), &options)?.sign(&request, None)?;
    headers.extend(fields);
    Ok(headers)
}

fn is_graphic(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic())
}

/// True for text that does not break the list of parameters in `Authorization`.
fn is_part(text: &str) -> bool {
    is_graphic(text) && !text.contains([',', '/'])
}

impl SignedHeaders {
    fn read(value: &Value<'_>) -> Option<Self> {
        if value.is_list() {
            let names: Option<Vec<_>> = value.list()?.iter().map(Self::name).collect();
            return names.map(Self::Listed);
        }
        match value.is_string().then(|| value.string()).flatten() {
            Some("minimal") => Some(Self::Listed(Vec::new())),
            Some("all") => Some(Self::All),
            _ => {
                value.error("expected \"minimal\", \"all\", or a list of header names");
                None
            }
        }
    }

    fn name(value: &Value<'_>) -> Option<HeaderName> {
        let name = value.parse(signable)?;
        if name.as_str().contains('_') {
            value.warning("a header with `_` in its name is never signed");
        }
        Some(name)
    }
}

impl Derived {
    fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?;
        let part = |key, what| {
            let expected = "expected visible characters of ASCII without `,` and `/`";
            table.require(key, what)?.parse(|text| is_part(text).then(|| text.to_owned()).ok_or(expected))
        };
        let region = part("region", "the region's id, or \"globe\" for a global service");
        let service = part("service", "the service's short name, as \"iotda\"");
        table.finish();
        Some(Self { region: region?, service: service? })
    }
}

impl Payload {
    /// True if a body of such a request is not looked at.
    fn skips_body(self, headers: &HeaderMap) -> bool {
        let is_hashed = |kind: &HeaderValue| HASHED_TYPES.iter().any(|start| kind.as_bytes().starts_with(start));
        match self {
            Self::Hash => false,
            // The SDKs take an empty type for none.
            Self::Auto => headers.get(CONTENT_TYPE).is_some_and(|kind| !kind.is_empty() && !is_hashed(kind)),
            Self::Unsigned => true,
        }
    }
}

impl Provider for Aksk {
    fn source(&self) -> &Source {
        &self.source
    }

    /// An id that is not configured is the caller's to send. The others never are, whether they are needed or not.
    fn mints_at(&self) -> &'static [&'static str] {
        &["iam", "sts", "sms"]
    }

    fn sets(&self) -> Vec<String> {
        let Options { project_id, domain_id, .. } = &self.options;
        let ids = [("X-Project-Id", project_id), ("X-Domain-Id", domain_id)];
        let ids = ids.into_iter().filter(|(_, id)| **id != Id::Callers).map(|(name, _)| name);
        let rest = ["X-Security-Token", "X-Sdk-Content-Sha256", "X-Sdk-Date", "Authorization"];
        ids.chain(rest).map(str::to_owned).collect()
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let (key, ids) = match credential {
            Credential::AccessKey(key) => (key, &Ids::default()),
            Credential::Identified(key, ids) => (key, ids),
            _ => return Err("expected an access key and its secret".to_owned()),
        };
        Ok(Arc::new(AkskSigner::new(key, ids, &self.options)?))
    }

    fn body(&self, _method: &Method, headers: &HeaderMap) -> BodyNeed {
        if self.options.payload.skips_body(headers) { BodyNeed::Presence } else { BodyNeed::Whole }
    }

    fn rewrite_query(&self, query: &str) -> Option<String> {
        self.plus.rewrite(query)
    }

    fn judges(&self, status: StatusCode) -> bool {
        matches!(status.as_u16(), 401 | 403 | 429)
    }

    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        let mut verdict = WORDING.judge(reply, REFUSALS);
        // The reply to a HEAD has no body: it may well count as one of the five.
        if *reply.method == Method::HEAD && reply.status == StatusCode::UNAUTHORIZED {
            (verdict.cause, verdict.advice) = (Cause::Signature, SIGNATURE.into());
        }
        match verdict.cause {
            Cause::Clock(_) => verdict.cause = Cause::Clock(verdict.message.as_deref().and_then(server_time)),
            // The manual's second suspect for a signature that does not match.
            Cause::Signature if reply.is_off_by(WINDOW) => {
                (verdict.cause, verdict.advice) = (Cause::Clock(None), CLOCK.into());
            }
            _ => {}
        }
        verdict
    }

    fn sdk(&self, authority: &str) -> Option<String> {
        let credentials = "BasicCredentials(\"any\", \"any\", \"any\")";
        Some(format!("builder.with_credentials({credentials}).with_endpoint(\"http://{authority}\").build()"))
    }

    /// Five bad signatures in a row lock it for five minutes.
    fn locks_keys(&self) -> bool {
        true
    }
}

/// The time that a message quotes: `signature time:20230527T000431Z,server time:20230527T020608Z`.
fn server_time(message: &str) -> Option<Timestamp> {
    let (_, rest) = message.split_once("server time:")?;
    let time: jiff::Timestamp = rest.get(..16)?.parse().ok()?;
    Some(Timestamp(time.as_millisecond()))
}

struct AkskSigner {
    algorithm: &'static str,
    /// `SDK-HMAC-SHA256 Access={access key}`, or `V11-HMAC-SHA256 Credential={access key}/`.
    start: String,
    /// Keyed with the secret, or with what the key of each day is derived from.
    key: Hmac<Sha256>,
    /// `/{region}/{service}` of the derived form.
    scope: Option<String>,
    /// The headers that are the same in every request.
    fixed: Fields,
    payload: Payload,
    signed_headers: SignedHeaders,
}

impl AkskSigner {
    fn new(credential: &AccessKey, ids: &Ids, options: &Options) -> Result<Self, String> {
        let AccessKey { access_key, secret_key, security_token } = credential;
        if !is_part(access_key) {
            return Err("the access key must be visible ASCII characters without `,` and `/`".to_owned());
        }
        let secret = secret_key.expose_secret().as_bytes();
        if secret.is_empty() {
            return Err("the secret key is empty".to_owned());
        }
        let mut fixed = Fields::new();
        for (name, id, found) in
            [(&PROJECT_ID, &options.project_id, &ids.project), (&DOMAIN_ID, &options.domain_id, &ids.domain)]
        {
            let id = match id {
                Id::Callers => continue,
                Id::Given(id) => id.clone(),
                Id::Found => {
                    let found = found.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
                    found.ok_or_else(|| format!("header `{name}`: the id was not found out yet"))?
                }
            };
            fixed.push((name.clone(), id));
        }
        if let Some(token) = security_token {
            fixed.push((SECURITY_TOKEN.clone(), secret_value("X-Security-Token", token)?));
        }
        let (algorithm, start, key, scope) = match &options.derived {
            None => ("SDK-HMAC-SHA256", format!("SDK-HMAC-SHA256 Access={access_key}"), hmac(secret), None),
            Some(Derived { region, service }) => {
                // HKDF, RFC 5869: its first step here, for 32 octets its second is a single HMAC.
                let extracted = hmac(access_key.as_bytes()).chain_update(secret).finalize().into_bytes();
                let extracted = Zeroizing::new(<[u8; 32]>::from(extracted));
                let start = format!("V11-HMAC-SHA256 Credential={access_key}/");
                ("V11-HMAC-SHA256", start, hmac(extracted.as_slice()), Some(format!("/{region}/{service}")))
            }
        };
        let Options { payload, signed_headers, .. } = options.clone();
        Ok(Self { algorithm, start, key, scope, fixed, payload, signed_headers })
    }

    /// What is signed, by name: of the request's headers those chosen, and ours.
    fn signed<'r>(&'r self, headers: &'r HeaderMap, date: &'r str, is_unsigned: bool) -> Result<Lines<'r>, String> {
        let chosen = headers.iter().filter(|(name, _)| self.signs(name));
        let fixed = self.fixed.iter().map(|(name, value)| (name, value));
        let all = chosen.chain(fixed);
        let mut lines: Lines<'r> = all.map(|(name, value)| (name.as_str(), value.as_bytes().trim_ascii())).collect();
        lines.push((DATE.as_str(), date.as_bytes()));
        if is_unsigned {
            lines.push((CONTENT_SHA256.as_str(), UNSIGNED_PAYLOAD.as_bytes()));
        }
        lines.sort_unstable_by_key(|(name, _)| *name);
        for pair in lines.windows(2) {
            if let [(name, _), (next, _)] = pair
                && name == next
            {
                return Err(format!("header `{name}` came twice, but is signed as one: send it once"));
            }
        }
        if lines.iter().all(|(name, _)| HOST != *name) {
            return Err("a request without `Host` cannot be signed".to_owned());
        }
        Ok(lines)
    }

    fn signs(&self, name: &HeaderName) -> bool {
        let is_ours = [&DATE, &CONTENT_SHA256, &SECURITY_TOKEN, &AUTHORIZATION].contains(&name)
            || self.fixed.iter().any(|(fixed, _)| fixed == name);
        if is_ours || name.as_str().contains('_') {
            return false;
        }
        [&HOST, &PROJECT_ID, &DOMAIN_ID].contains(&name)
            || match &self.signed_headers {
                SignedHeaders::Listed(names) => names.contains(name),
                SignedHeaders::All => *name != CONTENT_TYPE && !is_hop_by_hop(name.as_str()),
            }
    }
}

/// Lower-case names with their trimmed values.
type Lines<'r> = SmallVec<[(&'r str, &'r [u8]); 12]>;

impl Signer for AkskSigner {
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        let date = time::compact(request.time);
        let is_unsigned = self.payload.skips_body(request.headers) && has_body(request);
        let lines = self.signed(request.headers, &date, is_unsigned)?;

        let list_length: usize = lines.iter().map(|(name, _)| name.len() + 1).sum();
        let mut names = String::with_capacity(list_length);
        for (name, _) in &lines {
            if !names.is_empty() {
                names.push(';');
            }
            names.push_str(name);
        }
        let canonical = canonical_request(request, &lines, &names, is_unsigned);

        let info = self.scope.as_ref().map(|scope| date.split('T').take(1).chain([scope.as_str()]).collect::<String>());
        let mut to_sign = String::with_capacity(192);
        for part in [Some(self.algorithm), Some(&date), info.as_deref()].into_iter().flatten() {
            to_sign.push_str(part);
            to_sign.push('\n');
        }
        to_sign.push_str(text(&hex(&Sha256::digest(&canonical).into())));
        let key = match &info {
            None => self.key.clone(),
            Some(info) => {
                let key = Zeroizing::new(hex_digest(self.key.clone().chain_update(info), &[1]));
                hmac(key.as_slice())
            }
        };
        let signature = hex_digest(key, to_sign.as_bytes());

        let parts = [
            &self.start,
            info.as_deref().unwrap_or_default(),
            ", SignedHeaders=",
            &names,
            ", Signature=",
            text(&signature),
        ];
        let mut authorization = String::with_capacity(parts.iter().map(|part| part.len()).sum());
        authorization.extend(parts);

        if let Some(explain) = explain {
            explain.canonical_request = Some(String::from_utf8_lossy(&canonical).into_owned());
            explain.signed_headers = lines.iter().map(|(name, _)| (*name).to_owned()).collect();
            explain.string_to_sign = Some(to_sign);
            explain.signing_key_input = info;
        }
        drop(lines);

        let unfit = |_| "the signature does not fit into a header".to_owned();
        let mut authorization = HeaderValue::try_from(authorization).map_err(unfit)?;
        authorization.set_sensitive(true);
        let mut fields = self.fixed.clone();
        if is_unsigned {
            fields.push((CONTENT_SHA256.clone(), HeaderValue::from_static(UNSIGNED_PAYLOAD)));
        }
        fields.push((DATE.clone(), HeaderValue::try_from(date).map_err(unfit)?));
        fields.push((AUTHORIZATION, authorization));
        Ok(fields)
    }
}

/// True unless the body is known to be empty. One that streams is not at hand, but the head says how it is framed.
fn has_body(request: &Request<'_>) -> bool {
    let is_zero = |length: &HeaderValue| length.as_bytes().iter().all(|digit| *digit == b'0');
    !request.body.is_empty()
        || request.headers.contains_key(TRANSFER_ENCODING)
        || request.headers.get(CONTENT_LENGTH).is_some_and(|length| !is_zero(length))
}

fn canonical_request(request: &Request<'_>, lines: &Lines<'_>, names: &str, is_unsigned: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend(request.method.as_str().bytes().map(|octet| octet.to_ascii_uppercase()));
    out.push(b'\n');
    percent::recode(&mut out, request.path.as_bytes(), &IN_PATH);
    if out.last() != Some(&b'/') {
        out.push(b'/');
    }
    out.push(b'\n');
    canonical_query(&mut out, request.query.unwrap_or_default());
    out.push(b'\n');
    for (name, value) in lines {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out.push(b'\n');
    out.extend_from_slice(names.as_bytes());
    out.push(b'\n');
    if is_unsigned {
        out.extend_from_slice(UNSIGNED_PAYLOAD.as_bytes());
    } else {
        out.extend_from_slice(&hex(&Sha256::digest(request.body).into()));
    }
    out
}

/// A name and a value, decoded.
type Pair<'q> = (Cow<'q, [u8]>, Cow<'q, [u8]>);

fn canonical_query(out: &mut Vec<u8>, query: &str) {
    let decode = |text| Cow::from(percent_decode_str(text));
    let pairs = query::pairs(query).map(|(name, value)| (decode(name), decode(value.unwrap_or_default())));
    let mut pairs: SmallVec<[Pair<'_>; 8]> = pairs.collect();
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        percent::encode(out, name, &UNRESERVED);
        out.push(b'=');
        percent::encode(out, value, &UNRESERVED);
    }
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hex_digest(hmac: Hmac<Sha256>, text: &[u8]) -> [u8; HEX] {
    hex(&hmac.chain_update(text).finalize().into_bytes().into())
}

fn hex(digest: &[u8; 32]) -> [u8; HEX] {
    let mut digits = [0; HEX];
    hex::encode_to_slice(digest, &mut digits).expect("two digits for each of 32 octets");
    digits
}

fn text(digits: &[u8; HEX]) -> &str {
    std::str::from_utf8(digits).expect("hex digits are ASCII")
}

/// The gateway's errors (<https://support.huaweicloud.com/intl/en-us/apig_faq/apig-faq-0003.html>), which have few codes: the
/// message tells them apart.
static REFUSALS: &[Row] = &[
    refusal(Cause::Clock(None), CLOCK).saying("signature expired"),
    refusal(Cause::Locked, "wait for five minutes, and check the secret key of all who use this access key")
        .saying("ak access failed to reach the limit"),
    refusal(
        Cause::Credential,
        "check that the access key exists and is enabled, and that a temporary one has not expired",
    )
    .saying("ak not exist"),
    refusal(Cause::Other, "use a route with a token: the service signs bodies up to 12 MB only")
        .saying("body too large"),
    refusal(Cause::Other, "check that nothing on the way to the server takes the header `Authorization` out")
        .saying("authorization header is missing"),
    refusal(Cause::Signature, SIGNATURE).saying("verify aksk signature fail"),
    // Whatever else there is, it may count as one of the five.
    refusal(Cause::Signature, SIGNATURE),
    FORBIDDEN,
    THROTTLED,
];

const fn refusal(cause: Cause, advice: &'static str) -> Row {
    Row::of(&["APIGW.0301", "APIGW.0303", "APIG.0301", "APIG.0303"], cause, advice).at(401)
}

const SIGNATURE: &str = "check the secret key; `countersign sign --explain` shows what is signed";
const CLOCK: &str = "set this machine's clock: it is more than 15 minutes off";

/// How far the server's clock may be off ours.
const WINDOW: Duration = Duration::from_secs(900);

const HEX: usize = 64;
static UNRESERVED: Kept = Kept::alphanumeric_and(b"-._~");
static IN_PATH: Kept = Kept::alphanumeric_and(b"-._~/");

/// Stands for the hash of a body that is not looked at.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// What the vendor's SDKs hash: a Content-Type that begins like this, or none.
const HASHED_TYPES: [&[u8]; 2] = [b"application/json", b"application/bson"];

static CONTENT_SHA256: HeaderName = HeaderName::from_static("x-sdk-content-sha256");
static DATE: HeaderName = HeaderName::from_static("x-sdk-date");
static DOMAIN_ID: HeaderName = HeaderName::from_static("x-domain-id");
static PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");
static SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::provider::testing;
    use crate::settings::Remark;

    fn read(text: &str) -> (Option<Aksk>, Vec<Remark>, Vec<Remark>) {
        testing::read(text, Aksk::read)
    }

    fn refusal(access_key: &str, secret_key: &str, security_token: Option<&str>) -> Option<String> {
        testing::refusal(&read("").0.unwrap(), access_key, secret_key, security_token)
    }

    /// The names of the headers set, and the payload hash that was signed.
    fn sign(options: &str, headers: &[(&'static str, &'static str)], body: &[u8]) -> (Vec<String>, String) {
        let provider = read(options).0.unwrap();
        let mut map = HeaderMap::new();
        map.insert(HOST, HeaderValue::from_static("h"));
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let method = &Method::POST;
        let body = if provider.body(method, &map) == BodyNeed::Whole { body } else { b"" };
        let request = Request { method, path: "/", query: None, headers: &map, body, time: Timestamp(0), nonce: "" };
        let signer = provider.signer(&provider.source().load().unwrap()).unwrap();
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation)).unwrap();
        let names = fields.iter().map(|(name, _)| name.to_string()).collect();
        (names, explanation.canonical_request.unwrap().rsplit('\n').next().unwrap().to_owned())
    }

    #[test]
    fn defaults_are_the_hashed_body_the_minimal_list_and_spaces() {
        let provider = read("").0.unwrap();
        assert_eq!(provider.options.payload, Payload::Hash);
        assert_eq!(provider.options.signed_headers, SignedHeaders::Listed(Vec::new()));
        assert_eq!(provider.rewrite_query("a=1+2"), Some("a=1%202".to_owned()));
        assert_eq!(read("plus = 'literal'").0.unwrap().rewrite_query("a+b"), Some("a%2Bb".to_owned()));
        assert!(!provider.is_replayable());
    }

    #[test]
    fn ids_are_ours_where_they_are_configured_and_the_callers_elsewhere() {
        let sets = |text| read(text).0.unwrap().sets();
        let always = ["X-Security-Token", "X-Sdk-Content-Sha256", "X-Sdk-Date", "Authorization"];
        assert_eq!(sets(""), always);
        assert_eq!(sets("project_id = 'p'"), [&["X-Project-Id"], always.as_slice()].concat());
        let both = [&["X-Project-Id", "X-Domain-Id"], always.as_slice()].concat();
        assert_eq!(sets("project_id = 'p'\ndomain_id = 'd'"), both);
    }

    #[test]
    fn wrong_values_are_noted_at_their_place_and_not_shown() {
        for text in [
            "iam = 'hunter2'\ndomain_id = 'auto'",
            "region = ''\nproject_id = 'auto'\niam = 'http://127.0.0.1'",
            "sts = 'http://sts.hunter2'\ndomain_id = 'auto'\niam = 'https://iam'",
            "project_id = ''",
            "domain_id = 'hunter 2'",
            "domain_id = 2",
            "payload = 'hunter2'",
            "plus = 'hunter2'",
            "signed_headers = 'hunter2'",
            "signed_headers = 1",
            "signed_headers = ['hunter 2']",
            "signed_headers = ['range', 1]",
            "signed_headers = ['Authorization']",
            "signed_headers = ['Transfer-Encoding']",
            "derived = true",
            "derived = { region = 'hunter2/', service = 's' }",
            "derived = { region = 'r', service = '' }",
            "derived = { region = 'r' }",
            "derived = { region = 'r', service = 's', hunter3 = 1 }",
        ] {
            let (provider, errors, _) = read(text);
            assert!(provider.is_none() || text.contains("hunter3") || text.starts_with("iam"), "{text}");
            let [error] = errors.as_slice() else { panic!("{text}: {errors:?}") };
            assert_eq!(error.place.line, 2, "{text}");
            assert!(!error.message.contains("hunter2"), "{text}: {}", error.message);
        }
    }

    #[test]
    fn what_has_no_effect_is_warned_about() {
        for text in ["signed_headers = ['X_A']", "region = 'cn-north-4'", "iam = 'https://iam.myhuaweicloud.com'"] {
            let (provider, errors, warnings) = read(text);
            assert!(provider.is_some() && errors.is_empty(), "{text}");
            assert_eq!(warnings.len(), 1, "{text}");
        }
    }

    #[test]
    fn the_payload_is_hashed_or_not_by_choice_type_and_emptiness() {
        const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        const LETTER: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
        let (json, text) = (("content-type", "application/json;charset=utf8"), ("content-type", "text/plain"));
        let (chunked, five) = (("transfer-encoding", "chunked"), ("content-length", "5"));
        let (zero, zeros) = (("content-length", "0"), ("content-length", "00"));
        for (payload, headers, body, expected) in [
            ("hash", &[text, five][..], "a", LETTER),
            ("hash", &[text], "", EMPTY),
            ("auto", &[five], "a", LETTER),
            ("auto", &[("content-type", ""), five], "a", LETTER),
            ("auto", &[json, five], "a", LETTER),
            ("auto", &[("content-type", "application/bson"), five], "a", LETTER),
            ("auto", &[("content-type", "application/vnd.api+json"), five], "a", UNSIGNED_PAYLOAD),
            ("auto", &[text, five], "a", UNSIGNED_PAYLOAD),
            ("auto", &[text, chunked], "a", UNSIGNED_PAYLOAD),
            ("auto", &[text], "", EMPTY),
            ("auto", &[text, zero], "", EMPTY),
            ("unsigned", &[json, five], "a", UNSIGNED_PAYLOAD),
            ("unsigned", &[chunked], "a", UNSIGNED_PAYLOAD),
            ("unsigned", &[], "", EMPTY),
            ("unsigned", &[zeros], "", EMPTY),
        ] {
            let (names, hash) = sign(&format!("payload = '{payload}'"), headers, body.as_bytes());
            assert_eq!(hash, expected, "{payload} {headers:?}");
            let is_said = names.contains(&"x-sdk-content-sha256".to_owned());
            assert_eq!(is_said, expected == UNSIGNED_PAYLOAD, "{payload} {headers:?}");
        }
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused_unseen() {
        for access_key in ["", "hunter/2", "hunter,2", "hunter2\n", "hunter 2", "hünter2"] {
            let message = refusal(access_key, "sk", None).unwrap();
            assert_eq!(message, "the access key must be visible ASCII characters without `,` and `/`");
        }
        for token in ["hunter2\r\nX-Evil: 1", "hunter2\0", "hunter2\u{7f}x", "", " \t"] {
            let message = refusal("ak", "sk", Some(token)).unwrap();
            assert!(message.starts_with("header `X-Security-Token`: the secret "), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert_eq!(refusal("ak", "", None).unwrap(), "the secret key is empty");
        assert_eq!(refusal("ak", "sk\n\0", Some("tok/+==")), None);
        assert!(read("").0.unwrap().signer(&Credential::Nothing).is_err());
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert!(!format!("{:?}", read("").0).contains("hunter2"));
    }
}
