//! The whole daemon, from the caller's side of a request: through which doors it comes, what is refused, what is removed,
//! and what the upstream finds when it arrives.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/script.rs"]
mod script;
#[path = "../support/scripted.rs"]
mod scripted;

mod acm;
mod acs_roa;
mod admin;
mod back;
mod calls;
mod clean;
mod commands;
mod doors;
mod exec;
mod guard;
mod huawei;
mod import;
mod init;
mod limits;
mod manual;
mod refusals;
mod scene;
mod status;
mod tem;
mod tokens;
mod ways;
