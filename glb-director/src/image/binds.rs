//! The configured binds, told apart: one address with one port goes into a perfect hash, the rest
//! into prefixes with ranges of ports.

use std::{collections::HashMap, net::IpAddr};

use glb_common::{
    bind::{bucket, hash, segment_key, slot, tail},
    hash::{Address as _, V4, V6},
    layout::{BindSlot, Segment},
    wire::protocol,
};
use glb_table::TableSet;
use ipnet::IpNet;

/// The binds of a table set.
#[derive(Debug, Default)]
pub(super) struct Binds {
    /// Address words and tail, with the table.
    pub(super) exact: Vec<BindSlot>,
    /// Prefixes with one range each.
    pub(super) ranges: Vec<(IpNet, Segment)>,
}

/// Tells the binds apart, and adds one for echo requests to each address. Where several tables bind
/// an address, the first gets them.
pub(super) fn collect(tables: &TableSet) -> Binds {
    let mut exact: HashMap<([u64; 2], u32), u32> = HashMap::new();
    let mut ranges = Vec::new();
    for (table, binds) in tables.tables.iter().map(|table| &table.binds).enumerate() {
        let table = table as u32;
        for bind in binds {
            let echo = match bind.prefix {
                IpNet::V4(_) => protocol::ICMP,
                IpNet::V6(_) => protocol::ICMPV6,
            };
            let (first, last) = (*bind.ports.start(), *bind.ports.end());
            let is_one = bind.prefix.prefix_len() == bind.prefix.max_prefix_len();
            for (protocol, first, last) in [(bind.proto.number(), first, last), (echo, 0, 0)] {
                if is_one && first == last {
                    let key = exact_key(bind.prefix.addr(), protocol, first);
                    exact.entry(key).or_insert(table);
                } else {
                    let segment = Segment {
                        first: segment_key(protocol, first),
                        last: segment_key(protocol, last),
                        table,
                        padding: 0,
                    };
                    ranges.push((bind.prefix, segment));
                }
            }
        }
    }
    let mut exact: Vec<BindSlot> = exact
        .into_iter()
        .map(|((address, tail), table)| BindSlot { address, tail, table, padding: 0 })
        .collect();
    // The image must depend on the file alone, never on a map's order.
    exact.sort_by_key(|slot| (slot.address, slot.tail));
    Binds { exact, ranges }
}

fn exact_key(address: IpAddr, protocol: u8, port: u16) -> ([u64; 2], u32) {
    match address {
        IpAddr::V4(address) => {
            (V4::new(address.octets()).words(), tail(V4::FAMILY, protocol, port))
        }
        IpAddr::V6(address) => {
            (V6::new(address.octets()).words(), tail(V6::FAMILY, protocol, port))
        }
    }
}

/// A perfect hash of binds, as [`glb_common::bind::find`] reads it.
#[derive(Debug)]
pub(super) struct PerfectHash {
    pub(super) seed: u64,
    pub(super) displacements: Vec<u32>,
    pub(super) slots: Vec<BindSlot>,
}

/// Finds displacements under which no two binds share a slot. Half of the slots stay empty, so that
/// the search is short.
pub(super) fn perfect_hash(binds: &[BindSlot]) -> PerfectHash {
    let slots = (binds.len() * 2).next_power_of_two();
    // Some 4 binds to a displacement.
    let buckets = (binds.len() / 4).next_power_of_two();
    (0u64..)
        .find_map(|seed| try_seed(seed, binds, buckets, slots))
        // 2^64 seeds do not all fail; an empty table is the answer to the impossible.
        .unwrap_or(PerfectHash {
            seed: 0,
            displacements: vec![0],
            slots: vec![BindSlot::default()],
        })
}

fn try_seed(seed: u64, binds: &[BindSlot], buckets: usize, slots: usize) -> Option<PerfectHash> {
    const TRIES: u32 = 1 << 16;
    let (displacement_mask, bind_mask) = (buckets as u32 - 1, slots as u32 - 1);
    let mut by_bucket: Vec<Vec<(u64, &BindSlot)>> = vec![Vec::new(); buckets];
    for bind in binds {
        let hash = hash(seed, bind.address, bind.tail);
        by_bucket[bucket(hash, displacement_mask) as usize].push((hash, bind));
    }
    // The fullest first, while there is most room.
    let mut order: Vec<usize> = (0..buckets).collect();
    order.sort_by_key(|index| std::cmp::Reverse(by_bucket[*index].len()));
    let mut displacements = vec![0; buckets];
    let mut table = vec![BindSlot::default(); slots];
    for index in order {
        let members = &by_bucket[index];
        if members.is_empty() {
            break;
        }
        let (displacement, places) = (0..TRIES).find_map(|displacement| {
            let mut places: Vec<usize> = Vec::with_capacity(members.len());
            for (hash, _) in members {
                // Odd numbers only: the lowest bit is set anyway.
                let place = slot(*hash, displacement << 1, bind_mask) as usize;
                if table[place].tail != 0 || places.contains(&place) {
                    return None;
                }
                places.push(place);
            }
            Some((displacement << 1, places))
        })?;
        displacements[index] = displacement;
        for ((_, bind), place) in members.iter().zip(places) {
            table[place] = **bind;
        }
    }
    Some(PerfectHash { seed, displacements, slots: table })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(perfect: &PerfectHash, address: [u64; 2], tail: u32) -> Option<u32> {
        let hash = hash(perfect.seed, address, tail);
        let displacement =
            perfect.displacements[bucket(hash, perfect.displacements.len() as u32 - 1) as usize];
        let found =
            perfect.slots[slot(hash, displacement, perfect.slots.len() as u32 - 1) as usize];
        (found.address == address && found.tail == tail).then_some(found.table)
    }

    #[test]
    fn no_binds_at_all_is_an_answer_too() {
        let perfect = perfect_hash(&[]);
        assert_eq!(find(&perfect, [0, 1], tail(4, 6, 80)), None);
    }

    #[test]
    fn ten_thousand_neighbouring_binds() {
        let binds: Vec<BindSlot> = (0..10_000u32)
            .map(|i| BindSlot {
                address: V4::new((0x0a00_0000 + i / 4).to_be_bytes()).words(),
                tail: tail(4, 6, 80 + (i % 4) as u16),
                table: i,
                padding: 0,
            })
            .collect();
        let perfect = perfect_hash(&binds);
        for bind in &binds {
            assert_eq!(find(&perfect, bind.address, bind.tail), Some(bind.table));
        }
    }

    proptest! {
        #[test]
        fn finds_every_bind_and_no_other(
            keys in prop::collection::hash_set((any::<[u64; 2]>(), 1u32..), 0..300),
            other in (any::<[u64; 2]>(), 1u32..),
        ) {
            let binds: Vec<BindSlot> = keys
                .iter()
                .enumerate()
                .map(|(table, (address, tail))| BindSlot {
                    address: *address, tail: *tail, table: table as u32, padding: 0,
                })
                .collect();
            let perfect = perfect_hash(&binds);
            for bind in &binds {
                prop_assert_eq!(find(&perfect, bind.address, bind.tail), Some(bind.table));
            }
            if !keys.contains(&other) {
                prop_assert_eq!(find(&perfect, other.0, other.1), None);
            }
        }
    }
}
