//! The demonstration's verifiers against requests that the vendors' own SDKs signed.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::clock::Timestamp;
use countersign::credential::AccessKey;
use countersign::demo::verify::{Acm, AcsRoa, Bce, Received, Refusal, Scheme, SdkHmac, Tem, TemAlgorithm};
use encoding_rs::Encoding;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

/// What a proxy takes off a caller's request before it signs, as far as the signature could cover it.
const REPLACED: [&str; 13] = [
    "host",
    "authorization",
    "x-bce-date",
    "x-bce-security-token",
    "x-auth-token",
    "x-sdk-date",
    "x-sdk-content-sha256",
    "x-security-token",
    "spas-accesskey",
    "spas-signature",
    "spas-securitytoken",
    "x-acs-security-token",
    "x-acs-accesskey-id",
];

/// What else it does before the ROA signature.
const REPLACED_BY_ACS: [&str; 2] = ["date", "content-md5"];

#[test]
fn every_vector_of_acm_is_accepted_and_no_other_secret_would_do() {
    let acm = |vector: &Value, secret_key: Option<&str>| -> Box<dyn Scheme> {
        let charset = vector["options"]["charset"].as_str().unwrap_or("gbk");
        let charset = Encoding::for_label(charset.as_bytes()).expect("a charset");
        Box::new(Acm { keys: vec![access_key(vector, "access_key", "secret_key", secret_key)].into(), charset })
    };
    assert_eq!(judge_all("spas", acm, "the signature does not match"), 45);
}

#[test]
fn every_vector_of_bce_is_accepted_and_no_other_secret_would_do() {
    let bce = |vector: &Value, secret_key: Option<&str>| -> Box<dyn Scheme> {
        Box::new(Bce { keys: vec![access_key(vector, "access_key_id", "secret_access_key", secret_key)].into() })
    };
    assert_eq!(judge_all("bce-auth-v1", bce, "SignatureDoesNotMatch"), 46);
}

#[test]
fn every_vector_of_tem_is_accepted_and_no_other_secret_would_do() {
    let tem = |vector: &Value, secret_key: Option<&str>| -> Box<dyn Scheme> {
        let option = |name: &str| vector["options"][name].as_str();
        let algorithm = match option("algorithm") {
            Some("L0.PAINTEXT" | "L0.PLAINTEXT") => TemAlgorithm::PlainText,
            Some("L0.SHA1") => TemAlgorithm::Sha1OfSecret,
            Some("L3.SHA1") => TemAlgorithm::Sha1,
            _ => TemAlgorithm::Sha256,
        };
        let mut tem = Tem::new(vec![access_key(vector, "access_key", "secret_key", secret_key)], algorithm);
        tem.has_query = option("url_form") != Some("path");
        if let Some(methods) = vector["options"]["params_methods"].as_array() {
            tem.params_methods = methods.iter().map(|method| text_of(method).parse().unwrap()).collect();
        }
        Box::new(tem)
    };
    assert_eq!(judge_all("tem-auth", tem, "a token that does not match"), 41);
}

#[test]
fn every_vector_of_acs_roa_is_accepted_and_no_other_secret_would_do() {
    let acs = |vector: &Value, secret_key: Option<&str>| -> Box<dyn Scheme> {
        Box::new(AcsRoa::new(vec![access_key(vector, "access_key_id", "access_key_secret", secret_key)]))
    };
    assert_eq!(judge_all("acs-roa", acs, "SignatureDoesNotMatch"), 42);
}

#[test]
fn every_vector_of_huawei_is_accepted_and_no_other_secret_would_do() {
    let huawei = |vector: &Value, secret_key: Option<&str>| -> Box<dyn Scheme> {
        let option = |name: &str| vector["options"][name].as_str().map(str::to_owned);
        let derived = option("region_id").zip(option("derived_service"));
        Box::new(SdkHmac { keys: vec![access_key(vector, "access_key", "secret_key", secret_key)].into(), derived })
    };
    assert_eq!(judge_all("sdk-hmac-sha256", huawei, "verify aksk signature fail"), 44);
}

/// Judges every vector of a file with the right secret and with a wrong one, and returns how many there are.
fn judge_all(file: &str, scheme: impl Fn(&Value, Option<&str>) -> Box<dyn Scheme>, refusal: &str) -> usize {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format!("{file}.jsonl"));
    let text = fs::read_to_string(file).unwrap();
    for line in text.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let id = vector["id"].as_str().unwrap();
        let verified = verify(&vector, scheme(&vector, None).as_ref());
        assert!(verified.is_ok(), "{id}: {verified:?}");
        let refused = verify(&vector, scheme(&vector, Some("another")).as_ref()).unwrap_err();
        assert!(format!("{} {}", refused.code, refused.message).contains(refusal), "{id}: {refused:?}");
    }
    text.lines().count()
}

fn access_key(vector: &Value, access_key: &str, own_secret: &str, secret_key: Option<&str>) -> AccessKey {
    let credentials = &vector["credentials"];
    AccessKey {
        access_key: text_of(&credentials[access_key]).to_owned(),
        secret_key: secret_key.unwrap_or(text_of(&credentials[own_secret])).into(),
        security_token: credentials["security_token"].as_str().map(Into::into),
    }
}

fn verify(vector: &Value, scheme: &dyn Scheme) -> Result<String, Refusal> {
    let (request, expect) = (&vector["request"], &vector["expect"]);
    let (_, rest) = text_of(&request["url"]).split_once("://").expect("a URL");
    let (_, target) = rest.split_once('/').expect("a URL with a path");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = format!("/{path}");
    let mut headers = HeaderMap::new();
    for (name, value) in fields(&request["headers"]) {
        let is_acs = vector["scheme"] == "acs-roa" && REPLACED_BY_ACS.contains(&name.as_str());
        if !is_acs && !REPLACED.contains(&name.as_str()) {
            headers.append(name, value);
        }
    }
    for (name, value) in fields(&expect["headers"]) {
        headers.insert(name, value);
    }
    let method: Method = text_of(&request["method"]).parse().expect("a method");
    let body = STANDARD.decode(text_of(&request["body_base64"])).expect("base64");
    let time = Timestamp(vector["time_unix_ms"].as_i64().expect("a time"));
    scheme.verify(&Received { method: &method, path: &path, query, headers: &headers, body: &body, client: None, time })
}

fn fields(headers: &Value) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    headers.as_array().expect("a list").iter().map(|field| {
        let value = HeaderValue::from_bytes(text_of(&field[1]).as_bytes()).expect("a value");
        (text_of(&field[0]).parse().expect("a name"), value)
    })
}

fn text_of(value: &Value) -> &str {
    value.as_str().expect("text")
}
