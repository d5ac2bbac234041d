//! The structs that the backend's program shares with user space.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{abi::Counter, flow::Address, reason::MAX_REDIRECT_REASONS};

/// The next hop towards a fellow backend: MAC addresses, interface and VLAN tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PeerNextHop {
    /// Destination and source MAC address of the Ethernet header, as native words with the bytes as
    /// they lie on the wire.
    pub macs: [u32; 3],
    /// Index of the outgoing interface; 0 while the next hop is unresolved. For a VLAN it is the
    /// interface below.
    pub interface: u32,
    /// The VLAN tag of sent packets as a native word with the bytes as they lie on the wire; 0 keeps
    /// the tags of the received packet.
    pub tag: u32,
}

impl PeerNextHop {
    /// A next hop without a VLAN tag: out of `interface`, from `own_mac` to `mac`.
    #[must_use]
    pub fn new(mac: [u8; 6], own_mac: [u8; 6], interface: u32) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h, i, j, k, l] = own_mac;
        let macs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        Self { macs, interface, ..Self::default() }
    }
}

/// An address with its roles: a slot of the [`crate::perfect_hash`] of all configured addresses. An
/// address that is not in the table has no role.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct AddressEntry {
    /// [`Address::words`].
    pub address: [u64; 2],
    /// The address's family (4 or 6) and the roles below; 0 for an empty slot.
    pub roles: u32,
    /// The index of a VIP's counters.
    pub counters: u32,
    /// The next hop towards a peer, twice. [`Self::SECOND_NEXT_HOP`] tells which one is in use. User space
    /// writes a new next hop to the other one and then flips the bit, so that the program never
    /// reads a half-written one.
    pub next_hops: [PeerNextHop; 2],
}

impl AddressEntry {
    /// An address of this machine, at which the tunnel may end.
    pub const LOCAL: u32 = 1 << 8;
    /// A VIP that this machine serves.
    pub const VIP: u32 = 1 << 9;
    /// A machine that may send into the tunnel.
    pub const SENDER: u32 = 1 << 10;
    /// A fellow backend, which may be a hop.
    pub const PEER: u32 = 1 << 11;
    /// The second next hop is in use.
    pub const SECOND_NEXT_HOP: u32 = 1 << 12;

    /// The next hop that is in use.
    #[inline(always)]
    #[must_use]
    pub const fn next_hop(&self) -> &PeerNextHop {
        let [first, second] = &self.next_hops;
        if self.roles & Self::SECOND_NEXT_HOP == 0 { first } else { second }
    }

    /// Hashes an address.
    #[inline(always)]
    #[must_use]
    pub fn hash<A: Address>(seed: u64, address: &A) -> u64 {
        // Odd constants with well-mixed bits (the golden ratio, and one of SplitMix64's).
        let [high, low] = address.words();
        let mut hash = (seed ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if A::FAMILY != 4 {
            hash ^= (hash >> 32) ^ high;
            hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        hash ^ (hash >> 32)
    }

    /// True if this is the entry of `address`.
    #[inline(always)]
    #[must_use]
    pub fn is_of<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        let family = u32::from(A::FAMILY);
        // The high word of an IPv4 address is always 0.
        self.address[1] == low
            && (A::FAMILY == 4 || self.address[0] == high)
            && self.roles & 0xff == family
    }
}

/// Marks an unused slot for an IPv4 address. No address equals it, because addresses fill half a word.
pub const NO_V4: u64 = u64::MAX;

/// Number of addresses and networks of each kind that [`RedirectConfig`] holds. Maps hold the others.
pub const INLINE_SLOTS: usize = 4;

/// The constants of one generation of the backend's program, in its read-only data.
///
/// Comparing a few addresses takes less time than one look-up. Addresses are [`Address::words`], IPv4 the
/// second word only. Unused IPv4 slots hold [`NO_V4`]. Unused IPv6 slots repeat the first address, and a
/// flag tells whether there is any.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct RedirectConfig {
    /// A combination of the flags below.
    pub flags: u64,
    /// Seed of the perfect hash of addresses.
    pub seed: u64,
    /// Number of displacements minus one. The number is a power of two.
    pub displacement_mask: u32,
    /// Number of address slots minus one. The number is a power of two.
    pub address_mask: u32,
    /// IPv4 addresses of this machine at which the tunnel may end.
    pub local_v4: [u64; INLINE_SLOTS],
    /// IPv6 addresses of this machine at which the tunnel may end.
    pub local_v6: [[u64; 2]; INLINE_SLOTS],
    /// IPv4 addresses of directors.
    pub senders_v4: [u64; INLINE_SLOTS],
    /// IPv6 addresses of directors.
    pub senders_v6: [[u64; 2]; INLINE_SLOTS],
    /// IPv4 VIPs with the indices of their counters.
    pub vips_v4: [[u64; 2]; INLINE_SLOTS],
    /// IPv6 VIPs with the indices of their counters.
    pub vips_v6: [[u64; 3]; INLINE_SLOTS],
    /// IPv4 networks of directors, each with its mask.
    pub nets_v4: [[u64; 2]; INLINE_SLOTS],
    /// IPv6 networks of directors: two words of address, two of mask.
    pub nets_v6: [[u64; 4]; INLINE_SLOTS],
    /// The largest MSS for IPv4 connections ([`crate::mss::Limits`]); 0 leaves it unchanged.
    pub mss_v4: u32,
    /// The largest MSS for IPv6 connections.
    pub mss_v6: u32,
}

impl RedirectConfig {
    /// Packets of other backends' connections are sent to the next hop.
    pub const SECOND_CHANCE: u64 = 1;
    /// Tunnel packets from unknown senders are left to the kernel.
    pub const PASS_UNKNOWN_SENDERS: u64 = 1 << 1;
    /// At least one IPv4 network of directors is configured.
    pub const NETS_V4: u64 = 1 << 2;
    /// At least one IPv6 network of directors is configured.
    pub const NETS_V6: u64 = 1 << 3;
    /// More networks are configured than fit here: the maps hold them all.
    pub const MANY_NETS: u64 = 1 << 4;
    /// This machine has IPv6 addresses at which the tunnel may end.
    pub const LOCAL_V6: u64 = 1 << 6;
    /// At least one IPv6 address of a director is configured.
    pub const SENDERS_V6: u64 = 1 << 8;
    /// At least one IPv6 VIP is configured.
    pub const VIPS_V6: u64 = 1 << 10;

    /// True if all of these flags are set.
    #[must_use]
    pub const fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Copies up to [`INLINE_SLOTS`] items into `slots` and fills the rest with `none`.
    pub fn fill_v4<T: Copy>(slots: &mut [T; INLINE_SLOTS], items: &[T], none: T) {
        for (index, slot) in slots.iter_mut().enumerate() {
            *slot = items.get(index).copied().unwrap_or(none);
        }
    }

    /// Copies up to [`INLINE_SLOTS`] items into `slots`, fills the rest with the first item, and sets the
    /// flag `some` if there is any item.
    pub fn fill<T: Copy>(flags: &mut u64, some: u64, slots: &mut [T; INLINE_SLOTS], items: &[T]) {
        if let Some(first) = items.first() {
            *flags |= some;
            for (index, slot) in slots.iter_mut().enumerate() {
                *slot = items.get(index).copied().unwrap_or(*first);
            }
        }
    }
}

/// An IPv4 address as the one word of [`RedirectConfig`].
#[must_use]
pub fn word_v4(address: [u8; 4]) -> u64 {
    crate::flow::V4::new(address).words()[1]
}

/// An IPv6 address as the two words of [`RedirectConfig`].
#[must_use]
pub fn words_v6(address: [u8; 16]) -> [u64; 2] {
    crate::flow::V6::new(address).words()
}

/// Number of sets of the backend's counters: one for packets of no VIP, and one for each VIP.
pub const REDIRECT_COUNTERS: u32 = 256;

/// A set of the backend's counters: one for each reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct RedirectCounters {
    /// Indexed by reason.
    pub by_reason: [Counter; MAX_REDIRECT_REASONS],
}

impl Default for RedirectCounters {
    fn default() -> Self {
        Self { by_reason: [Counter::default(); MAX_REDIRECT_REASONS] }
    }
}

const _: () = {
    assert!(size_of::<PeerNextHop>() == 20);
    assert!(size_of::<AddressEntry>() == 64);
    assert!(
        size_of::<RedirectConfig>() == 32 + INLINE_SLOTS * (8 + 16 + 8 + 16 + 16 + 24 + 16 + 32)
    );
    assert!(size_of::<RedirectCounters>() == 16 * MAX_REDIRECT_REASONS);
};
