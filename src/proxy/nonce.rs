//! Numbers that are used once: request ids and nonces.

use std::ops::Deref;

use crate::upstream::tls;

/// Makes numbers that do not repeat, within this thread or with another's. They are no secrets.
#[derive(Debug)]
pub struct Nonces {
    state: u64,
    salt: u64,
}

impl Nonces {
    /// Seeded from the kernel.
    #[must_use]
    pub fn new() -> Self {
        let mut seed = [[0; 8]; 2];
        // A failing kernel source would still leave numbers that do not repeat within the process.
        let _ = tls::provider().secure_random.fill(seed.as_flattened_mut());
        let [state, salt] = seed.map(u64::from_ne_bytes);
        Self { state: state ^ std::ptr::from_ref(&seed).addr() as u64, salt }
    }

    /// 16 hex digits.
    pub fn next_id(&mut self) -> Digits<16> {
        let mut digits = Digits([b'0'; 16]);
        let _ = hex::encode_to_slice(self.next().to_be_bytes(), &mut digits.0);
        digits
    }

    /// 32 hex digits.
    pub fn next_nonce(&mut self) -> Digits<32> {
        let halves = [self.next().to_be_bytes(), (self.next() ^ self.salt).to_be_bytes()];
        let mut digits = Digits([b'0'; 32]);
        let _ = hex::encode_to_slice(halves.as_flattened(), &mut digits.0);
        digits
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Hex digits, made without asking for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits<const LENGTH: usize>([u8; LENGTH]);

impl<const LENGTH: usize> Deref for Digits<LENGTH> {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Default for Nonces {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_length_promised_and_do_not_repeat() {
        let mut nonces = Nonces::new();
        let (first, second) = (nonces.next_nonce(), nonces.next_nonce());
        assert_ne!(first, second);
        assert!(first.len() == 32 && first.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_eq!(nonces.next_id().len(), 16);
    }
}
