//! Logging to standard error.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anstream::{AutoStream, ColorChoice};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{Format, Log};

/// Starts logging. The level is that of our own code alone: libraries at `trace` print secrets, so they stay at `warn`.
pub fn start(log: &Log) {
    let levels = Targets::new().with_target("countersign", log.level).with_default(LevelFilter::WARN);
    let is_journal = std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| is_this(&stream, std::io::stderr()));
    let is_colourful = AutoStream::choice(&std::io::stderr()) != ColorChoice::Never;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(is_colourful);
    let registry = tracing_subscriber::registry().with(levels);
    // A second start, as in tests, leaves the first one's logging in place.
    let _ = match (log.format, is_journal) {
        (Format::Json, _) => registry.with(lines.json().flatten_event(true)).try_init(),
        // The journal has its own times.
        (Format::Text, true) => registry.with(lines.without_time()).try_init(),
        (Format::Text, false) => registry.with(lines).try_init(),
    };
}

/// True if what `JOURNAL_STREAM` names, device and inode, is this stream: children inherit the variable, whatever theirs leads
/// to (systemd.exec(5)).
fn is_this(journal: &OsStr, stream: impl AsFd) -> bool {
    let metadata = stream.as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata());
    metadata.is_ok_and(|metadata| journal.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let (ours, others) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let name = |file: &File| {
            let metadata = file.metadata().unwrap();
            format!("{}:{}", metadata.dev(), metadata.ino())
        };
        assert!(is_this(OsStr::new(&name(&ours)), &ours));
        assert!(!is_this(OsStr::new(&name(&others)), &ours));
        assert!(!is_this(OsStr::new(""), &ours));
    }
}
