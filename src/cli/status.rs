//! `countersign status`.

use crate::admin::words::{self, Paragraph};

use super::{ConfigFile, Failed, asking, print};

/// Show the state of the running daemon and its routes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Print what the daemon says in JSON, as it comes
    #[arg(long)]
    json: bool,
    /// One route alone
    name: Option<String>,
}

/// Asks for `/status`.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let (told, body) = asking::ask_of(&arguments.file, "/status", arguments.name.as_deref())?;
    if arguments.json {
        print(body);
    } else {
        let paragraphs: Vec<_> = words::status(&told).iter().map(Paragraph::text).collect();
        print(paragraphs.join("\n"));
    }
    Ok(())
}

const EXAMPLES: &str = "\
Examples:
  countersign status
  countersign status --json cert";
