//! A file that is replaced again and again while callers never pause.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use countersign::clock::Clock;
use countersign::credential::{AccessKey, ExposeSecret};

use crate::cloud::Cloud;
use crate::daemon;
use crate::scene::acs;
use crate::script::{Http, await_that, request};
use crate::token::start_in;

const ROTATIONS: usize = 100;

/// How many never pause; more take longer: `CALLERS=1000` for who has the time.
fn callers() -> usize {
    std::env::var("CALLERS").map_or(64, |callers| callers.parse().expect("a number of callers"))
}

/// Secret and token say which generation they are of, as the key does.
fn generation(number: usize) -> AccessKey {
    AccessKey {
        access_key: format!("STS.generation-{number:03}"),
        secret_key: format!("secret {number}").into(),
        security_token: Some(format!("token-{number}").into()),
    }
}

fn put(folder: &Path, key: &AccessKey) {
    let secret = key.secret_key.expose_secret();
    let token = key.security_token.as_ref().unwrap().expose_secret();
    let name = &key.access_key;
    let text = format!(r#"{{"AccessKeyId":"{name}","AccessKeySecret":"{secret}","SecurityToken":"{token}"}}"#);
    std::fs::write(folder.join("aside"), text).unwrap();
    std::fs::rename(folder.join("aside"), folder.join("keys.json")).unwrap();
}

#[test]
fn a_hundred_rotations_of_a_file_under_load_fail_no_request_and_mix_no_two_generations() {
    let cloud = Cloud::start(&Clock::system());
    cloud.add(&generation(0));
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &generation(0));
    let service = acs(&cloud);
    let tables = service.route_with("up", &service.http, "", "{ source = \"file\", path = \"keys.json\" }");
    let daemon = start_in(folder, "", &format!("[log]\naccess = false\n{tables}"));
    let (is_over, newest) = (AtomicBool::new(false), AtomicUsize::new(0));
    let counts: Mutex<Vec<[usize; ROTATIONS + 1]>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..callers() {
            scope.spawn(|| {
                let mut caller = Http::new(daemon::connect(daemon.address()));
                let mut count = [0; ROTATIONS + 1];
                while !is_over.load(Ordering::Relaxed) {
                    caller.send(request("GET", service.path, ""));
                    let reply = caller.reply();
                    let text = reply.text();
                    assert_eq!((reply.status, reply.header("x-countersign-retry")), (200, None), "{text}");
                    let (_, name) = text.split_once("STS.generation-").unwrap();
                    let number = name.get(..3).unwrap().parse().unwrap();
                    count[number] += 1;
                    newest.fetch_max(number, Ordering::Relaxed);
                }
                counts.lock().unwrap().push(count);
            });
        }
        // A caller that fails must not leave the others going.
        let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 1..=ROTATIONS {
                cloud.add(&generation(number));
                put(daemon.folder(), &generation(number));
                await_that("the new generation", || newest.load(Ordering::Relaxed) == number);
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        turned.unwrap();
    });
    let counts = counts.into_inner().unwrap();
    let sums: Vec<usize> = (0..=ROTATIONS).map(|number| counts.iter().map(|count| count[number]).sum()).collect();
    let sum: usize = sums.iter().sum();
    println!("{sum} requests under {} generations", sums.len());
    assert!(counts.len() == callers() && sums.iter().all(|count| *count > 0), "{sums:?}");
    // The service found each good, under one key with its own secret and its own token.
    assert_eq!((service.control.accepted("STS.generation-"), service.control.refused("")), (sum, 0));
}
