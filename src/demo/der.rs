//! As much DER (X.690) as certificates and keys made on the spot need.

/// Splits the first element off `input`: its tag, its content, and what follows it.
pub(super) fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
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

/// Puts a tag and a length before `content`.
pub(super) fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = length.iter().position(|octet| *octet != 0).and_then(|start| length.get(start..)).unwrap_or(&[0]);
    let mut element = vec![tag];
    if content.len() > 0x7f {
        element.push(0x80 | u8::try_from(length.len()).unwrap_or(0));
    }
    element.extend(length);
    element.extend(content);
    element
}

/// The subject's common name in a certificate (RFC 5280, section 4.1).
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if rest.first() == Some(&VERSION) {
        (_, _, rest) = element(rest)?;
    }
    // serialNumber, signature, issuer, validity
    for _ in 0..4 {
        (_, _, rest) = element(rest)?;
    }
    let (_, mut subject, _) = element(rest)?;
    while let Some((_, set, following)) = element(subject) {
        let (_, attribute, _) = element(set)?;
        let (_, kind, value) = element(attribute)?;
        if kind == COMMON_NAME {
            let (_, text, _) = element(value)?;
            return String::from_utf8(text.to_vec()).ok();
        }
        subject = following;
    }
    None
}

/// A key out of its PKCS#8 wrapping (RFC 5958): PKCS#1 for RSA, SEC 1 for an elliptic curve. SEC 1 keys in files name their curve
/// themselves (RFC 5915, section 3), which inside PKCS#8 is left to the wrapping, so it is put in where it is missing.
pub(super) fn unwrap_pkcs8(key: &[u8], kind: Traditional) -> Option<Vec<u8>> {
    let (_, key, _) = element(key)?;
    let (_, _, rest) = element(key)?;
    let (_, algorithm, rest) = element(rest)?;
    let (_, inner, _) = element(rest)?;
    if kind == Traditional::Pkcs1 {
        return Some(inner.to_vec());
    }
    let (_, _, curve) = element(algorithm)?;
    let (_, fields, _) = element(inner)?;
    let (_, _, after_version) = element(fields)?;
    let (_, _, optional) = element(after_version)?;
    if optional.first() == Some(&CURVE) {
        return Some(inner.to_vec());
    }
    let (before, _) = fields.split_at_checked(fields.len() - optional.len())?;
    Some(wrap(SEQUENCE, &[before, &wrap(CURVE, curve), optional].concat()))
}

/// The forms of a private key that are older than PKCS#8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Traditional {
    Pkcs1,
    Sec1,
}

const SEQUENCE: u8 = 0x30;
/// `[0]` in a certificate's body.
const VERSION: u8 = 0xa0;
/// `[0]` in an `ECPrivateKey`.
const CURVE: u8 = 0xa0;
/// 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_input_is_read_past_its_end(input: Vec<u8>) {
            if let Some((_, content, rest)) = element(&input) {
                prop_assert!(content.len() + rest.len() <= input.len() - 2);
            }
            let _ = (common_name(&input), unwrap_pkcs8(&input, Traditional::Sec1));
        }
    }

    #[test]
    fn what_is_wrapped_is_split_off_again_whatever_its_length() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let content = vec![7; length];
            let mut input = wrap(0x04, &content);
            input.push(9);
            assert_eq!(element(&input), Some((0x04, content.as_slice(), [9].as_slice())), "{length}");
        }
    }

    #[test]
    fn a_length_that_leads_past_the_end_is_nothing() {
        for input in
            [[].as_slice(), &[0x30], &[0x30, 1], &[0x30, 0x82, 1], &[0x30, 0x80], &[0x30, 0x84, 255, 255, 255, 255]]
        {
            assert_eq!(element(input), None, "{input:?}");
            assert_eq!(common_name(input), None);
        }
    }
}
