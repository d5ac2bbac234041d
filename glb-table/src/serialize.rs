//! Writes table sets as TOML or JSON.

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value as Json;

use crate::{Backend, Bind, Format, HashFields, Order, Table, TableSet, hash_field_names};

/// The table set has a value that the format cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at} is null, and TOML has no null. Remove the value, or write JSON")]
pub struct WriteError {
    /// The value's place.
    pub at: String,
}

/// The file as it is written: with GLB's key names, without default values.
#[derive(Serialize)]
struct RawFile<'s> {
    tables: Vec<RawTable<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthchecks: Option<&'s Json>,
}

#[derive(Serialize)]
struct RawTable<'s> {
    name: &'s str,
    hash_key: String,
    seed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_fields: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alt_hash_fields: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alt_hash_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alt_seed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<Order>,
    binds: Vec<RawBind>,
    backends: Vec<RawBackend<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthchecks: Option<&'s Json>,
}

#[derive(Serialize)]
struct RawBind {
    ip: String,
    proto: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_start: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_end: Option<u16>,
}

#[derive(Serialize)]
struct RawBackend<'s> {
    ip: String,
    state: &'static str,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthchecks: Option<&'s Json>,
}

impl TableSet {
    /// Writes the set in one of the formats. Parsing the text gives an equal set.
    ///
    /// # Errors
    /// When the format is TOML and `healthchecks` has a `null`.
    pub fn to_text(&self, form: Format) -> Result<String, WriteError> {
        let raw = RawFile {
            tables: self.tables.iter().map(raw_table).collect(),
            healthchecks: self.healthchecks.as_ref(),
        };
        let failed = |at: String| WriteError { at };
        match form {
            Format::Json => {
                let text = serde_json::to_string_pretty(&raw)
                    .map_err(|error| failed(error.to_string()))?;
                Ok(text + "\n")
            }
            Format::Toml => {
                if let Some(at) = self.find_null() {
                    return Err(failed(at));
                }
                toml::to_string(&raw).map_err(|error| failed(error.to_string()))
            }
        }
    }

    /// The place of a null.
    fn find_null(&self) -> Option<String> {
        if self.healthchecks.as_ref().is_some_and(has_null) {
            return Some("a value in `healthchecks`".into());
        }
        for table in &self.tables {
            if table.healthchecks.as_ref().is_some_and(has_null) {
                return Some(format!("a value in `healthchecks` of table \"{}\"", table.name));
            }
            let backend = table
                .backends
                .iter()
                .find(|backend| backend.healthchecks.as_ref().is_some_and(has_null));
            if let Some(backend) = backend {
                return Some(format!(
                    "a value in `healthchecks` of backend {} of table \"{}\"",
                    backend.address, table.name
                ));
            }
        }
        None
    }
}

fn has_null(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(values) => values.iter().any(has_null),
        Json::Object(values) => values.values().any(has_null),
        _ => false,
    }
}

fn raw_table(table: &Table) -> RawTable<'_> {
    let fields = table.hash_fields;
    RawTable {
        name: &table.name,
        hash_key: table.hash_key.to_hex(),
        seed: table.seed.to_hex(),
        hash_fields: (fields != HashFields::default()).then(|| hash_field_names(fields)),
        alt_hash_fields: table.alt_hash_fields.map(hash_field_names),
        alt_hash_key: table.alt_hash_key.map(|key| key.to_hex()),
        alt_seed: table.alt_seed.map(|key| key.to_hex()),
        hops: (table.hops != 2).then_some(table.hops),
        order: (table.order != Order::default()).then_some(table.order),
        binds: table.binds.iter().map(raw_bind).collect(),
        backends: table.backends.iter().map(raw_backend).collect(),
        healthchecks: table.healthchecks.as_ref(),
    }
}

fn raw_bind(bind: &Bind) -> RawBind {
    let (first, last) = (*bind.ports.start(), *bind.ports.end());
    let one = first == last;
    RawBind {
        ip: bind_address(&bind.prefix),
        proto: bind.proto.name(),
        port: one.then_some(first),
        port_start: (!one).then_some(first),
        port_end: (!one).then_some(last),
    }
}

/// A single address without its prefix length, a network with it.
pub(crate) fn bind_address(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

fn raw_backend(backend: &Backend) -> RawBackend<'_> {
    RawBackend {
        ip: backend.address.to_string(),
        state: backend.state.name(),
        healthy: backend.healthy,
        weight: (backend.weight != 1).then_some(backend.weight),
        zone: (!backend.zone.is_empty()).then_some(backend.zone.as_str()),
        healthchecks: backend.healthchecks.as_ref(),
    }
}
