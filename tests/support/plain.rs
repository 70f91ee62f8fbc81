//! What the naive second implementations of the signers share. It has nothing of `src/`, and is written to be read, not to
//! be fast.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::fmt::Write;

use sha2::Digest;

/// Percent-encodes all but letters, digits and `-._~`.
pub fn encode(octets: &[u8]) -> String {
    let mut text = String::new();
    for octet in octets {
        let character = char::from(*octet);
        if character.is_ascii_alphanumeric() || "-._~".contains(character) {
            text.push(character);
        } else {
            let _ = write!(text, "%{octet:02X}");
        }
    }
    text
}

/// Undoes every well-formed `%XX` once.
pub fn decode(text: &str) -> Vec<u8> {
    let octets = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(octet) = octets.get(at) {
        let digits = octets.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if let (b'%', Some(digits)) = (octet, digits) {
            let digits = str::from_utf8(digits).expect("ASCII");
            decoded.push(u8::from_str_radix(digits, 16).expect("two digits"));
            at += 3;
        } else {
            decoded.push(*octet);
            at += 1;
        }
    }
    decoded
}

/// RFC 2104, for the digests whose blocks have 64 octets.
pub fn hmac<D: Digest>(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut key = if key.len() > 64 { D::digest(key).to_vec() } else { key.to_vec() };
    key.resize(64, 0);
    let inner: Vec<u8> = key.iter().map(|octet| octet ^ 0x36).chain(text.iter().copied()).collect();
    let outer: Vec<u8> = key.iter().map(|octet| octet ^ 0x5c).chain(D::digest(inner)).collect();
    D::digest(outer).to_vec()
}
