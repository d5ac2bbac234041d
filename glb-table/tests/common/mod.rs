//! What the integration tests share.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part; the vectors are in the repository"
)]

use std::{net::IpAddr, path::Path};

use glb_table::{Format, LoadError, Rows, Table, TableSet, parse_bytes};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The vectors made by GLB's own tool.
pub(crate) fn vectors() -> Value {
    serde_json::from_str(include_str!("../data/forwarding_tables.json")).unwrap()
}

pub(crate) fn load_json(value: &Value) -> Result<TableSet, LoadError> {
    parse_bytes(Path::new("table.json"), Format::Json, value.to_string().as_bytes())
}

pub(crate) fn load_toml(text: &str) -> Result<TableSet, LoadError> {
    parse_bytes(Path::new("table.toml"), Format::Toml, text.as_bytes())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Over all rows, first then second address.
pub(crate) fn rows_sha256(table: &Table, rows: &Rows) -> String {
    let mut sha = Sha256::new();
    for index in rows.as_flat() {
        match table.backends[usize::from(*index)].address {
            IpAddr::V4(address) => sha.update(address.octets()),
            IpAddr::V6(address) => sha.update(address.octets()),
        }
    }
    hex(&sha.finalize())
}
