//! A file that holds an access key whole, in JSON: renamed into place, it is never a new key with an old secret.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use secrecy::zeroize::Zeroizing;

use crate::settings::{Place, Table};
use crate::upstream::ask::Asker;

use super::command::fetched;
use super::{Failed, Fetch, Fetched, Margins, Unreadable, command, secret};

#[derive(Debug)]
struct File {
    path: PathBuf,
    place: Place,
}

/// Reads `{ source = "file", path = "…" }`.
pub(super) fn read(table: &Table<'_>) -> Option<Arc<dyn Fetch>> {
    let value = table.require("path", "the file, in JSON with AccessKeyId, SecretAccessKey and Expiration")?;
    Some(Arc::new(File { path: value.file()?, place: value.place() }))
}

impl File {
    fn octets(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        secret::read_file(&self.path)
    }
}

impl Fetch for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn identity(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn check(&self) -> Result<(), Vec<Unreadable>> {
        let read = self.octets().and_then(|octets| fetched(&octets, &self.path.display()));
        let unreadable = |message| vec![Unreadable { place: self.place, message: format!("`path`: {message}") }];
        read.map(drop).map_err(unreadable)
    }

    fn margins(&self) -> Margins {
        command::MARGINS
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(async {
            let name = self.path.display();
            let fetched = self.octets().and_then(|octets| fetched(&octets, &name));
            fetched.and_then(|fetched| command::alive(fetched, &asker.clock, &name)).map_err(Failed::passing)
        })
    }
}
