//! Services that verify what they are asked: the demonstration's verifiers, with what those of a cloud remember.

use std::collections::HashMap;
use std::sync::Mutex;

use countersign::demo::verify::{Keys, Received, Refusal, Scheme, SdkHmac};
use http::StatusCode;
use serde_json::{Value, json};

use super::issue::Tokens;
use super::reply::Reply;
use super::server::Play;

impl<S: Scheme + 'static> Play for S {
    fn answer(&self, request: &Received<'_>) -> Reply {
        match self.verify(request) {
            Ok(verified) => Reply::json(200, &json!({ "verified": verified }), Ok(verified)),
            Err(refusal) => Reply::refused(self, &refusal),
        }
    }
}

/// Huawei Cloud's gateway: five bad signatures in a row lock an access key for five minutes (huawei.md, B7).
pub struct Gateway {
    /// What is accepted.
    pub keys: Keys,
    hmac: SdkHmac,
    strikes: Mutex<HashMap<String, (u32, i64)>>,
}

impl Gateway {
    pub(super) fn new(keys: Keys) -> Self {
        Self { hmac: SdkHmac { keys: keys.clone(), derived: None }, keys, strikes: Mutex::default() }
    }
}

impl Scheme for Gateway {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let access_key = request.header("authorization").and_then(|value| value.split([' ', ',']).nth(1));
        let access_key = access_key.unwrap_or_default().to_owned();
        let mut strikes = self.strikes.lock().unwrap();
        let (count, last) = strikes.entry(access_key).or_default();
        let now = request.time.seconds();
        if *count >= STRIKES {
            if now < *last + LOCKED {
                let message = "AK access failed to reach the limit,forbidden.";
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "APIGW.0301", message));
            }
            *count = 0;
        }
        let verdict = self.hmac.verify(request);
        match &verdict {
            Err(refusal) if refusal.message.contains("verify aksk signature fail") => {
                (*count, *last) = (*count + 1, now);
            }
            Err(_) => {}
            Ok(_) => *count = 0,
        }
        verdict
    }

    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value {
        self.hmac.error_body(refusal, request_id)
    }
}

/// Bad signatures until a key is locked, and for how many seconds.
const STRIKES: u32 = 5;
const LOCKED: i64 = 300;

/// Wants a token of IAM's in `X-Auth-Token`, neither expired by its own clock nor revoked (huawei.md, A5).
pub struct TokenCheck {
    tokens: Tokens,
    refusal: Mutex<TokenRefusal>,
}

/// How a service refuses a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// 401 `APIGW.0307`.
    Outdated,
    /// 401 `APIGW.0301`, `decrypt token fail`.
    Undecipherable,
    /// 401 as Keystone words it, without the gateway.
    Keystone,
}

impl TokenCheck {
    pub(super) fn new(tokens: Tokens) -> Self {
        Self { tokens, refusal: Mutex::new(TokenRefusal::Outdated) }
    }

    /// Refuses in this way from now on.
    pub fn refuse_with(&self, refusal: TokenRefusal) {
        *self.refusal.lock().unwrap() = refusal;
    }
}

impl Scheme for TokenCheck {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let refused = |code, message: &str| Refusal::new(StatusCode::UNAUTHORIZED, code, message);
        let no_token = || refused("APIGW.0301", "Incorrect IAM authentication information: x-auth-token not found");
        let token = request.header("x-auth-token").ok_or_else(no_token)?;
        self.tokens.judge(token, request.time).map_err(|_| match *self.refusal.lock().unwrap() {
            TokenRefusal::Outdated => refused("APIGW.0307", "The token must be updated."),
            TokenRefusal::Undecipherable => {
                refused("APIGW.0301", "Incorrect IAM authentication information: decrypt token fail")
            }
            TokenRefusal::Keystone => refused("Unauthorized", "The request you have made requires authentication."),
        })
    }

    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value {
        if refusal.code == "Unauthorized" {
            return json!({ "error": { "code": 401, "message": refusal.message, "title": refusal.code } });
        }
        json!({ "error_msg": refusal.message, "error_code": refusal.code, "request_id": request_id })
    }
}
