//! What is fuzzed, on the seeds that are kept: this needs neither a nightly compiler nor time.

#[path = "support/fuzz/mod.rs"]
mod fuzz;

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;

#[test]
fn every_seed_is_digested() {
    for (target, run) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let seeds: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|seed| seed.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{target} has no seed");
        for seed in seeds {
            // Shown only if it panics.
            println!("{}", seed.display());
            run(&std::fs::read(seed).unwrap());
        }
    }
}

#[test]
fn every_target_is_a_file_of_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let targets: Vec<_> = fuzz::TARGETS.iter().map(|(target, _)| format!("{target}.rs")).collect();
    assert_eq!(files, targets);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn no_reply_is_too_odd_to_be_judged(pieces in proptest::collection::vec(piece(), 0..12)) {
        fuzz::run("verdict", &pieces.concat());
    }

    #[test]
    fn no_location_leads_to_another_route(
        start in select(STARTS),
        authority in select(AUTHORITIES),
        port in select(PORTS),
        path in proptest::collection::vec(select(STEPS), 0..6),
    ) {
        let path = path.concat();
        for value in [format!("{start}{authority}{port}/{path}"), format!("{start}{path}")] {
            fuzz::run("location", value.as_bytes());
        }
    }
}

/// A piece of a reply that refuses a request, or of something else.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => select(ERRORS).prop_map(|text| text.as_bytes().to_vec()), 1 => any::<Vec<u8>>()]
}

/// What errors are made of.
const ERRORS: &[&str] = &[
    "\n\n",
    "{",
    "}",
    "\"code\":",
    "\"Code\":",
    "\"error_code\":",
    "\"error_msg\":",
    "\"error\":{",
    "\"APIGW.0301\",",
    "\"RequestExpired\"",
    "\"\u{e9}\"",
    "401",
    "\"signature expired,server time:",
    "20230527T020608Z\"",
    "<Code>",
    "</Code>",
    "x-bce-request-id:",
];

/// What comes before an authority, or may be taken for it.
const STARTS: &[&str] = &[
    "",
    "/",
    "//",
    "///",
    "http:",
    "http:/",
    "http://",
    "HTTP://",
    "https:",
    "https:/",
    "https://",
    "/\\",
    "\\/",
    "\\\\",
    "http:\\\\",
    "/\t/",
    "ht\ttp://",
    "ftp://",
    " //",
];

/// Hosts of ours and of others, and what may be taken for them.
const AUTHORITIES: &[&str] = &[
    "cluster.localhost",
    "cert.localhost",
    "CLUSTER.corp.test.",
    "localhost",
    "corp.test",
    "127.0.0.1",
    "[::1]",
    "127.1",
    "0x7f.1",
    "2130706433",
    "api.test",
    "other.test",
    "up.test",
    "docker",
    "example.com",
    "me@cluster.localhost",
    "localhost:8080\\@up.test",
    "cluster%2elocalhost",
    "\u{ff43}luster.localhost",
    "cluster\u{3002}localhost",
];

/// Ports of ours and of others.
const PORTS: &[&str] = &["", ":", ":80", ":443", ":3000", ":8080", ":8081", ":8082", ":9000", ":49152", ":08080"];

/// What paths are made of.
const STEPS: &[&str] = &[
    "/",
    "//",
    "..",
    "../",
    "../",
    ".",
    "%2e%2E/",
    "\\",
    "\\..",
    "\t",
    "cert",
    "cert/",
    "cluster",
    "/cluster/x",
    "%63luster/",
    "x/",
    "?",
    "#",
    ":",
];
