//! Runs frames of a capture through the program (`glb-director replay`). The program is loaded with
//! maps and counters of its own and attached to nothing. The counter that each frame increments tells
//! the reason of its verdict.

use std::collections::HashMap;

use aya::maps::PerCpuArray;
use glb_common::{
    abi::{TABLE_SLOTS, TableInfo},
    hash::{HashFields, flow_hash},
    parse::parse,
    reason::{Action, DirectorReason as Reason, MAX_REASONS},
    tables::Tables as _,
};
use glb_host::{
    bpf_loader::LoadError,
    packet_trace::{
        Decision, Egress, Headers,
        filter::ReasonName,
        replay::{FrameStage, ReplayError, ReplayNextHops, ReplayOutcome, ReplayProgram, test_run},
    },
};
use glb_table::TableSet;

use crate::{
    compiled_tables::{CompileError, CompiledTables, ForwardingOptions},
    counters::{BackendId, CounterSlots},
    generation::Generation,
    oracle,
};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Why the program cannot be loaded for a replay.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel refused the program or a map.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There are more tables than counters.
    #[error(
        "cannot replay with {count} tables: there are counters for {}; leave some tables out",
        TABLE_SLOTS - 1
    )]
    TooManyTables {
        /// How many tables the file has.
        count: usize,
    },
}

/// Counter slots by table: slot 0 counts packets of no table, and the tables of the file have the slots
/// from 1 on. All backends of a table share the slot of the table's number.
struct Slots(HashMap<String, u32>);

impl CounterSlots for Slots {
    fn table(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn backend(&self, backend_id: &BackendId) -> u32 {
        self.table(&backend_id.table)
    }
}

/// Packets of one slot, by reason.
type Counts = [u64; MAX_REASONS];

/// A loaded program that is run frame by frame.
#[derive(Debug)]
pub struct Replay {
    generation: Generation,
    names: Vec<String>,
    found: ReplayNextHops,
    /// Each slot's counts after the last frame.
    counts: Vec<Counts>,
}

impl Replay {
    /// Loads the program for `tables`, with the next hops in `found`.
    ///
    /// # Errors
    /// When the tables cannot be compiled, or the kernel refuses the program.
    pub fn load(
        tables: &TableSet,
        options: &ForwardingOptions,
        found: ReplayNextHops,
    ) -> Result<Self, Error> {
        let names: Vec<String> = tables.tables.iter().map(|table| table.name.clone()).collect();
        if names.len() >= TABLE_SLOTS as usize {
            return Err(Error::TooManyTables { count: names.len() });
        }
        let slots = Slots(names.iter().cloned().zip(1..).collect());
        // A capture runs faster than it was received, so the answers' rate limit must not apply.
        let options = ForwardingOptions { answers_per_second: 0, ..options.clone() };
        let image = CompiledTables::new(tables, &slots, &found.next_hops, &options)?;
        let generation = Generation::load_unpinned(image)?;
        let counts = vec![[0; MAX_REASONS]; names.len() + 1];
        Ok(Self { generation, names, found, counts })
    }

    /// The slot and the reason whose counter has increased since the last call.
    fn counted(&mut self, frame: &[u8]) -> Result<(usize, Reason), ReplayError> {
        let odd = |error: &dyn std::fmt::Display| ReplayError::Inconsistent(error.to_string());
        let [tables, backends] = self.generation.counters().map_err(|error| odd(&error))?;
        let tables: PerCpuArray<_, [[u64; 2]; MAX_REASONS]> =
            PerCpuArray::try_from(tables).map_err(|error| odd(&error))?;
        let backends: PerCpuArray<_, [u64; 2]> =
            PerCpuArray::try_from(backends).map_err(|error| odd(&error))?;
        let read = |slot: usize| -> Result<Counts, ReplayError> {
            let cpus = tables.get(&(slot as u32), 0).map_err(|error| odd(&error))?;
            let mut counts: Counts =
                std::array::from_fn(|reason| cpus.iter().map(|cpu| cpu[reason][0]).sum());
            // The program counts a sent packet in its backend's slot only.
            let sent = backends.get(&(slot as u32), 0).map_err(|error| odd(&error))?;
            counts[Reason::Encapsulated as usize] += sent.iter().map(|cpu| cpu[0]).sum::<u64>();
            Ok(counts)
        };
        // The oracle tells which slot to read first; the program's counter decides.
        let likely = oracle::expected_outcome(&self.generation.image, frame).counter_slot as usize;
        let slots = self.counts.len();
        let others = (0..slots).filter(|slot| *slot != likely);
        for slot in std::iter::once(likely).filter(|slot| *slot < slots).chain(others) {
            let now = read(slot)?;
            let before = std::mem::replace(&mut self.counts[slot], now);
            let grown = now.iter().zip(before).position(|(now, before)| *now != before);
            if let Some(reason) = grown {
                return Ok((slot, Reason::from_number(reason as u8)));
            }
        }
        Err(ReplayError::Inconsistent("the program counted a packet in no slot".into()))
    }

    /// Adds the backends that a frame of a table would have gone to, and why it was not sent.
    fn describe_unsent(&self, reason: Reason, decision: &mut Decision) {
        let image = &self.generation.image;
        let index = self.names.iter().position(|name| Some(name) == decision.table.as_ref());
        let table = index.and_then(|index| image.tables.get(index));
        let (Some(table), Some(row)) = (table, decision.row) else { return };
        let Some(rows) = image.rows(table.rows) else { return };
        let row = rows[usize::from(row)];
        let hops = [row.first, row.second].into_iter();
        let address = |hop: u16| image.backend_ids.get(usize::from(hop)).map(|id| id.address);
        decision.hops = hops.filter_map(address).collect();
        let hop = decision.hops.first().and_then(|hop| self.found.next_hops.get(hop));
        decision.note = match (reason, hop) {
            (Reason::NextHopUnresolved, Some(Err(why))) => Some(format!("not sent: {why}")),
            (
                Reason::TooBig | Reason::TooBigUnanswered | Reason::TooBigMayFragment,
                Some(Ok(way)),
            ) => Some(format!("the tunnel has to fit an MTU of {}", way.mtu)),
            _ => None,
        };
    }

    /// Adds how a sent frame leaves, and to which backends.
    fn describe_sent(&self, verdict: u32, frame: &[u8], decision: &mut Decision) {
        let mut egress = Egress::of(Some(self.found.interface.clone()), frame, false);
        if let Some(tunnel) = Headers::of(frame).tunnel {
            egress.synthetic = self.found.synthetic.contains(&tunnel.destination);
            if let (XDP_REDIRECT, Some(Ok(hop))) =
                (verdict, self.found.next_hops.get(&tunnel.destination))
            {
                egress.interface = Some(self.found.name_of(hop.interface));
            }
            decision.hops = std::iter::once(tunnel.destination).chain(tunnel.listed).collect();
        }
        decision.egress = Some(egress);
    }
}

impl ReplayProgram for Replay {
    fn run(&mut self, frame: &[u8]) -> Result<ReplayOutcome, ReplayError> {
        let odd = |error: LoadError| ReplayError::Inconsistent(error.to_string());
        let program = self.generation.program().map_err(odd)?;
        let (verdict, out) = test_run(program, frame)?;
        let (slot, reason) = self.counted(frame)?;
        let mut decision = Decision { reason: Some(reason.name()), ..Decision::default() };
        decision.describe(Headers::of(frame));
        if let Some(index) = slot.checked_sub(1) {
            decision.table = self.names.get(index).cloned();
            if let Some(table) = self.generation.image.tables.get(index) {
                (decision.row, decision.alternative_row) = rows(table, frame);
            }
        }
        let to = match verdict {
            XDP_PASS => Some(FrameStage::Kernel),
            XDP_TX | XDP_REDIRECT => Some(FrameStage::Sent),
            _ => None,
        };
        decision.verdict = verdict_name(verdict, reason);
        if to == Some(FrameStage::Sent) {
            self.describe_sent(verdict, &out, &mut decision);
        }
        if decision.hops.is_empty() {
            self.describe_unsent(reason, &mut decision);
        }
        Ok(ReplayOutcome { decision, to, frame: out })
    }
}

/// All reasons in the order of their numbers, each with the name of its verdict.
pub static REASONS: [ReasonName; Reason::ALL.len()] = {
    let mut names = [("", ""); Reason::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        let reason = Reason::ALL[index];
        let verdict = match reason.action() {
            Action::Pass | Action::Take => "passed",
            Action::Send => "sent",
            Action::Answer => "answered",
            Action::Drop => "dropped",
        };
        names[index] = (reason.name(), verdict);
        index += 1;
    }
    names
};

/// The name of an XDP verdict for people.
#[must_use]
pub fn verdict_name(verdict: u32, reason: Reason) -> &'static str {
    match verdict {
        XDP_PASS => "passed",
        XDP_TX | XDP_REDIRECT if reason == Reason::TooBig => "answered",
        XDP_TX | XDP_REDIRECT => "sent",
        _ => "dropped",
    }
}

/// The row of `table` that `frame` hashes to, and the one by the table's alternative hash.
#[must_use]
pub fn rows(table: &TableInfo, frame: &[u8]) -> (Option<u16>, Option<u16>) {
    let Ok(packet) = parse(frame) else { return (None, None) };
    let row =
        |key, fields| Some(flow_hash(key, HashFields::from_bits(fields)?, &packet.flow) as u16);
    (row(table.key, table.hash_fields), row(table.alt_key, table.alt_hash_fields))
}
