//! `bearer` and `basic` from end to end.

use countersign::demo::service::Service;
use countersign::demo::upstream::{Site, Transport};
use countersign::demo::verify::FixedHeader;
use http::header::AUTHORIZATION;

use crate::scene::{Scene, ask};

/// A service that wants one Authorization, and a route to it with the table's lines.
fn route(scene: &mut Scene, name: &str, authorization: &str, table: &str) -> String {
    let identity = scene.stage.authority.server(&["127.0.0.1"]).unwrap();
    let site = Site {
        name: "tokens",
        transport: Transport::Tls(identity),
        scheme: Box::new(FixedHeader { name: AUTHORIZATION, value: authorization.into() }),
        service: Service::Echo,
    };
    let address = scene.runtime.block_on(scene.stage.upstream.listen(site)).unwrap();
    format!("[routes.{name}]\nupstream = \"https://{address}\"\ntls = {{ ca = \"ca.pem\" }}\n{table}\n")
}

#[test]
fn the_token_or_the_user_and_the_password_arrive_and_no_forged_ones() {
    let mut scene = Scene::new();
    let tables = [
        route(&mut scene, "bearer", "Bearer mF_9.B5f-4.1JqM", "bearer = { token = \"mF_9.B5f-4.1JqM\" }"),
        // The example of RFC 7617, section 2.
        route(
            &mut scene,
            "basic",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "basic = { user = \"Aladdin\", password = \"open sesame\" }",
        ),
        route(&mut scene, "wrong", "Bearer right", "bearer = { token = \"wrong\" }"),
    ];
    let daemon = scene.start(&tables.concat());
    for (route, status) in [("bearer", 200), ("basic", 200), ("wrong", 401)] {
        for own in ["", "\nAuthorization: Bearer forged", "\nauthorization: Basic Zm9yZ2Vk\nAUTHORIZATION: forged"] {
            let head = format!("GET /a?b HTTP/1.1\nHost: {route}.localhost{own}");
            assert_eq!(ask(daemon.connect(), &head).passed_on().status, status, "{route}");
        }
    }
    for secret in ["mF_9", "sesame", "QWxhZGRpbjp", "forged"] {
        assert!(!daemon.log().contains(secret), "{secret}");
    }
}
