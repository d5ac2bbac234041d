//! Describes the decisions of a running director for trace clients. Table names, keys and rows come
//! from the pinned maps of the traced generation, and so match the running program even if the table
//! file has changed since.

use std::collections::HashMap;

use glb_common::{
    abi::{MapValue as _, TableInfo},
    reason::DirectorReason as Reason,
};
use glb_host::{
    bpf_loader::LoadError,
    bpffs::PinFolder,
    generations,
    packet_trace::{
        Decision, Egress, Headers,
        client::Decoder,
        trace::{TraceRecord, TraceSource, open_array},
    },
    xdp_link,
};

use crate::{
    counters::CounterSlotMap,
    replay::{rows, verdict_name},
};

/// A table of the traced generation.
#[derive(Debug)]
struct Table {
    name: String,
    info: TableInfo,
}

/// Decodes trace events with the pinned maps.
#[derive(Debug)]
pub struct PinnedDecoder {
    pins: PinFolder,
    /// The tables by their counter slots.
    tables: HashMap<u32, Table>,
}

impl PinnedDecoder {
    /// A decoder for the director that pins below `pins`.
    #[must_use]
    pub fn new(pins: PinFolder) -> Self {
        Self { pins, tables: HashMap::new() }
    }
}

impl Decoder for PinnedDecoder {
    fn switch_source(&mut self, source: &TraceSource) -> Result<(), LoadError> {
        const TABLES: &str = "TABLES";
        let error =
            |error: Box<dyn std::error::Error + Send + Sync>| LoadError::map("read", TABLES, error);
        let identities = CounterSlotMap::open(&self.pins).map_err(|e| error(e.into()))?;
        let names: HashMap<u32, String> =
            identities.iter().flat_map(CounterSlotMap::tables).collect();
        let path = generations::folder(&self.pins, source.generation).join("tables");
        let array =
            open_array::<[u8; size_of::<TableInfo>()]>(&path).map_err(|e| error(e.into()))?;
        self.tables.clear();
        for index in 0..array.len() {
            let bytes = array.get(&index, 0).map_err(|e| error(e.into()))?;
            // Unused entries are zero, and slot 0 belongs to no table.
            if let Some(info) = TableInfo::from_bytes(&bytes)
                && let Some(name) = names.get(&info.counter_slot)
            {
                self.tables.insert(info.counter_slot, Table { name: name.clone(), info });
            }
        }
        Ok(())
    }

    fn decode(&self, record: &TraceRecord) -> Decision {
        let event = &record.event;
        let reason = Reason::from_number(event.reason as u8);
        let interface = xdp_link::interface_name(event.interface);
        let mut decision = Decision {
            time: record.time,
            interface: Some(interface),
            length: event.received,
            verdict: verdict_name(event.verdict, reason),
            reason: Some(reason.name()),
            ..Decision::default()
        };
        decision.describe(Headers::of(&record.before));
        if let Some(table) = self.tables.get(&event.slot) {
            decision.table = Some(table.name.clone());
            (decision.row, decision.alternative_row) = rows(&table.info, &record.before);
        }
        if let Some(after) = &record.after {
            if let Some(tunnel) = Headers::of(after).tunnel {
                decision.hops = std::iter::once(tunnel.destination).chain(tunnel.listed).collect();
            }
            decision.egress = Some(Egress::of(None, after, false));
        }
        decision
    }
}
