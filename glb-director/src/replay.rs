//! `glb-director replay`: frames through the program that would be attached, loaded alone and
//! attached to nothing. The counters are its own, and it is they that tell the reason.

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
    compiled_tables::{CounterSlots, Image, ImageError, Options, Owner},
    generation::Generation,
    oracle,
};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Why there is no program to replay with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tables cannot be carried.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The kernel refuses.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// More tables than can be told apart.
    #[error("{count} tables at once; there are counters for {}", TABLE_SLOTS - 1)]
    TooManyTables {
        /// How many there are.
        count: usize,
    },
}

/// Tables by their place in the file, from slot 1 on; what belongs to none is in slot 0. All backends
/// of a table share the slot of its number.
struct Slots(HashMap<String, u32>);

impl CounterSlots for Slots {
    fn table(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn backend(&self, owner: &Owner) -> u32 {
        self.table(&owner.table)
    }
}

/// Packets for each reason of one slot.
type Counts = [u64; MAX_REASONS];

/// A generation that is run packet by packet.
#[derive(Debug)]
pub struct Replay {
    generation: Generation,
    names: Vec<String>,
    found: ReplayNextHops,
    /// What each slot's counters said last.
    counts: Vec<Counts>,
}

impl Replay {
    /// Loads the program for `tables`, with these ways to their backends.
    ///
    /// # Errors
    /// When the tables or the kernel do not allow it.
    pub fn load(
        tables: &TableSet,
        options: &Options,
        found: ReplayNextHops,
    ) -> Result<Self, Error> {
        let names: Vec<String> = tables.tables.iter().map(|table| table.name.clone()).collect();
        if names.len() >= TABLE_SLOTS as usize {
            return Err(Error::TooManyTables { count: names.len() });
        }
        let slots = Slots(names.iter().cloned().zip(1..).collect());
        // A capture is run faster than it was received: answers are not to be limited by that.
        let options = Options { answers_per_second: 0, ..options.clone() };
        let image = Image::new(tables, &slots, &found.next_hops, &options)?;
        let generation = Generation::load_alone(image)?;
        let counts = vec![[0; MAX_REASONS]; names.len() + 1];
        Ok(Self { generation, names, found, counts })
    }

    /// The slot and the reason whose counter has gone up by one since the last call.
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
            // What is sent is counted for its backend alone.
            let sent = backends.get(&(slot as u32), 0).map_err(|error| odd(&error))?;
            counts[Reason::Encapsulated as usize] += sent.iter().map(|cpu| cpu[0]).sum::<u64>();
            Ok(counts)
        };
        // The pure function knows where to look first; what is found there is the program's word.
        let likely = oracle::direct(&self.generation.image, frame).counter_slot as usize;
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
        Err(ReplayError::Inconsistent("the program counted a packet nowhere".into()))
    }

    /// Where a frame would have gone that was not sent although it belongs to a table, and what its
    /// way allows.
    fn would_go_to(&self, reason: Reason, decision: &mut Decision) {
        let image = &self.generation.image;
        let index = self.names.iter().position(|name| Some(name) == decision.table.as_ref());
        let table = index.and_then(|index| image.tables.get(index));
        let (Some(table), Some(row)) = (table, decision.row) else { return };
        let Some(rows) = image.rows(table.rows) else { return };
        let row = rows[usize::from(row)];
        let hops = [row.first, row.second].into_iter();
        let owner = |hop: u16| image.owners.get(usize::from(hop)).map(|owner| owner.address);
        decision.hops = hops.filter_map(owner).collect();
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

    /// How a frame that is sent leaves, and to which backends.
    fn way(&self, verdict: u32, frame: &[u8], decision: &mut Decision) {
        let mut way = Egress::of(Some(self.found.interface.clone()), frame, false);
        if let Some(tunnel) = Headers::of(frame).tunnel {
            way.synthetic = self.found.synthetic.contains(&tunnel.destination);
            if let (XDP_REDIRECT, Some(Ok(hop))) =
                (verdict, self.found.next_hops.get(&tunnel.destination))
            {
                way.interface = Some(self.found.name_of(hop.interface));
            }
            decision.hops = std::iter::once(tunnel.destination).chain(tunnel.listed).collect();
        }
        decision.egress = Some(way);
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
            self.way(verdict, &out, &mut decision);
        }
        if decision.hops.is_empty() {
            self.would_go_to(reason, &mut decision);
        }
        Ok(ReplayOutcome { decision, to, frame: out })
    }
}

/// Every reason with the name of its verdict, in the order of their numbers.
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

/// What a verdict is called.
#[must_use]
pub fn verdict_name(verdict: u32, reason: Reason) -> &'static str {
    match verdict {
        XDP_PASS => "passed",
        XDP_TX | XDP_REDIRECT if reason == Reason::TooBig => "answered",
        XDP_TX | XDP_REDIRECT => "sent",
        _ => "dropped",
    }
}

/// The row that `frame` hashes to in `table`, and the one by the alternative hash if there is one.
#[must_use]
pub fn rows(table: &TableInfo, frame: &[u8]) -> (Option<u16>, Option<u16>) {
    let Ok(packet) = parse(frame) else { return (None, None) };
    let row =
        |key, fields| Some(flow_hash(key, HashFields::from_bits(fields)?, &packet.flow) as u16);
    (row(table.key, table.hash_fields), row(table.alt_key, table.alt_hash_fields))
}
