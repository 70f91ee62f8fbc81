//! `countersign run`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Level, error, info, warn};

use crate::admin::Admin;
use crate::admin::status::{Life, summary};
use crate::clock::Clock;
use crate::config::{self, Config, Format};
use crate::confine;
use crate::proxy::daemon::{Daemon, Plan, Print, StartError, Wishes};
use crate::proxy::handed::Handed;
use crate::proxy::listen::{Address, Listener, Sharing};
use crate::proxy::state::Access;
use crate::service::Service;
use crate::telemetry;
use crate::watch::digest;

use super::{ConfigFile, Failed, complain};

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
    // Before the configuration, which may hold secrets, is read.
    let privacy = confine::keep_memory_private();
    // While there is one thread: this takes variables out of the environment.
    let handed = Handed::take();
    let file = arguments.file.locate()?;
    let file = (file.clone(), digest(&file));
    let config = arguments.file.load()?;
    telemetry::start(&config.log);
    if let Err(error) = privacy {
        warn!(%error, "the memory cannot be closed to other processes of this user: run the daemon as a user of its own");
    }
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
    let outcome = runtime.block_on(supervise(config, file, handed));
    // Dropped instead, the runtime would wait for a drain that a second signal has ended.
    runtime.shutdown_background();
    outcome
}

async fn supervise(config: Config, file: Print, handed: io::Result<Handed>) -> Result<(), Failed> {
    let handed = handed.map_err(|error| fail(&format!("the sockets that were handed over cannot be used: {error}")))?;
    let mut service = Service::find().unwrap_or_else(|error| {
        warn!(%error, "the service manager that NOTIFY_SOCKET names cannot be told anything");
        Service::default()
    });
    let path = config.path.clone();
    let (mut drains, started) = (Drains::of(&config), Started::of(&config));
    let (workers, admin) = (config.workers, config.admin.clone());
    let clock = Clock::system();
    let life = Arc::new(Life::new(clock.clone(), warnings(&config)));
    let mut signals = Signals::new().map_err(|error| fail(&format!("cannot await signals: {error}")))?;
    let admin_bound =
        admin.as_ref().map(|admin| admin.listen.bind(1, Sharing::Nobodys).map_err(|error| (admin, error))).transpose();
    let admin_bound =
        admin_bound.map_err(|(admin, error)| fail(&StartError::Bind(admin.listen.clone(), error).to_string()))?;
    let others = match admin_bound.as_ref().map(|bound| &bound.address) {
        Some(Address::Tcp(address)) => vec![*address],
        _ => Vec::new(),
    };
    let plan = Plan { wishes: wishes(config, file), others, handed, workers, clock };
    let mut daemon = Daemon::start(plan).map_err(|error| {
        for reason in words(&error, &path) {
            error!("{reason}");
        }
        Failed::Running
    })?;
    warn_of_validities(&daemon, &path);
    for (route, address) in daemon.listening() {
        if let Some(route) = route {
            info!(%address, route, "listening");
        } else {
            info!(%address, "listening");
        }
    }
    if daemon.listening().next().is_none() {
        return Err(fail("there is nothing to listen on: give `server.listen` an address that this machine has"));
    }
    let may_quit = admin.as_ref().is_some_and(|admin| admin.quit);
    let admin_state = Admin::new(Arc::clone(&daemon.state), Arc::clone(&life), may_quit);
    if let Some(bound) = admin_bound {
        info!(address = %bound.address, "admin listening");
        let is_unix = matches!(bound.address, Address::Unix { .. });
        for socket in bound.sockets {
            let listener = Listener::new(socket).map_err(|error| fail(&format!("cannot listen: {error}")))?;
            tokio::task::spawn_local(Arc::clone(&admin_state).serve(listener, is_unix));
        }
    }
    info!("serving");
    service.ready(&summary(&daemon.state.load(), &life));
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop => break info!("told to stop by a signal"),
                Told::Reload => {
                    service.reloading();
                    drains = reload(&mut daemon, &path, &life, &started).await.unwrap_or(drains);
                    service.ready(&summary(&daemon.state.load(), &life));
                }
            },
            () = daemon.changed() => {
                info!("the configuration, or a file that it names, has changed");
                service.reloading();
                drains = reload(&mut daemon, &path, &life, &started).await.unwrap_or(drains);
                service.ready(&summary(&daemon.state.load(), &life));
            }
            () = service.due() => {
                service.status(&summary(&daemon.state.load(), &life));
                if daemon.is_alive(service.interval()).await {
                    service.alive();
                } else {
                    error!("a thread does not answer");
                }
            }
            () = admin_state.told_to_quit() => break info!("told to stop over the admin listener"),
        }
    }
    service.stopping(drains.delay + drains.timeout, "stopping: what has begun is answered first");
    daemon.state.load().lasting.is_draining.store(true, Ordering::Relaxed);
    let draining = async move {
        tokio::time::sleep(drains.delay).await;
        tokio::task::spawn_blocking(move || daemon.drain(drains.timeout)).await.unwrap_or(false)
    };
    let outcome = tokio::select! {
        outcome = draining => Some(outcome),
        () = signals.stop() => None,
        () = service.keep_alive() => None,
    };
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

fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(|warning| warning.of(&config.path)).collect()
}

fn wishes(config: Config, file: Print) -> Wishes {
    let Config { server, routes, limits, log, .. } = config;
    let access = match (log.access, log.query) {
        (false, _) => Access::Off,
        (true, false) => Access::Path,
        (true, true) => Access::Query,
    };
    Wishes { server, routes, limits, access, file: Some(file) }
}

/// How the daemon ends.
#[derive(Clone, Copy)]
struct Drains {
    delay: Duration,
    timeout: Duration,
}

impl Drains {
    fn of(config: &Config) -> Self {
        Self { delay: config.drain_delay, timeout: config.drain_timeout }
    }
}

/// What the daemon was started with and keeps to its end.
struct Started {
    workers: usize,
    admin: Option<(Address, bool)>,
    log: (Level, Format),
}

impl Started {
    fn of(config: &Config) -> Self {
        let admin = config.admin.as_ref().map(|admin| (admin.listen.clone(), admin.quit));
        Self { workers: config.workers, admin, log: (config.log.level, config.log.format) }
    }

    /// What this configuration says otherwise.
    fn warning(&self, config: &Config) -> Option<String> {
        let now = Self::of(config);
        let keys = [
            (now.workers != self.workers, "`server.workers`"),
            (now.admin != self.admin, "`[admin]`"),
            (now.log.0 != self.log.0, "`log.level`"),
            (now.log.1 != self.log.1, "`log.format`"),
        ];
        let changed: Vec<_> = keys.into_iter().filter_map(|(is_changed, key)| is_changed.then_some(key)).collect();
        let keys = changed.join(", ");
        (!changed.is_empty())
            .then(|| format!("what changed in {keys} takes effect at the next start: restart the daemon"))
    }
}

/// Takes over what the configuration says now, or says why that cannot be.
async fn reload(daemon: &mut Daemon, path: &Path, life: &Life, started: &Started) -> Option<Drains> {
    let (file, loaded) = load(path).await;
    let config = match loaded {
        Ok(config) => config,
        Err(reasons) => return not_reloaded(reasons, life),
    };
    let mut warnings = warnings(&config);
    warnings.extend(started.warning(&config));
    let drains = Drains::of(&config);
    for warning in &warnings {
        warn!("{warning}");
    }
    if let Err(error) = daemon.reload(wishes(config, file)).await {
        return not_reloaded(words(&error, path), life);
    }
    life.reloaded(warnings);
    info!("reloaded");
    warn_of_validities(daemon, path);
    Some(drains)
}

/// Reads the configuration as it is when nobody writes it: what is written in place is empty first, and then perhaps a part
/// of itself, which would be a configuration too.
async fn load(path: &Path) -> (Print, Result<Config, Vec<String>>) {
    let mut readings = 0;
    loop {
        let before = digest(path);
        let is_blank = std::fs::read(path).is_ok_and(|content| content.trim_ascii().is_empty());
        let loaded = config::load(path);
        tokio::time::sleep(SETTLING).await;
        readings += 1;
        if digest(path) == before || readings == READINGS {
            let loaded = match loaded {
                Ok(_) if is_blank => Err(vec![format!("{}: the file is empty", path.display())]),
                Ok(config) => Ok(config),
                Err(invalid) => Err(invalid.remarks.iter().map(|remark| remark.of(path)).collect()),
            };
            // As it was before it was read: what changes later is noticed.
            return ((path.to_owned(), before), loaded);
        }
    }
}

fn not_reloaded(reasons: Vec<String>, life: &Life) -> Option<Drains> {
    for reason in &reasons {
        error!("{reason}");
    }
    life.not_reloaded(reasons);
    error!("the configuration cannot be used: the one before it goes on serving");
    None
}

fn words(error: &StartError, path: &Path) -> Vec<String> {
    match error {
        StartError::Unusable(remarks) => remarks.iter().map(|remark| remark.of(path)).collect(),
        error => vec![error.to_string()],
    }
}

fn warn_of_validities(daemon: &Daemon, path: &Path) {
    let now = Clock::system().now();
    for route in &daemon.state.load().routes {
        for warning in route.located.now().validities.iter().filter_map(|validity| validity.remark(now)) {
            warn!("{}", warning.of(path));
        }
    }
}

fn fail(message: &str) -> Failed {
    error!("{message}");
    Failed::Running
}

/// The signals that the daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
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

/// Every caller and every upstream connection takes a descriptor; the soft limit of most systems is for programs that
/// use select(2).
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files cannot be raised");
    }
}

/// For how long the configuration must stay as it was read, and how often that is tried.
const SETTLING: Duration = Duration::from_millis(20);
const READINGS: usize = 50;

const EXAMPLES: &str = "\
Examples:
  countersign run
  countersign run -c countersign.toml
  kill -HUP PID     # reads the configuration again
  kill PID          # lets requests end, then ends";
