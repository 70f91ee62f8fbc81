//! A private certification authority made on the spot, and what it issues: good certificates, and bad ones for tests.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::der::{self, Traditional};
use crate::upstream::pem;

/// A certification authority that nobody knows.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// The name cannot stand in a certificate, or there is no randomness.
    pub fn new(common_name: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate in PEM: a trust anchor.
    #[must_use]
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// A certificate for a server with these names; an address stands as an address.
    ///
    /// # Errors
    /// A name cannot stand in a certificate, or there is no randomness.
    pub fn server(&self, names: &[&str]) -> Result<Identity, Error> {
        let common_name = names.first().copied().unwrap_or_default();
        self.issue(&Wish { names, ..Wish::new(Purpose::Server, common_name) })
    }

    /// A certificate for a client.
    ///
    /// # Errors
    /// The name cannot stand in a certificate, or there is no randomness.
    pub fn client(&self, common_name: &str) -> Result<Identity, Error> {
        self.issue(&Wish::new(Purpose::Client, common_name))
    }

    /// A certificate to order.
    ///
    /// # Errors
    /// A name cannot stand in a certificate, or there is no randomness.
    pub fn issue(&self, wish: &Wish<'_>) -> Result<Identity, Error> {
        let names: Vec<String> = wish.names.iter().map(|name| without_brackets(name)).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, wish.common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match wish.purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        match wish.validity {
            Validity::Now => {}
            Validity::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Validity::NotYet => params.not_before = date_time_ymd(4095, 1, 1),
        }
        let key = KeyPair::generate_for(match wish.key {
            KeyKind::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::Rsa2048 => &PKCS_RSA_SHA256,
        })?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate, key, kind: wish.key })
    }
}

/// What a certificate is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Who is to show it.
    pub purpose: Purpose,
    /// The subject's common name, which no verifier of today reads.
    pub common_name: &'a str,
    /// Names and addresses for its subjectAltName; none at all leaves that extension out.
    pub names: &'a [&'a str],
    /// The key.
    pub key: KeyKind,
    /// When it is valid.
    pub validity: Validity,
}

impl<'a> Wish<'a> {
    /// A valid certificate with an elliptic key and nothing but a common name.
    #[must_use]
    pub fn new(purpose: Purpose, common_name: &'a str) -> Self {
        Self { purpose, common_name, names: &[], key: KeyKind::EcdsaP256, validity: Validity::Now }
    }
}

/// Who is to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server.
    Server,
    /// A client.
    Client,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Today.
    Now,
    /// It was.
    Expired,
    /// It will be.
    NotYet,
}

/// Kinds of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA over P-256.
    EcdsaP256,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// Ways to write a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFormat {
    /// `PRIVATE KEY`.
    Pkcs8,
    /// `RSA PRIVATE KEY` (PKCS#1) or `EC PRIVATE KEY` (SEC 1), as the key is.
    Traditional,
}

/// A certificate and its key.
pub struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
    kind: KeyKind,
}

impl Identity {
    /// The certificate in PEM, without the authority's.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The key in PEM.
    ///
    /// # Panics
    /// Never: the key was made here.
    #[must_use]
    pub fn key_pem(&self, format: KeyFormat) -> String {
        let (kind, label) = match self.kind {
            KeyKind::EcdsaP256 => (Traditional::Sec1, "EC PRIVATE KEY"),
            KeyKind::Rsa2048 => (Traditional::Pkcs1, "RSA PRIVATE KEY"),
        };
        match format {
            KeyFormat::Pkcs8 => self.key.serialize_pem(),
            KeyFormat::Traditional => {
                let key = der::unwrap_pkcs8(self.key.serialized_der(), kind).expect("a key just made is well-formed");
                pem::encode(label, &key)
            }
        }
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

/// `[::1]`, as URLs have it, is an address in a certificate.
fn without_brackets(name: &str) -> String {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() { bare.to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn every_key_is_read_back_in_every_format() {
        let authority = Authority::new("a test").unwrap();
        for (key, label) in [(KeyKind::EcdsaP256, "EC "), (KeyKind::Rsa2048, "RSA ")] {
            let identity = authority.issue(&Wish { key, ..Wish::new(Purpose::Client, "somebody") }).unwrap();
            let public = identity.key.public_key_pem();
            for (format, label) in [(KeyFormat::Pkcs8, ""), (KeyFormat::Traditional, label)] {
                let text = identity.key_pem(format);
                assert!(text.starts_with(&format!("-----BEGIN {label}PRIVATE KEY-----\n")), "{key:?} {format:?}");
                let signer = any_supported_type(&PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap()).unwrap();
                let read = signer.public_key().unwrap();
                let written = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(public.as_bytes()).unwrap();
                assert_eq!(read, written, "{key:?} {format:?}");
            }
        }
    }
}
