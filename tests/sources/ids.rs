//! The ids of a Huawei Cloud access key's project and account, asked of an IAM that verifies signatures.

use countersign::clock::{Clock, Timestamp};
use countersign::credential::{AccessKey, Credential, Failed, Fetched, Ids, Retry};
use countersign::provider::{Provider, Request};
use countersign::upstream::ask::Asker;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::json;

use super::cloud::{Cloud, Fault};
use super::server::{Server, reply};
use super::{NOW, asker, fetch_of, source, trouble};

const PROJECT: &str = "77b6a44cba5143ab91d13ab9a8ff44fd";
const ACCOUNT: &str = "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e";
const BOTH: &str = "project_id = 'auto'\ndomain_id = 'auto'\nregion = 'cn-north-4'";

fn cloud() -> (Cloud, Asker) {
    let clock = Clock::fixed(NOW);
    let cloud = Cloud::start(&clock);
    let key = AccessKey { access_key: "the-key".to_owned(), secret_key: "hunter2".into(), security_token: None };
    cloud.add(&key);
    (cloud, Asker { clock, ..asker() })
}

fn provider(iam: &str, more: &str) -> Box<dyn Provider> {
    let credentials = "{ access_key = 'the-key', secret_key = 'hunter2' }";
    source("huawei-aksk", &format!("credentials = {credentials}\niam = '{iam}'\n{more}")).unwrap()
}

async fn fetched(iam: &str, more: &str, asker: &Asker) -> Result<Fetched, Failed> {
    fetch_of(provider(iam, more).as_ref()).fetch(asker).await
}

fn ids(fetched: Result<Fetched, Failed>) -> Ids {
    match fetched.unwrap().credential {
        Credential::Identified(key, ids) => {
            assert_eq!(key.access_key, "the-key");
            ids
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ids_are_asked_for_once_a_key_and_sent_signed() {
    let (cloud, asker) = cloud();
    let provider = provider(&cloud.iam.http(), BOTH);
    let place = fetch_of(provider.as_ref());
    for _ in 0..2 {
        let expected = Ids { project: Some(PROJECT.to_owned()), domain: Some(ACCOUNT.to_owned()) };
        assert_eq!(ids(place.fetch(&asker).await), expected);
    }
    let targets: Vec<_> = cloud.iam.calls().into_iter().map(|call| call.target).collect();
    assert_eq!(targets, ["/v3/projects?name=cn-north-4", "/v3/auth/domains"]);
    assert!(!format!("{provider:?}").contains("hunter2"));

    let sets = provider.sets();
    assert!(["X-Project-Id", "X-Domain-Id"].iter().all(|name| sets.iter().any(|set| set == name)), "{sets:?}");
    let credential = place.fetch(&asker).await.unwrap().credential;
    let signer = provider.signer(&credential).unwrap();
    let (method, headers) =
        (&Method::GET, &HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("h"))]));
    let request = Request { method, path: "/", query: None, headers, body: b"", time: NOW, nonce: "" };
    let fields: HeaderMap = signer.sign(&request, None).unwrap().into_iter().collect();
    assert_eq!([&fields["x-project-id"], &fields["x-domain-id"]], [PROJECT, ACCOUNT]);
    assert!(fields["authorization"].to_str().unwrap().contains("x-domain-id;x-project-id"), "{fields:?}");

    let Credential::Identified(key, _) = credential else { unreachable!() };
    let said = provider.signer(&Credential::AccessKey(key)).err().unwrap();
    assert_eq!(said, "header `x-project-id`: the id was not found out yet");
}

#[tokio::test]
async fn only_what_is_auto_is_asked_for() {
    let (cloud, asker) = cloud();
    let domain = ids(fetched(&cloud.iam.http(), "domain_id = 'auto'", &asker).await);
    assert_eq!(domain, Ids { project: None, domain: Some(ACCOUNT.to_owned()) });
    let project = "project_id = 'auto'\nregion = 'cn-north-4'\ndomain_id = 'own'";
    let project = ids(fetched(&cloud.iam.http(), project, &asker).await);
    assert_eq!(project, Ids { project: Some(PROJECT.to_owned()), domain: None });
    assert_eq!(cloud.iam.calls().len(), 2);
}

#[tokio::test]
async fn an_account_that_iam_does_not_tell_is_asked_of_sts() {
    let (cloud, asker) = cloud();
    cloud.iam.play.set(|settings| settings.shows_account = false);
    let sts = format!("domain_id = 'auto'\nsts = '{}'", cloud.iam.http());
    assert_eq!(ids(fetched(&cloud.iam.http(), &sts, &asker).await).domain.as_deref(), Some(ACCOUNT));
    let targets: Vec<_> = cloud.iam.calls().into_iter().map(|call| call.target).collect();
    assert_eq!(targets, ["/v3/auth/domains", "/v5/caller-identity"]);

    let said = trouble(fetched(&cloud.iam.http(), "domain_id = 'auto'", &asker).await);
    assert!(said.contains("does not tell the account") && said.contains("(X-IAM-Trace-Id token_trace_"), "{said}");
    assert!(said.ends_with("give `domain_id`, or in `sts` the address of STS"), "{said}");
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_by_what_iam_says() {
    let (cloud, asker) = cloud();
    cloud.iam.shift(3600);
    let place = fetch_of(provider(&cloud.iam.http(), BOTH).as_ref());
    assert_eq!(ids(place.fetch(&asker).await).project.as_deref(), Some(PROJECT));
    let statuses: Vec<_> = cloud.iam.calls().into_iter().map(|call| call.status).collect();
    // What the first refusal taught the second question knows.
    assert_eq!(statuses, [401, 200, 200]);
}

#[tokio::test]
async fn a_wrong_secret_is_shown_once() {
    let (cloud, asker) = cloud();
    let table = format!(
        "credentials = {{ access_key = 'the-key', secret_key = 'hunter22' }}\niam = '{}'\n{BOTH}",
        cloud.iam.http()
    );
    let fetched = fetch_of(source("huawei-aksk", &table).unwrap().as_ref()).fetch(&asker).await;
    assert_eq!(fetched.as_ref().unwrap_err().retry, Retry::Late);
    let said = trouble(fetched);
    assert!(said.contains("401 Unauthorized") && said.contains("verify aksk signature fail"), "{said}");
    assert!(said.ends_with(": correct `credentials`, or give `project_id`"), "{said}");
    assert_eq!(cloud.iam.calls().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_found_out_is_told_with_what_to_do() {
    let (cloud, asker) = cloud();
    let project = |region: &str| format!("project_id = 'auto'\nregion = '{region}'");
    let said = trouble(fetched(&cloud.iam.http(), &project("nowhere?&"), &asker).await);
    assert!(said.contains("knows no project \"nowhere?&\"") && said.contains("(X-IAM-Trace-Id "), "{said}");
    assert_eq!(cloud.iam.calls()[0].target, "/v3/projects?name=nowhere%3F%26");

    cloud.iam.play.set(|settings| settings.projects = vec![("twice", "one"), ("twice", "two")]);
    let said = trouble(fetched(&cloud.iam.http(), &project("twice"), &asker).await);
    assert!(said.ends_with("give the one that is meant as `project_id`, one of one, two"), "{said}");

    cloud.iam.fail("/v3/projects", 1, Fault::json(403, &json!({ "error_msg": "no right" })));
    let said = trouble(fetched(&cloud.iam.http(), &project("twice"), &asker).await);
    assert!(said.contains("403 Forbidden \"no right\"") && said.ends_with(": give `project_id`"), "{said}");
    cloud.iam.fail("/v3/projects", 1, Fault::status(503));
    let refused = fetched(&cloud.iam.http(), &project("twice"), &asker).await;
    assert_eq!(refused.unwrap_err().retry, Retry::Soon);
}

#[tokio::test]
async fn odd_answers_lead_to_no_id() {
    for body in ["", "[]", r#"{"projects":[{"id":1}]}"#, r#"{"projects":[{"id":"a\nb"}]}"#, r#"{"projects":{}}"#] {
        let server = Server::start(move |_| reply("200 OK", body));
        let iam = format!("http://{}", server.address);
        let said = trouble(fetched(&iam, "project_id = 'auto'\nregion = 'r'", &asker()).await);
        assert_eq!(
            said,
            format!("{iam} answered, but without `projects` that can be read: is that the right address?")
        );
    }
}

#[tokio::test]
async fn the_keys_themselves_may_be_fetched_and_every_new_one_is_asked_about() {
    let (cloud, asker) = cloud();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let write = |name: &str| {
        cloud.add(&AccessKey {
            access_key: name.to_owned(),
            secret_key: "hunter2".into(),
            security_token: Some("st".into()),
        });
        let end = "2026-01-02T04:04:05Z";
        let keys =
            json!({ "AccessKeyId": name, "SecretAccessKey": "hunter2", "SessionToken": "st", "Expiration": end });
        std::fs::write(&path, keys.to_string()).unwrap();
    };
    let credentials = format!("{{ source = 'file', path = '{}' }}", path.display());
    let iam = cloud.iam.http();
    let table = format!("credentials = {credentials}\niam = '{iam}'\ndomain_id = 'auto'");
    let place = fetch_of(source("huawei-aksk", &table).unwrap().as_ref());
    assert_eq!((place.name(), place.files()), ("file", vec![path.clone()]));
    assert!(place.check().is_err());
    for (name, calls) in [("one", 1), ("one", 1), ("two", 2)] {
        write(name);
        let fetched = place.fetch(&asker).await.unwrap();
        assert_eq!(fetched.expiry, Some(Timestamp(NOW.0 + 3_600_000)));
        let Credential::Identified(key, ids) = fetched.credential else { panic!("no ids") };
        assert_eq!((key.access_key.as_str(), ids.domain.as_deref()), (name, Some(ACCOUNT)));
        assert_eq!(cloud.iam.calls().len(), calls);
    }
    let other = source("huawei-aksk", &table.replace("domain_id = 'auto'", BOTH)).unwrap();
    assert_ne!(place.identity(), fetch_of(other.as_ref()).identity());
}
