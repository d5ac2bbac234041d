//! Flows, one by one, through a sequence of tables: the plan's claims put to the proof.
//!
//! This knows nothing of holders. Each flow remembers which backend took its first packet; at each
//! new table its packets walk the hops that they would carry, as the backends would let them.

use std::{collections::HashMap, net::IpAddr};

use glb_common::siphash::SipHash24;

use crate::{Built, HashFields, Key, ROWS, Rows, Table};

/// One established flow of one table.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Stands for its addresses and ports.
    id: u64,
    holder: IpAddr,
    ends: u64,
}

/// Flows of one table.
#[derive(Debug)]
pub struct Simulation {
    flows: Vec<Flow>,
    healthy: HashMap<IpAddr, bool>,
    now: u64,
    flow_age: u64,
    random: u64,
}

/// Where a flow's packets end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At its backend.
    Reached,
    /// At a backend that is down.
    Dead,
    /// At a backend that does not know it, which answers with a reset.
    Reset,
}

impl Simulation {
    /// No flows yet. Each lives `flow_age` seconds; `seed` chooses their addresses.
    #[must_use]
    pub fn new(flow_age: u64, seed: u64) -> Self {
        Self { flows: Vec::new(), healthy: HashMap::new(), now: 0, flow_age, random: seed }
    }

    /// How many flows live.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// New flows come until every row has got one.
    pub fn establish_in_every_row(&mut self, built: &Built) {
        let mut missing = ROWS;
        let mut there = vec![false; ROWS];
        while missing > 0 {
            let id = self.next();
            let row = main_row(&built.table, id);
            if !there[row] {
                there[row] = true;
                missing -= 1;
                self.establish(built, id, row);
            }
        }
    }

    /// So many new flows come, in any rows.
    pub fn establish_any(&mut self, built: &Built, flows: usize) {
        for _ in 0..flows {
            let id = self.next();
            self.establish(built, id, main_row(&built.table, id));
        }
    }

    fn establish(&mut self, built: &Built, id: u64, row: usize) {
        if let Some(first) = built.rows.row(row).first() {
            let holder = built.table.backends[usize::from(*first)].address;
            self.flows.push(Flow { id, holder, ends: self.now.saturating_add(self.flow_age) });
        }
    }

    /// Time passes; flows come to their end.
    pub fn pass(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(seconds);
        self.flows.retain(|flow| flow.ends > self.now);
    }

    /// A backend's flows have ended.
    pub fn drained(&mut self, backend: IpAddr) {
        self.flows.retain(|flow| flow.holder != backend);
    }

    /// A new table comes into force: how many flows it breaks. They are gone then. Flows of a
    /// backend that is down are neither broken nor gone: whether they live is not the table's doing.
    pub fn apply(&mut self, built: &Built) -> usize {
        self.healthy
            .extend(built.table.backends.iter().map(|backend| (backend.address, backend.healthy)));
        let before = self.flows.len();
        let healthy = &self.healthy;
        self.flows.retain(|flow| {
            let is_down = healthy.get(&flow.holder) == Some(&false);
            is_down || walk(built, flow.id, flow.holder) == Outcome::Reached
        });
        before - self.flows.len()
    }
}

fn row(key: Key, fields: HashFields, id: u64) -> usize {
    // Different fields of a flow are as good as different flows.
    let mut hash = SipHash24::new(key.words());
    hash.feed_word(id);
    hash.feed_2([fields.bits(), 0]);
    (hash.finish() & 0xffff) as usize
}

fn main_row(table: &Table, id: u64) -> usize {
    row(table.hash_key, table.hash_fields, id)
}

/// Where the packets of a flow that `holder` took end.
fn walk(built: &Built, id: u64, holder: IpAddr) -> Outcome {
    let table = &built.table;
    let main = (&*built.rows, main_row(table, id));
    let key = table.alt_hash_key.unwrap_or(table.hash_key);
    let fields = table.alt_hash_fields.unwrap_or(table.hash_fields);
    let alternative = built.alternative.as_deref().map(|rows| (rows, row(key, fields, id)));
    let hops = |(rows, row): (&'_ Rows, usize)| rows.row(row).to_vec();
    for hop in hops(main).into_iter().chain(alternative.map(hops).unwrap_or_default()) {
        let backend = &table.backends[usize::from(hop)];
        if !backend.healthy {
            return Outcome::Dead;
        }
        if backend.address == holder {
            return Outcome::Reached;
        }
    }
    Outcome::Reset
}
