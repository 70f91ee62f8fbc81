//! What a keeper holds: the generation that serves, and the next one until it has proved itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use secrecy::{ExposeSecret, SecretString};

use crate::clock::Timestamp;
use crate::credential::fetch::Moments;
use crate::credential::{AccessKey, Credential, Used};

/// A credential and what is known of it.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its number: the next one's is larger.
    pub number: u64,
    /// The credential.
    pub credential: Credential,
    /// When it was fetched, or read.
    pub obtained: Timestamp,
    /// When it ends, if it does.
    pub expiry: Option<Timestamp>,
    pub(super) moments: Option<Moments>,
}

impl Generation {
    /// What a verdict needs to know of it.
    #[must_use]
    pub fn used(&self, now: Timestamp) -> Used {
        let has_token = self.credential.access_key().is_some_and(|key| key.security_token.is_some());
        Used { is_temporary: self.expiry.is_some() || has_token, age: now.since(self.obtained) }
    }

    pub(super) fn is_gone(&self, now: Timestamp) -> bool {
        self.moments.is_some_and(|moments| moments.gone <= now)
    }

    pub(super) fn is_ending(&self, now: Timestamp) -> bool {
        self.moments.is_some_and(|moments| moments.wait <= now)
    }
}

/// What there is to take.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) current: Option<Arc<Generation>>,
    /// The next one, until a reply has shown that it is good.
    pub(super) candidate: Option<Arc<Candidate>>,
    /// The one that was refused last: it need not be tried again.
    pub(super) refused: Option<Arc<Generation>>,
}

impl Holding {
    /// The generation with this credential, if it is held.
    pub(super) fn known(&self, credential: &Credential) -> Option<&Arc<Generation>> {
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.generation);
        self.current.iter().chain(candidate).find(|generation| generation.credential.is_same(credential))
    }

    /// What there is to take once a generation has come; `None` if that changes nothing.
    pub(super) fn with(
        &self,
        fresh: &Generation,
        known: Option<&Arc<Generation>>,
        serving: Option<&Arc<Generation>>,
    ) -> Option<Self> {
        let is_current = known.is_some_and(|known| self.current.as_ref().is_some_and(|c| Arc::ptr_eq(c, known)));
        if known.is_some_and(|known| known.expiry == fresh.expiry) {
            // What waited for its trial was taken back.
            let is_taken_back = is_current && self.candidate.is_some();
            return is_taken_back.then(|| Self { current: self.current.clone(), ..Self::default() });
        }
        let was_refused = |refused: &Arc<Generation>| refused.credential.is_same(&fresh.credential);
        if serving.is_some() && self.refused.as_ref().is_some_and(was_refused) {
            return None;
        }
        let mut generation = fresh.clone();
        if let Some(known) = known {
            (generation.number, generation.obtained) = (known.number, known.obtained);
        }
        let generation = Arc::new(generation);
        Some(match serving.filter(|_| !is_current) {
            None => Self { current: Some(generation), ..Self::default() },
            Some(old) => {
                Self { current: Some(Arc::clone(old)), candidate: Some(Candidate::new(&generation)), refused: None }
            }
        })
    }
}

/// The next generation, which one request at a time tries.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) generation: Arc<Generation>,
    pub(super) is_taken: AtomicBool,
}

impl Candidate {
    pub(super) fn new(generation: &Arc<Generation>) -> Arc<Self> {
        Arc::new(Self { generation: Arc::clone(generation), is_taken: AtomicBool::new(false) })
    }
}

impl Credential {
    /// True if the other one is made of the same names and secrets.
    pub(in crate::credential) fn is_same(&self, other: &Self) -> bool {
        let is_same = |one: &SecretString, other: &SecretString| one.expose_secret() == other.expose_secret();
        let is_same_key = |one: &AccessKey, other: &AccessKey| {
            one.access_key == other.access_key
                && is_same(&one.secret_key, &other.secret_key)
                && match (&one.security_token, &other.security_token) {
                    (Some(one), Some(other)) => is_same(one, other),
                    (one, other) => one.is_none() && other.is_none(),
                }
        };
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::AccessKey(one), Self::AccessKey(other)) => is_same_key(one, other),
            (Self::Identified(one, ids), Self::Identified(other, others)) => is_same_key(one, other) && ids == others,
            (Self::Certificate(one), Self::Certificate(other)) => {
                one.upstream == other.upstream && is_same(&one.reply, &other.reply)
            }
            (Self::Secrets(ones), Self::Secrets(others)) => {
                ones.len() == others.len() && ones.iter().zip(others).all(|(one, other)| is_same(one, other))
            }
            _ => false,
        }
    }
}
