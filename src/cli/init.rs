//! `countersign init`.

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::config;

use super::{Failed, complain, print};

/// Print a configuration to start from, or write it into a new file
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The file to write, closed to others; one that exists is left alone
    file: Option<PathBuf>,
}

/// Prints the example with its routes commented out, or writes it.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let text = starter();
    let Some(file) = &arguments.file else {
        print(text);
        return Ok(());
    };
    write(file, &text).map_err(|error| {
        let file = file.display();
        complain(match error.kind() {
            ErrorKind::AlreadyExists => format!("{file} exists and stays as it is: name a new file"),
            _ => format!("cannot write {file}: {error}"),
        });
        Failed::Running
    })?;
    let file = file.display();
    print(format!("{file}: uncomment a route in it, then try countersign check -c {file}\n"));
    Ok(())
}

/// Writes all of a new file, or nothing.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are closed to others, as what may hold secrets later must be.
    let mut file = tempfile::Builder::new().prefix(".countersign.").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}

/// The example that explains every key. Its routes have a `#` before each line, without the blank that prose has.
fn starter() -> String {
    let mut text = String::new();
    let mut is_route = false;
    for paragraph in config::EXAMPLE.split_inclusive("\n\n") {
        if !is_route && paragraph.lines().any(|line| line.starts_with("[routes.")) {
            is_route = true;
            text += HINT;
        }
        for line in paragraph.split_inclusive('\n') {
            let is_code = !line.starts_with(['#', '\n']);
            if is_route && is_code {
                text.push('#');
            }
            text += line;
        }
    }
    text
}

const HINT: &str = "\
# The routes below are examples, and off. To have one, remove each # of it that no blank follows, and correct what it says.

";

const EXAMPLES: &str = "\
Examples:
  countersign init | less
  countersign init ~/.config/countersign/countersign.toml";
