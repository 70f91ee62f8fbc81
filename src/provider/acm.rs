//! Alibaba Cloud ACM: the `Spas-*` headers (<https://help.aliyun.com/document_detail/64129.html>).
//!
//! ```text
//! string to sign = [tenant "+"] [group "+"] milliseconds since 1970
//! Spas-AccessKey: access key
//! timeStamp: the same milliseconds
//! Spas-Signature: base64(HMAC-SHA1(secret key, string to sign))
//! Spas-SecurityToken: of temporary keys
//! ```
//!
//! - `tenant` and `group` are parameters of the query, or else of a form body. The first of a name counts, and counts as
//!   absent if it is empty; nothing is made up for an absent group. Nothing else is signed.
//! - Escapes are undone before the charset is: the second octet of a character in GBK may be an ASCII letter. On the wire
//!   there is GBK, in the HMAC always UTF-8.
//! - What the vendor's page says of a key that ends in `&`, and of a parameter named Signature, is another API's: its own
//!   samples and every client do as above.
//! - A poll (addListener) has its names inside the parameter `Probe-Modify-Request`, where clients do not look for them.
//! - A signature is good for 60 seconds. Servers listen on port 8080 in the clear; over TLS, on 443, none of the vendor's
//!   clients verifies their certificates in full.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use encoding_rs::Encoding;
use hmac::{Hmac, KeyInit, Mac};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use sha1::Sha1;

use super::verdict::{Cause, Reply, Used, Verdict};
use super::{
    Allowance, BodyNeed, Explanation, Fields, Key, Order, Provider, Registration, Request, Signer, Things, Usage,
    secret_value,
};
use crate::canonical::query::{form_decode, form_pairs, is_form};
use crate::credential::{AccessKey, Credential, ExposeSecret, Source};
use crate::settings::Table;
use crate::upstream::directory::Directory;
use crate::upstream::{Endpoint, Host, split_authority};

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "acm",
    summary: "Spas-AccessKey, timeStamp, Spas-Signature, Spas-SecurityToken",
    keys: &[
        Key {
            name: "credentials",
            default: "",
            meaning: "{ access_key = S, secret_key = S }, for temporary keys with security_token = S",
        },
        Key {
            name: "charset",
            default: "\"gbk\"",
            meaning: "what tenant and group are written in: \"gbk\", \"utf-8\", or \"auto\": a form's is what its \
                      Content-Type says, otherwise gbk",
        },
        Key {
            name: "listen_sign",
            default: "\"timestamp\"",
            meaning: "what a poll's signature covers: \"timestamp\" is it alone, as the Java client has it; \
                      \"first-entry\": tenant and group of its first entry too",
        },
        Key {
            name: "address_server",
            default: "",
            meaning: "who lists the servers, a URL or host[:port], instead of the route's `upstream`; a host without a port is asked \
                      at 8080",
        },
        Key {
            name: "retry_post",
            default: "\"unsent\"",
            meaning: "when a POST goes to the next server: \"unsent\", if it provably was not sent, or \"always\"",
        },
        Key {
            name: "rate_limit",
            default: "true",
            meaning: "keep to the documented limits: of one configuration 10 reads and 5 changes a second, and 30 polls \
                      that wait; what is beyond them for more than half a second is answered 429",
        },
    ],
    credential_headers: &["Spas-*", "timeStamp"],
    id_headers: &[],
    finds_upstream: false,
    read: |table| Acm::read(table).map(|provider| Box::new(provider) as Box<dyn Provider>),
};

#[derive(Debug)]
struct Acm {
    source: Source,
    charsets: Charsets,
    listen_sign: ListenSign,
    /// Who lists the servers, and the key that names it.
    address_server: Option<(Endpoint, String)>,
    repeats_posts: bool,
    rate_limit: bool,
}

/// What tenant and group are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Charsets {
    query: Charset,
    /// `None`: what its Content-Type says.
    form: Option<Charset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charset {
    Gbk,
    Utf8,
    /// Named by a form, and not spoken here.
    Unknown,
}

/// What the signature of a poll covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenSign {
    Timestamp,
    FirstEntry,
}

impl Acm {
    fn read(table: &Table<'_>) -> Option<Self> {
        let source = Source::read(table);
        let always = |charset| Charsets { query: charset, form: Some(charset) };
        let auto = Charsets { query: Charset::Gbk, form: None };
        let charsets = table.get("charset").map_or(Some(always(Charset::Gbk)), |value| {
            value.choice(&[("gbk", always(Charset::Gbk)), ("utf-8", always(Charset::Utf8)), ("auto", auto)])
        });
        let listen_sign = table.get("listen_sign").map_or(Some(ListenSign::Timestamp), |value| {
            value.choice(&[("timestamp", ListenSign::Timestamp), ("first-entry", ListenSign::FirstEntry)])
        });
        let address_server =
            table.get("address_server").map(|value| Some((value.parse(address_server)?, value.path().to_owned())));
        let repeats_posts =
            table.get("retry_post").map_or(Some(false), |value| value.choice(&[("unsent", false), ("always", true)]));
        let rate_limit = table.get("rate_limit").map_or(Some(true), |value| value.boolean());
        Some(Self {
            source: source?,
            charsets: charsets?,
            listen_sign: listen_sign?,
            address_server: address_server.map_or(Some(None), |read| read.map(Some))?,
            repeats_posts: repeats_posts?,
            rate_limit: rate_limit?,
        })
    }
}

impl Provider for Acm {
    fn source(&self) -> &Source {
        &self.source
    }

    fn sets(&self) -> Vec<String> {
        ["Spas-AccessKey", "timeStamp", "Spas-Signature", "Spas-SecurityToken"].map(str::to_owned).to_vec()
    }

    fn signer(&self, credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        let Credential::AccessKey(credential) = credential else {
            return Err("expected an access key and its secret".to_owned());
        };
        Ok(Arc::new(AcmSigner::new(credential, self.charsets, self.listen_sign)?))
    }

    fn body(&self, _method: &Method, headers: &HeaderMap) -> BodyNeed {
        // What may be a form or not is refused when it is signed.
        if is_form(headers) == Some(false) { BodyNeed::Nothing } else { BodyNeed::Whole }
    }

    fn sdk(&self, authority: &str) -> Option<String> {
        Some(format!("ACMClient(\"{authority}\", \"NAMESPACE\", \"any\", \"any\")"))
    }

    /// A poll is answered when something changes, or after the time that it names.
    fn deadline(&self, headers: &HeaderMap) -> Option<Duration> {
        let milliseconds = headers.get(POLL)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_millis(milliseconds).min(LONGEST_POLL) + POLL_MARGIN)
    }

    fn allowance(&self) -> Option<Allowance> {
        self.rate_limit.then_some(ALLOWANCE)
    }

    /// What names a configuration reads it if it is a GET or names several at once, as the calls `batch*` do, and changes
    /// it otherwise.
    fn usage(&self, method: &Method, query: Option<&str>, headers: &HeaderMap, body: &[u8]) -> Usage {
        let form = if is_form(headers) == Some(true) { body } else { b"" };
        let pairs = form_pairs(query.unwrap_or_default().as_bytes()).chain(form_pairs(form));
        let [tenant, group, one, several, probe] = firsts(pairs, ["tenant", "group", "dataId", "dataIds", PROBE]);
        if probe.is_some() {
            // What the server answers at once has no place among those that wait.
            let is_at_once = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"true");
            let waits = headers.contains_key(POLL) && !headers.get(AT_ONCE).is_some_and(is_at_once);
            return if waits { Usage::Poll { unchanged: "" } } else { Usage::Nothing };
        }
        if !self.rate_limit {
            return Usage::Nothing;
        }
        let [tenant, group] = [tenant, group].map(|name| form_decode(name.unwrap_or_default()));
        let ids = form_decode(several.or(one).unwrap_or_default());
        let ids = ids.split(|octet| several.is_some() && *octet == FIELD_END).filter(|id| !id.is_empty());
        let names: Vec<_> = ids.take(MOST_IDS).map(<[u8]>::to_vec).collect();
        if names.is_empty() {
            return Usage::Nothing;
        }
        let things = Things { space: [tenant, group].join(&FIELD_END), names };
        match *method {
            Method::GET | Method::HEAD => Usage::Reads(things),
            _ if several.is_some() => Usage::Reads(things),
            _ => Usage::Changes(things),
        }
    }

    fn judges(&self, status: StatusCode) -> bool {
        status == StatusCode::FORBIDDEN
    }

    /// A 403 says that the access key, the signature, the time or the namespace is wrong, and not which: its body is free
    /// text that no document describes. So only what can be told from outside is acted on.
    fn verdict(&self, reply: &Reply<'_>) -> Verdict {
        let Used { is_temporary, age } = reply.credential;
        let (cause, advice) = if reply.is_off_by(CLOCK_WINDOW) {
            (Cause::Clock(None), "set this machine's clock: a signature is good for 60 seconds")
        } else if is_temporary && age > SETTLED {
            (Cause::Credential, "fetch the temporary keys anew, and check that their role may use the namespace")
        } else {
            let advice = "check the access key, its secret and that they may use the namespace; \
                          `countersign sign --explain` shows which of tenant and group are signed";
            (Cause::Signature, advice)
        };
        Verdict { advice: advice.into(), ..Verdict::of(cause) }
    }

    /// Its clients stay with one server too.
    fn order(&self) -> Order {
        Order::Stay
    }

    fn directory(&self, secure: bool) -> Option<Directory> {
        let (endpoint, key) = self.address_server.clone()?;
        Some(Directory { endpoint, key, target: DISCOVERY, secure, port: if secure { 443 } else { 8080 } })
    }

    fn repeats_posts(&self) -> bool {
        self.repeats_posts
    }

    /// A client that looks for servers is to find this one.
    fn answer(&self, method: &Method, path: &str, (host, port): &(Host, Option<u16>)) -> Option<String> {
        // A line without a port would mean 8080.
        is_discovery(method, path).then(|| format!("{host}:{}\n", port.unwrap_or(80)))
    }
}

struct AcmSigner {
    access_key: HeaderValue,
    /// Keyed with the secret.
    secret: Hmac<Sha1>,
    security_token: Option<HeaderValue>,
    charsets: Charsets,
    listen_sign: ListenSign,
}

impl AcmSigner {
    fn new(credential: &AccessKey, charsets: Charsets, listen_sign: ListenSign) -> Result<Self, String> {
        let AccessKey { access_key, secret_key, security_token } = credential;
        let is_visible = !access_key.is_empty() && access_key.bytes().all(|octet| octet.is_ascii_graphic());
        let access_key = HeaderValue::from_str(access_key).ok().filter(|_| is_visible);
        if secret_key.expose_secret().is_empty() {
            return Err("the secret key is empty".to_owned());
        }
        let security_token = security_token.as_ref().map(|token| secret_value("Spas-SecurityToken", token));
        let secret = secret_key.expose_secret().as_bytes();
        Ok(Self {
            access_key: access_key.ok_or("the access key must be visible ASCII characters")?,
            secret: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"),
            security_token: security_token.transpose()?,
            charsets,
            listen_sign,
        })
    }

    /// Tenant and group, each if it is there.
    fn names<'r>(&self, request: &Request<'r>) -> Result<[Option<Cow<'r, str>>; 2], String> {
        let Charsets { query, form } = self.charsets;
        let (body, form) = match is_form(request.headers) {
            Some(true) => (request.body, form.unwrap_or_else(|| named_charset(request.headers))),
            Some(false) => (b"".as_slice(), query),
            None => return Err("a form's parameters are signed: send one Content-Type with one media type".to_owned()),
        };
        let of = |octets, charset| form_pairs(octets).map(move |(name, value)| (name, Raw { value, charset }));
        let pairs = of(request.query.unwrap_or_default().as_bytes(), query).chain(of(body, form));
        let [tenant, group, probe] = firsts(pairs, ["tenant", "group", PROBE]);
        if let Some(probe) = probe.filter(|probe| self.listen_sign == ListenSign::FirstEntry && !probe.value.is_empty())
        {
            let octets = probe.unescape(PROBE)?;
            let entry = octets.split(|octet| *octet == ENTRY_END).next().unwrap_or_default();
            // What is asked for, its group, the MD5 of what the client has, and perhaps the tenant.
            let field = |index| entry.split(|octet| *octet == FIELD_END).nth(index).unwrap_or_default();
            let text = |name, index| probe.charset.decode(name, Cow::Owned(field(index).to_vec()));
            return Ok([text("tenant", 3)?, text("group", 1)?]);
        }
        let text =
            |name, raw: Option<Raw<'r>>| raw.map_or(Ok(None), |raw| raw.charset.decode(name, raw.unescape(name)?));
        Ok([text("tenant", tenant)?, text("group", group)?])
    }
}

impl Signer for AcmSigner {
    fn sign(&self, request: &Request<'_>, explain: Option<&mut Explanation>) -> Result<Fields, String> {
        if is_discovery(request.method, request.path) {
            return Err(format!(
                "`{DISCOVERY}` is never sent on: ask the daemon, which answers with the address in `Host`"
            ));
        }
        let names = self.names(request)?;
        let time = request.time.0.to_string();
        let length: usize = names.iter().flatten().map(|name| name.len() + 1).sum();
        let mut string_to_sign = String::with_capacity(length + time.len());
        for name in names.iter().flatten() {
            string_to_sign.push_str(name);
            string_to_sign.push('+');
        }
        string_to_sign.push_str(&time);

        let mut hmac = self.secret.clone();
        hmac.update(string_to_sign.as_bytes());
        let mut signature = [0; BASE64_OF_SHA1];
        let length = BASE64_STANDARD.encode_slice(hmac.finalize().into_bytes(), &mut signature);
        debug_assert_eq!(length, Ok(BASE64_OF_SHA1));

        if let Some(explain) = explain {
            let [tenant, group] = names.map(|name| name.map(Cow::into_owned));
            explain.parameters = vec![("tenant", tenant), ("group", group)];
            explain.string_to_sign = Some(string_to_sign);
        }

        let unfit = |_| "the signature does not fit into a header".to_owned();
        let mut signature = HeaderValue::from_bytes(&signature).map_err(unfit)?;
        signature.set_sensitive(true);
        let mut fields = Fields::new();
        fields.push((ACCESS_KEY.clone(), self.access_key.clone()));
        fields.push((TIME.clone(), HeaderValue::try_from(time).map_err(unfit)?));
        fields.push((SIGNATURE.clone(), signature));
        fields.extend(self.security_token.iter().map(|token| (SECURITY_TOKEN.clone(), token.clone())));
        Ok(fields)
    }
}

/// The first value of each of these parameters.
fn firsts<'r, T, const N: usize>(
    pairs: impl Iterator<Item = (&'r [u8], T)>,
    names: [&'static str; N],
) -> [Option<T>; N] {
    let mut found = [const { None }; N];
    for (name, value) in pairs {
        let name = form_decode(name);
        if let Some((first, _)) = found.iter_mut().zip(names).find(|(_, known)| known.as_bytes() == &*name) {
            first.get_or_insert(value);
        }
    }
    found
}

/// A parameter's value as it came.
#[derive(Clone, Copy)]
struct Raw<'r> {
    value: &'r [u8],
    charset: Charset,
}

impl<'r> Raw<'r> {
    fn unescape(self, name: &str) -> Result<Cow<'r, [u8]>, String> {
        let mut escapes = self.value.split(|octet| *octet == b'%').skip(1);
        if escapes.all(|after| matches!(after, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()))
        {
            return Ok(form_decode(self.value));
        }
        Err(format!("parameter `{name}` has a broken escape: write % as %25"))
    }
}

impl Charset {
    /// A parameter's text, if it is not empty. An error where the servers would find other characters in it, or none: no
    /// signature could be right then.
    fn decode<'r>(self, name: &str, octets: Cow<'r, [u8]>) -> Result<Option<Cow<'r, str>>, String> {
        let (text, mistake) = match self {
            Self::Gbk if !octets.is_ascii() => (gbk(&octets).map(Cow::Owned), "is not in GBK"),
            Self::Unknown if !octets.is_ascii() => (None, "is in a charset that is neither GBK nor UTF-8"),
            _ => (utf8(octets), "is not in UTF-8"),
        };
        let text = text.ok_or_else(|| format!("parameter `{name}` {mistake}: mend it, or the route's `charset`"))?;
        Ok((!text.is_empty()).then_some(text))
    }
}

/// The charset that a form's Content-Type names, GBK if it names none.
fn named_charset(headers: &HeaderMap) -> Charset {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let label = value.split(|octet| *octet == b';').skip(1).find_map(|parameter| {
        let equals = parameter.iter().position(|octet| *octet == b'=')?;
        let (name, value) = parameter.split_at_checked(equals)?;
        let value = value.get(1..)?.trim_ascii();
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        name.trim_ascii().eq_ignore_ascii_case(b"charset").then(|| quoted.unwrap_or(value))
    });
    match label.map(Encoding::for_label) {
        None => Charset::Gbk,
        Some(Some(encoding)) if encoding == encoding_rs::GBK => Charset::Gbk,
        Some(Some(encoding)) if encoding == encoding_rs::UTF_8 => Charset::Utf8,
        Some(_) => Charset::Unknown,
    }
}

/// The text of characters of one and two octets in GBK. The web's decoder takes those of GB 18030, of four octets, as
/// well.
fn gbk(octets: &[u8]) -> Option<String> {
    let mut rest = octets;
    loop {
        rest = match rest {
            [] => break,
            [0..=0x7f, rest @ ..] => rest,
            [lead @ 0x81..=0xfe, trail @ (0x40..=0x7e | 0x80..=0xfe), rest @ ..]
                if !is_disputed(u16::from_be_bytes([*lead, *trail])) =>
            {
                rest
            }
            _ => return None,
        };
    }
    encoding_rs::GBK.decode_without_bom_handling_and_without_replacement(octets).map(Cow::into_owned)
}

/// True where Java's GBK and the web's differ: the former has characters of its private area for what the latter took from
/// GB 18030. All else of one and two octets is the same.
fn is_disputed(code: u16) -> bool {
    matches!(
        code,
        0xa3a0
            | 0xa6d9..=0xa6df
            | 0xa6ec..=0xa6ed
            | 0xa6f3
            | 0xa892
            | 0xa8bc
            | 0xa8bf
            | 0xa989..=0xa995
            | 0xfe50..=0xfea0
    )
}

fn utf8(octets: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match octets {
        Cow::Borrowed(octets) => std::str::from_utf8(octets).ok().map(Cow::Borrowed),
        Cow::Owned(octets) => String::from_utf8(octets).ok().map(Cow::Owned),
    }
}

/// Who lists the servers: a URL, or `host[:port]`.
fn address_server(text: &str) -> Result<Endpoint, &'static str> {
    if text.contains("://") {
        return Endpoint::parse(text);
    }
    let (host, port) = split_authority(text)?;
    Endpoint::parse(&format!("http://{host}:{}", port.unwrap_or(8080)))
}

fn is_discovery(method: &Method, path: &str) -> bool {
    path == DISCOVERY && matches!(*method, Method::GET | Method::HEAD)
}

/// Where clients ask for the servers.
const DISCOVERY: &str = "/diamond-server/diamond";

/// What the vendor's page on limits grants an address.
const ALLOWANCE: Allowance = Allowance {
    reads: NonZeroU32::new(10).expect("more than none"),
    changes: NonZeroU32::new(5).expect("more than none"),
    polls: 30,
};
/// How many configurations one request is counted for: no client asks for nearly as many, and each takes memory.
const MOST_IDS: usize = 1000;

/// What a poll asks for.
const PROBE: &str = "Probe-Modify-Request";
/// Says that a poll is to be answered at once.
const AT_ONCE: &str = "longpullingnohangup";
/// How long a poll lasts, in milliseconds.
const POLL: &str = "longpullingtimeout";
/// What clients wait beyond that.
const POLL_MARGIN: Duration = Duration::from_secs(10);
/// Clients poll for half a minute: this only keeps nonsense out of what is reckoned with.
const LONGEST_POLL: Duration = Duration::from_secs(86_400);

/// What is too much for a signature that is good for 60 seconds, its way included.
const CLOCK_WINDOW: Duration = Duration::from_secs(30);
/// How old temporary keys are that cannot be too new to be known.
const SETTLED: Duration = Duration::from_secs(60);

const ENTRY_END: u8 = 1;
const FIELD_END: u8 = 2;

const BASE64_OF_SHA1: usize = 28;

static ACCESS_KEY: HeaderName = HeaderName::from_static("spas-accesskey");
static TIME: HeaderName = HeaderName::from_static("timestamp");
static SIGNATURE: HeaderName = HeaderName::from_static("spas-signature");
static SECURITY_TOKEN: HeaderName = HeaderName::from_static("spas-securitytoken");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing;
    use crate::settings::Remark;

    fn read(text: &str) -> (Option<Acm>, Vec<Remark>, Vec<Remark>) {
        testing::read(text, Acm::read)
    }

    fn refusal(access_key: &str, secret_key: &str, security_token: Option<&str>) -> Option<String> {
        testing::refusal(&read("").0.unwrap(), access_key, secret_key, security_token)
    }

    #[test]
    fn every_key_has_its_values() {
        let written = "charset = 'gbk'\nlisten_sign = 'timestamp'\nretry_post = 'unsent'\nrate_limit = true";
        for text in [
            "",
            written,
            "rate_limit = false",
            "charset = 'auto'\nlisten_sign = 'first-entry'",
            "retry_post = 'always'",
        ] {
            let (provider, errors, warnings) = read(text);
            assert!(provider.is_some() && errors.is_empty() && warnings.is_empty(), "{text}: {errors:?} {warnings:?}");
            assert_eq!(provider.unwrap().repeats_posts(), text.contains("always"));
        }
        for (text, plain, secure) in [
            ("acm.aliyun.com", "http://acm.aliyun.com:8080", 443),
            ("10.0.0.1:9000", "http://10.0.0.1:9000", 443),
            ("https://acm.test", "https://acm.test", 443),
        ] {
            let provider = read(&format!("address_server = '{text}'")).0.unwrap();
            let directory = provider.directory(false).unwrap();
            assert_eq!((directory.endpoint.to_string().as_str(), directory.port), (plain, 8080));
            assert_eq!(provider.directory(true).unwrap().port, secure);
        }
        assert_eq!(read("").0.unwrap().directory(true), None);
    }

    #[test]
    fn wrong_values_are_noted_at_their_place_and_not_shown() {
        for text in [
            "charset = 'hunter2'",
            "charset = 1",
            "listen_sign = 'hunter2'",
            "address_server = 'http://hunter2:8080/x'",
            "address_server = 'hunter2:x'",
            "address_server = 1",
            "retry_post = 'hunter2'",
            "retry_post = true",
            "rate_limit = 'hunter2'",
        ] {
            let (provider, errors, _) = read(text);
            assert!(provider.is_none(), "{text}");
            let [error] = errors.as_slice() else { panic!("{text}: {errors:?}") };
            assert_eq!(error.place.line, 2, "{text}");
            assert!(!error.message.contains("hunter"), "{text}: {}", error.message);
        }
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused_unseen() {
        for access_key in ["", "hunter2\n", "hunter 2", "hünter2"] {
            let message = refusal(access_key, "sk", None).unwrap();
            assert_eq!(message, "the access key must be visible ASCII characters");
        }
        for token in ["hunter2\r\nX-Evil: 1", "hunter2\0", "", " \t"] {
            let message = refusal("ak", "sk", Some(token)).unwrap();
            assert!(message.starts_with("header `Spas-SecurityToken`: ") && !message.contains("hunter2"), "{message}");
        }
        assert_eq!(refusal("ak", "", None).unwrap(), "the secret key is empty");
        assert_eq!(refusal("STS.Nx/+=", "sk\n\0", Some("CAIS/+=")), None);
        assert!(read("").0.unwrap().signer(&Credential::Nothing).is_err());
    }

    #[test]
    fn a_poll_may_take_what_it_names_and_ten_seconds() {
        let provider = read("").0.unwrap();
        let deadline = |value: &'static str| {
            let headers =
                HeaderMap::from_iter([("longPullingTimeout".parse().unwrap(), HeaderValue::from_static(value))]);
            provider.deadline(&headers).map(|deadline| deadline.as_millis())
        };
        assert_eq!(deadline("30000"), Some(40_000));
        assert_eq!(deadline(" 0 "), Some(10_000));
        assert_eq!(deadline("3600000"), Some(3_610_000));
        assert_eq!(deadline("18446744073709551615"), Some(86_410_000));
        for wrong in ["", "-1", "30s", "1e9", "99999999999999999999"] {
            assert_eq!(deadline(wrong), None, "{wrong}");
        }
        assert_eq!(provider.deadline(&HeaderMap::new()), None);
    }

    /// What a request counts as; parts of names that are joined are shown with `|` between them.
    fn counted(method: &Method, query: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> String {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let query = Some(query).filter(|query| !query.is_empty());
        let (what, Things { space, names }) =
            match read("").0.unwrap().usage(method, query, &headers.collect(), body.as_ref()) {
                Usage::Nothing => return "nothing".to_owned(),
                Usage::Poll { unchanged } => return format!("a poll{unchanged}"),
                Usage::Reads(things) => ("reads", things),
                Usage::Changes(things) => ("changes", things),
            };
        let names: Vec<_> = names.iter().map(|name| name.escape_ascii().to_string()).collect();
        format!("{what} {}: {}", space.escape_ascii(), names.join(" ")).replace("\\x02", "|")
    }

    const FORM: &[(&str, &str)] = &[("Content-Type", "application/x-www-form-urlencoded; charset=GBK")];

    #[test]
    fn what_names_a_configuration_reads_or_changes_it() {
        for (query, expected) in [
            ("dataId=d&group=g&tenant=t", "reads t|g: d"),
            ("%64ataId=a+b%2B&group=%e9F", r"reads |\xe9F: a b+"),
            ("dataId=d&group=%E9%46&tenant=", r"reads |\xe9F: d"),
            ("dataId=d&dataId=e&group=g&group=h", "reads |g: d"),
            ("dataId=&group=g", "nothing"),
            ("dataid=d&group=g", "nothing"),
            ("method=getAllConfigByTenant&tenant=t&pageNo=1&pageSize=10", "nothing"),
            ("", "nothing"),
        ] {
            assert_eq!(counted(&Method::GET, query, &[], ""), expected, "{query}");
            assert_eq!(counted(&Method::HEAD, query, FORM, ""), expected, "{query}");
        }
        for (query, body, expected) in [
            ("method=syncUpdateAll", "dataId=d&group=g&tenant=t&content=dataId%3De", "changes t|g: d"),
            ("method=deleteAllDatums&tenant=t", "%64%61%74%61%49%64=d&group=%C5%E4&tenant=u", r"changes t|\xc5\xe4: d"),
            ("dataId=d", "dataId=e&dataId=f", "changes |: d"),
            ("method=batchGetConfig", "dataIds=a%02b%02%02a&group=g&tenant=t", "reads t|g: a b a"),
            ("method=batchQuery", "dataIds=%02&dataId=d&group=g", "nothing"),
            ("method=syncUpdateAll", "group=g", "nothing"),
        ] {
            assert_eq!(counted(&Method::POST, query, FORM, body), expected, "{query} {body}");
            assert_eq!(counted(&Method::POST, "", &[("Content-Type", "text/plain")], body), "nothing", "{body}");
        }
        let many = format!("dataIds={}", "d%02".repeat(2 * MOST_IDS));
        assert_eq!(counted(&Method::POST, "", FORM, many).split(' ').count(), 2 + MOST_IDS);
    }

    #[test]
    fn a_poll_waits_unless_it_is_to_be_answered_at_once() {
        let body = "Probe-Modify-Request=d%02g%02%01";
        let poll = |headers: &[(&str, &str)]| counted(&Method::POST, "", &[FORM, headers].concat(), body);
        let timeout = ("longPullingTimeout", "30000");
        assert_eq!(poll(&[timeout]), "a poll");
        assert_eq!(poll(&[timeout, ("longPullingNoHangUp", "false")]), "a poll");
        assert_eq!(poll(&[timeout, ("longPullingNoHangUp", " True")]), "nothing");
        assert_eq!(poll(&[]), "nothing");
        assert_eq!(counted(&Method::POST, "", &[timeout], body), "nothing");
        assert_eq!(counted(&Method::POST, body, &[timeout], ""), "a poll");
        assert_eq!(counted(&Method::POST, "", &[FORM, &[timeout]].concat(), "dataId=d"), "changes |: d");
    }

    #[test]
    fn the_limits_are_the_documented_ones_or_none() {
        let allowance = |text| read(text).0.unwrap().allowance();
        let Allowance { reads, changes, polls } = allowance("").unwrap();
        assert_eq!((reads.get(), changes.get(), polls), (10, 5, 30));
        assert_eq!(allowance("rate_limit = true"), allowance(""));
        assert_eq!(allowance("rate_limit = false"), None);
    }

    #[test]
    fn who_looks_for_servers_finds_the_address_that_was_used() {
        let provider = read("").0.unwrap();
        let answer = |method, path, authority| {
            let authority = split_authority(authority).unwrap();
            provider.answer(&method, path, &authority)
        };
        assert_eq!(answer(Method::GET, DISCOVERY, "acm.localhost:8080").unwrap(), "acm.localhost:8080\n");
        assert_eq!(answer(Method::HEAD, DISCOVERY, "ACM.localhost").unwrap(), "acm.localhost:80\n");
        assert_eq!(answer(Method::GET, DISCOVERY, "[::1]:8081").unwrap(), "[::1]:8081\n");
        assert_eq!(answer(Method::POST, DISCOVERY, "acm.localhost"), None);
        for other in ["/diamond-server/diamond/", "/diamond-server/diamond-unit-a", "/diamond-server//diamond", "/"] {
            assert_eq!(answer(Method::GET, other, "acm.localhost"), None, "{other}");
        }
    }

    #[test]
    fn gbk_is_what_java_and_the_web_agree_on() {
        let mut disputed = 0;
        for code in 0x8000..=u16::MAX {
            let [lead, trail] = code.to_be_bytes();
            let is_gbk = (0x81..=0xfe).contains(&lead) && (0x40..=0xfe).contains(&trail) && trail != 0x7f;
            disputed += usize::from(is_gbk && is_disputed(code));
            let text = gbk(&[lead, trail]);
            assert_eq!(text.is_some(), is_gbk && !is_disputed(code), "{code:x}");
            assert!(text.is_none_or(|text| text.chars().count() == 1 && text != "\u{fffd}"), "{code:x}");
        }
        // The differing ones are 101; the others lie between those of the last row.
        assert_eq!(disputed, 107);
        assert_eq!(gbk(b"\xc5\xe4\xd6\xc3\xd7\xe9 \xe9F").unwrap(), "配置组 镕");
        assert_eq!(gbk(b"\xa1\xa4\xa1\xaa\xfe\x4f").unwrap(), "·—\u{fa29}");
        // Four octets of GB 18030, the web's euro sign, and characters that lack their ends.
        for wrong in [b"\x81\x30\x81\x30".as_slice(), b"\x80", b"\xff\x40", b"a\xc5", b"\xc5\xe4\xd6", b"\xc5\x20"] {
            assert_eq!(gbk(wrong), None, "{wrong:x?}");
        }
    }

    #[test]
    fn a_form_may_name_its_charset() {
        let named = |value: &'static str| {
            named_charset(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        for gbk in ["a/b", "a/b;charset=GBK", "a/b; Charset = \"gbk\"", "a/b;x=1;charset=gb2312", "a/b; charset", ""] {
            assert_eq!(named(gbk), Charset::Gbk, "{gbk}");
        }
        assert_eq!(named("a/b; charset=UTF-8; charset=gbk"), Charset::Utf8);
        for unknown in ["a/b; charset=", "a/b; charset=gb18030", "a/b; charset=iso-8859-1", "a/b; charset=\"gbk"] {
            assert_eq!(named(unknown), Charset::Unknown, "{unknown}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert!(!format!("{:?}", read("").0).contains("hunter2"));
    }
}
