//! Tokens of Huawei Cloud's IAM.

use std::fs;

use countersign::clock::Timestamp;
use countersign::credential::{Credential, ExposeSecret, Failed, Fetched, Retry, SecretString};
use countersign::demo::certificates::Authority;
use serde_json::{Value, json};

use super::server::{Server, dated, reply};
use super::{NOW, asker, fetch_of, source, trouble};

const DATE: &str = "Fri, 02 Jan 2026 03:04:05 GMT";
const BODY: &str = r#"{"token":{"expires_at":"2026-01-03T03:04:05.678000Z","methods":["password"]}}"#;
const A_DAY: i64 = 86_400_000;

fn table(iam: &str, scope: &str, more: &str) -> String {
    format!("iam = '{iam}'\naccount = 'acc\"ount'\nuser = 'user'\npassword = 'hunter2'\nscope = {scope}\n{more}")
}

fn created(date: &str, token: &str) -> String {
    dated(date, "201 Created", &format!("x-subject-token: {token}\r\n"), BODY)
}

fn token(fetched: Result<Fetched, Failed>) -> (String, i64) {
    let Fetched { credential, expiry } = fetched.unwrap();
    let Credential::Secrets(secrets) = credential else { panic!("{credential:?}") };
    let secrets: Vec<_> = secrets.iter().map(SecretString::expose_secret).collect();
    (secrets.join(" "), expiry.unwrap().0)
}

#[tokio::test]
async fn every_scope_is_asked_for_as_iam_wants_it() {
    for (scope, expected) in [
        ("{ project = 'cn-north-4' }", json!({ "project": { "name": "cn-north-4" } })),
        ("{ project_id = '0a1b' }", json!({ "project": { "id": "0a1b" } })),
        ("{ domain = 'acc' }", json!({ "domain": { "name": "acc" } })),
        ("{ project = 'p', domain = 'd' }", json!({ "project": { "name": "p", "domain": { "name": "d" } } })),
    ] {
        let server = Server::start(|_| created(DATE, "MIIT"));
        let provider = source("huawei-token", &table(&format!("http://{}", server.address), scope, "")).unwrap();
        let got = token(fetch_of(provider.as_ref()).fetch(&asker()).await);
        assert_eq!(got, ("MIIT".to_owned(), NOW.0 + A_DAY + 678 - 500));
        let requests = server.heard();
        let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v3/auth/tokens?nocatalog=true HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/json;charset=utf8"), "{head}");
        let user = json!({ "name": "user", "password": "hunter2", "domain": { "name": "acc\"ount" } });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let wanted = json!({ "auth": { "identity": identity, "scope": expected } });
        assert_eq!(serde_json::from_str::<Value>(body).unwrap(), wanted);
    }
}

#[tokio::test]
async fn a_token_of_64_kib_is_taken() {
    let long = "MIIT".repeat(16384);
    let sent = long.clone();
    let server = Server::start(move |_| created(DATE, &sent));
    let provider =
        source("huawei-token", &table(&format!("http://{}", server.address), "{ domain = 'd' }", "")).unwrap();
    assert_eq!(token(fetch_of(provider.as_ref()).fetch(&asker()).await).0, long);
}

#[tokio::test]
async fn a_wrong_local_clock_does_not_change_how_long_a_token_lives() {
    let server = Server::start(|_| created(DATE, "MIIT"));
    let provider =
        source("huawei-token", &table(&format!("http://{}", server.address), "{ domain = 'd' }", "")).unwrap();
    let asker = asker();
    let ours = Timestamp(NOW.0 - 7 * A_DAY);
    asker.clock.set(ours);
    assert_eq!(token(fetch_of(provider.as_ref()).fetch(&asker).await).1, ours.0 + A_DAY + 678 - 500);
}

#[tokio::test]
async fn iam_is_reached_over_tls_with_a_ca_of_its_own() {
    let authority = Authority::new("a test").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [right, wrong] = ["ca.pem", "other.pem"].map(|name| folder.path().join(name));
    fs::write(&right, authority.pem()).unwrap();
    fs::write(&wrong, Authority::new("another").unwrap().pem()).unwrap();
    let server = Server::secure(&authority, |_| created(DATE, "MIIT"));
    let fetch = |ca: &std::path::Path| {
        let more = format!("iam_ca = '{}'", ca.display());
        let table = table(&format!("https://{}", server.address), "{ domain = 'd' }", &more);
        fetch_of(source("huawei-token", &table).unwrap().as_ref())
    };
    let place = fetch(&right);
    assert_eq!(place.files(), std::slice::from_ref(&right));
    assert_eq!(token(place.fetch(&asker()).await).0, "MIIT");

    let said = trouble(fetch(&wrong).fetch(&asker()).await);
    assert!(
        said.starts_with(&format!("TLS with https://{} failed: the server's certificate", server.address)),
        "{said}"
    );
    assert!(said.contains("name it in `iam_ca`") && said.ends_with("`iam_ca` is all that can be set"), "{said}");
    fs::remove_file(&wrong).unwrap();
    let said = trouble(fetch(&wrong).fetch(&asker()).await);
    assert!(said.contains("cannot be asked: `iam_ca`: cannot read"), "{said}");
    assert_eq!(server.heard().len(), 1);
}

#[tokio::test]
async fn what_iam_refuses_is_told_and_tried_again_late() {
    let unauthorized =
        r#"{"error":{"code":401,"message":"The username or password is wrong.","title":"Unauthorized"}}"#;
    let echo = r#"{"error":{"message":"no hunter2 here"}}"#;
    for (status, body, retry, expected) in [
        (
            "401 Unauthorized",
            unauthorized,
            Retry::Late,
            "401 Unauthorized \"The username or password is wrong.\": correct `account`, `user` or `password`",
        ),
        ("400 Bad Request", "hunter2", Retry::Late, "400 Bad Request: correct `scope`"),
        ("403 Forbidden", echo, Retry::Late, "403 Forbidden: is the user enabled"),
        ("404 Not Found", "{}", Retry::Late, "404 Not Found: correct `scope`"),
        ("302 Found", "", Retry::Late, "302 Found"),
        ("200 OK", BODY, Retry::Late, "200 OK"),
        ("429 Too Many Requests", "", Retry::Soon, "429 Too Many Requests"),
        ("500 Oops", "", Retry::Soon, "500 Internal Server Error"),
        ("201 Created", BODY, Retry::Soon, "answered without a token"),
    ] {
        let server = Server::start(move |_| reply(status, body));
        let iam = format!("http://{}", server.address);
        let provider = source("huawei-token", &table(&iam, "{ domain = 'd' }", "")).unwrap();
        let fetched = fetch_of(provider.as_ref()).fetch(&asker()).await;
        assert_eq!(fetched.as_ref().unwrap_err().retry, retry, "{status}");
        let said = trouble(fetched);
        assert!(said.starts_with(&iam) && said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_trace_id_is_told_and_an_end_must_be_named() {
    for (status, head, expected) in [
        ("500 Oops", "x-iam-trace-id: token_cn_1\r\n", "500 Internal Server Error (X-IAM-Trace-Id token_cn_1)"),
        ("201 Created", "x-subject-token: hunter2\r\n", "not with the time that it `expires_at`"),
    ] {
        let server = Server::start(move |_| dated(DATE, status, head, "{}"));
        let iam = format!("http://{}", server.address);
        let provider = source("huawei-token", &table(&iam, "{ domain = 'd' }", "")).unwrap();
        let said = trouble(fetch_of(provider.as_ref()).fetch(&asker()).await);
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_password_is_read_anew_and_its_file_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let server = Server::start(|_| created(DATE, "MIIT"));
    let table = table(&format!("http://{}", server.address), "{ domain = 'd' }", "");
    let table = table.replace("'hunter2'", &format!("{{ file = '{}' }}", path.display()));
    let place = fetch_of(source("huawei-token", &table).unwrap().as_ref());
    assert_eq!(place.files(), std::slice::from_ref(&path));
    assert_eq!(place.check().unwrap_err().len(), 1);
    assert!(trouble(place.fetch(&asker()).await).contains("`password`: cannot open"));
    for password in ["one", "two"] {
        fs::write(&path, password).unwrap();
        place.fetch(&asker()).await.unwrap();
    }
    assert!(place.check().is_ok());
    let heard = server.heard();
    assert!(heard[0].contains(r#""password":"one""#) && heard[1].contains(r#""password":"two""#), "{heard:?}");
}

#[test]
fn tokens_are_told_apart_by_all_that_they_depend_on() {
    let table = table("https://iam.example", "{ domain = 'd' }", "");
    let identity = |table: &str| fetch_of(source("huawei-token", table).unwrap().as_ref()).identity();
    let own = identity(&table);
    assert_eq!(own, identity(&table));
    assert!(!own.contains("hunter2"), "{own}");
    for (from, to) in
        [("iam.ex", "iam2.ex"), ("'user'", "'u'"), ("'acc\"", "'a\""), ("hunter2", "hunter3"), ("'d'", "'e'")]
    {
        assert_ne!(own, identity(&table.replace(from, to)), "{from}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_without_end() {
    // What connects there is never accepted, let alone answered.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let iam = format!("http://{}", listener.local_addr().unwrap());
    let provider = source("huawei-token", &table(&iam, "{ domain = 'd' }", "")).unwrap();
    let place = fetch_of(provider.as_ref());
    tokio::time::pause();
    let fetched = tokio::time::timeout(std::time::Duration::from_secs(60), place.fetch(&asker())).await.unwrap();
    let said = trouble(fetched);
    // Where time flies, connecting may have taken too long before it was tried.
    assert!(said.contains("did not answer within 10 s") || said.contains("took longer than 5 s"), "{said}");
}
