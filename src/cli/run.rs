//! `countersign run`.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::proxy::daemon::{Daemon, Plan, StartError};
use crate::proxy::listen::{Address, Listener};
use crate::proxy::state::Access;
use crate::telemetry;

use super::{ConfigFile, Failed, complain};

/// Run the daemon
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Do not confine the process (it is not confined yet)
    #[arg(long)]
    no_sandbox: bool,
}

/// Runs until a signal, or the admin listener, says otherwise.
pub(super) fn main(arguments: &Arguments) -> Result<(), Failed> {
    let config = arguments.file.load()?;
    telemetry::start(&config.log);
    for warning in &config.warnings {
        warn!("{}", warning.of(&config.path));
    }
    raise_file_limit();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(2).build_local(LocalOptions::default());
    let runtime = runtime.map_err(|error| {
        complain(format!("cannot start: {error}"));
        Failed::Running
    })?;
    let outcome = runtime.block_on(supervise(config));
    // Dropped instead, the runtime would wait for a drain that a second signal has ended.
    runtime.shutdown_background();
    outcome
}

async fn supervise(config: Config) -> Result<(), Failed> {
    let Config { path, server, workers, drain_timeout, drain_delay, admin, log, limits, routes, .. } = config;
    let mut signals = Signals::new().map_err(|error| fail(&format!("cannot await signals: {error}")))?;
    let access = match (log.access, log.query) {
        (false, _) => Access::Off,
        (true, false) => Access::Path,
        (true, true) => Access::Query,
    };
    let admin_bound = admin.as_ref().map(|admin| admin.listen.bind(1).map_err(|error| (admin, error))).transpose();
    let admin_bound =
        admin_bound.map_err(|(admin, error)| fail(&StartError::Bind(admin.listen.clone(), error).to_string()))?;
    let others = match admin_bound.as_ref().map(|bound| &bound.address) {
        Some(Address::Tcp(address)) => vec![*address],
        _ => Vec::new(),
    };
    let plan = Plan { server, others, routes, limits, access, workers, clock: Clock::system() };
    let daemon = Daemon::start(plan).map_err(|error| match error {
        StartError::Unusable(remarks) => {
            for remark in remarks {
                error!("{}", remark.of(&path));
            }
            Failed::Running
        }
        error => fail(&error.to_string()),
    })?;
    for warning in daemon.state.routes.iter().flat_map(|route| &route.validities) {
        if let Some(warning) = warning.remark(Clock::system().now()) {
            warn!("{}", warning.of(&path));
        }
    }
    for (route, address) in &daemon.listening {
        if let Some(route) = route {
            info!(%address, route, "listening");
        } else {
            info!(%address, "listening");
        }
    }
    if daemon.listening.is_empty() {
        return Err(fail("there is nothing to listen on: give `server.listen` an address that this machine has"));
    }
    let admin_state = Admin::new(Arc::clone(&daemon.state), admin.as_ref().is_some_and(|admin| admin.quit));
    if let Some(bound) = admin_bound {
        info!(address = %bound.address, "admin listening");
        let is_unix = matches!(bound.address, Address::Unix { .. });
        for socket in bound.sockets {
            let listener = Listener::new(socket).map_err(|error| fail(&format!("cannot listen: {error}")))?;
            tokio::task::spawn_local(Arc::clone(&admin_state).serve(listener, is_unix));
        }
    }
    info!("serving");
    tokio::select! {
        () = signals.next() => info!("told to stop by a signal"),
        () = admin_state.told_to_quit() => info!("told to stop over the admin listener"),
    }
    daemon.state.is_draining.store(true, Ordering::Relaxed);
    let draining = async move {
        tokio::time::sleep(drain_delay).await;
        tokio::task::spawn_blocking(move || daemon.drain(drain_timeout)).await.unwrap_or(false)
    };
    let outcome = race(draining, signals.next()).await;
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

fn fail(message: &str) -> Failed {
    error!("{message}");
    Failed::Running
}

/// The signals that end the daemon.
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

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => warn!("a reload is not supported yet: restart to read the configuration anew"),
            }
        }
    }
}

/// Every caller and every upstream connection takes a descriptor; the soft limit of most systems is for programs that
/// use select(2).
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files cannot be raised");
    }
}
