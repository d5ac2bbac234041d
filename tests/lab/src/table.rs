//! A director's table as an operator writes it.
//!
//! The daemons read tables by their own crate; this one only writes them, so that what a test
//! feeds a daemon does not depend on the daemon's idea of it.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::plan::{Family, Node, Plan, vip};

/// A backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct TableFile {
    tables: [Table; 1],
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    name: &'static str,
    hash_key: &'static str,
    seed: &'static str,
    binds: Vec<Bind>,
    backends: Vec<Backend>,
}

#[derive(Clone, Debug, Serialize)]
struct Bind {
    ip: IpAddr,
    proto: &'static str,
    port: u16,
}

#[derive(Clone, Debug, Serialize)]
struct Backend {
    ip: IpAddr,
    state: State,
    healthy: bool,
}

impl TableFile {
    /// The table `git`: port 80 of both VIPs, on every backend of the plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let bind = |family| Bind { ip: vip(family), proto: "tcp", port: 80 };
        let backend = |node: Node| Backend {
            ip: node.address(plan.tunnel),
            state: State::Active,
            healthy: true,
        };
        Self {
            tables: [Table {
                name: "git",
                hash_key: "5b1f8a1e6f0c43d2a7e94c0d1b2a3f48",
                seed: "d17b6f20c39e4855b0a1427e8cf3690b",
                binds: [Family::V4, Family::V6].map(bind).to_vec(),
                backends: plan.backend_nodes().map(backend).collect(),
            }],
        }
    }

    /// Changes a backend's state.
    pub fn set_state(&mut self, node: Node, state: State) {
        for backend in self.tables.iter_mut().flat_map(|table| &mut table.backends) {
            if backend.ip == node.v4() || backend.ip == node.v6() {
                backend.state = state;
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
