//! The tables in force, with what was counted for them.

use std::{collections::HashMap, net::IpAddr};

use glb_common::{hash::HashFields, reason::Action};
use glb_host::next_hop::NextHop;
use glb_table::Table;
use serde::{Deserialize, Serialize};

use super::Observer;
use crate::counters::{Count, Report};

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableView {
    /// Its name.
    pub name: String,
    /// Hops of a row.
    pub hops: u8,
    /// What the flow hash is made of.
    pub hash_fields: Vec<String>,
    /// How many binds it has.
    pub binds: usize,
    /// How many backends it has.
    pub backends: usize,
    /// How many of them are healthy and take new connections.
    pub taking_new: usize,
    /// Digest of what must be equal on all directors of a fleet.
    pub membership_digest: String,
    /// Digest of states and health.
    pub order_digest: String,
    /// Packets sent to its backends.
    pub sent: Count,
    /// Packets dropped, whether or not their sender was told.
    pub dropped: Count,
}

/// A backend of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendView {
    /// Name of the table.
    pub table: String,
    /// Its address.
    pub address: IpAddr,
    /// Its state, as the table says.
    pub state: String,
    /// Whether the table says that it is healthy.
    pub healthy: bool,
    /// Its weight.
    pub weight: u16,
    /// Its zone; empty if it has none.
    pub zone: String,
    /// In how many of the 65,536 rows it is the first hop, the second, and so on.
    pub rows: Vec<u32>,
    /// The way to it, if there is one now.
    pub way: Option<Way>,
    /// Why there is none.
    pub no_way: Option<String>,
    /// What was sent to it as first hop.
    pub sent: Count,
}

/// The way to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The outgoing interface.
    pub interface: String,
    /// MAC of the next machine.
    pub mac: String,
    /// Source address that the kernel prefers.
    pub source: Option<IpAddr>,
    /// Largest IP packet that fits, in bytes.
    pub mtu: u32,
}

/// A bind of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindView {
    /// Name of the table.
    pub table: String,
    /// The address, or the addresses.
    pub prefix: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}

impl Observer {
    /// The tables in force; none before the first generation is.
    #[must_use]
    pub fn tables(&self, report: &Report) -> Vec<TableView> {
        let snapshot = self.snapshot();
        let Some(running) = &snapshot.in_force else { return Vec::new() };
        running.tables.tables.iter().map(|table| table_view(table, report)).collect()
    }

    /// The backends of the tables in force.
    #[must_use]
    pub fn backends(&self, report: &Report) -> Vec<BackendView> {
        let snapshot = self.snapshot();
        let Some(running) = &snapshot.in_force else { return Vec::new() };
        let ways = self.state.ways();
        let mut interfaces = HashMap::new();
        let mut sent: HashMap<(&str, IpAddr), Count> = HashMap::new();
        for backend in &report.backends {
            sent.insert((&backend.table, backend.address), backend.count);
        }
        let mut views = Vec::new();
        for (table, rows) in running.tables.tables.iter().zip(running.rows_by_hop()) {
            for (backend, rows) in table.backends.iter().zip(rows) {
                let (way, no_way) = match ways.as_ref().and_then(|w| w.get(&backend.address)) {
                    Some(Ok(hop)) => (Some(way(hop, &mut interfaces)), None),
                    Some(Err(why)) => (None, Some(why.to_string())),
                    None => (None, Some("not asked for yet".to_owned())),
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
                    way,
                    no_way,
                    sent: sent.copied().unwrap_or_default(),
                });
            }
        }
        views
    }

    /// The binds of the tables in force.
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

fn way(hop: &NextHop, interfaces: &mut HashMap<u32, String>) -> Way {
    let interface = interfaces
        .entry(hop.interface)
        .or_insert_with(|| {
            glb_host::next_hop::interface_name(hop.interface)
                .unwrap_or_else(|| format!("interface {}", hop.interface))
        })
        .clone();
    let mac: Vec<String> = hop.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    Way { interface, mac: mac.join(":"), source: hop.source, mtu: hop.mtu }
}

/// In how many rows each backend of `table` stands as first hop, second, and so on.
#[must_use]
pub(crate) fn count_rows(table: &Table) -> Vec<Vec<u32>> {
    let rows = table.rows();
    let mut counts = vec![vec![0; rows.hops]; table.backends.len()];
    for row in rows.iter() {
        for (hop, backend) in row.iter().enumerate() {
            if let Some(count) = counts.get_mut(usize::from(*backend)) {
                count[hop] += 1;
            }
        }
    }
    counts
}
