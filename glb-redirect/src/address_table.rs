//! The addresses that the program knows, in a perfect hash.

use std::{collections::BTreeMap, net::IpAddr};

use glb_common::{
    flow::{Address, V4, V6},
    second_chance::abi::AddressEntry,
};
use glb_host::perfect_hash::PerfectHash;

/// The contents of the program's two arrays, with the seed that goes with them.
#[derive(Clone, Debug)]
pub(crate) struct AddressTable {
    pub(crate) seed: u64,
    pub(crate) displacements: Vec<u32>,
    pub(crate) elements: Vec<AddressEntry>,
    /// The index of each address in `elements`.
    pub(crate) places: BTreeMap<IpAddr, usize>,
}

fn hash(seed: u64, address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => AddressEntry::hash(seed, &V4::new(address.octets())),
        IpAddr::V6(address) => AddressEntry::hash(seed, &V6::new(address.octets())),
    }
}

fn named(address: IpAddr, known: AddressEntry) -> AddressEntry {
    let (address, family) = match address {
        IpAddr::V4(address) => (V4::new(address.octets()).words(), V4::FAMILY),
        IpAddr::V6(address) => (V6::new(address.octets()).words(), V6::FAMILY),
    };
    AddressEntry { address, roles: known.roles | u32::from(family), ..known }
}

impl AddressTable {
    /// Places the addresses so that no two share an element.
    pub(crate) fn new(known: &BTreeMap<IpAddr, AddressEntry>) -> Self {
        let addresses: Vec<IpAddr> = known.keys().copied().collect();
        let placed = PerfectHash::build(&addresses, |seed, address| hash(seed, *address));
        let entries = known.iter().map(|(address, entry)| named(*address, *entry));
        Self {
            elements: placed.arrange(entries),
            places: addresses.into_iter().zip(placed.slots).collect(),
            seed: placed.seed,
            displacements: placed.displacements,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn find<A: Address>(table: &AddressTable, address: &A) -> Option<AddressEntry> {
        let hash = AddressEntry::hash(table.seed, address);
        let mask = table.displacements.len() as u32 - 1;
        let displacement =
            table.displacements[glb_common::perfect_hash::bucket(hash, mask) as usize];
        let place =
            glb_common::perfect_hash::slot(hash, displacement, table.elements.len() as u32 - 1);
        Some(table.elements[place as usize]).filter(|known| known.is_of(address))
    }

    fn find_ip(table: &AddressTable, address: IpAddr) -> Option<AddressEntry> {
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
            let known: BTreeMap<IpAddr, AddressEntry> = v4
                .chain(v6.map(IpAddr::V6))
                .enumerate()
                .map(|(i, address)| {
                    (
                        address,
                        AddressEntry {
                            roles: AddressEntry::VIP,
                            counters: i as u32,
                            ..AddressEntry::default()
                        },
                    )
                })
                .collect();
            let table = AddressTable::new(&known);
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
