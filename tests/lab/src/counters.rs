//! The daemons' counters, parsed from `counters -o json`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::plan::Node;

/// A packet count and a byte count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The output of `glb-director counters`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DirectorCounters {
    /// Packets that belong to no table, by reason.
    pub reasons: BTreeMap<String, Count>,
    /// The counters of each table.
    pub tables: Vec<TableCounters>,
    /// The counters of each table's backends, as first hop.
    pub backends: Vec<BackendCounters>,
}

/// One table's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct TableCounters {
    /// The table's name.
    pub name: String,
    /// Packets by reason.
    pub reasons: BTreeMap<String, Count>,
}

/// One backend's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendCounters {
    /// The table's name.
    pub table: String,
    /// The backend's address.
    pub address: String,
    /// Packets sent to the backend as first hop.
    #[serde(flatten)]
    pub count: Count,
}

impl DirectorCounters {
    /// Returns the packets sent to this backend as first hop.
    #[must_use]
    pub fn sent_to(&self, node: Node) -> u64 {
        let addresses = [node.v4().to_string(), node.v6().to_string()];
        let backends = self.backends.iter().filter(|backend| addresses.contains(&backend.address));
        backends.map(|backend| backend.count.packets).sum()
    }

    /// Returns the packets counted under a reason, inside and outside all tables.
    #[must_use]
    pub fn packets(&self, reason: &str) -> u64 {
        let of = |reasons: &BTreeMap<String, Count>| {
            reasons.get(reason).map_or(0, |count| count.packets)
        };
        of(&self.reasons) + self.tables.iter().map(|table| of(&table.reasons)).sum::<u64>()
    }
}

/// The output of `glb-redirect counters`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RedirectCounters {
    /// Packets by reason.
    pub reasons: BTreeMap<String, Count>,
    /// Packets by VIP and reason.
    pub vips: BTreeMap<std::net::IpAddr, BTreeMap<String, Count>>,
    /// The number of SYN-ACKs whose MSS was lowered.
    pub clamped_syn_acks: u64,
}

impl RedirectCounters {
    /// Returns the packets delivered to this backend's own stack.
    #[must_use]
    pub fn taken(&self) -> u64 {
        let taken = self.reasons.iter().filter(|(reason, _)| reason.starts_with("taken"));
        taken.map(|(_, count)| count.packets).sum()
    }

    /// Returns the packets forwarded to the next hop (second chance).
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.reasons.get("forwarded").map_or(0, |count| count.packets)
    }
}
