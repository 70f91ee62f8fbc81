//! The command line, one file a command.

mod check;
mod demo;
mod providers;
mod run;
mod sign;

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config};

/// A local daemon that holds credentials so that programs need not: plain HTTP in, signed requests over TLS out.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run(run::Arguments),
    /// Validate a configuration and every secret it refers to, without printing any
    Check(check::Arguments),
    /// Show the headers that the daemon would set on a request, without sending it
    Sign(sign::Arguments),
    /// Show signed requests being accepted by an upstream that verifies them; needs no configuration
    Demo(demo::Arguments),
    /// List the providers and their keys
    Providers,
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
}

impl From<Failed> for ExitCode {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Running => Self::from(1),
            Failed::Usage => Self::from(2),
            // EX_CONFIG of sysexits(3), so that a unit can say RestartPreventExitStatus=78.
            Failed::Configuration => Self::from(78),
        }
    }
}

/// Does what the command line says. A wrong command line ends with 2, as usual.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Sign(arguments) => sign::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Providers => {
            providers::main();
            Ok(())
        }
    };
    outcome.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
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

/// Prints data. A reader that has gone away is no error: it has seen what it wanted.
fn print(data: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(data.as_ref()).and_then(|()| out.flush());
}
