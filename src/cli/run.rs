//! `countersign run`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::config::Config;
use crate::confine;
use crate::proxy::daemon::{Print, StartError};
use crate::proxy::listen::{Address, Listener, Sharing};

use super::following::{self, Serving, fail};
use super::{ConfigFile, Failed};

/// Run the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Do not confine the process (it is not confined yet)
    #[arg(long)]
    no_sandbox: bool,
}

/// Runs until a signal, or the admin listener, says otherwise.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let (config, file) = following::begin(&arguments.file, confine::keep_memory_private(), |config| config)?;
    following::raise_file_limit();
    following::block_on(supervise(config, file))
}

async fn supervise(config: Config, file: Print) -> Result<(), Failed> {
    let admin = config.admin.clone();
    let mut signals = Signals::new().map_err(|error| fail(&format!("cannot await signals: {error}")))?;
    let admin_bound =
        admin.as_ref().map(|admin| admin.listen.bind(1, Sharing::Nobodys).map_err(|error| (admin, error))).transpose();
    let admin_bound =
        admin_bound.map_err(|(admin, error)| fail(&StartError::Bind(admin.listen.clone(), error).to_string()))?;
    let others = match admin_bound.as_ref().map(|bound| &bound.address) {
        Some(Address::Tcp(address)) => vec![*address],
        _ => Vec::new(),
    };
    let mut serving = Serving::start(config, file, others, |config| config)?;
    if serving.daemon.listening().next().is_none() {
        return Err(fail("there is nothing to listen on: give `server.listen` an address that this machine has"));
    }
    let may_quit = admin.as_ref().is_some_and(|admin| admin.quit);
    let admin_state = Admin::new(Arc::clone(&serving.daemon.state), Arc::clone(&serving.life), may_quit);
    if let Some(bound) = admin_bound {
        info!(address = %bound.address, "admin listening");
        let is_unix = matches!(bound.address, Address::Unix { .. });
        for socket in bound.sockets {
            let listener = Listener::new(socket).map_err(|error| fail(&format!("cannot listen: {error}")))?;
            tokio::task::spawn_local(Arc::clone(&admin_state).serve(listener, is_unix));
        }
    }
    info!("serving");
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop => break info!("told to stop by a signal"),
                Told::Reload => serving.reload().await,
            },
            () = serving.daemon.changed() => {
                info!("the configuration, or a file that it names, has changed");
                serving.reload().await;
            }
            () = admin_state.told_to_quit() => break info!("told to stop over the admin listener"),
        }
    }
    let Serving { daemon, drains, .. } = serving;
    daemon.state.load().lasting.is_draining.store(true, Ordering::Relaxed);
    let draining = async move {
        tokio::time::sleep(drains.delay).await;
        tokio::task::spawn_blocking(move || daemon.drain(drains.timeout)).await.unwrap_or(false)
    };
    let outcome = race(draining, signals.stop()).await;
    if let Some(Address::Unix { path, .. }) = admin.map(|admin| admin.listen) {
        let _ = std::fs::remove_file(path);
    }
    match outcome {
        Some(true) => info!("stopped: everything was answered"),
        Some(false) => warn!("stopped: `server.drain_timeout` passed with requests unanswered"),
        None => return Err(fail("stopped at once by a second signal")),
    }
    Ok(())
}

async fn race<T>(future: impl Future<Output = T>, stop: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        output = future => Some(output),
        () = stop => None,
    }
}

/// The signals that the daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Told::Stop {
            info!("no reload: the daemon is being stopped");
        }
    }
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

const EXAMPLES: &str = "\
Examples:
  countersign run
  countersign run -c countersign.toml
  kill -HUP PID     # reads the configuration again
  kill PID          # lets requests end, then ends";
