//! Signers made the way the daemon makes them: from a table of a configuration file.

use std::path::Path;
use std::sync::Arc;

use countersign::provider::{ALL, Provider, Signer};
use countersign::settings::{BareSecrets, Reader, Table};

/// A provider with the table `text`, and a signer for its credential.
#[allow(dead_code, reason = "not every test crate that includes this signs")]
pub(crate) fn configure(provider: &str, text: &str) -> (Box<dyn Provider>, Arc<dyn Signer>) {
    let provider = read(provider, text);
    let credential = provider.source().load().expect("secrets that stand in the table");
    let signer = provider.signer(&credential).expect("a credential that can be used");
    (provider, signer)
}

/// A provider with the table `text`.
pub(crate) fn read(provider: &str, text: &str) -> Box<dyn Provider> {
    let registration = ALL.iter().find(|registration| registration.name == provider).expect("a known provider");
    let reader = Reader::new(text, Path::new("/"), BareSecrets::Accept);
    let document = reader.parse();
    let table = Table::root(&reader, &document);
    let provider = (registration.read)(&table);
    table.finish();
    let (errors, _) = reader.into_remarks();
    assert!(errors.is_empty(), "{errors:?}");
    provider.expect("a table without errors")
}
