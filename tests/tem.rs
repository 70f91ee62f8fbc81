//! TEM-AUTH on requests that no vector holds: compared with a second, naive implementation of the vendor's page.

#[path = "support/plain.rs"]
mod plain;
#[path = "support/signing.rs"]
mod signing;

use countersign::clock::Timestamp;
use countersign::provider::{BodyNeed, Explanation, Request};
use http::{HeaderMap, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use plain::decode;

#[derive(Clone, Debug)]
struct Case {
    secret_key: String,
    algorithm: &'static str,
    url_form: &'static str,
    params_methods: Vec<&'static str>,
    hex: &'static str,
    time: Timestamp,
    method: &'static str,
    path: String,
    query: Option<String>,
    body: Vec<u8>,
}

/// A token and what it is the digest of.
type Signed = (Vec<u8>, Option<String>);

fn sign(case: &Case) -> Signed {
    let Case { secret_key, algorithm, url_form, params_methods, hex, .. } = case;
    // A string of JSON is one of TOML.
    let secret_key = serde_json::Value::from(secret_key.as_str());
    let table = format!(
        "credentials = {{ access_key = 'ak-1', secret_key = {secret_key} }}\nalgorithm = '{algorithm}'\n\
         url_form = '{url_form}'\nparams_methods = {params_methods:?}\nhex = '{hex}'\n"
    );
    let (provider, signer) = signing::configure("tem", &table);
    let (method, headers) = (&Method::from_bytes(case.method.as_bytes()).expect("a method"), &HeaderMap::new());
    let body = if provider.body(method, headers) == BodyNeed::Whole { case.body.as_slice() } else { b"" };
    let (path, query, time) = (case.path.as_str(), case.query.as_deref(), case.time);
    let request = Request { method, path, query, headers, body, time, nonce: "" };
    let mut explanation = Explanation::default();
    let fields = signer.sign(&request, Some(&mut explanation)).expect("a request that can be signed");
    let [(name, value)] = fields.as_slice() else { panic!("{fields:?}") };
    assert_eq!(name, "authorization");
    (value.as_bytes().to_vec(), explanation.string_to_sign)
}

/// The page's rules once more.
fn naive(case: &Case) -> Signed {
    let mut url = case.path.clone();
    if let (Some(query), true) = (&case.query, case.url_form != "path") {
        url.push('?');
        url.push_str(query);
    }
    let url = if case.url_form == "decoded" { decode(&url) } else { url.into_bytes() };
    let time = (case.time.0 / 1000).to_string();
    let (secret, method) = (&case.secret_key, case.method.to_uppercase());
    let mut text = format!("ak:ak-1|sk:{secret}|time:{time}|method:{method}|url:").into_bytes();
    text.extend(url);
    text.extend(b"|params:");
    if case.params_methods.contains(&method.as_str()) {
        text.extend(&case.body);
    }
    let shown = Some(String::from_utf8_lossy(&text).into_owned());
    let digits = |digest: &[u8]| {
        let digits = digest.iter().fold(String::new(), |digits, octet| digits + &format!("{octet:02x}"));
        if case.hex == "upper" { digits.to_uppercase() } else { digits }
    };
    let (token, shown) = match case.algorithm {
        "L3.SHA256" => (digits(&Sha256::digest(&text)) + ":" + &time, shown),
        "L3.SHA1" => (digits(&Sha1::digest(&text)) + ":" + &time, shown),
        "L0.SHA1" => (digits(&Sha1::digest(secret)), Some(secret.clone())),
        _ => (secret.clone(), None),
    };
    (format!("Bearer TEM-AUTH:ak-1:{token}").into_bytes(), shown)
}

prop_compose! {
    fn case()(
        secret_key in prop_oneof!["[!-9;-~]{1,40}", "[!-9;-~][ -9;-~]{0,20}[!-9;-~]"],
        algorithm in select(vec!["L3.SHA256", "L3.SHA256", "L3.SHA1", "L0.SHA1", "L0.PAINTEXT", "L0.PLAINTEXT"]),
        url_form in select(vec!["path_and_query", "path", "decoded"]),
        params_methods in vec(select(vec!["GET", "POST", "PUT", "PATCH", "DELETE"]), 0..4),
        hex in select(vec!["lower", "upper"]),
        time in 0..32_503_680_000_000_i64,
        method in select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "post", "Purge"]),
        path in prop_oneof!["/[a-c/.%!+~?]{0,20}", "/(%[0-9a-g]{0,2}|[a+é]){0,8}", any::<String>()],
        query in prop::option::of(prop_oneof!["[a-c&=%2-6+?/]{0,20}", any::<String>()]),
        body: Vec<u8>,
    ) -> Case {
        let time = Timestamp(time);
        Case { secret_key, algorithm, url_form, params_methods, hex, time, method, path, query, body }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_naive_implementation(case in case()) {
        prop_assert_eq!(sign(&case), naive(&case));
    }

    #[test]
    fn whatever_text_a_secret_is_it_can_sign(mut case in case(), secret_key in "\\PC{1,20}") {
        case.secret_key = secret_key;
        case.algorithm = "L3.SHA256";
        prop_assert_eq!(sign(&case), naive(&case));
    }

    #[test]
    fn tokens_of_l0_depend_on_nothing_but_the_key(case in case(), mut other in case()) {
        other.secret_key.clone_from(&case.secret_key);
        (other.algorithm, other.hex) = (case.algorithm, case.hex);
        if case.algorithm.starts_with("L0") {
            prop_assert_eq!(sign(&case), sign(&other));
        }
    }
}
