//! One token for all who say the same, and for nobody else.

use countersign::clock::Clock;

use crate::cloud::Cloud;
use crate::scene::Proxy;
use crate::script::await_that;
use crate::token::{TOKEN, Token, get, send, start};

#[test]
fn a_hundred_first_requests_at_once_take_one_token() {
    let cloud = Cloud::start(&Clock::system());
    cloud.iam.hold();
    let daemon = start(&cloud, "workers = 1", &TOKEN.route(&cloud));
    let mut callers: Vec<_> = (0..100).map(|_| send(daemon.address(), "up", "GET", "")).collect();
    // The one worker has read what came before this.
    get(daemon.address(), "nowhere").expect(421, "unknown_host");
    cloud.iam.await_arrivals(1);
    assert_eq!(cloud.service.arrived(), 0);
    cloud.iam.release();
    for caller in &mut callers {
        let reply = caller.reply();
        assert_eq!((reply.status, reply.header("x-countersign-retry")), (200, None), "{}", reply.text());
    }
    assert_eq!((cloud.iam.arrived(), cloud.service.accepted("token 1 of project cn-north-4")), (1, 100));
    let token = cloud.iam.play.tokens.latest().unwrap();
    assert!(!daemon.log().contains(&token) && !daemon.log().contains("the-password"));
}

#[test]
fn routes_share_a_token_if_all_that_it_depends_on_is_the_same() {
    let clock = Clock::system();
    let cloud = Cloud::start(&clock);
    cloud.iam.play.set(|settings| settings.lock_after = usize::MAX);
    let other = "{ project = \"cn-east-3\" }";
    let routes = [
        TOKEN,
        Token { name: "twin", ..TOKEN },
        Token { name: "east", scope: other, ..TOKEN },
        Token { name: "account", scope: "{ domain = \"the-account\" }", ..TOKEN },
        Token { name: "wrong", password: "\"another-password\"", ..TOKEN },
    ];
    let proxy = Proxy::start(&cloud, &clock, &routes.map(|route| route.route(&cloud)).concat());
    for _ in 0..3 {
        for (route, token) in
            [("up", "project cn-north-4"), ("twin", "project cn-north-4"), ("east", "project cn-east-3")]
        {
            let reply = get(proxy.address, route);
            assert!(reply.status == 200 && reply.text().contains(token), "{route}: {}", reply.text());
        }
        assert!(get(proxy.address, "account").text().contains("domain the-account"));
        let message = get(proxy.address, "wrong").expect(503, "credential_unavailable");
        assert!(message.contains("The username or password is wrong."), "{message}");
    }
    await_that("all is asked", || cloud.iam.calls().len() >= 4);
    assert_eq!((cloud.iam.arrived(), cloud.iam.play.tokens.count(), cloud.iam.play.wrong_passwords()), (4, 3, 1));
}
