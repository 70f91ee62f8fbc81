//! `countersign last`.

use crate::admin::words::{self, Paragraph};

use super::asking::{self, About};
use super::{Failed, print};

/// Show the last requests that were refused for their authentication, and what to do
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    about: About,
}

/// Asks for `/last`.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let (told, body) = asking::ask_about(&arguments.about, "/last")?;
    let refusals: Vec<_> = words::last(&told).iter().map(Paragraph::text).collect();
    match (arguments.about.json, refusals.is_empty()) {
        (true, _) => print(body),
        (false, true) => print("no request has been refused since the daemon was started\n"),
        (false, false) => print(refusals.join("\n")),
    }
    Ok(())
}

const EXAMPLES: &str = "\
Examples:
  countersign last
  countersign last --json cert";
