//! A fixed header with a secret value.

use http::{HeaderName, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{Received, Refusal, Scheme, openstack_error};

/// A header that must be there once and hold a secret.
pub struct FixedHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: SecretString,
}

impl Scheme for FixedHeader {
    fn verify(&self, request: &Received<'_>) -> Result<String, Refusal> {
        let unauthorized = |message: String| Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", message);
        let mut values = request.headers.get_all(&self.name).iter();
        let Some(value) = values.next() else {
            return Err(unauthorized(format!("the header {} is missing", self.name)));
        };
        if values.next().is_some() {
            return Err(unauthorized(format!("the header {} is there more than once", self.name)));
        }
        if value.as_bytes() != self.value.expose_secret().as_bytes() {
            return Err(unauthorized(format!("the header {} holds another value", self.name)));
        }
        Ok(format!("{} holds the token", self.name))
    }

    fn error_body(&self, refusal: &Refusal, _request_id: &str) -> Value {
        openstack_error(refusal)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::clock::Timestamp;

    fn verdict(values: &[&'static str]) -> Result<String, Refusal> {
        let scheme = FixedHeader { name: HeaderName::from_static("x-auth-token"), value: "right".into() };
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-auth-token", HeaderValue::from_static(value));
        }
        let method = Method::GET;
        let request = Received {
            method: &method,
            path: "/",
            query: None,
            headers: &headers,
            body: b"",
            client: None,
            time: Timestamp(0),
        };
        scheme.verify(&request)
    }

    #[test]
    fn only_the_right_value_once_is_accepted() {
        assert!(verdict(&["right"]).is_ok());
        for wrong in [[].as_slice(), &["wrong"], &["right", "right"], &[""], &["right "]] {
            assert_eq!(verdict(wrong).unwrap_err().status, StatusCode::UNAUTHORIZED, "{wrong:?}");
        }
    }
}
