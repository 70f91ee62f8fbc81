//! Percent-encoding (RFC 3986 section 2.1), with upper-case hex throughout.

/// The octets that a vendor leaves as they are; `%` is never among them.
#[derive(Clone, Copy, Debug)]
pub struct Kept([bool; 256]);

impl Kept {
    /// ASCII letters and digits, and the given octets.
    ///
    /// # Panics
    /// If one of them is not ASCII, or is `%`: as a constant it does not compile then.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "an octet is an index into 256 entries")]
    pub const fn alphanumeric_and(mut others: &[u8]) -> Self {
        let mut kept = [false; 256];
        let mut octet = 0_u8;
        while octet < 128 {
            kept[octet as usize] = octet.is_ascii_alphanumeric();
            octet += 1;
        }
        while let [first, rest @ ..] = others {
            assert!(first.is_ascii() && *first != b'%', "a set of octets to keep holds ASCII, and never `%`");
            kept[*first as usize] = true;
            others = rest;
        }
        Self(kept)
    }

    /// True if the octet is left as it is.
    #[must_use]
    pub fn keeps(&self, octet: u8) -> bool {
        self.0.get(usize::from(octet)).is_some_and(|kept| *kept)
    }
}

/// Appends `octets`, all but those kept as `%XX`.
pub fn encode(out: &mut Vec<u8>, octets: &[u8], kept: &Kept) {
    append(out, octets, kept, first);
}

/// Appends `text` with every well-formed `%XX` undone once and the result encoded: the same form for each way of
/// writing the same octets. A stray `%` stands for itself.
pub fn recode(out: &mut Vec<u8>, text: &[u8], kept: &Kept) {
    append(out, text, kept, |text| unescape(text).or_else(|| first(text)));
}

/// Appends octets that `next` takes off the front of `rest`, kept ones in whole runs.
fn append(out: &mut Vec<u8>, mut rest: &[u8], kept: &Kept, next: impl Fn(&[u8]) -> Option<(u8, &[u8])>) {
    loop {
        let run = rest.iter().position(|octet| !kept.keeps(*octet)).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(run);
        out.extend_from_slice(run);
        let Some((octet, tail)) = next(tail) else { return };
        if kept.keeps(octet) {
            out.push(octet);
        } else {
            out.extend_from_slice(&[b'%', digit(octet >> 4), digit(octet & 15)]);
        }
        rest = tail;
    }
}

fn first(text: &[u8]) -> Option<(u8, &[u8])> {
    text.split_first().map(|(first, rest)| (*first, rest))
}

fn unescape(text: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, rest @ ..] = text else { return None };
    Some((value(*high)? << 4 | value(*low)?, rest))
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' + value - 10 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEPT: Kept = Kept::alphanumeric_and(b"-._~");

    fn recoded(text: &[u8]) -> String {
        let mut out = Vec::new();
        recode(&mut out, text, &KEPT);
        String::from_utf8(out).unwrap()
    }

    fn encoded(octets: &[u8]) -> String {
        let mut out = Vec::new();
        encode(&mut out, octets, &KEPT);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_chosen_octets_are_kept() {
        assert_eq!(encoded(b"aZ09-._~"), "aZ09-._~");
        assert_eq!(encoded("/ %\u{7f}é\n".as_bytes()), "%2F%20%25%7F%C3%A9%0A");
        assert_eq!(encoded(b""), "");
    }

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(recoded(b"%41%7e%e4%252F%2f"), "A~%E4%252F%2F");
    }

    #[test]
    fn a_stray_percent_sign_stands_for_itself() {
        assert_eq!(recoded(b"%"), "%25");
        assert_eq!(recoded(b"%4"), "%254");
        assert_eq!(recoded(b"%4g%%41"), "%254g%25A");
        assert_eq!(recoded(b"%+1%-1"), "%25%2B1%25-1");
    }

    proptest! {
        #[test]
        fn recoding_twice_is_recoding_once(octets: Vec<u8>) {
            let once = recoded(&octets);
            prop_assert_eq!(recoded(once.as_bytes()), once);
        }

        #[test]
        fn recoding_undoes_what_encoding_does(octets: Vec<u8>) {
            let encoded = encoded(&octets);
            prop_assert_eq!(recoded(encoded.as_bytes()), encoded);
        }
    }
}
