//! A program that prints an access key whole, in JSON.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::canonical::time;
use crate::clock::Clock;
use crate::settings::Table;
use crate::upstream::ask::Asker;

use super::{Credential, Failed, Fetch, Fetched, Margins, reply, secret};

#[derive(Debug)]
struct Command {
    argv: Vec<String>,
}

/// Reads `{ source = "command", command = […] }`.
pub(super) fn read(table: &Table<'_>) -> Option<Arc<dyn Fetch>> {
    let argv = secret::argv(&table.require("command", "the program and its arguments, as a list")?)?;
    Some(Arc::new(Command { argv }))
}

impl Command {
    async fn run(&self, clock: &Clock) -> Result<Fetched, String> {
        let argv = self.argv.clone();
        let running = tokio::task::spawn_blocking(move || secret::run(&argv, secret::PATIENCE));
        let octets = running.await.map_err(|_| "running the command was broken off")??;
        let name = self.argv.first().map(String::as_str).unwrap_or_default();
        alive(fetched(&octets, &name)?, clock, &name)
    }
}

impl Fetch for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn identity(&self) -> String {
        format!("command {:?}", self.argv)
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn margins(&self) -> Margins {
        MARGINS
    }

    fn fetch<'a>(&'a self, asker: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(async { self.run(&asker.clock).await.map_err(Failed::passing) })
    }
}

/// What the octets of a file or a program say.
pub(super) fn fetched(octets: &[u8], name: &impl Display) -> Result<Fetched, String> {
    let read = reply::object(octets).map_err(str::to_owned).and_then(reply::access_key);
    let (key, expiry) = read.map_err(|message| format!("what {name} says cannot be used: {message}"))?;
    Ok(Fetched { credential: Credential::AccessKey(key), expiry })
}

/// The same, unless it has ended.
pub(super) fn alive(fetched: Fetched, clock: &Clock, name: &impl Display) -> Result<Fetched, String> {
    match fetched.expiry {
        Some(expiry) if expiry <= clock.now() => Err(format!(
            "what {name} says can be read, but expired on {}: whoever makes it must renew it",
            time::iso(expiry)
        )),
        _ => Ok(fetched),
    }
}

/// When to ask files and programs again: where they name no end, never.
pub(super) const MARGINS: Margins = Margins {
    refresh: Duration::from_secs(900),
    refresh_percent: 0,
    jitter: Duration::from_secs(60),
    wait: Duration::from_secs(180),
    gone: Duration::ZERO,
};
