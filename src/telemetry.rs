//! Logging to standard error.

use anstream::{AutoStream, ColorChoice};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::config::{Format, Log};

/// Starts logging. The level is that of our own code alone: libraries at `trace` print secrets, so they stay at `warn`.
pub fn start(log: &Log) {
    let levels = Targets::new().with_target("countersign", log.level).with_default(LevelFilter::WARN);
    let is_journal = std::env::var_os("JOURNAL_STREAM").is_some();
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
