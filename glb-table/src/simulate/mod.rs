//! Flows, one by one, through a sequence of tables: the plan's claims put to the proof.
//!
//! This knows nothing of holders. Each flow remembers which backend took its first packet; at each
//! new table its packets walk the hops that they would carry, as the backends would let them. A table
//! moves few rows, so a flow is looked at again only where its row has changed.

mod lifetimes;
mod load;
mod maintenance;
mod random;
mod run;
mod table_state;

use std::{collections::HashMap, net::IpAddr};

use glb_common::parse::FiveTuple;
pub use lifetimes::Lifetimes;
pub use load::{Load, Spread};
pub use maintenance::{Kind, KindReport, Maintenance, MaintenanceReport, fleet};
use random::Random;
use rayon::prelude::*;
pub use run::{Listed, ListedReport, Options, Progress, Report, StepReport, sequence};
use serde::Serialize;
use table_state::{NONE, Standings, Target};

use crate::{BuiltTable, ROWS, lookup::FlowQuery};

/// Parts that the flows are kept in; each has random numbers of its own, so that the result does not
/// depend on how many processors there are.
const SHARDS: u64 = 64;

/// Why a flow broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Its packets end at a backend that does not know it, which answers with a reset.
    Reset,
    /// Its packets are sent to a backend that is down, before its own is asked.
    Dead,
    /// Its VIP and port are no longer this table's, and where they go now nobody knows it.
    Moved,
}

/// Flows that broke, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// See [`Cause::Reset`].
    pub reset: u64,
    /// See [`Cause::Dead`].
    pub dead: u64,
    /// See [`Cause::Moved`].
    pub moved: u64,
}

impl Broken {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.reset + self.dead + self.moved
    }

    fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Reset => &mut self.reset,
            Cause::Dead => &mut self.dead,
            Cause::Moved => &mut self.moved,
        } += 1;
    }

    fn add(&mut self, other: Self) {
        self.reset += other.reset;
        self.dead += other.dead;
        self.moved += other.moved;
    }
}

/// One established flow.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// The client's address, as [`FiveTuple::source`].
    client: [u64; 2],
    /// In milliseconds of [`Simulation::now`].
    ends: u64,
    /// Its number, if it is one of those that are followed one by one.
    number: u32,
    target: u32,
    /// A slot of [`Standings`]: the backend that took it.
    holder: u32,
    row: u16,
    port: u16,
}

#[derive(Clone, Debug)]
struct Shard {
    flows: Vec<Flow>,
    random: Random,
}

/// What a new table did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Flows that it broke. They are gone.
    pub broken: Broken,
    /// Flows that live on, those of backends that are down included.
    pub live: u64,
    /// Of these, flows of backends that are down: whether they live is not the table's doing, and so
    /// they are neither broken nor gone.
    pub down: u64,
    /// Of the flows that are followed one by one, those that broke.
    pub followed: Vec<(u32, Cause)>,
    /// Live flows of each slot.
    held: Vec<u64>,
}

impl Tally {
    fn add(mut self, other: Self) -> Self {
        self.broken.add(other.broken);
        self.live += other.live;
        self.down += other.down;
        self.followed.extend(other.followed);
        if self.held.len() < other.held.len() {
            self.held.resize(other.held.len(), 0);
        }
        self.held.iter_mut().zip(&other.held).for_each(|(all, more)| *all += more);
        self
    }
}

/// Flows of all tables of a set.
#[derive(Debug)]
pub struct Simulation {
    standings: Standings,
    shards: Vec<Shard>,
    now: u64,
    followed: u32,
}

impl Simulation {
    /// No tables and no flows yet; `seed` chooses the flows' addresses and lives.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let shard = |stream| Shard { flows: Vec::new(), random: Random::new(seed, stream) };
        Self {
            standings: Standings::new(),
            shards: (0..SHARDS).map(shard).collect(),
            now: 0,
            followed: 0,
        }
    }

    /// Time passes; flows come to their end.
    pub fn pass(&mut self, milliseconds: u64) {
        self.now = self.now.saturating_add(milliseconds);
    }

    /// New tables come into force: which flows they break.
    pub fn apply(&mut self, built: &[BuiltTable]) -> Tally {
        self.standings.change(built);
        self.walk()
    }

    /// The flows as they are, by the tables that are in force.
    pub(crate) fn look(&mut self) -> Tally {
        self.standings.settle();
        self.walk()
    }

    fn walk(&mut self) -> Tally {
        let (standings, now) = (&self.standings, self.now);
        let shards = self.shards.par_iter_mut();
        let mut tally =
            shards.map(|shard| shard.walk(standings, now)).reduce(Tally::default, Tally::add);
        tally.followed.sort_unstable();
        tally
    }

    /// So many new flows come, to all VIPs alike, and live so many milliseconds. A row without a
    /// backend takes none.
    pub fn establish(&mut self, flows: u64, life: u64) {
        self.grow(flows, |_| life);
    }

    fn grow(&mut self, flows: u64, life: impl Fn(&mut Random) -> u64 + Sync) {
        let (standings, now) = (&self.standings, self.now);
        self.shards.par_iter_mut().enumerate().for_each(|(place, shard)| {
            let mine = flows / SHARDS + u64::from((place as u64) < flows % SHARDS);
            for _ in 0..mine {
                let Some(flow) = standings.random_flow(&mut shard.random) else { return };
                let life = life(&mut shard.random);
                shard.add(standings, Flow { ends: now.saturating_add(life), ..flow });
            }
        });
    }

    /// New flows come until every row has got one that lives so many milliseconds. The tables must
    /// hash the source address.
    pub fn establish_in_every_row(&mut self, life: u64) {
        let mut there = vec![vec![false; ROWS]; self.standings.tables()];
        let mut missing = self.standings.in_force() * ROWS;
        while missing > 0 {
            let shard = &mut self.shards[missing % SHARDS as usize];
            let Some(flow) = self.standings.random_flow(&mut shard.random) else { return };
            let Some((table, row)) = self.standings.place(&flow) else { return };
            if !std::mem::replace(&mut there[table][usize::from(row)], true) {
                missing -= 1;
                let ends = self.now.saturating_add(life);
                shard.add(&self.standings, Flow { ends, ..flow });
            }
        }
    }

    /// A flow that is there and lives until the end, and is followed under the number that is
    /// returned; none if no bind is for it.
    pub fn follow(&mut self, flow: &FlowQuery) -> Option<u32> {
        let port = flow.port?;
        let target = self.standings.target(Target::new(flow.vip, port, flow.proto));
        let client = tuple(flow.source, flow.vip)?.source;
        let number = self.followed;
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
        let there = shard.add(&self.standings, flow);
        self.followed += u32::from(there);
        there.then_some(number)
    }

    /// A backend's flows have ended: how many there were.
    pub fn drained(&mut self, backend: IpAddr) -> u64 {
        let (standings, now) = (&self.standings, self.now);
        let gone = self.shards.par_iter_mut().map(|shard| {
            let before = shard.flows.iter().filter(|flow| flow.ends > now).count();
            shard.flows.retain(|flow| flow.ends > now && standings.address(flow.holder) != backend);
            (before - shard.flows.len()) as u64
        });
        gone.sum()
    }

    /// How many flows live.
    #[must_use]
    pub fn flows(&self) -> u64 {
        let live = |shard: &Shard| shard.flows.iter().filter(|flow| flow.ends > self.now).count();
        self.shards.par_iter().map(live).sum::<usize>() as u64
    }

    /// How many live flows each backend holds, over all tables.
    #[must_use]
    pub fn holders(&self) -> HashMap<IpAddr, u64> {
        let mut held = vec![0_u64; self.standings.slots()];
        for flow in self.shards.iter().flat_map(|shard| &shard.flows) {
            held[flow.holder as usize] += u64::from(flow.ends > self.now);
        }
        let mut holders = HashMap::new();
        for (slot, flows) in (0..).zip(held) {
            *holders.entry(self.standings.address(slot)).or_default() += flows;
        }
        holders
    }

    /// Who holds a flow that is followed.
    #[must_use]
    pub fn holder(&self, number: u32) -> Option<IpAddr> {
        let shard = &self.shards[number as usize % SHARDS as usize];
        let flow = shard.flows.iter().find(|flow| flow.number == number)?;
        Some(self.standings.address(flow.holder))
    }

    /// How evenly each table's flows and rows lie on the backends that take new ones.
    #[must_use]
    pub fn load(&self, tally: &Tally) -> Vec<Load> {
        self.standings.load(&tally.held)
    }
}

impl Shard {
    /// Whether a backend takes the flow.
    fn add(&mut self, standings: &Standings, mut flow: Flow) -> bool {
        let Some((table, row)) = standings.place(&flow) else { return false };
        let Some(holder) = standings.first(table, row) else { return false };
        (flow.row, flow.holder) = (row, holder);
        self.flows.push(flow);
        true
    }

    /// Lets every flow's packets walk by the new tables.
    fn walk(&mut self, standings: &Standings, now: u64) -> Tally {
        let mut tally = Tally { held: vec![0; standings.slots()], ..Tally::default() };
        self.flows.retain_mut(|flow| {
            if flow.ends <= now {
                return false;
            }
            if let Err(cause) = standings.walk(flow) {
                tally.broken.count(cause);
                if flow.number != NONE {
                    tally.followed.push((flow.number, cause));
                }
                return false;
            }
            tally.live += 1;
            tally.down += u64::from(!standings.is_up(flow.holder));
            tally.held[flow.holder as usize] += 1;
            true
        });
        tally
    }
}

/// Addresses as a packet's; none if they are of different families.
fn tuple(source: IpAddr, vip: IpAddr) -> Option<FiveTuple> {
    use glb_common::hash::{V4, V6};
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
