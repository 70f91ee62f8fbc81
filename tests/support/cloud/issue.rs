//! What is given out: keys in generations, tokens, and how times are written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use countersign::clock::Timestamp;
use countersign::credential::AccessKey;
use countersign::demo::verify::Keys;

/// Gives out temporary keys, each a generation of its own, `{prefix}-0001` first, and makes them known where they are to be
/// accepted.
pub struct Mint {
    prefix: &'static str,
    rings: Vec<Keys>,
    issued: Mutex<Vec<AccessKey>>,
}

impl Mint {
    pub(super) fn new(prefix: &'static str, rings: Vec<Keys>) -> Self {
        Self { prefix, rings, issued: Mutex::default() }
    }

    /// All generations, the oldest first.
    pub fn issued(&self) -> Vec<AccessKey> {
        self.issued.lock().unwrap().clone()
    }

    pub(super) fn issue(&self, expires: Timestamp) -> AccessKey {
        let mut issued = self.issued.lock().unwrap();
        let name = format!("{}-{:04}", self.prefix, issued.len() + 1);
        let key = AccessKey {
            secret_key: format!("secret-of-{}", opaque(30)).into(),
            security_token: Some(format!("token-of-{}", opaque(1500)).into()),
            access_key: name,
        };
        for ring in &self.rings {
            ring.add(key.clone(), Some(expires));
        }
        issued.push(key.clone());
        key
    }
}

/// The tokens of an instance's metadata service.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Timestamp>>);

impl Sessions {
    pub(super) fn issue(&self, expires: Timestamp) -> String {
        let token = opaque(56);
        self.0.lock().unwrap().insert(token.clone(), expires);
        token
    }

    pub(super) fn is_good(&self, token: &str, now: Timestamp) -> bool {
        self.0.lock().unwrap().get(token).is_some_and(|expires| now < *expires)
    }

    pub(super) fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// The tokens that IAM has given out; clones share them.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<Vec<Issued>>>);

struct Issued {
    value: String,
    scope: String,
    expires: Timestamp,
    is_revoked: bool,
}

impl Tokens {
    /// A new one of about that length, the others stay good.
    pub(super) fn issue(&self, scope: &str, expires: Timestamp, length: usize) -> String {
        let (value, scope) = (format!("MII{}", opaque(length)), scope.to_owned());
        self.0.lock().unwrap().push(Issued { value: value.clone(), scope, expires, is_revoked: false });
        value
    }

    /// Which one it is, `token 1 of …` first, if it is good at that moment.
    pub(super) fn judge(&self, value: &str, now: Timestamp) -> Result<String, &'static str> {
        let tokens = self.0.lock().unwrap();
        let (number, token) =
            (1..).zip(tokens.iter()).find(|(_, token)| token.value == value).ok_or("no token of this cloud")?;
        match token {
            Issued { is_revoked: true, .. } => Err("a revoked token"),
            Issued { expires, .. } if now >= *expires => Err("an expired token"),
            Issued { scope, .. } => Ok(format!("token {number} of {scope}")),
        }
    }

    /// How many there have been.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The newest.
    pub fn latest(&self) -> Option<String> {
        self.0.lock().unwrap().last().map(|token| token.value.clone())
    }

    /// Makes one bad.
    pub fn revoke(&self, value: &str) {
        for token in self.0.lock().unwrap().iter_mut() {
            token.is_revoked |= token.value == value;
        }
    }

    /// Makes all bad that have been given out.
    pub fn revoke_all(&self) {
        for token in self.0.lock().unwrap().iter_mut() {
            token.is_revoked = true;
        }
    }
}

/// Text that no other call returns, of at least 12 characters.
pub(super) fn opaque(length: usize) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut state = number;
    let mut text = format!("{:x}x{number:06}", std::process::id());
    while text.len() < length {
        state = state.wrapping_mul(0x5851_F42D).wrapping_add(number) & 0x7fff_ffff;
        text.push(char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"[state >> 16 & 63]));
    }
    text
}

/// `2026-01-02T03:04:05Z`
pub(super) fn in_seconds(time: Timestamp) -> String {
    written(time, "%Y-%m-%dT%H:%M:%SZ")
}

/// `2026-01-02T03:04:05.678000Z`
pub(super) fn in_micros(time: Timestamp) -> String {
    written(time, "%Y-%m-%dT%H:%M:%S.%6fZ")
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
pub(super) fn http_date(time: Timestamp) -> String {
    written(time, "%a, %d %b %Y %H:%M:%S GMT")
}

fn written(time: Timestamp, form: &str) -> String {
    jiff::Timestamp::from_millisecond(time.0).unwrap().strftime(form).to_string()
}
