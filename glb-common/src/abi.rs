//! The structs that the director's BPF programs share with user space. Every field is a number or an
//! array, all padding is named, and the sizes are asserted. The backend's structs are in
//! [`crate::second_chance::abi`].

pub use zerocopy::IntoBytes;
use zerocopy::{FromBytes, Immutable};

use crate::{
    parse::{MAX_TAGS, Packet},
    reason::MAX_REASONS,
};

/// Rows of a forwarding table.
pub const ROWS: usize = 65_536;

/// Number of counter slots for tables. Slot 0 counts packets that match no table.
pub const TABLE_SLOTS: u32 = 1024;

/// Number of counter slots for (table, backend) pairs. Slot 0 counts the self-test.
pub const BACKEND_SLOTS: u32 = 65_536;

/// The constants of one generation, in the program's read-only data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Config {
    /// The seed under which the perfect hash of binds has no collisions.
    pub bind_seed: u64,
    /// Number of displacements minus one. The number is a power of two.
    pub displacement_mask: u32,
    /// Number of slots for exact binds minus one. The number is a power of two.
    pub bind_mask: u32,
    /// 1 if any bind names a prefix or a port range.
    pub has_port_ranges: u8,
    /// The bits that the outer TOS or traffic class copies from the inner one (RFC 6040 asks for all).
    pub tos_mask: u8,
    /// The bits that are set in it besides.
    pub tos_value: u8,
    /// 1 if a too-big IPv4 packet without DF is sent in a tunnel packet without DF; 0 if it is
    /// dropped.
    pub may_fragment: u8,
    /// Limit of "packet too big" replies per second and CPU; 0 for no limit.
    pub answers_per_second: u32,
    /// Number of VLAN tags of sent packets; [`KEEP_TAGS`] keeps the tags of the received packet.
    pub tags: u32,
    /// The VLAN tags as they lie on the wire. Their priority is copied from the received outer tag.
    pub tag_words: [u32; MAX_TAGS],
    /// Zero.
    pub padding: u32,
}

/// The value of [`Config::tags`] that keeps the tags of the received packet.
pub const KEEP_TAGS: u32 = u32::MAX;

/// The lengths of the arrays whose indices the program must check itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ArrayBounds {
    /// Number of [`TableRows`].
    pub rows: u32,
    /// Number of [`Backend`] entries: two for each backend.
    pub backends: u32,
}

/// A bind of one address, one protocol and one port: a slot of the perfect hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct BindSlot {
    /// The VIP as [`crate::flow::Address::words`].
    pub address: [u64; 2],
    /// Port, protocol and family as [`crate::vip_lookup::port_key`]. 0 marks an empty slot.
    pub port_key: u32,
    /// Index of the table.
    pub table: u32,
    /// The table's [`TableInfo::bank`].
    pub bank: u32,
    /// Index of the rows if the fast path can handle the table: two hops, IPv4 backends, source
    /// address hashed, no alternative hash, tags kept. [`NO_ROWS`] leaves it to the general program.
    pub plain_rows: u32,
    /// The table's hash key as [`crate::siphash::SipHash24::first_round`].
    pub first_round: [u64; 4],
}

/// The port ranges of a prefix: a run of [`Segment`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PrefixEntry {
    /// Index of the first segment.
    pub start: u32,
    /// Number of segments.
    pub count: u32,
}

/// A range of ports of one protocol. The segments of a prefix are sorted and disjoint.
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

/// A table without its rows.
///
/// One [`TableRows`] array holds the first and second hop of every row. A table of three or four hops
/// has a second array for the others, so the usual two hops cost one access to 256 KB.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TableInfo {
    /// SipHash key, two little-endian words.
    pub key: [u64; 2],
    /// The key of the alternative hash; equal to `key` if only fields or seed differ.
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
    /// 1 if a packet lists more than the row's second hop.
    pub has_more: u8,
    /// 1 if the backends have IPv6 addresses.
    pub is_v6: u8,
    /// The bank of [`Backend`] entries that is in use: 0 or 1. Each backend has an entry in both.
    /// User space writes new next hops to the unused bank and then changes this word, so a packet
    /// sees either all old or all new entries.
    pub bank: u32,
    /// Zero.
    pub padding: [u8; 4],
}

/// The index of rows that do not exist.
pub const NO_ROWS: u32 = u32::MAX;

/// Two hops of a row, as indices of backends; [`NO_HOP`] where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Row {
    /// The first hop, which gets the packet (or the third hop).
    pub first: u16,
    /// The second hop, which gets the second chance (or the fourth hop).
    pub second: u16,
}

/// The index of a backend that does not exist.
pub const NO_HOP: u16 = u16::MAX;

/// Two hops of every row of a table.
pub type TableRows = [Row; ROWS];

/// Limit of [`TableRows`] in a generation: the verifier allows offsets below 2^29
/// (`BPF_MAX_VAR_OFF`).
pub const MAX_ROWS: usize = (1 << 29) / size_of::<TableRows>();

/// A backend with its next hop. It fills one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Backend {
    /// The first 48 bytes of the outer headers as little-endian words, as far as they are equal for
    /// every packet: see [`crate::encap::EgressLink::to_v4`]. For an IPv6 backend only the 14 bytes
    /// of the Ethernet header.
    pub header: [u64; 6],
    /// Index of the outgoing interface; 0 while the next hop is unresolved.
    pub interface: u32,
    /// An IPv4 backend's address as it lies on the wire; 0 for an IPv6 backend.
    pub address: u32,
    /// Path MTU for outer packets in bytes; 0 while the next hop is unresolved.
    pub mtu: u16,
    /// MTU of the outgoing interface in bytes.
    pub link_mtu: u16,
    /// Folded sum of the outer IPv4 header's 16-bit little-endian words, without TOS and total
    /// length.
    pub header_sum: u16,
    /// Slot of the backend's counter.
    pub counter_slot: u16,
}

impl Backend {
    /// True if the backend's next hop is resolved.
    #[inline(always)]
    #[must_use]
    pub const fn is_resolved(&self) -> bool {
        self.interface != 0
    }

    /// Destination and source MAC address, as they lie in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn macs(&self) -> (u64, u32) {
        (self.header[0], self.header[1] as u32)
    }
}

/// The outer addresses of an IPv6 backend. They stand in a map of their own at the index of the
/// [`Backend`]; the map is empty if all backends have IPv4 addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Ipv6Endpoints {
    /// Outer source address, as [`crate::flow::Address::words`].
    pub source: [u64; 2],
    /// The backend's address.
    pub address: [u64; 2],
}

/// The data that the parts of the general program pass to each other. Each CPU has one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// The packet, as parsed.
    pub packet: Packet,
    /// The hops that the packet will list.
    pub hops: Hops,
    /// The largest IP packet that fits the tunnel, for a "packet too big" reply.
    pub inner_mtu: u32,
    /// Slot of the table's counters, for that reply.
    pub counter_slot: u32,
    /// Zero.
    pub padding: u32,
}

/// The hop list of a packet, as indices of backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hops {
    /// Number of listed hops, at most 7.
    pub count: u32,
    /// The listed hops. The array has 8 elements so that a mask bounds the index.
    pub index: [u16; 8],
}

impl Hops {
    /// Appends a hop, unless it is [`NO_HOP`].
    #[inline(always)]
    pub const fn list(&mut self, index: u16) {
        if index != NO_HOP {
            self.index[(self.count & 7) as usize] = index;
            self.count += 1;
        }
    }

    /// Number of listed hops.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u8 {
        self.count as u8 & 7
    }

    /// True if no hop is listed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Counts packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the received frames, from the Ethernet header on.
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
