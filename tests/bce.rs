//! `bce-auth-v1` on requests that no vector holds: compared with a second, naive implementation of the vendor's rules.

#[path = "support/plain.rs"]
mod plain;
#[path = "support/signing.rs"]
mod signing;

use std::fmt::Write;

use countersign::clock::Timestamp;
use countersign::provider::{Explanation, Fields, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sha2::Sha256;

const ACCESS_KEY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SECRET_KEY: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// 2014-06-01T23:00:10Z.
const TIME: Timestamp = Timestamp(1_401_663_610_000);

#[derive(Clone, Debug)]
struct Case {
    secret_key: String,
    security_token: Option<String>,
    expires_in: u32,
    mode: Mode,
    time: Timestamp,
    method: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Mode {
    Minimal,
    Default,
    DefaultUnlisted,
    List(Vec<String>),
}

impl Case {
    fn new(method: &str, path: &str, query: Option<&str>, headers: &[(&str, &str)]) -> Self {
        let host = [("host", "certificate.baidubce.com")];
        let headers = host.iter().chain(headers);
        Self {
            secret_key: SECRET_KEY.to_owned(),
            security_token: None,
            expires_in: 1800,
            mode: Mode::Minimal,
            time: TIME,
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect(),
        }
    }

    /// Its table in the configuration file.
    fn table(&self) -> String {
        let mut text = format!("credentials.access_key = '{ACCESS_KEY}'\nexpires_in = '{}s'\n", self.expires_in);
        let _ = writeln!(text, "credentials.secret_key = {:?}", self.secret_key);
        if let Some(token) = &self.security_token {
            let _ = writeln!(text, "credentials.security_token = {token:?}");
        }
        let _ = match &self.mode {
            Mode::Minimal => writeln!(text, "signed_headers = 'minimal'"),
            Mode::Default => writeln!(text, "signed_headers = 'default'"),
            Mode::DefaultUnlisted => writeln!(text, "signed_headers = 'default-unlisted'"),
            Mode::List(names) => writeln!(text, "signed_headers = {names:?}"),
        };
        text
    }

    fn sign(&self) -> Result<(Fields, Explanation), String> {
        let (_, signer) = signing::configure("bce", &self.table());
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let request = Request {
            method: &Method::from_bytes(self.method.as_bytes()).expect("a method"),
            path: &self.path,
            query: self.query.as_deref(),
            headers: &headers,
            body: b"",
            time: self.time,
            nonce: "",
        };
        let mut explanation = Explanation::default();
        Ok((signer.sign(&request, Some(&mut explanation))?, explanation))
    }

    fn canonical_request(&self) -> String {
        self.sign().expect("a request that can be signed").1.canonical_request.expect("an explanation")
    }

    fn authorization(&self) -> String {
        let (fields, _) = self.sign().expect("a request that can be signed");
        let authorization = fields.iter().find(|(name, _)| name == "authorization").expect("an authorization");
        authorization.1.to_str().expect("ASCII").to_owned()
    }
}

/// The rules once more, step by step as the vendor's documents give them.
mod naive {
    use super::plain::{decode, encode, hmac};
    use super::*;

    pub(super) struct Signed {
        pub(super) canonical_request: String,
        pub(super) authorization: String,
        pub(super) date: String,
    }

    /// `None` for a request that is refused.
    pub(super) fn sign(case: &Case) -> Option<Signed> {
        let date = date(case.time);
        let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &case.headers {
            headers.push((name.to_lowercase(), value.clone()));
        }
        headers.push(("x-bce-date".to_owned(), date.clone().into_bytes()));
        if let Some(token) = &case.security_token {
            headers.push(("x-bce-security-token".to_owned(), token.clone().into_bytes()));
        }
        let is_listed = !matches!(case.mode, Mode::DefaultUnlisted);
        let others: Vec<String> = match &case.mode {
            Mode::Minimal => Vec::new(),
            Mode::Default | Mode::DefaultUnlisted => {
                ["content-length", "content-type", "content-md5"].map(str::to_owned).to_vec()
            }
            Mode::List(names) => names.iter().map(|name| name.to_lowercase()).collect(),
        };
        headers.retain(|(name, _)| name == "host" || name.starts_with("x-bce-") || others.contains(name));
        for (name, _) in &headers {
            if headers.iter().filter(|(other, _)| other == name).count() > 1 {
                return None;
            }
        }
        if is_listed {
            headers.retain(|(name, _)| name != "x-bce-request-id");
        }
        for (_, value) in &mut headers {
            while value.first().is_some_and(|octet| b" \t".contains(octet)) {
                value.remove(0);
            }
            while value.last().is_some_and(|octet| b" \t".contains(octet)) {
                value.pop();
            }
        }
        headers.retain(|(_, value)| !value.is_empty());
        if !headers.iter().any(|(name, _)| name == "host") {
            return None;
        }

        let mut lines = Vec::new();
        let mut names = Vec::new();
        for (name, value) in headers {
            lines.push(format!("{}:{}", encode(name.as_bytes()), encode(&value)));
            names.push(name);
        }
        lines.sort();
        names.sort();
        let path = if case.path.is_empty() { "/" } else { &case.path };
        let path = encode(&decode(path)).replace("%2F", "/");
        let query = query(case.query.as_deref().unwrap_or(""));
        let canonical_request = format!("{}\n{path}\n{query}\n{}", case.method, lines.join("\n"));

        let prefix = format!("bce-auth-v1/{ACCESS_KEY}/{date}/{}", case.expires_in);
        let signing_key = hex::encode(hmac::<Sha256>(case.secret_key.as_bytes(), prefix.as_bytes()));
        let signature = hex::encode(hmac::<Sha256>(signing_key.as_bytes(), canonical_request.as_bytes()));
        let list = if is_listed { names.join(";") } else { String::new() };
        let authorization = format!("{prefix}/{list}/{signature}");
        Some(Signed { canonical_request, authorization, date })
    }

    fn query(query: &str) -> String {
        let mut pairs = Vec::new();
        for piece in query.split('&') {
            if piece.is_empty() {
                continue;
            }
            let mut parts = piece.splitn(2, '=');
            let key = decode(parts.next().unwrap_or(""));
            let value = decode(parts.next().unwrap_or(""));
            if !key.eq_ignore_ascii_case(b"authorization") {
                pairs.push(format!("{}={}", encode(&key), encode(&value)));
            }
        }
        pairs.sort();
        pairs.join("&")
    }

    /// Counts days year by year and month by month.
    fn date(time: Timestamp) -> String {
        let seconds = time.0 / 1000;
        let (mut days, second) = (seconds / 86400, seconds % 86400);
        let (mut year, mut month) = (1970, 0_usize);
        let is_leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        while days >= 365 + i64::from(is_leap(year)) {
            days -= 365 + i64::from(is_leap(year));
            year += 1;
        }
        for length in [31, 28 + i64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            month += 1;
            if days < length {
                break;
            }
            days -= length;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
    }
}

fn raw_path() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[a-c/.%!+~]{0,20}",
        vec(
            select(vec!["/", "//", "..", "%2F", "%2f", "%41", "%e4%b8", "%", "%4", "%zz", "+", "é", "a", "%25", "*"]),
            0..12
        )
        .prop_map(|pieces| pieces.concat()),
        any::<String>(),
    ]
}

fn raw_query() -> impl Strategy<Value = Option<String>> {
    let piece = select(vec![
        "&",
        "&",
        "&",
        "=",
        "=",
        "a",
        "a-b",
        "a:",
        "A",
        "1",
        "%26",
        "%3d",
        "%3D",
        "+",
        "%20",
        "authorization",
        "Authorizatio%6E",
        "é",
        "%",
        "%e4",
        "?",
        "/",
        "~",
    ]);
    prop::option::of(prop_oneof![vec(piece, 0..24).prop_map(|pieces| pieces.concat()), any::<String>()])
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        "x-bce-[a-c-]{1,4}",
        "X-Bce-Meta-[a-c!#.'*|~_-]{1,4}",
        select(vec![
            "x-bce-request-id",
            "Content-Type",
            "content-length",
            "Content-MD5",
            "Range",
            "accept",
            "user-agent"
        ])
        .prop_map(str::to_owned),
    ];
    let octet = prop_oneof![Just(b' '), Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    (name, vec(octet, 0..8))
}

fn mode() -> impl Strategy<Value = Mode> {
    let names = select(vec!["Range", "accept", "Content-Type", "HOST", "x-bce-a", "X-Bce-Request-Id", "absent"]);
    prop_oneof![
        Just(Mode::Minimal),
        Just(Mode::Default),
        Just(Mode::DefaultUnlisted),
        vec(names.prop_map(str::to_owned), 0..4).prop_map(Mode::List),
    ]
}

prop_compose! {
    fn case()(
        secret_key in "[ -~]{1,80}",
        security_token in prop::option::of("[!-~]{1,20}"),
        expires_in in 1..100_000_u32,
        mode in mode(),
        // To the end of 2999.
        time in 0..32_503_680_000_000_i64,
        method in select(vec!["GET", "PUT", "POST", "DELETE", "HEAD", "PROPFIND"]),
        path in raw_path(),
        query in raw_query(),
        host in prop::option::weighted(0.95, "[a-z.]{1,12}(:[0-9]{2,4})?"),
        headers in vec(header(), 0..8),
    ) -> Case {
        let host = host.map(|host| ("host".to_owned(), host.into_bytes()));
        Case {
            secret_key,
            security_token,
            expires_in,
            mode,
            time: Timestamp(time),
            method: method.to_owned(),
            path,
            query,
            headers: host.into_iter().chain(headers).collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_naive_implementation(case in case()) {
        match (case.sign(), naive::sign(&case)) {
            (Ok((fields, explanation)), Some(expected)) => {
                prop_assert_eq!(explanation.canonical_request, Some(expected.canonical_request));
                let mut found = vec![("x-bce-date", expected.date.as_str())];
                found.extend(case.security_token.iter().map(|token| ("x-bce-security-token", token.as_str())));
                found.push(("authorization", &expected.authorization));
                let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
                prop_assert_eq!(fields, found);
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
    fn the_order_of_query_and_headers_does_not_matter(case in case(), seed: u64) {
        let mut other = case.clone();
        let mut pieces: Vec<_> = case.query.as_deref().unwrap_or_default().split('&').collect();
        shuffle(&mut pieces, seed);
        shuffle(&mut other.headers, seed);
        other.query = Some(pieces.join("&"));
        let signed = |case: &Case| case.sign().ok().map(|(fields, _)| fields);
        prop_assert_eq!(signed(&case), signed(&other));
    }
}

/// Fisher and Yates, with a small generator of its own so that a failure can be repeated.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, usize::try_from(seed >> 33).unwrap_or_default() % (last + 1));
    }
}

#[test]
fn the_certificate_services_examples_are_signed_as_documented() {
    for (method, path, query, signature) in [
        ("GET", "/v1/certificate", None, "09ea41d7af9b0c3a81c87a58f46cd32179d16240676875dc164595db75f797b1"),
        (
            "GET",
            "/v1/certificate/cert-5atue8m3sxsv/rawdata",
            None,
            "66a1026b7ee216a1e47d225da992056235a06adb1bb8433f13747fac4cd91456",
        ),
        (
            "PUT",
            "/v1/certificate/cert-5atue8m3sxsv",
            Some("certName"),
            "1e18f702d31dadc7d53b469b4802ef78c979c6eb923698578e4d8664ca448e05",
        ),
    ] {
        let expected = format!("bce-auth-v1/{ACCESS_KEY}/2014-06-01T23:00:10Z/1800/host;x-bce-date/{signature}");
        assert_eq!(Case::new(method, path, query, &[]).authorization(), expected, "{method} {path}");
    }
    let rename = Case::new("PUT", "/v1/certificate/cert-5atue8m3sxsv", Some("certName"), &[]);
    assert_eq!(
        rename.canonical_request(),
        "PUT\n/v1/certificate/cert-5atue8m3sxsv\ncertName=\nhost:certificate.baidubce.com\n\
         x-bce-date:2014-06-01T23%3A00%3A10Z"
    );
}

#[test]
fn lines_are_sorted_whole_and_the_list_by_name() {
    let case = Case::new("GET", "/", None, &[("x-bce-meta-a", "1"), ("X-Bce-Meta-A-B", "2")]);
    assert!(case.canonical_request().ends_with("x-bce-meta-a-b:2\nx-bce-meta-a:1"));
    assert!(case.authorization().contains("/host;x-bce-date;x-bce-meta-a;x-bce-meta-a-b/"));
}

#[test]
fn a_query_authorization_takes_no_part_however_it_is_spelt() {
    let query = "authorization=a&x=1&AUTHORIZATION&%61uthorization=b&authorizations=2";
    let canonical = Case::new("GET", "/", Some(query), &[]).canonical_request();
    assert_eq!(canonical.lines().nth(2), Some("authorizations=2&x=1"));
    let canonical = Case::new("GET", "/", Some("authorization"), &[]).canonical_request();
    assert_eq!(canonical.lines().nth(2), Some(""));
}

#[test]
fn a_signed_header_that_came_twice_is_refused_by_name_and_without_its_value() {
    for name in ["x-bce-acl", "x-bce-request-id", "X-Bce-Acl"] {
        let case = Case::new("GET", "/", None, &[(name, "hunter2"), (name, "")]);
        let message = case.sign().err().unwrap();
        assert!(message.contains(&name.to_lowercase()) && !message.contains("hunter2"), "{message}");
    }
    assert!(Case::new("GET", "/", None, &[("accept", "a"), ("accept", "b")]).sign().is_ok());
}

#[test]
fn a_request_id_is_signed_only_where_the_service_looks_at_all_it_receives() {
    let mut case = Case::new("GET", "/", None, &[("x-bce-request-id", "1")]);
    assert!(!case.canonical_request().contains("request-id"));
    case.mode = Mode::List(vec!["x-bce-request-id".to_owned()]);
    assert!(!case.canonical_request().contains("request-id"));
    case.mode = Mode::DefaultUnlisted;
    assert!(case.canonical_request().ends_with("\nx-bce-request-id:1"));
    assert!(case.authorization().contains("/1800//"));
}

#[test]
fn a_callers_own_date_takes_no_part() {
    let case = Case::new("GET", "/", None, &[("x-bce-date", "2001-01-01T00:00:00Z")]);
    assert_eq!(case.authorization(), Case::new("GET", "/", None, &[]).authorization());
}

#[test]
fn a_request_without_a_host_is_refused() {
    let mut case = Case::new("GET", "/", None, &[]);
    case.headers = vec![("host".to_owned(), b" ".to_vec())];
    assert!(case.sign().is_err());
    case.headers.clear();
    assert!(case.sign().is_err());
}

#[test]
fn what_is_secret_is_marked_so() {
    let mut case = Case::new("GET", "/", None, &[]);
    case.security_token = Some("token".to_owned());
    let (fields, _) = case.sign().unwrap();
    let sensitive: Vec<_> =
        fields.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(sensitive, ["x-bce-security-token", "authorization"]);
}
