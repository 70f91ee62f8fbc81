//! `countersign man`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::config;
use crate::provider;

use super::{Failed, VERSION, complain, print};

/// Print the manual, a page a command
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Write all pages into this folder, made if it is missing, instead of printing one
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    dir: Option<PathBuf>,
    /// The command whose page to print, or countersign.toml [default: the page of countersign itself]
    #[arg(value_name = "COMMAND")]
    page: Option<String>,
}

/// A page of the manual.
struct Page {
    /// The name of its file, as in `countersign-run.1`.
    file: String,
    /// The command that it is about; empty for countersign itself.
    about: String,
    /// Its text, for `man`.
    text: Vec<u8>,
}

/// Prints a page, or writes all of them.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let pages = pages().map_err(|error| {
        complain(format!("the manual cannot be written: {error}"));
        Failed::Running
    })?;
    if let Some(folder) = &arguments.dir {
        return write(&pages, folder).map_err(|error| {
            complain(format!("cannot write into {}: {error}", folder.display()));
            Failed::Running
        });
    }
    let wanted = arguments.page.as_deref().unwrap_or_default();
    let Some(page) = pages.iter().find(|page| page.about == wanted) else {
        let known: Vec<_> = pages.iter().map(|page| page.about.as_str()).filter(|about| !about.is_empty()).collect();
        complain(format!("there is no such page: the pages are {}; see --help", known.join(", ")));
        return Err(Failed::Usage);
    };
    print(&page.text);
    Ok(())
}

fn write(pages: &[Page], folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for page in pages {
        let path = folder.join(&page.file);
        fs::write(&path, &page.text)?;
        print(format!("{}\n", path.display()));
    }
    Ok(())
}

fn pages() -> io::Result<Vec<Page>> {
    let mut whole = super::command();
    whole.build();
    let mut pages = vec![page(&whole, String::new())?];
    for command in whole.get_subcommands() {
        pages.push(page(command, command.get_name().to_owned())?);
    }
    let file = format!("{CONFIGURATION}.5");
    pages.push(Page { file, about: CONFIGURATION.to_owned(), text: configuration().render().into_bytes() });
    Ok(pages)
}

fn page(command: &Command, about: String) -> io::Result<Page> {
    let man = Man::new(command.clone()).date(NO_DATE).source(source()).manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    if let Some(examples) = command.get_after_help() {
        rest.control("SH", ["EXAMPLES"]);
        // The library would fill these lines as if they were prose.
        verbatim(&mut rest, examples.to_string().lines().skip(1));
    }
    rest.control("SH", ["SEE ALSO"]);
    rest.text([bold("countersign"), roman("(1), "), bold(CONFIGURATION), roman("(5)")]);
    rest.to_writer(&mut text)?;
    Ok(Page { file: man.get_filename(), about, text })
}

/// The page about the file: what is known of the providers, and the example that explains every key.
fn configuration() -> Roff {
    let mut page = Roff::new();
    page.control("TH", [CONFIGURATION, "5", NO_DATE, &source(), MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{CONFIGURATION} - the configuration of countersign"))]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        page.control("PP", []);
        page.text([roman(*paragraph)]);
    }
    page.control("SH", ["PROVIDERS"]);
    page.text([roman("A route has exactly one of these tables, as in [routes.NAME.PROVIDER].")]);
    for registration in provider::ALL {
        page.control("SS", [registration.name]);
        page.text([roman(format!("Adds {}.", registration.summary))]);
        for key in registration.keys {
            let default = if key.default.is_empty() { String::new() } else { format!(" (default: {})", key.default) };
            page.control("TP", []);
            page.text([bold(key.name)]);
            page.text([roman(format!("{}{default}", key.meaning))]);
        }
    }
    page.control("SH", ["EVERY KEY"]);
    verbatim(&mut page, config::EXAMPLE.lines());
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("countersign"), roman("(1), "), bold("countersign-check"), roman("(1)")]);
    page
}

fn verbatim<'a>(page: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    page.control("nf", []);
    for line in lines {
        page.text([roman(line)]);
    }
    page.control("fi", []);
}

fn source() -> String {
    format!("countersign {}", VERSION.as_str())
}

const CONFIGURATION: &str = "countersign.toml";
const MANUAL: &str = "countersign";

/// An empty argument would be left out, and the next one take its place.
const NO_DATE: &str = " ";

const DESCRIPTION: &[&str] = &[
    "The file is TOML. It is the one named with -c, else by $COUNTERSIGN_CONFIG, else \
     $XDG_CONFIG_HOME/countersign/countersign.toml, else /etc/countersign/countersign.toml. A file in the working directory \
     is never read of itself, since it could run commands.",
    "[server], [admin], [log] and [limits] are for all routes. Each table [routes.NAME] is a way to one upstream, and the \
     table of its provider says how requests are authenticated there. countersign check tells everything that is wrong, each \
     mistake with its place; countersign init prints a file to start from.",
];

const EXAMPLES: &str = "\
Examples:
  countersign man | man -l -
  countersign man run | man -l -
  countersign man --dir /usr/local/share/man/man1";
