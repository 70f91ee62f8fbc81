//! Questions of our own: how they are sent, and what becomes of answers that are none.

use std::sync::Arc;

use countersign::upstream::ask::Asker;
use countersign::upstream::outbound::{Outbound, ProxyServer};

use super::server::{Server, reply};
use super::{asker, fetch_of, place, source, trouble};

const TOKEN: &str = "account = 'a'\nuser = 'u'\npassword = 'hunter2'\nscope = { domain = 'd' }";

fn through(proxy: &Server) -> Asker {
    let proxy = ProxyServer::parse(&format!("http://{}", proxy.address), "`proxy`".to_owned()).unwrap();
    Asker { proxy: Outbound::Proxy(Arc::new(proxy)), ..asker() }
}

async fn asked(server: &Server, asker: &Asker) -> String {
    let provider = source("huawei-token", &format!("iam = 'http://{}'\n{TOKEN}", server.address)).unwrap();
    trouble(fetch_of(provider.as_ref()).fetch(asker).await)
}

#[tokio::test]
async fn answers_that_are_too_large_or_broken_off_are_none() {
    let large = "x".repeat((1 << 20) + 1);
    for (answer, expected) in [
        (reply("201 Created", &large), "its answer is larger than 1048576 octets"),
        (format!("HTTP/1.1 201 Created\r\nx: {}\r\n\r\n", "x".repeat(200_000)), "head is larger than 131072 octets"),
        ("HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\n1".to_owned(), "before the end of its reply"),
        (String::new(), "before the end of its reply"),
        ("hunter2\r\n\r\n".to_owned(), "its reply is not HTTP/1.1"),
    ] {
        let server = Server::start(move |_| answer.clone());
        let said = asked(&server, &asker()).await;
        assert!(said.starts_with(&format!("http://{}", server.address)) && said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(|_| reply("200 OK", ""));
    let location = format!("location: http://{}/\r\n", other.address);
    let server = Server::start(move |_| super::server::dated("", "307 Temporary Redirect", &location, ""));
    assert!(asked(&server, &asker()).await.contains("307 Temporary Redirect"));
    assert!(other.heard().is_empty());
}

#[tokio::test]
async fn one_of_our_own_listeners_is_not_asked() {
    let server = Server::start(|_| reply("200 OK", ""));
    let own = Asker { own: Arc::new([server.address]), ..asker() };
    let said = asked(&server, &own).await;
    assert!(said.contains("one of countersign's own listeners: correct `iam`"), "{said}");
    assert!(server.heard().is_empty());
}

#[tokio::test]
async fn what_is_secret_goes_through_a_proxy_in_a_tunnel_alone() {
    let proxy = Server::start(|_| reply("403 Forbidden", ""));
    let server = Server::start(|_| reply("500 Oops", ""));
    // In the clear it does not leave this machine.
    assert!(asked(&server, &through(&proxy)).await.contains("500 Internal"));
    assert!(proxy.heard().is_empty());

    let authority = countersign::demo::certificates::Authority::new("a test").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let table = format!("iam = 'https://iam.example'\niam_ca = '{}'\n{TOKEN}", ca.display());
    let provider = source("huawei-token", &table).unwrap();
    let said = trouble(fetch_of(provider.as_ref()).fetch(&through(&proxy)).await);
    assert!(said.contains(&format!("the outbound proxy http://{}", proxy.address)), "{said}");
    assert_eq!(proxy.asked(), ["CONNECT iam.example:443"]);
}

#[tokio::test]
async fn metadata_is_never_asked_through_a_proxy() {
    let proxy = Server::start(|_| reply("200 OK", ""));
    let server = Server::start(|_| reply("404 Not Found", ""));
    for name in ["ecs-ram-role", "huawei-metadata"] {
        let place = place(&format!("{{ source = '{name}', endpoint = 'http://{}' }}", server.address));
        trouble(place.fetch(&through(&proxy)).await);
    }
    assert!(proxy.heard().is_empty() && !server.heard().is_empty());
}
