//! What is fetched: tokens for passwords, the keys of instances, programs and files, and ids; and what of it callers notice.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../living/scene.rs"]
#[allow(dead_code, reason = "the other crate that includes this uses its other parts")]
mod scene;
#[path = "../support/script.rs"]
mod script;

mod day;
mod iam;
mod ids;
mod outage;
mod refused;
mod rotation;
mod shared;
mod sources;
mod token;
