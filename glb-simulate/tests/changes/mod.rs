//! Random changes of tables, checked with simulated flows.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::IpAddr;

use glb_simulate::Simulation;
use glb_table::{
    Backend, BuiltTable, HashFields, Key, RowCache, State, Table, TableSet,
    flow_safety::FlowHistory,
};
use proptest::prelude::*;

use crate::strategies::{address, state};

/// The lifetime of flows in these tests, in seconds.
const FLOW_AGE: u64 = 100;

/// A change by the operator, or an event in the fleet.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    State(prop::sample::Index, State),
    Health(prop::sample::Index, bool),
    Weight(prop::sample::Index, u16),
    Add(u16),
    Remove(prop::sample::Index),
    Hops(u8),
    /// With true, the old value stays as the alternative.
    Seed(u8, bool),
    HashKey(u8, bool),
    HashFields(u8, bool),
    EndRotation,
    MarkDrained(prop::sample::Index),
    Wait(u64),
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        8 => (which(), state()).prop_map(|(which, state)| Change::State(which, state)),
        4 => (which(), any::<bool>()).prop_map(|(which, healthy)| Change::Health(which, healthy)),
        1 => (which(), 1..4_u16).prop_map(|(which, weight)| Change::Weight(which, weight)),
        2 => (20..30_u16).prop_map(Change::Add),
        1 => which().prop_map(Change::Remove),
        1 => (2..=4_u8).prop_map(Change::Hops),
        1 => (0..3_u8, prop::bool::weighted(0.7)).prop_map(|(seed, keep)| Change::Seed(seed, keep)),
        1 => (0..3_u8, prop::bool::weighted(0.7)).prop_map(|(key, keep)| Change::HashKey(key, keep)),
        1 => (0..4_u8, prop::bool::weighted(0.7)).prop_map(|(fields, keep)| Change::HashFields(1 + 2 * fields, keep)),
        2 => Just(Change::EndRotation),
        4 => which().prop_map(Change::MarkDrained),
        4 => (1..150_u64).prop_map(Change::Wait),
    ]
}

/// The table after the change, or `None` if that is not a valid table.
fn apply(table: &Table, change: &Change) -> Option<Table> {
    let mut new = table.clone();
    let n = new.backends.len();
    match *change {
        Change::State(which, state) => new.backends[which.index(n)].state = state,
        Change::Health(which, healthy) => new.backends[which.index(n)].healthy = healthy,
        Change::Weight(which, weight) => new.backends[which.index(n)].weight = weight,
        Change::Add(number) => new.backends.insert(0, Backend::new(address(false, number))),
        Change::Remove(which) => drop(new.backends.remove(which.index(n))),
        Change::Hops(hops) => new.hops = hops,
        Change::Seed(seed, keep) => {
            new.seed = Key::new([seed; 16]);
            new.alt_seed = keep.then_some(table.seed);
        }
        Change::HashKey(key, keep) => {
            new.hash_key = Key::new([key; 16]);
            new.alt_hash_key = keep.then_some(table.hash_key);
        }
        Change::HashFields(bits, keep) => {
            new.hash_fields = HashFields::from_bits(bits)?;
            new.alt_hash_fields = keep.then_some(table.hash_fields);
        }
        Change::EndRotation => {
            (new.alt_seed, new.alt_hash_key, new.alt_hash_fields) = (None, None, None)
        }
        Change::MarkDrained(_) | Change::Wait(_) => {}
    }
    let mut addresses: Vec<IpAddr> = new.backends.iter().map(|backend| backend.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let distinct = addresses.len() == new.backends.len();
    let alternatives = new.alt_seed != Some(new.seed)
        && new.alt_hash_key != Some(new.hash_key)
        && new.alt_hash_fields != Some(new.hash_fields);
    (distinct && alternatives && new.usable() > 0).then_some(new)
}

fn build(row_cache: &mut RowCache, table: &Table) -> Vec<BuiltTable> {
    row_cache.build(&TableSet {
        tables: vec![table.clone()],
        warnings: Vec::new(),
        healthchecks: None,
    })
}

/// Makes the changes with flows in every row, up to the first unsafe one. Fails if a safe change breaks
/// a flow, or an unsafe one breaks none.
pub(crate) fn check_plan_against_flows(
    seed: u64,
    base: Table,
    changes: &[Change],
) -> Result<(), TestCaseError> {
    let (mut row_cache, mut history, mut flows) =
        (RowCache::default(), FlowHistory::new(FLOW_AGE), Simulation::new(seed));
    let mut table = base;
    let built = build(&mut row_cache, &table);
    history.activate(&built);
    let _ = flows.activate(&built);
    for change in changes {
        // First hops get flows until the moment of the change.
        flows.establish_in_every_row(FLOW_AGE * 1_000);
        match change {
            Change::MarkDrained(which) => {
                let address = table.backends[which.index(table.backends.len())].address;
                history.mark_drained(address);
                let _ = flows.end_flows_of(address);
                continue;
            }
            Change::Wait(seconds) => {
                history.advance(*seconds);
                flows.advance(*seconds * 1_000);
                continue;
            }
            _ => {}
        }
        let Some(new) = apply(&table, change) else { continue };
        let new_built = build(&mut row_cache, &new);
        let risk_report = history.assess(&new_built);
        let risk = risk_report.tables[0].at_risk;
        let broken = flows.activate(&new_built).broken.all();
        prop_assert_eq!(risk_report.safe, risk == 0.0);
        if risk_report.safe {
            prop_assert_eq!(broken, 0, "called safe: {:?} from {:?} to {:?}", change, table, new);
        } else if risk > 1e-3 || risk_report.tables[0].rows_at_risk > 0 && risk * 65_536.0 >= 1.0 {
            // A smaller risk comes from a hash change: not every pair of rows has a flow here.
            prop_assert!(
                broken > 0,
                "called unsafe ({}): {:?} from {:?} to {:?}",
                risk,
                change,
                table,
                new
            );
            return Ok(());
        } else {
            return Ok(());
        }
        history.activate(&new_built);
        table = new;
    }
    Ok(())
}
