//! The tables as they stand, with what has changed since the ones before.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use glb_common::{hash::flow_hash, parse::FiveTuple};
use ipnet::IpNet;

use super::{Cause, Flow, load, random::Random, tuple};
use crate::{
    Backend, Bind, BuiltTable, HashFields, Key, Proto, ROWS, Rows, Table,
    lookup::matching_bind_among,
};

/// No number.
pub(super) const NONE: u32 = u32::MAX;
/// Most pairs of VIP and port that random flows go to.
const TARGETS: usize = 256;

/// Where flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    vip: IpAddr,
    port: u16,
    proto: Proto,
}

impl Target {
    pub(super) fn new(vip: IpAddr, port: u16, proto: Proto) -> Self {
        Self { vip, port, proto }
    }
}

/// A target, and the table whose it is.
#[derive(Debug)]
struct Aim {
    target: Target,
    /// Its packets, without a client.
    tuple: FiveTuple,
    table: Option<usize>,
    /// Flows may be in another table or row than before.
    moved: bool,
}

/// A backend of one table.
#[derive(Debug)]
struct Slot {
    address: IpAddr,
    /// As it was last said to be.
    healthy: bool,
    /// Its flows are to be looked at again: it was down before.
    returned: bool,
}

/// Which rows have changed.
#[derive(Debug)]
enum Changed {
    Nothing,
    Rows(Vec<bool>),
    Everything,
}

/// One table.
#[derive(Debug)]
struct Standing {
    name: String,
    /// None if it is gone.
    built: Option<BuiltTable>,
    /// The slots of its backends, in their order.
    slots: Vec<u32>,
    changed: Changed,
}

#[derive(Debug)]
pub(super) struct Standings {
    tables: Vec<Standing>,
    slots: Vec<Slot>,
    slot_of: HashMap<(usize, IpAddr), u32>,
    aims: Vec<Aim>,
    aim_of: HashMap<Target, u32>,
    /// The aims of random flows.
    random_aims: Vec<u32>,
    /// The binds of each table by name, as they were last.
    binds: Vec<(String, Vec<Bind>)>,
}

impl Standings {
    pub(super) fn new() -> Self {
        Self {
            tables: Vec::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            aims: Vec::new(),
            aim_of: HashMap::new(),
            random_aims: Vec::new(),
            binds: Vec::new(),
        }
    }

    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    pub(super) fn in_force(&self) -> usize {
        self.tables.iter().filter(|standing| standing.built.is_some()).count()
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn address(&self, slot: u32) -> IpAddr {
        self.slots[slot as usize].address
    }

    pub(super) fn is_up(&self, slot: u32) -> bool {
        self.slots[slot as usize].healthy
    }

    /// How evenly each table in force is loaded; `held` has the flows of each slot.
    pub(super) fn load(&self, held: &[u64]) -> Vec<load::Load> {
        let there =
            self.tables.iter().filter_map(|standing| Some((standing, standing.built.as_ref()?)));
        there
            .map(|(standing, built)| {
                let held = |place: usize| {
                    held.get(standing.slots[place] as usize).copied().unwrap_or_default()
                };
                load::of(built, held)
            })
            .collect()
    }

    /// These tables are in force from now on.
    pub(super) fn change(&mut self, built: &[BuiltTable]) {
        self.slots.iter_mut().for_each(|slot| slot.returned = false);
        let mut rehashed = vec![false; self.tables.len()];
        for (place, standing) in self.tables.iter_mut().enumerate() {
            standing.changed = Changed::Nothing;
            if !built.iter().any(|built| built.table.name == standing.name) {
                standing.built = None;
                rehashed[place] = true;
            }
        }
        for built in built {
            let name = &built.table.name;
            let known = self.tables.iter().position(|standing| standing.name == *name);
            let place = known.unwrap_or_else(|| {
                let (name, slots, changed) = (name.clone(), Vec::new(), Changed::Nothing);
                self.tables.push(Standing { name, built: None, slots, changed });
                rehashed.push(true);
                self.tables.len() - 1
            });
            rehashed[place] |= self.adopt(place, built);
        }
        let others = self.aim(built);
        for aim in &mut self.aims {
            let table = if others { table_of(&self.tables, &aim.target) } else { aim.table };
            aim.moved = aim.table != table || table.is_some_and(|table| rehashed[table]);
            aim.table = table;
        }
    }

    /// Nothing has changed since.
    pub(super) fn settle(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.returned = false);
        self.aims.iter_mut().for_each(|aim| aim.moved = false);
        self.tables.iter_mut().for_each(|standing| standing.changed = Changed::Nothing);
    }

    /// One table as it is now; whether its flows are in other rows.
    fn adopt(&mut self, place: usize, built: &BuiltTable) -> bool {
        let mut ill = vec![false; self.slots.len()];
        let slots: Vec<u32> = built
            .table
            .backends
            .iter()
            .map(|backend| {
                let slot = self.slot(place, backend);
                ill.resize(self.slots.len(), false);
                let known = &mut self.slots[slot as usize];
                ill[slot as usize] = known.healthy != backend.healthy;
                known.returned = backend.healthy && !known.healthy;
                known.healthy = backend.healthy;
                slot
            })
            .collect();
        let standing = &mut self.tables[place];
        let old = standing.built.replace(built.clone());
        let old_slots = std::mem::replace(&mut standing.slots, slots);
        let Some(old) = old else {
            standing.changed = Changed::Everything;
            return true;
        };
        let ways = |built: &BuiltTable| (hash_of(&built.table), alternative_of(&built.table));
        standing.changed = if ways(&old).1 != ways(built).1 || built.alternative.is_some() {
            // The other row of a flow is not known by its row.
            Changed::Everything
        } else {
            changed((&old.rows, &old_slots), (&built.rows, &standing.slots), &ill)
        };
        ways(&old).0 != ways(built).0
    }

    fn slot(&mut self, table: usize, backend: &Backend) -> u32 {
        let next = self.slots.len() as u32;
        let slot = *self.slot_of.entry((table, backend.address)).or_insert(next);
        if slot == next {
            let Backend { address, healthy, .. } = *backend;
            self.slots.push(Slot { address, healthy, returned: false });
        }
        slot
    }

    /// Chooses where random flows go, if binds have changed; whether they have.
    fn aim(&mut self, built: &[BuiltTable]) -> bool {
        let binds = built.iter().map(|built| (&built.table.name, &built.table.binds));
        if binds.clone().eq(self.binds.iter().map(|(name, binds)| (name, binds))) {
            return false;
        }
        self.binds = binds.map(|(name, binds)| (name.clone(), binds.clone())).collect();
        let all: Vec<&Bind> = built.iter().flat_map(|built| &built.table.binds).collect();
        let mut chosen = Vec::new();
        // Both ends of networks and ranges; of many binds some.
        let many = all.len().div_ceil(TARGETS / 4).max(1);
        for bind in all.into_iter().step_by(many) {
            let (first, last) = match bind.prefix {
                IpNet::V4(net) => (net.network().into(), net.broadcast().into()),
                IpNet::V6(net) => (IpAddr::from(net.network()), net.broadcast().into()),
            };
            for vip in [first, last] {
                for port in [*bind.ports.start(), *bind.ports.end()] {
                    let target = Target::new(vip, port, bind.proto);
                    if !chosen.contains(&target) {
                        chosen.push(target);
                    }
                }
            }
        }
        self.random_aims = chosen.into_iter().map(|target| self.target(target)).collect();
        true
    }

    /// The number of a target.
    pub(super) fn target(&mut self, target: Target) -> u32 {
        let next = self.aims.len() as u32;
        let number = *self.aim_of.entry(target).or_insert(next);
        if number == next {
            let table = table_of(&self.tables, &target);
            let protocol = target.proto.number();
            let tuple = tuple(target.vip, target.vip).unwrap_or_default();
            let tuple = FiveTuple { destination_port: target.port, protocol, ..tuple };
            self.aims.push(Aim { target, tuple, table, moved: false });
        }
        number
    }

    /// A flow of a random client to any VIP; it has no row and no holder yet.
    pub(super) fn random_flow(&self, random: &mut Random) -> Option<Flow> {
        if self.random_aims.is_empty() {
            return None;
        }
        let target = self.random_aims[random.below(self.random_aims.len())];
        let ports = random.next();
        let client = match self.aims[target as usize].target.vip {
            IpAddr::V4(_) => [0, random.next() >> 32],
            IpAddr::V6(_) => {
                let address = Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(random.next()));
                tuple(address.into(), address.into())?.source
            }
        };
        let (number, holder) = (NONE, NONE);
        Some(Flow { client, ends: 0, number, target, holder, row: 0, port: ports as u16 | 1024 })
    }

    /// The table and row of a flow, if any table's bind is for it.
    pub(super) fn place(&self, flow: &Flow) -> Option<(usize, u16)> {
        let table = self.aims[flow.target as usize].table?;
        let built = self.tables[table].built.as_ref()?;
        Some((table, self.row(flow, hash_of(&built.table))))
    }

    fn row(&self, flow: &Flow, (key, fields): (Key, HashFields)) -> u16 {
        let tuple = self.aims[flow.target as usize].tuple;
        let tuple = FiveTuple { source: flow.client, source_port: flow.port, ..tuple };
        flow_hash(key.words(), fields, &tuple) as u16
    }

    /// Who takes the first packet.
    pub(super) fn first(&self, table: usize, row: u16) -> Option<u32> {
        let standing = &self.tables[table];
        let first = standing.built.as_ref()?.rows.row(usize::from(row)).first()?;
        Some(standing.slots[usize::from(*first)])
    }

    /// Whether the packets of a flow still reach its backend. A flow of a backend that is down is
    /// left as it is.
    pub(super) fn walk(&self, flow: &mut Flow) -> Result<(), Cause> {
        let aim = &self.aims[flow.target as usize];
        let Some(table) = aim.table else { return Err(Cause::Moved) };
        let mut other_table = false;
        if aim.moved {
            let Some((_, row)) = self.place(flow) else { return Err(Cause::Moved) };
            flow.row = row;
            // The same machine may serve in another table.
            let slot = self.slot_of.get(&(table, self.address(flow.holder)));
            let slot = *slot.ok_or(Cause::Moved)?;
            other_table = slot != flow.holder;
            flow.holder = slot;
        }
        let standing = &self.tables[table];
        let slot = &self.slots[flow.holder as usize];
        let is_same = match &standing.changed {
            Changed::Nothing => true,
            Changed::Rows(rows) => !rows[usize::from(flow.row)],
            Changed::Everything => false,
        };
        if !slot.healthy || is_same && !aim.moved && !slot.returned {
            return Ok(());
        }
        match self.end(standing, flow) {
            Err(_) if other_table => Err(Cause::Moved),
            end => end,
        }
    }

    fn end(&self, standing: &Standing, flow: &Flow) -> Result<(), Cause> {
        let Some(built) = &standing.built else { return Err(Cause::Moved) };
        let alternative = built
            .alternative
            .as_deref()
            .map(|rows| rows.row(usize::from(self.row(flow, alternative_hash(&built.table)))));
        let main = built.rows.row(usize::from(flow.row));
        for hop in main.iter().chain(alternative.unwrap_or_default()) {
            let slot = standing.slots[usize::from(*hop)];
            if !self.is_up(slot) {
                return Err(Cause::Dead);
            }
            if slot == flow.holder {
                return Ok(());
            }
        }
        Err(Cause::Reset)
    }
}

/// The table whose bind is for it.
fn table_of(tables: &[Standing], target: &Target) -> Option<usize> {
    let there = tables.iter().filter_map(|standing| Some(&standing.built.as_ref()?.table));
    let (found, _) = matching_bind_among(there, target.vip, target.port, target.proto)?;
    tables.iter().position(|standing| standing.name == found.name)
}

fn hash_of(table: &Table) -> (Key, HashFields) {
    (table.hash_key, table.hash_fields)
}

fn alternative_hash(table: &Table) -> (Key, HashFields) {
    let key = table.alt_hash_key.unwrap_or(table.hash_key);
    (key, table.alt_hash_fields.unwrap_or(table.hash_fields))
}

/// All that the alternative hops follow from, but for the rows.
fn alternative_of(table: &Table) -> Option<(Key, HashFields, Option<Key>)> {
    let (key, fields) = alternative_hash(table);
    table.has_alternative().then_some((key, fields, table.alt_seed))
}

/// In which rows other hops stand, or some that are now well or ill.
fn changed(old: (&Rows, &[u32]), new: (&Rows, &[u32]), ill: &[bool]) -> Changed {
    if std::ptr::eq(old.0, new.0) && old.1 == new.1 {
        return Changed::Nothing;
    }
    let of = |(rows, slots): (&Rows, &[u32]), row: usize, place: usize| {
        Some(slots[usize::from(*rows.row(row).get(place)?)])
    };
    let rows = (0..ROWS).map(|row| {
        (0..old.0.hops.max(new.0.hops)).any(|place| {
            let slot = of(new, row, place);
            of(old, row, place) != slot || slot.is_some_and(|slot| ill[slot as usize])
        })
    });
    Changed::Rows(rows.collect())
}
