//! SDK-HMAC-SHA256 on requests that no vector holds: compared with a second, naive implementation of the vendor's rules.

#[path = "support/plain.rs"]
mod plain;
#[path = "support/signing.rs"]
mod signing;

use std::fmt::Write;

use countersign::clock::Timestamp;
use countersign::provider::{BodyNeed, Explanation, Fields, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sha2::{Digest, Sha256};

const ACCESS_KEY: &str = "QTWAOYTTINDUT2QVKYUC";

#[derive(Clone, Debug)]
struct Case {
    secret_key: String,
    security_token: Option<String>,
    project_id: Option<String>,
    domain_id: Option<String>,
    payload: &'static str,
    mode: Mode,
    derived: Option<(String, String)>,
    time: Timestamp,
    method: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Mode {
    Minimal,
    All,
    List(Vec<String>),
}

impl Case {
    fn get(target: &str, headers: &[(&str, &str)]) -> Self {
        let host = [("host", "sms.cn-north-4.myhuaweicloud.com")];
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        Self {
            secret_key: "secret".to_owned(),
            security_token: None,
            project_id: None,
            domain_id: None,
            payload: "hash",
            mode: Mode::Minimal,
            derived: None,
            time: Timestamp(1_522_413_360_000),
            method: "GET".to_owned(),
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: host
                .iter()
                .chain(headers)
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: Vec::new(),
        }
    }

    /// Its table in the configuration file.
    fn table(&self) -> String {
        let mut text = format!("credentials.access_key = '{ACCESS_KEY}'\npayload = '{}'\n", self.payload);
        let _ = writeln!(text, "credentials.secret_key = {:?}", self.secret_key);
        for (key, value) in [
            ("credentials.security_token", &self.security_token),
            ("project_id", &self.project_id),
            ("domain_id", &self.domain_id),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "{key} = {value:?}");
            }
        }
        if let Some((region, service)) = &self.derived {
            let _ = writeln!(text, "derived = {{ region = '{region}', service = '{service}' }}");
        }
        let _ = match &self.mode {
            Mode::Minimal => writeln!(text, "signed_headers = 'minimal'"),
            Mode::All => writeln!(text, "signed_headers = 'all'"),
            Mode::List(names) => writeln!(text, "signed_headers = {names:?}"),
        };
        text
    }

    fn sign(&self) -> Result<(Fields, Explanation), String> {
        let (provider, signer) = signing::configure("huawei-aksk", &self.table());
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        if !self.body.is_empty() {
            headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        }
        let method = Method::from_bytes(self.method.as_bytes()).expect("a method");
        let is_held = provider.body(&method, &headers) == BodyNeed::Whole;
        let request = Request {
            method: &method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &headers,
            body: if is_held { &self.body } else { b"" },
            time: self.time,
            nonce: "",
        };
        let mut explanation = Explanation::default();
        Ok((signer.sign(&request, Some(&mut explanation))?, explanation))
    }

    fn canonical_request(&self) -> String {
        self.sign().expect("a request that can be signed").1.canonical_request.expect("an explanation")
    }

    fn canonical_query(&self) -> String {
        self.canonical_request().split('\n').nth(2).expect("a query").to_owned()
    }
}

/// The rules once more, step by step as the vendor's documents and SDKs give them.
mod naive {
    use super::plain::{decode, encode, hmac};
    use super::*;

    pub(super) struct Signed {
        pub(super) canonical_request: String,
        pub(super) string_to_sign: String,
        pub(super) fields: Vec<(&'static str, String)>,
    }

    /// `None` for a request that is refused.
    pub(super) fn sign(case: &Case) -> Option<Signed> {
        let date = date(case.time);
        let kind = case.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let is_hashed = kind.is_none_or(|(_, kind)| {
            let kind = String::from_utf8_lossy(kind);
            kind.is_empty() || kind.starts_with("application/json") || kind.starts_with("application/bson")
        });
        let is_unsigned = !case.body.is_empty()
            && match case.payload {
                "unsigned" => true,
                "auto" => !is_hashed,
                _ => false,
            };

        let mut fields = Vec::new();
        let optional = [
            ("x-project-id", &case.project_id),
            ("x-domain-id", &case.domain_id),
            ("x-security-token", &case.security_token),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                fields.push((name, value.clone()));
            }
        }
        if is_unsigned {
            fields.push(("x-sdk-content-sha256", "UNSIGNED-PAYLOAD".to_owned()));
        }
        fields.push(("x-sdk-date", date.clone()));

        let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &case.headers {
            let name = name.to_lowercase();
            let is_always = ["host", "x-project-id", "x-domain-id"].contains(&name.as_str());
            let is_chosen = match &case.mode {
                Mode::Minimal => false,
                Mode::All => name != "content-type",
                Mode::List(names) => names.iter().any(|chosen| chosen.to_lowercase() == name),
            };
            let is_replaced = fields.iter().any(|(set, _)| *set == name);
            if (is_always || is_chosen) && !is_replaced && !name.contains('_') {
                headers.push((name, value.clone()));
            }
        }
        for (name, value) in &fields {
            headers.push(((*name).to_owned(), value.clone().into_bytes()));
        }
        headers.sort();
        for (name, _) in &headers {
            if headers.iter().filter(|(other, _)| other == name).count() > 1 {
                return None;
            }
        }
        if !headers.iter().any(|(name, _)| name == "host") {
            return None;
        }
        let mut lines = Vec::new();
        for (name, value) in &mut headers {
            while value.first().is_some_and(|octet| b" \t".contains(octet)) {
                value.remove(0);
            }
            while value.last().is_some_and(|octet| b" \t".contains(octet)) {
                value.pop();
            }
            lines.extend_from_slice(name.as_bytes());
            lines.push(b':');
            lines.extend_from_slice(value);
            lines.push(b'\n');
        }
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");

        let hash = if is_unsigned { "UNSIGNED-PAYLOAD".to_owned() } else { hex::encode(Sha256::digest(&case.body)) };
        let mut canonical =
            format!("{}\n{}\n{}\n", case.method.to_uppercase(), path(&case.path), query(case.query.as_deref()))
                .into_bytes();
        canonical.extend_from_slice(&lines);
        canonical.extend_from_slice(format!("\n{names}\n{hash}").as_bytes());
        let digest = hex::encode(Sha256::digest(&canonical));

        let secret = case.secret_key.as_bytes();
        let (string_to_sign, start, signature);
        if let Some((region, service)) = &case.derived {
            let info = format!("{}/{region}/{service}", date.split_at(8).0);
            let prk = hmac::<Sha256>(ACCESS_KEY.as_bytes(), secret);
            let derived = hex::encode(hmac::<Sha256>(&prk, format!("{info}\u{1}").as_bytes()));
            string_to_sign = format!("V11-HMAC-SHA256\n{date}\n{info}\n{digest}");
            start = format!("V11-HMAC-SHA256 Credential={ACCESS_KEY}/{info}");
            signature = hex::encode(hmac::<Sha256>(derived.as_bytes(), string_to_sign.as_bytes()));
        } else {
            string_to_sign = format!("SDK-HMAC-SHA256\n{date}\n{digest}");
            start = format!("SDK-HMAC-SHA256 Access={ACCESS_KEY}");
            signature = hex::encode(hmac::<Sha256>(secret, string_to_sign.as_bytes()));
        }
        fields.push(("authorization", format!("{start}, SignedHeaders={names}, Signature={signature}")));
        Some(Signed { canonical_request: String::from_utf8_lossy(&canonical).into_owned(), string_to_sign, fields })
    }

    fn path(raw: &str) -> String {
        let mut path = String::new();
        for part in decode(raw).split(|octet| *octet == b'/') {
            path += &encode(part);
            path.push('/');
        }
        // Each part got a slash; a path that ended in one has an empty last part.
        if path.ends_with("//") {
            path.pop();
        }
        path
    }

    fn query(query: Option<&str>) -> String {
        let mut pairs = Vec::new();
        for piece in query.unwrap_or("").split('&') {
            if piece.is_empty() {
                continue;
            }
            let mut parts = piece.splitn(2, '=');
            let name = decode(parts.next().unwrap_or(""));
            pairs.push((name, decode(parts.next().unwrap_or(""))));
        }
        pairs.sort_by(|one, other| one.1.cmp(&other.1));
        pairs.sort_by(|one, other| one.0.cmp(&other.0));
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| encode(name) + "=" + &encode(value)).collect();
        pairs.join("&")
    }

    fn date(time: Timestamp) -> String {
        let time = jiff::Timestamp::from_millisecond(time.0 - time.0 % 1000).expect("a time");
        time.strftime("%Y%m%dT%H%M%SZ").to_string()
    }
}

fn raw_path() -> impl Strategy<Value = String> {
    let piece =
        select(vec!["/", "//", "..", "%2F", "%2f", "%41", "%e4%b8", "%", "%4", "%zz", "+", "é", "a", "%25", "*"]);
    // From "/" on, as every path is.
    let path = prop_oneof!["[a-c/.%!+~]{0,20}", vec(piece, 0..12).prop_map(|pieces| pieces.concat()), any::<String>()];
    path.prop_map(|rest| format!("/{rest}"))
}

fn raw_query() -> impl Strategy<Value = Option<String>> {
    let piece = select(vec![
        "&", "&", "&", "=", "=", "a", "a-b", "a:", "A", "1", "%26", "%3d", "%3D", "+", "%20", "é", "%", "%e4", "?",
        "/", "~",
    ]);
    prop::option::of(prop_oneof![vec(piece, 0..24).prop_map(|pieces| pieces.concat()), any::<String>()])
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        "x-[a-c-]{1,4}",
        "X-[a-c!#.'*|~_-]{1,4}",
        select(vec!["X-Project-Id", "x-domain-id", "Range", "accept", "user-agent"]).prop_map(str::to_owned),
    ];
    let octet = prop_oneof![Just(b' '), Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    (name, vec(octet, 0..8))
}

fn content_type() -> impl Strategy<Value = Option<(String, Vec<u8>)>> {
    let kind =
        select(vec!["application/json", "application/json;charset=utf8", "application/bson", "text/plain", "", "x"]);
    prop::option::of(kind.prop_map(|kind| ("Content-Type".to_owned(), kind.as_bytes().to_vec())))
}

fn mode() -> impl Strategy<Value = Mode> {
    let names = select(vec!["Range", "accept", "Content-Type", "HOST", "x-a", "X_B", "x-sdk-date", "absent"]);
    let list = vec(names.prop_map(str::to_owned), 0..4).prop_map(Mode::List);
    prop_oneof![Just(Mode::Minimal), Just(Mode::All), list]
}

prop_compose! {
    fn request()(
        method in select(vec!["GET", "PUT", "POST", "DELETE", "HEAD", "PROPFIND"]),
        path in raw_path(),
        query in raw_query(),
        host in prop::option::weighted(0.95, "[a-z.]{1,12}(:[0-9]{2,4})?"),
        content_type in content_type(),
        headers in vec(header(), 0..6),
        body in prop_oneof![Just(Vec::new()), any::<Vec<u8>>()],
    ) -> Case {
        let host = host.map(|host| ("host".to_owned(), host.into_bytes()));
        Case {
            method: method.to_owned(),
            path,
            query,
            headers: host.into_iter().chain(content_type).chain(headers).collect(),
            body,
            ..Case::get("/", &[])
        }
    }
}

prop_compose! {
    fn case()(
        request in request(),
        secret_key in "[ -~]{1,80}",
        security_token in prop::option::of("[!-~]{1,20}"),
        project_id in prop::option::of("[0-9a-f]{1,8}"),
        domain_id in prop::option::of("[0-9a-f]{1,8}"),
        payload in select(vec!["hash", "auto", "unsigned"]),
        mode in mode(),
        derived in prop::option::of(("[a-z0-9-]{1,8}", "[a-z]{1,5}")),
        // To the end of 2999.
        time in 0..32_503_680_000_000_i64,
    ) -> Case {
        let time = Timestamp(time);
        Case { secret_key, security_token, project_id, domain_id, payload, mode, derived, time, ..request }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_naive_implementation(case in case()) {
        match (case.sign(), naive::sign(&case)) {
            (Ok((fields, explanation)), Some(expected)) => {
                prop_assert_eq!(explanation.canonical_request, Some(expected.canonical_request));
                prop_assert_eq!(explanation.string_to_sign, Some(expected.string_to_sign));
                let fields = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap().to_owned()));
                prop_assert_eq!(fields.collect::<Vec<_>>(), expected.fields);
            }
            (Err(_), None) => {}
            (found, expected) => prop_assert!(
                false, "signed: {}, by the naive implementation: {}", found.is_ok(), expected.is_some(),
            ),
        }
    }

    #[test]
    fn the_canonical_form_of_a_canonical_form_is_itself(mut case in case()) {
        case.headers = vec![("host".to_owned(), b"a".to_vec())];
        let once = case.canonical_request();
        let mut lines = once.split('\n').skip(1);
        case.path = lines.next().unwrap().to_owned();
        case.query = lines.next().map(str::to_owned);
        prop_assert_eq!(case.canonical_request(), once);
    }

    #[test]
    fn the_order_of_query_and_headers_does_not_matter(case in case()) {
        let mut other = case.clone();
        other.headers.reverse();
        let mut pieces: Vec<_> = case.query.as_deref().unwrap_or_default().split('&').collect();
        pieces.reverse();
        other.query = Some(pieces.join("&"));
        let signed = |case: &Case| case.sign().ok().map(|(fields, _)| fields);
        prop_assert_eq!(signed(&case), signed(&other));
    }
}

#[test]
fn names_are_sorted_as_they_read_and_not_as_they_are_escaped() {
    let query = |target| Case::get(target, &[]).canonical_query();
    assert_eq!(query("/?a1=1&a:=2&a=3&%E5%90%8D=4&z=5"), "a=3&a1=1&a%3A=2&z=5&%E5%90%8D=4");
    assert_eq!(query("/?a=b%3A&a=b1&a=b"), "a=b&a=b1&a=b%3A");
}

#[test]
fn a_method_is_signed_in_capitals_whatever_it_is_sent_in() {
    let mut case = Case::get("/", &[]);
    let capitals = case.canonical_request();
    case.method = "Get".to_owned();
    assert_eq!(case.canonical_request(), capitals);
}

#[test]
fn octets_that_are_no_text_are_kept() {
    let canonical = Case::get("/%ff/%80?%fe=%C0%80", &[]).canonical_request();
    assert!(canonical.starts_with("GET\n/%FF/%80/\n%FE=%C0%80\n"), "{canonical}");
}

#[test]
fn a_callers_own_date_token_and_hash_take_no_part() {
    let stale =
        [("x-sdk-date", "1"), ("x-security-token", "t"), ("x-sdk-content-sha256", "00"), ("authorization", "a")];
    for mode in [Mode::All, Mode::List(stale.map(|(name, _)| name.to_owned()).into_iter().take(3).collect())] {
        let with = Case { mode, ..Case::get("/", &stale) };
        assert_eq!(with.sign().unwrap().0, Case::get("/", &[]).sign().unwrap().0);
    }
}

#[test]
fn a_signed_header_that_came_twice_is_refused_by_name_and_without_its_value() {
    let twice = Case::get("/", &[("X-Project-Id", "hunter2"), ("x-project-id", "")]);
    let message = twice.sign().err().unwrap();
    assert!(message.contains("x-project-id") && !message.contains("hunter2"), "{message}");
    assert!(Case { project_id: Some("p".to_owned()), ..twice }.sign().is_ok());
}

#[test]
fn a_request_without_a_host_is_refused() {
    assert!(Case { headers: Vec::new(), ..Case::get("/", &[]) }.sign().is_err());
}

#[test]
fn what_is_secret_is_marked_so() {
    let case = Case { security_token: Some("t".to_owned()), domain_id: Some("d".to_owned()), ..Case::get("/", &[]) };
    let (fields, _) = case.sign().unwrap();
    let sensitive = fields.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.as_str());
    assert_eq!(sensitive.collect::<Vec<_>>(), ["x-security-token", "authorization"]);
}
