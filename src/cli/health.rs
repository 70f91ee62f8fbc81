//! `countersign health`.

use http::StatusCode;

use super::{ConfigFile, Failed, asking, complain, print};

/// End with 0 if the running daemon is ready, else say why it is not
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
}

/// Asks for `/readyz`.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let answer = asking::ask(&arguments.file, "/readyz")?;
    let said = asking::line(&answer.body);
    match answer.status {
        StatusCode::OK => {
            print(said + "\n");
            Ok(())
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            complain(said);
            Err(Failed::Running)
        }
        status => Err(asking::stranger(status)),
    }
}

const EXAMPLES: &str = "\
Examples:
  countersign health
  countersign health -c countersign.toml && echo ready";
