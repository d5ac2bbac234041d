//! Properties that hold for every table.
#![expect(clippy::unwrap_used, reason = "test helpers")]

mod common;
mod strategies;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    net::IpAddr,
};

use glb_table::{Order, ROWS, Ranks, RowCache, Rows, State, Table, weight::Score};
use proptest::prelude::*;
use strategies::{backends, shuffled, table};

/// Ranks a row as `docs/table.md` describes, with the siphasher crate.
fn slow_rank(table: &Table, row: u16) -> Vec<u16> {
    let [low, high] = table.seed.words();
    let siphash = |message: &[u8]| {
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(low, high);
        hasher.write(message);
        hasher.finish().to_le_bytes()
    };
    let row_seed = siphash(&u32::from(row).to_be_bytes());
    let mut scored: Vec<(Score, IpAddr, u16)> = table
        .backends
        .iter()
        .zip(0..)
        .map(|(backend, index)| {
            let mut message = row_seed.to_vec();
            match backend.address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
            let digest = u64::from_be_bytes(siphash(&message));
            (Score { digest, weight: backend.weight }, backend.address, index)
        })
        .collect();
    scored.sort();
    scored.into_iter().map(|(.., index)| index).collect()
}

/// Builds a row as `docs/table.md` describes.
fn slow_row(table: &Table, row: u16) -> Vec<u16> {
    let backend = |index: &u16| &table.backends[usize::from(*index)];
    let usable: Vec<u16> = slow_rank(table, row)
        .into_iter()
        .filter(|index| backend(index).state != State::Inactive)
        .collect();
    let hops = usable.len().min(usize::from(table.hops));
    let mut chosen = usable[..hops].to_vec();
    let zoned = table.backends.iter().any(|backend| !backend.zone.is_empty());
    if zoned && hops == usize::from(table.hops) {
        let zones: BTreeSet<&str> =
            chosen[..hops - 1].iter().map(|index| backend(index).zone.as_str()).collect();
        if let Some(other) =
            usable[hops - 1..].iter().find(|index| !zones.contains(backend(index).zone.as_str()))
        {
            chosen[hops - 1] = *other;
        }
    }
    let takes_new = |index: &u16| {
        backend(index).healthy && matches!(backend(index).state, State::Active | State::Filling)
    };
    if table.hops > 2 {
        chosen.sort_by_key(|index| {
            if takes_new(index) {
                0
            } else if backend(index).healthy {
                1
            } else {
                2
            }
        });
    } else if let [first, second] = chosen[..] {
        let promoted = match table.order {
            Order::HealthyFirst => takes_new(&second),
            Order::Glb => backend(&second).state == State::Active,
        };
        if !takes_new(&first) && promoted {
            chosen = vec![second, first];
        }
    }
    chosen
}

fn by_address<'t>(table: &'t Table, rows: &'t Rows) -> impl Iterator<Item = Vec<IpAddr>> + 't {
    rows.iter()
        .map(|row| row.iter().map(|index| table.backends[usize::from(*index)].address).collect())
}

/// Runs a few cases by default; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 16 };
    ProptestConfig { cases, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn rows_equal_the_documented_algorithm(table in table(40), rows in prop::collection::vec(any::<u16>(), 40)) {
        let ranks = table.ranks();
        let built = table.rows_from(&ranks);
        for row in rows {
            prop_assert_eq!(ranks.full(row), slow_rank(&table, row));
            prop_assert_eq!(built.row(usize::from(row)), slow_row(&table, row));
        }
    }

    #[test]
    fn the_rank_of_two_backends_does_not_depend_on_others(table in table(30), gone in any::<prop::sample::Index>(), row in any::<u16>()) {
        let gone = gone.index(table.backends.len()) as u16;
        let mut fewer = table.clone();
        let _ = fewer.backends.remove(usize::from(gone));
        let address = |table: &Table, order: Vec<u16>| order.into_iter().map(|i| table.backends[usize::from(i)].address).collect::<Vec<_>>();
        let mut all = address(&table, table.ranks().full(row));
        all.retain(|a| *a != table.backends[usize::from(gone)].address);
        prop_assert_eq!(all, address(&fewer, fewer.ranks().full(row)));
    }

    #[test]
    fn rows_and_digests_do_not_depend_on_the_order_of_the_file((a, b) in shuffled(24)) {
        prop_assert!(by_address(&a, &a.rows()).eq(by_address(&b, &b.rows())));
        prop_assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn only_rows_with_the_changed_backend_change(
        old in table(24), which in any::<prop::sample::Index>(), state in strategies::state(), healthy: bool, weight in 1..9_u16,
    ) {
        let which = which.index(old.backends.len());
        let mut new = old.clone();
        new.backends[which].state = state;
        new.backends[which].healthy = healthy;
        if old.backends.iter().any(|backend| backend.weight != 1) {
            new.backends[which].weight = weight;
        }
        let address = old.backends[which].address;
        let (old_rows, new_rows) = (old.rows(), new.rows());
        let zoned = old.backends.iter().any(|backend| !backend.zone.is_empty());
        for (before, after) in by_address(&old, &old_rows).zip(by_address(&new, &new_rows)) {
            // With zones the last hop may depend on the other usable backends.
            let other_zone = zoned && old.usable() != new.usable();
            if !(before.contains(&address) || after.contains(&address) || other_zone) {
                prop_assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn rows_have_as_many_distinct_usable_hops_as_possible(table in table(12)) {
        let rows = table.rows();
        prop_assert_eq!(rows.hops, table.usable().min(usize::from(table.hops)));
        for row in rows.iter() {
            let distinct: BTreeSet<u16> = row.iter().copied().collect();
            prop_assert_eq!(distinct.len(), row.len());
            prop_assert!(row.iter().all(|index| table.backends[usize::from(*index)].is_usable()));
        }
    }

    #[test]
    fn kept_ranks_give_the_same_rows_as_new_ranks(table in table(40), states in prop::collection::vec((strategies::state(), any::<bool>()), 40)) {
        let ranks = table.ranks();
        let mut changed = table;
        for (backend, (state, healthy)) in changed.backends.iter_mut().zip(states) {
            (backend.state, backend.healthy) = (state, healthy);
        }
        prop_assert!(ranks.fits(changed.seed, &changed.backends));
        prop_assert_eq!(changed.rows_from(&ranks), changed.rows());
    }
}

/// A table of `n` backends, with these weights in turn.
fn weighted(n: u16, weights: &[u16]) -> Table {
    let mut table = one_table_of(n);
    for (backend, weight) in table.backends.iter_mut().zip(weights.iter().cycle()) {
        backend.weight = *weight;
    }
    table
}

fn one_table_of(n: u16) -> Table {
    let text = r#"{"tables":[{"hash_key":"12345678901234561234567890123456","seed":"49a3d861d661ae5ab06ed9326871a2f5",
        "binds":[{"ip":"1.1.1.1","proto":"tcp","port":80}],"backends":[{"ip":"10.0.0.1","state":"active"}]}]}"#;
    let mut set = common::load_json(&serde_json::from_str(text).unwrap()).unwrap();
    let mut table = set.tables.remove(0);
    table.backends = backends(n);
    table
}

fn firsts(table: &Table) -> BTreeMap<IpAddr, usize> {
    let rows = table.rows();
    let mut count = BTreeMap::new();
    by_address(table, &rows).for_each(|row| *count.entry(row[0]).or_default() += 1);
    count
}

#[test]
fn shares_follow_the_weights_within_four_sigma() {
    let mut worst = 0.0_f64;
    for weights in [
        &[1][..],
        &[1, 2],
        &[1, 2, 3, 4],
        &[1, 10],
        &[100, 101, 99],
        &[1, 1000],
        &[65535, 1, 30000],
    ] {
        for n in [2, 3, 16, 64, 256] {
            let table = weighted(n, weights);
            let count = firsts(&table);
            let sum: f64 = table.backends.iter().map(|backend| f64::from(backend.weight)).sum();
            for backend in &table.backends {
                let share = f64::from(backend.weight) / sum;
                let rows = count.get(&backend.address).copied().unwrap_or_default() as f64;
                let (mean, sigma) =
                    (share * ROWS as f64, (share * (1.0 - share) * ROWS as f64).sqrt());
                if mean < 9.0 {
                    // Too few rows for a normal distribution.
                    assert!(rows < 40.0, "{n} {weights:?} {rows} {mean}");
                    continue;
                }
                let z = (rows - mean) / sigma;
                worst = worst.max(z.abs());
                assert!(
                    z.abs() < 4.0,
                    "{n} backends, weights {weights:?}: {} has {rows} rows, not {mean}",
                    backend.address
                );
            }
        }
    }
    println!("worst share: {worst:.2} sigma");
}

#[test]
fn a_changed_weight_moves_rows_only_from_or_to_its_backend() {
    for (from, to) in [(1, 2), (4, 5), (10, 1), (100, 101), (3, 65535)] {
        let mut old = weighted(16, &[3, 4, 5]);
        old.backends[7].weight = from;
        let mut new = old.clone();
        new.backends[7].weight = to;
        let (changed, others) = (new.backends[7].address, |backend: &&glb_table::Backend| {
            backend.address != new.backends[7].address
        });
        let sum: f64 =
            old.backends.iter().filter(others).map(|backend| f64::from(backend.weight)).sum();
        let (old_rows, new_rows) = (old.rows(), new.rows());
        let mut moved = 0;
        for (before, after) in by_address(&old, &old_rows).zip(by_address(&new, &new_rows)) {
            if before[0] != after[0] {
                let to_it = after[0] == changed;
                let from_it = before[0] == changed;
                assert!(if to > from { to_it } else { from_it }, "a row moved between two others");
                moved += 1;
            }
        }
        let share = |weight: u16| f64::from(weight) / (sum + f64::from(weight));
        let optimum = (share(to) - share(from)).abs() * ROWS as f64;
        let sigma = optimum.sqrt();
        println!("weight {from} to {to}: {moved} rows moved, optimum {optimum:.0}");
        assert!(
            (f64::from(moved) - optimum).abs() < 4.0 * sigma,
            "{from} to {to}: {moved} moved, optimum {optimum}"
        );
    }
}

#[test]
fn one_more_backend_moves_only_its_share() {
    let (old, new) = (one_table_of(16), one_table_of(17));
    let (old_rows, new_rows) = (old.rows(), new.rows());
    let moved = by_address(&old, &old_rows)
        .zip(by_address(&new, &new_rows))
        .filter(|(a, b)| a[0] != b[0])
        .count() as f64;
    let optimum = ROWS as f64 / 17.0;
    println!("a 17th backend: {moved} rows moved, optimum {optimum:.0}");
    assert!((moved - optimum).abs() < 4.0 * optimum.sqrt());
}

#[test]
fn equal_weights_give_glb_order() {
    let plain = one_table_of(20).rows();
    for weight in [2, 77, 65535] {
        assert_eq!(weighted(20, &[weight]).rows(), plain);
    }
}

#[test]
fn a_row_cache_hashes_new_backends_only() {
    let mut builder = RowCache::default();
    let mut set = common::load_json(&serde_json::json!({ "tables": [{
        "hash_key": "12345678901234561234567890123456", "seed": "49a3d861d661ae5ab06ed9326871a2f5",
        "binds": [{ "ip": "1.1.1.1", "proto": "tcp", "port": 80 }],
        "backends": [{ "ip": "10.0.0.1", "state": "active", "healthy": true }, { "ip": "10.0.0.2", "state": "active", "healthy": true }],
    }] })).unwrap();
    let first = builder.build(&set);
    set.tables[0].backends[1].state = State::Draining;
    let second = builder.build(&set);
    assert_eq!(second[0].rows, set.tables[0].rows().into());
    assert_ne!(first[0].rows, second[0].rows);
    assert_eq!(builder.bytes(), Ranks::new(set.tables[0].seed, &set.tables[0].backends).bytes());
}
