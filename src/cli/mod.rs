//! The command line, one file a command.

mod asking;
mod check;
mod completions;
mod demo;
mod exec;
mod following;
mod health;
mod import;
mod init;
mod last;
mod live;
mod man;
mod providers;
mod routes;
mod run;
mod sign;
mod status;
mod ways;

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use textwrap::WordSplitter;
use tokio::time::timeout;

use crate::config::{self, Config};

/// A local daemon that holds credentials so that programs need not: plain HTTP in, signed requests over TLS out.
#[derive(Debug, Parser)]
#[command(name = "countersign", version = VERSION.as_str(), disable_help_subcommand = true, after_help = EXAMPLES, max_term_width = COLUMNS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run(run::Arguments),
    /// Run a command with a daemon of its own, and without the secrets in its environment
    ///
    /// The daemon listens on a free port of 127.0.0.1, for as long as the command runs; `listen` and `[admin]` of the
    /// configuration have no effect. The command finds each route at `COUNTERSIGN_NAME_URL`, and no variable that a secret is
    /// read from. It starts once every route has its credential, or after 30 seconds; signals are handed on to it. The exit
    /// code is the command's, or 128 and the number of the signal that ended it; 126 if it cannot be started, 127 if there
    /// is no such command.
    Exec(exec::Arguments),
    /// Validate a configuration and every secret it refers to, without printing any
    Check(check::Arguments),
    /// Show every way into each route, ready to paste
    Routes(routes::Arguments),
    /// Show the headers that the daemon would set on a request, without sending it
    Sign(sign::Arguments),
    /// Write ca.pem, cert.pem and key.pem out of a certificate service's reply
    Import(import::Arguments),
    /// Show signed requests being accepted by an upstream that verifies them; needs no configuration
    Demo(demo::Arguments),
    /// Show the state of the running daemon and its routes
    Status(status::Arguments),
    /// Show the last requests that were refused for their authentication, and what to do
    Last(last::Arguments),
    /// End with 0 if the running daemon is ready, else say why it is not
    Health(health::Arguments),
    /// Print a configuration to start from, or write it into a new file
    Init(init::Arguments),
    /// List the providers and their keys
    #[command(after_help = "Examples:\n  countersign providers")]
    Providers,
    /// Print a script that completes command lines in a shell
    Completions(completions::Arguments),
    /// Print the manual, a page a command
    Man(man::Arguments),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    #[arg(
        short,
        long = "config",
        value_name = "FILE",
        help = "The configuration file [default: $COUNTERSIGN_CONFIG, else \
                $XDG_CONFIG_HOME/countersign/countersign.toml, else /etc/countersign/countersign.toml]"
    )]
    config: Option<PathBuf>,
}

/// Why a command ended otherwise than well. What it has to say has been said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// The command line is wrong in a way that its parser does not see.
    Usage,
    /// It failed while running: a restart may help.
    Running,
    /// The configuration is wrong: a restart will not help.
    Configuration,
    /// The command that was to run ended, or did not begin, with this.
    Command(u8),
}

impl From<Failed> for ExitCode {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Running => Self::from(1),
            Failed::Usage => Self::from(2),
            // EX_CONFIG of sysexits(3), so that a unit can say RestartPreventExitStatus=78.
            Failed::Configuration => Self::from(78),
            Failed::Command(code) => Self::from(code),
        }
    }
}

/// Does what the command line says. A wrong command line ends with 2, as usual.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Exec(arguments) => exec::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Routes(arguments) => routes::main(&arguments),
        Command::Sign(arguments) => sign::main(&arguments),
        Command::Import(arguments) => import::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Last(arguments) => last::main(&arguments),
        Command::Health(arguments) => health::main(&arguments),
        Command::Init(arguments) => init::main(&arguments),
        Command::Providers => {
            providers::main();
            Ok(())
        }
        Command::Completions(arguments) => {
            completions::main(&arguments);
            Ok(())
        }
        Command::Man(arguments) => man::main(&arguments),
    };
    outcome.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
}

/// What the command line may be.
fn command() -> clap::Command {
    Arguments::command()
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failed> {
        config::load(&self.locate()?).map_err(|invalid| {
            // Every line names its file, as compilers do: nothing goes before it.
            let _ = writeln!(std::io::stderr(), "{invalid}");
            Failed::Configuration
        })
    }

    fn locate(&self) -> Result<PathBuf, Failed> {
        config::locate(self.config.as_deref()).map_err(|error| {
            complain(error);
            Failed::Configuration
        })
    }
}

/// Tells the person at the terminal what went wrong.
fn complain(message: impl Display) {
    let _ = writeln!(std::io::stderr(), "countersign: {message}");
}

/// Says what is waited for if that takes long.
async fn patiently<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let mut waiting = pin!(waiting);
    if let Ok(done) = timeout(LONG, waiting.as_mut()).await {
        return done;
    }
    complain(format!("waiting for {what} …"));
    waiting.await
}

/// Prints data. A reader that has gone away is no error: it has seen what it wanted.
fn print(data: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(data.as_ref()).and_then(|()| out.flush());
}

/// Prints what is for people: in colour where there is a terminal that shows it and nobody minds.
fn show(text: &str) {
    let mut out = anstream::AutoStream::auto(std::io::stdout().lock());
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Lines for a terminal of 80 columns: a label, and beside it a text.
fn wrap(label: &str, text: &str) -> String {
    let indent = " ".repeat(label.chars().count());
    let options = textwrap::Options::new(COLUMNS).initial_indent(label).subsequent_indent(&indent);
    // What has a hyphen in it is a name, most likely.
    textwrap::fill(text, options.break_words(false).word_splitter(WordSplitter::NoHyphenation)) + "\n"
}

/// The version, and the commit where it was known at build time.
static VERSION: LazyLock<String> = LazyLock::new(|| version(option_env!("COUNTERSIGN_COMMIT")));

fn version(commit: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    commit.filter(|commit| !commit.is_empty()).map_or(version.to_owned(), |commit| format!("{version} ({commit})"))
}

/// How long something may take without a word.
const LONG: Duration = Duration::from_secs(1);

/// How wide a line for people is, at most.
const COLUMNS: usize = 80;

const EXAMPLES: &str = "\
Examples:
  countersign demo --once
  countersign init countersign.toml
  countersign check -c countersign.toml
  countersign run -c countersign.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_has_the_commit_if_that_is_known() {
        let version = |commit| version(commit).replace(env!("CARGO_PKG_VERSION"), "N");
        assert_eq!([version(Some("cf478f0")), version(Some("")), version(None)], ["N (cf478f0)", "N", "N"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_comes_to_its_end() {
        assert_eq!(patiently("a test", tokio::time::sleep(LONG * 3)).await, ());
        assert_eq!(patiently("a test", async { 1 }).await, 1);
    }

    #[test]
    fn the_command_line_is_made_without_contradictions() {
        command().debug_assert();
    }
}
