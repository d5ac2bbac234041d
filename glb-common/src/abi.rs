//! The structs that the kernel and user space share. Every field is a plain number or array, all
//! padding is named, and the sizes are asserted.

pub use zerocopy::IntoBytes;
use zerocopy::{FromBytes, Immutable};

use crate::{
    parse::{MAX_TAGS, Packet},
    reason::MAX_REASONS,
};

/// Rows of a forwarding table.
pub const ROWS: usize = 65_536;

/// Slots for tables in the counters; slot 0 counts what belongs to no table.
pub const TABLE_SLOTS: u32 = 1024;

/// Slots for (table, backend) pairs in the counters; slot 0 counts the self-test.
pub const BACKEND_SLOTS: u32 = 65_536;

/// What is constant for one generation; read-only data of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Config {
    /// Mixed into the hash of binds, so that user space can choose one without collisions.
    pub bind_seed: u64,
    /// Number of displacements less one; their number is a power of two.
    pub displacement_mask: u32,
    /// Number of exact binds' slots less one; their number is a power of two.
    pub bind_mask: u32,
    /// 1 if there are binds for prefixes or ranges of ports.
    pub has_port_ranges: u8,
    /// What the outer TOS or traffic class keeps of the inner one (RFC 6040 wants all of it).
    pub tos_mask: u8,
    /// What is added to it.
    pub tos_value: u8,
    /// 1 if an IPv4 packet that is too big and may be fragmented travels in a tunnel packet that may
    /// be fragmented; 0 if it is dropped.
    pub may_fragment: u8,
    /// At most so many answers "too big" a second from each CPU; 0 for no limit.
    pub answers_per_second: u32,
    /// How many tags what is sent carries; [`KEEP_TAGS`] for those that it came with.
    pub tags: u32,
    /// Those tags, as they lie on the wire, without priority, which is the received outer tag's.
    pub tag_words: [u32; MAX_TAGS],
    /// Zero.
    pub padding: u32,
}

/// In the place of a number of tags: what is sent carries those that it came with.
pub const KEEP_TAGS: u32 = u32::MAX;

/// How many elements the arrays hold whose indices nothing else bounds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ArrayBounds {
    /// [`TableRows`].
    pub rows: u32,
    /// Entries of backends: two of each.
    pub backends: u32,
}

/// A bind of one address, one protocol and one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct BindSlot {
    /// The address as [`crate::flow::Address::words`].
    pub address: [u64; 2],
    /// Port, protocol and family as [`crate::vip_lookup::port_key`]; 0 is an empty slot.
    pub port_key: u32,
    /// Index of the table.
    pub table: u32,
    /// As [`TableInfo::bank`].
    pub bank: u32,
    /// Index of the rows, if the table is a plain one: two hops, IPv4 backends, source address
    /// hashed, no alternative, tags kept. Else [`NO_ROWS`]: the general program looks at the table.
    pub plain_rows: u32,
    /// The table's key as [`crate::siphash::SipHash24::first_round`].
    pub first_round: [u64; 4],
}

/// The ports of a prefix: a run of [`Segment`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PrefixEntry {
    /// Index of the first segment.
    pub start: u32,
    /// Number of segments.
    pub count: u32,
}

/// A range of ports of one protocol, sorted and disjoint within its prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Segment {
    /// First `protocol << 16 | port`.
    pub first: u32,
    /// Last `protocol << 16 | port`.
    pub last: u32,
    /// Index of the table.
    pub table: u32,
    /// Zero.
    pub padding: u32,
}

/// What is known of a table besides its rows.
///
/// Rows stand in pairs: an element of [`TableRows`] holds the first and second hop of every row; a
/// table of three or four hops has another element for those. The usual two hops thus cost one look
/// into 256 KB.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TableInfo {
    /// SipHash key, two little-endian words.
    pub key: [u64; 2],
    /// The alternative key; the same as `key` if only fields or seed differ.
    pub alt_key: [u64; 2],
    /// Index of the rows' first and second hops.
    pub rows: u32,
    /// Index of the rows' third and fourth hops, or [`NO_ROWS`].
    pub more_rows: u32,
    /// Index of the alternative rows' first and second hops, or [`NO_ROWS`] without an alternative.
    pub alt_rows: u32,
    /// Index of the alternative rows' third and fourth hops, or [`NO_ROWS`].
    pub alt_more_rows: u32,
    /// Slot of the table's counters.
    pub counter_slot: u32,
    /// [`crate::hash::HashFields`] bits.
    pub hash_fields: u8,
    /// The alternative fields' bits; 0 without an alternative.
    pub alt_hash_fields: u8,
    /// 1 if there are more hops than the row's first two.
    pub has_more: u8,
    /// 1 if the backends are IPv6 ones.
    pub is_v6: u8,
    /// Each backend has two entries, and this says which is in force: 0 or 1. Ways change in the
    /// other one, and then this; whoever reads one word of it has all of the old ways or of the new
    /// ones.
    pub bank: u32,
    /// Zero.
    pub padding: [u8; 4],
}

/// No such rows.
pub const NO_ROWS: u32 = u32::MAX;

/// Two hops of a row, by index into the backends; [`NO_HOP`] where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Row {
    /// Where the packet goes (or the third hop).
    pub first: u16,
    /// Who gets the second chance (or the fourth hop).
    pub second: u16,
}

/// No backend stands here.
pub const NO_HOP: u16 = u16::MAX;

/// Two hops of all rows.
pub type TableRows = [Row; ROWS];

/// Most [`TableRows`] of a generation: the verifier allows offsets below 2^29 (`BPF_MAX_VAR_OFF`).
pub const MAX_ROWS: usize = (1 << 29) / size_of::<TableRows>();

/// A backend and the way to it. One cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Backend {
    /// The outer headers' first 48 bytes as little-endian words, as far as they are the same for
    /// every packet ([`crate::encap::NextHop::backend`]). For an IPv6 backend only Ethernet's 14 of them.
    pub header: [u64; 6],
    /// Index of the outgoing interface; 0 while the next hop is not resolved.
    pub interface: u32,
    /// An IPv4 backend's address as it lies on the wire; 0 for an IPv6 one.
    pub address: u32,
    /// Largest outer packet that fits the way, in bytes; 0 while the next hop is not resolved.
    pub mtu: u16,
    /// Largest outer packet that fits the outgoing interface, in bytes.
    pub link_mtu: u16,
    /// Sum of the outer IPv4 header's 16-bit words, as they lie on the wire in little-endian words,
    /// without TOS and total length, folded.
    pub header_sum: u16,
    /// Slot of the backend's counter.
    pub counter_slot: u16,
}

impl Backend {
    /// Whether the way to the backend is known.
    #[inline(always)]
    #[must_use]
    pub const fn is_resolved(&self) -> bool {
        self.interface != 0
    }

    /// Destination and source MAC, as they lie in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn macs(&self) -> (u64, u32) {
        (self.header[0], self.header[1] as u32)
    }
}

/// What an IPv6 backend has beside [`Backend`], at the same index of a map of its own. The map is
/// empty if there are none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Ipv6Endpoints {
    /// Outer source address, as [`crate::flow::Address::words`].
    pub source: [u64; 2],
    /// The backend's address.
    pub address: [u64; 2],
}

/// What the halves of the general program hand to each other, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// The packet, as parsed.
    pub packet: Packet,
    /// The hops that are listed.
    pub hops: Hops,
    /// For an answer "too big": the largest IP packet that fits the tunnel.
    pub inner_mtu: u32,
    /// And whose counters say so.
    pub counter_slot: u32,
    /// Zero.
    pub padding: u32,
}

/// The further hops of a packet, by index into the backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hops {
    /// How many are listed, at most 7.
    pub count: u32,
    /// Which; a power of two of places, so that a mask keeps an index inside.
    pub index: [u16; 8],
}

impl Hops {
    /// Lists one more.
    #[inline(always)]
    pub const fn list(&mut self, index: u16) {
        if index != NO_HOP {
            self.index[(self.count & 7) as usize] = index;
            self.count += 1;
        }
    }

    /// How many are listed.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u8 {
        self.count as u8 & 7
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Packets and bytes (of the received IP packets' frames).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the Ethernet header on, as received.
    pub bytes: u64,
}

/// A table's counters, one for each reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ReasonCounters {
    /// Indexed by reason.
    pub by_reason: [Counter; MAX_REASONS],
}

const _: () = {
    assert!(size_of::<Config>() == 40);
    assert!(size_of::<ArrayBounds>() == 8);
    assert!(size_of::<BindSlot>() == 64);
    assert!(size_of::<PrefixEntry>() == 8);
    assert!(size_of::<Segment>() == 16);
    assert!(size_of::<TableInfo>() == 64);
    assert!(size_of::<Row>() == 4);
    assert!(size_of::<Backend>() == 64);
    assert!(size_of::<Ipv6Endpoints>() == 32);
    assert!(size_of::<Scratch>() == 96);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<ReasonCounters>() == 16 * MAX_REASONS);
};

/// A value of a BPF map or of a program's read-only data: any bytes are a valid value, and it has no
/// padding, so that its bytes can be shown to the kernel. The derives of [`zerocopy`] check both.
pub trait MapValue: FromBytes + IntoBytes + Immutable + Copy + 'static {
    /// Reads a value from exactly as many bytes as it has; `None` for any other number of bytes.
    #[must_use]
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> MapValue for T {}
