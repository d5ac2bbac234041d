//! The structs that the kernel and user space share. Every field is a plain number or array, all
//! padding is named, and the sizes are asserted.

use crate::reason::MAX_REASONS;

/// Rows of a forwarding table.
pub const ROWS: usize = 65_536;

/// Slots for tables in the counters; slot 0 counts what belongs to no table.
pub const TABLE_SLOTS: u32 = 1024;

/// Slots for (table, backend) pairs in the counters; slot 0 counts the self-test.
pub const BACKEND_SLOTS: u32 = 65_536;

/// What is constant for one generation; read-only data of the program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Zero.
    pub padding: u8,
    /// At most so many answers "too big" a second from each CPU; 0 for no limit.
    pub answers_per_second: u32,
}

/// A bind of one address, one protocol and one port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindSlot {
    /// The address as [`crate::hash::Address::words`].
    pub address: [u64; 2],
    /// Port, protocol and family as [`crate::bind::tail`]; 0 is an empty slot.
    pub tail: u32,
    /// Index of the table.
    pub table: u32,
    /// Zero.
    pub padding: u64,
}

/// The ports of a prefix: a run of [`Segment`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixEntry {
    /// Index of the first segment.
    pub start: u32,
    /// Number of segments.
    pub count: u32,
}

/// A range of ports of one protocol, sorted and disjoint within its prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Zero.
    pub padding: [u8; 9],
}

/// No such rows.
pub const NO_ROWS: u32 = u32::MAX;

/// Two hops of a row, by index into the backends; [`NO_HOP`] where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where the packet goes (or the third hop).
    pub first: u16,
    /// Who gets the second chance (or the fourth hop).
    pub second: u16,
}

/// No backend stands here.
pub const NO_HOP: u16 = u16::MAX;

/// Two hops of all rows: one element of its map, because the kernel rounds elements up to 8 bytes and
/// a row is 4.
pub type TableRows = [Row; ROWS];

/// A backend and the way to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// MAC of the next hop on the way. Meaningless while `interface` is 0.
    pub next_hop_mac: [u8; 6],
    /// MAC of the outgoing interface.
    pub own_mac: [u8; 6],
    /// Index of the outgoing interface; 0 while the next hop is not resolved.
    pub interface: u32,
    /// Outer source address.
    pub source: [u8; 4],
    /// The backend's address.
    pub address: [u8; 4],
    /// Sum of the outer IPv4 header's 16-bit words, without TOS and total length.
    pub header_sum: u32,
    /// Slot of the backend's counter.
    pub counter_slot: u16,
    /// Largest outer packet that fits the way, in bytes.
    pub mtu: u16,
}

/// Packets and bytes (of the received IP packets' frames).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes from the Ethernet header on, as received.
    pub bytes: u64,
}

/// A table's counters, one for each reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReasonCounters {
    /// Indexed by reason.
    pub by_reason: [Counter; MAX_REASONS],
}

const _: () = {
    assert!(size_of::<Config>() == 24);
    assert!(size_of::<BindSlot>() == 32);
    assert!(size_of::<PrefixEntry>() == 8);
    assert!(size_of::<Segment>() == 16);
    assert!(size_of::<TableInfo>() == 64);
    assert!(size_of::<Row>() == 4);
    assert!(size_of::<Backend>() == 32);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<ReasonCounters>() == 16 * MAX_REASONS);
};

/// Types without padding, of which every byte may be shown and any bytes are valid.
///
/// # Safety
/// Only for types of which the above is true.
pub unsafe trait Plain: Copy + 'static {
    /// The value's bytes, as the kernel sees them.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the type has no padding, by the trait's contract.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value that these bytes are, if they are as many as it has.
    #[must_use]
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == size_of::<Self>()).then(|| {
            // SAFETY: so many bytes are there, and any are a valid value, by the trait's contract.
            unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
        })
    }
}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: numbers and arrays of numbers; the sizes asserted above leave no padding.
            unsafe impl Plain for $type {}
        )*
    };
}

plain!(
    u32,
    Config,
    BindSlot,
    PrefixEntry,
    Segment,
    TableInfo,
    TableRows,
    Row,
    Backend,
    Counter,
    ReasonCounters,
);
