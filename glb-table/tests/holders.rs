//! The memory of holders: what a change adds to what is lost already, and the memory as bytes.

mod common;
mod strategies;

use std::net::Ipv4Addr;

use glb_table::{
    Backend, BuiltTable, RowCache, State, Table, TableSet,
    flow_safety::{FlowHistory, SavedError},
    plan::DEFAULT_FLOW_AGE,
};
use strategies::plain;

fn set(tables: &[Table]) -> TableSet {
    TableSet { tables: tables.to_vec(), warnings: Vec::new(), healthchecks: None }
}

/// A memory, and the tables in force.
struct Director {
    memory: FlowHistory,
    builder: RowCache,
    in_force: Vec<BuiltTable>,
}

impl Director {
    fn new(tables: &[Table]) -> Self {
        let mut director = Self {
            memory: FlowHistory::new(DEFAULT_FLOW_AGE),
            builder: RowCache::default(),
            in_force: vec![],
        };
        director.at_risk(tables);
        director
    }

    /// Takes the tables; the share that this put at risk.
    fn at_risk(&mut self, tables: &[Table]) -> f64 {
        let built = self.builder.build(&set(tables));
        let judgement = self.memory.assess_change(&self.in_force, &built);
        self.memory.activate(&built);
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
fn what_is_lost_once_is_not_lost_again() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    let without = with(&base, 0, |backend| backend.state = State::Inactive);
    let lost = director.at_risk(std::slice::from_ref(&without));
    assert!((lost - 1.0 / 16.0).abs() < 0.01, "{lost}");
    // The same again, and a change that has nothing to do with it.
    assert_eq!(director.at_risk(std::slice::from_ref(&without)), 0.0);
    let weaker = with(&without, 3, |backend| backend.state = State::Draining);
    assert_eq!(director.at_risk(std::slice::from_ref(&weaker)), 0.0);
    // Another loss counts for itself.
    let more = with(&weaker, 5, |backend| backend.state = State::Inactive);
    let lost = director.at_risk(&[more]);
    assert!((lost - 1.0 / 15.0).abs() < 0.02, "{lost}");
}

#[test]
fn an_illness_is_nobodys_doing() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    let drained = with(&base, 0, |backend| backend.state = State::Draining);
    assert_eq!(director.at_risk(std::slice::from_ref(&drained)), 0.0);
    // Those behind whom the drained one stands now fall ill: with two hops it is first again.
    let mut ill = drained.clone();
    for backend in &mut ill.backends[1..8] {
        backend.healthy = false;
    }
    assert_eq!(director.at_risk(std::slice::from_ref(&ill)), 0.0);
    // All are ill: GLB's order would leave a dead one before a holder; nothing better can be had.
    for backend in &mut ill.backends {
        backend.healthy = false;
    }
    assert_eq!(director.at_risk(std::slice::from_ref(&ill)), 0.0);
    assert_eq!(director.at_risk(&[base]), 0.0);
}

#[test]
fn a_table_that_stays_hides_nothing_and_adds_nothing() {
    let named = |name: &str| Table { name: name.into(), binds: vec![], ..plain(8, 2) };
    let (a, b) = (named("a"), named("b"));
    let mut director = Director::new(&[a.clone(), b.clone()]);
    let rows = director.in_force[1].rows.clone();
    let changed = with(&a, 0, |backend| backend.state = State::Inactive);
    assert!(director.at_risk(&[changed.clone(), b.clone()]) > 0.1);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[1].rows), "built again");
    // The order in the file is nothing.
    assert_eq!(director.at_risk(&[b.clone(), changed]), 0.0);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[0].rows), "built again");
    // What its rows do not depend on does not build it again, but is judged.
    let other_key = Table { hash_key: glb_table::Key::new([9; 16]), ..b };
    assert!(director.at_risk(&[other_key]) > 0.5);
    assert!(std::sync::Arc::ptr_eq(&rows, &director.in_force[0].rows), "built again");
}

#[test]
fn bytes_hold_everything() {
    let base = plain(16, 2);
    let mut director = Director::new(std::slice::from_ref(&base));
    director.memory.advance(100);
    assert_eq!(director.at_risk(&[with(&base, 0, |b| b.state = State::Draining)]), 0.0);
    director.memory.advance(10);
    assert_eq!(director.at_risk(std::slice::from_ref(&base)), 0.0);
    let mut added = base.clone();
    added.backends.push(Backend::new(Ipv4Addr::new(10, 9, 9, 9).into()));
    let added = RowCache::default().build(&set(&[added]));

    let bytes = director.memory.to_bytes();
    let mut again = FlowHistory::from_bytes(&bytes, DEFAULT_FLOW_AGE).unwrap();
    assert_eq!(again.to_bytes(), bytes);
    let judged = director.memory.assess_change(&director.in_force, &added);
    assert!(!judged.safe, "it is the sequence that is not safe");
    assert_eq!(again.assess_change(&director.in_force, &added), judged);
    for backend in &base.backends {
        let held = |memory: &FlowHistory| memory.rows_held(backend.address);
        assert_eq!(held(&again), held(&director.memory));
    }
    // And time goes on from where it was.
    again.advance(DEFAULT_FLOW_AGE - 1);
    assert!(!again.assess_change(&director.in_force, &added).safe);
    again.advance(1);
    assert!(again.assess_change(&director.in_force, &added).safe);
}

#[test]
fn damage_is_noticed() {
    let director = Director::new(&[plain(4, 2)]);
    let bytes = director.memory.to_bytes();
    let read = |bytes: &[u8]| FlowHistory::from_bytes(bytes, DEFAULT_FLOW_AGE).map(|_| ());
    assert_eq!(read(b""), Err(SavedError::Format));
    assert_eq!(read(b"GLBhold\x02 and so on"), Err(SavedError::Format));
    assert_eq!(read(&bytes[..bytes.len() - 1]), Err(SavedError::Sum));
    assert_eq!(read(&bytes[..20]), Err(SavedError::Sum));
    for at in [9, 40, 1000, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(read(&bytes), Err(SavedError::Sum), "byte {at}");
    }
    assert_eq!(read(&bytes), Ok(()));
}
