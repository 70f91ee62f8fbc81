//! Keys of instances, programs and files, on routes that sign with them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use countersign::canonical::time;
use countersign::clock::{Clock, Timestamp};
use countersign::credential::{AccessKey, ExposeSecret};
use serde_json::json;

use crate::cloud::{Cloud, Mode};
use crate::scene::{Proxy, Service, acm, acs, baidu, gateway, key_of, later, now, retry, services, start_cloud};
use crate::script::{Reply, await_that};
use crate::token::await_pauses;

const ECS_MODES: [Mode; 4] = [Mode::Hardened, Mode::Lenient, Mode::Plain(404), Mode::Plain(403)];
const HUAWEI_MODES: [Mode; 5] = [Mode::Hardened, Mode::Lenient, Mode::Plain(404), Mode::Plain(405), Mode::Plain(503)];

fn ecs(cloud: &Cloud, more: &str) -> String {
    format!("{{ source = \"ecs-ram-role\", endpoint = \"{}\"{more} }}", cloud.ecs.http())
}

fn huawei(cloud: &Cloud) -> String {
    format!("{{ source = \"huawei-metadata\", endpoint = \"{}\" }}", cloud.huawei.http())
}

/// A GET of what a service wants to be asked.
fn ask(proxy: &Proxy, service: &Service) -> Reply {
    proxy.ask(service.name, "GET", service.path, "")
}

/// Routes to these services.
fn routes(services: &[Service], credentials: &str) -> String {
    services.iter().map(|service| service.route_with(service.name, &service.http, "", credentials)).collect()
}

/// What a program prints and a file holds.
fn document(key: &AccessKey, expiry: Option<Timestamp>) -> String {
    let token = key.security_token.as_ref().map(ExposeSecret::expose_secret);
    json!({
        "AccessKeyId": key.access_key,
        "SecretAccessKey": key.secret_key.expose_secret(),
        "SessionToken": token,
        "Expiration": expiry.map(time::iso),
    })
    .to_string()
}

fn put(folder: &Path, document: &str) {
    fs::write(folder.join("aside"), document).unwrap();
    fs::rename(folder.join("aside"), folder.join("keys.json")).unwrap();
}

#[test]
fn the_keys_of_an_instance_sign_in_every_mode_of_its_metadata_service() {
    let of_ecs = ECS_MODES.map(|mode| (mode, true));
    let of_huawei = HUAWEI_MODES.map(|mode| (mode, false));
    for (mode, is_ecs) in of_ecs.into_iter().chain(of_huawei) {
        let clock = Clock::fixed(now());
        let cloud = Cloud::start(&clock);
        cloud.ecs.play.set(|settings| settings.mode = mode);
        cloud.huawei.play.set(|settings| settings.mode = mode);
        let (credentials, name) = if is_ecs { (ecs(&cloud, ""), "STS.ecs-") } else { (huawei(&cloud), "HST.huawei-") };
        let services = services(&cloud);
        let proxy = Proxy::start(&cloud, &clock, &routes(&services, &credentials));
        for service in &services {
            let reply = ask(&proxy, service);
            assert_eq!((reply.status, retry(&reply)), (200, None), "{} {mode:?}: {}", service.name, reply.text());
            assert_eq!(service.control.accepted(name), 1, "{} {mode:?}", service.name);
        }
    }
}

#[test]
fn keys_that_have_ended_are_never_sent() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    cloud.huawei.play.set(|settings| settings.life = Duration::from_secs(3600));
    let (acm, gateway) = (acm(&cloud), gateway(&cloud));
    let role = ecs(&cloud, ", role = \"the-role\"");
    let tables = [
        acm.route_with(acm.name, &acm.http, "", &role),
        gateway.route_with(gateway.name, &gateway.http, "", &huawei(&cloud)),
    ];
    let proxy = Proxy::start(&cloud, &clock, &tables.concat());
    let all = [(&acm, cloud.ecs.http()), (&gateway, cloud.huawei.http())];
    for (service, _) in &all {
        assert_eq!(ask(&proxy, service).status, 200);
    }
    cloud.ecs.behave(|manner| manner.is_down = true);
    cloud.huawei.behave(|manner| manner.is_down = true);
    for (second, is_alive) in [(3300, true), (3500, true), (3597, true), (3603, false), (36_000, false)] {
        clock.set(later(start, second));
        for (service, endpoint) in &all {
            let reply = ask(&proxy, service);
            if is_alive {
                assert_eq!(reply.status, 200, "{second} {}", reply.text());
            } else {
                let message = reply.expect(503, "credential_unavailable");
                assert!(message.contains(endpoint), "{message}");
            }
        }
    }
    assert_eq!((cloud.acm.arrived(), cloud.gateway.arrived()), (4, 4));
    for site in [&cloud.ecs.control, &cloud.huawei.control] {
        site.recover();
    }
    // One of them may be given its next already while the other one is still waited for.
    let issued = || [cloud.ecs.play.mint.issued(), cloud.huawei.play.mint.issued()];
    await_pauses(&clock, "new keys", || issued().iter().all(|keys| keys.len() >= 2));
    for (service, _) in &all {
        await_that("an answer", || ask(&proxy, service).status == 200);
    }
}

#[test]
fn an_instance_without_a_role_or_an_agency_is_told_so_until_it_has_one() {
    let clock = Clock::fixed(now());
    let cloud = Cloud::start(&clock);
    cloud.ecs.play.set(|settings| settings.role = None);
    cloud.huawei.play.set(|settings| settings.has_agency = false);
    let (acm, gateway) = (acm(&cloud), gateway(&cloud));
    let tables = [
        acm.route_with(acm.name, &acm.http, "", &ecs(&cloud, "")),
        gateway.route_with(gateway.name, &gateway.http, "", &huawei(&cloud)),
    ];
    let proxy = Proxy::start(&cloud, &clock, &tables.concat());
    for (service, cause) in [(&acm, "attach one to this instance"), (&gateway, "this instance has no agency")] {
        let message = ask(&proxy, service).expect(503, "credential_unavailable");
        assert!(message.contains(cause), "{message}");
    }
    assert!(!proxy.has_been_ready());
    cloud.ecs.play.set(|settings| settings.role = Some("the-role"));
    cloud.huawei.play.set(|settings| settings.has_agency = true);
    await_pauses(&clock, "keys", || proxy.has_been_ready());
    for service in [&acm, &gateway] {
        assert_eq!(ask(&proxy, service).status, 200);
    }
}

#[test]
fn a_program_and_a_file_drive_every_scheme_and_what_they_end_ends() {
    for source in ["file", "command"] {
        let start = now();
        let clock = Clock::fixed(start);
        let cloud = start_cloud(&clock);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let key = AccessKey { security_token: Some("a token".into()), ..key_of(1) };
        cloud.add(&key);
        put(folder.path(), &document(&key, Some(later(start, 3600))));
        let credentials = match source {
            "file" => format!("{{ source = \"file\", path = \"{}\" }}", path.display()),
            _ => format!("{{ source = \"command\", command = [\"cat\", \"{}\"] }}", path.display()),
        };
        let services = [acm(&cloud), baidu(&cloud), gateway(&cloud), acs(&cloud)];
        let proxy = Proxy::start_in(folder, &cloud, &clock, &routes(&services, &credentials));
        let all = |status| {
            for service in &services {
                let reply = ask(&proxy, service);
                assert_eq!(reply.status, status, "{source} {}: {}", service.name, reply.text());
            }
        };
        all(200);
        clock.set(later(start, 3599));
        all(200);
        let before: Vec<_> = services.iter().map(Service::count).collect();
        clock.set(later(start, 3600));
        for service in &services {
            let message = ask(&proxy, service).expect(503, "credential_unavailable");
            assert!(message.contains("expired on"), "{message}");
        }
        assert_eq!(services.iter().map(Service::count).collect::<Vec<_>>(), before);

        // Whoever makes it renews it.
        let next = AccessKey { security_token: Some("another token".into()), ..key_of(2) };
        cloud.add(&next);
        put(proxy.folder.path(), &document(&next, None));
        for service in &services {
            await_pauses(&clock, "the new key", || ask(&proxy, service).status == 200);
        }
        all(200);
    }
}

#[test]
fn a_program_that_fails_is_run_again_and_what_it_says_is_told() {
    let clock = Clock::fixed(now());
    let cloud = start_cloud(&clock);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let service = acs(&cloud);
    let command = format!("{{ source = \"command\", command = [\"cat\", \"{}\"] }}", path.display());
    fs::write(&path, "{\"AccessKeyId\": \"hunter2").unwrap();
    let proxy = Proxy::start_in(folder, &cloud, &clock, &routes(std::slice::from_ref(&service), &command));
    let message = ask(&proxy, &service).expect(503, "credential_unavailable");
    assert!(message.contains("what cat says cannot be used") && !message.contains("hunter2"), "{message}");
    put(proxy.folder.path(), &document(&key_of(0), None));
    await_pauses(&clock, "an answer", || ask(&proxy, &service).status == 200);
}
