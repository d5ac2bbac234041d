//! Decisions of the running director in words. What the frames do not say is read from the
//! generation's own pinned maps, so that it is true of what runs, whatever the files say by now.

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
    counters::Identities,
    replay::{rows, verdict_name},
};

/// A table as the program knows it.
#[derive(Debug)]
struct Table {
    name: String,
    info: TableInfo,
}

/// Reads what decisions are about.
#[derive(Debug)]
pub struct FromPins {
    pins: PinFolder,
    /// By the slots of their counters.
    tables: HashMap<u32, Table>,
}

impl FromPins {
    /// For the director that pins here.
    #[must_use]
    pub fn new(pins: PinFolder) -> Self {
        Self { pins, tables: HashMap::new() }
    }
}

impl Decoder for FromPins {
    fn switch_source(&mut self, showing: &TraceSource) -> Result<(), LoadError> {
        const TABLES: &str = "TABLES";
        let error =
            |error: Box<dyn std::error::Error + Send + Sync>| LoadError::map("read", TABLES, error);
        let identities = Identities::open(&self.pins).map_err(|e| error(e.into()))?;
        let names: HashMap<u32, String> = identities.iter().flat_map(Identities::tables).collect();
        let path = generations::folder(&self.pins, showing.generation).join("tables");
        let array =
            open_array::<[u8; size_of::<TableInfo>()]>(&path).map_err(|e| error(e.into()))?;
        self.tables.clear();
        for index in 0..array.len() {
            let bytes = array.get(&index, 0).map_err(|e| error(e.into()))?;
            // What is beyond the tables is zero, and slot 0 is nobody's.
            if let Some(info) = TableInfo::from_bytes(&bytes)
                && let Some(name) = names.get(&info.counter_slot)
            {
                self.tables.insert(info.counter_slot, Table { name: name.clone(), info });
            }
        }
        Ok(())
    }

    fn decode(&self, shown: &TraceRecord) -> Decision {
        let event = &shown.event;
        let reason = Reason::from_number(event.reason as u8);
        let interface = xdp_link::interface_name(event.interface);
        let mut decision = Decision {
            time: shown.time,
            interface: Some(interface),
            length: event.received,
            verdict: verdict_name(event.verdict, reason),
            reason: Some(reason.name()),
            ..Decision::default()
        };
        decision.describe(Headers::of(&shown.before));
        if let Some(table) = self.tables.get(&event.slot) {
            decision.table = Some(table.name.clone());
            (decision.row, decision.alternative_row) = rows(&table.info, &shown.before);
        }
        if let Some(after) = &shown.after {
            if let Some(tunnel) = Headers::of(after).tunnel {
                decision.hops = std::iter::once(tunnel.destination).chain(tunnel.listed).collect();
            }
            decision.egress = Some(Egress::of(None, after, false));
        }
        decision
    }
}
