//! The threads, from their start to the last reply.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::clock::Clock;
use crate::confine;
use crate::settings::Remark;
use crate::upstream::tls;
use crate::watch::{Watcher, digest};

use super::errands::Errands;
use super::handed::{Given, Handed};
use super::lasting::Lasting;
use super::listen::{Address, BoundSocket, Sharing};
use super::route::Entrance;
use super::serve::{Change, Opened, Told, Worker};
use super::state::{Access, Route, State};
use super::{Limits, RouteSettings, ServerSettings};

/// What a daemon is started with.
#[derive(Debug)]
pub struct Plan {
    /// What it is to do, until another configuration says otherwise.
    pub wishes: Wishes,
    /// Listeners beside these, which no route may lead to either.
    pub others: Vec<SocketAddr>,
    /// The sockets that were handed over.
    pub handed: Handed,
    /// The number of threads; 0 is one a core.
    pub workers: usize,
    /// Tells the time.
    pub clock: Clock,
}

/// What a configuration says that a running daemon can take over.
#[derive(Debug)]
pub struct Wishes {
    /// The shared listeners and what else all routes have in common.
    pub server: ServerSettings,
    /// The routes.
    pub routes: Vec<RouteSettings>,
    /// The limits.
    pub limits: Limits,
    /// What the access log says.
    pub access: Access,
    /// The file that says so, if one does, as it was when it was read.
    pub file: Option<Print>,
}

/// A file, and a digest of what it held.
pub type Print = (PathBuf, Option<[u8; 32]>);

impl Wishes {
    /// The files that a state is made from, as they are now; secrets that have a keeper are not among them.
    fn prints(&self) -> Vec<Print> {
        let tls = self.routes.iter().flat_map(|route| route.tls.files()).chain(&self.server.extra_ca);
        let tokens = self.routes.iter().filter_map(|route| route.callers.as_ref()?.token.as_ref()?.file());
        let files = tls.map(|file| file.path.clone()).chain(tokens);
        self.file.iter().cloned().chain(files.map(print)).collect()
    }
}

fn print(path: PathBuf) -> Print {
    let digest = digest(&path);
    (path, digest)
}

/// Why a daemon did not start.
#[derive(Debug)]
pub enum StartError {
    /// Something that the configuration refers to cannot be used now.
    Unusable(Vec<Remark>),
    /// An address cannot be listened on.
    Bind(Address, io::Error),
    /// The system gave no thread or no poller.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(remarks) => {
                let lines: Vec<_> = remarks.iter().map(|remark| remark.message.as_str()).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Bind(address, error) if error.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "cannot listen on {address}: another process does; stop it, or choose another address")
            }
            Self::Bind(address @ Address::Unix { path, .. }, error) => {
                write!(f, "cannot listen on {address}: {}", confine::unbindable(error, path))
            }
            Self::Bind(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::System(error) => write!(f, "cannot start a thread: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// The running threads.
#[derive(Debug)]
pub struct Daemon {
    /// What requests begin with from now on.
    pub state: Arc<ArcSwap<State>>,
    listening: Vec<Listening>,
    workers: Vec<mpsc::Sender<Told>>,
    threads: Vec<thread::JoinHandle<()>>,
    errands: Errands,
    watcher: Watcher,
    files: watch::Receiver<u64>,
    /// What the state was made from.
    prints: Vec<Print>,
    lasting: Arc<Lasting>,
    /// Listeners beside these, which no route may lead to either.
    others: Vec<SocketAddr>,
    /// The sockets that were handed over, listened on or not: another configuration may name others of them.
    handed: Handed,
    next: u64,
}

/// An address that is listened on.
#[derive(Clone, Debug)]
struct Listening {
    number: u64,
    /// As it is configured.
    wanted: Address,
    /// As it was bound.
    bound: Address,
    /// The route whose own it is.
    owner: Option<String>,
}

impl Daemon {
    /// Reads every secret, builds every TLS configuration, binds every address, and only then serves.
    ///
    /// # Errors
    /// What stood in the way; nothing is left running.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        let Plan { wishes, others, handed, workers, clock } = plan;
        let threads = match workers {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            workers => workers,
        };
        let lasting = Arc::new(Lasting::new(clock.clone(), tls::Roots::new(wishes.server.extra_ca.clone())));
        let mut prepared = Prepared::new(&lasting, wishes, &[], &handed, threads, 0)?;
        let state = prepared.state(&lasting, &others);
        lasting.retain(&state);
        let (watcher, files) = Watcher::new();
        let errands = Errands::start(&lasting, &state.own, files.clone()).map_err(StartError::System)?;
        let mut daemon = Self {
            state: Arc::new(ArcSwap::new(Arc::clone(&state))),
            listening: prepared.listening,
            workers: Vec::new(),
            threads: Vec::new(),
            errands,
            watcher,
            files,
            prints: prepared.prints,
            lasting,
            others,
            handed,
            next: prepared.next,
        };
        let (started, starts) = std::sync::mpsc::channel();
        for _ in 0..threads {
            let sockets = prepared.opened.pop().unwrap_or_default();
            let (state, clock, started) = (Arc::clone(&state), clock.clone(), started.clone());
            let (sender, changes) = mpsc::channel(CHANGES);
            let thread = thread::Builder::new().name("worker".to_owned());
            let thread = thread.spawn(move || work(state, clock, sockets, changes, started));
            daemon.threads.push(thread.map_err(StartError::System)?);
            daemon.workers.push(sender);
        }
        drop(started);
        daemon.watch();
        // A thread that cannot serve would leave its share of the callers waiting.
        starts.iter().collect::<io::Result<()>>().map_err(StartError::System)?;
        Ok(daemon)
    }

    /// The addresses that are listened on, and the route whose own each is.
    pub fn listening(&self) -> impl Iterator<Item = (Option<&str>, &Address)> {
        self.listening.iter().map(|listening| (listening.owner.as_deref(), &listening.bound))
    }

    /// Takes over another configuration, all of it or nothing. Requests that have begun go on with what they began with;
    /// listeners that stay are not touched. The number of threads stays as it is.
    ///
    /// # Errors
    /// What stood in the way; everything is as it was.
    pub async fn reload(&mut self, wishes: Wishes) -> Result<(), StartError> {
        let before = (self.lasting.roots.load_full(), self.state.load_full());
        self.lasting.roots.store(Arc::new(tls::Roots::new(wishes.server.extra_ca.clone())));
        let threads = self.workers.len();
        let mut prepared = match Prepared::new(&self.lasting, wishes, &self.listening, &self.handed, threads, self.next)
        {
            Ok(prepared) => prepared,
            Err(error) => {
                self.lasting.roots.store(before.0);
                self.lasting.retain(&before.1);
                return Err(error);
            }
        };
        let state = prepared.state(&self.lasting, &self.others);
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            let opened = prepared.opened.pop().unwrap_or_default();
            let change = Change { state: Arc::clone(&state), opened, entrances: prepared.entrances.clone(), done };
            if worker.send(Told::Change(change)).await.is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            if let Ok(Ok(Err(error))) = timeout(PATIENCE, answer).await {
                // The poller has no room for a socket: the others serve what this thread does not.
                error!(%error, "a worker cannot serve a new listener");
            }
        }
        self.state.store(Arc::clone(&state));
        self.lasting.retain(&state);
        self.prints = prepared.prints;
        self.watch();
        self.errands.update(&state.own);
        let gone = self.listening.iter().filter(|old| prepared.listening.iter().all(|new| new.number != old.number));
        let gone: Vec<_> = gone.map(|listening| listening.wanted.clone()).collect();
        self.listening = prepared.listening;
        self.next = prepared.next;
        self.remove_sockets(&gone);
        Ok(())
    }

    /// Watches the files that the state was made from, and those of secrets.
    fn watch(&mut self) {
        let secrets = self.lasting.keepers().into_iter().flat_map(|kept| kept.keeper.source().files());
        let files = self.prints.iter().map(|(path, _)| path.clone());
        self.watcher.watch(files.chain(secrets));
    }

    /// Ready once the configuration, or a file that it names, holds something else than it did: then a reload is due.
    pub async fn changed(&mut self) {
        loop {
            if self.files.changed().await.is_err() {
                // Nobody watches any more, so it takes a signal.
                std::future::pending::<()>().await;
            }
            let prints: Vec<_> = self.prints.iter().map(|(path, _)| print(path.clone())).collect();
            if prints != self.prints {
                // Whatever comes of it: what cannot be used is not tried again until it changes.
                self.prints = prints;
                return;
            }
        }
    }

    /// True if every thread answers within `patience`, so that it is worth waiting for.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            // One that has no room for a question has not looked at those before it.
            if worker.try_send(Told::Answer(done)).is_err() {
                return false;
            }
            answers.push(answer);
        }
        let all = async {
            for answer in answers {
                if answer.await.is_err() {
                    return false;
                }
            }
            true
        };
        self.errands.is_alive() && timeout(patience, all).await.unwrap_or(false)
    }

    /// Removes the files of Unix sockets that nobody listens on any more; those that were handed over are not ours.
    fn remove_sockets(&self, addresses: &[Address]) {
        for address in addresses {
            let is_used = self.listening.iter().any(|listening| listening.wanted.is_same_place(address));
            if let (Address::Unix { path, .. }, false) = (address, is_used) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Stops accepting, answers what is in flight, and waits for that no longer than `patience`. True if all was
    /// answered.
    #[must_use]
    pub fn drain(mut self, patience: Duration) -> bool {
        self.lasting.is_draining.store(true, Ordering::Relaxed);
        // While somebody still listens: later the path may be a successor's.
        let all: Vec<_> = std::mem::take(&mut self.listening).into_iter().map(|listening| listening.wanted).collect();
        self.remove_sockets(&all);
        self.workers.clear();
        let (done, all_done) = std::sync::mpsc::channel();
        let (threads, errands) = (self.threads, self.errands);
        // Joining has no timeout, so it is done aside; the process ends whether or not it comes back.
        thread::spawn(move || {
            for thread in threads {
                if thread.join().is_err() {
                    error!("a worker thread panicked");
                }
            }
            // Until here somebody may have waited for a credential.
            drop(errands);
            let _ = done.send(());
        });
        all_done.recv_timeout(patience).is_ok()
    }
}

/// What was bound for nothing, unless all could be: the files of Unix sockets go with this.
#[derive(Default)]
struct Fresh(Vec<Address>);

impl Drop for Fresh {
    fn drop(&mut self) {
        for address in &self.0 {
            if let Address::Unix { path, .. } = address {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Everything that a configuration wishes for, ready to be put to use.
struct Prepared {
    wishes: Wishes,
    routes: Vec<Arc<Route>>,
    listening: Vec<Listening>,
    /// What is new, for each thread.
    opened: Vec<Vec<Opened<BoundSocket>>>,
    entrances: HashMap<u64, Entrance>,
    prints: Vec<Print>,
    next: u64,
}

impl Prepared {
    /// Makes the routes ready and binds the addresses that are not listened on yet.
    fn new(
        lasting: &Arc<Lasting>,
        mut wishes: Wishes,
        before: &[Listening],
        handed: &Handed,
        threads: usize,
        mut next: u64,
    ) -> Result<Self, StartError> {
        // Before they are read: what changes later is noticed.
        let prints = wishes.prints();
        let own: Vec<_> = wishes.routes.iter().map(Owner::of).collect();
        let routes = prepare(std::mem::take(&mut wishes.routes), lasting)?;
        let places = places(&wishes.server, &own, handed)?;
        let mut listening: Vec<Listening> = Vec::new();
        let (mut opened, mut entrances, mut fresh) = (Vec::new(), HashMap::new(), Fresh::default());
        opened.resize_with(threads, Vec::new);
        for Place { owner, wanted, given } in places {
            let is_unix = matches!(given.map_or(wanted, |given| given.address), Address::Unix { .. });
            let entrance = Entrance { route: owner.map(|owner| lasting.number(owner)), is_unix };
            let is_it = |known: &&Listening| {
                // A port that the kernel is to choose is another one for everybody.
                let is_chosen = matches!(wanted, Address::Tcp(address) if address.port() == 0);
                known.wanted.is_same_place(wanted)
                    && given.is_none_or(|given| known.bound == *given.address)
                    && (!is_chosen || known.owner.as_ref() == owner)
                    && listening.iter().all(|taken| taken.number != known.number)
            };
            let (number, bound) = if let Some(known) = before.iter().find(is_it) {
                (known.number, known.bound.clone())
            } else {
                let is_ours = before.iter().any(|known| known.bound.overlaps(wanted));
                let sharing = if is_ours { Sharing::Ours } else { Sharing::Nobodys };
                let bound = match given.map_or_else(|| wanted.bind(threads, sharing), |given| given.bound(threads)) {
                    Ok(bound) => bound,
                    Err(error) if is_missing_ipv6(wanted, &error) => {
                        debug!(address = %wanted, "this machine has no IPv6");
                        continue;
                    }
                    Err(error) => return Err(StartError::Bind(wanted.clone(), explained(error, wanted, handed))),
                };
                next += 1;
                fresh.0.push(wanted.clone());
                for (opened, socket) in opened.iter_mut().zip(bound.sockets) {
                    opened.push(Opened { number: next, entrance, socket });
                }
                (next, bound.address)
            };
            entrances.insert(number, entrance);
            listening.push(Listening { number, wanted: wanted.clone(), bound, owner: owner.cloned() });
        }
        // Last, so that a listener which cannot be had leaves the others as they are.
        for new in &listening {
            if before.iter().any(|known| known.number == new.number && known.wanted != new.wanted) {
                new.wanted.adjust().map_err(|error| StartError::Bind(new.wanted.clone(), error))?;
            }
        }
        fresh.0.clear();
        for (name, address) in handed.all() {
            if !listening
                .iter()
                .any(|listening| matches!(&listening.wanted, Address::Systemd(wanted) if wanted == name))
            {
                let address = address.map(ToString::to_string);
                warn!(
                    name,
                    address, "a socket was handed over that no `listen` names: who connects to it waits in vain"
                );
            }
        }
        Ok(Self { wishes, routes, listening, opened, entrances, prints, next })
    }

    fn state(&mut self, lasting: &Arc<Lasting>, others: &[SocketAddr]) -> Arc<State> {
        let tcp = |listening: &Listening| match listening.bound {
            Address::Tcp(address) => Some(address),
            _ => None,
        };
        let own: Vec<_> = self.listening.iter().filter_map(tcp).chain(others.iter().copied()).collect();
        let Wishes { server, limits, access, .. } = &self.wishes;
        let routes = std::mem::take(&mut self.routes);
        Arc::new(State::new(server, routes, *limits, *access, own.into(), Arc::clone(lasting)))
    }
}

/// A route that may have listeners of its own.
struct Owner {
    name: String,
    listen: Vec<Address>,
    asks_callers: bool,
}

impl Owner {
    fn of(route: &RouteSettings) -> Self {
        Self { name: route.name.clone(), listen: route.listen.clone(), asks_callers: route.callers.is_some() }
    }
}

/// A socket that is to be listened on.
struct Place<'a> {
    /// The route whose own it is.
    owner: Option<&'a String>,
    /// The address, as it is configured.
    wanted: &'a Address,
    /// What was handed over for it, if it is bound already.
    given: Option<Given<'a>>,
}

/// Every socket that is to be listened on: more than one where several were handed over under one name.
fn places<'a>(server: &'a ServerSettings, own: &'a [Owner], handed: &'a Handed) -> Result<Vec<Place<'a>>, StartError> {
    let shared = server.listen.iter().map(|address| (None, address));
    let owned = own.iter().flat_map(|owner| owner.listen.iter().map(move |address| (Some(owner), address)));
    let mut places = Vec::new();
    for (owner, wanted) in shared.chain(owned) {
        let name = owner.map(|owner| &owner.name);
        if let Address::Systemd(socket) = wanted {
            let unusable = |error| StartError::Bind(wanted.clone(), error);
            for given in handed.named(socket).map_err(unusable)? {
                let reached = own.iter().filter(|route| name.is_none_or(|name| *name == route.name));
                admit_remote(given.address, server.allow_remote, reached).map_err(unusable)?;
                places.push(Place { owner: name, wanted, given: Some(given) });
            }
        } else {
            places.push(Place { owner: name, wanted, given: None });
        }
    }
    Ok(places)
}

/// What the configuration's own addresses are held to as soon as it is read: other machines get in only where that is meant.
fn admit_remote<'a>(
    address: &Address,
    is_allowed: bool,
    mut reached: impl Iterator<Item = &'a Owner>,
) -> io::Result<()> {
    if address.is_local() {
        return Ok(());
    }
    if !is_allowed {
        return Err(io::Error::other(format!(
            "{address} is no loopback address: other machines could use the credentials; change ListenStream= of the .socket \
             unit, or set `allow_remote = true` in [server] and give the routes `callers`"
        )));
    }
    match reached.find(|route| !route.asks_callers) {
        Some(Owner { name, .. }) => {
            Err(io::Error::other(format!("other machines can reach route \"{name}\" at {address}: give it `callers`")))
        }
        None => Ok(()),
    }
}

/// Says who has the address, where that is known.
fn explained(error: io::Error, wanted: &Address, handed: &Handed) -> io::Error {
    match handed.name_of(wanted) {
        Some(name) if error.kind() == io::ErrorKind::AddrInUse => io::Error::other(format!(
            "the service manager does, and hands the socket over: write \"systemd:{name}\" in its place"
        )),
        _ => error,
    }
}

fn prepare(routes: Vec<RouteSettings>, lasting: &Arc<Lasting>) -> Result<Vec<Arc<Route>>, StartError> {
    let (mut ready, mut remarks) = (Vec::new(), Vec::new());
    for route in routes {
        match Route::prepare(route, lasting) {
            Ok(route) => ready.push(Arc::new(route)),
            Err(found) => remarks.extend(found),
        }
    }
    // Routes share what `[server]` says, so they share its mistakes.
    remarks.sort();
    remarks.dedup();
    if remarks.is_empty() { Ok(ready) } else { Err(StartError::Unusable(remarks)) }
}

fn is_missing_ipv6(address: &Address, error: &io::Error) -> bool {
    let Address::Tcp(SocketAddr::V6(_)) = address else { return false };
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

/// A thread's life. It says first whether it can serve.
fn work(
    state: Arc<State>,
    clock: Clock,
    sockets: Vec<Opened<BoundSocket>>,
    changes: mpsc::Receiver<Told>,
    started: std::sync::mpsc::Sender<io::Result<()>>,
) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Names are resolved on threads of their own, which end when they have nothing to do.
    let runtime = builder.enable_all().max_blocking_threads(RESOLVERS).build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async move {
        let listeners = match sockets.into_iter().map(Opened::listen).collect::<io::Result<_>>() {
            Ok(listeners) => listeners,
            Err(error) => return drop(started.send(Err(error))),
        };
        // Dropped here, since whoever starts the threads waits for the last sender.
        let _ = started.send(Ok(()));
        drop(started);
        Worker::new(state, clock).serve(listeners, changes).await;
    });
    // A name may still be in the resolver's hands, though nobody waits for it any more.
    runtime.shutdown_background();
    info!("a worker has answered everything");
}

/// How many changes wait for a thread, at most.
const CHANGES: usize = 4;

/// How long a thread may take to take over a change.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many names a thread resolves at one time.
const RESOLVERS: usize = 16;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::settings::BareSecrets;

    #[tokio::test]
    async fn one_thread_that_does_not_answer_is_one_too_many() {
        let text = "server.listen = [\"127.0.0.1:0\"]";
        let config = config::parse(text, Path::new("f"), BareSecrets::Refuse).unwrap();
        let config::Config { server, routes, limits, .. } = config;
        let wishes = Wishes { server, routes, limits, access: Access::Off, file: None };
        let handed = Handed::default();
        let mut daemon =
            Daemon::start(Plan { wishes, others: Vec::new(), handed, workers: 2, clock: Clock::system() }).unwrap();
        for _ in 0..2 * CHANGES {
            assert!(daemon.is_alive(PATIENCE * 10).await);
        }
        let (hung, questions) = mpsc::channel(1);
        daemon.workers.push(hung);
        assert!(!daemon.is_alive(Duration::from_millis(1)).await);
        // Its queue is full by now.
        assert!(!daemon.is_alive(PATIENCE * 10).await);
        drop(questions);
        assert!(!daemon.is_alive(PATIENCE * 10).await);
        daemon.workers.pop();
        assert!(daemon.is_alive(PATIENCE * 10).await);
        assert!(daemon.drain(PATIENCE * 10));
    }

    #[test]
    fn only_a_missing_ipv6_is_no_error() {
        let (v4, v6) = (Address::Tcp("127.0.0.1:80".parse().unwrap()), Address::Tcp("[::1]:80".parse().unwrap()));
        let system = |errno| io::Error::from_raw_os_error(errno as i32);
        for missing in [system(nix::errno::Errno::EAFNOSUPPORT), system(nix::errno::Errno::EADDRNOTAVAIL)] {
            assert!(is_missing_ipv6(&v6, &missing) && !is_missing_ipv6(&v4, &missing), "{missing}");
        }
        assert!(!is_missing_ipv6(&v6, &system(nix::errno::Errno::EADDRINUSE)));
    }
}
