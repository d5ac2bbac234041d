//! A director's table as an operator writes it.
//!
//! The daemons parse tables with the table crate. This module only writes them, so that a test's
//! input does not depend on the daemon's parser.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::{Family, Node, Plan, vip};

/// A backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections, promoted to first hop wherever it is second.
    Filling,
    /// Takes new connections.
    Active,
    /// Keeps its connections and takes no new ones.
    Draining,
    /// In no row.
    Inactive,
}

/// A table file with one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableFile {
    /// The health checks of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    healthchecks: Option<Checks>,
    tables: [Table; 1],
}

/// An HTTP page check and a tunnel check.
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

    /// The table `git`: the given ports of both VIPs, on every backend of the plan.
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

    /// Parses the output of [`TableFile::toml`].
    pub(crate) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("not a table of the lab")
    }

    /// Returns the backends' addresses with states and health.
    pub(crate) fn backends(&self) -> impl Iterator<Item = (IpAddr, State, bool)> {
        let backends = self.tables.iter().flat_map(|table| &table.backends);
        backends.map(|backend| (backend.ip, backend.state, backend.healthy))
    }

    /// Changes a backend's state.
    pub fn set_state(&mut self, node: Node, state: State) {
        self.change(node, |backend| backend.state = state);
    }

    /// Sets a backend's health.
    pub fn set_healthy(&mut self, node: Node, healthy: bool) {
        self.change(node, |backend| backend.healthy = healthy);
    }

    /// Sets a backend's weight; none removes the key from the file.
    pub fn set_weight(&mut self, node: Node, weight: Option<u16>) {
        self.change(node, |backend| backend.weight = weight);
    }

    /// Sets the number of hops in a row.
    pub fn set_hops(&mut self, hops: u8) {
        self.tables[0].hops = Some(hops);
    }

    /// Sets the hash fields and the alternative hash fields.
    pub fn set_hash_fields(&mut self, fields: &[&str], before: Option<&[&str]>) {
        let owned = |fields: &[&str]| fields.iter().map(|&field| field.to_owned()).collect();
        self.tables[0].hash_fields = Some(owned(fields));
        self.tables[0].alt_hash_fields = before.map(owned);
    }

    /// Returns the backends' states and weights, in the order of the plan.
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

    /// Returns the text of the file.
    ///
    /// # Errors
    /// When the table cannot be written as TOML.
    pub fn toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}

/// Replaces a file atomically: a reader sees the old text or the new one.
pub(crate) fn replace_file(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
