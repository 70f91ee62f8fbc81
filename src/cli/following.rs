//! What `run` and `exec` have in common: a daemon that follows its configuration.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::Errno;
use tokio::runtime::LocalOptions;
use tracing::{Level, error, info, warn};

use crate::admin::status::Life;
use crate::clock::Clock;
use crate::config::{self, Config, Format};
use crate::proxy::daemon::{Daemon, Plan, Print, StartError, Wishes};
use crate::proxy::listen::Address;
use crate::proxy::state::Access;
use crate::telemetry;
use crate::watch::digest;

use super::{ConfigFile, Failed, complain};

/// What a command makes of a configuration before it has any effect, at start and at every reload.
pub(super) type Shape = fn(Config) -> Config;

/// Reads the configuration and starts logging. `privacy` is what came of closing the memory, which may hold secrets from
/// here on.
pub(super) fn begin(file: &ConfigFile, privacy: Result<(), Errno>, shape: Shape) -> Result<(Config, Print), Failed> {
    let path = file.locate()?;
    let print = (path.clone(), digest(&path));
    let config = shape(file.load()?);
    telemetry::start(&config.log);
    if let Err(error) = privacy {
        warn!(%error, "the memory cannot be closed to other processes of this user: run the daemon as a user of its own");
    }
    for warning in &config.warnings {
        warn!("{}", warning.of(&config.path));
    }
    Ok((config, print))
}

/// Runs to the end on this thread.
pub(super) fn block_on(future: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(2).build_local(LocalOptions::default());
    let runtime = runtime.map_err(|error| {
        complain(format!("cannot start: {error}"));
        Failed::Running
    })?;
    let outcome = runtime.block_on(future);
    // Dropped instead, the runtime would wait for a drain that a second signal has ended.
    runtime.shutdown_background();
    outcome
}

/// Every caller and every upstream connection takes a descriptor; the soft limit of most systems is for programs that
/// use select(2).
pub(super) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Says why it goes no further.
pub(super) fn fail(message: &str) -> Failed {
    error!("{message}");
    Failed::Running
}

/// Says everything that keeps a daemon from starting.
fn fail_to_start(error: &StartError, path: &Path) -> Failed {
    for reason in words(error, path) {
        error!("{reason}");
    }
    Failed::Running
}

/// A running daemon, and the configuration that it follows.
pub(super) struct Serving {
    /// The daemon.
    pub(super) daemon: Daemon,
    /// What is told of it.
    pub(super) life: Arc<Life>,
    /// How it ends.
    pub(super) drains: Drains,
    /// The environment variables that have held a secret.
    pub(super) secret_variables: BTreeSet<String>,
    path: PathBuf,
    shape: Shape,
    started: Started,
}

impl Serving {
    /// Starts the daemon. `others` are listeners beside its own, which no route may lead to either.
    pub(super) fn start(config: Config, file: Print, others: Vec<SocketAddr>, shape: Shape) -> Result<Self, Failed> {
        let path = config.path.clone();
        let (drains, started, workers) = (Drains::of(&config), Started::of(&config), config.workers);
        let secret_variables = config.secret_variables.clone();
        let clock = Clock::system();
        let life = Arc::new(Life::new(clock.clone(), warnings(&config)));
        let plan = Plan { wishes: wishes(config, file), others, workers, clock };
        let daemon = Daemon::start(plan).map_err(|error| fail_to_start(&error, &path))?;
        warn_of_validities(&daemon, &path);
        for (route, address) in daemon.listening() {
            if let Some(route) = route {
                info!(%address, route, "listening");
            } else {
                info!(%address, "listening");
            }
        }
        Ok(Self { daemon, life, drains, secret_variables, path, shape, started })
    }

    /// Takes over what the configuration says now, or says why that cannot be.
    pub(super) async fn reload(&mut self) {
        let (file, loaded) = load(&self.path).await;
        let config = match loaded {
            Ok(config) => (self.shape)(config),
            Err(reasons) => return self.not_reloaded(reasons),
        };
        let mut warnings = warnings(&config);
        warnings.extend(self.started.warning(&config));
        let (drains, secret_variables) = (Drains::of(&config), config.secret_variables.clone());
        for warning in &warnings {
            warn!("{warning}");
        }
        if let Err(error) = self.daemon.reload(wishes(config, file)).await {
            return self.not_reloaded(words(&error, &self.path));
        }
        self.drains = drains;
        self.secret_variables.extend(secret_variables);
        self.life.reloaded(warnings);
        info!("reloaded");
        warn_of_validities(&self.daemon, &self.path);
    }

    fn not_reloaded(&self, reasons: Vec<String>) {
        for reason in &reasons {
            error!("{reason}");
        }
        self.life.not_reloaded(reasons);
        error!("the configuration cannot be used: the one before it goes on serving");
    }
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
pub(super) struct Drains {
    /// For how long requests are still accepted.
    pub(super) delay: Duration,
    /// For how long those that were may go on.
    pub(super) timeout: Duration,
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

/// For how long the configuration must stay as it was read, and how often that is tried.
const SETTLING: Duration = Duration::from_millis(20);
const READINGS: usize = 50;
