//! What an upstream checks before it answers. One file a scheme, written from the vendors' rules alone: nothing here may
//! use the signers it is to judge, or the canonical forms that they share.

mod acm;
mod acs_roa;
mod bce;
mod header;
mod huawei;
mod keys;
mod mtls;
mod open;
mod password;
mod tem;
mod tokens;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use crate::clock::Timestamp;

pub use acm::Acm;
pub use acs_roa::AcsRoa;
pub use bce::Bce;
pub use header::FixedHeader;
pub use huawei::SdkHmac;
pub use keys::Keys;
pub use mtls::ClientCertificate;
pub use open::Open;
pub use password::Password;
pub use tem::{Tem, TemAlgorithm};
pub use tokens::{AuthToken, Tokens};

/// A request as it was received.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    /// The method.
    pub method: &'a Method,
    /// The raw path.
    pub path: &'a str,
    /// The raw query, without its question mark.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
    /// The common name in the client's certificate, if it showed one that the listener's authority issued.
    pub client: Option<&'a str>,
    /// The server's time.
    pub time: Timestamp,
}

impl Received<'_> {
    /// The value of a header that is there exactly once, as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }
}

/// How a scheme judges requests and words its refusals.
pub trait Scheme: Send + Sync {
    /// What was verified, in words, or the refusal that the vendor's service would send. Neither holds a secret.
    ///
    /// # Errors
    /// Why the request is refused.
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal>;

    /// The header that names a request in replies.
    fn request_id_header(&self) -> &'static str {
        "x-request-id"
    }

    /// The body of an error in the vendor's form.
    fn error_body(&self, refusal: &Refusal, request_id: &str) -> Value;
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The vendor's code.
    pub code: &'static str,
    /// For people; without any secret.
    pub message: String,
}

impl Refusal {
    /// Puts one together.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

/// An error as `OpenStack`'s identity service and its kin write it.
fn openstack_error(refusal: &Refusal) -> Value {
    json!({ "error": { "code": refusal.status.as_u16(), "title": refusal.code, "message": refusal.message } })
}
