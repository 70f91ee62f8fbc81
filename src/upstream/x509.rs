//! A look into a certificate (X.509 as in RFC 5280, in the DER of X.690): for words about it, and for its end.
//!
//! Nothing here decides whether a certificate is accepted: that is the TLS library's to do, which tells less about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::civil::DateTime;
use jiff::tz::Offset;

use crate::clock::Timestamp;

/// A certificate's fields (RFC 5280, section 4.1), as far as anybody asks for them.
#[derive(Clone, Copy, Debug)]
pub struct Certificate<'a> {
    /// 1 to 3.
    pub version: u8,
    /// Who issued it: the content of a `Name`, which [`common_name`] reads.
    pub issuer: &'a [u8],
    /// Whose it is: the content of a `Name`.
    pub subject: &'a [u8],
    /// When it becomes valid.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// The `SubjectPublicKeyInfo`, with its header: what a pin is of.
    pub public_key: &'a [u8],
    extensions: &'a [u8],
}

/// A name in a subjectAltName.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A dNSName, as it stands there.
    Host(String),
    /// An iPAddress.
    Address(IpAddr),
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; nothing if it is none.
    #[must_use]
    pub fn parse(certificate: &'a [u8]) -> Option<Self> {
        let mut whole = Der(certificate);
        let mut certificate = Der(whole.take(SEQUENCE)?);
        if !whole.0.is_empty() {
            return None;
        }
        let mut fields = Der(certificate.take(SEQUENCE)?);
        let version = match fields.take(VERSION) {
            Some(version) => Der(version).take(INTEGER)?.last()?.checked_add(1)?,
            None => 1,
        };
        let _serial = fields.take(INTEGER)?;
        let _signature = fields.take(SEQUENCE)?;
        let issuer = fields.take(SEQUENCE)?;
        let mut validity = Der(fields.take(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = fields.take(SEQUENCE)?;
        let before = fields.0;
        fields.take(SEQUENCE)?;
        let public_key = before.get(..before.len() - fields.0.len())?;
        for unique_id in UNIQUE_IDS {
            fields.take(unique_id);
        }
        let extensions = fields.take(EXTENSIONS).and_then(|extensions| Der(extensions).take(SEQUENCE));
        let extensions = extensions.unwrap_or_default();
        Some(Self { version, issuer, subject, not_before, not_after, public_key, extensions })
    }

    /// The host names and addresses of its subjectAltName (RFC 5280, section 4.2.1.6); nothing if it has no such extension.
    #[must_use]
    pub fn names(&self) -> Option<Vec<Name>> {
        let mut list = Der(Der(self.extension(SUBJECT_ALT_NAME)?).take(SEQUENCE)?);
        let mut names = Vec::new();
        while let Some((tag, content, rest)) = element(list.0) {
            list = Der(rest);
            names.extend(match tag {
                DNS_NAME => Some(Name::Host(String::from_utf8_lossy(content).into_owned())),
                IP_ADDRESS => address(content).map(Name::Address),
                _ => None,
            });
        }
        Some(names)
    }

    /// True if it is a CA's (RFC 5280, section 4.2.1.9).
    #[must_use]
    pub fn is_ca(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).and_then(|extension| Der(extension).take(SEQUENCE));
        constraints.and_then(|constraints| Der(constraints).take(BOOLEAN)).is_some_and(|is_ca| is_ca != [0])
    }

    /// The bits of its key, if that is RSA.
    #[must_use]
    pub fn rsa_bits(&self) -> Option<usize> {
        rsa_bits(element(self.public_key)?.1)
    }

    /// The content of an extension's value.
    fn extension(&self, wanted: &[u8]) -> Option<&'a [u8]> {
        let mut extensions = Der(self.extensions);
        while let Some(extension) = extensions.take(SEQUENCE) {
            let mut extension = Der(extension);
            if extension.take(OBJECT_IDENTIFIER)? == wanted {
                let _is_critical = extension.take(BOOLEAN);
                return extension.take(OCTET_STRING);
            }
        }
        None
    }
}

/// The last common name in a `Name`'s content: the most specific one.
#[must_use]
pub fn common_name(name: &[u8]) -> Option<String> {
    let (mut name, mut found) = (Der(name), None);
    while let Some(attributes) = name.take(SET) {
        let mut attribute = Der(Der(attributes).take(SEQUENCE)?);
        if attribute.take(OBJECT_IDENTIFIER)? == COMMON_NAME {
            let (_, text, _) = element(attribute.0)?;
            found = Some(String::from_utf8_lossy(text).into_owned());
        }
    }
    found
}

/// The bits of an RSA key's modulus, for the content of a `SubjectPublicKeyInfo` (RFC 8017, appendix A.1.1); nothing for
/// other keys.
#[must_use]
pub fn rsa_bits(public_key: &[u8]) -> Option<usize> {
    let mut public_key = Der(public_key);
    if Der(public_key.take(SEQUENCE)?).take(OBJECT_IDENTIFIER)? != RSA {
        return None;
    }
    let [0, key @ ..] = public_key.take(BIT_STRING)? else { return None };
    let modulus = Der(Der(key).take(SEQUENCE)?).take(INTEGER)?;
    let start = modulus.iter().position(|octet| *octet != 0)?;
    let modulus = modulus.get(start..)?;
    Some(modulus.len() * 8 - usize::try_from(modulus.first()?.leading_zeros()).ok()?)
}

/// What an `AlgorithmIdentifier`'s content names, dotted as in `1.2.840.113549.1.1.5`.
#[must_use]
pub fn algorithm(identifier: &[u8]) -> Option<String> {
    let (mut arcs, mut arc) = (Vec::new(), 0_u64);
    for octet in Der(identifier).take(OBJECT_IDENTIFIER)? {
        arc = arc.checked_mul(128)? + u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            if arcs.is_empty() {
                // The first two share one number (X.690, section 8.19.4).
                let first = (arc / 40).min(2);
                arcs.push(first.to_string());
                arc -= first * 40;
            }
            arcs.push(arc.to_string());
            arc = 0;
        }
    }
    Some(arcs.join("."))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

/// Splits the first element off `input`: its tag, its content, and what follows it.
pub(crate) fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Elements one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next element, if it has this tag; else it stays where it is.
    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (tag, content, rest) = element(self.0)?;
        (tag == wanted).then(|| {
            self.0 = rest;
            content
        })
    }

    /// The next element as a time (RFC 5280, section 4.1.2.5): `YYMMDDHHMMSSZ` from 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
    fn time(&mut self) -> Option<Timestamp> {
        let mut digits = [0; 7];
        let (years, text) = match self.take(UTC_TIME) {
            Some(text) => (1, text),
            None => (2, self.take(GENERALIZED_TIME)?),
        };
        let text = text.strip_suffix(b"Z")?;
        let places = digits.len() - 2 + years;
        if text.len() != 2 * places || !text.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for (place, pair) in digits.iter_mut().skip(2 - years).zip(text.chunks_exact(2)) {
            *place = pair.iter().fold(0, |number, digit| number * 10 + i8::try_from(digit - b'0').unwrap_or(0));
        }
        let [century, year, month, day, hour, minute, second] = digits;
        let century = match (years, year) {
            (1, 50..) => 19,
            (1, _) => 20,
            _ => i16::from(century),
        };
        let at = DateTime::new(century * 100 + i16::from(year), month, day, hour, minute, second, 0).ok()?;
        // The last days of the year 9999 are over the end of what can be counted; "never" is what they stand for.
        let at = Offset::UTC.to_timestamp(at).unwrap_or(jiff::Timestamp::MAX);
        Some(Timestamp(at.as_millisecond()))
    }
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]` in a certificate's body.
const VERSION: u8 = 0xa0;
/// `[1]` and `[2]` there.
const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
/// `[3]` there.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` in a `GeneralName`.
const DNS_NAME: u8 = 0x82;
/// `[7]` there.
const IP_ADDRESS: u8 = 0x87;
/// 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 1.2.840.113549.1.1.1.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::server::ParsedCertificate;
    use rustls_pki_types::CertificateDer;

    use super::*;
    use crate::canonical::time;
    use crate::demo::certificates::{Authority, KeyKind, Purpose, Wish};

    fn issue(names: &[&str], key: KeyKind) -> CertificateDer<'static> {
        let wish = Wish { names, key, ..Wish::new(Purpose::Server, "jemand, für Tests") };
        Authority::new("a CA").unwrap().issue(&wish).unwrap().certificate()
    }

    #[test]
    fn a_certificate_is_read_field_by_field() {
        let der = issue(&["a.test", "*.b.test", "10.0.0.7", "::1"], KeyKind::Rsa2048);
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.version, 3);
        assert_eq!(common_name(certificate.issuer).as_deref(), Some("a CA"));
        assert_eq!(common_name(certificate.subject).as_deref(), Some("jemand, für Tests"));
        assert_eq!(time::iso(certificate.not_before), "1975-01-01T00:00:00Z");
        assert_eq!(time::iso(certificate.not_after), "4096-01-01T00:00:00Z");
        let host = |name: &str| Name::Host(name.to_owned());
        let address = |address: &str| Name::Address(address.parse().unwrap());
        let names = [host("a.test"), host("*.b.test"), address("10.0.0.7"), address("::1")];
        assert_eq!(certificate.names().unwrap(), names);
        assert_eq!(certificate.rsa_bits(), Some(2048));
        let parsed = ParsedCertificate::try_from(&der).unwrap();
        assert_eq!(parsed.subject_public_key_info().as_ref(), certificate.public_key);
        assert!(!certificate.is_ca());
    }

    #[test]
    fn what_a_certificate_does_not_have_is_not_found() {
        let der = issue(&[], KeyKind::EcdsaP256);
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.names(), None);
        assert_eq!(certificate.rsa_bits(), None);
        let authority = Authority::new("a CA").unwrap().certificate();
        assert!(Certificate::parse(&authority).unwrap().is_ca());
    }

    #[test]
    fn times_are_read_as_certificates_write_them() {
        let cases = [
            (UTC_TIME, "491231235959Z", Some("2049-12-31T23:59:59Z")),
            (UTC_TIME, "500101000000Z", Some("1950-01-01T00:00:00Z")),
            (GENERALIZED_TIME, "20500229000000Z", None),
            (GENERALIZED_TIME, "20520229000001Z", Some("2052-02-29T00:00:01Z")),
            (GENERALIZED_TIME, "99991231235959Z", Some("9999-12-30T22:00:00Z")),
            (UTC_TIME, "4912312359Z", None),
            (UTC_TIME, "491231235959+0000", None),
            (UTC_TIME, "4912312359 9Z", None),
            (GENERALIZED_TIME, "491231235959Z", None),
            (INTEGER, "491231235959Z", None),
        ];
        for (tag, text, expected) in cases {
            let mut element = vec![tag, u8::try_from(text.len()).unwrap()];
            element.extend(text.bytes());
            assert_eq!(Der(&element).time().map(time::iso).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn algorithms_are_written_with_dots() {
        let of = |octets: &[u8]| algorithm(&[&[6, u8::try_from(octets.len()).unwrap()], octets].concat());
        assert_eq!(of(RSA).as_deref(), Some("1.2.840.113549.1.1.1"));
        assert_eq!(of(&[0x88, 0x37, 0x03]).as_deref(), Some("2.999.3"));
        assert_eq!(of(&[0xff; 20]), None);
        assert_eq!(algorithm(&[]), None);
    }

    #[test]
    fn a_length_that_leads_past_the_end_is_nothing() {
        for input in
            [[].as_slice(), &[0x30], &[0x30, 1], &[0x30, 0x82, 1], &[0x30, 0x80], &[0x30, 0x84, 255, 255, 255, 255]]
        {
            assert_eq!(element(input), None, "{input:?}");
            assert!(Certificate::parse(input).is_none());
        }
    }

    proptest! {
        #[test]
        fn no_input_is_read_past_its_end(input: Vec<u8>) {
            if let Some((_, content, rest)) = element(&input) {
                prop_assert!(content.len() + rest.len() <= input.len() - 2);
            }
            let _ = (common_name(&input), rsa_bits(&input), algorithm(&input));
        }

        #[test]
        fn whatever_the_library_reads_is_read(edits in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4)) {
            let mut der = issue(&["a.test", "10.0.0.7"], KeyKind::EcdsaP256).to_vec();
            for (at, octet) in edits {
                let at = at.index(der.len());
                der[at] = octet;
            }
            let ours = Certificate::parse(&der);
            if let Some(ours) = ours {
                let _ = (ours.names(), ours.is_ca(), common_name(ours.subject));
            }
            // Times are looked at by the library no sooner than it must.
            let der = CertificateDer::from(der.as_slice());
            if let (Ok(theirs), Some(ours)) = (ParsedCertificate::try_from(&der), ours) {
                prop_assert_eq!(ours.version, 3);
                let theirs = theirs.subject_public_key_info();
                prop_assert_eq!(theirs.as_ref(), ours.public_key);
            }
        }
    }
}
