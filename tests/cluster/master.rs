//! A cluster's master: it wants client certificates of its own CA, and refuses some of them with real alerts. Its own
//! certificate names no address.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use countersign::demo::certificates::{Authority, Identity, KeyFormat, Purpose, Wish};
use countersign::upstream::x509::{self, Certificate};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};

use crate::script::{Conn, Upstream};

/// The master.
pub(crate) struct Master {
    pub(crate) upstream: Upstream,
    life: Arc<Mutex<Life>>,
}

struct Life {
    authority: Authority,
    identity: Identity,
    refused: Vec<(CertificateDer<'static>, CertificateError)>,
    versions: &'static [&'static SupportedProtocolVersion],
    manner: Manner,
    /// Who asked for what.
    seen: Vec<String>,
}

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each ends with its first reply.
    Closing,
    /// They stay.
    Keeping,
    /// They are reset in the middle of the handshake.
    Resetting,
}

/// A client certificate, as the API hands it out.
pub(crate) struct Issued {
    pub(crate) reply: Value,
    pub(crate) key: String,
    certificate: CertificateDer<'static>,
}

impl Master {
    pub(crate) fn start() -> Self {
        let (authority, identity) = made();
        let life = Life {
            authority,
            identity,
            refused: Vec::new(),
            versions: rustls::ALL_VERSIONS,
            manner: Manner::Closing,
            seen: Vec::new(),
        };
        let life = Arc::new(Mutex::new(life));
        let upstream = Upstream::start({
            let life = Arc::clone(&life);
            move |conn| serve(conn, &life)
        });
        Self { upstream, life }
    }

    /// As the console writes it.
    pub(crate) fn url(&self) -> String {
        format!("tcp://{}", self.upstream.address)
    }

    pub(crate) fn issue(&self, name: &str) -> Issued {
        let life = self.life.lock().unwrap();
        let identity = life.authority.client(name).unwrap();
        let key = identity.key_pem(KeyFormat::Traditional);
        let reply = json!({ "ca": life.authority.pem(), "cert": identity.certificate_pem(), "key": key });
        Issued { reply, key, certificate: identity.certificate() }
    }

    /// Refuses a certificate from now on.
    pub(crate) fn refuse(&self, issued: &Issued, why: CertificateError) {
        self.life.lock().unwrap().refused.push((issued.certificate.clone(), why));
    }

    /// Has a CA of the same name from now on, and trusts the old one no more.
    pub(crate) fn change_authority(&self) {
        let mut life = self.life.lock().unwrap();
        (life.authority, life.identity) = made();
    }

    /// Speaks these versions of TLS alone from now on.
    pub(crate) fn speak(&self, versions: &'static [&'static SupportedProtocolVersion]) {
        self.life.lock().unwrap().versions = versions;
    }

    pub(crate) fn behave(&self, manner: Manner) {
        self.life.lock().unwrap().manner = manner;
    }

    /// Whose requests were answered, and what they were.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.life.lock().unwrap().seen.clone()
    }
}

fn made() -> (Authority, Identity) {
    let authority = Authority::new("a test's cluster").unwrap();
    let identity = authority.issue(&Wish::new(Purpose::Server, "master")).unwrap();
    (authority, identity)
}

fn serve(mut conn: Conn, life: &Mutex<Life>) {
    let (manner, config) = {
        let life = life.lock().unwrap();
        (life.manner, life.config())
    };
    if manner == Manner::Resetting {
        conn.octets(5);
        return conn.reset();
    }
    conn.start_tls(&Arc::new(config));
    while let Some((head, body)) = conn.request() {
        let certificates = conn.session().unwrap().peer_certificates().unwrap();
        let name = x509::common_name(Certificate::parse(&certificates[0]).unwrap().subject).unwrap();
        let asked = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
        life.lock().unwrap().seen.push(format!("{name}: {asked}"));
        let closes = if manner == Manner::Closing { "Connection: close\r\n" } else { "" };
        let said = format!("{name} {}\n{head}", body.len());
        let reply = format!("HTTP/1.1 200 OK\r\n{closes}Content-Length: {}\r\n\r\n{said}", said.len());
        if !conn.send(reply) || manner == Manner::Closing {
            return conn.close();
        }
    }
    // What is left unread would make the end a reset, which may overtake the alert.
    let _ = conn.tcp.shutdown(Shutdown::Write);
    let mut rest = [0; 4096];
    loop {
        match conn.tcp.read(&mut rest) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

impl Life {
    fn config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate()).unwrap();
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let verifier = Refusing { inner, refused: self.refused.clone() };
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(self.versions).unwrap();
        let builder = builder.with_client_cert_verifier(Arc::new(verifier));
        builder.with_single_cert(vec![self.identity.certificate()], self.identity.key()).unwrap()
    }
}

/// Verifies, but for those that it refuses; for each reason TLS has its alert.
#[derive(Debug)]
struct Refusing {
    inner: Arc<dyn ClientCertVerifier>,
    refused: Vec<(CertificateDer<'static>, CertificateError)>,
}

impl ClientCertVerifier for Refusing {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.refused.iter().find(|(refused, _)| refused == leaf) {
            Some((_, why)) => Err(why.clone().into()),
            None => self.inner.verify_client_cert(leaf, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
