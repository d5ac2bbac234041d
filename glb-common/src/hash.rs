//! The flow hash: SipHash-2-4 of the fields that a table chooses.

use crate::{
    flow::{Address, FiveTuple, V4},
    siphash::SipHash24,
};

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

    /// The set as the bits of [`crate::abi::TableInfo::hash_fields`].
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits; `None` for no bit or an unknown one.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits == 0 || bits > 15 { None } else { Some(Self(bits)) }
    }

    /// The union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if this set contains all of `other`.
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

/// Hashes the chosen fields of a flow, in the order source address, destination address, source port,
/// destination port, each in network byte order.
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

/// Feeds an address, given as [`Address::words`], to the hash.
#[inline(always)]
fn feed(family: u8, [high, low]: [u64; 2], hash: &mut SipHash24) {
    if family == V4::FAMILY {
        hash.feed_4((low as u32).to_le_bytes());
    } else {
        hash.feed_word(high);
        hash.feed_word(low);
    }
}
