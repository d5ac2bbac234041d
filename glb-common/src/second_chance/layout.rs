//! The structs that the backend's program and user space share.

use crate::{
    hash::Address,
    layout::{Counter, Plain},
    reason::MAX_REDIRECT_REASONS,
};

/// The way to a fellow backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The Ethernet header's two addresses, as they lie on the wire, in native words: the MAC of
    /// the next machine on the way, then that of the outgoing interface.
    pub macs: [u32; 3],
    /// Index of the outgoing interface; 0 while the way is not known.
    pub interface: u32,
}

impl Peer {
    /// The way out by `interface`, from `own_mac` to `mac`.
    #[must_use]
    pub fn new(mac: [u8; 6], own_mac: [u8; 6], interface: u32) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [g, h, i, j, k, l] = own_mac;
        let macs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
        Self { macs, interface }
    }
}

/// Addresses that [`Settings`] holds of each kind; where there are more, a map is asked as well.
pub const FEW: usize = 8;

/// What is constant for one generation of the backend's program; its read-only data.
///
/// A handful of addresses is compared in less time than one map look-up takes. Addresses are
/// [`Address::words`] (IPv4: the second word alone); slots that are not used repeat the first, and
/// the `MANY_*` and `NO_*` flags say whether a kind is elsewhere or not at all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The flags below.
    pub flags: u64,
    /// Where the tunnel may end.
    pub own_v4: [u64; FEW],
    /// Where the tunnel may end.
    pub own_v6: [[u64; 2]; FEW],
    /// The addresses that we serve.
    pub vips_v4: [u64; FEW],
    /// The addresses that we serve.
    pub vips_v6: [[u64; 2]; FEW],
    /// Directors: addresses and the masks that belong to them.
    pub directors_v4: [[u64; 2]; FEW],
    /// Directors: addresses, then masks.
    pub directors_v6: [[u64; 4]; FEW],
    /// The largest MSS that a client may be told over IPv4 ([`crate::mss::Limits`]); 0 leaves it.
    pub mss_v4: u32,
    /// The same over IPv6.
    pub mss_v6: u32,
}

impl Settings {
    /// Packets that are not ours are sent on.
    pub const SECOND_CHANCE: u64 = 1;
    /// Strangers' packets are left to the kernel.
    pub const PASS_STRANGERS: u64 = 1 << 1;
    /// There are more VIPs than fit: the map holds them all.
    pub const MANY_VIPS: u64 = 1 << 2;
    /// There are more directors than fit: the map holds them all.
    pub const MANY_DIRECTORS: u64 = 1 << 3;
    /// No own IPv4 address.
    pub const NO_OWN_V4: u64 = 1 << 4;
    /// No own IPv6 address.
    pub const NO_OWN_V6: u64 = 1 << 5;
    /// No IPv4 VIP here.
    pub const NO_VIPS_V4: u64 = 1 << 6;
    /// No IPv6 VIP here.
    pub const NO_VIPS_V6: u64 = 1 << 7;
    /// No IPv4 director here.
    pub const NO_DIRECTORS_V4: u64 = 1 << 8;
    /// No IPv6 director here.
    pub const NO_DIRECTORS_V6: u64 = 1 << 9;

    /// Whether all of these flags are set.
    #[must_use]
    pub const fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Puts up to [`FEW`] items into `slots`, the first again where there are fewer, and sets
    /// `none` where there are none. Items beyond are left out: the caller has set a `MANY_*` flag.
    pub fn fill<T: Copy>(flags: &mut u64, none: u64, slots: &mut [T; FEW], items: &[T]) {
        match items.first() {
            None => *flags |= none,
            Some(first) => {
                for (index, slot) in slots.iter_mut().enumerate() {
                    *slot = items.get(index).copied().unwrap_or(*first);
                }
            }
        }
    }
}

/// The one word of an IPv4 address in [`Settings`].
#[must_use]
pub fn word_v4(address: [u8; 4]) -> u64 {
    crate::hash::V4::new(address).words()[1]
}

/// The two words of an IPv6 address in [`Settings`].
#[must_use]
pub fn words_v6(address: [u8; 16]) -> [u64; 2] {
    crate::hash::V6::new(address).words()
}

/// The backend's counters, one for each reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    assert!(size_of::<Peer>() == 16);
    assert!(size_of::<Settings>() == 16 + FEW * (8 + 16 + 8 + 16 + 16 + 32));
    assert!(size_of::<RedirectCounters>() == 16 * MAX_REDIRECT_REASONS);
};

// SAFETY: numbers and arrays of numbers; the sizes asserted above leave no padding.
unsafe impl Plain for Peer {}
// SAFETY: as above.
unsafe impl Plain for Settings {}
// SAFETY: as above.
unsafe impl Plain for RedirectCounters {}
