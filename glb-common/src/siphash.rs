//! SipHash-2-4 (Aumasson and Bernstein, 2012), fed piece by piece.
//!
//! Written here because the packet path needs it without memory: pieces of 16, 32 and 64 bits go
//! straight from registers into the state. The tests compare it with an independent crate.

/// A running hash.
#[derive(Clone, Copy)]
pub struct SipHash24 {
    v: [u64; 4],
    /// Bytes not yet compressed, little endian from the lowest byte.
    tail: u64,
    /// How many bits of `tail` are filled: 0, 16, 32 or 48.
    filled: u32,
    /// Bytes fed so far.
    length: u64,
}

impl SipHash24 {
    /// Starts with a key of two little-endian words.
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

    /// Feeds two bytes, as they lie in memory.
    #[inline(always)]
    pub const fn feed_2(&mut self, bytes: [u8; 2]) {
        self.feed(u16::from_le_bytes(bytes) as u64, 16);
    }

    /// Feeds four bytes, as they lie in memory.
    #[inline(always)]
    pub const fn feed_4(&mut self, bytes: [u8; 4]) {
        self.feed(u32::from_le_bytes(bytes) as u64, 32);
    }

    /// Feeds eight bytes, given as the little-endian word that they form.
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
    }
}
