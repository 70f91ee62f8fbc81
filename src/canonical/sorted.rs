//! Pieces that are sorted as whole strings of octets.

/// Sorts the pieces between separators in `out` from the offset `start` on, in place. Their order is by octet, so what
/// stands after the longer of two names counts too: `a-b=1` comes before `a=1`.
pub fn sort(out: &mut Vec<u8>, start: usize, separator: u8) {
    let tail = out.get(start..).unwrap_or_default();
    let pieces = tail.split(|octet| *octet == separator);
    if pieces.clone().is_sorted() {
        return;
    }
    let mut pieces: Vec<_> = pieces.collect();
    // Equal pieces are the same octets, so a stable order is nothing to anybody.
    pieces.sort_unstable();
    let sorted = pieces.join(&separator);
    out.truncate(start);
    out.extend_from_slice(&sorted);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(text: &str, start: usize) -> String {
        let mut out = text.as_bytes().to_vec();
        sort(&mut out, start, b'&');
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whole_pieces_are_compared() {
        assert_eq!(sorted("a=1&a-b=1&a1=0&a%3A=1&A=2", 0), "A=2&a%3A=1&a-b=1&a1=0&a=1");
    }

    #[test]
    fn what_stands_before_the_start_is_left_alone() {
        assert_eq!(sorted("z&b&a", 2), "z&a&b");
        assert_eq!(sorted("z&", 2), "z&");
        assert_eq!(sorted("z", 2), "z");
    }

    #[test]
    fn equal_and_empty_pieces_stay() {
        assert_eq!(sorted("b&&b&a", 0), "&a&b&b");
    }
}
