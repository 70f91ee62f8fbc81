//! Where a route's servers are known from: the configuration, or a directory that is asked again and again.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::settings::Remark;
use crate::upstream::ask::Asker;
use crate::upstream::directory::Directory;

use super::error::{Code, Error};
use super::lasting::Lasting;
use super::servers::{Approach, Servers};

/// The servers of a route, whichever they are at the moment.
#[derive(Debug)]
pub struct Located {
    /// The route's name, for the log.
    route: String,
    servers: ArcSwap<Servers>,
    /// Who says which they are, if the configuration does not.
    pub directory: Option<(Directory, Approach)>,
    asked: watch::Sender<Asked>,
}

/// What became of asking.
#[derive(Clone, Debug, Default)]
struct Asked {
    has_answered: bool,
    trouble: Option<Arc<str>>,
}

impl Located {
    /// A route's servers, which the configuration names, or a directory named last.
    #[must_use]
    pub fn new(route: &str, servers: Servers, directory: Option<(Directory, Approach)>) -> Self {
        Self {
            route: route.to_owned(),
            servers: ArcSwap::from_pointee(servers),
            directory,
            asked: watch::Sender::default(),
        }
    }

    /// The servers that are known now.
    #[must_use]
    pub fn now(&self) -> Arc<Servers> {
        self.servers.load_full()
    }

    /// The servers, waited for if none is known yet.
    ///
    /// # Errors
    /// `upstream_unreachable` if there is none.
    pub async fn servers(&self) -> Result<Arc<Servers>, Error> {
        let servers = self.now();
        if servers.all().is_empty() { Box::pin(self.first()).await } else { Ok(servers) }
    }

    async fn first(&self) -> Result<Arc<Servers>, Error> {
        let mut asked = self.asked.subscribe();
        let _ = timeout(PATIENCE, asked.wait_for(|asked| asked.has_answered)).await;
        let servers = self.now();
        if !servers.all().is_empty() {
            return Ok(servers);
        }
        let trouble = asked.borrow().trouble.clone();
        let trouble = trouble.unwrap_or_else(|| "no server is known yet: try again".into());
        Err(Error::new(Code::UpstreamUnreachable, trouble.to_string()))
    }

    /// The servers, asked for once if they are not in the configuration: for who asks without a daemon.
    ///
    /// # Errors
    /// `upstream_unreachable` if the directory names none.
    pub async fn ask(&self, asker: &Asker, lasting: &Lasting) -> Result<Arc<Servers>, Error> {
        let unreachable = |trouble| Error::new(Code::UpstreamUnreachable, trouble);
        if let Some((directory, approach)) = self.directory.as_ref().filter(|_| !self.is_known()) {
            let upstream = directory.ask(asker).await.map_err(unreachable)?;
            let servers = approach.reach(&upstream, lasting, None).map_err(|remarks| unreachable(words(remarks)))?;
            self.take_over(servers);
        }
        Ok(self.now())
    }

    /// True if a request could be sent somewhere.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.servers.load().all().is_empty()
    }

    /// Asks the directory for as long as the daemon lives. What was known stays where it does not answer.
    pub async fn live(self: Arc<Self>, asker: Asker, lasting: Arc<Lasting>) {
        let Some((directory, approach)) = &self.directory else { return };
        let mut failures = 0;
        loop {
            let trouble = match directory.ask(&asker).await {
                Err(trouble) => Some(trouble),
                Ok(upstream) => match approach.reach(&upstream, &lasting, Some(&*self.now())) {
                    Ok(servers) => {
                        self.take_over(servers);
                        None
                    }
                    Err(remarks) => Some(words(remarks)),
                },
            };
            if let Some(trouble) = &trouble
                && failures == 0
            {
                let (route, directory) = (&self.route, &directory.endpoint);
                if self.is_known() {
                    warn!(route, %directory, error = trouble, "no new list of servers: the last one stays in use");
                } else {
                    warn!(route, %directory, error = trouble, "no list of servers: requests are answered with 502");
                }
            }
            failures = if trouble.is_some() { failures + 1 } else { 0 };
            let pause = if self.is_known() { EVERY } else { FIRST.saturating_mul(1 << failures.min(8)).min(EVERY) };
            // Begun before anybody is told, who may set the clock then.
            let pause = asker.clock.pause(pause);
            self.asked.send_replace(Asked { has_answered: true, trouble: trouble.map(Into::into) });
            pause.await;
        }
    }

    fn take_over(&self, servers: Servers) {
        let before = self.now();
        if before.is_same(&servers) {
            return;
        }
        let names: Vec<_> = servers.all().iter().map(|endpoint| endpoint.target.to_string()).collect();
        info!(route = self.route, servers = names.join(", "), "the servers that the directory names");
        self.servers.store(Arc::new(servers.after(&before)));
    }
}

fn words(remarks: Vec<Remark>) -> String {
    let messages: Vec<_> = remarks.into_iter().map(|remark| remark.message).collect();
    messages.join("; ")
}

/// How often a directory is asked.
const EVERY: Duration = Duration::from_secs(30);

/// How soon it is asked again while no server is known; then after longer and longer.
const FIRST: Duration = Duration::from_millis(200);

/// How long a request waits for the first list.
const PATIENCE: Duration = Duration::from_secs(5);
