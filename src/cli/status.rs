//! `countersign status`.

use crate::admin::words::{self, Paragraph};

use super::asking::{self, About};
use super::{Failed, print};

/// Show the state of the running daemon and its routes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    about: About,
}

/// Asks for `/status`.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let (told, body) = asking::ask_about(&arguments.about, "/status")?;
    if arguments.about.json {
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
