//! Ids that are found out, as services see them.

use countersign::clock::Clock;

use crate::cloud::Cloud;
use crate::scene::{Proxy, gateway, key, now, start_cloud, written};
use crate::script::await_that;
use crate::token::await_pauses;

const PROJECT: &str = "77b6a44cba5143ab91d13ab9a8ff44fd";
const ACCOUNT: &str = "1fc0ba4b7f0f4ab5a7c0d7d6a40f2f5e";

/// A route `up` with the key that everybody knows and more keys of the provider.
fn route(cloud: &Cloud, more: &str) -> String {
    let (service, iam) = (gateway(cloud), cloud.iam.http());
    let route = service.route_with("up", &service.http, "", &written(&key()));
    format!("{route}iam = \"{iam}\"\nsts = \"{iam}\"\nregion = \"cn-north-4\"\n{more}\n")
}

#[test]
fn ids_are_asked_for_once_and_sent_signed_with_every_request() {
    for (more, project, account) in [
        ("project_id = \"auto\"", Some(PROJECT), None),
        ("domain_id = \"auto\"", None, Some(ACCOUNT)),
        ("project_id = \"auto\"\ndomain_id = \"given\"", Some(PROJECT), Some("given")),
        ("project_id = \"auto\"\ndomain_id = \"auto\"", Some(PROJECT), Some(ACCOUNT)),
    ] {
        for shows_account in [true, false] {
            let clock = Clock::fixed(now());
            let cloud = start_cloud(&clock);
            cloud.iam.play.set(|settings| settings.shows_account = shows_account);
            let proxy = Proxy::start(&cloud, &clock, &route(&cloud, more));
            for _ in 0..5 {
                let reply = proxy.get("/v1/vpcs");
                assert_eq!(reply.status, 200, "{more}: {}", reply.text());
            }
            for call in cloud.gateway.calls() {
                let sent = ["x-project-id", "x-domain-id"].map(|name| Some(call.headers.get(name)?.to_str().unwrap()));
                assert_eq!(sent, [project, account], "{more}");
                let signed = call.headers["authorization"].to_str().unwrap();
                assert_eq!(
                    (signed.contains("x-project-id"), signed.contains("x-domain-id")),
                    (project.is_some(), account.is_some())
                );
            }
            let steps = usize::from(project.is_some())
                + usize::from(account == Some(ACCOUNT)) * if shows_account { 1 } else { 2 };
            assert_eq!(cloud.iam.arrived(), steps, "{more} {shows_account}");
        }
    }
}

#[test]
fn several_projects_of_one_name_are_told_and_none_is_chosen() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    cloud.iam.play.set(|settings| settings.projects.push(("cn-north-4", "another-project")));
    let proxy = Proxy::start(&cloud, &clock, &route(&cloud, "project_id = \"auto\""));
    for _ in 0..3 {
        let message = proxy.get("/v1/vpcs").expect(503, "credential_unavailable");
        assert!(message.contains(PROJECT) && message.contains("another-project"), "{message}");
        assert!(message.contains("`project_id`"), "{message}");
    }
    assert_eq!((cloud.iam.arrived(), cloud.gateway.arrived()), (1, 0));
    cloud.iam.play.set(|settings| settings.projects.retain(|project| project.1 != "another-project"));
    // What only a person can put right is asked about after minutes.
    await_pauses(&clock, "an answer", || proxy.get("/v1/vpcs").status == 200);
    await_that("two questions", || cloud.iam.calls().len() == 2);
}
