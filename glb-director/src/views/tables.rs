//! Views of the active tables, with their counters and next hops.

use std::{collections::HashMap, net::IpAddr};

use glb_common::{hash::HashFields, reason::Action};
use glb_host::next_hop::NextHop;
use glb_table::Table;
use serde::{Deserialize, Serialize};

use super::Observer;
use crate::{
    counters::{Count, Report},
    probe_results::ProbeResult,
};

/// An active table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableView {
    /// Its name.
    pub name: String,
    /// Hops per row.
    pub hops: u8,
    /// The packet fields in the flow hash.
    pub hash_fields: Vec<String>,
    /// The number of binds.
    pub binds: usize,
    /// The number of backends.
    pub backends: usize,
    /// The number of backends that are active or filling, and healthy.
    pub taking_new: usize,
    /// Digest of everything that must be equal on all directors of a fleet.
    pub membership_digest: String,
    /// Digest of the backends' states and health.
    pub order_digest: String,
    /// Packets sent to its backends.
    pub sent: Count,
    /// Packets dropped, with or without an ICMP error to their sender.
    pub dropped: Count,
}

/// A backend of an active table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendView {
    /// Name of the table.
    pub table: String,
    /// Its address.
    pub address: IpAddr,
    /// Its state in the table: `active`, `filling`, `draining` or `inactive`.
    pub state: String,
    /// Its health in the table.
    pub healthy: bool,
    /// Its weight.
    pub weight: u16,
    /// Its zone; empty if it has none.
    pub zone: String,
    /// The number of rows, of 65,536, in which it is hop 1, 2, ….
    pub rows: Vec<u32>,
    /// Its next hop, if the kernel knows one now.
    pub next_hop: Option<NextHopView>,
    /// Why the kernel knows no next hop.
    pub next_hop_error: Option<String>,
    /// The prober's results for it.
    #[serde(default)]
    pub probes: Vec<ProbeResult>,
    /// Packets sent to it as first hop.
    pub sent: Count,
}

/// The next hop to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopView {
    /// The outgoing interface.
    pub interface: String,
    /// The next hop's MAC address.
    pub mac: String,
    /// The source address that the kernel prefers on this route.
    pub source: Option<IpAddr>,
    /// The largest IP packet that fits the route, in bytes.
    pub mtu: u32,
}

/// A bind of an active table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindView {
    /// Name of the table.
    pub table: String,
    /// The address or prefix.
    pub prefix: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}

impl Observer {
    /// Views of the active tables; none before the first activation.
    #[must_use]
    pub fn tables(&self, report: &Report) -> Vec<TableView> {
        let snapshot = self.snapshot();
        let Some(running) = &snapshot.in_force else { return Vec::new() };
        running.tables.tables.iter().map(|table| table_view(table, report)).collect()
    }

    /// Views of the active tables' backends.
    #[must_use]
    pub fn backends(&self, report: &Report) -> Vec<BackendView> {
        let snapshot = self.snapshot();
        let Some(running) = &snapshot.in_force else { return Vec::new() };
        let (next_hops, probes) = (self.status.next_hops(), self.status.probes());
        let mut interfaces = HashMap::new();
        let mut sent: HashMap<(&str, IpAddr), Count> = HashMap::new();
        for backend in &report.backends {
            sent.insert((&backend.table, backend.address), backend.count);
        }
        let mut views = Vec::new();
        for (table, rows) in running.tables.tables.iter().zip(running.rows_by_hop()) {
            for (backend, rows) in table.backends.iter().zip(rows) {
                let found = next_hops.as_ref().and_then(|all| all.get(&backend.address));
                let (next_hop, next_hop_error) = match found {
                    Some(Ok(hop)) => (Some(next_hop_view(hop, &mut interfaces)), None),
                    Some(Err(why)) => (None, Some(why.to_string())),
                    None => (None, Some("the kernel has not been asked yet".to_owned())),
                };
                let sent = sent.get(&(table.name.as_str(), backend.address));
                views.push(BackendView {
                    table: table.name.clone(),
                    address: backend.address,
                    state: backend.state.name().to_owned(),
                    healthy: backend.healthy,
                    weight: backend.weight,
                    zone: backend.zone.clone(),
                    rows: rows.clone(),
                    next_hop,
                    next_hop_error,
                    probes: probes.of(&table.name, backend.address).cloned().collect(),
                    sent: sent.copied().unwrap_or_default(),
                });
            }
        }
        views
    }

    /// Views of the active tables' binds.
    #[must_use]
    pub fn binds(&self) -> Vec<BindView> {
        let snapshot = self.snapshot();
        let tables = snapshot.in_force.iter().flat_map(|running| &running.tables.tables);
        tables
            .flat_map(|table| {
                table.binds.iter().map(|bind| BindView {
                    table: table.name.clone(),
                    prefix: bind.prefix.to_string(),
                    proto: bind.proto.name().to_owned(),
                    first_port: *bind.ports.start(),
                    last_port: *bind.ports.end(),
                })
            })
            .collect()
    }
}

fn table_view(table: &Table, report: &Report) -> TableView {
    let digest = table.digest();
    let (mut sent, mut dropped) = (Count::default(), Count::default());
    for counted in report.tables.iter().filter(|counted| counted.name == table.name) {
        sent += counted.sum(|action| matches!(action, Action::Send));
        dropped += counted.sum(|action| matches!(action, Action::Drop | Action::Answer));
    }
    TableView {
        name: table.name.clone(),
        hops: table.hops,
        hash_fields: field_names(table.hash_fields),
        binds: table.binds.len(),
        backends: table.backends.len(),
        taking_new: table.backends.iter().filter(|b| b.takes_new()).count(),
        membership_digest: glb_table::hex(&digest.membership),
        order_digest: glb_table::hex(&digest.order),
        sent,
        dropped,
    }
}

fn field_names(fields: HashFields) -> Vec<String> {
    let all = [
        ("src_addr", HashFields::SRC_ADDR),
        ("dst_addr", HashFields::DST_ADDR),
        ("src_port", HashFields::SRC_PORT),
        ("dst_port", HashFields::DST_PORT),
    ];
    let used = all.into_iter().filter(|(_, field)| fields.bits() & field.bits() != 0);
    used.map(|(name, _)| name.to_owned()).collect()
}

fn next_hop_view(hop: &NextHop, interfaces: &mut HashMap<u32, String>) -> NextHopView {
    let interface = interfaces
        .entry(hop.interface)
        .or_insert_with(|| {
            glb_host::next_hop::interface_name(hop.interface)
                .unwrap_or_else(|| format!("interface {}", hop.interface))
        })
        .clone();
    let mac: Vec<String> = hop.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    NextHopView { interface, mac: mac.join(":"), source: hop.source, mtu: hop.mtu }
}
