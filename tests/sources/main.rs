//! The places that credentials are fetched from, each against a small server that plays it.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "what is not there fails the test")]

mod ask;
#[path = "../support/cloud/mod.rs"]
mod cloud;
mod files;
mod iam;
mod ids;
mod metadata;
#[path = "../support/ports.rs"]
mod ports;
mod server;

use std::path::Path;
use std::sync::Arc;

use countersign::clock::{Clock, Timestamp};
use countersign::credential::{AccessKey, Credential, ExposeSecret, Failed, Fetch, Fetched, Source};
use countersign::provider;
use countersign::settings::{BareSecrets, Reader, Table};
use countersign::upstream::ask::Asker;
use countersign::upstream::outbound::Outbound;

/// 2026-01-02T03:04:05Z, which is what it is here and at the servers, unless they say otherwise.
const NOW: Timestamp = Timestamp(1_767_323_045_000);

/// Asks at that time.
fn asker() -> Asker {
    Asker { clock: Clock::fixed(NOW), roots: Arc::default(), proxy: Outbound::Direct, own: Arc::new([]) }
}

/// What a provider's table makes of the source of its credential.
fn source(provider_name: &str, table: &str) -> Result<Box<dyn provider::Provider>, Vec<String>> {
    let reader = Reader::new(table, Path::new("/"), BareSecrets::Accept);
    let document = reader.parse();
    let table = Table::root(&reader, &document);
    let registration = provider::ALL.iter().find(|registration| registration.name == provider_name).unwrap();
    let read = (registration.read)(&table);
    table.finish();
    let (errors, _) = reader.into_remarks();
    let errors: Vec<_> = errors.into_iter().map(|remark| remark.message).collect();
    if errors.is_empty() { Ok(read.unwrap()) } else { Err(errors) }
}

/// The place that this table of credentials names.
fn place(credentials: &str) -> Arc<dyn Fetch> {
    fetch_of(source("bce", &format!("credentials = {credentials}")).unwrap().as_ref())
}

fn fetch_of(provider: &dyn provider::Provider) -> Arc<dyn Fetch> {
    match provider.source() {
        Source::Fetched(fetch) => Arc::clone(fetch),
        other => panic!("{other:?}"),
    }
}

/// The access key, its secret and its token, of what was fetched, and when it ends.
fn key(fetched: Result<Fetched, Failed>) -> (String, Option<i64>) {
    let Fetched { credential, expiry } = fetched.unwrap();
    let Credential::AccessKey(AccessKey { access_key, secret_key, security_token }) = credential else {
        panic!("{credential:?}")
    };
    let token = security_token.as_ref().map_or("-", |token| token.expose_secret());
    (format!("{access_key} {} {token}", secret_key.expose_secret()), expiry.map(|expiry| expiry.0))
}

/// Why nothing was fetched; never a secret.
fn trouble(fetched: Result<Fetched, Failed>) -> String {
    let message = fetched.unwrap_err().message;
    assert!(!message.contains("hunter2"), "{message}");
    message
}
