//! The thread that fetches what requests will need, while others serve them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use tokio::runtime::LocalOptions;
use tokio::sync::watch;

use super::lasting::Lasting;

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Errands {
    own: watch::Sender<Arc<[SocketAddr]>>,
}

impl Errands {
    /// Starts keeping every credential fresh that does not stay as it is; `own` are our own listeners. `files` counts the
    /// changes of files.
    ///
    /// # Errors
    /// The system gave no thread or no poller.
    pub fn start(lasting: &Arc<Lasting>, own: &Arc<[SocketAddr]>, files: watch::Receiver<u64>) -> io::Result<Self> {
        let (own, owns) = watch::channel(Arc::clone(own));
        let lasting = Arc::clone(lasting);
        let (started, starts) = mpsc::channel();
        thread::Builder::new().name("errands".to_owned()).spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().max_blocking_threads(ASIDE).build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(()));
            runtime.block_on(run(&lasting, owns, &files));
            // A command may still run, though nobody waits for it any more.
            runtime.shutdown_background();
        })?;
        starts.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))?;
        Ok(Self { own })
    }

    /// True as long as the thread keeps anything.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.own.is_closed()
    }

    /// Goes on with what is to be kept now.
    pub fn update(&self, own: &Arc<[SocketAddr]>) {
        self.own.send_replace(Arc::clone(own));
    }
}

/// Has a task for every keeper and every directory that there is, until nobody wants any more.
async fn run(lasting: &Arc<Lasting>, mut owns: watch::Receiver<Arc<[SocketAddr]>>, files: &watch::Receiver<u64>) {
    let mut tasks = HashMap::new();
    loop {
        let own = Arc::clone(&owns.borrow_and_update());
        let mut kept = HashMap::new();
        for keeper in lasting.keepers().into_iter().filter(|kept| kept.keeper.source().may_change()) {
            let place = Arc::as_ptr(&keeper.keeper).addr();
            let task = tasks.remove(&place).unwrap_or_else(|| {
                let asker = lasting.asker(keeper.proxy, Arc::clone(&own));
                tokio::task::spawn_local(keeper.keeper.live(asker, files.clone()))
            });
            kept.insert(place, task);
        }
        for located in lasting.directories() {
            let Some((_, approach)) = &located.directory else { continue };
            let place = Arc::as_ptr(&located).addr();
            let task = tasks.remove(&place).unwrap_or_else(|| {
                let asker = lasting.asker(approach.proxy().clone(), Arc::clone(&own));
                tokio::task::spawn_local(Arc::clone(&located).live(asker, Arc::clone(lasting)))
            });
            kept.insert(place, task);
        }
        for task in std::mem::replace(&mut tasks, kept).into_values() {
            task.abort();
        }
        if owns.changed().await.is_err() {
            return;
        }
    }
}

/// How many names are resolved, and commands run, at one time.
const ASIDE: usize = 16;
