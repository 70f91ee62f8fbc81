//! The played clouds: each service once as it should be, and once for every way in which it refuses.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/cloud/mod.rs"]
mod cloud;
#[path = "../support/signing.rs"]
mod signing;

mod client;
mod issuing;
mod verifying;
