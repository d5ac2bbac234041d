//! SipHash-2-4 (Aumasson and Bernstein, 2012).
//!
//! The packet path needs a version that hashes 16, 32 and 64-bit values from registers without a
//! buffer, which no crate offers. The tests compare it with an independent crate.

/// A running hash.
#[derive(Clone, Copy)]
pub struct SipHash24 {
    v: [u64; 4],
    /// Bytes not yet compressed; the lowest byte is the first.
    tail: u64,
    /// Number of bits in `tail`: 0, 16, 32 or 48.
    filled: u32,
    /// Number of bytes fed so far.
    length: u64,
}

impl SipHash24 {
    /// Starts a hash with a key of two little-endian words.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: [u64; 2]) -> Self {
        Self {
            v: [
                key[0] ^ 0x736f_6d65_7073_6575,
                key[1] ^ 0x646f_7261_6e64_6f6d,
                key[0] ^ 0x6c79_6765_6e65_7261,
                key[1] ^ 0x7465_6462_7974_6573,
            ],
            tail: 0,
            filled: 0,
            length: 0,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        let [mut v0, mut v1, mut v2, mut v3] = self.v;
        v0 = v0.wrapping_add(v1);
        v1 = v1.rotate_left(13) ^ v0;
        v0 = v0.rotate_left(32);
        v2 = v2.wrapping_add(v3);
        v3 = v3.rotate_left(16) ^ v2;
        v0 = v0.wrapping_add(v3);
        v3 = v3.rotate_left(21) ^ v0;
        v2 = v2.wrapping_add(v1);
        v1 = v1.rotate_left(17) ^ v2;
        v2 = v2.rotate_left(32);
        self.v = [v0, v1, v2, v3];
    }

    #[inline(always)]
    const fn compress(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    /// Computes the part of the first round that depends on the key alone. A table keeps it instead of
    /// the key, for messages of a known length.
    #[must_use]
    pub const fn first_round(key: [u64; 2]) -> [u64; 4] {
        let [v0, v1, v2, v3] = Self::new(key).v;
        let v0 = v0.wrapping_add(v1);
        [v0.rotate_left(32), v1.rotate_left(13) ^ v0, v2, v3]
    }

    /// Compresses the first word of a message, starting from [`Self::first_round`].
    #[inline(always)]
    const fn first([v0, v1, v2, v3]: [u64; 4], word: u64) -> [u64; 4] {
        let v3 = v3 ^ word;
        let v2 = v2.wrapping_add(v3);
        let v3 = v3.rotate_left(16) ^ v2;
        let v0 = v0.wrapping_add(v3);
        let v3 = v3.rotate_left(21) ^ v0;
        let v2 = v2.wrapping_add(v1);
        let v1 = v1.rotate_left(17) ^ v2;
        let mut state = Self { v: [v0, v1, v2.rotate_left(32), v3], tail: 0, filled: 0, length: 0 };
        state.round();
        state.v[0] ^= word;
        state.v
    }

    /// Hashes four bytes under the key that `first_round` was computed from.
    #[inline(always)]
    #[must_use]
    pub const fn hash_4(first_round: [u64; 4], bytes: u32) -> u64 {
        let v = Self::first(first_round, bytes as u64 | 4 << 56);
        Self { v, tail: 0, filled: 0, length: 0 }.last_rounds()
    }

    /// Hashes two little-endian words under the key that `first_round` was computed from.
    #[inline(always)]
    #[must_use]
    pub const fn hash_16(first_round: [u64; 4], words: [u64; 2]) -> u64 {
        let v = Self::first(first_round, words[0]);
        let mut state = Self { v, tail: 0, filled: 0, length: 0 };
        state.compress(words[1]);
        state.compress(16 << 56);
        state.last_rounds()
    }

    /// Feeds the low `bits` (16, 32 or 64) of `value`, whose lowest byte comes first.
    #[inline(always)]
    const fn feed(&mut self, value: u64, bits: u32) {
        self.length += (bits / 8) as u64;
        if self.filled + bits < 64 {
            self.tail |= value << self.filled;
            self.filled += bits;
            return;
        }
        let used = 64 - self.filled;
        let word = self.tail | (value << self.filled);
        self.compress(word);
        // A shift by 64 (nothing was left over) must give zero.
        self.tail = if used >= bits { 0 } else { value >> used };
        self.filled = bits - used;
    }

    /// Feeds two bytes.
    #[inline(always)]
    pub const fn feed_2(&mut self, bytes: [u8; 2]) {
        self.feed(u16::from_le_bytes(bytes) as u64, 16);
    }

    /// Feeds four bytes.
    #[inline(always)]
    pub const fn feed_4(&mut self, bytes: [u8; 4]) {
        self.feed(u32::from_le_bytes(bytes) as u64, 32);
    }

    /// Feeds eight bytes, given as a little-endian word.
    #[inline(always)]
    pub const fn feed_word(&mut self, word: u64) {
        self.feed(word, 64);
    }

    /// The 64-bit hash.
    #[inline(always)]
    #[must_use]
    pub const fn finish(mut self) -> u64 {
        let last = self.tail | (self.length << 56);
        self.compress(last);
        self.last_rounds()
    }

    #[inline(always)]
    const fn last_rounds(mut self) -> u64 {
        self.v[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher as _;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Piece {
        Two([u8; 2]),
        Four([u8; 4]),
        Eight([u8; 8]),
    }

    fn piece() -> impl Strategy<Value = Piece> {
        prop_oneof![
            any::<[u8; 2]>().prop_map(Piece::Two),
            any::<[u8; 4]>().prop_map(Piece::Four),
            any::<[u8; 8]>().prop_map(Piece::Eight),
        ]
    }

    proptest! {
        #[test]
        fn equals_an_independent_implementation(
            key in any::<[u64; 2]>(),
            pieces in prop::collection::vec(piece(), 0..12),
        ) {
            let mut ours = SipHash24::new(key);
            let mut theirs = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
            for piece in pieces {
                match piece {
                    Piece::Two(bytes) => { ours.feed_2(bytes); theirs.write(&bytes); }
                    Piece::Four(bytes) => { ours.feed_4(bytes); theirs.write(&bytes); }
                    Piece::Eight(bytes) => {
                        ours.feed_word(u64::from_le_bytes(bytes));
                        theirs.write(&bytes);
                    }
                }
            }
            prop_assert_eq!(ours.finish(), theirs.finish());
        }

        #[test]
        fn hashing_from_a_precomputed_first_round_gives_the_same(key in any::<[u64; 2]>(), words in any::<[u64; 2]>()) {
            let first_round = SipHash24::first_round(key);
            let hash = |bytes: &[u8]| {
                let mut theirs = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
                theirs.write(bytes);
                theirs.finish()
            };
            let four = words[0] as u32;
            prop_assert_eq!(SipHash24::hash_4(first_round, four), hash(&four.to_le_bytes()));
            let sixteen = [words[0].to_le_bytes(), words[1].to_le_bytes()].concat();
            prop_assert_eq!(SipHash24::hash_16(first_round, words), hash(&sixteen));
        }
    }
}
