//! Looks into a certificate. Nothing may panic or go past the end, and what is found lies within.

use countersign::upstream::x509::{Certificate, algorithm, common_name, rsa_bits};

pub(super) fn run(octets: &[u8]) {
    let _ = (common_name(octets), algorithm(octets));
    assert!(rsa_bits(octets).is_none_or(|bits| bits <= octets.len() * 8));
    let Some(certificate) = Certificate::parse(octets) else { return };
    let parts = [certificate.issuer, certificate.subject, certificate.public_key];
    assert!(parts.iter().map(|part| part.len()).sum::<usize>() < octets.len());
    assert!(certificate.names().is_none_or(|names| names.len() < octets.len()));
    let _ = (certificate.is_ca(), certificate.rsa_bits(), common_name(certificate.subject));
}
