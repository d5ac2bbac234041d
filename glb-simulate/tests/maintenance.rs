//! Simulated sequences of tables and simulated maintenance of fleets.
#![expect(clippy::unwrap_used, reason = "test helpers")]

#[path = "../../glb-table/tests/strategies/mod.rs"]
mod strategies;

use std::net::IpAddr;

use glb_simulate::{
    Cause, ChangeKind, Lifetimes, Maintenance, MaintenanceReport, TracedFlow, Workload,
    generated_fleet, sequence,
};
use glb_table::{
    Proto, State, Table, TableSet,
    lookup::FlowQuery,
    plan::{DEFAULT_FLOW_AGE, Step, evaluate},
};
use strategies::plain;

fn workload(flows: u64, seed: u64) -> Workload {
    let lifetimes = Lifetimes { min: 1.0, max: DEFAULT_FLOW_AGE as f64, pareto_alpha: 1.0 };
    Workload { flows, lifetimes, step_interval: 600, seed }
}

fn set(tables: &[&Table]) -> TableSet {
    let tables = tables.iter().map(|table| (*table).clone()).collect();
    TableSet { tables, warnings: Vec::new(), healthchecks: None }
}

fn step(name: &str, table: &Table) -> Step {
    Step::Activate { name: name.into(), set: set(&[table]) }
}

fn maintain(changes: usize, hops: u8, follows_plan: bool, seed: u64) -> MaintenanceReport {
    let maintenance = Maintenance { changes, follows_plan };
    maintenance.run(&generated_fleet(40, hops), &workload(20_000, seed), &mut |_| {})
}

#[test]
fn an_operator_who_follows_the_plan_breaks_no_flow() {
    for (hops, seed) in [(2, 1), (3, 2), (4, 3)] {
        let careful = maintain(100, hops, true, seed);
        assert_eq!(careful.broken_by_operator, 0, "{hops} hops: {:?}", careful.kinds);
        let times = |kind| careful.kinds.get(&kind).map_or(0, |kind| kind.times);
        for kind in [
            ChangeKind::Drain,
            ChangeKind::Resume,
            ChangeKind::Add,
            ChangeKind::Activate,
            ChangeKind::Fail,
            ChangeKind::Recover,
        ] {
            assert!(times(kind) > 0, "{hops} hops: no {kind:?} in {:?}", careful.kinds);
        }
        let careless = maintain(100, hops, false, seed);
        assert!(careless.broken_by_operator > 100, "{hops} hops: {:?}", careless.kinds);
        let of = |kind| careless.kinds[&kind].broken.reset;
        assert!(of(ChangeKind::Remove) > 0, "{hops} hops: {:?}", careless.kinds);
        assert!(careless.kinds[&ChangeKind::Fail].ended > 0, "{:?}", careless.kinds);
        assert_eq!(careless.report.steps.len(), 101);
    }
}

#[test]
fn reports_depend_on_the_seed_only() {
    let text = |seed| serde_json::to_string(&maintain(60, 2, false, seed)).unwrap();
    let alone = rayon_of(1, || text(5));
    assert_eq!(alone, rayon_of(3, || text(5)), "it depends on the number of threads");
    assert_ne!(alone, text(6));
}

fn rayon_of<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn load_is_as_even_as_hashing_allows() {
    let base = plain(50, 2);
    let report = sequence(&[step("base", &base)], &[], &workload(500_000, 1), &mut |_| {});
    let load = &report.steps[0].load[0];
    assert_eq!((load.backends, report.steps[0].live), (50, 500_000));
    for spread in [load.rows, load.flows] {
        // The standard deviation of fifty numbers is known to a tenth.
        let ratio = spread.deviation / spread.expected_deviation;
        assert!((0.6..1.4).contains(&ratio), "{spread:?}");
        assert!(spread.max > 1.0 && (spread.max - spread.expected_max).abs() < 0.1, "{spread:?}");
    }
    let mut weighted = base.clone();
    weighted.backends.iter_mut().take(10).for_each(|backend| backend.weight = 5);
    let report = sequence(&[step("weights", &weighted)], &[], &workload(500_000, 1), &mut |_| {});
    let rows = report.steps[0].load[0].rows;
    assert!((0.6..1.4).contains(&(rows.deviation / rows.expected_deviation)), "{rows:?}");
}

#[test]
fn the_number_of_live_flows_stays_constant() {
    let base = plain(8, 2);
    let steps = [
        step("base", &base),
        Step::Wait(Some(60)),
        Step::Wait(Some(3_600)),
        Step::Wait(None),
        Step::MarkDrained(vec![base.backends[0].address]),
    ];
    let report = sequence(&steps, &[], &workload(100_000, 1), &mut |_| {});
    for step in &report.steps[..4] {
        let off = (step.live as f64 - 100_000.0).abs();
        assert!(off < 1_000.0, "{step:?}");
    }
    let gone = report.steps[4].ended as f64;
    assert!((gone - 12_500.0).abs() < 1_000.0, "{gone}");
    assert_eq!(report.steps[4].at, 60 + 3_600 + DEFAULT_FLOW_AGE);
    assert_eq!(report.broken.all(), 0);
}

fn query(client: &str, vip: &str) -> FlowQuery {
    let (client, vip): (std::net::SocketAddr, std::net::SocketAddr) =
        (client.parse().unwrap(), vip.parse().unwrap());
    FlowQuery {
        source: client.ip(),
        source_port: Some(client.port()),
        vip: vip.ip(),
        port: Some(vip.port()),
        proto: Proto::Tcp,
    }
}

#[test]
fn traced_flows_are_reported_one_by_one() {
    let base = plain(4, 2);
    let vip = "203.0.113.10:80";
    let listed: Vec<TracedFlow> = (0..200)
        .map(|n| TracedFlow { flow: query(&format!("198.51.100.{n}:1000"), vip), step: 1 })
        .chain([TracedFlow { flow: query("198.51.100.1:1000", "203.0.113.10:81"), step: 1 }])
        .collect();
    let mut gone = base.clone();
    gone.backends[0].state = State::Inactive;
    let mut other = base.clone();
    other.binds[0].ports = 443..=443;
    let steps = [step("base", &base), step("gone", &gone), step("other", &other)];
    let report = sequence(&steps, &listed, &workload(0, 1), &mut |_| {});
    let first: IpAddr = base.backends[0].address;
    let of = |step| report.traced.iter().filter(move |flow| flow.broken_by == Some(step));
    assert!(of(2).count() > 20);
    for flow in of(2) {
        assert_eq!((flow.backend, flow.cause), (Some(first), Some(Cause::Reset)));
    }
    for flow in of(3) {
        assert!(flow.backend.is_some_and(|backend| backend != first), "{flow:?}");
        assert_eq!(flow.cause, Some(Cause::Moved));
    }
    assert_eq!(of(2).count() + of(3).count(), 200);
    let unmatched = report.traced.last().unwrap();
    assert_eq!((unmatched.backend, unmatched.broken_by), (None, None));
    assert!(!evaluate(&steps, DEFAULT_FLOW_AGE).safe);
}

#[test]
fn flows_survive_a_renamed_table_where_the_rows_are_equal() {
    let base = plain(4, 2);
    let mut successor = base.clone();
    successor.name = "successor".into();
    let steps = [step("base", &base), step("successor", &successor)];
    let report = sequence(&steps, &[], &workload(10_000, 1), &mut |_| {});
    assert_eq!(report.broken.all(), 0);
    successor.seed = glb_table::Key::new([9; 16]);
    let steps = [step("base", &base), step("successor", &successor)];
    let report = sequence(&steps, &[], &workload(10_000, 1), &mut |_| {});
    // By chance, two hops of four backends hold a flow's backend in half of the cases.
    let lost = report.broken.moved as f64 / report.steps[1].live as f64;
    assert!((0.8..1.2).contains(&lost), "{:?}", report.broken);
    assert_eq!(report.broken.moved, report.broken.all());
}

#[test]
fn flows_of_a_down_backend_are_not_counted_as_broken() {
    let base = plain(8, 2);
    let mut down = base.clone();
    down.backends[0].healthy = false;
    let steps = [step("base", &base), step("down", &down), step("back", &base)];
    let report = sequence(&steps, &[], &workload(50_000, 1), &mut |_| {});
    assert_eq!(report.broken.all(), 0);
    assert!(report.steps[1].down > 1_000, "{:?}", report.steps[1]);
    assert_eq!(report.steps[2].down, 0);
    // While the backend is down, new backends take its place in some rows.
    let mut more = down.clone();
    for last in 1..=3 {
        more.backends.push(glb_table::Backend::new([10, 9, 9, last].into()));
    }
    let mut back = more.clone();
    back.backends[0].healthy = true;
    let steps =
        [step("base", &base), step("down", &down), step("more", &more), step("back", &back)];
    let report = sequence(&steps, &[], &workload(50_000, 1), &mut |_| {});
    assert!(report.steps[3].broken.reset > 0, "{:?}", report.steps[3]);
}
