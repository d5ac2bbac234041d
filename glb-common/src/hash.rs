//! Which fields of a flow are hashed, and to what.

use crate::{parse::FiveTuple, siphash::SipHash24};

/// A set of flow fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashFields(u8);

impl HashFields {
    /// Source address.
    pub const SRC_ADDR: Self = Self(1);
    /// Destination address.
    pub const DST_ADDR: Self = Self(2);
    /// Source port.
    pub const SRC_PORT: Self = Self(4);
    /// Destination port.
    pub const DST_PORT: Self = Self(8);
    /// Every field.
    pub const ALL: Self = Self(15);

    /// The bits, as they stand in [`crate::abi::TableInfo`].
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; nothing if there are none, or others.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits == 0 || bits > 15 { None } else { Some(Self(bits)) }
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[inline(always)]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Default for HashFields {
    /// GLB's default: the source address alone.
    fn default() -> Self {
        Self::SRC_ADDR
    }
}

/// SipHash-2-4 of the chosen fields in the order source address, destination address, source port,
/// destination port, in network byte order.
#[inline(always)]
pub fn flow_hash(key: [u64; 2], fields: HashFields, flow: &FiveTuple) -> u64 {
    let mut hash = SipHash24::new(key);
    if fields.contains(HashFields::SRC_ADDR) {
        feed(flow.family, flow.source, &mut hash);
    }
    if fields.contains(HashFields::DST_ADDR) {
        feed(flow.family, flow.destination, &mut hash);
    }
    if fields.contains(HashFields::SRC_PORT) {
        hash.feed_2(flow.source_port.to_be_bytes());
    }
    if fields.contains(HashFields::DST_PORT) {
        hash.feed_2(flow.destination_port.to_be_bytes());
    }
    hash.finish()
}

/// Feeds the bytes of an address given as [`Address::words`].
#[inline(always)]
fn feed(family: u8, [high, low]: [u64; 2], hash: &mut SipHash24) {
    if family == V4::FAMILY {
        hash.feed_4((low as u32).to_le_bytes());
    } else {
        hash.feed_word(high);
        hash.feed_word(low);
    }
}

/// An IPv4 or IPv6 address as it lies on the wire.
pub trait Address: Copy + PartialEq {
    /// What tells both families apart in a bind's key.
    const FAMILY: u8;

    /// The address as two little-endian words of its bytes, IPv4 in the second.
    fn words(&self) -> [u64; 2];
}

/// An IPv4 address: its four bytes as a little-endian number, which fits a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4(u32);

/// An IPv6 address: its sixteen bytes as two little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6([u64; 2]);

impl V4 {
    /// The address with these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }

    /// The address's bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }
}

impl V4 {
    /// The address whose four bytes are this little-endian number.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }
}

impl V6 {
    /// The address whose bytes are these two little-endian words.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The address with these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        ])
    }

    /// The address's bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_le_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl Address for V4 {
    const FAMILY: u8 = 4;

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        [0, self.0 as u64]
    }
}

impl Address for V6 {
    const FAMILY: u8 = 6;

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        self.0
    }
}
