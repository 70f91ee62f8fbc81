//! What every provider says of replies that refuse a request: the vendors' own tables and examples.

#[path = "support/signing.rs"]
mod signing;

use std::time::Duration;

use countersign::clock::Timestamp;
use countersign::provider::verdict::{Cause, Reply, Used, Verdict};
use countersign::provider::{ALL, Provider};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;

/// A refusal by one of the providers.
struct Case {
    provider: &'static str,
    status: u16,
    body: String,
    /// More keys of the provider's table.
    keys: &'static str,
    method: Method,
    headers: HeaderMap,
    /// In seconds.
    ahead: Option<i64>,
    credential: Used,
}

impl Case {
    fn new(provider: &'static str, status: u16, body: &impl ToString) -> Self {
        let credential = Used { is_temporary: false, age: Duration::from_secs(3600) };
        let (body, headers) = (body.to_string(), HeaderMap::new());
        Self { provider, status, body, keys: "", method: Method::GET, headers, ahead: None, credential }
    }

    /// The server's clock is so many seconds ahead.
    fn ahead(self, seconds: i64) -> Self {
        Self { ahead: Some(seconds), ..self }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn keys(self, keys: &'static str) -> Self {
        Self { keys, ..self }
    }

    fn head(self) -> Self {
        Self { method: Method::HEAD, ..self }
    }

    fn temporary(self, age: u64) -> Self {
        Self { credential: Used { is_temporary: true, age: Duration::from_secs(age) }, ..self }
    }

    fn judge(&self) -> Verdict {
        let provider = provider(self.provider, self.keys);
        let status = StatusCode::from_u16(self.status).expect("a status");
        assert!(provider.judges(status), "{} does not judge {status}", self.provider);
        let reply = Reply {
            method: &self.method,
            status,
            headers: &self.headers,
            body: self.body.as_bytes(),
            ahead: self.ahead.map(|seconds| seconds * 1000),
            credential: self.credential,
        };
        let verdict = provider.verdict(&reply);
        let advice = &verdict.advice;
        assert!(
            !advice.starts_with(char::is_uppercase) && !advice.ends_with('.') && !advice.contains('\n'),
            "{advice}"
        );
        verdict
    }

    fn cause(&self) -> Cause {
        self.judge().cause
    }
}

/// A provider with its credential and more keys.
fn provider(name: &str, keys: &str) -> Box<dyn Provider> {
    let credential = match name {
        "basic" => "user = 'ak'\npassword = 'hunter2'",
        "bearer" | "huawei-token" => "token = 'hunter2'",
        "header" => "headers = { x-key = 'hunter2' }",
        "mtls" => "",
        "swarm" => {
            "cluster_id = 'Cccfd68c474454665ace07efce924f75f'\n\
             credentials = { access_key = 'ak', secret_key = 'hunter2' }"
        }
        _ => "credentials = { access_key = 'ak', secret_key = 'hunter2' }",
    };
    signing::read(name, &format!("{credential}\n{keys}"))
}

/// The code, the message and the request's id of a verdict.
fn read(verdict: &Verdict) -> [Option<&str>; 3] {
    [&verdict.code, &verdict.message, &verdict.request_id].map(Option::as_deref)
}

#[test]
fn each_judges_the_statuses_that_its_servers_refuse_with() {
    for registration in ALL {
        let provider = provider(registration.name, "");
        let statuses = (100..600).filter(|status| provider.judges(StatusCode::from_u16(*status).unwrap()));
        let expected: &[u16] = match registration.name {
            "acm" => &[403],
            "acs-roa" => &[400, 401, 403, 404, 429, 503],
            "bce" => &[400, 401, 403],
            "huawei-aksk" | "huawei-token" => &[401, 403, 429],
            "mtls" | "swarm" => &[],
            _ => &[401],
        };
        assert_eq!(statuses.collect::<Vec<_>>(), expected, "{}", registration.name);
        assert_eq!(provider.locks_keys(), registration.name == "huawei-aksk", "{}", registration.name);
    }
}

#[test]
fn a_token_that_is_refused_may_have_been_replaced() {
    for provider in ["basic", "bearer", "header"] {
        assert_eq!(Case::new(provider, 401, &"").judge(), Verdict::of(Cause::Credential));
    }
}

fn bce(status: u16, code: &str) -> Case {
    Case::new("bce", status, &json!({ "requestId": "ae2225f7-1", "code": code, "message": "quotes 9f8e7d" }))
}

#[test]
fn bce_is_judged_by_its_code_whatever_the_status() {
    for (code, cause) in [
        ("RequestExpired", Cause::Clock(None)),
        ("SignatureDoesNotMatch", Cause::Signature),
        ("AuthError", Cause::Signature),
        ("InvalidHTTPAuthHeader", Cause::Other),
        ("InvalidAccessKeyId", Cause::Credential),
        ("AccessDenied", Cause::Other),
    ] {
        for status in [400, 401, 403] {
            let verdict = bce(status, code).judge();
            assert_eq!(verdict.cause, cause, "{code}");
            assert_eq!(read(&verdict), [Some(code), Some("quotes 9f8e7d"), Some("ae2225f7-1")]);
            assert!(!verdict.advice.is_empty() && !verdict.advice.contains("9f8e7d"), "{code}");
        }
    }
    for code in
        ["ParametersNotChanged", "ParametersInvalid", "InappropriateJSON", "requestexpired", "RequestExpiredNot"]
    {
        assert_eq!(bce(403, code).cause(), Cause::Other, "{code}");
        assert_eq!(bce(403, code).judge().advice, "");
    }
    assert_eq!(bce(401, "Unheard").cause(), Cause::Signature);
    assert_eq!(Case::new("bce", 401, &"").cause(), Cause::Signature);
    assert_eq!(Case::new("bce", 403, &"<code>RequestExpired</code>").cause(), Cause::Other);
    assert_eq!(Case::new("bce", 403, &"").ahead(7200).cause(), Cause::Other, "a GET would have had a body");
}

#[test]
fn a_refused_head_of_bce_is_judged_by_the_clocks() {
    let head = |status, ahead| Case::new("bce", status, &"").head().ahead(ahead).header("x-bce-request-id", "ae22");
    for (ahead, is_expired) in [(0, false), (1800, false), (1801, true), (-1800, false), (-1801, true)] {
        for status in [400, 403] {
            let verdict = head(status, ahead).judge();
            assert_eq!(verdict.cause, if is_expired { Cause::Clock(None) } else { Cause::Other }, "{ahead}");
            assert_eq!(read(&verdict), [None, None, Some("ae22")]);
        }
    }
    // A short validity counts from the time of signing; a long one leaves `x-bce-date` as near as ever.
    for (keys, ahead, cause) in [
        ("expires_in = '1m'", 61, Cause::Clock(None)),
        ("expires_in = '1m'", -61, Cause::Other),
        ("expires_in = '2h'", 1801, Cause::Clock(None)),
    ] {
        assert_eq!(head(403, ahead).keys(keys).cause(), cause, "{keys}: {ahead}");
    }
    assert_eq!(Case::new("bce", 403, &"").head().cause(), Cause::Other);
}

#[test]
fn acm_is_judged_by_what_can_be_seen_from_outside() {
    let acm = || Case::new("acm", 403, &json!({ "code": "InvalidAccessKeyId", "requestId": "1" }));
    for (case, cause) in [
        (acm(), Cause::Signature),
        (acm().ahead(30), Cause::Signature),
        (acm().ahead(31), Cause::Clock(None)),
        (acm().ahead(-31), Cause::Clock(None)),
        (acm().temporary(61), Cause::Credential),
        (acm().temporary(60), Cause::Signature),
        (acm().temporary(61).ahead(31), Cause::Clock(None)),
    ] {
        let verdict = case.judge();
        assert_eq!(verdict.cause, cause);
        assert_eq!(read(&verdict), [None, None, None], "its bodies are never parsed");
        assert!(!verdict.advice.is_empty());
    }
}

#[test]
fn acs_is_judged_by_its_code_in_either_spelling_and_in_xml() {
    for (status, code, cause) in [
        (400, "SignatureDoesNotMatch", Cause::Signature),
        (403, "SignatureDoesNotMatch", Cause::Signature),
        (400, "IncompleteSignature", Cause::Other),
        (400, "InvalidTimeStamp.Expired", Cause::Clock(None)),
        (400, "InvalidTimeStamp.Format", Cause::Clock(None)),
        (400, "IllegalTimestamp", Cause::Clock(None)),
        (400, "SignatureNonceUsed", Cause::Spent),
        (404, "InvalidAccessKeyId.NotFound", Cause::Credential),
        (403, "InvalidAccessKeyId.Inactive", Cause::Other),
        (400, "InvalidSecurityToken.Expired", Cause::Credential),
        (400, "InvalidSecurityToken.Malformed", Cause::Credential),
        (403, "InvalidSecurityToken.MismatchWithAccessKey", Cause::Credential),
        (403, "MissingSecurityToken", Cause::Credential),
        (403, "Forbidden.RAM", Cause::Other),
        (403, "NoPermission", Cause::Other),
        (400, "Throttling", Cause::Throttled),
        (429, "Throttling.User", Cause::Throttled),
        (503, "Throttling.Api", Cause::Throttled),
        (404, "ErrorClusterNotFound", Cause::Other),
        (503, "ServiceUnavailable", Cause::Other),
        (400, "InvalidTimeStampOfTheirs", Cause::Other),
        (429, "Unheard.Of", Cause::Throttled),
    ] {
        let message = "Specified signature is not matched: GET\napplication/json";
        let xml = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><RequestId>C7F3-1</RequestId><HostId>cs.aliyuncs.com</HostId>\
             <Code>{code}</Code><Message>{message}</Message></Error>"
        );
        for body in [
            json!({ "RequestId": "C7F3-1", "HostId": "cs.aliyuncs.com", "Code": code, "Message": message }).to_string(),
            json!({ "requestId": "C7F3-1", "code": code, "message": message }).to_string(),
            xml,
        ] {
            let verdict = Case::new("acs-roa", status, &body).judge();
            assert_eq!(verdict.cause, cause, "{body}");
            assert_eq!(read(&verdict), [Some(code), Some(message), Some("C7F3-1")], "{body}");
        }
    }
    let mismatch = Case::new("acs-roa", 400, &json!({ "Code": "SignatureDoesNotMatch" })).judge();
    assert!(mismatch.advice.contains("`countersign sign --explain`"), "{}", mismatch.advice);
    let cut_off = Case::new("acs-roa", 400, &"{\"Code\":\"SignatureNonce").header("x-acs-request-id", "C7F3-2").judge();
    assert_eq!((cut_off.cause, read(&cut_off)), (Cause::Other, [None, None, Some("C7F3-2")]));
}

fn gateway(provider: &'static str, status: u16, code: &str, message: &str) -> Case {
    let message = format!("Incorrect IAM authentication information: {message}");
    Case::new(provider, status, &json!({ "error_msg": message, "error_code": code, "request_id": "4f1c" }))
}

fn aksk(message: &str) -> Case {
    gateway("huawei-aksk", 401, "APIGW.0301", message)
}

/// 2023-05-27T02:06:08Z.
const QUOTED: Timestamp = Timestamp(1_685_153_168_000);

const EXPIRED: &str = "signature expired,signature time:20230527T000431Z,server time:20230527T020608Z";

#[test]
fn signatures_of_huawei_are_judged_by_code_and_message() {
    for (message, cause) in [
        (EXPIRED, Cause::Clock(Some(QUOTED))),
        ("signature expired", Cause::Clock(None)),
        ("calc ak sk signature fail:signature expired", Cause::Clock(None)),
        ("signature expired,server time:soon", Cause::Clock(None)),
        ("signature expired,server time:2023\u{5e74}0527T020608Z", Cause::Clock(None)),
        ("verify aksk signature fail", Cause::Signature),
        ("AK access failed to reach the limit,forbidden.", Cause::Locked),
        ("Get secretKey failed,ak:QTWA,err:ak not exist", Cause::Credential),
        ("body too large", Cause::Other),
        ("Authorization header is missing", Cause::Other),
        ("something new", Cause::Signature),
    ] {
        for code in ["APIGW.0301", "APIG.0301", "APIGW.0303", "APIG.0303"] {
            let verdict = gateway("huawei-aksk", 401, code, message).judge();
            assert_eq!(verdict.cause, cause, "{message}");
            assert_eq!((verdict.code.as_deref(), verdict.request_id.as_deref()), (Some(code), Some("4f1c")));
            assert!(!verdict.advice.is_empty() && !verdict.advice.contains("QTWA"));
        }
    }
    for code in ["APIGW.0307", "APIG.0101", "APIGW.03010"] {
        assert_eq!(gateway("huawei-aksk", 401, code, "verify aksk signature fail").cause(), Cause::Other, "{code}");
    }
    assert_eq!(Case::new("huawei-aksk", 401, &"").cause(), Cause::Other);
    assert_eq!(gateway("huawei-aksk", 403, "APIGW.0301", EXPIRED).cause(), Cause::Other);
    assert_eq!(gateway("huawei-aksk", 429, "APIGW.0308", "throttled").cause(), Cause::Throttled);
}

#[test]
fn a_bad_signature_of_huawei_is_blamed_on_the_clock_beyond_fifteen_minutes_only() {
    for (ahead, is_blamed) in [(900, false), (901, true), (-900, false), (-901, true)] {
        let cause = if is_blamed { Cause::Clock(None) } else { Cause::Signature };
        assert_eq!(aksk("verify aksk signature fail").ahead(ahead).cause(), cause, "{ahead}");
        assert_eq!(aksk("AK access failed to reach the limit").ahead(ahead).cause(), Cause::Locked);
        assert_eq!(aksk("ak not exist").ahead(ahead).cause(), Cause::Credential);
        assert_eq!(aksk(EXPIRED).ahead(ahead).cause(), Cause::Clock(Some(QUOTED)), "what it quotes is exact");
    }
}

#[test]
fn what_a_message_quotes_of_a_request_does_not_decide() {
    for quoted in [EXPIRED, "AK access failed to reach the limit", "ak not exist", "body too large"] {
        let message = format!("verify aksk signature fail, canonicalRequest:GET|/||x-note:{quoted}||x-note|e3b0");
        assert_eq!(aksk(&message).cause(), Cause::Signature, "{quoted}");
    }
}

#[test]
fn tokens_of_huawei_are_judged_by_code_and_message() {
    for (code, message, cause) in [
        ("APIGW.0307", "The token must be updated.", Cause::Credential),
        ("APIGW.0301", "decrypt token fail", Cause::Credential),
        ("APIG.0301", "token expires", Cause::Credential),
        ("APIG.0301", "x-auth-token not found", Cause::Other),
        ("APIGW.0301", "X-Auth-Token not found", Cause::Other),
    ] {
        let verdict = gateway("huawei-token", 401, code, message).judge();
        assert_eq!((verdict.cause, verdict.code.as_deref()), (cause, Some(code)), "{message}");
        assert!(!verdict.advice.is_empty());
    }
    let of_iam = json!({ "error": { "code": 401, "message": "The request requires authentication.", "title": "x" } });
    let verdict = Case::new("huawei-token", 401, &of_iam).header("x-iam-trace-id", "token_1").judge();
    assert_eq!(verdict.cause, Cause::Credential, "a service without the gateway");
    assert_eq!(read(&verdict), [Some("401"), Some("The request requires authentication."), Some("token_1")]);
    assert_eq!(Case::new("huawei-token", 401, &"no JSON").cause(), Cause::Credential);

    let denied = json!({ "error_code": "SMS.9004", "error_msg": "no sms:server:getCert",
        "encoded_authorization_message": "9f8e", "details": [{ "error_code": "SMS.1", "error_msg": "x" }] });
    let verdict = Case::new("huawei-token", 403, &denied).header("x-request-id", "4f1c").judge();
    assert_eq!(verdict.cause, Cause::Other);
    assert_eq!(read(&verdict), [Some("SMS.9004"), Some("no sms:server:getCert"), Some("4f1c")]);
    assert_eq!(gateway("huawei-token", 403, "APIGW.0301", "token expires").cause(), Cause::Other);
    assert_eq!(gateway("huawei-token", 429, "APIGW.0308", "throttled").cause(), Cause::Throttled);
}

#[test]
fn errors_of_huawei_come_in_four_shapes() {
    for (body, expected) in [
        (json!({ "error_code": "a", "error_msg": "b", "errorCode": "x", "code": "x" }), "a"),
        (json!({ "code": "x", "message": "x", "errorCode": "a", "errorMsg": "b" }), "a"),
        (json!({ "error": { "error_code": "x" }, "code": "a", "message": "b" }), "a"),
        (json!({ "error": { "errorCode": "a", "errorMsg": "b" } }), "a"),
        (json!({ "error_code": null, "message": "x", "any": { "code": 7, "message": "b" } }), "7"),
    ] {
        let verdict = Case::new("huawei-token", 401, &body).judge();
        assert_eq!(read(&verdict)[..2], [Some(expected), Some("b")], "{body}");
    }
    for body in [json!({ "error": { "inner": { "code": "a" } } }), json!([{ "code": "a" }]), json!({ "code": ["a"] })] {
        assert_eq!(read(&Case::new("huawei-token", 401, &body).judge()), [None, None, None], "{body}");
    }
}

#[test]
fn what_is_no_name_is_not_shown() {
    let long = "a".repeat(129);
    for odd in ["", " ", "a b", "\u{1b}[2J", "<script>", "\u{7f16}", "a\nb", "Zm9v/YmFy+w==", &long] {
        let case = Case::new("bce", 403, &json!({ "code": odd, "message": "m", "requestId": odd }));
        assert_eq!(read(&case.judge()), [None, None, None], "{odd:?}");
        let verdict = case.header("x-bce-request-id", "ae22").judge();
        assert_eq!(verdict.request_id.as_deref(), Some("ae22"), "{odd:?}");
    }
}

#[test]
fn tem_says_by_how_much_the_clocks_differ_where_the_time_is_signed() {
    for (keys, ahead, expected) in [
        ("", None, "check the access key"),
        ("", Some(5), "check the access key"),
        ("", Some(6), "the server's clock is 6 seconds ahead of the time that was signed"),
        ("", Some(-95), "the server's clock is 95 seconds behind the time that was signed"),
        ("algorithm = 'L3.SHA1'", Some(95), "the server's clock is 95 seconds ahead of"),
        ("algorithm = 'L0.SHA1'", Some(95), "check the access key"),
    ] {
        let verdict = Case { ahead, ..Case::new("tem", 401, &json!({ "Success": false })).keys(keys) }.judge();
        assert_eq!(verdict.cause, Cause::Signature);
        assert!(verdict.advice.starts_with(expected), "{keys} {ahead:?}: {}", verdict.advice);
    }
}

#[test]
fn the_refusal_of_a_head_is_known_by_its_status_and_the_clocks() {
    let off = |provider, status, ahead| Case::new(provider, status, &"").head().ahead(ahead).cause();
    assert_eq!(off("huawei-aksk", 401, 0), Cause::Signature);
    assert_eq!(off("huawei-aksk", 401, 901), Cause::Clock(None));
    assert_eq!(off("huawei-aksk", 403, 901), Cause::Other);
    assert_eq!(off("acs-roa", 400, 0), Cause::Other);
    assert_eq!(off("acs-roa", 400, -901), Cause::Clock(None));
}
