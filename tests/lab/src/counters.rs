//! The daemons' counters, as their `counters -o json` prints them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::plan::Node;

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What `glb-director counters` tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DirectorCounters {
    /// Of packets that belong to no table, by reason.
    pub reasons: BTreeMap<String, Count>,
    /// Of each table.
    pub tables: Vec<TableCounters>,
    /// Of each table's backends, as first hop.
    pub backends: Vec<BackendCounters>,
}

/// One table's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct TableCounters {
    /// The table's name.
    pub name: String,
    /// By reason.
    pub reasons: BTreeMap<String, Count>,
}

/// One backend's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendCounters {
    /// Name of the table.
    pub table: String,
    /// The backend's address.
    pub address: String,
    /// What was sent to it as first hop.
    #[serde(flatten)]
    pub count: Count,
}

impl DirectorCounters {
    /// Packets sent to this backend as first hop.
    #[must_use]
    pub fn sent_to(&self, node: Node) -> u64 {
        let addresses = [node.v4().to_string(), node.v6().to_string()];
        let backends = self.backends.iter().filter(|backend| addresses.contains(&backend.address));
        backends.map(|backend| backend.count.packets).sum()
    }

    /// Packets counted under a reason, in all tables and outside them.
    #[must_use]
    pub fn packets(&self, reason: &str) -> u64 {
        let of = |reasons: &BTreeMap<String, Count>| {
            reasons.get(reason).map_or(0, |count| count.packets)
        };
        of(&self.reasons) + self.tables.iter().map(|table| of(&table.reasons)).sum::<u64>()
    }
}

/// What `glb-redirect counters` tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RedirectCounters {
    /// By reason.
    pub reasons: BTreeMap<String, Count>,
    /// By VIP and reason.
    pub vips: BTreeMap<std::net::IpAddr, BTreeMap<String, Count>>,
    /// SYN-ACKs whose MSS was lowered.
    pub clamped_syn_acks: u64,
}

impl RedirectCounters {
    /// Packets that were handed to this backend's own stack.
    #[must_use]
    pub fn taken(&self) -> u64 {
        let taken = self.reasons.iter().filter(|(reason, _)| reason.starts_with("taken"));
        taken.map(|(_, count)| count.packets).sum()
    }

    /// Packets that were given their second chance elsewhere.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.reasons.get("forwarded").map_or(0, |count| count.packets)
    }
}
