//! TLS towards an upstream: trust anchors, client identity, how the server's certificate is verified.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::settings::{Place, Remark};

use super::Host;

/// A route's `tls` table.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Trust anchors in PEM; the system's roots if absent.
    pub ca: Option<FileRef>,
    /// The client's certificate and its key in PEM.
    pub identity: Option<(FileRef, FileRef)>,
    /// How the server's certificate is verified.
    pub verify: Verify,
    /// The name to send and to verify, in place of the upstream's host.
    pub server_name: Option<Host>,
}

/// A file named in the configuration, and where.
#[derive(Clone, Debug)]
pub struct FileRef {
    /// The file.
    pub path: PathBuf,
    /// Where the configuration names it.
    pub place: Place,
}

/// How a server's certificate is verified. The handshake's signature is in every mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The chain and the name.
    #[default]
    Full,
    /// The chain up to the route's own CA, but not the name.
    CaOnly,
    /// The SHA-256 of the certificate's public key (SPKI), and nothing else.
    Pin(Vec<[u8; 32]>),
    /// Nothing at all.
    Nothing,
}

/// The roots of this machine and those beside them, read at the first need.
#[derive(Debug, Default)]
pub struct Roots {
    extra: Vec<FileRef>,
    read: OnceLock<Result<Arc<RootCertStore>, Remark>>,
}

impl Roots {
    /// The system's roots and those in `extra`, files in PEM.
    #[must_use]
    pub fn new(extra: Vec<FileRef>) -> Self {
        Self { extra, read: OnceLock::new() }
    }

    /// The system's roots and the files beside them, read at the first call.
    ///
    /// # Errors
    /// A file that cannot be used, or that there are no roots at all.
    pub fn get(&self) -> Result<Arc<RootCertStore>, Remark> {
        self.read.get_or_init(|| self.load().map(Arc::new)).clone()
    }

    fn load(&self) -> Result<RootCertStore, Remark> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        for FileRef { path, place } in &self.extra {
            add(path, &mut roots)
                .map_err(|message| Remark { place: *place, message: format!("`server.extra_ca`: {message}") })?;
        }
        if roots.is_empty() {
            let message = "this system has no trusted roots: install the ca-certificates package, set SSL_CERT_FILE, \
                           or name the upstream's CA in `tls.ca`";
            return Err(Remark { place: Place::default(), message: message.to_owned() });
        }
        Ok(roots)
    }
}

/// The crypto provider, always passed on: a second one in the binary would make the library's own choice panic.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// Builds a route's TLS configuration, reading its files. `place` is where the route stands.
///
/// # Errors
/// Every file that cannot be used, and why.
pub fn client_config(settings: &Settings, roots: &Roots, place: Place) -> Result<Arc<ClientConfig>, Vec<Remark>> {
    let mut remarks = Vec::new();
    let mut note = |place: Place, message: String| remarks.push(Remark { place, message });
    let anchors = match &settings.ca {
        Some(file) => anchors(&file.path).map_err(|message| note(file.place, format!("`tls.ca`: {message}"))).ok(),
        None if matches!(settings.verify, Verify::Full | Verify::CaOnly) => {
            roots.get().map_err(|remark| note(remark.place, remark.message)).ok()
        }
        None => Some(Arc::new(RootCertStore::empty())),
    };
    let identity = settings.identity.as_ref().map(|(cert, key)| {
        let chain = certificates(&cert.path).map_err(|message| note(cert.place, format!("`tls.cert`: {message}")));
        let secret = private_key(&key.path).map_err(|message| note(key.place, format!("`tls.key`: {message}")));
        (chain.ok(), secret.ok(), key.place)
    });
    let (Some(anchors), true) = (anchors, remarks.is_empty()) else { return Err(remarks) };
    let fail = |place: Place, message: String| vec![Remark { place, message }];
    let verifier = verifier(&settings.verify, anchors).map_err(|message| fail(place, message))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(place, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some((Some(chain), Some(key), key_place)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            fail(
                key_place,
                format!("`tls.key`: the key does not fit the certificate, or is of a kind not supported: {error}"),
            )
        })?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn anchors(path: &Path) -> Result<Arc<RootCertStore>, String> {
    let mut anchors = RootCertStore::empty();
    add(path, &mut anchors)?;
    Ok(Arc::new(anchors))
}

fn add(path: &Path, anchors: &mut RootCertStore) -> Result<(), String> {
    for certificate in certificates(path)? {
        anchors.add(certificate).map_err(|error| format!("{} holds no usable CA: {error}", path.display()))?;
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{} holds no certificate in PEM", path.display())),
        Err(_) => Err(format!("{} is not well-formed PEM", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let mut pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&pem);
    let is_encrypted = pem.windows(9).any(|window| window == b"ENCRYPTED");
    secrecy::zeroize::Zeroize::zeroize(&mut pem);
    key.map_err(|_| {
        let shown = path.display();
        if is_encrypted {
            format!("{shown} is encrypted: remove the passphrase with `openssl pkey`, and chmod 600 the file")
        } else {
            format!("{shown} holds no private key in PEM (PKCS#8, PKCS#1 or SEC1)")
        }
    })
}

fn verifier(verify: &Verify, anchors: Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    if *verify == Verify::Full {
        let verifier = WebPkiServerVerifier::builder_with_provider(anchors, provider());
        return verifier.build().map(|verifier| verifier as _).map_err(|error| error.to_string());
    }
    let algorithms = provider().signature_verification_algorithms;
    Ok(Arc::new(Nameless { verify: verify.clone(), anchors, algorithms }))
}

/// Verifies servers whose certificates do not carry the name that they are reached by.
#[derive(Debug)]
struct Nameless {
    verify: Verify,
    anchors: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Nameless {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        match &self.verify {
            Verify::Full | Verify::CaOnly => rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.anchors,
                intermediates,
                now,
                self.algorithms.all,
            )?,
            Verify::Pin(pins) => {
                let found: [u8; 32] = Sha256::digest(parsed.subject_public_key_info().as_ref()).into();
                if !pins.contains(&found) {
                    return Err(CertificateError::Other(OtherError(Arc::new(NotPinned))).into());
                }
            }
            Verify::Nothing => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server's key is none of the route's pins.
#[derive(Debug)]
struct NotPinned;

impl std::fmt::Display for NotPinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server's public key is none of `tls.pin`")
    }
}

impl std::error::Error for NotPinned {}

/// What went wrong in a handshake or after it, and which setting would help.
#[must_use]
pub fn describe(error: &rustls::Error) -> String {
    use CertificateError as Wrong;
    let help = match error {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            Wrong::UnknownIssuer => "name the CA that signed the server's certificate in `tls.ca`",
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                "set `tls.server_name` to a name that the certificate carries, or `tls.verify = \"ca-only\"` with the \
                 upstream's own CA"
            }
            Wrong::Expired | Wrong::ExpiredContext { .. } => "the server's certificate must be renewed",
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "is this machine's clock right?",
            Wrong::Other(OtherError(error)) if error.is::<NotPinned>() => {
                return format!("{NotPinned}: ask the upstream's owner for the right one");
            }
            _ => "ask the upstream's owner for a certificate that clients accept",
        },
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => "the server does not offer HTTP/1.1",
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "set `tls.server_name` to a name that the server knows"
        }
        rustls::Error::AlertReceived(_) => "the server refused us: does it want a client certificate, or another one?",
        rustls::Error::InvalidMessage(_) => "does the upstream speak TLS at this port?",
        rustls::Error::PeerIncompatible(_) => {
            "the server and countersign share no version or cipher suite: TLS 1.2 with an ECDHE suite is the least"
        }
        _ => return error.to_string(),
    };
    format!("{error}: {help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_root_is_reported_where_it_is_named() {
        let place = Place { line: 2, column: 13 };
        let roots = Roots::new(vec![FileRef { path: "/nowhere/ca.pem".into(), place }]);
        let remarks = client_config(&Settings::default(), &roots, Place::default()).unwrap_err();
        let said: Vec<_> = remarks.iter().map(|remark| remark.of(Path::new("f"))).collect();
        assert_eq!(
            said,
            ["f:2:13: `server.extra_ca`: cannot read /nowhere/ca.pem: No such file or directory (os error 2)"]
        );
    }
}
