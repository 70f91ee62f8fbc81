//! A client certificate: TLS has verified it by the time that a request arrives.

use http::StatusCode;
use serde_json::{Value, json};

use super::{Received, Refusal, Scheme};

/// The client must have shown a certificate.
pub struct ClientCertificate;

impl Scheme for ClientCertificate {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        match request.client {
            Some(name) => Ok(format!("client certificate of \"{name}\"")),
            None => {
                Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", "no client certificate with a common name"))
            }
        }
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        json!({ "message": refusal.message })
    }
}
