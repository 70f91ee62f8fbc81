//! Tokens: given out by one service, wanted by others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{Received, Refusal, Scheme, openstack_error};
use crate::clock::Timestamp;

/// Tokens, each good until it expires. Clones share them, so that what one service issues others accept.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<VecDeque<Issued>>>);

struct Issued {
    value: SecretString,
    what: String,
    expires: Option<Timestamp>,
}

impl Tokens {
    /// Accepts a token from now on, until `expires` if that is given; `what` it is for, in words. The oldest is forgotten when
    /// there are a thousand.
    pub fn add(&self, value: SecretString, what: impl Into<String>, expires: Option<Timestamp>) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= REMEMBERED {
            tokens.pop_front();
        }
        tokens.push_back(Issued { value, what: what.into(), expires });
    }

    /// What a token is for, if it lives at that moment.
    fn find(&self, value: &str, now: Timestamp) -> Option<String> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &&Issued| one.value.expose_secret() == value && one.expires.is_none_or(|end| now < end);
        tokens.iter().find(is_it).map(|one| one.what.clone())
    }
}

/// `X-Auth-Token` must be there once and hold one of these.
pub struct AuthToken(pub Tokens);

impl Scheme for AuthToken {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let unauthorized = |message| Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", message);
        let token = request.header("x-auth-token");
        let token = token.ok_or_else(|| unauthorized("the header X-Auth-Token is not there once"))?;
        let what = self.0.find(token, request.time);
        what.map(|what| format!("token for {what}")).ok_or_else(|| unauthorized("the token is unknown or has expired"))
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        openstack_error(refusal)
    }
}

/// Tokens that are known at one time.
const REMEMBERED: usize = 1000;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;

    #[test]
    fn a_token_is_good_where_it_is_known_and_until_it_expires() {
        let tokens = Tokens::default();
        let scheme = AuthToken(tokens.clone());
        let verdict = |values: &[&'static str], now| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-auth-token", HeaderValue::from_static(value));
            }
            let (method, time) = (&Method::GET, Timestamp(now));
            let request = Received { method, path: "/", query: None, headers: &headers, body: b"", client: None, time };
            scheme.verify(&request).map_err(|refusal| refusal.status.as_u16())
        };
        assert_eq!(verdict(&["right"], 0), Err(401));
        tokens.add("right".into(), "a test", Some(Timestamp(1000)));
        assert_eq!(verdict(&["right"], 999).as_deref(), Ok("token for a test"));
        assert_eq!(verdict(&["right"], 1000), Err(401));
        for wrong in [[].as_slice(), &["wrong"], &["right", "right"], &[""]] {
            assert_eq!(verdict(wrong, 0), Err(401), "{wrong:?}");
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let tokens = Tokens::default();
        for number in 0..=REMEMBERED {
            tokens.add(number.to_string().into(), "a test", None);
        }
        let find = |value| tokens.find(value, Timestamp(0)).is_some();
        assert!(!find("0") && find("1") && find(&REMEMBERED.to_string()));
    }
}
