//! Why a handshake failed, in words, and which setting would help.
//!
//! The library knows what it refuses, but not what a person could do about it, and of some rules not even which it was. So
//! what the server showed is looked at once more. All of that is public; text out of it is masked, since anybody may have
//! written it.

use std::fmt;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::{
    AlertDescription, CertificateError, ExtendedKeyPurpose, OtherError, PeerIncompatible, PeerMisbehaved, RootCertStore,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};

use crate::canonical::time;
use crate::clock::Timestamp;

use super::tls::FETCHED;
use super::x509::{self, Certificate, Name};

/// What a server showed, and to whom.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    /// Its certificate.
    pub(super) leaf: &'a CertificateDer<'a>,
    /// The rest of its chain.
    pub(super) intermediates: &'a [CertificateDer<'a>],
    /// What it was called by.
    pub(super) name: &'a ServerName<'a>,
    /// When.
    pub(super) now: UnixTime,
}

/// Why a server's certificate is refused: what is wrong with it, and what to do.
#[derive(Debug)]
pub(super) struct Refusal {
    message: String,
    is_of_unknown_issuer: bool,
    is_of_another_ca: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    fn new(message: String) -> Self {
        Self { message, is_of_unknown_issuer: false, is_of_another_ca: false }
    }

    /// The server's key is none of the route's pins.
    pub(super) fn not_pinned(found: [u8; 32]) -> Self {
        let found = STANDARD.encode(found);
        Self::new(format!(
            "the server's public key is \"sha256/{found}\", which is none of `tls.pin`: ask the upstream's owner whether it \
             has a new one"
        ))
    }

    /// The server's certificate is one that no mode can work with.
    pub(super) fn unreadable(error: &rustls::Error, leaf: &CertificateDer<'_>) -> Self {
        Self::new(match Certificate::parse(leaf) {
            Some(Certificate { version: version @ (1 | 2), .. }) => format!(
                "the server's certificate is X.509 version {version}, which cannot be worked with whatever `tls.verify` says: \
                 its owner must issue one of version 3 (with `openssl x509 -req`, an `-extfile` makes it so)"
            ),
            _ => format!(
                "the server's certificate cannot be read ({error}), whatever `tls.verify` says: its owner must issue another"
            ),
        })
    }

    /// The handshake's signature is not good, which no mode passes over.
    pub(super) fn of_signature(error: &rustls::Error, leaf: &CertificateDer<'_>) -> Self {
        let leaf = Certificate::parse(leaf);
        Self::new(match leaf.and_then(|leaf| leaf.rsa_bits()) {
            Some(bits) if bits < LEAST_RSA_BITS => format!(
                "the server's key is RSA with {bits} bits, and {LEAST_RSA_BITS} are the least, whatever `tls.verify` says: \
                 its owner must make a new one"
            ),
            _ => format!(
                "the server did not prove that the key of its certificate is its own ({error}): its key and certificate do \
                 not belong together, or somebody is between"
            ),
        })
    }

    /// The chain or the name is not good. `named_by` is the key that names the anchors; none for this system's.
    pub(super) fn of_certificate(
        error: &rustls::Error,
        shown: &Shown<'_>,
        anchors: &RootCertStore,
        named_by: Option<&'static str>,
    ) -> Self {
        let Some(leaf) = Certificate::parse(shown.leaf) else { return Self::unreadable(error, shown.leaf) };
        let case = Case { leaf, shown, anchors, named_by };
        let rustls::Error::InvalidCertificate(wrong) = error else { return Self::new(case.other(error)) };
        let message = match wrong {
            CertificateError::UnknownIssuer => case.unknown_issuer(),
            CertificateError::NotValidForNameContext { .. } => case.wrong_name(),
            CertificateError::ExpiredContext { not_after, .. } => case.expired(*not_after),
            CertificateError::NotValidYetContext { not_before, .. } => case.not_valid_yet(*not_before),
            CertificateError::BadSignature => case.bad_signature(),
            CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id: id, .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                signature_algorithm_id: id, ..
            } => case.unsupported_signature(id),
            CertificateError::InvalidPurposeContext { presented, .. } => {
                let presented: Vec<_> = presented.iter().map(purpose).collect();
                let what = format!("is meant for {}, not for servers (extendedKeyUsage)", presented.join(", "));
                case.reissue(&what)
            }
            CertificateError::Other(_) if leaf.is_ca() => {
                case.reissue("is a CA's own, which must not be a server's as well (basicConstraints with CA:TRUE)")
            }
            _ => case.other(error),
        };
        let is_of_unknown_issuer = *wrong == CertificateError::UnknownIssuer;
        // One of the same name was made anew.
        let is_of_another_ca = is_of_unknown_issuer || *wrong == CertificateError::BadSignature;
        Self { message, is_of_unknown_issuer, is_of_another_ca }
    }
}

/// A refused certificate, and all that can be known of it.
struct Case<'a> {
    leaf: Certificate<'a>,
    shown: &'a Shown<'a>,
    anchors: &'a RootCertStore,
    named_by: Option<&'static str>,
}

impl Case<'_> {
    fn unknown_issuer(&self) -> String {
        let (origin, ca, pin) = (self.origin(), self.right_ca(), self.pin());
        if self.leaf.issuer == self.leaf.subject {
            return format!("the server's certificate is self-signed, and not in {origin}: {ca}, or set {pin}");
        }
        let issuer = called(self.top().issuer);
        format!("the server's certificate leads to the CA {issuer}, which is not in {origin}: {ca}, or set {pin}")
    }

    fn wrong_name(&self) -> String {
        let (wanted, ca_only, pin) = (self.shown.name.to_str(), self.ca_only(), self.pin());
        let Some(names) = self.leaf.names() else {
            let only = match x509::common_name(self.leaf.subject) {
                Some(name) => format!("only the common name {}, which does not count", quoted(&name)),
                None => "and no common name either".to_owned(),
            };
            return format!("the server's certificate has no subjectAltName, {only}: {ca_only}, or {pin}");
        };
        let is_address = matches!(self.shown.name, ServerName::IpAddress(_));
        if is_address && names.iter().any(|name| matches!(name, Name::Host(name) if *name == wanted)) {
            return format!(
                "the server's certificate has the address {wanted} as a name (dNSName), where an address (iPAddress) alone \
                 counts: {ca_only}, or {pin}"
            );
        }
        if names.is_empty() {
            return format!("the server's certificate names no host and no address: {ca_only}, or {pin}");
        }
        let mut listed: Vec<_> = names.iter().take(MOST_NAMES).map(ToString::to_string).collect();
        if names.len() > MOST_NAMES {
            listed.push(format!("{} more", names.len() - MOST_NAMES));
        }
        format!(
            "the server's certificate is for {}, not for {wanted}: set `tls.server_name` to a name that it is for, or \
             {ca_only}",
            listed.join(", ")
        )
    }

    fn expired(&self, end: UnixTime) -> String {
        let end = timestamp(end);
        let whose = self.whose(|certificate| certificate.not_after.seconds() == end.seconds());
        let (since, pin) = (in_days(timestamp(self.shown.now).0 - end.0), self.pin());
        format!(
            "{whose} expired on {}, {since} ago by this machine's clock: if that is right, the upstream's owner must \
             renew it; until then set {pin}",
            time::iso(end)
        )
    }

    fn not_valid_yet(&self, start: UnixTime) -> String {
        let start = timestamp(start);
        let whose = self.whose(|certificate| certificate.not_before.seconds() == start.seconds());
        let (now, pin) = (time::iso(timestamp(self.shown.now)), self.pin());
        format!(
            "{whose} is valid from {} only, and by this machine's clock it is {now}: set the clock right, or, if it is, set {pin}",
            time::iso(start)
        )
    }

    fn bad_signature(&self) -> String {
        let (issuer, origin) = (called(self.leaf.issuer), self.origin());
        let is_issuer = |anchor: &&TrustAnchor<'_>| anchor.subject.as_ref() == self.leaf.issuer;
        let anchor = self.anchors.roots.iter().find(is_issuer);
        let bits = anchor.and_then(|anchor| x509::rsa_bits(&anchor.subject_public_key_info));
        match bits.filter(|bits| *bits < LEAST_RSA_BITS) {
            Some(bits) => {
                let what = format!("was issued with an RSA key of {bits} bits, and {LEAST_RSA_BITS} are the least");
                self.reissue(&what)
            }
            None => format!(
                "the server's certificate names the CA {issuer} of {origin}, but another key signed it: if the CA was made \
                 anew, {}, or set {}",
                self.right_ca(),
                self.pin()
            ),
        }
    }

    fn unsupported_signature(&self, identifier: &[u8]) -> String {
        let dotted = x509::algorithm(identifier).unwrap_or_default();
        let known = SIGNATURES.iter().find(|(known, _)| *known == dotted).map(|(_, name)| *name);
        let what = format!("is signed with {}, which is not accepted", known.unwrap_or(&dotted));
        self.reissue(&what)
    }

    fn other(&self, error: &rustls::Error) -> String {
        self.reissue(&format!("is not accepted ({error})"))
    }

    fn reissue(&self, what: &str) -> String {
        format!(
            "the server's certificate {what}: the upstream's owner must issue another; until then set {}",
            self.pin()
        )
    }

    /// The last of the server's chain that leads up from its own certificate.
    fn top(&self) -> Certificate<'_> {
        let mut top = self.leaf;
        let above = self.shown.intermediates.iter().filter_map(|certificate| Certificate::parse(certificate));
        let above: Vec<_> = above.collect();
        for _ in &above {
            match above.iter().find(|certificate| certificate.subject == top.issuer) {
                Some(issuer) if top.issuer != top.subject => top = *issuer,
                _ => break,
            }
        }
        top
    }

    fn whose(&self, is_it: impl Fn(&Certificate<'_>) -> bool) -> String {
        if is_it(&self.leaf) {
            return "the server's certificate".to_owned();
        }
        let mut above = self.shown.intermediates.iter().filter_map(|certificate| Certificate::parse(certificate));
        let found = above
            .find(is_it)
            .map(|certificate| format!("the CA {} in the server's chain", called(certificate.subject)));
        found.unwrap_or_else(|| "a certificate of the server's chain".to_owned())
    }

    fn origin(&self) -> String {
        match self.named_by {
            None => "this system's roots".to_owned(),
            Some(FETCHED) => FETCHED.to_owned(),
            Some(key) => format!("`{key}`"),
        }
    }

    fn right_ca(&self) -> &'static str {
        match self.named_by {
            Some("tls.bundle") => "fetch the bundle anew",
            Some(FETCHED) => "see that the service hands out that one",
            _ => "name it in `tls.ca`",
        }
    }

    fn ca_only(&self) -> &'static str {
        match self.named_by {
            Some(_) => "set `tls.verify = \"ca-only\"`",
            None => "name the upstream's own CA in `tls.ca`, and set `tls.verify = \"ca-only\"`",
        }
    }

    fn pin(&self) -> String {
        let found = STANDARD.encode(Sha256::digest(self.leaf.public_key));
        format!("`tls.verify = \"pin\"` and `tls.pin = [\"sha256/{found}\"]`, if you know this to be the server's key")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => f.write_str(&masked(name)),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// True if a server's certificate is of a CA that is not trusted.
#[must_use]
pub fn is_of_unknown_issuer(error: &io::Error) -> bool {
    let refusal = cause(error).and_then(as_refusal);
    refusal.is_some_and(|refusal| refusal.is_of_unknown_issuer)
}

/// True if who we are there may have changed, or whom we are to trust: the server refuses our certificate, or shows one of a
/// CA that is not ours. What merely broke says neither.
#[must_use]
pub fn is_of_identity(error: &io::Error) -> bool {
    use AlertDescription as Alert;
    match cause(error) {
        Some(rustls::Error::AlertReceived(alert)) => matches!(
            alert,
            Alert::BadCertificate | Alert::CertificateRevoked | Alert::UnknownCA | Alert::CertificateExpired
        ),
        Some(error) => as_refusal(error).is_some_and(|refusal| refusal.is_of_another_ca),
        None => false,
    }
}

/// What went wrong in a handshake, or after it in TLS's own words, and which setting would help. `shows_certificate` tells
/// whether we have one to show.
#[must_use]
pub fn describe(error: &io::Error, shows_certificate: bool) -> String {
    match cause(error) {
        Some(error) => describe_cause(error, shows_certificate),
        None if CLOSED.contains(&error.kind()) => {
            let certificate =
                if shows_certificate { "" } else { ", or does it want a client certificate (`tls.cert`)" };
            format!(
                "the server closed the connection in the middle of the handshake without a word: is it the right port, does it \
                 know the name that it is called by (`tls.server_name`){certificate}?"
            )
        }
        None => error.to_string(),
    }
}

/// What an error of a stream over TLS says about TLS.
#[must_use]
pub fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|error| error.downcast_ref())
}

/// The same for what TLS says.
#[must_use]
pub fn describe_cause(error: &rustls::Error, shows_certificate: bool) -> String {
    if let Some(refusal) = as_refusal(error) {
        return refusal.to_string();
    }
    match error {
        rustls::Error::AlertReceived(alert) => {
            format!("the server refused with the alert {alert:?}: {}", answer(*alert, shows_certificate))
        }
        rustls::Error::InvalidMessage(_) => {
            "what came back is not TLS, but most likely plain HTTP: give `upstream` the port \
            where the server speaks TLS, or make it http:// if there is none"
                .to_owned()
        }
        rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            format!("the server answered in an older version: {NO_VERSION}")
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::PeerMisbehaved(
            PeerMisbehaved::SelectedUnofferedCipherSuite | PeerMisbehaved::SelectedUnusableCipherSuiteForVersion,
        ) => format!("{error}: {NO_SUITE}"),
        _ => error.to_string(),
    }
}

fn as_refusal(error: &rustls::Error) -> Option<&Refusal> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => error.downcast_ref(),
        _ => None,
    }
}

/// What to do about a server's alert (RFC 8446, section 6.2).
fn answer(alert: AlertDescription, shows_certificate: bool) -> String {
    use AlertDescription as Alert;
    let text = match (alert, shows_certificate) {
        (Alert::ProtocolVersion, _) => NO_VERSION,
        // Servers of TLS 1.2 say the same where a certificate is missing.
        (Alert::HandshakeFailure, false) => {
            return format!("either it wants a client certificate (`tls.cert` and `tls.key`), or {NO_SUITE}");
        }
        (Alert::HandshakeFailure | Alert::InsufficientSecurity, _) => NO_SUITE,
        (Alert::UnrecognisedName, _) => "set `tls.server_name` to a name that it knows",
        (Alert::NoApplicationProtocol, _) => "it does not offer HTTP/1.1",
        (
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied,
            false,
        ) => "it wants a client certificate: give `tls.cert` and `tls.key`, or `tls.bundle`",
        (Alert::UnknownCA, true) => {
            "our client certificate is of a CA that it does not trust: `tls.cert` and `tls.key` must be those issued for this \
             upstream"
        }
        (Alert::CertificateExpired, _) => {
            "our client certificate has expired: renew `tls.cert`, or set the clock right, here or there"
        }
        (Alert::CertificateRevoked, _) => {
            "our client certificate is revoked: have another issued for `tls.cert` and `tls.key`"
        }
        (
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::AccessDenied,
            true,
        ) => {
            "our client certificate will not do: `tls.cert` and `tls.key` must be those issued for this upstream, and meant \
             for clients"
        }
        _ => "its log should say why",
    };
    text.to_owned()
}

fn purpose(purpose: &ExtendedKeyPurpose) -> String {
    match purpose {
        ExtendedKeyPurpose::Other(arcs) => arcs.iter().map(ToString::to_string).collect::<Vec<_>>().join("."),
        known => known.to_string(),
    }
}

/// What a `Name` is called, for words.
fn called(name: &[u8]) -> String {
    x509::common_name(name).map_or_else(|| "a CA without a common name".to_owned(), |name| quoted(&name))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", masked(text))
}

/// Text of a stranger's: not too long, and without what a terminal or a log would act upon.
fn masked(text: &str) -> String {
    let is_harmless = |c: char| c.is_alphanumeric() || c == ' ' || (c.is_ascii_graphic() && c != '"');
    text.chars().take(MOST_CHARACTERS).map(|c| if is_harmless(c) { c } else { '?' }).collect()
}

/// A time in milliseconds as whole days, for words.
pub(super) fn in_days(milliseconds: i64) -> String {
    match milliseconds / DAY {
        0 => "less than a day".to_owned(),
        1 => "a day".to_owned(),
        days => format!("{days} days"),
    }
}

fn timestamp(time: UnixTime) -> Timestamp {
    Timestamp(i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 1000).saturating_mul(1000))
}

const NO_VERSION: &str =
    "TLS 1.2 is the least that countersign speaks, and no setting changes that, so the server must learn it";

const NO_SUITE: &str = "it shares no version or cipher suite with countersign, which wants TLS 1.3, or 1.2 with ECDHE and \
    AES-GCM or ChaCha20: RSA key exchange, DHE and CBC are not to be had by any setting";

/// What a connection's end looks like.
const CLOSED: [io::ErrorKind; 4] = [
    io::ErrorKind::UnexpectedEof,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::BrokenPipe,
];

/// Signatures on certificates that are not accepted any more, or not everywhere.
const SIGNATURES: [(&str, &str); 8] = [
    ("1.2.840.113549.1.1.2", "MD2 and RSA"),
    ("1.2.840.113549.1.1.4", "MD5 and RSA"),
    ("1.2.840.113549.1.1.5", "SHA-1 and RSA"),
    ("1.2.840.113549.1.1.14", "SHA-224 and RSA"),
    ("1.2.840.10040.4.3", "SHA-1 and DSA"),
    ("2.16.840.1.101.3.4.3.2", "SHA-256 and DSA"),
    ("1.2.840.10045.4.1", "SHA-1 and ECDSA"),
    ("1.2.156.10197.1.501", "SM3 and SM2"),
];

/// How many of a certificate's names are told.
const MOST_NAMES: usize = 5;

/// How much of a name is told: the most that RFC 5280 allows a common name is 64.
const MOST_CHARACTERS: usize = 100;

const LEAST_RSA_BITS: usize = 2048;

/// In milliseconds.
pub(super) const DAY: i64 = 86_400_000;
