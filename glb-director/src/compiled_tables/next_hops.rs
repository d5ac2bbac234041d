//! The ways to the backends: entered, followed, and taken over from who knew them before.

use std::{collections::HashMap, net::IpAddr};

use glb_common::{
    abi::{Backend, Ipv6Endpoints},
    encap::EgressLink,
    flow::{Address as _, V6},
};
use glb_host::next_hop::{NextHop, Snapshot};

use super::{Image, Options};

impl Image {
    /// Enters the ways to the backends; says which entries changed.
    pub fn resolve(&mut self, next_hops: &Snapshot, options: &Options) -> Vec<usize> {
        let mut changed = Vec::new();
        for index in 0..self.owners.len() {
            let before = (self.backends[index], self.ipv6_ways.get(index).copied());
            // Known once, a way is kept until the kernel names a better one: a neighbour that is
            // only being asked for again is still there.
            if let Some(Ok(hop)) = next_hops.get(&self.owners[index].address) {
                self.enter(index, hop, options);
            }
            if before != (self.backends[index], self.ipv6_ways.get(index).copied()) {
                changed.push(index);
            }
        }
        changed
    }

    /// Enters one way. Without a source address no packet can be sent: the entry then stays as it is.
    pub(super) fn enter(&mut self, index: usize, hop: &NextHop, options: &Options) {
        let fits = |mtu: u32| mtu.try_into().unwrap_or(u16::MAX);
        let way = EgressLink {
            next_hop_mac: hop.mac,
            own_mac: hop.own_mac,
            interface: hop.interface,
            mtu: fits(hop.mtu),
            link_mtu: fits(hop.link_mtu),
        };
        let counter_slot = self.backends[index].counter_slot;
        match self.owners[index].address {
            IpAddr::V4(address) => {
                let source = options.outer_source.or(match hop.source {
                    Some(IpAddr::V4(source)) => Some(source),
                    _ => None,
                });
                if let Some(source) = source {
                    self.backends[index] =
                        way.to_v4(source.octets(), address.octets(), counter_slot);
                }
            }
            IpAddr::V6(address) => {
                let source = options.outer_source_ipv6.or(match hop.source {
                    Some(IpAddr::V6(source)) => Some(source),
                    _ => None,
                });
                if let (Some(source), Some(beside)) = (source, self.ipv6_ways.get_mut(index)) {
                    self.backends[index] = way.to_v6(counter_slot);
                    *beside = Ipv6Endpoints {
                        source: V6::new(source.octets()).words(),
                        address: V6::new(address.octets()).words(),
                    };
                }
            }
        }
    }

    /// Takes over the ways to backends that `running` knows and this image does not: a neighbour that
    /// is only being asked for again is still there.
    pub fn inherit_ways(&mut self, running: &Self) {
        let known: HashMap<IpAddr, usize> = running
            .owners
            .iter()
            .enumerate()
            .filter(|(index, _)| running.backends[*index].is_resolved())
            .map(|(index, owner)| (owner.address, index))
            .collect();
        for (index, owner) in self.owners.iter().enumerate() {
            if !self.backends[index].is_resolved()
                && let Some(before) = known.get(&owner.address)
            {
                let counter_slot = self.backends[index].counter_slot;
                self.backends[index] = Backend { counter_slot, ..running.backends[*before] };
                if let Some(beside) = running.ipv6_ways.get(*before) {
                    self.ipv6_ways[index] = *beside;
                }
            }
        }
    }

    /// Takes over the way that a predecessor knew to a backend, from its map's entry.
    pub fn inherit_entry(&mut self, index: usize, found: Backend, beside: Option<Ipv6Endpoints>) {
        let Some(backend) = self.backends.get_mut(index) else { return };
        if backend.is_resolved()
            || !found.is_resolved()
            || (found.address, found.counter_slot) != (backend.address, backend.counter_slot)
        {
            return;
        }
        *backend = found;
        if let (Some(entry), Some(beside)) = (self.ipv6_ways.get_mut(index), beside) {
            *entry = beside;
        }
    }
}

#[cfg(test)]
mod tests {
    use glb_host::next_hop::Unresolved;

    use super::*;
    use crate::compiled_tables::{CounterSlots, Owner};

    struct Slots(u32);

    impl CounterSlots for Slots {
        fn table(&self, _name: &str) -> u32 {
            self.0
        }

        fn backend(&self, _owner: &Owner) -> u32 {
            self.0
        }
    }

    #[test]
    fn a_way_once_known_outlives_a_reload_and_a_lost_answer() {
        let text = "[[tables]]\nname = \"t\"\nhash_key = \"00112233445566778899aabbccddeeff\"\n\
                    seed = \"00112233445566778899aabbccddeeff\"\n\
                    binds = [{ ip = \"1.1.1.1\", proto = \"tcp\", port = 80 }]\n\
                    backends = [{ ip = \"10.0.0.1\", state = \"active\", healthy = true }]\n";
        let path = std::path::Path::new("test");
        let tables =
            glb_table::parse_bytes(path, glb_table::Format::Toml, text.as_bytes()).unwrap();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let hop = NextHop {
            interface: 7,
            own_mac: [1; 6],
            mac: [2; 6],
            source: Some("10.0.0.9".parse().unwrap()),
            mtu: 1500,
            link_mtu: 1500,
        };
        let lost = Unresolved::NoAnswer { interface: 7, address };
        let options = Options::default();
        let known = Snapshot::from([(address, Ok(hop))]);
        let unknown = Snapshot::from([(address, Err(lost))]);
        let mut running = Image::new(&tables, &Slots(5), &known, &options).unwrap();
        assert!(running.resolve(&unknown, &options).is_empty());
        assert_eq!(running.backends[0].macs().0 as u16, 0x0202);
        let mut next = Image::new(&tables, &Slots(6), &unknown, &options).unwrap();
        assert!(!next.backends[0].is_resolved());
        next.inherit_ways(&running);
        assert_eq!(next.backends[0], Backend { counter_slot: 6, ..running.backends[0] });
    }
}
