//! The tables in force, and which rows the last activation changed.
//!
//! A change of a table moves few rows, so a flow's packets are followed again only where the flow's
//! row has changed.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use glb_common::{flow::FiveTuple, hash::flow_hash};
use ipnet::IpNet;

use crate::{Cause, Flow, load, random::Random, tuple};
use glb_table::{
    Backend, Bind, BuiltTable, HashFields, Key, Proto, ROWS, Rows, Table,
    lookup::matching_bind_among,
};

/// The absence of a slot or flow number.
pub(crate) const NONE: u32 = u32::MAX;
/// Largest number of VIP and port pairs that random flows go to.
const MAX_TARGETS: usize = 256;

/// The VIP, port and protocol of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    vip: IpAddr,
    port: u16,
    proto: Proto,
}

impl Target {
    pub(crate) fn new(vip: IpAddr, port: u16, proto: Proto) -> Self {
        Self { vip, port, proto }
    }
}

/// A target, with the table that serves it.
#[derive(Debug)]
struct TargetState {
    target: Target,
    /// The flow's addresses and ports, without the client's.
    tuple: FiveTuple,
    table: Option<usize>,
    /// The last activation may have moved flows to another table or row.
    moved: bool,
}

/// A backend of one table.
#[derive(Debug)]
struct BackendSlot {
    address: IpAddr,
    /// Its health in the last table that had it.
    healthy: bool,
    /// It was down before the last activation and is up now.
    recovered: bool,
}

/// The rows that the last activation changed.
#[derive(Debug)]
enum Changed {
    Nothing,
    Rows(Vec<bool>),
    Everything,
}

/// One table in force.
#[derive(Debug)]
struct TableState {
    name: String,
    /// `None` if the table has been removed.
    built: Option<BuiltTable>,
    /// The slots of its backends, in the table's order.
    slots: Vec<u32>,
    changed: Changed,
}

/// All tables in force, and all backends and targets seen so far.
#[derive(Debug)]
pub(crate) struct TableStates {
    tables: Vec<TableState>,
    slots: Vec<BackendSlot>,
    slot_of: HashMap<(usize, IpAddr), u32>,
    targets: Vec<TargetState>,
    target_numbers: HashMap<Target, u32>,
    /// The targets of random flows.
    random_targets: Vec<u32>,
    /// The binds of each table by name, as of the last activation.
    binds: Vec<(String, Vec<Bind>)>,
}

impl TableStates {
    pub(crate) fn new() -> Self {
        Self {
            tables: Vec::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            targets: Vec::new(),
            target_numbers: HashMap::new(),
            random_targets: Vec::new(),
            binds: Vec::new(),
        }
    }

    /// Number of tables seen so far, including removed ones.
    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    /// Number of tables in force.
    pub(crate) fn in_force(&self) -> usize {
        self.tables.iter().filter(|state| state.built.is_some()).count()
    }

    /// Number of backend slots.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The address of a slot's backend.
    pub(crate) fn address(&self, slot: u32) -> IpAddr {
        self.slots[slot as usize].address
    }

    /// Whether a slot's backend is healthy.
    pub(crate) fn is_up(&self, slot: u32) -> bool {
        self.slots[slot as usize].healthy
    }

    /// The load of each table in force; `held` has the number of flows of each slot.
    pub(crate) fn load(&self, held: &[u64]) -> Vec<load::Load> {
        let in_force = self.tables.iter().filter_map(|state| Some((state, state.built.as_ref()?)));
        in_force
            .map(|(state, built)| {
                let held = |place: usize| {
                    held.get(state.slots[place] as usize).copied().unwrap_or_default()
                };
                load::load_of(built, held)
            })
            .collect()
    }

    /// Puts tables into force.
    pub(crate) fn activate(&mut self, built: &[BuiltTable]) {
        self.slots.iter_mut().for_each(|slot| slot.recovered = false);
        let mut rehashed = vec![false; self.tables.len()];
        for (place, state) in self.tables.iter_mut().enumerate() {
            state.changed = Changed::Nothing;
            if !built.iter().any(|built| built.table.name == state.name) {
                state.built = None;
                rehashed[place] = true;
            }
        }
        for built in built {
            let name = &built.table.name;
            let known = self.tables.iter().position(|state| state.name == *name);
            let place = known.unwrap_or_else(|| {
                let (name, slots, changed) = (name.clone(), Vec::new(), Changed::Nothing);
                self.tables.push(TableState { name, built: None, slots, changed });
                rehashed.push(true);
                self.tables.len() - 1
            });
            rehashed[place] |= self.activate_table(place, built);
        }
        let binds_changed = self.choose_targets(built);
        for state_of_target in &mut self.targets {
            let table = if binds_changed {
                table_of(&self.tables, &state_of_target.target)
            } else {
                state_of_target.table
            };
            state_of_target.moved =
                state_of_target.table != table || table.is_some_and(|table| rehashed[table]);
            state_of_target.table = table;
        }
    }

    /// Forgets which rows the last activation changed.
    pub(crate) fn clear_changes(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.recovered = false);
        self.targets.iter_mut().for_each(|state_of_target| state_of_target.moved = false);
        self.tables.iter_mut().for_each(|state| state.changed = Changed::Nothing);
    }

    /// Puts one table into force; true if its flows may be in other rows than before.
    fn activate_table(&mut self, place: usize, built: &BuiltTable) -> bool {
        let mut health_changed = vec![false; self.slots.len()];
        let slots: Vec<u32> = built
            .table
            .backends
            .iter()
            .map(|backend| {
                let slot = self.slot(place, backend);
                health_changed.resize(self.slots.len(), false);
                let known = &mut self.slots[slot as usize];
                health_changed[slot as usize] = known.healthy != backend.healthy;
                known.recovered = backend.healthy && !known.healthy;
                known.healthy = backend.healthy;
                slot
            })
            .collect();
        let state = &mut self.tables[place];
        let old = state.built.replace(built.clone());
        let old_slots = std::mem::replace(&mut state.slots, slots);
        let Some(old) = old else {
            state.changed = Changed::Everything;
            return true;
        };
        let hashes = |built: &BuiltTable| (hash_of(&built.table), alternative_of(&built.table));
        state.changed = if hashes(&old).1 != hashes(built).1 || built.alternative.is_some() {
            // A flow's row does not tell its alternative row.
            Changed::Everything
        } else {
            changed((&old.rows, &old_slots), (&built.rows, &state.slots), &health_changed)
        };
        hashes(&old).0 != hashes(built).0
    }

    /// The slot of a table's backend; a new one if the table did not have the backend.
    fn slot(&mut self, table: usize, backend: &Backend) -> u32 {
        let next = self.slots.len() as u32;
        let slot = *self.slot_of.entry((table, backend.address)).or_insert(next);
        if slot == next {
            let Backend { address, healthy, .. } = *backend;
            self.slots.push(BackendSlot { address, healthy, recovered: false });
        }
        slot
    }

    /// Chooses the targets of random flows if the binds have changed; true if they have.
    fn choose_targets(&mut self, built: &[BuiltTable]) -> bool {
        let binds = built.iter().map(|built| (&built.table.name, &built.table.binds));
        if binds.clone().eq(self.binds.iter().map(|(name, binds)| (name, binds))) {
            return false;
        }
        self.binds = binds.map(|(name, binds)| (name.clone(), binds.clone())).collect();
        let all: Vec<&Bind> = built.iter().flat_map(|built| &built.table.binds).collect();
        let mut chosen = Vec::new();
        // Both ends of each prefix and port range; of many binds only every n-th.
        let stride = all.len().div_ceil(MAX_TARGETS / 4).max(1);
        for bind in all.into_iter().step_by(stride) {
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
        self.random_targets = chosen.into_iter().map(|target| self.target(target)).collect();
        true
    }

    /// The number of a target; a new one if the target is new.
    pub(crate) fn target(&mut self, target: Target) -> u32 {
        let next = self.targets.len() as u32;
        let number = *self.target_numbers.entry(target).or_insert(next);
        if number == next {
            let table = table_of(&self.tables, &target);
            let protocol = target.proto.number();
            let tuple = tuple(target.vip, target.vip).unwrap_or_default();
            let tuple = FiveTuple { destination_port: target.port, protocol, ..tuple };
            self.targets.push(TargetState { target, tuple, table, moved: false });
        }
        number
    }

    /// A flow from a random client to a random target. It has no row and no backend yet.
    pub(crate) fn random_flow(&self, random: &mut Random) -> Option<Flow> {
        if self.random_targets.is_empty() {
            return None;
        }
        let target = self.random_targets[random.below(self.random_targets.len())];
        let ports = random.next();
        let client = match self.targets[target as usize].target.vip {
            IpAddr::V4(_) => [0, random.next() >> 32],
            IpAddr::V6(_) => {
                let address = Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(random.next()));
                tuple(address.into(), address.into())?.source
            }
        };
        let (number, holder) = (NONE, NONE);
        Some(Flow { client, ends: 0, number, target, holder, row: 0, port: ports as u16 | 1024 })
    }

    /// The table and row of a flow, or `None` if no bind matches.
    pub(crate) fn place(&self, flow: &Flow) -> Option<(usize, u16)> {
        let table = self.targets[flow.target as usize].table?;
        let built = self.tables[table].built.as_ref()?;
        Some((table, self.row(flow, hash_of(&built.table))))
    }

    fn row(&self, flow: &Flow, (key, fields): (Key, HashFields)) -> u16 {
        let tuple = self.targets[flow.target as usize].tuple;
        let tuple = FiveTuple { source: flow.client, source_port: flow.port, ..tuple };
        flow_hash(key.words(), fields, &tuple) as u16
    }

    /// The slot of a row's first hop, which takes new flows.
    pub(crate) fn first(&self, table: usize, row: u16) -> Option<u32> {
        let state = &self.tables[table];
        let first = state.built.as_ref()?.rows.row(usize::from(row)).first()?;
        Some(state.slots[usize::from(*first)])
    }

    /// Tells whether the packets of a flow still reach its backend. Flows of a backend that is down
    /// are left as they are.
    pub(crate) fn deliver(&self, flow: &mut Flow) -> Result<(), Cause> {
        let state_of_target = &self.targets[flow.target as usize];
        let Some(table) = state_of_target.table else { return Err(Cause::Moved) };
        let mut other_table = false;
        if state_of_target.moved {
            let Some((_, row)) = self.place(flow) else { return Err(Cause::Moved) };
            flow.row = row;
            // The backend may serve in the other table too.
            let slot = self.slot_of.get(&(table, self.address(flow.holder)));
            let slot = *slot.ok_or(Cause::Moved)?;
            other_table = slot != flow.holder;
            flow.holder = slot;
        }
        let state = &self.tables[table];
        let slot = &self.slots[flow.holder as usize];
        let is_same = match &state.changed {
            Changed::Nothing => true,
            Changed::Rows(rows) => !rows[usize::from(flow.row)],
            Changed::Everything => false,
        };
        if !slot.healthy || is_same && !state_of_target.moved && !slot.recovered {
            return Ok(());
        }
        match self.follow_hops(state, flow) {
            Err(_) if other_table => Err(Cause::Moved),
            delivered => delivered,
        }
    }

    /// Follows a packet from hop to hop.
    fn follow_hops(&self, state: &TableState, flow: &Flow) -> Result<(), Cause> {
        let Some(built) = &state.built else { return Err(Cause::Moved) };
        let alternative = built
            .alternative
            .as_deref()
            .map(|rows| rows.row(usize::from(self.row(flow, alternative_hash(&built.table)))));
        let main = built.rows.row(usize::from(flow.row));
        for hop in main.iter().chain(alternative.unwrap_or_default()) {
            let slot = state.slots[usize::from(*hop)];
            if !self.is_up(slot) {
                return Err(Cause::DeadHop);
            }
            if slot == flow.holder {
                return Ok(());
            }
        }
        Err(Cause::Reset)
    }
}

/// The place of the table that serves a target.
fn table_of(tables: &[TableState], target: &Target) -> Option<usize> {
    let in_force = tables.iter().filter_map(|state| Some(&state.built.as_ref()?.table));
    let (found, _) = matching_bind_among(in_force, target.vip, target.port, target.proto)?;
    tables.iter().position(|state| state.name == found.name)
}

fn hash_of(table: &Table) -> (Key, HashFields) {
    (table.hash_key, table.hash_fields)
}

fn alternative_hash(table: &Table) -> (Key, HashFields) {
    let key = table.alt_hash_key.unwrap_or(table.hash_key);
    (key, table.alt_hash_fields.unwrap_or(table.hash_fields))
}

/// Everything that alternative hops depend on, except the rows.
fn alternative_of(table: &Table) -> Option<(Key, HashFields, Option<Key>)> {
    let (key, fields) = alternative_hash(table);
    table.has_alternative().then_some((key, fields, table.alt_seed))
}

/// The rows whose hops differ, or have a hop whose health changed.
fn changed(old: (&Rows, &[u32]), new: (&Rows, &[u32]), health_changed: &[bool]) -> Changed {
    if std::ptr::eq(old.0, new.0) && old.1 == new.1 {
        return Changed::Nothing;
    }
    let of = |(rows, slots): (&Rows, &[u32]), row: usize, place: usize| {
        Some(slots[usize::from(*rows.row(row).get(place)?)])
    };
    let rows = (0..ROWS).map(|row| {
        (0..old.0.hops.max(new.0.hops)).any(|place| {
            let slot = of(new, row, place);
            of(old, row, place) != slot || slot.is_some_and(|slot| health_changed[slot as usize])
        })
    });
    Changed::Rows(rows.collect())
}
