//! Applying a new input while the engine runs.

use proptest::prelude::*;

use super::*;

/// The same input with a longer interval.
fn slower(of: &InputTable) -> Arc<InputTable> {
    parsed(&of.text.replace("interval_ms = 1000", "interval_ms = 1100"))
}

#[test]
fn a_reload_keeps_health_and_probes_new_targets_first() {
    let mut fleet = Fleet::new(2, &[]);
    fleet.down = HashSet::from([1]);
    fleet.run(2 * SECOND);
    assert_eq!(fleet.last(), [false, true]);
    fleet.engine.reload(input(3), fleet.now);
    assert_eq!(fleet.engine.pending(), 1);
    assert!(fleet.engine.next_update(fleet.now).is_none());
    fleet.run(SECOND / 10);
    assert_eq!(fleet.decided.len(), 2);
    assert_eq!(fleet.last(), [false, true, true]);
    // A late result of a removed target is ignored.
    let job = {
        fleet.now = fleet.engine.next_wake().unwrap();
        fleet.engine.next_job(fleet.now).unwrap()
    };
    fleet.engine.reload(input(1), fleet.now);
    fleet.engine.record_result(job.id, Outcome::Fail(failure()), SECOND, fleet.now);
    fleet.run(2 * SECOND);
    assert_eq!(fleet.last(), [false]);
    assert_eq!(fleet.engine.targets().count(), 1);
}

#[test]
fn a_check_with_changed_settings_keeps_its_health() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.down = HashSet::from([1]);
    fleet.drain = Some(true);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.last(), [false, true, true]);
    let transitions = |fleet: &Fleet| -> Vec<(String, u64, bool)> {
        let of = |monitored: &MonitoredTarget| {
            let health_state = &monitored.health_state;
            (monitored.target.address.to_string(), health_state.transitions(), monitored.drain)
        };
        let mut all: Vec<_> = fleet.engine.targets().map(of).collect();
        all.sort();
        all
    };
    let before = transitions(&fleet);
    let input = slower(fleet.engine.input());
    fleet.engine.reload(input, fleet.now);
    assert_eq!(fleet.engine.pending(), 0);
    assert_eq!(transitions(&fleet), before);
    // One result reaches neither `fall` nor `rise`.
    fleet.down = HashSet::from([2]);
    fleet.run(SECOND / 10);
    assert_eq!(fleet.last(), [false, true, true]);
    fleet.run(5 * SECOND);
    assert_eq!(fleet.last(), [true, false, true]);
}

/// A fleet after a reload that adds backend 9, which hangs.
fn fleet_with_new_hanging_backend() -> Fleet {
    let mut fleet = Fleet::new(3, &[]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.last(), [true; 3]);
    fleet.hanging = HashSet::from([9]);
    fleet.engine.reload(input_of([1, 2, 3, 9]), fleet.now);
    fleet
}

#[test]
fn a_new_hanging_backend_does_not_delay_other_failures() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.run(3 * SECOND);
    // The new backend's first result comes after 50 s.
    fleet.hanging = HashSet::from([9]);
    let settings = "healthchecks = { interval_ms = 60000, timeout_ms = 50000 }\n";
    fleet.engine.reload(parsed(&(input_of([1, 2, 3, 9]).text.clone() + settings)), fleet.now);
    let died = fleet.now;
    fleet.down = HashSet::from([2]);
    fleet.run(3 * SECOND);
    assert_eq!(fleet.engine.pending(), 1);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[1, 2, 3][..], &[true, false, true][..]));
    let took = fleet.decided[1].0 - died;
    assert!(took <= 2 * SECOND + SECOND / 5, "{took:?}");
    // Returns are not delayed either.
    fleet.down.clear();
    fleet.run(4 * SECOND);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[1, 2, 3][..], &[true; 3][..]));
    fleet.run(60 * SECOND);
    assert_eq!((fleet.engine.pending(), fleet.listed.as_slice()), (0, &[1, 2, 3, 9][..]));
    assert_eq!(fleet.last(), [true, true, true, false]);
}

#[test]
fn a_new_backend_is_not_written_before_its_first_result() {
    let mut fleet = fleet_with_new_hanging_backend();
    fleet.run(SECOND / 3);
    assert_eq!((fleet.decided.len(), fleet.engine.pending()), (1, 1));
    // The view lists the new backend without a result.
    let health: Vec<_> =
        fleet.engine.backends().flat_map(|(_, of)| of).map(|seen| seen.result).collect();
    assert_eq!(health.len(), 4);
    assert!(health[..3].iter().all(Option::is_some) && health[3].is_none(), "{health:?}");
    fleet.run(SECOND);
    assert_eq!((fleet.decided.len(), fleet.engine.pending()), (2, 0));
    assert_eq!(fleet.last(), [true, true, true, false]);
}

#[test]
fn a_removed_backend_is_probed_until_the_new_input_is_in_force() {
    let mut fleet = Fleet::new(3, &[]);
    fleet.run(3 * SECOND);
    fleet.hanging = HashSet::from([9]);
    let text = input_of([2, 3, 9]).text.replace("interval_ms = 1000", "interval_ms = 20000");
    let text = text.replace("timeout_ms = 500", "timeout_ms = 19000");
    fleet.engine.reload(parsed(&text), fleet.now);
    // The new input lacks backend 1 and gives 2 and 3 other settings.
    assert_eq!(fleet.engine.targets().count(), 4);
    fleet.down = HashSet::from([1]);
    fleet.run(3 * SECOND);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[1, 2, 3][..], &[false, true, true][..]));
    fleet.run(20 * SECOND);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[2, 3, 9][..], &[true, true, false][..]));
    assert_eq!(fleet.engine.targets().count(), 3);
}

#[test]
fn a_second_reload_replaces_the_pending_input() {
    let mut fleet = fleet_with_new_hanging_backend();
    fleet.run(SECOND / 10);
    // The hanging backend is removed again: nothing is pending.
    fleet.engine.reload(input_of([1, 2]), fleet.now);
    assert_eq!(fleet.engine.pending(), 0);
    fleet.run(SECOND);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[1, 2][..], &[true; 2][..]));
    // Before the first write only the newest input counts.
    let mut fleet = Fleet::new(3, &[]);
    fleet.hanging = HashSet::from([2]);
    fleet.run(SECOND / 10);
    fleet.engine.reload(input_of([1, 3]), fleet.now);
    fleet.run(SECOND);
    assert_eq!((fleet.listed.as_slice(), fleet.last()), (&[1, 3][..], &[true; 2][..]));
}

#[test]
fn a_replaced_check_runs_until_the_new_one_has_a_result() {
    let mut fleet = Fleet::new(2, &[]);
    fleet.run(3 * SECOND);
    // A check of another port is a new check.
    fleet.engine.reload(parsed(&input(2).text.replace("tcp = 80", "tcp = 81")), fleet.now);
    assert_eq!((fleet.engine.pending(), fleet.engine.targets().count()), (2, 4));
    fleet.run(SECOND);
    assert_eq!((fleet.engine.pending(), fleet.engine.targets().count()), (0, 2));
    assert_eq!(fleet.last(), [true; 2]);
}

#[derive(Clone, Debug)]
enum Step {
    /// Loads an input with these backends.
    Reload(Vec<u8>),
    Die(u8),
    Hang(u8),
    Heal(u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::btree_set(1..9_u8, 1..6)
            .prop_map(|set| Step::Reload(set.into_iter().collect())),
        (1..9_u8).prop_map(Step::Die),
        (1..9_u8).prop_map(Step::Hang),
        (1..9_u8).prop_map(Step::Heal),
        (1..3000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// For any order of reloads, failures and hangs: the output is always from one input as a whole,
    /// and reports each backend's true health within a time limit.
    #[test]
    fn the_output_reports_the_true_health_in_time(steps in prop::collection::vec(step(), 1..40)) {
        let mut fleet = Fleet::new(4, &[]);
        let mut sources = vec![vec![1, 2, 3, 4]];
        // When each backend last changed.
        let mut quiet = [Moment::ZERO; 9];
        let mut loaded = Moment::ZERO;
        for step in steps {
            match step {
                Step::Reload(backends) => {
                    fleet.engine.reload(input_of(backends.clone()), fleet.now);
                    sources.push(backends);
                    loaded = fleet.now;
                }
                Step::Die(n) | Step::Hang(n) | Step::Heal(n) => {
                    fleet.down.remove(&n);
                    fleet.hanging.remove(&n);
                    match step {
                        Step::Die(_) => _ = fleet.down.insert(n),
                        Step::Hang(_) => _ = fleet.hanging.insert(n),
                        _ => {}
                    }
                    quiet[usize::from(n)] = fleet.now;
                }
                Step::Wait(milliseconds) => fleet.run(Duration::from_millis(milliseconds)),
            }
            let Some((_, healthy)) = fleet.decided.last() else { continue };
            prop_assert!(sources.contains(&fleet.listed), "{:?}: half a input", fleet.listed);
            // A first result takes a timeout, and writes are `min_write_interval` apart.
            if fleet.now - loaded > SECOND {
                prop_assert_eq!(&fleet.listed, sources.last().unwrap());
            }
            for (n, healthy) in fleet.listed.iter().zip(healthy) {
                // Two results up to 1.05 s apart, a timeout, and the debounce time.
                let is_known = fleet.now - quiet[usize::from(*n)] > 5 * SECOND;
                let is_well = !fleet.down.contains(n) && !fleet.hanging.contains(n);
                prop_assert!(!is_known || *healthy == is_well, "{n} is written {healthy}");
            }
        }
    }
}
