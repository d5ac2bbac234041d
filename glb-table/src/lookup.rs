//! One flow's way through the tables, with the reasons.

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
    /// The client.
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

/// Where a flow goes.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRoute {
    /// The table.
    pub table: String,
    /// The bind that the flow falls under.
    pub bind: String,
    /// The row by the table's own hash.
    pub main: RowChoice,
    /// The row by the alternative hash, whose hops follow.
    pub alternative: Option<RowChoice>,
    /// All hops in order, as a packet carries them.
    pub hops: Vec<Hop>,
}

/// One row, and why it is as it is.
#[derive(Clone, Debug, Serialize)]
pub struct RowChoice {
    /// The 64-bit hash, in hex.
    pub hash: String,
    /// The row: its low 16 bits.
    pub row: u16,
    /// The fields that were hashed.
    pub hash_fields: Vec<&'static str>,
    /// The row's hops.
    pub hops: Vec<Hop>,
    /// Why they stand in this order.
    pub why: Vec<String>,
}

/// A hop of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The backend.
    pub address: IpAddr,
    /// Its state.
    pub state: State,
    /// Its health.
    pub healthy: bool,
    /// Its place among all backends of the table in this row, from 1, by score alone.
    pub rank: usize,
}

/// Why a flow has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Client and VIP of different families.
    #[error("{source_address} and {vip} are of different address families")]
    Families {
        /// The client.
        source_address: IpAddr,
        /// The VIP.
        vip: IpAddr,
    },
    /// No bind names it.
    #[error("no bind is for {what}; the director lets such packets pass")]
    NoBind {
        /// What was asked.
        what: String,
    },
    /// Several tables serve the VIP.
    #[error("{vip} has several binds ({binds}): say which port is meant, as {vip}:PORT")]
    WhichPort {
        /// The VIP.
        vip: IpAddr,
        /// Its binds.
        binds: String,
    },
    /// The hash needs a port.
    #[error("table \"{table}\" hashes {field}: say which it is, as {example}")]
    NeedsPort {
        /// The table.
        table: String,
        /// Which field.
        field: &'static str,
        /// How to give it.
        example: String,
    },
}

/// The bind that a packet falls under: the longest prefix that has its port.
#[must_use]
pub fn matching_bind(
    set: &TableSet,
    vip: IpAddr,
    port: u16,
    proto: Proto,
) -> Option<(&Table, &Bind)> {
    matching_bind_among(set.tables.iter(), vip, port, proto)
}

/// The bind that a packet falls under, among any tables: the longest prefix that has its port.
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

/// Finds a flow's hops.
///
/// # Errors
/// No bind is for it, or it is not said well enough.
pub fn lookup(set: &TableSet, question: &FlowQuery) -> Result<FlowRoute, LookupError> {
    if question.source.is_ipv4() != question.vip.is_ipv4() {
        return Err(LookupError::Families { source_address: question.source, vip: question.vip });
    }
    let port = match question.port {
        Some(port) => port,
        None => only_port(set, question)?,
    };
    let what = || format!("{} {} port {port}", question.vip, question.proto);
    let found = matching_bind(set, question.vip, port, question.proto);
    let (table, bind) = found.ok_or_else(|| LookupError::NoBind { what: what() })?;
    let ranks = table.ranks();
    let main = one(table, &ranks, table.hash_key, table.hash_fields, question, port)?;
    let alternative = if table.has_alternative() {
        let ranks = table.alt_seed.map(|seed| Ranks::new(seed, &table.backends)).unwrap_or(ranks);
        let key = table.alt_hash_key.unwrap_or(table.hash_key);
        let fields = table.alt_hash_fields.unwrap_or(table.hash_fields);
        Some(one(table, &ranks, key, fields, question, port)?)
    } else {
        None
    };
    let hops =
        main.hops.iter().chain(alternative.iter().flat_map(|found| &found.hops)).cloned().collect();
    Ok(FlowRoute { table: table.name.clone(), bind: bind.to_string(), main, alternative, hops })
}

/// The port of the only bind that the VIP has.
fn only_port(set: &TableSet, question: &FlowQuery) -> Result<u16, LookupError> {
    let binds = set.tables.iter().flat_map(|table| &table.binds);
    let all: Vec<&Bind> = binds
        .filter(|bind| bind.proto == question.proto && bind.prefix.contains(&question.vip))
        .collect();
    match all[..] {
        [] => Err(LookupError::NoBind { what: format!("{} {}", question.vip, question.proto) }),
        [bind] if bind.ports.start() == bind.ports.end() => Ok(*bind.ports.start()),
        _ => {
            let binds = all.iter().map(|bind| bind.to_string()).collect::<Vec<_>>().join(", ");
            Err(LookupError::WhichPort { vip: question.vip, binds })
        }
    }
}

fn one(
    table: &Table,
    ranks: &Ranks,
    key: Key,
    fields: HashFields,
    question: &FlowQuery,
    port: u16,
) -> Result<RowChoice, LookupError> {
    let source_port = match question.source_port {
        None if fields.contains(HashFields::SRC_PORT) => {
            let example = match question.source {
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
    let hash = hash(key, fields, question, source_port, port);
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
        why: why(table, &ranked, &chosen),
    })
}

/// The flow hash, as the director's program computes it.
#[must_use]
pub fn hash(
    key: Key,
    fields: HashFields,
    question: &FlowQuery,
    source_port: u16,
    port: u16,
) -> u64 {
    let protocol = question.proto.number();
    let flow = match (question.source, question.vip) {
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

fn why(table: &Table, ranked: &[u16], chosen: &[u16]) -> Vec<String> {
    let backend = |index: &u16| &table.backends[usize::from(*index)];
    let said = |backend: &Backend| match (backend.healthy, backend.state) {
        (false, state) => format!("{} is unhealthy ({state})", backend.address),
        (true, state) => format!("{} is {state}", backend.address),
    };
    let mut why = Vec::new();
    // As far down as anybody was chosen.
    let last = ranked.iter().rposition(|index| chosen.contains(index)).unwrap_or(0);
    let names: Vec<String> =
        ranked.iter().take(last + 1).map(|index| backend(index).address.to_string()).collect();
    why.push(format!("by rank: {}", names.join(", ")));
    for index in ranked.iter().take(last + 1).filter(|index| !chosen.contains(index)) {
        let backend = backend(index);
        why.push(if backend.is_usable() {
            format!(
                "{} is passed over: the last hop is of a zone that is not in the row yet",
                backend.address
            )
        } else {
            format!("{} is inactive, so in no row", backend.address)
        });
    }
    let by_rank: Vec<u16> = ranked.iter().copied().filter(|index| chosen.contains(index)).collect();
    if chosen.len() == 1 {
        why.push("it is the only usable backend, so there is no second hop".into());
    } else if by_rank == chosen {
        why.push("the order is that of rank".into());
    } else if table.hops > 2 {
        why.push(
            "who takes new connections stands first, then who is draining, then who is unhealthy"
                .into(),
        );
        why.extend(by_rank.iter().map(|index| said(backend(index))));
    } else {
        let (first, second) = (backend(&by_rank[0]), backend(&by_rank[1]));
        let rule = match table.order {
            Order::HealthyFirst => {
                format!("{} takes new connections, so it stands first", second.address)
            }
            Order::Glb => format!(
                "{} is in the state active (order = \"glb\"), so it stands first",
                second.address
            ),
        };
        why.push(format!("{}, and {rule}", said(first)));
    }
    why
}
