//! TLS towards an upstream: trust anchors, client identity, how the server's certificate is verified.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::canonical::time;
use crate::clock::Timestamp;
use crate::confine;
use crate::settings::{Place, Remark};
use crate::watch;

use super::Host;
use super::bundle::{self, Bundle};
use super::diagnosis::{DAY, in_days};
use super::pem::{self, Misfit};
use super::verify::Verifier;
use super::x509::Certificate;

/// A route's `tls` table.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Trust anchors in PEM; the system's roots if absent.
    pub ca: Option<FileRef>,
    /// The client's certificate and its key, if there are any.
    pub identity: Option<ClientIdentity>,
    /// How the server's certificate is verified.
    pub verify: Verify,
    /// The name to send and to verify, in place of the upstream's host.
    pub server_name: Option<Host>,
}

/// Where a client identity comes from.
#[derive(Clone, Debug)]
pub enum ClientIdentity {
    /// Files in PEM.
    Files {
        /// The certificate and its chain.
        cert: FileRef,
        /// Its private key.
        key: FileRef,
    },
    /// A reply of a certificate service, which may bring the trust anchors too.
    Bundle {
        /// The reply.
        reply: FileRef,
        /// Which of its identities.
        identity: bundle::Identity,
    },
    /// Such a reply as it was fetched, which is in memory alone.
    Fetched {
        /// The reply.
        reply: SecretString,
    },
}

/// A file named in the configuration, and where.
#[derive(Clone, Debug)]
pub struct FileRef {
    /// The file.
    pub path: PathBuf,
    /// Where the configuration names it.
    pub place: Place,
}

impl Settings {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        let identity = match &self.identity {
            None | Some(ClientIdentity::Fetched { .. }) => [None, None],
            Some(ClientIdentity::Files { cert, key }) => [Some(cert), Some(key)],
            Some(ClientIdentity::Bundle { reply, .. }) => [Some(reply), None],
        };
        self.ca.iter().chain(identity.into_iter().flatten())
    }

    /// What distinguishes it from others, what the files hold included.
    #[must_use]
    pub fn identity(&self, roots: &Roots) -> String {
        let which = match &self.identity {
            Some(ClientIdentity::Bundle { identity, .. }) => format!("{identity:?}"),
            Some(ClientIdentity::Fetched { reply }) => hex::encode(Sha256::digest(reply.expose_secret())),
            _ => String::new(),
        };
        let Self { verify, server_name, ca, .. } = self;
        let prints: Vec<_> = self.files().chain(&roots.extra).map(FileRef::print).collect();
        format!("{verify:?} {server_name:?} {which} {} {prints:?}", ca.is_some())
    }
}

impl FileRef {
    /// Its path, and a digest of what it holds now.
    fn print(&self) -> (&Path, Option<[u8; 32]>) {
        (&self.path, watch::digest(&self.path))
    }

    /// What `read` makes of the file's content; `key` is what names it.
    fn open<T, E: Display>(&self, key: &str, read: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<T, Remark> {
        let shown = self.path.display();
        let cannot = |error| Remark {
            place: self.place,
            message: format!("`{key}`: cannot read {shown}: {}", confine::unreadable(&error, &self.path)),
        };
        let content = std::fs::File::open(&self.path).and_then(pem::read_all).map_err(cannot)?;
        read(&content).map_err(|trouble| self.remark(key, trouble))
    }

    /// What words about it begin with.
    fn called(&self, key: &str) -> Called {
        Called { place: self.place, key: format!("`{key}`: "), what: self.path.display().to_string() }
    }

    fn remark(&self, key: &str, trouble: impl Display) -> Remark {
        self.called(key).remark(trouble)
    }
}

/// What people call that which holds certificates, and where the configuration names it.
struct Called {
    place: Place,
    /// The key with its colon, if the configuration names it.
    key: String,
    what: String,
}

impl Called {
    /// What was fetched for a route, which the configuration does not name.
    fn fetched() -> Self {
        Self { place: Place::default(), key: String::new(), what: FETCHED.to_owned() }
    }

    /// Makes trust anchors of its certificates.
    fn trust(&self, key: &'static str, certificates: &[CertificateDer<'static>]) -> Result<Authorities, Remark> {
        let mut anchors = RootCertStore::empty();
        pem::trust(certificates, &mut anchors).map_err(|trouble| self.remark(trouble))?;
        let validity = Validity::of_anchors(self, certificates);
        Ok(Authorities { anchors: Arc::new(anchors), key, validity })
    }

    fn remark(&self, trouble: impl Display) -> Remark {
        Remark { place: self.place, message: format!("{}{}: {trouble}", self.key, self.what) }
    }
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

impl Verify {
    /// What the configuration calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::CaOnly => "ca-only",
            Self::Pin(_) => "pin",
            Self::Nothing => "none",
        }
    }
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

    /// The files beside the system's own.
    #[must_use]
    pub fn files(&self) -> &[FileRef] {
        &self.extra
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
        for file in &self.extra {
            let (key, certificates) = ("server.extra_ca", file.open("server.extra_ca", pem::certificates)?);
            pem::trust(&certificates, &mut roots).map_err(|message| file.remark(key, message))?;
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

/// Builds a route's TLS configuration, reading its files, and tells how long these are valid. `place` is where the route
/// stands.
///
/// # Errors
/// Every file that cannot be used, and why.
pub fn client_config(
    settings: &Settings,
    roots: &Roots,
    place: Place,
) -> Result<(Arc<ClientConfig>, Vec<Validity>), Vec<Remark>> {
    let identity = settings.identity.as_ref().map(ClientIdentity::open).transpose();
    let ca =
        settings.ca.as_ref().map(|file| file.open(CA, pem::certificates).and_then(|ca| file.called(CA).trust(CA, &ca)));
    let (identity, ca) = match (identity, ca.transpose()) {
        (Ok(identity), Ok(ca)) => (identity, ca),
        (identity, ca) => return Err(identity.err().into_iter().flatten().chain(ca.err()).collect()),
    };
    let fail = |place: Place, message: &str| vec![Remark { place, message: message.to_owned() }];
    let (key, validity, brought) =
        identity.map_or((None, None, None), |opened| (Some(opened.key), Some(opened.validity), opened.ca));
    let (anchors, named_by, ca_validity) = match (ca, brought) {
        (Some(ca), Some(_)) => {
            return Err(fail(ca.validity.place, "`tls.ca`: the bundle brings a CA as well: leave this one out"));
        }
        (Some(own), None) | (None, Some(own)) => {
            let is_used = matches!(settings.verify, Verify::Full | Verify::CaOnly);
            (own.anchors, Some(own.key), is_used.then_some(own.validity))
        }
        (None, None) => match settings.verify {
            Verify::Full => (roots.get().map_err(|remark| vec![remark])?, None, None),
            Verify::CaOnly => {
                let trouble = "no CA, and without one `verify = \"ca-only\"` trusts nobody: name it in `tls.ca`";
                return Err(match &settings.identity {
                    Some(ClientIdentity::Bundle { reply, .. }) => vec![reply.remark(BUNDLE, trouble)],
                    _ => fail(place, trouble),
                });
            }
            Verify::Pin(_) | Verify::Nothing => (Arc::new(RootCertStore::empty()), None, None),
        },
    };
    let verifier = Verifier {
        verify: settings.verify.clone(),
        anchors,
        named_by,
        algorithms: provider().signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(place, &error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok((Arc::new(config), validity.into_iter().chain(ca_validity).collect()))
}

/// The same configuration, with HTTP/2 offered before HTTP/1.1. The two share everything else, the sessions among it.
#[must_use]
pub fn with_http2(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    Arc::new(config)
}

/// A client identity, read.
struct Opened {
    key: CertifiedKey,
    validity: Validity,
    ca: Option<Authorities>,
}

impl Opened {
    fn of_bundle(found: Bundle, called: &Called, key: &'static str) -> Result<Self, Vec<Remark>> {
        let ca = (!found.ca.is_empty()).then(|| called.trust(key, &found.ca)).transpose();
        let validity = Validity::of_chain(called, &found.identity.cert);
        Ok(Self { key: found.identity, validity, ca: ca.map_err(|remark| vec![remark])? })
    }
}

/// Trust anchors of a route's own.
struct Authorities {
    anchors: Arc<RootCertStore>,
    /// The key that names them.
    key: &'static str,
    validity: Validity,
}

impl ClientIdentity {
    fn open(&self) -> Result<Opened, Vec<Remark>> {
        match self {
            Self::Files { cert, key } => {
                let (chain, secret) = (cert.open(CERT, pem::certificates), key.open(KEY, pem::private_key));
                let (chain, secret) = match (chain, secret) {
                    (Ok(chain), Ok(secret)) => (chain, secret),
                    (chain, secret) => return Err(chain.err().into_iter().chain(secret.err()).collect()),
                };
                let validity = Validity::of_chain(&cert.called(CERT), &chain);
                let key = pem::certified_key(chain, secret).map_err(|misfit| match misfit {
                    Misfit::NoCertificate => vec![cert.remark(CERT, misfit)],
                    Misfit::UnknownKey | Misfit::AnothersKey => vec![key.remark(KEY, misfit)],
                })?;
                Ok(Opened { key, validity, ca: None })
            }
            Self::Bundle { reply, identity } => {
                let found = reply.open(BUNDLE, |content| bundle::unpack(content, *identity));
                Opened::of_bundle(found.map_err(|remark| vec![remark])?, &reply.called(BUNDLE), BUNDLE)
            }
            Self::Fetched { reply } => {
                let called = Called::fetched();
                let found = bundle::unpack(reply.expose_secret().as_bytes(), bundle::Identity::Source);
                Opened::of_bundle(found.map_err(|trouble| vec![called.remark(trouble)])?, &called, FETCHED)
            }
        }
    }
}

/// How long something of a route's is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Where the configuration names it.
    pub place: Place,
    /// What it is, with the key that names it.
    pub what: String,
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

impl Validity {
    /// A chain is valid while all of it is.
    fn of_chain(called: &Called, chain: &[CertificateDer<'_>]) -> Self {
        let parsed = || chain.iter().filter_map(|certificate| Certificate::parse(certificate));
        let from = parsed().map(|certificate| certificate.not_before).max();
        let until = parsed().map(|certificate| certificate.not_after).min();
        Self::new(called, "", from.zip(until))
    }

    /// Trust anchors are good while one of them is: beside an old one its successor often stands already.
    fn of_anchors(called: &Called, anchors: &[CertificateDer<'_>]) -> Self {
        let parsed = || anchors.iter().filter_map(|certificate| Certificate::parse(certificate));
        let from = parsed().map(|certificate| certificate.not_before).min();
        let until = parsed().map(|certificate| certificate.not_after).max();
        Self::new(called, "the CA of ", from.zip(until))
    }

    fn new(called: &Called, part: &str, span: Option<(Timestamp, Timestamp)>) -> Self {
        let what = format!("{}{part}{}", called.key, called.what);
        let (from, until) = span.unwrap_or((Timestamp(i64::MIN), Timestamp(i64::MAX)));
        Self { place: called.place, what, from, until }
    }

    /// That it has expired, if it has.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Option<Remark> {
        if self.until < now { self.remark(now) } else { None }
    }

    /// What its owner should know of it at this time, if anything: that it ends within a month, or has ended, or has not begun.
    #[must_use]
    pub fn remark(&self, now: Timestamp) -> Option<Remark> {
        let Self { place, what, from, until } = self;
        let left = until.0.saturating_sub(now.0);
        let message = if now < *from {
            format!("{what} is valid from {} only: is this machine's clock right?", time::iso(*from))
        } else if left < 0 {
            format!("{what} expired on {}, {} ago: have it renewed", time::iso(*until), in_days(-left))
        } else if left < AHEAD {
            format!("{what} expires on {}, in {}: have it renewed", time::iso(*until), in_days(left))
        } else {
            return None;
        };
        Some(Remark { place: *place, message })
    }
}

/// HTTP/1.1 by its name in ALPN (RFC 7301 section 6).
const HTTP1: &[u8] = b"http/1.1";

/// HTTP/2 by its name in ALPN (RFC 9113 section 3.2).
pub const HTTP2: &[u8] = b"h2";

const CA: &str = "tls.ca";
const CERT: &str = "tls.cert";
const KEY: &str = "tls.key";
const BUNDLE: &str = "tls.bundle";

/// What is said of certificates that no key names.
pub(super) const FETCHED: &str = "the fetched certificates";

/// How long before its end something is warned about, in milliseconds.
const AHEAD: i64 = 30 * DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_ends_within_a_month_is_told() {
        let (place, what) = (Place { line: 1, column: 1 }, "`tls.cert`: cert.pem".to_owned());
        let validity = Validity { place, what, from: Timestamp(10 * DAY), until: Timestamp(100 * DAY) };
        let said = |now| validity.remark(Timestamp(now)).map(|remark| remark.message).unwrap_or_default();
        let cases = [
            (10 * DAY - 1, "is valid from 1970-01-11T00:00:00Z only: is this machine's clock right?"),
            (10 * DAY, ""),
            (70 * DAY, ""),
            (70 * DAY + 1, "expires on 1970-04-11T00:00:00Z, in 29 days: have it renewed"),
            (99 * DAY, "expires on 1970-04-11T00:00:00Z, in a day: have it renewed"),
            (100 * DAY, "expires on 1970-04-11T00:00:00Z, in less than a day: have it renewed"),
            (100 * DAY + 1, "expired on 1970-04-11T00:00:00Z, less than a day ago: have it renewed"),
            (103 * DAY, "expired on 1970-04-11T00:00:00Z, 3 days ago: have it renewed"),
        ];
        for (now, expected) in cases {
            let said = said(now);
            assert_eq!(said.strip_prefix("`tls.cert`: cert.pem ").unwrap_or(&said), expected, "{now}");
        }
    }

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
