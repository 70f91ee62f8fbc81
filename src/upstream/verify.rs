//! Verifies servers, as far as a route wants it, and says in words what it found wrong.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use super::diagnosis::{Refusal, Shown};
use super::tls::Verify;

/// Verifies a server's certificate, and in every mode the handshake's signature.
#[derive(Debug)]
pub(super) struct Verifier {
    /// How.
    pub(super) verify: Verify,
    /// Whom it trusts.
    pub(super) anchors: Arc<RootCertStore>,
    /// The key that names them; none for this system's.
    pub(super) named_by: Option<&'static str>,
    /// What signatures may be made with.
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), Refusal> {
        let leaf = ParsedCertificate::try_from(shown.leaf).map_err(|error| Refusal::unreadable(&error, shown.leaf))?;
        let vouched = || {
            let (anchors, algorithms) = (&self.anchors, self.algorithms.all);
            verify_server_cert_signed_by_trust_anchor(&leaf, anchors, shown.intermediates, shown.now, algorithms)
        };
        let judged = match &self.verify {
            Verify::Full => vouched().and_then(|()| verify_server_name(&leaf, shown.name)),
            Verify::CaOnly => vouched(),
            Verify::Pin(pins) => {
                let found: [u8; 32] = Sha256::digest(leaf.subject_public_key_info().as_ref()).into();
                return if pins.contains(&found) { Ok(()) } else { Err(Refusal::not_pinned(found)) };
            }
            Verify::Nothing => return Ok(()),
        };
        judged.map_err(|error| Refusal::of_certificate(&error, shown, &self.anchors, self.named_by))
    }
}

/// The library tells the server no more than that its certificate will not do; what is wrong with it, it tells us.
fn refused(refusal: Refusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.judge(&Shown { leaf, intermediates, name, now });
        judged.map(|()| ServerCertVerified::assertion()).map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = verify_tls12_signature(message, leaf, signed, &self.algorithms);
        verified.map_err(|error| refused(Refusal::of_signature(&error, leaf)))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = verify_tls13_signature(message, leaf, signed, &self.algorithms);
        verified.map_err(|error| refused(Refusal::of_signature(&error, leaf)))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
