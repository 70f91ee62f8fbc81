//! The access keys that a service accepts.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::ExposeSecret;

use crate::clock::Timestamp;
use crate::credential::AccessKey;

/// Access keys, each for good or until it expires. Clones share them: keys can come and go while a server runs.
#[derive(Clone, Default)]
pub struct Keys(Arc<Mutex<Vec<Known>>>);

struct Known {
    key: AccessKey,
    expires: Option<Timestamp>,
}

impl Keys {
    /// Accepts a key from now on, until `expires` if that is given; one with a security token is temporary. The oldest is
    /// forgotten when there are a thousand.
    pub fn add(&self, key: AccessKey, expires: Option<Timestamp>) {
        self.change(|known| {
            if known.len() >= REMEMBERED {
                known.remove(0);
            }
            known.push(Known { key, expires });
        });
    }

    /// Refuses all keys of this name from now on.
    pub fn remove(&self, access_key: &str) {
        self.change(|known| known.retain(|one| one.key.access_key != access_key));
    }

    /// The key of this name, if it goes with just this security token and lives at that moment.
    pub(super) fn find(&self, access_key: &str, token: Option<&str>, now: Timestamp) -> Option<AccessKey> {
        let is_it = |one: &&Known| {
            one.key.access_key == access_key
                && one.key.security_token.as_ref().map(ExposeSecret::expose_secret) == token
                && one.expires.is_none_or(|expires| now < expires)
        };
        self.change(|known| known.iter().find(is_it).map(|one| one.key.clone()))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Known>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl From<Vec<AccessKey>> for Keys {
    /// Keys that do not expire.
    fn from(keys: Vec<AccessKey>) -> Self {
        let known = Self::default();
        for key in keys {
            known.add(key, None);
        }
        known
    }
}

/// Keys that are known at one time.
const REMEMBERED: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_expire_and_go() {
        let key = |token: Option<&str>| AccessKey {
            access_key: "key".to_owned(),
            secret_key: "secret".into(),
            security_token: token.map(Into::into),
        };
        let keys = Keys::from(vec![key(None)]);
        let shared = keys.clone();
        let finds = |token, now| shared.find("key", token, Timestamp(now)).is_some();
        assert!(finds(None, i64::MAX) && !finds(Some("token"), 0));
        keys.add(key(Some("token")), Some(Timestamp(1000)));
        assert!(finds(Some("token"), 999) && !finds(Some("token"), 1000) && finds(None, 1000));
        keys.remove("key");
        assert!(!finds(Some("token"), 0) && !finds(None, 0));
    }
}
