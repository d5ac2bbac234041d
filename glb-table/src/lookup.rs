//! Looks up the hops of a flow, with the reasons for them.

use std::net::IpAddr;

use glb_common::{
    flow::{FiveTuple, V4, V6},
    hash::flow_hash,
};
use serde::Serialize;

use crate::{Backend, Bind, HashFields, Key, Order, Proto, Ranks, State, Table, TableSet};

/// A flow to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowQuery {
    /// The client's address.
    pub source: IpAddr,
    /// The client's port, if it is known.
    pub source_port: Option<u16>,
    /// The VIP.
    pub vip: IpAddr,
    /// The VIP's port, if it is known.
    pub port: Option<u16>,
    /// TCP or UDP.
    pub proto: Proto,
}

/// The hops of a flow, and how they were found.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRoute {
    /// The name of the table.
    pub table: String,
    /// The bind that matches the flow.
    pub bind: String,
    /// The row that the table's hash selects.
    pub main: RowChoice,
    /// The row that the alternative hash selects; its hops follow those of `main`.
    pub alternative: Option<RowChoice>,
    /// All hops, in the order in which a packet carries them.
    pub hops: Vec<Hop>,
}

/// A row of a flow, with the reasons for its order.
#[derive(Clone, Debug, Serialize)]
pub struct RowChoice {
    /// The 64-bit flow hash, in hex digits.
    pub hash: String,
    /// The row: the low 16 bits of the hash.
    pub row: u16,
    /// The fields that were hashed.
    pub hash_fields: Vec<&'static str>,
    /// The row's hops.
    pub hops: Vec<Hop>,
    /// The reasons for the order of the hops.
    pub why: Vec<String>,
}

/// A hop of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The backend's address.
    pub address: IpAddr,
    /// Its state.
    pub state: State,
    /// Its health.
    pub healthy: bool,
    /// Its rank in this row among all backends of the table, from 1.
    pub rank: usize,
}

/// Why a flow cannot be looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Client and VIP have different address families.
    #[error("{source_address} and {vip} are of different address families")]
    Families {
        /// The client.
        source_address: IpAddr,
        /// The VIP.
        vip: IpAddr,
    },
    /// No bind matches.
    #[error("no bind matches {what}; the director passes such packets to its own kernel")]
    NoBind {
        /// The VIP, protocol and port.
        what: String,
    },
    /// The VIP has several ports.
    #[error("{vip} has several binds ({binds}): give the port, as {vip}:PORT")]
    WhichPort {
        /// The VIP.
        vip: IpAddr,
        /// Its binds.
        binds: String,
    },
    /// The hash needs a port that was not given.
    #[error("table \"{table}\" hashes {field}: give the port, as {example}")]
    NeedsPort {
        /// The table.
        table: String,
        /// The name of the hash field.
        field: &'static str,
        /// An address with a port.
        example: String,
    },
}

/// The bind that matches a packet: the one with the longest prefix among those with its port.
#[must_use]
pub fn matching_bind(
    set: &TableSet,
    vip: IpAddr,
    port: u16,
    proto: Proto,
) -> Option<(&Table, &Bind)> {
    matching_bind_among(set.tables.iter(), vip, port, proto)
}

/// Like [`matching_bind`], among any tables.
pub fn matching_bind_among<'t>(
    tables: impl Iterator<Item = &'t Table>,
    vip: IpAddr,
    port: u16,
    proto: Proto,
) -> Option<(&'t Table, &'t Bind)> {
    tables
        .flat_map(|table| table.binds.iter().map(move |bind| (table, bind)))
        .filter(|(_, bind)| {
            bind.proto == proto && bind.prefix.contains(&vip) && bind.ports.contains(&port)
        })
        .max_by_key(|(_, bind)| bind.prefix.prefix_len())
}

/// Looks up the hops of a flow.
///
/// # Errors
/// When no bind matches, or the query lacks a port that the hash needs.
pub fn lookup(set: &TableSet, query: &FlowQuery) -> Result<FlowRoute, LookupError> {
    if query.source.is_ipv4() != query.vip.is_ipv4() {
        return Err(LookupError::Families { source_address: query.source, vip: query.vip });
    }
    let port = match query.port {
        Some(port) => port,
        None => only_port(set, query)?,
    };
    let what = || format!("{} {} port {port}", query.vip, query.proto);
    let found = matching_bind(set, query.vip, port, query.proto);
    let (table, bind) = found.ok_or_else(|| LookupError::NoBind { what: what() })?;
    let ranks = table.ranks();
    let main = row_for(table, &ranks, table.hash_key, table.hash_fields, query, port)?;
    let alternative = if table.has_alternative() {
        let ranks = table.alt_seed.map(|seed| Ranks::new(seed, &table.backends)).unwrap_or(ranks);
        let key = table.alt_hash_key.unwrap_or(table.hash_key);
        let fields = table.alt_hash_fields.unwrap_or(table.hash_fields);
        Some(row_for(table, &ranks, key, fields, query, port)?)
    } else {
        None
    };
    let hops =
        main.hops.iter().chain(alternative.iter().flat_map(|found| &found.hops)).cloned().collect();
    Ok(FlowRoute { table: table.name.clone(), bind: bind.to_string(), main, alternative, hops })
}

/// The VIP's port, if its binds have only one.
fn only_port(set: &TableSet, query: &FlowQuery) -> Result<u16, LookupError> {
    let binds = set.tables.iter().flat_map(|table| &table.binds);
    let all: Vec<&Bind> = binds
        .filter(|bind| bind.proto == query.proto && bind.prefix.contains(&query.vip))
        .collect();
    match all[..] {
        [] => Err(LookupError::NoBind { what: format!("{} {}", query.vip, query.proto) }),
        [bind] if bind.ports.start() == bind.ports.end() => Ok(*bind.ports.start()),
        _ => {
            let binds = all.iter().map(|bind| bind.to_string()).collect::<Vec<_>>().join(", ");
            Err(LookupError::WhichPort { vip: query.vip, binds })
        }
    }
}

/// The row that a hash selects.
fn row_for(
    table: &Table,
    ranks: &Ranks,
    key: Key,
    fields: HashFields,
    query: &FlowQuery,
    port: u16,
) -> Result<RowChoice, LookupError> {
    let source_port = match query.source_port {
        None if fields.contains(HashFields::SRC_PORT) => {
            let example = match query.source {
                IpAddr::V4(source) => format!("{source}:54321"),
                IpAddr::V6(source) => format!("[{source}]:54321"),
            };
            return Err(LookupError::NeedsPort {
                table: table.name.clone(),
                field: "src_port",
                example,
            });
        }
        port => port.unwrap_or_default(),
    };
    let hash = hash(key, fields, query, source_port, port);
    let row = (hash & 0xffff) as u16;
    let ranked = ranks.full(row);
    let chosen = table.choose(&ranked, true).unwrap_or_default();
    let hop = |index: &u16| {
        let backend = &table.backends[usize::from(*index)];
        let rank = ranked.iter().position(|ranked| ranked == index).map_or(0, |place| place + 1);
        Hop { address: backend.address, state: backend.state, healthy: backend.healthy, rank }
    };
    Ok(RowChoice {
        hash: format!("{hash:016x}"),
        row,
        hash_fields: crate::hash_field_names(fields),
        hops: chosen.iter().map(hop).collect(),
        why: reasons(table, &ranked, &chosen),
    })
}

/// Computes the flow hash as the director's program does.
#[must_use]
pub fn hash(key: Key, fields: HashFields, query: &FlowQuery, source_port: u16, port: u16) -> u64 {
    let protocol = query.proto.number();
    let flow = match (query.source, query.vip) {
        (IpAddr::V4(source), IpAddr::V4(vip)) => {
            FiveTuple::new(V4::new(source.octets()), V4::new(vip.octets()), protocol)
        }
        (source, vip) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            FiveTuple::new(V6::new(octets(source)), V6::new(octets(vip)), protocol)
        }
    };
    let flow = FiveTuple { source_port, destination_port: port, ..flow };
    flow_hash(key.words(), fields, &flow)
}

fn reasons(table: &Table, ranked: &[u16], chosen: &[u16]) -> Vec<String> {
    let backend = |index: &u16| &table.backends[usize::from(*index)];
    let describe = |backend: &Backend| match (backend.healthy, backend.state) {
        (false, state) => format!("{} is unhealthy ({state})", backend.address),
        (true, state) => format!("{} is {state}", backend.address),
    };
    let mut why = Vec::new();
    // The ranking, down to the last backend that was chosen.
    let last = ranked.iter().rposition(|index| chosen.contains(index)).unwrap_or(0);
    let names: Vec<String> =
        ranked.iter().take(last + 1).map(|index| backend(index).address.to_string()).collect();
    why.push(format!("by rank: {}", names.join(", ")));
    for index in ranked.iter().take(last + 1).filter(|index| !chosen.contains(index)) {
        let backend = backend(index);
        why.push(if backend.is_usable() {
            format!(
                "{} is skipped: the last hop must be in a zone that the row does not have yet",
                backend.address
            )
        } else {
            format!("{} is skipped: it is inactive", backend.address)
        });
    }
    let by_rank: Vec<u16> = ranked.iter().copied().filter(|index| chosen.contains(index)).collect();
    if chosen.len() == 1 {
        why.push("there is one usable backend, so there is no second hop".into());
    } else if by_rank == chosen {
        why.push("the hops are in the order of rank".into());
    } else if table.hops > 2 {
        why.push(
            "backends that take new connections come first, then draining ones, then unhealthy ones"
                .into(),
        );
        why.extend(by_rank.iter().map(|index| describe(backend(index))));
    } else {
        let (first, second) = (backend(&by_rank[0]), backend(&by_rank[1]));
        let rule = match table.order {
            Order::HealthyFirst => {
                format!("{} takes new connections, so it comes first", second.address)
            }
            Order::Glb => format!(
                "{} has the state active (order = \"glb\"), so it comes first",
                second.address
            ),
        };
        why.push(format!("{}, and {rule}", describe(first)));
    }
    why
}
