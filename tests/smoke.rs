//! The shortest way through everything: a request in the clear arrives signed.

#[path = "support/daemon.rs"]
#[allow(clippy::unwrap_used, reason = "a daemon that does not start fails the test")]
mod daemon;

use countersign::clock::Clock;
use countersign::demo::Stage;
use secrecy::ExposeSecret;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_the_clear_arrives_signed() {
    let stage = Stage::start(Clock::system()).await.unwrap();
    let configuration = format!(
        r#"
        [server]
        listen = ["127.0.0.1:0"]
        [routes.cert]
        upstream = "http://{}"
        [routes.cert.bce]
        credentials = {{ access_key = "{}", secret_key = "{}" }}
        "#,
        stage.certificates,
        stage.access_key.access_key,
        stage.access_key.secret_key.expose_secret(),
    );
    let daemon = tokio::task::spawn_blocking(move || daemon::Daemon::start(&configuration)).await.unwrap();
    let reply = tokio::task::spawn_blocking(move || {
        daemon.exchange("GET /v1/certificate HTTP/1.1\r\nHost: cert.localhost\r\nConnection: close\r\n\r\n")
    });
    let reply = reply.await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert!(stage.upstream.last_seen().unwrap().verdict.is_ok());
}
