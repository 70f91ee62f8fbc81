//! The ROA signature on requests that no vector holds: compared with a second, naive implementation of the vendor's rules.

#[path = "support/plain.rs"]
mod plain;
#[path = "support/signing.rs"]
mod signing;

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use countersign::clock::Timestamp;
use countersign::provider::{BodyNeed, Explanation, Fields, Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use md5::{Digest, Md5};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sha1::Sha1;

#[derive(Clone, Debug)]
struct Case {
    secret_key: String,
    security_token: Option<String>,
    content_md5: bool,
    names_access_key: bool,
    time: Timestamp,
    nonce: String,
    method: &'static str,
    path: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Case {
    fn new(path: &str, query: Option<&str>, headers: &[(&str, &str)]) -> Self {
        Self {
            secret_key: "OtxrzxIsfpFjA7SwPzILwy8Bw21TLhquhboDYROV".to_owned(),
            security_token: None,
            content_md5: false,
            names_access_key: false,
            // 2015-12-16T11:18:47Z.
            time: Timestamp(1_450_264_727_000),
            nonce: "f63659d4-10ac-483b-99da-ea8fde61eae3".to_owned(),
            method: "GET",
            path: path.to_owned(),
            query: query.map(str::to_owned),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect(),
            body: Vec::new(),
        }
    }

    /// Its table in the configuration file.
    fn table(&self) -> String {
        let mut text = String::from("credentials.access_key = 'ak'\n");
        let _ = writeln!(text, "credentials.secret_key = {:?}", self.secret_key);
        if let Some(token) = &self.security_token {
            let _ = writeln!(text, "credentials.security_token = {token:?}");
        }
        let _ = writeln!(text, "content_md5 = {}", self.content_md5);
        let _ = writeln!(text, "sts_accesskey_id_header = {}", self.names_access_key);
        text
    }

    fn sign(&self) -> Result<(Fields, Explanation), String> {
        let (provider, signer) = signing::configure("acs-roa", &self.table());
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let method = &Method::from_bytes(self.method.as_bytes()).expect("a method");
        let is_held = provider.body(method, &headers) == BodyNeed::Whole;
        let request = Request {
            method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &headers,
            body: if is_held { &self.body } else { b"" },
            time: self.time,
            nonce: &self.nonce,
        };
        let mut explanation = Explanation::default();
        Ok((signer.sign(&request, Some(&mut explanation))?, explanation))
    }

    fn string_to_sign(&self) -> String {
        self.sign().expect("a request that can be signed").1.string_to_sign.expect("an explanation")
    }

    fn resource(&self) -> String {
        self.string_to_sign().split_once("x-acs-version:2015-12-15\n").expect("a version").1.to_owned()
    }
}

/// The rules once more, step by step as the specification gives them.
mod naive {
    use super::plain::{decode, hmac};
    use super::*;

    pub(super) struct Signed {
        pub(super) fields: Vec<(String, Vec<u8>)>,
        pub(super) string_to_sign: Vec<u8>,
    }

    /// `None` for a request that is refused.
    pub(super) fn sign(case: &Case) -> Option<Signed> {
        let has = |name: &str| case.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
        let mut set = |name: &str, value: &[u8]| fields.push((name.to_owned(), value.to_vec()));
        if !has("accept") {
            set("accept", b"application/json");
        }
        if case.content_md5 && !case.body.is_empty() {
            set("content-md5", BASE64_STANDARD.encode(Md5::digest(&case.body)).as_bytes());
        }
        set("date", date(case.time).as_bytes());
        set("x-acs-signature-method", b"HMAC-SHA1");
        set("x-acs-signature-nonce", case.nonce.as_bytes());
        set("x-acs-signature-version", b"1.0");
        if !has("x-acs-version") {
            set("x-acs-version", b"2015-12-15");
        }
        if let Some(token) = &case.security_token {
            set("x-acs-security-token", token.as_bytes());
            if case.names_access_key {
                set("x-acs-accesskey-id", b"ak");
            }
        }

        let mut headers = fields.clone();
        for (name, value) in &case.headers {
            let name = name.to_lowercase();
            if !fields.iter().any(|(own, _)| *own == name) {
                headers.push((name, value.clone()));
            }
        }
        for (_, value) in &mut headers {
            while value.first().is_some_and(|octet| b" \t".contains(octet)) {
                value.remove(0);
            }
            while value.last().is_some_and(|octet| b" \t".contains(octet)) {
                value.pop();
            }
        }
        headers.retain(|(name, _)| {
            name.starts_with("x-acs-") || ["accept", "content-md5", "content-type", "date"].contains(&name.as_str())
        });
        headers.sort();
        for (name, _) in &headers {
            if headers.iter().filter(|(other, _)| other == name).count() > 1 {
                return None;
            }
        }
        let mut text = case.method.as_bytes().to_vec();
        text.push(b'\n');
        for name in ["accept", "content-md5", "content-type", "date"] {
            if let Some((_, value)) = headers.iter().find(|(other, _)| other == name) {
                text.extend(value);
            }
            text.push(b'\n');
        }
        for (name, value) in headers.iter().filter(|(name, _)| name.starts_with("x-acs-")) {
            text.extend(name.bytes());
            text.push(b':');
            for octet in value {
                text.push(if *octet == b'\t' { b' ' } else { *octet });
            }
            text.push(b'\n');
        }
        text.extend(case.path.bytes());
        text.extend(query(case.query.as_deref().unwrap_or(""))?);

        let signature = BASE64_STANDARD.encode(hmac::<Sha1>(case.secret_key.as_bytes(), &text));
        fields.push(("authorization".to_owned(), format!("acs ak:{signature}").into_bytes()));
        Some(Signed { fields, string_to_sign: text })
    }

    /// `None` if it is no text when it is decoded.
    fn query(query: &str) -> Option<Vec<u8>> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for piece in query.split('&') {
            if piece.is_empty() {
                continue;
            }
            let mut parts = piece.splitn(2, '=');
            let name = form_text(parts.next().unwrap_or(""))?;
            let whole = match parts.next() {
                Some(value) => format!("{name}={}", form_text(value)?),
                None => name.clone(),
            };
            // Behind all that are not greater, so that equal ones keep their order.
            let at = parameters.iter().filter(|(other, _)| other.as_bytes() <= name.as_bytes()).count();
            parameters.insert(at, (name, whole));
        }
        let shown: Vec<_> = parameters.into_iter().map(|(_, whole)| whole).collect();
        Some(if shown.is_empty() { Vec::new() } else { format!("?{}", shown.join("&")).into_bytes() })
    }

    fn form_text(text: &str) -> Option<String> {
        String::from_utf8(decode(&text.replace('+', " "))).ok()
    }

    /// Counts days year by year and month by month.
    fn date(time: Timestamp) -> String {
        let seconds = time.0 / 1000;
        let (mut days, second) = (seconds / 86400, seconds % 86400);
        let names = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        let name = names.iter().cycle().nth(usize::try_from(days % 7).expect("a day")).expect("a name");
        let is_leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let mut year = 1970;
        while days >= 365 + i64::from(is_leap(year)) {
            days -= 365 + i64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + i64::from(is_leap(year));
        let months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(' ');
        let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for (month, length) in months.zip(lengths) {
            if days < length {
                let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
                return format!("{name}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", days + 1);
            }
            days -= length;
        }
        unreachable!("a year has twelve months")
    }
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
        "a1",
        "A",
        "b",
        "%26",
        "%3d",
        "+",
        "%20",
        "%2B",
        "%61",
        "é",
        "%E4%B8%AD",
        "%F0%9F%98%80",
        "%EF%BF%BD",
        "%0A",
        "%",
        "%4",
        "?",
        "/",
    ]);
    let damaged = prop_oneof![8 => Just(""), 1 => Just("%e4"), 1 => Just("&%ff=")];
    let pieces = (vec(piece, 0..24), damaged).prop_map(|(pieces, damaged)| pieces.concat() + damaged);
    prop::option::of(prop_oneof![pieces, any::<String>()])
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        4 => "[Xx]-[Aa]cs-[a-c-]{1,4}",
        2 => select(vec![
            "Accept", "content-type", "Content-MD5", "x-acs-version", "X-Acs-Action", "x-sdk-client", "Host",
            "x-acs-security-token", "x-acs-accesskey-id", "X-Acs-Signature-Nonce", "Date",
        ])
        .prop_map(str::to_owned),
    ];
    let octet = prop_oneof![Just(b' '), Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8];
    (name, vec(octet, 0..8))
}

prop_compose! {
    fn case()(
        secret_key in "[ -~é]{1,80}",
        security_token in prop::option::of("[!-~]{1,20}"),
        content_md5: bool,
        names_access_key: bool,
        // To the end of 2999.
        time in 0..32_503_680_000_000_i64,
        nonce in "[0-9a-f]{32}",
        method in select(vec!["GET", "PUT", "POST", "DELETE", "HEAD", "PROPFIND"]),
        path in prop_oneof!["/[a-c/.%!+~]{0,20}", any::<String>()],
        query in raw_query(),
        headers in vec(header(), 0..6),
        body: Vec<u8>,
    ) -> Case {
        let time = Timestamp(time);
        Case { secret_key, security_token, content_md5, names_access_key, time, nonce, method, path, query, headers, body }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn agrees_with_the_naive_implementation(case in case()) {
        match (case.sign(), naive::sign(&case)) {
            (Ok((fields, explanation)), Some(expected)) => {
                let text = String::from_utf8_lossy(&expected.string_to_sign).into_owned();
                prop_assert_eq!(explanation.string_to_sign, Some(text));
                let fields = fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
                prop_assert_eq!(fields.collect::<Vec<_>>(), expected.fields);
            }
            (Err(_), None) => {}
            (found, expected) => prop_assert!(
                false, "signed: {}, by the naive implementation: {}", found.is_ok(), expected.is_some(),
            ),
        }
    }

    #[test]
    fn the_order_of_differently_named_headers_does_not_matter(case in case()) {
        let mut other = case.clone();
        other.headers.reverse();
        let signed = |case: &Case| case.sign().ok().map(|(fields, _)| fields);
        prop_assert_eq!(signed(&case), signed(&other));
    }
}

#[test]
fn the_known_answer_comes_out() {
    let case = Case::new("/clusters/Cccfd68c474454665ace07efce924f75f/certs", None, &[("Accept", "application/json")]);
    let (fields, _) = case.sign().unwrap();
    let authorization = fields.iter().find(|(name, _)| name == "authorization").unwrap();
    assert_eq!(authorization.1, "acs ak:GjN5DRe8TOg14QerbqU4zWtTmAY=");
}

#[test]
fn a_query_is_decoded_sorted_by_name_and_left_out_where_there_is_none() {
    for (query, expected) in [
        ("", "/"),
        ("&&", "/"),
        ("=", "/?="),
        ("a=2&b&a=1&a", "/?a=2&a=1&a&b"),
        ("a1=&a-b=&a=&A=", "/?A=&a=&a-b=&a1="),
        ("k=a=b&k%3D=+%2B", "/?k=a=b&k== +"),
        ("%E4%B8%AD=%e4%b8%ad&%", "/?%&中=中"),
    ] {
        assert_eq!(Case::new("/", Some(query), &[]).resource(), expected, "{query}");
    }
    assert_eq!(Case::new("/a%2fb%20/../", None, &[]).resource(), "/a%2fb%20/../");
}

#[test]
fn a_query_that_is_no_text_is_refused_without_being_shown() {
    for query in ["hunter2=%e4", "%ff", "a&b=%C0%AF", "%ED%A0%80"] {
        let message = Case::new("/", Some(query), &[]).sign().err().unwrap();
        assert!(message.contains("UTF-8") && !message.contains("hunter2"), "{message}");
    }
    assert!(Case::new("/%e4", None, &[]).sign().is_ok(), "the path is signed as it is sent");
}

#[test]
fn a_signed_header_that_came_twice_is_refused_by_name_and_without_its_value() {
    for name in ["x-acs-meta", "X-Acs-Version", "accept", "Content-Type"] {
        let message = Case::new("/", None, &[(name, "hunter2"), (name, "")]).sign().err().unwrap();
        assert!(message.contains(&name.to_lowercase()) && !message.contains("hunter2"), "{message}");
    }
    assert!(Case::new("/", None, &[("x-sdk-client", "a"), ("x-sdk-client", "b")]).sign().is_ok());
}

#[test]
fn a_nonce_that_no_header_can_carry_is_refused() {
    let mut case = Case::new("/", None, &[]);
    "a\nb".clone_into(&mut case.nonce);
    assert!(case.sign().is_err());
}

#[test]
fn what_is_secret_is_marked_so() {
    let mut case = Case::new("/", None, &[]);
    case.security_token = Some("token".to_owned());
    let (fields, _) = case.sign().unwrap();
    let sensitive: Vec<_> =
        fields.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(sensitive, ["x-acs-security-token", "authorization"]);
}
