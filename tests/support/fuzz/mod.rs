//! What is fuzzed: a function a target, each for octets that nobody thought of. `fuzz/` calls them with what it invents,
//! `tests/seeds.rs` with what is kept in `fuzz/seeds`.

#![allow(dead_code, reason = "a fuzz target uses one of them")]

mod acm_form;
mod acs_roa_canonical;
mod allow;
mod authority;
mod bce_canonical;
mod bundle;
mod certificate;
mod configuration;
mod huawei_canonical;
mod location;
#[path = "../signing.rs"]
mod signing;
mod verdict;

/// What a target does with its octets: it panics if something is not as it must be.
pub(crate) type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("acm_form", acm_form::run),
    ("acs_roa_canonical", acs_roa_canonical::run),
    ("allow", allow::run),
    ("authority", authority::run),
    ("bce_canonical", bce_canonical::run),
    ("bundle", bundle::run),
    ("certificate", certificate::run),
    ("configuration", configuration::run),
    ("huawei_canonical", huawei_canonical::run),
    ("location", location::run),
    ("verdict", verdict::run),
];

/// Runs one of them.
pub(crate) fn run(target: &str, octets: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of the table");
    run(octets);
}
