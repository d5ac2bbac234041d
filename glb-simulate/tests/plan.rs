//! Plans: known sequences, and rolling maintenance checked with simulated flows.

mod changes;
#[path = "../../glb-table/tests/strategies/mod.rs"]
mod strategies;

use std::net::{IpAddr, Ipv4Addr};

use glb_simulate::Simulation;
use glb_table::{
    Backend, Order, RowCache, State, Table, TableSet,
    plan::{
        DEFAULT_FLOW_AGE, RollingError, Step, evaluate, format_duration, parse_duration,
        rolling_maintenance,
    },
};
use proptest::prelude::*;
use strategies::{backends, one_table, plain};

fn set(table: &Table) -> TableSet {
    TableSet { tables: vec![table.clone()], warnings: Vec::new(), healthchecks: None }
}

fn tables(name: &str, table: &Table) -> Step {
    Step::Activate { name: name.into(), set: set(table) }
}

fn with_state(table: &Table, backend: usize, state: State) -> Table {
    let mut table = table.clone();
    table.backends[backend].state = state;
    table
}

fn with_one_more(table: &Table) -> Table {
    let mut table = table.clone();
    table.backends.push(Backend::new(Ipv4Addr::new(10, 9, 9, 9).into()));
    table
}

#[test]
fn one_backend_out_at_a_time_can_be_unsafe_and_a_wait_makes_it_safe() {
    let base = plain(16, 2);
    let first = [
        tables("base", &base),
        tables("drain A", &with_state(&base, 0, State::Draining)),
        tables("A is back", &base),
    ];
    let add = tables("add C", &with_one_more(&base));
    let plan = evaluate(&[&first[..], std::slice::from_ref(&add)].concat(), DEFAULT_FLOW_AGE);
    assert_eq!(plan.first_unsafe, Some(4));
    let judgement = plan.steps[3].risk.as_ref().unwrap();
    // A sixteenth of the rows, and C is among the best two of 17 in two of 17 of them.
    let expected = 2.0 / (16.0 * 17.0);
    assert!((judgement.tables[0].at_risk - expected).abs() < 0.001, "{judgement:?}");
    assert_eq!(judgement.tables[0].rows_at_risk as f64 / 65_536.0, judgement.tables[0].at_risk);
    for wait in [Step::Wait(None), Step::Wait(Some(DEFAULT_FLOW_AGE))] {
        assert!(evaluate(&[&first[..], &[wait, add.clone()]].concat(), DEFAULT_FLOW_AGE).safe);
    }
    assert!(
        !evaluate(
            &[&first[..], &[Step::Wait(Some(DEFAULT_FLOW_AGE - 1)), add.clone()]].concat(),
            DEFAULT_FLOW_AGE
        )
        .safe
    );
    // With three hops it is safe.
    let base = plain(16, 3);
    let steps = [
        tables("base", &base),
        tables("drain A", &with_state(&base, 0, State::Draining)),
        tables("A is back", &base),
        tables("add C", &with_one_more(&base)),
    ];
    assert!(evaluate(&steps, DEFAULT_FLOW_AGE).safe);
}

#[test]
fn one_drain_less_than_hops_is_safe() {
    for hops in 2..=4_u8 {
        let base = plain(12, hops);
        let mut steps = vec![tables("base", &base)];
        let mut table = base.clone();
        for backend in 0..usize::from(hops) - 1 {
            table.backends[backend].state = State::Draining;
            steps.push(tables("drain one more", &table));
        }
        assert!(evaluate(&steps, DEFAULT_FLOW_AGE).safe, "{hops} hops");
        table.backends[usize::from(hops) - 1].state = State::Inactive;
        steps.push(tables("one out undrained", &table));
        assert_eq!(
            evaluate(&steps, DEFAULT_FLOW_AGE).first_unsafe,
            Some(steps.len()),
            "{hops} hops"
        );
    }
}

#[test]
fn a_dead_hop_before_a_holder_is_unsafe() {
    // GLB's rule promotes an active second that is unhealthy before a draining first.
    let mut base = plain(2, 2);
    base.order = Order::Glb;
    let mut bad = with_state(&base, 0, State::Draining);
    bad.backends[1].healthy = false;
    let plan = evaluate(&[tables("base", &base), tables("bad", &bad)], DEFAULT_FLOW_AGE);
    let judgement = &plan.steps[1].risk.as_ref().unwrap().tables[0];
    assert!(
        judgement.at_risk > 0.4 && judgement.lost[0].reason.contains("unhealthy hop"),
        "{judgement:?}"
    );
    // The default order does not.
    (base.order, bad.order) = (Order::HealthyFirst, Order::HealthyFirst);
    assert!(evaluate(&[tables("base", &base), tables("bad", &bad)], DEFAULT_FLOW_AGE).safe);
}

#[test]
fn removed_binds_and_tables_are_unsafe() {
    let base = plain(4, 2);
    let mut other = base.clone();
    other.binds[0].ports = 1..=1_000;
    assert!(evaluate(&[tables("base", &base), tables("wider", &other)], DEFAULT_FLOW_AGE).safe);
    let plan = evaluate(&[tables("wider", &other), tables("base", &base)], DEFAULT_FLOW_AGE);
    assert!(!plan.safe && plan.steps[1].risk.as_ref().unwrap().tables[0].binds_lost.len() == 1);
    let mut parted = other.clone();
    parted.binds = vec![parted.binds[0].clone(), parted.binds[0].clone()];
    (parted.binds[0].ports, parted.binds[1].ports) = (1..=499, 500..=1_000);
    assert!(evaluate(&[tables("one", &other), tables("parted", &parted)], DEFAULT_FLOW_AGE).safe);
    // A longer prefix in another table takes this one's packets.
    let mut net = base.clone();
    net.binds[0].prefix = "203.0.113.0/24".parse().unwrap();
    let mut other_table = base.clone();
    other_table.name = "other_table".into();
    let both = Step::Activate {
        name: "both".into(),
        set: TableSet {
            tables: vec![net.clone(), other_table],
            warnings: Vec::new(),
            healthchecks: None,
        },
    };
    let plan = evaluate(&[tables("net", &net), both.clone()], DEFAULT_FLOW_AGE);
    let judgement = &plan.steps[1].risk.as_ref().unwrap().tables[0];
    assert!(
        !plan.safe && judgement.binds_lost[0].contains("taken by table \"other_table\""),
        "{judgement:?}"
    );
    assert!(evaluate(&[both.clone(), both], DEFAULT_FLOW_AGE).safe);
    let mut renamed = base.clone();
    renamed.name = "other".into();
    assert!(
        !evaluate(&[tables("base", &base), tables("renamed", &renamed)], DEFAULT_FLOW_AGE).safe
    );
}

#[test]
fn a_key_rotation_is_safe_only_with_the_old_key_as_alternative() {
    let base = plain(8, 2);
    let mut key = base.clone();
    key.hash_key = glb_table::Key::new([9; 16]);
    let plan = evaluate(&[tables("base", &base), tables("key", &key)], DEFAULT_FLOW_AGE);
    let risk = plan.steps[1].risk.as_ref().unwrap().tables[0].at_risk;
    // A flow's backend is among two of eight by chance.
    assert!((risk - 0.75).abs() < 0.02, "{risk}");
    let mut rotating = key.clone();
    rotating.alt_hash_key = Some(base.hash_key);
    let steps = [tables("base", &base), tables("rotating", &rotating), tables("done", &key)];
    assert_eq!(evaluate(&steps, DEFAULT_FLOW_AGE).first_unsafe, Some(3));
    let steps = [
        tables("base", &base),
        tables("rotating", &rotating),
        Step::Wait(None),
        tables("done", &key),
    ];
    assert!(evaluate(&steps, DEFAULT_FLOW_AGE).safe);
}

#[test]
fn a_hash_that_returns_has_its_old_holders() {
    let base = plain(8, 2);
    let mut key = base.clone();
    (key.hash_key, key.alt_hash_key) = (glb_table::Key::new([9; 16]), Some(base.hash_key));
    let mut back = base.clone();
    back.alt_hash_key = Some(key.hash_key);
    let steps = [tables("base", &base), tables("there", &key), tables("and back", &back)];
    assert!(evaluate(&steps, DEFAULT_FLOW_AGE).safe);
    let steps = [tables("base", &base), tables("there", &key), tables("back at once", &base)];
    assert_eq!(evaluate(&steps, DEFAULT_FLOW_AGE).first_unsafe, Some(3));
    let drained = Step::MarkDrained(base.backends.iter().map(|backend| backend.address).collect());
    let steps =
        [tables("base", &base), tables("there", &key), drained, tables("back at once", &base)];
    // Those who are first by the new key may have flows again at once.
    assert_eq!(evaluate(&steps, DEFAULT_FLOW_AGE).first_unsafe, Some(4));
}

#[test]
fn rolling_maintenance_never_breaks_a_flow() {
    for (n, hops, at_once) in [(3, 2, 1), (6, 2, 1), (6, 3, 2), (8, 4, 3)] {
        let base = plain(n, hops);
        let all: Vec<IpAddr> = base.backends.iter().map(|backend| backend.address).collect();
        let out: Vec<IpAddr> = if n == 3 { all.clone() } else { all[..5].to_vec() };
        let todo = rolling_maintenance(&set(&base), &out, at_once, DEFAULT_FLOW_AGE).unwrap();
        assert!(todo.iter().filter_map(|todo| todo.risk.as_ref()).all(|judgement| judgement.safe));
        // The same, with flows in every row before each change.
        let mut flows = Simulation::new(1);
        let mut builder = RowCache::default();
        let _ = flows.activate(&builder.build(&set(&base)));
        for group in out.chunks(at_once) {
            for state in [State::Draining, State::Active] {
                flows.establish_in_every_row(DEFAULT_FLOW_AGE * 1_000);
                let mut table = base.clone();
                for backend in
                    table.backends.iter_mut().filter(|backend| group.contains(&backend.address))
                {
                    backend.state = state;
                }
                let broken = flows.activate(&builder.build(&set(&table))).broken;
                assert_eq!(broken.all(), 0, "{n} backends, {hops} hops");
                if state == State::Draining {
                    for backend in group {
                        let _ = flows.end_flows_of(*backend);
                    }
                }
            }
        }
    }
}

#[test]
fn an_impossible_rolling_maintenance_is_refused() {
    let base = plain(3, 2);
    let address = |index: usize| base.backends[index].address;
    let plan = |table: &Table, out: &[IpAddr], at_once| {
        rolling_maintenance(&set(table), out, at_once, DEFAULT_FLOW_AGE).map(|_| ())
    };
    assert!(matches!(
        plan(&base, &[address(0), address(1)], 2),
        Err(RollingError::TooMany { hops: 2, .. })
    ));
    assert_eq!(plan(&base, &[address(0), address(0)], 1), Err(RollingError::Duplicate(address(0))));
    let unknown = Ipv4Addr::LOCALHOST.into();
    assert_eq!(plan(&base, &[unknown], 1), Err(RollingError::NoBackend(unknown)));
    let draining = with_state(&base, 0, State::Draining);
    assert!(matches!(plan(&draining, &[address(0)], 1), Err(RollingError::NotServing { .. })));
    let mut alone = with_state(&base, 1, State::Draining);
    alone.backends[2].healthy = false;
    assert!(matches!(plan(&alone, &[address(0)], 1), Err(RollingError::NoBackendLeft { .. })));
    assert_eq!(backends(3).len(), base.backends.len());
}

#[test]
fn times_are_read_and_written() {
    for (text, seconds) in
        [("90", 90), ("90s", 90), ("15m", 900), ("4h", 14_400), ("2d", 172_800), ("0", 0)]
    {
        assert_eq!(parse_duration(text), Some(seconds), "{text}");
    }
    for bad in ["", "h", "1.5h", "-1", "1w", "99999999999999999999d", "é"] {
        assert_eq!(parse_duration(bad), None, "{bad}");
    }
    assert_eq!(format_duration(0), "0s");
    assert_eq!(format_duration(93_784), "1d 2h 3m 4s");
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
    fn safe_changes_break_no_flow_and_unsafe_changes_break_one(
        seed: u64, base in one_table(), changes in prop::collection::vec(changes::change(), 1..10),
    ) {
        changes::check_plan_against_flows(seed, base, &changes)?;
    }
}
