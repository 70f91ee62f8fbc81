//! As much DER (X.690) as keys made on the spot need.

use crate::upstream::x509::element;

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
/// `[0]` in an `ECPrivateKey`.
const CURVE: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_input_is_read_past_its_end(input: Vec<u8>) {
            let _ = unwrap_pkcs8(&input, Traditional::Sec1);
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
}
