//! The threads, from their start to the last reply.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::LocalOptions;
use tokio::sync::watch;
use tracing::{debug, error, info};

use crate::clock::Clock;
use crate::settings::Remark;
use crate::upstream::tls;

use super::listen::{Address, BoundSocket, Listener};
use super::route::Entrance;
use super::serve::Worker;
use super::state::{Access, Route, State};
use super::{Limits, RouteSettings, ServerSettings};

/// What a daemon is started with.
#[derive(Debug)]
pub struct Plan {
    /// The shared listeners and what else all routes have in common.
    pub server: ServerSettings,
    /// Listeners beside these, which no route may lead to either.
    pub others: Vec<SocketAddr>,
    /// The routes.
    pub routes: Vec<RouteSettings>,
    /// The limits.
    pub limits: Limits,
    /// What the access log says.
    pub access: Access,
    /// The number of threads; 0 is one a core.
    pub workers: usize,
    /// Tells the time.
    pub clock: Clock,
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
            Self::Bind(address, error) => write!(f, "cannot listen on {address}: {error}"),
            Self::System(error) => write!(f, "cannot start a thread: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// The running threads.
#[derive(Debug)]
pub struct Daemon {
    /// What they share.
    pub state: Arc<State>,
    /// What they listen on, and the route whose own it is.
    pub listening: Vec<(Option<String>, Address)>,
    threads: Vec<thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Daemon {
    /// Reads every secret, builds every TLS configuration, binds every address, and only then serves.
    ///
    /// # Errors
    /// What stood in the way; nothing is left running.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        let Plan { server, others, routes, limits, access, workers, clock } = plan;
        let threads = match workers {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            workers => workers,
        };
        let own: Vec<_> = routes.iter().map(|route| route.listen.clone()).collect();
        let routes = prepare(routes, &tls::Roots::new(server.extra_ca.clone()))?;
        let mut addresses: Vec<_> = server.listen.iter().map(|address| (None, address)).collect();
        for (index, listen) in own.iter().enumerate() {
            addresses.extend(listen.iter().map(|address| (Some(index), address)));
        }
        let (mut sockets, mut listening) = (Vec::new(), Vec::new());
        sockets.resize_with(threads, Vec::new);
        for (route, address) in addresses {
            let bound = match address.bind(threads) {
                Ok(bound) => bound,
                Err(error) if is_missing_ipv6(address, &error) => {
                    debug!(%address, "this machine has no IPv6");
                    continue;
                }
                Err(error) => return Err(StartError::Bind(address.clone(), error)),
            };
            let entrance = Entrance { route, is_unix: matches!(address, Address::Unix { .. }) };
            for (sockets, socket) in sockets.iter_mut().zip(bound.sockets) {
                sockets.push((entrance, socket));
            }
            let name = route.and_then(|route| routes.get(route)).map(|route| route.name.clone());
            listening.push((name, bound.address));
        }
        let tcp = |(_, address): &(Option<String>, Address)| match address {
            Address::Tcp(address) => Some(*address),
            _ => None,
        };
        let own: Vec<SocketAddr> = listening.iter().filter_map(tcp).chain(others).collect();
        let state = Arc::new(State::new(&server, routes, limits, access, own));
        let (stop, stopped) = watch::channel(false);
        let mut daemon = Self { state, listening, threads: Vec::new(), stop };
        let (started, starts) = mpsc::channel();
        for sockets in sockets {
            let (state, clock) = (Arc::clone(&daemon.state), clock.clone());
            let (stopped, started) = (stopped.clone(), started.clone());
            let thread = thread::Builder::new().name("worker".to_owned());
            let thread = thread.spawn(move || work(state, clock, sockets, stopped, started));
            daemon.threads.push(thread.map_err(StartError::System)?);
        }
        drop(started);
        // A thread that cannot serve would leave its share of the callers waiting.
        starts.iter().collect::<io::Result<()>>().map_err(StartError::System)?;
        Ok(daemon)
    }

    /// Stops accepting, answers what is in flight, and waits for that no longer than `patience`. True if all was
    /// answered.
    #[must_use]
    pub fn drain(self, patience: Duration) -> bool {
        self.state.is_draining.store(true, Ordering::Relaxed);
        // While somebody still listens: later the path may be a successor's.
        for (_, address) in &self.listening {
            if let Address::Unix { path, .. } = address {
                let _ = std::fs::remove_file(path);
            }
        }
        let _ = self.stop.send(true);
        let (done, all_done) = mpsc::channel();
        let threads = self.threads;
        // Joining has no timeout, so it is done aside; the process ends whether or not it comes back.
        thread::spawn(move || {
            for thread in threads {
                if thread.join().is_err() {
                    error!("a worker thread panicked");
                }
            }
            let _ = done.send(());
        });
        all_done.recv_timeout(patience).is_ok()
    }
}

fn prepare(routes: Vec<RouteSettings>, roots: &tls::Roots) -> Result<Vec<Route>, StartError> {
    let (mut ready, mut remarks) = (Vec::new(), Vec::new());
    for route in routes {
        match Route::prepare(route, roots) {
            Ok(route) => ready.push(route),
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
    sockets: Vec<(Entrance, BoundSocket)>,
    mut stopped: watch::Receiver<bool>,
    started: mpsc::Sender<io::Result<()>>,
) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Names are resolved on threads of their own, which end when they have nothing to do.
    let runtime = builder.enable_all().max_blocking_threads(RESOLVERS).build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async move {
        let listeners = sockets.into_iter().map(|(entrance, socket)| Ok((entrance, Listener::new(socket)?)));
        let listeners = match listeners.collect::<io::Result<_>>() {
            Ok(listeners) => listeners,
            Err(error) => return drop(started.send(Err(error))),
        };
        // Dropped here, since whoever starts the threads waits for the last sender.
        let _ = started.send(Ok(()));
        drop(started);
        let worker: Rc<Worker> = Worker::new(state, clock);
        worker.serve(listeners, async move { drop(stopped.wait_for(|stopped| *stopped).await) }).await;
    });
    // A name may still be in the resolver's hands, though nobody waits for it any more.
    runtime.shutdown_background();
    info!("a worker has answered everything");
}

/// How many names a thread resolves at one time.
const RESOLVERS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

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
