//! Certificates and private keys in PEM (RFC 7468), and whether they belong together.

use std::fmt;
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::zeroize::Zeroizing;

use super::tls::provider;
use super::x509::Certificate;

/// All certificates of a text, at least one; what else stands there is passed over.
///
/// # Errors
/// What is wrong with it, never what it holds.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("no certificate in PEM"),
        Err(_) => Err("not well-formed PEM"),
    }
}

/// The first private key of a text.
///
/// # Errors
/// What is wrong with it, never what it holds.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        if pem.windows(9).any(|window| window == b"ENCRYPTED") {
            "encrypted: remove the passphrase with `openssl pkey`, and chmod 600 the file"
        } else {
            "no private key in PEM (PKCS#8, PKCS#1 or SEC1)"
        }
    })
}

/// Adds certificates to the trust anchors.
///
/// # Errors
/// Why one of them cannot be one.
pub fn trust(certificates: &[CertificateDer<'static>], anchors: &mut RootCertStore) -> Result<(), String> {
    let mut certificates = certificates.iter();
    certificates
        .try_for_each(|certificate| anchors.add(certificate.clone()))
        .map_err(|error| format!("no usable CA: {error}"))
}

/// A chain, leaf first, and the leaf's key. Certificates of X.509 version 1 are good here: it is the server that judges.
///
/// # Errors
/// Why they do not make an identity.
pub fn certified_key(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, Misfit> {
    let key = provider().key_provider.load_private_key(key).map_err(|_| Misfit::UnknownKey)?;
    if !chain.iter().all(|certificate| Certificate::parse(certificate).is_some()) {
        return Err(Misfit::NoCertificate);
    }
    let leaf = chain.first().and_then(|leaf| Certificate::parse(leaf)).ok_or(Misfit::NoCertificate)?;
    match key.public_key() {
        Some(public) if public.as_ref() == leaf.public_key => Ok(CertifiedKey::new(chain, key)),
        _ => Err(Misfit::AnothersKey),
    }
}

/// All of a source that may hold a private key.
///
/// # Errors
/// It cannot be read, or is larger than anything of that kind.
pub fn read_all(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all that is usual at once: what grows leaves copies behind, and it may be a key.
    let mut content = Zeroizing::new(Vec::with_capacity(32 << 10));
    source.take(MOST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MOST} octets")));
    }
    Ok(content)
}

/// Writes a section under a label such as `CERTIFICATE`.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    // Room for all of it at once: what grows leaves copies behind, and it may be a key.
    let mut text = String::with_capacity(encoded.len() + encoded.len() / WIDTH + 2 * label.len() + 40);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % WIDTH == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.extend(["\n-----END ", label, "-----\n"]);
    text
}

/// What a file may hold: a system's whole store of roots is a quarter of a mebibyte.
const MOST: u64 = 4 << 20;

/// Characters a line (RFC 7468, section 2).
const WIDTH: usize = 64;

/// Why a chain and a key do not make an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// One of the chain is no certificate.
    NoCertificate,
    /// The key is of a kind or a size that is not supported.
    UnknownKey,
    /// The key is not the leaf's.
    AnothersKey,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "not a well-formed certificate",
            Self::UnknownKey => {
                "a key of a kind that is not supported: RSA with 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, and \
                 Ed25519 are"
            }
            Self::AnothersKey => "not the key of the certificate: its public half is another",
        })
    }
}

impl std::error::Error for Misfit {}
