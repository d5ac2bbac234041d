//! Tables and changes of tables, at random.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part; the prefix is a constant"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use glb_table::{
    Backend, Bind, BuiltTable, HashFields, Key, Order, Proto, RowCache, State, Table, TableSet,
    flow_safety::FlowHistory, simulate::Simulation,
};
use proptest::prelude::*;

/// How long flows live here, in seconds.
const FLOW_AGE: u64 = 100;

pub(crate) fn state() -> impl Strategy<Value = State> {
    prop_oneof![4 => Just(State::Active), 1 => Just(State::Filling), 2 => Just(State::Draining), 2 => Just(State::Inactive)]
}

/// Plain backends 10.0.0.1 and on.
pub(crate) fn backends(n: u16) -> Vec<Backend> {
    (1..=n).map(|n| Backend::new(Ipv4Addr::from(0x0a00_0000 + u32::from(n)).into())).collect()
}

fn address(v6: bool, n: u16) -> IpAddr {
    let n = u32::from(n) + 1;
    if v6 {
        Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n)).into()
    } else {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }
}

fn bind() -> Bind {
    Bind { prefix: "203.0.113.10/32".parse().unwrap(), proto: Proto::Tcp, ports: 80..=80 }
}

/// Any table of 2 to `most` backends.
pub(crate) fn table(most: u16) -> impl Strategy<Value = Table> {
    let backend = (any::<u16>(), state(), prop::bool::weighted(0.8), 1..6_u16, 0..3_usize);
    let backends = prop::collection::btree_map(any::<u16>(), backend, 2..=usize::from(most));
    (
        any::<[u8; 16]>(),
        any::<bool>(),
        backends,
        2..=4_u8,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(seed, v6, backends, hops, weighted, zoned, glb)| {
            let zones = ["a", "b", "c"];
            let mut backends: Vec<Backend> = backends
                .into_iter()
                .map(|(n, (_, state, healthy, weight, zone))| Backend {
                    state,
                    healthy,
                    weight: if weighted { weight } else { 1 },
                    zone: if zoned && hops > 2 { zones[zone].to_owned() } else { String::new() },
                    ..Backend::new(address(v6, n))
                })
                .collect();
            if backends.iter().all(|backend| backend.state == State::Inactive) {
                backends[0].state = State::Active;
            }
            Table {
                name: "web".into(),
                hash_key: Key::new([3; 16]),
                seed: Key::new(seed),
                hash_fields: HashFields::default(),
                alt_hash_fields: None,
                alt_hash_key: None,
                alt_seed: None,
                hops,
                order: if glb && hops == 2 { Order::Glb } else { Order::HealthyFirst },
                binds: vec![bind()],
                backends,
                healthchecks: None,
            }
        })
}

/// The same table twice, its backends in different order.
pub(crate) fn shuffled(most: u16) -> impl Strategy<Value = (Table, Table)> {
    table(most).prop_flat_map(|table| {
        let backends = Just(table.backends.clone()).prop_shuffle();
        (Just(table), backends).prop_map(|(table, backends)| {
            let shuffled = Table { backends, ..table.clone() };
            (table, shuffled)
        })
    })
}

/// A healthy table of so many backends and hops.
pub(crate) fn plain(n: u16, hops: u8) -> Table {
    Table {
        name: "web".into(),
        hash_key: Key::new([3; 16]),
        seed: Key::new([5; 16]),
        hash_fields: HashFields::default(),
        alt_hash_fields: None,
        alt_hash_key: None,
        alt_seed: None,
        hops,
        order: Order::HealthyFirst,
        binds: vec![bind()],
        backends: backends(n),
        healthchecks: None,
    }
}

/// A healthy table of three to ten backends, to be changed step by step.
pub(crate) fn one_table() -> impl Strategy<Value = Table> {
    (table(2), 3..=10_u16, 2..=4_u8).prop_map(|(table, n, hops)| Table {
        backends: backends(n),
        hops,
        order: Order::HealthyFirst,
        ..table
    })
}

/// What an operator does, or what happens to a fleet.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    State(prop::sample::Index, State),
    Health(prop::sample::Index, bool),
    Weight(prop::sample::Index, u16),
    Add(u16),
    Remove(prop::sample::Index),
    Hops(u8),
    /// The old seed stays as the alternative, or goes at once.
    Seed(u8, bool),
    HashKey(u8, bool),
    HashFields(u8, bool),
    EndRotation,
    Drained(prop::sample::Index),
    Pass(u64),
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
        4 => which().prop_map(Change::Drained),
        4 => (1..150_u64).prop_map(Change::Pass),
    ]
}

/// The table after the change; nothing if it would not be a table.
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
        Change::Drained(_) | Change::Pass(_) => {}
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

fn build(builder: &mut RowCache, table: &Table) -> Vec<BuiltTable> {
    builder.build(&TableSet {
        tables: vec![table.clone()],
        warnings: Vec::new(),
        healthchecks: None,
    })
}

/// Walks the changes with the judge and with flows in every row, up to the first unsafe step: no
/// safe step breaks a flow, and an unsafe one breaks one.
pub(crate) fn judge_against_flows(
    seed: u64,
    base: Table,
    changes: &[Change],
) -> Result<(), TestCaseError> {
    let (mut builder, mut memory, mut flows) =
        (RowCache::default(), FlowHistory::new(FLOW_AGE), Simulation::new(seed));
    let mut table = base;
    let built = build(&mut builder, &table);
    memory.activate(&built);
    let _ = flows.apply(&built);
    for change in changes {
        // Whoever is first gets flows until the moment of the change.
        flows.establish_in_every_row(FLOW_AGE * 1_000);
        match change {
            Change::Drained(which) => {
                let address = table.backends[which.index(table.backends.len())].address;
                memory.mark_drained(address);
                let _ = flows.drained(address);
                continue;
            }
            Change::Pass(seconds) => {
                memory.advance(*seconds);
                flows.pass(*seconds * 1_000);
                continue;
            }
            _ => {}
        }
        let Some(new) = apply(&table, change) else { continue };
        let new_built = build(&mut builder, &new);
        let judgement = memory.assess(&new_built);
        let risk = judgement.tables[0].at_risk;
        let broken = flows.apply(&new_built).broken.all();
        prop_assert_eq!(judgement.safe, risk == 0.0);
        if judgement.safe {
            prop_assert_eq!(broken, 0, "called safe: {:?} from {:?} to {:?}", change, table, new);
        } else if risk > 1e-3 || judgement.tables[0].rows_at_risk > 0 && risk * 65_536.0 >= 1.0 {
            // A smaller risk is a hash change's: not every pair of rows has a flow here.
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
        memory.activate(&new_built);
        table = new;
    }
    Ok(())
}
