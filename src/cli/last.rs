//! `countersign last`.

use crate::admin::words::{self, Paragraph};

use super::{ConfigFile, Failed, asking, print};

/// Show the last requests that were refused for their authentication, and what to do
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Print what the daemon says in JSON, as it comes
    #[arg(long)]
    json: bool,
    /// Those of one route alone
    name: Option<String>,
}

/// Asks for `/last`.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let (told, body) = asking::ask_of(&arguments.file, "/last", arguments.name.as_deref())?;
    let refusals: Vec<_> = words::last(&told).iter().map(Paragraph::text).collect();
    match (arguments.json, refusals.is_empty()) {
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
