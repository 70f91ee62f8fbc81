//! Nothing: some services answer everybody.

use serde_json::Value;

use super::{Received, Refusal, Scheme};

/// Everybody may ask.
pub struct Open;

impl Scheme for Open {
    fn verify(&self, _request: &Received<'_>) -> Result<String, Refusal> {
        Ok("open to everybody".to_owned())
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        Value::String(refusal.message.clone())
    }
}
