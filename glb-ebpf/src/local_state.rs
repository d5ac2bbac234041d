//! Answers the decision's questions about this machine from maps and the kernel.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::LpmTrie, programs::XdpContext};
use glb_common::{
    flow::{Address, Flow},
    map_value::array,
    perfect_hash,
    second_chance::{
        Ack, Hop, Host, SocketMatch,
        abi::{AddressEntry, INLINE_SLOTS, RedirectConfig},
    },
};

use crate::{lpm_key::LpmKey, map_value::MapValueArray, socket_lookup};

// Maps of one generation. User space sets their sizes when it loads the program.

/// Displacements of the perfect hash of addresses.
const DISPLACEMENTS: MapValueArray<u32, { array::DISPLACEMENTS }> = MapValueArray::new();
/// Slots of the perfect hash: VIPs, local addresses, directors, and fellow backends with their next hops,
/// which user space keeps up to date.
const ADDRESSES: MapValueArray<AddressEntry, { array::ADDRESSES }> = MapValueArray::new();
/// IPv4 networks of directors, if there are too many for [`RedirectConfig`].
#[map]
static DIRECTORS_V4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);
/// IPv6 networks of directors.
#[map]
static DIRECTORS_V6: LpmTrie<[u8; 16], u8> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

/// This machine as a [`Host`].
pub(crate) struct ThisHost<'a> {
    pub(crate) ctx: &'a XdpContext,
}

#[inline(always)]
fn has(flag: u64) -> bool {
    config!(flags) & flag != 0
}

/// Finds the entry of an address.
#[inline(always)]
fn known<A: Address>(address: &A) -> Option<&'static AddressEntry> {
    let hash = AddressEntry::hash(config!(seed), address);
    let bucket = perfect_hash::bucket(hash, config!(displacement_mask));
    let place = perfect_hash::slot(hash, *DISPLACEMENTS.at(bucket), config!(address_mask));
    // User space changes only the unused next hop of an entry and then, by one store, which one is used.
    let known = ADDRESSES.at(place);
    known.is_of(address).then_some(known)
}

/// The index of a VIP's counters.
#[inline(always)]
pub(crate) fn vip<A: Address>(address: &A) -> Option<u32> {
    let [high, low] = address.words();
    if A::FAMILY == 4 {
        for i in 0..INLINE_SLOTS {
            if config!(vips_v4[i][0]) == low {
                return Some(config!(vips_v4[i][1]) as u32);
            }
        }
    } else if has(RedirectConfig::VIPS_V6) {
        for i in 0..INLINE_SLOTS {
            if config!(vips_v6[i][1]) == low && config!(vips_v6[i][0]) == high {
                return Some(config!(vips_v6[i][2]) as u32);
            }
        }
    }
    let known = known(address)?;
    (known.roles & AddressEntry::VIP != 0).then_some(known.counters)
}

/// True if an address is in a network of directors.
#[inline(always)]
fn in_directors_net<A: Address>(address: &A) -> bool {
    let [high, low] = address.words();
    if A::FAMILY == 4 {
        if !has(RedirectConfig::NETS_V4) {
            return false;
        }
        if has(RedirectConfig::MANY_NETS) {
            return DIRECTORS_V4.get(LpmKey::<2>::new().of_ipv4(low as u32)).is_some();
        }
        (0..INLINE_SLOTS).any(|i| low & config!(nets_v4[i][1]) == config!(nets_v4[i][0]))
    } else {
        if !has(RedirectConfig::NETS_V6) {
            return false;
        }
        if has(RedirectConfig::MANY_NETS) {
            return DIRECTORS_V6.get(LpmKey::<5>::new().of_ipv6([high, low])).is_some();
        }
        (0..INLINE_SLOTS).any(|i| {
            low & config!(nets_v6[i][3]) == config!(nets_v6[i][1])
                && high & config!(nets_v6[i][2]) == config!(nets_v6[i][0])
        })
    }
}

impl Host for ThisHost<'_> {
    #[inline(always)]
    fn second_chance_enabled(&self) -> bool {
        has(RedirectConfig::SECOND_CHANCE)
    }

    #[inline(always)]
    fn passes_unknown_senders(&self) -> bool {
        has(RedirectConfig::PASS_UNKNOWN_SENDERS)
    }

    #[inline(always)]
    fn is_local<A: Address>(&self, address: &A) -> bool {
        let [high, low] = address.words();
        let few = if A::FAMILY == 4 {
            (0..INLINE_SLOTS).any(|i| config!(local_v4[i]) == low)
        } else {
            has(RedirectConfig::LOCAL_V6)
                && (0..INLINE_SLOTS)
                    .any(|i| config!(local_v6[i][1]) == low && config!(local_v6[i][0]) == high)
        };
        if few {
            return true;
        }
        known(address).is_some_and(|known| known.roles & AddressEntry::LOCAL != 0)
    }

    #[inline(always)]
    fn may_send<A: Address>(&self, source: &A) -> bool {
        let [high, low] = source.words();
        let few = if A::FAMILY == 4 {
            (0..INLINE_SLOTS).any(|i| config!(senders_v4[i]) == low)
        } else {
            has(RedirectConfig::SENDERS_V6)
                && (0..INLINE_SLOTS)
                    .any(|i| config!(senders_v6[i][1]) == low && config!(senders_v6[i][0]) == high)
        };
        if few {
            return true;
        }
        known(source).is_some_and(|known| known.roles & AddressEntry::SENDER != 0)
            || in_directors_net(source)
    }

    #[inline(always)]
    fn vip<A: Address>(&self, address: &A) -> Option<u32> {
        vip(address)
    }

    #[inline(always)]
    fn find_socket<A: Address>(&self, flow: &Flow<A>, ack: Option<Ack>) -> SocketMatch {
        socket_lookup::find(self.ctx, flow, ack)
    }

    #[inline(always)]
    fn resolve_hop<A: Address>(&self, address: &A) -> Hop {
        match known(address) {
            Some(known) if known.roles & AddressEntry::LOCAL != 0 => Hop::Local,
            Some(known) if known.roles & AddressEntry::PEER != 0 => Hop::Peer(*known.next_hop()),
            _ => Hop::Unknown,
        }
    }
}
