//! All addresses that the program knows, as a perfect hash (hash and displace): a look-up costs the
//! same for two addresses and for ten thousand.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use glb_common::{
    hash::{Address, V4, V6},
    second_chance::layout::Known,
};

/// The contents of the program's two arrays, and what it needs to know about them.
#[derive(Clone, Debug)]
pub(crate) struct PerfectHash {
    pub(crate) seed: u64,
    pub(crate) displacements: Vec<u32>,
    pub(crate) elements: Vec<Known>,
    /// Where each address stands.
    pub(crate) places: BTreeMap<IpAddr, usize>,
}

fn hash(seed: u64, address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => Known::hash(seed, &V4::new(address.octets())),
        IpAddr::V6(address) => Known::hash(seed, &V6::new(address.octets())),
    }
}

fn named(address: IpAddr, known: Known) -> Known {
    let (address, family) = match address {
        IpAddr::V4(address) => (V4::new(address.octets()).words(), V4::FAMILY),
        IpAddr::V6(address) => (V6::new(address.octets()).words(), V6::FAMILY),
    };
    Known { address, roles: known.roles | u32::from(family), ..known }
}

impl PerfectHash {
    /// Finds displacements under which no two addresses share an element. Half of the elements stay
    /// empty, so that the search is short.
    pub(crate) fn new(known: &BTreeMap<IpAddr, Known>) -> Self {
        let elements = (known.len() * 2).next_power_of_two();
        // Some 4 addresses to a displacement.
        let buckets = (known.len() / 4).next_power_of_two();
        (0u64..)
            .find_map(|seed| Self::try_seed(seed, known, buckets, elements))
            // 2^64 seeds do not all fail; knowing nobody is the answer to the impossible.
            .unwrap_or(Self {
                seed: 0,
                displacements: vec![0],
                elements: vec![Known::default()],
                places: BTreeMap::new(),
            })
    }

    fn try_seed(
        seed: u64,
        known: &BTreeMap<IpAddr, Known>,
        buckets: usize,
        room: usize,
    ) -> Option<Self> {
        const TRIES: u32 = 1 << 16;
        let mask = room as u32 - 1;
        let mut by_bucket: Vec<Vec<(u64, IpAddr, Known)>> = vec![Vec::new(); buckets];
        for (address, known) in known {
            let hash = hash(seed, *address);
            let bucket = Known::bucket(hash, buckets as u32 - 1) as usize;
            by_bucket[bucket].push((hash, *address, *known));
        }
        // The fullest first, while there is most room.
        let mut order: Vec<usize> = (0..buckets).collect();
        order.sort_by_key(|index| Reverse(by_bucket[*index].len()));
        let mut found = Self {
            seed,
            displacements: vec![0; buckets],
            elements: vec![Known::default(); room],
            places: BTreeMap::new(),
        };
        for index in order {
            let members = &by_bucket[index];
            // Odd numbers only: the lowest bit is set anyway.
            let (displacement, places) =
                (0..TRIES).map(|try_| try_ << 1).find_map(|displacement| {
                    let mut places: Vec<usize> = Vec::with_capacity(members.len());
                    for (hash, ..) in members {
                        let place = Known::place(*hash, displacement, mask) as usize;
                        if found.elements[place].roles != 0 || places.contains(&place) {
                            return None;
                        }
                        places.push(place);
                    }
                    Some((displacement, places))
                })?;
            found.displacements[index] = displacement;
            for ((_, address, known), place) in members.iter().zip(places) {
                found.elements[place] = named(*address, *known);
                found.places.insert(*address, place);
            }
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn find<A: Address>(table: &PerfectHash, address: &A) -> Option<Known> {
        let hash = Known::hash(table.seed, address);
        let mask = table.displacements.len() as u32 - 1;
        let displacement = table.displacements[Known::bucket(hash, mask) as usize];
        let place = Known::place(hash, displacement, table.elements.len() as u32 - 1);
        Some(table.elements[place as usize]).filter(|known| known.is_of(address))
    }

    fn find_ip(table: &PerfectHash, address: IpAddr) -> Option<Known> {
        match address {
            IpAddr::V4(address) => find(table, &V4::new(address.octets())),
            IpAddr::V6(address) => find(table, &V6::new(address.octets())),
        }
    }

    #[test]
    fn every_address_is_found_and_no_other() {
        for count in [0u32, 1, 2, 3, 10, 1_000, 10_000] {
            let v4 = (0..count).map(|i| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + i)));
            // Neighbours, and addresses that look like the IPv4 ones in one word.
            let v6 = (0..count).flat_map(|i| {
                let low = u128::from((0x0a00_0000 + i).swap_bytes().to_be()) << 32;
                [Ipv6Addr::from((0xfd00 << 112) + u128::from(i)), Ipv6Addr::from(low)]
            });
            let known: BTreeMap<IpAddr, Known> = v4
                .chain(v6.map(IpAddr::V6))
                .enumerate()
                .map(|(i, address)| {
                    (address, Known { roles: Known::VIP, counters: i as u32, ..Known::default() })
                })
                .collect();
            let table = PerfectHash::new(&known);
            for (address, expected) in &known {
                let found = find_ip(&table, *address).unwrap();
                assert_eq!(found.counters, expected.counters, "{address}");
                assert_eq!(table.elements[table.places[address]], found);
            }
            for other in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::"] {
                assert_eq!(find_ip(&table, other.parse().unwrap()), None, "{other}");
            }
        }
    }
}
