//! What lives: clocks that drift apart, keys that are replaced, locked and refused; and what of it callers notice.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/script.rs"]
mod script;

mod clocks;
mod lockout;
mod rotation;
#[allow(dead_code, reason = "the other crate that includes this uses its other parts")]
mod scene;
mod verdicts;
