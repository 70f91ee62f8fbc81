//! Step 6: a route's signers, one a generation of its credential.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::credential::keeper::Generation;
use crate::provider::{Destination, Provider, Signer};

use super::lasting::Lasting;
use super::lockout::Lock;
use super::servers::{Approach, Servers};

/// Makes the signers of a route and keeps them for as long as their generations are in use.
pub struct Signers {
    provider: Arc<dyn Provider>,
    approach: Approach,
    lasting: Arc<Lasting>,
    /// The newest last.
    ready: ArcSwap<SmallVec<[Arc<Armed>; KEPT]>>,
}

/// A generation, ready to sign.
pub struct Armed {
    generation: u64,
    /// The signer.
    pub signer: Arc<dyn Signer>,
    /// What is known of the access key, if the provider locks keys.
    pub lock: Option<Arc<Lock>>,
    /// The servers, if the credential says which they are and who we are there.
    pub servers: Option<Arc<Servers>>,
}

impl Signers {
    /// Makes signers with this provider.
    #[must_use]
    pub fn new(provider: Arc<dyn Provider>, approach: Approach, lasting: Arc<Lasting>) -> Self {
        Self { provider, approach, lasting, ready: ArcSwap::default() }
    }

    /// The signer of a generation.
    ///
    /// # Errors
    /// Why its credential cannot be used.
    pub fn of(&self, generation: &Generation) -> Result<Arc<Armed>, String> {
        let find = |ready: &[Arc<Armed>]| ready.iter().find(|armed| armed.generation == generation.number).cloned();
        if let Some(armed) = find(&self.ready.load()) {
            return Ok(armed);
        }
        let key = generation.credential.access_key().filter(|_| self.provider.locks_keys());
        let lock = key.map(|key| self.lasting.lockouts.of(&key.access_key));
        let signer = self.provider.signer(&generation.credential)?;
        let servers = self.provider.destination(&generation.credential).map(|found| self.reach(found?)).transpose()?;
        let armed = Arc::new(Armed { generation: generation.number, signer, lock, servers });
        self.ready.rcu(|ready| {
            let mut ready = SmallVec::clone(ready);
            // Another thread may have been faster.
            if find(&ready).is_none() {
                ready.push(Arc::clone(&armed));
                ready.sort_by_key(|armed| armed.generation);
                let surplus = ready.len().saturating_sub(KEPT);
                ready.drain(..surplus);
            }
            ready
        });
        Ok(armed)
    }
}

impl Signers {
    fn reach(&self, destination: Destination) -> Result<Arc<Servers>, String> {
        let Destination { upstream, identity } = destination;
        let reached = self.approach.with_identity(identity).reach(&[upstream], &self.lasting, None);
        reached.map(Arc::new).map_err(|remarks| {
            let messages: Vec<_> = remarks.into_iter().map(|remark| remark.message).collect();
            messages.join("; ")
        })
    }

    /// The servers of all generations that are still `held`.
    pub fn servers(&self, held: impl Fn(u64) -> bool) -> Vec<Arc<Servers>> {
        let ready = self.ready.load();
        let ready = ready.iter().filter(|armed| armed.servers.is_some() && held(armed.generation));
        ready.filter_map(|armed| armed.servers.clone()).collect()
    }
}

impl fmt::Debug for Signers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signers").finish_non_exhaustive()
    }
}

impl fmt::Debug for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Armed").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// How many generations are in use at one time: one, and one on trial.
const KEPT: usize = 2;
