//! The last refusals, for whoever asks why.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;

/// A request that was refused for its authentication.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When.
    pub at: Timestamp,
    /// The route.
    pub route: String,
    /// Our name for the request.
    pub request_id: String,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The upstream's status; `None` where we refused by ourselves.
    pub status: Option<u16>,
    /// Why, in a word.
    pub verdict: &'static str,
    /// The provider's code.
    pub code: Option<String>,
    /// The provider's name for the request.
    pub provider_request_id: Option<String>,
    /// What to do about it.
    pub advice: String,
    /// What was done about it: sent again, and why, or nothing.
    pub sent_again: Option<&'static str>,
    /// What was signed, secrets masked.
    pub canonical_request: Option<String>,
    /// What the signature was made of, secrets masked.
    pub string_to_sign: Option<String>,
}

/// The last hundred.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    /// Notes one.
    pub fn note(&self, refusal: Refusal) {
        let mut refusals = self.lock();
        if refusals.len() == MOST {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
    }

    /// The last ones, the newest last.
    #[must_use]
    pub fn last(&self) -> Vec<Refusal> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many are kept.
const MOST: usize = 100;
