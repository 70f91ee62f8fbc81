//! Signatures compared with those of the vendors' own SDKs, stage by stage.

#[path = "support/signing.rs"]
mod signing;

use std::collections::BTreeSet;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use countersign::canonical::headers::is_hop_by_hop;
use countersign::clock::Timestamp;
use countersign::provider::{ALWAYS, BodyNeed, Explanation, Provider, Request};
use countersign::upstream::Endpoint;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;
use sha1::Sha1;
use sha2::Sha256;

/// What differed, by vector and stage.
#[derive(Default)]
struct Differences(String);

impl Differences {
    fn compare(&mut self, id: &str, stage: &str, found: Option<&str>, expected: Option<&str>) {
        if found != expected {
            let _ = writeln!(self.0, "{id}: {stage}\n  expected {expected:?}\n  found    {found:?}");
        }
    }
}

/// The vectors of a scheme, and what is particular about it.
struct Scheme {
    provider: &'static str,
    vectors: &'static str,
    count: usize,
    /// A vector's credentials and options as a table of the configuration file.
    table: fn(&Value) -> String,
    /// Compares what other schemes do not have.
    compare: fn(&Value, &Explanation, &HeaderMap, &mut Differences),
}

impl Scheme {
    fn compare_all(&self) {
        let mut differences = Differences::default();
        for line in self.vectors.lines() {
            self.compare_one(&serde_json::from_str(line).expect("JSON"), &mut differences);
        }
        assert_eq!(self.vectors.lines().count(), self.count);
        assert!(differences.0.is_empty(), "\n{}", differences.0);
    }

    fn compare_one(&self, vector: &Value, differences: &mut Differences) {
        let at = |pointer| text(vector, pointer);
        let id = at("/id").expect("an id");
        let (provider, signer) = signing::configure(self.provider, &(self.table)(vector));

        let (endpoint, path, query) = target(at("/request/url").expect("a URL"));
        let query = query.map(|query| provider.rewrite_query(query).unwrap_or_else(|| query.to_owned()));
        let method = at("/request/method").and_then(|method| Method::from_bytes(method.as_bytes()).ok());
        let method = method.expect("a method");
        let body = BASE64_STANDARD.decode(at("/request/body_base64").expect("a body")).expect("base64");
        let headers = cleaned(vector, provider.as_ref(), &endpoint, &body);
        let body = if provider.body(&method, &headers) == BodyNeed::Whole { body } else { Vec::new() };
        let request = Request {
            method: &method,
            path,
            query: query.as_deref(),
            headers: &headers,
            body: &body,
            time: Timestamp(vector.pointer("/time_unix_ms").and_then(Value::as_i64).expect("a time")),
            nonce: at("/nonce").unwrap_or_default(),
        };
        let mut explanation = Explanation::default();
        let fields = signer.sign(&request, Some(&mut explanation)).expect("a request that can be signed");

        let Explanation { canonical_request, string_to_sign, .. } = &explanation;
        differences.compare(id, "canonical request", canonical_request.as_deref(), at("/expect/canonical_request"));
        let string_to_sign = string_to_sign.as_ref().or(canonical_request.as_ref());
        let expected = at("/expect/string_to_sign").filter(|text| !text.is_empty());
        differences.compare(id, "string to sign", string_to_sign.map(String::as_str), expected);
        let mut sent = headers.clone();
        let mut added: BTreeSet<_> = fields.iter().map(|(name, _)| name.to_string()).collect();
        for (name, value) in fields {
            sent.insert(name, value);
        }
        let sets = provider.sets();
        let mut unexpected: BTreeSet<_> = sets.iter().map(|name| name.to_ascii_lowercase()).collect();
        for (name, value) in pairs(vector, "/expect/headers") {
            let found = sent.get(name).and_then(|value| str::from_utf8(value.as_bytes()).ok());
            differences.compare(id, name, found, Some(value));
            if let Some(spelling) = sets.iter().find(|set| set.eq_ignore_ascii_case(name)) {
                differences.compare(id, "spelling", Some(spelling), Some(name));
            }
            unexpected.remove(&name.to_ascii_lowercase());
            added.remove(&name.to_ascii_lowercase());
        }
        for name in unexpected.union(&added) {
            differences.compare(id, name, sent.get(name).map(|_| "a header"), None);
        }
        (self.compare)(vector, &explanation, &sent, differences);
    }
}

#[test]
fn acm_signs_as_the_clients_do() {
    Scheme { provider: "acm", vectors: include_str!("vectors/spas.jsonl"), count: 45, table: acm_table, compare: acm }
        .compare_all();
}

fn acm(vector: &Value, explanation: &Explanation, sent: &HeaderMap, differences: &mut Differences) {
    let id = text(vector, "/id").expect("an id");
    let secret = text(vector, "/credentials/secret_key").unwrap_or_default();
    let string_to_sign = explanation.string_to_sign.as_deref().unwrap_or_default();
    let hmac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("a key").chain_update(string_to_sign);
    let signature = BASE64_STANDARD.encode(hmac.finalize().into_bytes());
    let header = |name| sent.get(name).and_then(|value| value.to_str().ok());
    differences.compare(id, "signature", header("spas-signature"), Some(&signature));
    let found = explanation.parameters.iter().filter_map(|(_, value)| value.as_deref());
    let found: Vec<_> = found.chain(header("timestamp")).collect();
    differences.compare(id, "parameters", Some(&found.join("+")), Some(string_to_sign));
}

fn acm_table(vector: &Value) -> String {
    let keys = ["access_key", "secret_key", "security_token"].map(|key| (key, key));
    let charset = literal(vector, "/options/charset").map(|charset| format!("charset = {charset}\n"));
    credentials(vector, &keys) + &charset.unwrap_or_default()
}

#[test]
fn bce_signs_as_the_sdk_does() {
    Scheme {
        provider: "bce",
        vectors: include_str!("vectors/bce-auth-v1.jsonl"),
        count: 46,
        table: bce_table,
        compare: bce,
    }
    .compare_all();
}

fn bce(vector: &Value, explanation: &Explanation, sent: &HeaderMap, differences: &mut Differences) {
    let at = |pointer| text(vector, pointer);
    let id = at("/id").expect("an id");
    let Explanation { canonical_request, signing_key_input, signed_headers, .. } = explanation;
    differences.compare(id, "signing key input", signing_key_input.as_deref(), at("/expect/signing_key_input"));
    // Neither key nor signature is explained: made anew from the stages before them.
    let secret = at("/credentials/secret_access_key").unwrap_or_default();
    let key = hmac(secret, signing_key_input.as_deref().unwrap_or_default());
    differences.compare(id, "signing key", Some(&key), at("/expect/signing_key_hex"));
    let signature = hmac(&key, canonical_request.as_deref().unwrap_or_default());
    let found = sent.get("authorization").and_then(|value| value.to_str().ok()?.rsplit('/').next());
    differences.compare(id, "signature", found, Some(&signature));
    let listed = sent.get("authorization").and_then(|value| value.to_str().ok()?.rsplit('/').nth(1));
    if listed != Some("") {
        differences.compare(id, "signed headers", listed, Some(&signed_headers.join(";")));
    }
}

fn bce_table(vector: &Value) -> String {
    let keys =
        [("access_key", "access_key_id"), ("secret_key", "secret_access_key"), ("security_token", "security_token")];
    let seconds = literal(vector, "/options/expiration_seconds").expect("a validity");
    let signed_headers = literal(vector, "/options/signed_headers").expect("a choice of headers");
    credentials(vector, &keys) + &format!("expires_in = \"{seconds}s\"\nsigned_headers = {signed_headers}\n")
}

#[test]
fn tem_signs_as_the_page_says() {
    Scheme {
        provider: "tem",
        vectors: include_str!("vectors/tem-auth.jsonl"),
        count: 41,
        table: |vector| {
            let keys = ["access_key", "secret_key"].map(|key| (key, key));
            credentials(vector, &keys) + &options(vector, &["algorithm", "url_form", "params_methods", "hex"])
        },
        compare: |_, _, _, _| {},
    }
    .compare_all();
}

#[test]
fn huawei_signs_as_the_sdk_does() {
    Scheme {
        provider: "huawei-aksk",
        vectors: include_str!("vectors/sdk-hmac-sha256.jsonl"),
        count: 44,
        table: huawei_table,
        compare: huawei,
    }
    .compare_all();
}

#[test]
fn acs_roa_signs_as_the_sdks_do() {
    Scheme {
        provider: "acs-roa",
        vectors: include_str!("vectors/acs-roa.jsonl"),
        count: 42,
        table: |vector| {
            let keys = [
                ("access_key", "access_key_id"),
                ("secret_key", "access_key_secret"),
                ("security_token", "security_token"),
            ];
            credentials(vector, &keys) + &options(vector, &["version", "content_md5"])
        },
        compare: acs_roa,
    }
    .compare_all();
}

fn acs_roa(vector: &Value, explanation: &Explanation, sent: &HeaderMap, differences: &mut Differences) {
    let at = |pointer| text(vector, pointer);
    let secret = at("/credentials/access_key_secret").unwrap_or_default();
    let mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("a key");
    let mac = mac.chain_update(explanation.string_to_sign.as_deref().unwrap_or_default());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let found = sent.get("authorization").and_then(|value| value.to_str().ok()?.rsplit(':').next());
    differences.compare(at("/id").expect("an id"), "signature", found, Some(&signature));
}

/// The lines of a table's other keys, where the vector's options have them.
fn options(vector: &Value, keys: &[&str]) -> String {
    let option = |key: &&str| Some(format!("{key} = {}\n", literal(vector, &format!("/options/{key}"))?));
    keys.iter().filter_map(option).collect()
}

fn huawei(vector: &Value, explanation: &Explanation, sent: &HeaderMap, differences: &mut Differences) {
    let at = |pointer| text(vector, pointer);
    let id = at("/id").expect("an id");
    let Explanation { string_to_sign, signing_key_input, signed_headers, .. } = explanation;
    let listed = sent.get("authorization").and_then(|value| value.to_str().ok()?.split("SignedHeaders=").nth(1));
    let listed = listed.and_then(|rest| rest.split(',').next());
    differences.compare(id, "signed headers", listed, Some(&signed_headers.join(";")));
    if at("/options/algorithm") == Some("V11-HMAC-SHA256") {
        let info = at("/expect/string_to_sign").and_then(|text| text.lines().nth(2));
        differences.compare(id, "signing key input", signing_key_input.as_deref(), info);
    } else {
        let secret = at("/credentials/secret_key").unwrap_or_default();
        let signature = hmac(secret, string_to_sign.as_deref().unwrap_or_default());
        let found = sent.get("authorization").and_then(|value| value.to_str().ok()?.rsplit("Signature=").next());
        differences.compare(id, "signature", found, Some(&signature));
        differences.compare(id, "signing key input", signing_key_input.as_deref(), None);
    }
}

fn huawei_table(vector: &Value) -> String {
    let keys = ["access_key", "secret_key", "security_token"].map(|key| (key, key));
    let mut table = credentials(vector, &keys);
    for key in ["project_id", "domain_id"] {
        if let Some(id) = literal(vector, &format!("/credentials/{key}")) {
            let _ = writeln!(table, "{key} = {id}");
        }
    }
    let option = |name: &str| literal(vector, &format!("/options/{name}"));
    for key in ["payload", "signed_headers"] {
        let _ = writeln!(table, "{key} = {}", option(key).expect("an option"));
    }
    if let (Some(region), Some(service)) = (option("region_id"), option("derived_service")) {
        let _ = writeln!(table, "derived = {{ region = {region}, service = {service} }}");
    }
    table
}

/// The lines of a table's `credentials`: our keys with the vendor's names for them.
fn credentials(vector: &Value, keys: &[(&str, &str)]) -> String {
    let mut lines = String::new();
    for (key, vendors) in keys {
        if let Some(value) = literal(vector, &format!("/credentials/{vendors}")) {
            let _ = writeln!(lines, "credentials.{key} = {value}");
        }
    }
    lines
}

/// A value as it may stand in a configuration file.
fn literal(vector: &Value, pointer: &str) -> Option<String> {
    vector.pointer(pointer).map(Value::to_string)
}

fn text<'v>(vector: &'v Value, pointer: &str) -> Option<&'v str> {
    vector.pointer(pointer).and_then(Value::as_str)
}

/// A URL's endpoint, raw path and raw query. No URL library: it would rewrite what is to be signed as it came.
fn target(url: &str) -> (Endpoint, &str, Option<&str>) {
    let authority = url.find("://").expect("a scheme") + 3;
    let end = url.split_at(authority).1.find(['/', '?']).map_or(url.len(), |at| authority + at);
    let (origin, target) = url.split_at(end);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = if path.is_empty() { "/" } else { path };
    (Endpoint::parse(origin).expect("an endpoint"), path, query)
}

/// The request's headers as they are when it is signed: those that the provider sets, those that carry any provider's
/// credentials, and those of the connection are gone; `Host` is the upstream's, and how a body is framed is told.
fn cleaned(vector: &Value, provider: &dyn Provider, endpoint: &Endpoint, body: &[u8]) -> HeaderMap {
    let sets = provider.sets();
    let is_credential = |name: &str| {
        ALWAYS.iter().any(|always| match always.strip_suffix('*') {
            Some(start) => name.to_ascii_lowercase().starts_with(&start.to_ascii_lowercase()),
            None => always.eq_ignore_ascii_case(name),
        })
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(vector, "/request/headers") {
        if name.eq_ignore_ascii_case("host")
            || is_hop_by_hop(name)
            || is_credential(name)
            || sets.iter().any(|set| set.eq_ignore_ascii_case(name))
        {
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    if !body.is_empty() && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers.insert(HOST, endpoint.authority().parse().expect("an authority"));
    headers
}

fn pairs<'v>(vector: &'v Value, pointer: &str) -> impl Iterator<Item = (&'v str, &'v str)> {
    let pairs = vector.pointer(pointer).and_then(Value::as_array).expect("a list of headers");
    pairs.iter().map(|pair| {
        let text = |index| pair.get(index).and_then(Value::as_str).expect("a name and a value");
        (text(0), text(1))
    })
}

fn hmac(key: &str, text: &str) -> String {
    let hmac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("a key");
    hex::encode(hmac.chain_update(text).finalize().into_bytes())
}
