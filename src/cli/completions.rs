//! `countersign completions`.

use clap_complete::Shell;

use super::print;

/// Print a script that completes command lines in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The shell that is to read it
    shell: Shell,
}

/// Prints the script.
pub(super) fn main(arguments: &Arguments) {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(), "countersign", &mut script);
    print(script);
}

const EXAMPLES: &str = "\
Examples:
  countersign completions bash > /etc/bash_completion.d/countersign
  countersign completions zsh > /usr/local/share/zsh/site-functions/_countersign
  countersign completions fish > ~/.config/fish/completions/countersign.fish";
