//! The structs that the backend's program and user space share.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{abi::Counter, flow::Address, reason::MAX_REDIRECT_REASONS};

/// The way to a fellow backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PeerNextHop {
    /// The Ethernet header's two addresses, as they lie on the wire, in native words: the MAC of
    /// the next machine on the way, then that of the outgoing interface.
    pub macs: [u32; 3],
    /// Index of the outgoing interface; 0 while the way is not known. Never a VLAN's: its packets
    /// leave by the interface below it.
    pub interface: u32,
    /// The VLAN tag that packets leave with, as it lies on the wire, in a native word; 0 for none
    /// of our own.
    pub tag: u32,
}

impl PeerNextHop {
    /// The way out by `interface`, from `own_mac` to `mac`, without a tag.
    #[must_use]
    pub fn new(mac: [u8; 6], own_mac: [u8; 6], interface: u32) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h, i, j, k, l] = own_mac;
        let macs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        Self { macs, interface, ..Self::default() }
    }
}

/// What this machine knows of one address: an element of a perfect hash (hash and displace) of all
/// addresses that it knows. One that is not there is a stranger's.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct AddressEntry {
    /// [`Address::words`].
    pub address: [u64; 2],
    /// The address's family (4 or 6) and the roles below; 0 for an empty element.
    pub roles: u32,
    /// Of a VIP: which element of the counters is its own.
    pub counters: u32,
    /// Of a peer: the way there, twice. The one that [`Self::SECOND_NEXT_HOP`] says is in force; the other
    /// is where a new one is entered, so that nobody reads half of each.
    pub next_hops: [PeerNextHop; 2],
}

impl AddressEntry {
    /// The tunnel may end here.
    pub const LOCAL: u32 = 1 << 8;
    /// We serve it.
    pub const VIP: u32 = 1 << 9;
    /// It may send into the tunnel.
    pub const SENDER: u32 = 1 << 10;
    /// It may be sent to.
    pub const PEER: u32 = 1 << 11;
    /// Its second way is in force.
    pub const SECOND_NEXT_HOP: u32 = 1 << 12;

    /// The way that is in force.
    #[inline(always)]
    #[must_use]
    pub const fn next_hop(&self) -> &PeerNextHop {
        let [first, second] = &self.next_hops;
        if self.roles & Self::SECOND_NEXT_HOP == 0 { first } else { second }
    }

    /// The hash of an address.
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

    /// Whether this is what is known of `address`.
    #[inline(always)]
    #[must_use]
    pub fn is_of<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        let family = u32::from(A::FAMILY);
        // The high word of an IPv4 address is the same for all of them.
        self.address[1] == low
            && (A::FAMILY == 4 || self.address[0] == high)
            && self.roles & 0xff == family
    }
}

/// In the place of an IPv4 address: equal to none, since those fill half of the word.
pub const NO_V4: u64 = u64::MAX;

/// Addresses and networks of each kind that [`RedirectConfig`] holds; the others are in maps.
pub const INLINE_SLOTS: usize = 4;

/// What is constant for one generation of the backend's program; its read-only data.
///
/// A handful of addresses is compared in less time than one look-up takes. Addresses are
/// [`Address::words`] (IPv4: the second word alone). Places that are not used hold [`NO_V4`], which is
/// no IPv4 address; those of IPv6, where any words are an address, repeat the first, and the flags say
/// whether there are any at all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct RedirectConfig {
    /// The flags below.
    pub flags: u64,
    /// Seed of the perfect hash of known addresses.
    pub seed: u64,
    /// Number of displacements less one; their number is a power of two.
    pub displacement_mask: u32,
    /// Number of elements less one; their number is a power of two.
    pub address_mask: u32,
    /// Where the tunnel may end.
    pub local_v4: [u64; INLINE_SLOTS],
    /// Where the tunnel may end.
    pub local_v6: [[u64; 2]; INLINE_SLOTS],
    /// Directors.
    pub senders_v4: [u64; INLINE_SLOTS],
    /// Directors.
    pub senders_v6: [[u64; 2]; INLINE_SLOTS],
    /// VIPs, and the numbers of their counters.
    pub vips_v4: [[u64; 2]; INLINE_SLOTS],
    /// VIPs, and the numbers of their counters.
    pub vips_v6: [[u64; 3]; INLINE_SLOTS],
    /// Networks of directors, and the masks that belong to them.
    pub nets_v4: [[u64; 2]; INLINE_SLOTS],
    /// Networks of directors: two words of address, two of mask.
    pub nets_v6: [[u64; 4]; INLINE_SLOTS],
    /// The largest MSS that a client may be told over IPv4 ([`crate::mss::Limits`]); 0 leaves it.
    pub mss_v4: u32,
    /// The same over IPv6.
    pub mss_v6: u32,
}

impl RedirectConfig {
    /// Packets that are not ours are sent on.
    pub const SECOND_CHANCE: u64 = 1;
    /// Strangers' packets are left to the kernel.
    pub const PASS_UNKNOWN_SENDERS: u64 = 1 << 1;
    /// There are IPv4 networks of directors, not single addresses alone.
    pub const NETS_V4: u64 = 1 << 2;
    /// There are IPv6 networks of directors.
    pub const NETS_V6: u64 = 1 << 3;
    /// There are more networks than fit here: the maps hold them all.
    pub const MANY_NETS: u64 = 1 << 4;
    /// There are own IPv6 addresses.
    pub const LOCAL_V6: u64 = 1 << 6;
    /// There are IPv6 directors.
    pub const SENDERS_V6: u64 = 1 << 8;
    /// There are IPv6 VIPs.
    pub const VIPS_V6: u64 = 1 << 10;

    /// Whether all of these flags are set.
    #[must_use]
    pub const fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Puts up to [`INLINE_SLOTS`] items into `slots`, and `none` where there are fewer. Items beyond are left
    /// out: maps hold them.
    pub fn fill_v4<T: Copy>(slots: &mut [T; INLINE_SLOTS], items: &[T], none: T) {
        for (index, slot) in slots.iter_mut().enumerate() {
            *slot = items.get(index).copied().unwrap_or(none);
        }
    }

    /// Puts up to [`INLINE_SLOTS`] items into `slots`, the first again where there are fewer, and sets
    /// `some` where there are any. Items beyond are left out: maps hold them.
    pub fn fill<T: Copy>(flags: &mut u64, some: u64, slots: &mut [T; INLINE_SLOTS], items: &[T]) {
        if let Some(first) = items.first() {
            *flags |= some;
            for (index, slot) in slots.iter_mut().enumerate() {
                *slot = items.get(index).copied().unwrap_or(*first);
            }
        }
    }
}

/// The one word of an IPv4 address in [`RedirectConfig`].
#[must_use]
pub fn word_v4(address: [u8; 4]) -> u64 {
    crate::flow::V4::new(address).words()[1]
}

/// The two words of an IPv6 address in [`RedirectConfig`].
#[must_use]
pub fn words_v6(address: [u8; 16]) -> [u64; 2] {
    crate::flow::V6::new(address).words()
}

/// Sets of the backend's counters: the first for packets that are for no VIP, and one for each VIP.
pub const REDIRECT_COUNTERS: u32 = 256;

/// A set of the backend's counters, one for each reason.
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
