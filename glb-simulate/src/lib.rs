//! Simulates flows, one by one, over a sequence of forwarding tables.
//!
//! The simulator checks what [`glb_table::plan`] claims, and shares no code with it: each flow
//! remembers the backend that took its first packet, and after each new table its packets go from
//! hop to hop as the backends would pass them on. A flow breaks if its packets end at another backend.
//!
//! | layer | where |
//! |---|---|
//! | flows and what becomes of them | [`Simulation`] |
//! | the tables in force, and which rows have changed | `table_state` |
//! | how long flows live, how evenly load lies | [`Lifetimes`], [`Load`] |
//! | a given sequence of tables | [`sequence()`] |
//! | the generated maintenance of a fleet | [`Maintenance`] |
//! | the command `glb-simulate` | [`cli`] |
//!
//! Start reading at [`Simulation`]. Results depend on the seed only, not on the machine.
//!
//! ```
//! use glb_simulate::{Simulation, generated_fleet};
//! use glb_table::{RowCache, State};
//!
//! let mut set = generated_fleet(4, 2);
//! let mut rows = RowCache::default();
//! let mut simulation = Simulation::new(1);
//! simulation.activate(&rows.build(&set));
//! simulation.establish(1_000, 60_000);
//!
//! // A drained backend keeps its flows; a removed one loses them.
//! set.tables[0].backends[0].state = State::Draining;
//! assert_eq!(simulation.activate(&rows.build(&set)).broken.all(), 0);
//! set.tables[0].backends[0].state = State::Inactive;
//! assert!(simulation.activate(&rows.build(&set)).broken.all() > 0);
//! ```

pub mod cli;
mod lifetimes;
mod load;
mod maintenance;
mod random;
mod sequence;
mod table_state;

use std::{collections::HashMap, net::IpAddr};

use glb_common::flow::FiveTuple;
use glb_table::{BuiltTable, ROWS, lookup::FlowQuery};
pub use lifetimes::Lifetimes;
pub use load::{Load, Spread};
pub use maintenance::{
    ChangeKind, ChangeKindReport, Maintenance, MaintenanceReport, generated_fleet,
};
use random::Random;
use rayon::prelude::*;
pub use sequence::{
    Progress, Report, StepReport, TracedFlow, TracedFlowReport, Workload, sequence,
};
use serde::Serialize;
use table_state::{NONE, TableStates, Target};

/// Number of shards that hold the flows. Each shard has its own random numbers, so that the result
/// does not depend on the number of processors.
const SHARDS: u64 = 64;

/// Why a flow broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The last hop is another backend, which does not know the flow and answers with a reset.
    Reset,
    /// A hop before the flow's backend is down, so its packets are lost there.
    DeadHop,
    /// Another table, or none, now serves the flow's VIP and port, and its backend is not in it.
    Moved,
}

impl Cause {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::DeadHop => "dead hop",
            Self::Moved => "moved",
        }
    }
}

/// Number of broken flows, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BrokenFlows {
    /// See [`Cause::Reset`].
    pub reset: u64,
    /// See [`Cause::DeadHop`].
    pub dead_hop: u64,
    /// See [`Cause::Moved`].
    pub moved: u64,
}

impl BrokenFlows {
    /// The number of broken flows, whatever the cause.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.reset + self.dead_hop + self.moved
    }

    fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Reset => &mut self.reset,
            Cause::DeadHop => &mut self.dead_hop,
            Cause::Moved => &mut self.moved,
        } += 1;
    }

    fn add(&mut self, other: Self) {
        self.reset += other.reset;
        self.dead_hop += other.dead_hop;
        self.moved += other.moved;
    }
}

/// One established flow.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// The client's address, in the form of [`FiveTuple::source`].
    client: [u64; 2],
    /// When the flow ends, in milliseconds of [`Simulation::now`].
    ends: u64,
    /// Its number if it is a traced flow, else [`NONE`].
    number: u32,
    /// The number of its VIP and port in [`TableStates`].
    target: u32,
    /// The backend that took it, as a slot of [`TableStates`].
    holder: u32,
    row: u16,
    port: u16,
}

/// A part of the flows.
#[derive(Clone, Debug)]
struct Shard {
    flows: Vec<Flow>,
    random: Random,
}

/// What became of the flows when a table was activated.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Flows that the table broke; the simulation has dropped them.
    pub broken: BrokenFlows,
    /// Flows that live on, including those of backends that are down.
    pub live: u64,
    /// Live flows of backends that are down. The table did not break them, so they stay.
    pub down: u64,
    /// The traced flows that broke.
    pub traced: Vec<(u32, Cause)>,
    /// Number of live flows of each slot.
    held: Vec<u64>,
}

impl Tally {
    fn add(mut self, other: Self) -> Self {
        self.broken.add(other.broken);
        self.live += other.live;
        self.down += other.down;
        self.traced.extend(other.traced);
        if self.held.len() < other.held.len() {
            self.held.resize(other.held.len(), 0);
        }
        self.held.iter_mut().zip(&other.held).for_each(|(all, more)| *all += more);
        self
    }
}

/// The flows of all tables in a table set, and the tables in force.
#[derive(Debug)]
pub struct Simulation {
    tables: TableStates,
    shards: Vec<Shard>,
    /// Milliseconds since the start.
    now: u64,
    /// Number of traced flows.
    traced: u32,
}

impl Simulation {
    /// A simulation without tables and flows. `seed` determines the flows' addresses and lifetimes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let shard = |stream| Shard { flows: Vec::new(), random: Random::new(seed, stream) };
        Self {
            tables: TableStates::new(),
            shards: (0..SHARDS).map(shard).collect(),
            now: 0,
            traced: 0,
        }
    }

    /// Advances the clock; flows whose time is over end.
    pub fn advance(&mut self, milliseconds: u64) {
        self.now = self.now.saturating_add(milliseconds);
    }

    /// Puts tables into force, and tells which flows that breaks.
    pub fn activate(&mut self, built: &[BuiltTable]) -> Tally {
        self.tables.activate(built);
        self.deliver()
    }

    /// Counts the flows with the tables in force.
    pub(crate) fn count(&mut self) -> Tally {
        self.tables.clear_changes();
        self.deliver()
    }

    /// Sends a packet of every flow to its hops.
    fn deliver(&mut self) -> Tally {
        let (tables, now) = (&self.tables, self.now);
        let shards = self.shards.par_iter_mut();
        let mut tally =
            shards.map(|shard| shard.deliver(tables, now)).reduce(Tally::default, Tally::add);
        tally.traced.sort_unstable();
        tally
    }

    /// Establishes `flows` new flows, spread evenly over the VIPs, each with a lifetime of `life`
    /// milliseconds. Rows without a backend take none.
    pub fn establish(&mut self, flows: u64, life: u64) {
        self.establish_with(flows, |_| life);
    }

    fn establish_with(&mut self, flows: u64, life: impl Fn(&mut Random) -> u64 + Sync) {
        let (tables, now) = (&self.tables, self.now);
        self.shards.par_iter_mut().enumerate().for_each(|(place, shard)| {
            let share = flows / SHARDS + u64::from((place as u64) < flows % SHARDS);
            for _ in 0..share {
                let Some(flow) = tables.random_flow(&mut shard.random) else { return };
                let life = life(&mut shard.random);
                shard.add(tables, Flow { ends: now.saturating_add(life), ..flow });
            }
        });
    }

    /// Establishes new flows until every row has one that lives for `life` milliseconds. The tables
    /// must hash the source address.
    pub fn establish_in_every_row(&mut self, life: u64) {
        let mut has_flow = vec![vec![false; ROWS]; self.tables.len()];
        let mut missing = self.tables.in_force() * ROWS;
        while missing > 0 {
            let shard = &mut self.shards[missing % SHARDS as usize];
            let Some(flow) = self.tables.random_flow(&mut shard.random) else { return };
            let Some((table, row)) = self.tables.place(&flow) else { return };
            if !std::mem::replace(&mut has_flow[table][usize::from(row)], true) {
                missing -= 1;
                let ends = self.now.saturating_add(life);
                shard.add(&self.tables, Flow { ends, ..flow });
            }
        }
    }

    /// Establishes a flow that lives until the end, and returns the number that it is traced under,
    /// or `None` if no bind matches.
    pub fn trace(&mut self, flow: &FlowQuery) -> Option<u32> {
        let port = flow.port?;
        let target = self.tables.target(Target::new(flow.vip, port, flow.proto));
        let client = tuple(flow.source, flow.vip)?.source;
        let number = self.traced;
        let flow = Flow {
            client,
            ends: u64::MAX,
            number,
            target,
            holder: NONE,
            row: 0,
            port: flow.source_port.unwrap_or_default(),
        };
        let shard = &mut self.shards[number as usize % SHARDS as usize];
        let is_added = shard.add(&self.tables, flow);
        self.traced += u32::from(is_added);
        is_added.then_some(number)
    }

    /// Ends all flows of a backend, and returns their number.
    pub fn end_flows_of(&mut self, backend: IpAddr) -> u64 {
        let (tables, now) = (&self.tables, self.now);
        let ended = self.shards.par_iter_mut().map(|shard| {
            let before = shard.flows.iter().filter(|flow| flow.ends > now).count();
            shard.flows.retain(|flow| flow.ends > now && tables.address(flow.holder) != backend);
            (before - shard.flows.len()) as u64
        });
        ended.sum()
    }

    /// The number of live flows.
    #[must_use]
    pub fn flows(&self) -> u64 {
        let live = |shard: &Shard| shard.flows.iter().filter(|flow| flow.ends > self.now).count();
        self.shards.par_iter().map(live).sum::<usize>() as u64
    }

    /// The number of live flows of each backend, over all tables.
    #[must_use]
    pub fn flows_per_backend(&self) -> HashMap<IpAddr, u64> {
        let mut held = vec![0_u64; self.tables.slots()];
        for flow in self.shards.iter().flat_map(|shard| &shard.flows) {
            held[flow.holder as usize] += u64::from(flow.ends > self.now);
        }
        let mut holders = HashMap::new();
        for (slot, flows) in (0..).zip(held) {
            *holders.entry(self.tables.address(slot)).or_default() += flows;
        }
        holders
    }

    /// The backend of a traced flow.
    #[must_use]
    pub fn holder(&self, number: u32) -> Option<IpAddr> {
        let shard = &self.shards[number as usize % SHARDS as usize];
        let flow = shard.flows.iter().find(|flow| flow.number == number)?;
        Some(self.tables.address(flow.holder))
    }

    /// How evenly flows and rows are spread over the backends that take new flows, for each table.
    #[must_use]
    pub fn load(&self, tally: &Tally) -> Vec<Load> {
        self.tables.load(&tally.held)
    }
}

impl Shard {
    /// Adds a flow; false if no backend takes it.
    fn add(&mut self, tables: &TableStates, mut flow: Flow) -> bool {
        let Some((table, row)) = tables.place(&flow) else { return false };
        let Some(holder) = tables.first(table, row) else { return false };
        (flow.row, flow.holder) = (row, holder);
        self.flows.push(flow);
        true
    }

    /// Sends a packet of every flow to its hops; drops flows that ended or broke.
    fn deliver(&mut self, tables: &TableStates, now: u64) -> Tally {
        let mut tally = Tally { held: vec![0; tables.slots()], ..Tally::default() };
        self.flows.retain_mut(|flow| {
            if flow.ends <= now {
                return false;
            }
            if let Err(cause) = tables.deliver(flow) {
                tally.broken.count(cause);
                if flow.number != NONE {
                    tally.traced.push((flow.number, cause));
                }
                return false;
            }
            tally.live += 1;
            tally.down += u64::from(!tables.is_up(flow.holder));
            tally.held[flow.holder as usize] += 1;
            true
        });
        tally
    }
}

/// A packet's addresses; `None` if their families differ.
fn tuple(source: IpAddr, vip: IpAddr) -> Option<FiveTuple> {
    use glb_common::flow::{V4, V6};
    match (source, vip) {
        (IpAddr::V4(source), IpAddr::V4(vip)) => {
            Some(FiveTuple::new(V4::new(source.octets()), V4::new(vip.octets()), 0))
        }
        (IpAddr::V6(source), IpAddr::V6(vip)) => {
            Some(FiveTuple::new(V6::new(source.octets()), V6::new(vip.octets()), 0))
        }
        _ => None,
    }
}
