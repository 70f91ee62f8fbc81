//! Those that give something out: IAM and the instances' metadata services.

use std::sync::Arc;
use std::time::Duration;

use countersign::clock::Timestamp;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::client::{Headers, JSON, NOW, TOKENS, ask, connect, exchange, lasting, log_in, password, signed, start};
use crate::cloud::{Expiry, Mode, TokenRefusal};

#[test]
fn iam_gives_a_token_for_every_kind_of_scope_in_the_clear_and_with_tls() {
    let (cloud, _) = start();
    let project = "77b6a44cba5143ab91d13ab9a8ff44fd";
    let scopes = [
        json!({ "project": { "name": "cn-north-4" } }),
        json!({ "project": { "id": project } }),
        json!({ "project": { "name": "cn-north-4", "domain": { "name": "the-account" } } }),
        json!({ "domain": { "name": "the-account" } }),
        json!({ "domain": { "id": "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e" } }),
    ];
    let mut tokens = Vec::new();
    for scope in &scopes {
        let answer = log_in(&cloud, &password("the-password", scope));
        assert_eq!(answer.status, 201, "{scope}");
        assert_eq!(answer.json()["token"]["expires_at"], "2026-01-03T03:04:05.678000Z");
        assert_eq!(answer.header("date"), "Fri, 02 Jan 2026 03:04:05 GMT");
        let token = answer.header("x-subject-token").to_owned();
        assert!(token.len() > 4096 && !tokens.contains(&token));
        tokens.push(token);
        assert_eq!(cloud.iam.accepted(&format!("named by {scope}")), 1);
    }
    assert_eq!(cloud.iam.accepted("token of project cn-north-4"), 3);

    let mut roots = RootCertStore::empty();
    roots.add(cloud.authority.certificate()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let tls = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let stream = StreamOwned::new(tls, connect(cloud.iam.secure));
    let body = password("the-password", &scopes[0]);
    assert_eq!(exchange(stream, &format!("POST {TOKENS}"), &[JSON], &body).unwrap().status, 201);
}

#[test]
fn iam_writes_the_end_of_a_token_as_it_is_told() {
    let (cloud, _) = start();
    let body = password("the-password", &json!({ "project": { "name": "cn-north-4" } }));
    cloud.iam.shift(-3600);
    let cases = [(Expiry::Seconds, json!("2026-01-02T02:05:05Z")), (Expiry::Absent, Value::Null)];
    for (expiry, written) in cases {
        cloud.iam.play.set(|settings| (settings.life, settings.expiry) = (Duration::from_secs(60), expiry));
        let answer = log_in(&cloud, &body);
        assert_eq!(answer.json()["token"]["expires_at"], written);
        assert_eq!(answer.header("date"), "Fri, 02 Jan 2026 02:04:05 GMT");
    }
}

#[test]
fn iam_refuses_what_is_not_a_password_for_a_known_scope_and_locks_a_user() {
    let (cloud, _) = start();
    let known = json!({ "project": { "name": "cn-north-4" } });
    let good = password("the-password", &known);
    for (request, header, body, status) in [
        ("POST /v3/auth/tokens", JSON, good.clone(), 400),
        (&format!("POST {TOKENS}"), ("content-type", "text/plain"), good.clone(), 400),
        (&format!("POST {TOKENS}"), JSON, good.replace("methods", "method"), 400),
        (&format!("POST {TOKENS}"), JSON, good.replace("\"scope\"", "\"more\":1,\"scope\""), 400),
        (&format!("POST {TOKENS}"), JSON, password("the-password", &json!({ "project": {} })), 400),
        (&format!("POST {TOKENS}"), JSON, password("the-password", &json!({ "project": { "name": "no" } })), 404),
        (&format!("GET {TOKENS}"), JSON, String::new(), 401),
    ] {
        let answer = exchange(connect(cloud.iam.plain), request, &[header], &body).unwrap();
        assert_eq!(answer.status, status, "{request} {body}");
        assert!(!answer.header("x-iam-trace-id").is_empty());
    }
    cloud.iam.play.set(|settings| settings.lock_after = 2);
    for _ in 0..2 {
        assert!(!cloud.iam.play.is_locked());
        let answer = log_in(&cloud, &password("wrong", &known));
        let message = "The username or password is wrong.";
        let expected = json!({ "error": { "code": 401, "message": message, "title": "Unauthorized" } });
        assert_eq!((answer.status, answer.json()), (401, expected));
    }
    assert_eq!((log_in(&cloud, &good).status, cloud.iam.play.wrong_passwords()), (401, 2));
    assert!(cloud.iam.play.is_locked());
    cloud.iam.play.unlock();
    cloud.iam.play.set(|settings| settings.passwords = vec!["another", "the-password"]);
    assert_eq!(log_in(&cloud, &good).status, 201);
    assert_eq!(log_in(&cloud, &password("another", &known)).status, 201);
}

#[test]
fn iam_tells_ids_to_those_who_sign() {
    let (cloud, _) = start();
    let look = |target: &str| signed("huawei-aksk", &lasting(), cloud.iam.plain, target, NOW, "");
    assert_eq!(look("/v3/projects?name=cn-north-4").code(), (401, "APIGW.0301".to_owned()));
    cloud.add(&lasting());
    let found = look("/v3/projects?name=cn-north-4");
    assert_eq!(found.json()["projects"][0]["id"], "77b6a44cba5143ab91d13ab9a8ff44fd");
    assert!(!found.header("x-iam-trace-id").is_empty());
    assert_eq!(look("/v3/projects?name=elsewhere").json()["projects"], json!([]));
    cloud.iam.play.set(|settings| settings.projects.push(("cn-north-4", "another")));
    assert_eq!(look("/v3/projects?name=cn-north-4").json()["projects"].as_array().unwrap().len(), 2);

    let account = "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e";
    assert_eq!(look("/v3/auth/domains").json()["domains"][0]["id"], account);
    cloud.iam.play.set(|settings| settings.shows_account = false);
    assert_eq!(look("/v3/auth/domains").json()["domains"], json!([]));
    assert_eq!(look("/v5/caller-identity").json()["account_id"], account);
    assert_eq!(cloud.iam.accepted("domains for SDK-HMAC-SHA256 signature of AKlasting"), 2);
}

#[test]
fn a_token_is_good_until_its_end_by_the_services_clock_or_its_revocation() {
    let (cloud, _) = start();
    cloud.iam.play.set(|settings| settings.life = Duration::from_secs(60));
    let ask = |token: Option<&str>| {
        let headers: Vec<_> = token.map(|token| ("x-auth-token", token)).into_iter().collect();
        ask(cloud.service.plain, "GET /v1/vpcs", &headers)
    };
    let log_in = || log_in(&cloud, &password("the-password", &json!({ "domain": { "name": "the-account" } })));
    let tokens = [log_in(), log_in()].map(|answer| answer.header("x-subject-token").to_owned());
    assert_eq!(ask(Some(&tokens[0])).status, 200);
    cloud.iam.play.tokens.revoke(&tokens[0]);
    assert_eq!(ask(Some(&tokens[0])).code(), (401, "APIGW.0307".to_owned()));
    assert_eq!(ask(Some(&tokens[1])).status, 200);
    cloud.service.shift(60);
    for (refusal, code) in [
        (TokenRefusal::Outdated, "APIGW.0307"),
        (TokenRefusal::Undecipherable, "APIGW.0301"),
        (TokenRefusal::Keystone, "Unauthorized"),
    ] {
        cloud.service.play.refuse_with(refusal);
        assert_eq!(ask(Some(&tokens[1])).code(), (401, code.to_owned()));
    }
    cloud.service.shift(59);
    assert_eq!(ask(Some(&tokens[1])).status, 200);
    cloud.iam.play.tokens.revoke_all();
    assert_eq!(ask(cloud.iam.play.tokens.latest().as_deref()).status, 401);
    assert_eq!(ask(None).code(), (401, "APIGW.0301".to_owned()));
    assert_eq!((cloud.service.accepted("token 1 of"), cloud.service.accepted("token 2 of")), (1, 2));
    assert_eq!((cloud.service.refused("APIGW.0307"), cloud.service.refused("not found")), (2, 1));
}

const ROLES: &str = "GET /latest/meta-data/ram/security-credentials/";

#[test]
fn an_ecs_instance_is_given_new_keys_each_time_and_they_expire() {
    let (cloud, clock) = start();
    cloud.ecs.play.set(|settings| settings.mode = Mode::Hardened);
    let ask = |request: &str, headers: Headers<'_>| ask(cloud.ecs.plain, request, headers);
    assert_eq!(ask(ROLES, &[]).status, 403);
    assert_eq!(ask("PUT /latest/api/token", &[]).status, 400);
    let token = ask("PUT /latest/api/token", &[("x-aliyun-ecs-metadata-token-ttl-seconds", "21600")]).text();
    let token = [("x-aliyun-ecs-metadata-token", token.as_str())];
    assert_eq!(ask(ROLES, &token).text(), "the-role");
    assert_eq!(ask(&format!("{ROLES}another"), &token).status, 404);
    let role = format!("{ROLES}the-role");
    let given = ask(&role, &token).json();
    assert_eq!(given["AccessKeyId"], "STS.ecs-0001");
    assert_eq!((&given["Code"], &given["Expiration"]), (&json!("Success"), &json!("2026-01-02T04:04:05Z")));
    cloud.ecs.play.set(|settings| (settings.life, settings.code) = (Duration::from_secs(60), "Failed"));
    assert_eq!(ask(&role, &token).json()["Code"], "Failed");

    let read = |generation: usize, time| {
        let key = &cloud.ecs.play.mint.issued()[generation];
        signed("acm", key, cloud.acm.plain, "/diamond-server/config.co?group=G", time, "").status
    };
    assert_eq!((read(0, NOW), read(1, NOW)), (200, 200));
    clock.set(Timestamp(NOW + 60_000));
    assert_eq!((read(0, NOW + 60_000), read(1, NOW + 60_000)), (200, 403));
    cloud.revoke("STS.ecs-0001");
    assert_eq!(read(0, NOW + 60_000), 403);
    assert_eq!((cloud.acm.accepted("STS.ecs-0001"), cloud.acm.accepted("STS.ecs-0002")), (2, 1));

    cloud.ecs.play.forget_tokens();
    assert_eq!(ask(&role, &token).status, 401);
    cloud.ecs.play.set(|settings| settings.mode = Mode::Plain(404));
    assert_eq!(ask("PUT /latest/api/token", &[("x-aliyun-ecs-metadata-token-ttl-seconds", "60")]).status, 404);
    assert_eq!(ask(&role, &[]).status, 200);
    let given = ["token", "role", "credentials"].map(|what| cloud.ecs.accepted(what));
    assert_eq!(given, [1, 1, 3]);
}

#[test]
fn a_huawei_instance_is_given_keys_if_it_has_an_agency() {
    let (cloud, _) = start();
    let ask = |request: &str, headers: Headers<'_>| ask(cloud.huawei.plain, request, headers);
    let (put, get) = ("PUT /meta-data/latest/api/token", "GET /openstack/latest/securitykey");
    for status in [404, 405, 503] {
        cloud.huawei.play.set(|settings| settings.mode = Mode::Plain(status));
        assert_eq!(ask(put, &[("x-metadata-token-ttl-seconds", "21600")]).status, status);
    }
    assert_eq!(ask(get, &[]).json()["credential"]["expires_at"], "2026-01-03T03:04:05.678000Z");
    cloud.huawei.play.set(|settings| settings.mode = Mode::Hardened);
    let token = ask(put, &[("x-metadata-token-ttl-seconds", "21600")]).text();
    let token = [("x-metadata-token", token.as_str())];
    assert_eq!((ask(get, &[]).status, ask(get, &token).status), (401, 200));
    cloud.huawei.play.forget_tokens();
    let stale = ask(get, &token);
    assert_eq!((stale.status, stale.text().contains("Agency")), (401, false));
    cloud.huawei.play.set(|settings| (settings.mode, settings.has_agency) = (Mode::Lenient, false));
    let none = ask(get, &[]);
    assert_eq!((none.status, none.text().contains("Please configure Cloud Service Agency first")), (401, true));
    assert_eq!((cloud.huawei.accepted("token"), cloud.huawei.accepted("securitykey")), (1, 2));
    let key = &cloud.huawei.play.mint.issued()[1];
    assert_eq!(signed("huawei-aksk", key, cloud.gateway.plain, "/v1/vpcs", NOW, "").status, 200);
    assert_eq!(cloud.gateway.accepted("HST.huawei-0002"), 1);
}
