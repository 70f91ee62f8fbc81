//! What is fuzzed, on the seeds that are kept: this needs neither a nightly compiler nor time.

#[path = "support/fuzz/mod.rs"]
mod fuzz;

use std::path::Path;

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
