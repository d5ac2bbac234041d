//! Next hops of the backends: entered from the kernel's answers, or inherited from the generation
//! that ran before.

use std::{collections::HashMap, net::IpAddr};

use glb_common::{
    abi::{Backend, Ipv6Endpoints},
    encap::EgressLink,
    flow::{Address as _, V6},
};
use glb_host::next_hop::{NextHop, Snapshot};

use super::{CompiledTables, ForwardingOptions};

impl CompiledTables {
    /// Enters the next hops that the kernel knows, and returns the indices of the backends that
    /// changed. A backend whose neighbour the kernel is resolving again keeps its last next hop.
    pub fn resolve(&mut self, next_hops: &Snapshot, options: &ForwardingOptions) -> Vec<usize> {
        let mut changed = Vec::new();
        for index in 0..self.backend_ids.len() {
            let before = (self.backends[index], self.ipv6_ways.get(index).copied());
            if let Some(Ok(hop)) = next_hops.get(&self.backend_ids[index].address) {
                self.set_next_hop(index, hop, options);
            }
            if before != (self.backends[index], self.ipv6_ways.get(index).copied()) {
                changed.push(index);
            }
        }
        changed
    }

    /// Enters one next hop. The entry stays as it is if there is no outer source address to send from.
    pub(super) fn set_next_hop(
        &mut self,
        index: usize,
        hop: &NextHop,
        options: &ForwardingOptions,
    ) {
        let fits = |mtu: u32| mtu.try_into().unwrap_or(u16::MAX);
        let way = EgressLink {
            next_hop_mac: hop.mac,
            own_mac: hop.own_mac,
            interface: hop.interface,
            mtu: fits(hop.mtu),
            link_mtu: fits(hop.link_mtu),
        };
        let counter_slot = self.backends[index].counter_slot;
        match self.backend_ids[index].address {
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
                if let (Some(source), Some(outer_ipv6)) = (source, self.ipv6_ways.get_mut(index)) {
                    self.backends[index] = way.to_v6(counter_slot);
                    *outer_ipv6 = Ipv6Endpoints {
                        source: V6::new(source.octets()).words(),
                        address: V6::new(address.octets()).words(),
                    };
                }
            }
        }
    }

    /// Copies next hops from `running` for backends that have none here: a neighbour that the kernel
    /// is resolving again is still reachable.
    pub fn inherit_next_hops(&mut self, running: &Self) {
        let known: HashMap<IpAddr, usize> = running
            .backend_ids
            .iter()
            .enumerate()
            .filter(|(index, _)| running.backends[*index].is_resolved())
            .map(|(index, backend_id)| (backend_id.address, index))
            .collect();
        for (index, backend_id) in self.backend_ids.iter().enumerate() {
            if !self.backends[index].is_resolved()
                && let Some(before) = known.get(&backend_id.address)
            {
                let counter_slot = self.backends[index].counter_slot;
                self.backends[index] = Backend { counter_slot, ..running.backends[*before] };
                if let Some(outer_ipv6) = running.ipv6_ways.get(*before) {
                    self.ipv6_ways[index] = *outer_ipv6;
                }
            }
        }
    }

    /// Copies a backend's next hop from the map entry `found` that a former process pinned, if the
    /// backend has none here and the entry is for the same address.
    pub fn inherit_pinned_next_hop(
        &mut self,
        index: usize,
        found: Backend,
        outer_ipv6: Option<Ipv6Endpoints>,
    ) {
        let Some(backend) = self.backends.get_mut(index) else { return };
        if backend.is_resolved()
            || !found.is_resolved()
            || (found.address, found.counter_slot) != (backend.address, backend.counter_slot)
        {
            return;
        }
        *backend = found;
        if let (Some(entry), Some(outer_ipv6)) = (self.ipv6_ways.get_mut(index), outer_ipv6) {
            *entry = outer_ipv6;
        }
    }
}

#[cfg(test)]
mod tests {
    use glb_host::next_hop::Unresolved;

    use super::*;
    use crate::counters::{BackendId, CounterSlots};

    struct Slots(u32);

    impl CounterSlots for Slots {
        fn table(&self, _name: &str) -> u32 {
            self.0
        }

        fn backend(&self, _owner: &BackendId) -> u32 {
            self.0
        }
    }

    #[test]
    fn a_known_next_hop_survives_a_reload_and_a_failed_resolution() {
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
        let options = ForwardingOptions::default();
        let known = Snapshot::from([(address, Ok(hop))]);
        let unknown = Snapshot::from([(address, Err(lost))]);
        let mut running = CompiledTables::new(&tables, &Slots(5), &known, &options).unwrap();
        assert!(running.resolve(&unknown, &options).is_empty());
        assert_eq!(running.backends[0].macs().0 as u16, 0x0202);
        let mut next = CompiledTables::new(&tables, &Slots(6), &unknown, &options).unwrap();
        assert!(!next.backends[0].is_resolved());
        next.inherit_next_hops(&running);
        assert_eq!(next.backends[0], Backend { counter_slot: 6, ..running.backends[0] });
    }
}
