//! A director's table as an operator writes it.
//!
//! The daemons read tables by their own crate; this one only writes them, so that what a test
//! feeds a daemon does not depend on the daemon's idea of it.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::{Family, Node, Plan, vip};

/// A backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections before all others will.
    Filling,
    /// Takes new connections.
    Active,
    /// Keeps what it has, takes nothing new.
    Draining,
    /// Not in the table's rows.
    Inactive,
}

/// A file with one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableFile {
    /// What a health checker is to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    healthchecks: Option<Checks>,
    tables: [Table; 1],
}

/// A page that must come, and a tunnel that must answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Checks {
    http: u16,
    gue: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Table {
    name: String,
    hash_key: String,
    seed: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash_fields: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alt_hash_fields: Option<Vec<String>>,
    binds: Vec<Bind>,
    backends: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bind {
    ip: IpAddr,
    proto: String,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Backend {
    ip: IpAddr,
    state: State,
    healthy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
}

impl TableFile {
    /// The table `git`: port 80 of both VIPs, on every backend of the plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self::serving(plan, &[80])
    }

    /// The table `git`: these ports of both VIPs, on every backend of the plan.
    #[must_use]
    pub fn serving(plan: &Plan, ports: &[u16]) -> Self {
        let bind = |&port: &u16| {
            let bind = move |family| Bind { ip: vip(family), proto: "tcp".to_owned(), port };
            [Family::V4, Family::V6].map(bind)
        };
        let backend = |node: Node| Backend {
            ip: node.address(plan.tunnel),
            state: State::Active,
            healthy: true,
            weight: None,
        };
        Self {
            healthchecks: plan.health.then_some(Checks { http: 80, gue: 19523 }),
            tables: [Table {
                name: "git".to_owned(),
                hash_key: "5b1f8a1e6f0c43d2a7e94c0d1b2a3f48".to_owned(),
                seed: "d17b6f20c39e4855b0a1427e8cf3690b".to_owned(),
                hops: None,
                hash_fields: None,
                alt_hash_fields: None,
                binds: ports.iter().flat_map(bind).collect(),
                backends: plan.backend_nodes().map(backend).collect(),
            }],
        }
    }

    /// Reads what [`TableFile::toml`] wrote.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("not a table of the lab")
    }

    /// The backends' addresses with their states and health.
    pub(crate) fn backends(&self) -> impl Iterator<Item = (IpAddr, State, bool)> {
        let backends = self.tables.iter().flat_map(|table| &table.backends);
        backends.map(|backend| (backend.ip, backend.state, backend.healthy))
    }

    /// Changes a backend's state.
    pub fn set_state(&mut self, node: Node, state: State) {
        self.change(node, |backend| backend.state = state);
    }

    /// Says whether a backend is healthy.
    pub fn set_healthy(&mut self, node: Node, healthy: bool) {
        self.change(node, |backend| backend.healthy = healthy);
    }

    /// Changes a backend's weight; none is that of a file that says nothing.
    pub fn set_weight(&mut self, node: Node, weight: Option<u16>) {
        self.change(node, |backend| backend.weight = weight);
    }

    /// How many backends a row names.
    pub fn set_hops(&mut self, hops: u8) {
        self.tables[0].hops = Some(hops);
    }

    /// What of a flow is hashed, and what was hashed before.
    pub fn set_hash_fields(&mut self, fields: &[&str], before: Option<&[&str]>) {
        let owned = |fields: &[&str]| fields.iter().map(|&field| field.to_owned()).collect();
        self.tables[0].hash_fields = Some(owned(fields));
        self.tables[0].alt_hash_fields = before.map(owned);
    }

    /// The backends' states and weights, in the order of the plan.
    pub fn shares(&self) -> impl Iterator<Item = (IpAddr, State, u16)> {
        let backends = self.tables.iter().flat_map(|table| &table.backends);
        backends.map(|backend| (backend.ip, backend.state, backend.weight.unwrap_or(1)))
    }

    fn change(&mut self, node: Node, change: impl Fn(&mut Backend)) {
        for backend in self.tables.iter_mut().flat_map(|table| &mut table.backends) {
            if backend.ip == node.v4() || backend.ip == node.v6() {
                change(backend);
            }
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    /// When it cannot be written as TOML.
    pub fn toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}

/// Replaces a file at once: whoever reads it sees the old text or the new one.
pub(crate) fn replace_file(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
