//! What the backend's machine knows, by its maps and its kernel.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::LpmTrie, programs::XdpContext};
use glb_common::{
    hash::Address,
    map_value::array,
    parse::Flow,
    second_chance::{
        Ack, Hop, Host, Owner,
        layout::{FEW, Known, Settings},
    },
};

use crate::{lpm_key::Words, map_value::Direct, socket_lookup};

// What belongs to a generation; sizes are set by user space when it loads the program.

/// Displacements of the perfect hash.
const DISPLACEMENTS: Direct<u32, { array::DISPLACEMENTS }> = Direct::new();
/// Its elements: VIPs, own addresses, directors and fellow backends with the ways to them, which user
/// space follows.
const KNOWN: Direct<Known, { array::KNOWN }> = Direct::new();
/// Networks of directors, where there are many.
#[map]
static DIRECTORS_V4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// The same for IPv6.
#[map]
static DIRECTORS_V6: LpmTrie<[u8; 16], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

/// This machine.
pub(crate) struct ThisHost<'a> {
    pub(crate) ctx: &'a XdpContext,
}

#[inline(always)]
fn has(flag: u64) -> bool {
    setting!(flags) & flag != 0
}

/// What is known of an address.
#[inline(always)]
fn known<A: Address>(address: &A) -> Option<&'static Known> {
    let hash = Known::hash(setting!(seed), address);
    let bucket = Known::bucket(hash, setting!(displacement_mask));
    let place = Known::place(hash, *DISPLACEMENTS.at(bucket), setting!(known_mask));
    // Of an element only the way is ever changed: the one that is not in force, and then, by one store,
    // which is.
    let known = KNOWN.at(place);
    known.is_of(address).then_some(known)
}

/// The number of a VIP's counters.
#[inline(always)]
pub(crate) fn vip<A: Address>(address: &A) -> Option<u32> {
    let [high, low] = address.words();
    if A::FAMILY == 4 {
        for i in 0..FEW {
            if setting!(vips_v4[i][0]) == low {
                return Some(setting!(vips_v4[i][1]) as u32);
            }
        }
    } else if has(Settings::VIPS_V6) {
        for i in 0..FEW {
            if setting!(vips_v6[i][1]) == low && setting!(vips_v6[i][0]) == high {
                return Some(setting!(vips_v6[i][2]) as u32);
            }
        }
    }
    let known = known(address)?;
    (known.roles & Known::VIP != 0).then_some(known.counters)
}

/// Whether an address is in a director's network.
#[inline(always)]
fn in_directors_net<A: Address>(address: &A) -> bool {
    let [high, low] = address.words();
    if A::FAMILY == 4 {
        if !has(Settings::NETS_V4) {
            return false;
        }
        if has(Settings::MANY_NETS) {
            return DIRECTORS_V4.get(Words::<2>::new().of_ipv4(low as u32)).is_some();
        }
        (0..FEW).any(|i| low & setting!(nets_v4[i][1]) == setting!(nets_v4[i][0]))
    } else {
        if !has(Settings::NETS_V6) {
            return false;
        }
        if has(Settings::MANY_NETS) {
            return DIRECTORS_V6.get(Words::<5>::new().of_ipv6([high, low])).is_some();
        }
        (0..FEW).any(|i| {
            low & setting!(nets_v6[i][3]) == setting!(nets_v6[i][1])
                && high & setting!(nets_v6[i][2]) == setting!(nets_v6[i][0])
        })
    }
}

impl Host for ThisHost<'_> {
    #[inline(always)]
    fn gives_second_chance(&self) -> bool {
        has(Settings::SECOND_CHANCE)
    }

    #[inline(always)]
    fn passes_strangers(&self) -> bool {
        has(Settings::PASS_STRANGERS)
    }

    #[inline(always)]
    fn is_own<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        let few = if A::FAMILY == 4 {
            (0..FEW).any(|i| setting!(own_v4[i]) == low)
        } else {
            has(Settings::OWN_V6)
                && (0..FEW).any(|i| setting!(own_v6[i][1]) == low && setting!(own_v6[i][0]) == high)
        };
        if few {
            return true;
        }
        known(address).is_some_and(|known| known.roles & Known::OWN != 0)
    }

    #[inline(always)]
    fn may_send<A: Address>(&self, source: &A) -> bool {
        let [high, low] = source.words();
        let few = if A::FAMILY == 4 {
            (0..FEW).any(|i| setting!(senders_v4[i]) == low)
        } else {
            has(Settings::SENDERS_V6)
                && (0..FEW).any(|i| {
                    setting!(senders_v6[i][1]) == low && setting!(senders_v6[i][0]) == high
                })
        };
        if few {
            return true;
        }
        known(source).is_some_and(|known| known.roles & Known::SENDER != 0)
            || in_directors_net(source)
    }

    #[inline(always)]
    fn vip<A: Address>(&self, address: &A) -> Option<u32> {
        vip(address)
    }

    #[inline(always)]
    fn owner<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> Owner {
        socket_lookup::owner(self.ctx, flow, ack)
    }

    #[inline(always)]
    fn hop<A: Address>(&self, address: &A) -> Hop {
        match known(address) {
            Some(known) if known.roles & Known::OWN != 0 => Hop::Own,
            Some(known) if known.roles & Known::PEER != 0 => Hop::Peer(*known.way()),
            _ => Hop::Unknown,
        }
    }
}
