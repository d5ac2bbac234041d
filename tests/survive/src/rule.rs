//! What may break, by the plan's rule, before anything is done: the suite asks the same code as
//! `glb-director table plan` and the directors do.

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

/// The memory of who may hold flows, over all tables of a run.
pub(crate) struct Rule {
    memory: FlowHistory,
    builder: RowCache,
    in_force: Vec<BuiltTable>,
    last: Instant,
}

impl Rule {
    /// A memory in which a flow lives for at most so many seconds.
    pub(crate) fn new(flow_age: u64) -> Self {
        Self {
            memory: FlowHistory::new(flow_age),
            builder: RowCache::default(),
            in_force: Vec::new(),
            last: Instant::now(),
        }
    }

    /// What a table would put at risk now.
    ///
    /// # Errors
    /// When it is no table.
    pub(crate) fn judge(&mut self, file: &TableFile) -> Result<RiskReport> {
        self.pass();
        let built = self.builder.build(&parsed(file)?);
        Ok(self.memory.assess(&built))
    }

    /// A table is in force from now on.
    ///
    /// # Errors
    /// When it is no table.
    pub(crate) fn adopt(&mut self, file: &TableFile) -> Result<()> {
        self.pass();
        let built = self.builder.build(&parsed(file)?);
        self.memory.activate(&built);
        self.in_force = built;
        Ok(())
    }

    /// A backend holds nothing any more.
    pub(crate) fn drained(&mut self, backend: IpAddr) {
        self.pass();
        self.memory.mark_drained(backend);
    }

    /// Whole seconds are told to the memory; what is left of one is kept for later.
    fn pass(&mut self) {
        let seconds = self.last.elapsed().as_secs();
        self.memory.advance(seconds);
        self.last += std::time::Duration::from_secs(seconds);
    }

    /// The tables in force, with their rows.
    pub(crate) fn in_force(&self) -> Vec<BuiltTable> {
        self.in_force.clone()
    }
}

/// The hops that a connection's packets carry with these tables, were all backends well.
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

/// The table as the daemons understand it.
///
/// # Errors
/// With the problems that they would name.
pub(crate) fn parsed(file: &TableFile) -> Result<TableSet> {
    let text = file.toml()?;
    parse_bytes(Path::new("table.toml"), Format::Toml, text.as_bytes()).context("the lab's table")
}
