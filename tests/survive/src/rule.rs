//! The plan's safety rule, asked before each change. The suite uses the same code as `glb-director
//! table plan` and the directors.

use std::{net::IpAddr, path::Path, time::Instant};

use anyhow::{Context, Result};
use glb_lab::TableFile;
use glb_table::{
    BuiltTable, Format, HashFields, Key, Proto, RowCache, Rows, TableSet,
    flow_safety::{FlowHistory, RiskReport},
    lookup::{self, FlowQuery},
    parse_bytes,
};

use crate::accounting::Connection;

/// The flow history over all tables of a run.
pub(crate) struct PlanRule {
    memory: FlowHistory,
    builder: RowCache,
    in_force: Vec<BuiltTable>,
    last: Instant,
}

impl PlanRule {
    /// Creates a history in which a flow lives at most `flow_age` seconds.
    pub(crate) fn new(flow_age: u64) -> Self {
        Self {
            memory: FlowHistory::new(flow_age),
            builder: RowCache::default(),
            in_force: Vec::new(),
            last: Instant::now(),
        }
    }

    /// Returns the flows that a table would put at risk now.
    ///
    /// # Errors
    /// When the table is invalid.
    pub(crate) fn judge(&mut self, file: &TableFile) -> Result<RiskReport> {
        self.pass();
        let built = self.builder.build(&parsed(file)?);
        Ok(self.memory.assess(&built))
    }

    /// Records that a table is in force from now on.
    ///
    /// # Errors
    /// When the table is invalid.
    pub(crate) fn adopt(&mut self, file: &TableFile) -> Result<()> {
        self.pass();
        let built = self.builder.build(&parsed(file)?);
        self.memory.activate(&built);
        self.in_force = built;
        Ok(())
    }

    /// Records that a backend holds no flows.
    pub(crate) fn drained(&mut self, backend: IpAddr) {
        self.pass();
        self.memory.mark_drained(backend);
    }

    /// Passes whole seconds to the history and keeps the remainder for later.
    fn pass(&mut self) {
        let seconds = self.last.elapsed().as_secs();
        self.memory.advance(seconds);
        self.last += std::time::Duration::from_secs(seconds);
    }

    /// Returns the tables in force, with their rows.
    pub(crate) fn in_force(&self) -> Vec<BuiltTable> {
        self.in_force.clone()
    }
}

/// Returns the hops that a connection's packets carry with these tables if all backends are
/// healthy.
pub(crate) fn hops(built: &[BuiltTable], connection: &Connection) -> Vec<IpAddr> {
    let Some(built) = built.first() else { return Vec::new() };
    let table = &built.table;
    let question = FlowQuery {
        source: connection.client.ip(),
        source_port: Some(connection.client.port()),
        vip: connection.server.ip(),
        port: Some(connection.server.port()),
        proto: Proto::Tcp,
    };
    let row = |rows: &Rows, key: Key, fields: HashFields| -> Vec<IpAddr> {
        let (from, to) = (connection.client.port(), connection.server.port());
        let hash = lookup::hash(key, fields, &question, from, to);
        let row = rows.row((hash & 0xffff) as usize);
        row.iter()
            .filter_map(|index| table.backends.get(usize::from(*index)))
            .map(|b| b.address)
            .collect()
    };
    let mut found = row(&built.rows, table.hash_key, table.hash_fields);
    if let Some(alternative) = &built.alternative {
        let key = table.alt_hash_key.unwrap_or(table.hash_key);
        let fields = table.alt_hash_fields.unwrap_or(table.hash_fields);
        found.extend(row(alternative, key, fields));
    }
    found
}

/// Parses the table with the daemons' code.
///
/// # Errors
/// With the problems that the daemons would report.
pub(crate) fn parsed(file: &TableFile) -> Result<TableSet> {
    let text = file.toml()?;
    parse_bytes(Path::new("table.toml"), Format::Toml, text.as_bytes()).context("the lab's table")
}
