//! Hash keys and seeds: 16 secret bytes.

use std::fmt;

/// A SipHash key: a table's `hash_key` or `seed`. A client that knows it can direct all its flows to one
/// backend, so neither `Debug` nor `Display` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// A key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, in the order of the hex digits.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// The key as the two little-endian words that SipHash uses.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        let (low, high) = self.0.split_at(8);
        [word(low), word(high)]
    }

    /// Parses exactly 32 hex digits: no sign, space or `0x` (GLB takes them: fault T8 in
    /// `docs/glb-faults.md`).
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| (b as char).to_digit(16);
            *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
        }
        Some(Self(bytes))
    }

    /// The key as 32 hex digits. Use this only to write a table file.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_hex_digits_are_a_key() {
        let key = Key::from_hex("000102030405060708090a0b0c0d0eFF").unwrap();
        assert_eq!(key.to_hex(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(key.words(), [0x0706_0504_0302_0100, 0xff0e_0d0c_0b0a_0908]);
        for bad in
            ["", "12", "zz0102030405060708090a0b0c0d0eff", "0x0102030405060708090a0b0c0d0eff"]
        {
            assert_eq!(Key::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn neither_debug_nor_display_shows_the_bytes() {
        let key = Key::new([0xab; 16]);
        assert!(!format!("{key:?}{key}").contains("ab"));
        assert!(!format!("{key:?}{key}").contains("171"));
    }
}
