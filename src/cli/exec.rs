//! `countersign exec`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing::{Level, error, warn};

use crate::admin::status::{Readiness, awaited};
use crate::config::Config;
use crate::confine;
use crate::proxy::daemon::Print;
use crate::proxy::handed::Handed;
use crate::proxy::listen::Address;

use super::following::{self, Serving, fail};
use super::{ConfigFile, Failed, complain, ways};

/// Run a command with a daemon of its own, and without the secrets in its environment
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Set `http_proxy` for the command too, for requests to the `hosts` of routes
    #[arg(long)]
    http_proxy: bool,
    /// The command, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs until the command ends.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    // The limit of cores is for the command to inherit as it is.
    let privacy = confine::keep_own_memory_private();
    let (config, file) = following::begin(&arguments.file, privacy, for_a_command)?;
    following::block_on(supervise(config, file, arguments))
}

/// One free port instead of every listener, so that there may be any number beside each other; and no more words among the
/// command's than are needed.
fn for_a_command(mut config: Config) -> Config {
    config.server.listen = vec![Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))];
    for route in &mut config.routes {
        route.listen.clear();
    }
    config.admin = None;
    if config.log.level == Level::INFO {
        config.log.level = Level::WARN;
    }
    config
}

async fn supervise(config: Config, file: Print, arguments: &Arguments) -> Result<(), Failed> {
    let mut serving = Serving::start(config, file, Vec::new(), Handed::default(), for_a_command)?;
    let address = serving.daemon.listening().find_map(|(_, address)| match address {
        Address::Tcp(address) => Some(*address),
        _ => None,
    });
    let address = address.ok_or_else(|| fail("there is nothing to listen on: this machine has no 127.0.0.1"))?;
    let no_signals = |error: io::Error| fail(&format!("cannot await signals: {error}"));
    // Not before the daemon has started: until then a signal ends the process by itself.
    let mut signals = Signals::new().map_err(no_signals)?;
    let mut ends = signal(SignalKind::child()).map_err(no_signals)?;
    wait(&mut serving, &mut signals).await?;
    let mut command = command(&arguments.command)?;
    let state = serving.daemon.state.load_full();
    let routes = state.routes.iter().map(|route| route.name.as_str());
    let ours = without(&serving.secret_variables, std::env::vars_os());
    command.env_clear().envs(environment(ours, address, routes, arguments.http_proxy));
    let mut child = command.spawn().map_err(|error| not_started(command.get_program(), &error))?;
    // What the command was to inherit it has inherited. What was said of the memory was said at the start.
    let _ = confine::keep_memory_private();
    following::raise_file_limit();
    let status = loop {
        tokio::select! {
            signal = signals.next() => hand_on(signal, &child),
            _ = ends.recv() => match child.try_wait() {
                Ok(Some(status)) => break status,
                // Another child: a program that prints a secret.
                Ok(None) => {}
                Err(error) => return Err(fail(&format!("the end of the command cannot be awaited: {error}"))),
            },
            () = serving.daemon.changed() => serving.reload().await,
        }
    };
    let daemon = serving.daemon;
    // Whoever the command has left behind is not waited for any longer.
    if tokio::task::spawn_blocking(move || daemon.drain(DRAIN)).await.is_err() {
        error!("the daemon could not be stopped");
    }
    match code(status) {
        0 => Ok(()),
        code => Err(Failed::Command(code)),
    }
}

/// Waits until every route has its credential, within [`PATIENCE`].
///
/// # Errors
/// A signal ended it.
async fn wait(serving: &mut Serving, signals: &mut Signals) -> Result<(), Failed> {
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        let awaited = awaited(&serving.daemon.state.load(), Readiness::Reached);
        if awaited.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= PATIENCE {
            for route in awaited {
                warn!("the command starts without the credential of {route}");
            }
            return Ok(());
        }
        if began.elapsed() >= SILENCE && !is_told {
            is_told = true;
            for route in awaited {
                warn!("waiting for the credential of {route}");
            }
        }
        tokio::select! {
            signal = signals.next() => return Err(Failed::Command(ended_by(signal.as_raw()))),
            () = serving.daemon.changed() => serving.reload().await,
            () = sleep(PAUSE) => {}
        }
    }
}

fn command(words: &[OsString]) -> Result<Command, Failed> {
    let Some((program, arguments)) = words.split_first() else {
        complain("expected a command after --; see --help");
        return Err(Failed::Usage);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

type Variables = BTreeMap<OsString, OsString>;

fn without(secrets: &BTreeSet<String>, variables: impl Iterator<Item = (OsString, OsString)>) -> Variables {
    let is_secret = |name: &OsStr| name.to_str().is_some_and(|name| secrets.contains(name));
    variables.filter(|(name, _)| !is_secret(name)).collect()
}

/// What a command finds in its environment beside, or instead of, what was there.
fn environment<'a>(
    mut variables: Variables,
    address: SocketAddr,
    routes: impl Iterator<Item = &'a str>,
    is_proxy: bool,
) -> Variables {
    variables.extend(routes.map(|route| (ways::variable(route).into(), format!("http://{address}/{route}").into())));
    if is_proxy {
        variables.insert("http_proxy".into(), format!("http://{address}").into());
        // Some programs would go by it first. It is not set, since to what speaks CGI it is a header of somebody's request.
        variables.remove(OsStr::new("HTTP_PROXY"));
    }
    let get = |name: &str| variables.get(OsStr::new(name)).filter(|value| !value.is_empty());
    if PROXIES.into_iter().any(|name| get(name).is_some()) {
        // Through another proxy the URLs above would lead nowhere.
        let excepted = |one, other| {
            let mut list = get(one).or(get(other)).cloned().unwrap_or_default();
            if list != "*" {
                list.push(if list.is_empty() { "" } else { "," });
                list.push(NEAR);
            }
            (one.into(), list)
        };
        let excepted = [excepted("no_proxy", "NO_PROXY"), excepted("NO_PROXY", "no_proxy")];
        variables.extend(excepted);
    }
    variables
}

/// Says why a command has not started, with the exit codes of env(1).
fn not_started(program: &OsStr, error: &io::Error) -> Failed {
    let program = program.display();
    let (code, why) = match error.kind() {
        ErrorKind::NotFound => {
            (127, "there is no such command in $PATH, or no such interpreter as its first line names".to_owned())
        }
        ErrorKind::PermissionDenied => (126, "it may not be executed: chmod +x it, or name its interpreter".to_owned()),
        _ => (126, error.to_string()),
    };
    complain(format!("cannot run {program}: {why}"));
    Failed::Command(code)
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.unwrap_or_else(|| ended_by(status.signal().unwrap_or_default()))
}

/// What shells say of a command that this signal ended.
fn ended_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Hands a signal on to the command, unless the terminal has.
fn hand_on(signal: Signal, child: &Child) {
    // It is there, or waits for its end to be seen: its number cannot be another's.
    let command = Pid::from_child(child);
    // Some leave the group, timeout(1) for one.
    let is_in_our_group = getpgid(Some(command)).is_ok_and(|group| group == getpgrp());
    if matches!(signal, Signal::INT | Signal::QUIT) && is_in_foreground() && is_in_our_group {
        return;
    }
    if let Err(error) = kill_process(command, signal) {
        warn!(%error, "a signal cannot be handed on to the command");
    }
}

/// True if what is typed at the terminal reaches this process, and so whoever is in the same group.
fn is_in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold blanks and parentheses. Then come state, parent, group, session, terminal, and its group.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').skip(2));
    fields
        .is_some_and(|mut fields| matches!((fields.next(), fields.nth(2)), (Some(group), Some(near)) if group == near))
}

/// The signals that are handed on.
struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Listens to them, but for those that whoever started this process wants ignored, as nohup(1) does: the command
    /// inherits that.
    fn new() -> io::Result<Self> {
        let ignored = ignored();
        let wanted = HANDED_ON.into_iter().filter(|signal| ignored & (1 << (signal.as_raw() - 1)) == 0);
        let listen = |which: Signal| Ok((which, signal(SignalKind::from_raw(which.as_raw()))?));
        wanted.map(listen).collect::<io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let came = self.0.iter_mut().find_map(|(which, signals)| {
                matches!(signals.poll_recv(context), Poll::Ready(Some(()))).then_some(*which)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The signals that this process ignores, a bit each, the first one lowest.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// What sends `http://` through a proxy, and what never is to go there.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
const NEAR: &str = "localhost,127.0.0.1,::1";

const HANDED_ON: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// How long the command waits for credentials, how long it does so silently, and how often they are looked at.
const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// How long requests may go on after the command has ended.
const DRAIN: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  countersign exec -- sh -c 'curl $COUNTERSIGN_CERT_URL/v1/certificate'
  countersign exec --http-proxy -- curl http://certificate.baidubce.com/v1/certificate
  countersign exec -c countersign.toml -- ./job.sh";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::settings::BareSecrets;

    #[test]
    fn other_proxies_keep_their_exceptions_and_get_ours() {
        let address = SocketAddr::from(([127, 0, 0, 1], 81));
        for (before, is_proxy, after) in [
            ("", false, "A_B_URL"),
            ("no_proxy=a", false, "A_B_URL no_proxy=a"),
            ("https_proxy=c", false, "A_B_URL https_proxy=c"),
            ("http_proxy=", false, "A_B_URL http_proxy="),
            ("http_proxy=c", false, "A_B_URL NO_PROXY=NEAR http_proxy=c no_proxy=NEAR"),
            ("ALL_PROXY=c NO_PROXY=a", false, "ALL_PROXY=c A_B_URL NO_PROXY=a,NEAR no_proxy=a,NEAR"),
            ("HTTP_PROXY=c no_proxy=a NO_PROXY=b", false, "A_B_URL HTTP_PROXY=c NO_PROXY=b,NEAR no_proxy=a,NEAR"),
            ("all_proxy=c no_proxy=*", false, "A_B_URL NO_PROXY=* all_proxy=c no_proxy=*"),
            ("", true, "A_B_URL NO_PROXY=NEAR http_proxy=US no_proxy=NEAR"),
            ("HTTP_PROXY=c http_proxy=d", true, "A_B_URL NO_PROXY=NEAR http_proxy=US no_proxy=NEAR"),
        ] {
            let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.into(), value.into()));
            let set = environment(
                before.split_whitespace().filter_map(pair).collect(),
                address,
                ["a-b"].into_iter(),
                is_proxy,
            );
            let words = set.iter().map(|(name, value)| format!("{}={}", name.display(), value.display()));
            let found =
                words.collect::<Vec<_>>().join(" ").replace("COUNTERSIGN_A_B_URL=http://127.0.0.1:81/a-b", "A_B_URL");
            assert_eq!(found.replace(NEAR, "NEAR").replace("http://127.0.0.1:81", "US"), after, "{before:?}");
        }
    }

    #[test]
    fn only_what_is_named_is_taken_out() {
        let secrets = BTreeSet::from(["A".to_owned()]);
        let left = without(&secrets, ["A", "a", "AA"].into_iter().map(|name| (name.into(), "x".into())));
        assert_eq!(left.keys().collect::<Vec<_>>(), ["AA", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_credentials_has_an_end() {
        let text = "[routes.a]\nupstream = \"http://127.0.0.1:1\"\n[routes.a.bce]\n\
                    credentials = { source = \"command\", command = [\"false\"] }\n";
        let config = config::parse(text, Path::new("/no/such/configuration"), BareSecrets::Accept).unwrap();
        let file = (config.path.clone(), None);
        let mut serving = Serving::start(for_a_command(config), file, Vec::new(), Handed::default(), for_a_command)
            .unwrap_or_else(|_| panic!());
        let began = Instant::now();
        assert_eq!(wait(&mut serving, &mut Signals(Vec::new())).await, Ok(()));
        assert!((PATIENCE..PATIENCE + SILENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
