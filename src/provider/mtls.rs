//! Mutual TLS: the client certificate of the route's `tls` is the whole authentication.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::{Fields, Fixed, Patience, Provider, Registration, Signer};
use crate::credential::{Credential, Source};

/// The provider.
pub(super) static REGISTRATION: Registration = Registration {
    name: "mtls",
    summary: "nothing: the client certificate of `tls` does the work",
    keys: &[],
    credential_headers: &[],
    id_headers: &[],
    finds_upstream: false,
    read: |_| Some(Box::new(Mtls)),
};

#[derive(Debug)]
struct Mtls;

impl Provider for Mtls {
    fn source(&self) -> &Source {
        &Source::Nothing
    }

    fn sets(&self) -> Vec<String> {
        Vec::new()
    }

    fn signer(&self, _credential: &Credential) -> Result<Arc<dyn Signer>, String> {
        Ok(Arc::new(Fixed { fields: Fields::new() }))
    }

    /// Who shows a wrong certificate is turned away before there is a reply.
    fn judges(&self, _status: StatusCode) -> bool {
        false
    }

    fn needs_client_certificate(&self) -> bool {
        true
    }

    /// Docker's connections become streams of their own, which HTTP/2 has no place for.
    fn is_http1_only(&self) -> bool {
        true
    }

    fn patience(&self) -> Patience {
        PATIENCE
    }
}

/// Event streams and long builds have a reply's head late and their bodies' next octet later still.
pub(super) const PATIENCE: Patience = Patience { response: None, body: Some(Duration::from_secs(3600)) };

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::clock::Timestamp;
    use crate::provider::Request;

    #[test]
    fn nothing_is_added_and_a_reply_may_take_its_time() {
        let signer = Mtls.signer(&Mtls.source().load().unwrap()).unwrap();
        let (method, headers) = (&Method::GET, &HeaderMap::new());
        let request = Request { method, path: "/", query: None, headers, body: b"", time: Timestamp(0), nonce: "" };
        assert!(signer.sign(&request, None).unwrap().is_empty());
        assert!(
            Mtls.sets().is_empty() && Mtls.needs_client_certificate() && Mtls.is_http1_only() && !Mtls.is_replayable()
        );
        assert_eq!(Mtls.patience(), Patience { response: None, body: Some(Duration::from_secs(3600)) });
    }
}
