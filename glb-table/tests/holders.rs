//! The flow history: the risk that a change adds, and saving and restoring.

mod common;
mod strategies;

use std::net::Ipv4Addr;

use glb_table::{
    Backend, BuiltTable, RowCache, State, Table, TableSet,
    flow_safety::{FlowHistory, HistoryError},
    plan::DEFAULT_FLOW_AGE,
};
use strategies::plain;

fn set(tables: &[Table]) -> TableSet {
    TableSet { tables: tables.to_vec(), warnings: Vec::new(), healthchecks: None }
}

/// A flow history, and the tables in force.
struct Director {
    history: FlowHistory,
    builder: RowCache,
    in_force: Vec<BuiltTable>,
}

impl Director {
    fn new(tables: &[Table]) -> Self {
        let mut director = Self {
            history: FlowHistory::new(DEFAULT_FLOW_AGE),
            builder: RowCache::default(),
            in_force: vec![],
        };
        director.at_risk(tables);
        director
    }

    /// Activates the tables, and returns the share of flows that this puts at risk.
    fn at_risk(&mut self, tables: &[Table]) -> f64 {
        let built = self.builder.build(&set(tables));
        let judgement = self.history.assess_change(&self.in_force, &built);
        self.history.activate(&built);
        self.in_force = built;
        let risks = judgement.tables.iter().map(|table| table.at_risk);
        let worst = risks.fold(0.0, f64::max);
        assert_eq!(judgement.safe, worst == 0.0);
        worst
    }
}

fn with(table: &Table, backend: usize, change: impl Fn(&mut Backend)) -> Table {
    let mut table = table.clone();
    change(&mut table.backends[backend]);
    table
}

#[test]
fn flows_that_are_lost_already_are_not_counted_again() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    let without = with(&base, 0, |backend| backend.state = State::Inactive);
    let lost = director.at_risk(std::slice::from_ref(&without));
    assert!((lost - 1.0 / 16.0).abs() < 0.01, "{lost}");
    // The same tables again, and an unrelated change.
    assert_eq!(director.at_risk(std::slice::from_ref(&without)), 0.0);
    let weaker = with(&without, 3, |backend| backend.state = State::Draining);
    assert_eq!(director.at_risk(std::slice::from_ref(&weaker)), 0.0);
    // Another loss counts for itself.
    let more = with(&weaker, 5, |backend| backend.state = State::Inactive);
    let lost = director.at_risk(&[more]);
    assert!((lost - 1.0 / 15.0).abs() < 0.02, "{lost}");
}

#[test]
fn unhealthy_backends_alone_do_not_make_a_change_unsafe() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    let drained = with(&base, 0, |backend| backend.state = State::Draining);
    assert_eq!(director.at_risk(std::slice::from_ref(&drained)), 0.0);
    // The backends before the drained one become unhealthy: with two hops it is first again.
    let mut ill = drained.clone();
    for backend in &mut ill.backends[1..8] {
        backend.healthy = false;
    }
    assert_eq!(director.at_risk(std::slice::from_ref(&ill)), 0.0);
    // All are unhealthy: every order has an unhealthy hop before a holder.
    for backend in &mut ill.backends {
        backend.healthy = false;
    }
    assert_eq!(director.at_risk(std::slice::from_ref(&ill)), 0.0);
    assert_eq!(director.at_risk(&[base]), 0.0);
}

#[test]
fn unchanged_tables_keep_their_rows_and_add_no_risk() {
    let named = |name: &str| Table { name: name.into(), binds: vec![], ..plain(8, 2) };
    let (a, b) = (named("a"), named("b"));
    let mut director = Director::new(&[a.clone(), b.clone()]);
    let rows = director.in_force[1].rows.clone();
    let changed = with(&a, 0, |backend| backend.state = State::Inactive);
    assert!(director.at_risk(&[changed.clone(), b.clone()]) > 0.1);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[1].rows), "built again");
    // The order in the file does not matter.
    assert_eq!(director.at_risk(&[b.clone(), changed]), 0.0);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[0].rows), "built again");
    // Settings that rows do not depend on keep the rows, but are assessed.
    let other_key = Table { hash_key: glb_table::Key::new([9; 16]), ..b };
    assert!(director.at_risk(&[other_key]) > 0.5);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[0].rows), "built again");
}

#[test]
fn a_restored_history_equals_the_saved_one() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    director.history.advance(100);
    assert_eq!(director.at_risk(&[with(&base, 0, |b| b.state = State::Draining)]), 0.0);
    director.history.advance(10);
    assert_eq!(director.at_risk(std::slice::from_ref(&base)), 0.0);
    let mut added = base.clone();
    added.backends.push(Backend::new(Ipv4Addr::new(10, 9, 9, 9).into()));
    let added = RowCache::default().build(&set(&[added]));

    let bytes = director.history.to_bytes();
    let mut again = FlowHistory::from_bytes(&bytes, DEFAULT_FLOW_AGE).unwrap();
    assert_eq!(again.to_bytes(), bytes);
    let judged = director.history.assess_change(&director.in_force, &added);
    assert!(!judged.safe, "it is the sequence that is not safe");
    assert_eq!(again.assess_change(&director.in_force, &added), judged);
    for backend in &base.backends {
        let held = |history: &FlowHistory| history.rows_held(backend.address);
        assert_eq!(held(&again), held(&director.history));
    }
    // The clock continues from where it was.
    again.advance(DEFAULT_FLOW_AGE - 1);
    assert!(!again.assess_change(&director.in_force, &added).safe);
    again.advance(1);
    assert!(again.assess_change(&director.in_force, &added).safe);
}

#[test]
fn damaged_bytes_are_refused() {
    let director = Director::new(&[plain(4, 2)]);
    let bytes = director.history.to_bytes();
    let read = |bytes: &[u8]| FlowHistory::from_bytes(bytes, DEFAULT_FLOW_AGE).map(|_| ());
    assert_eq!(read(b""), Err(HistoryError::Format));
    assert_eq!(read(b"GLBhold\x02 and so on"), Err(HistoryError::Format));
    assert_eq!(read(&bytes[..bytes.len() - 1]), Err(HistoryError::Checksum));
    assert_eq!(read(&bytes[..20]), Err(HistoryError::Checksum));
    for at in [9, 40, 1000, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(read(&bytes), Err(HistoryError::Checksum), "byte {at}");
    }
    assert_eq!(read(&bytes), Ok(()));
}
