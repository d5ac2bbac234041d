//! What a new source does to what is known and written.

use proptest::prelude::*;

use super::*;

/// The same with other times: nothing else differs.
fn slower(of: &Source) -> Arc<Source> {
    parsed(&of.text.replace("interval_ms = 1000", "interval_ms = 1100"))
}

#[test]
fn a_reload_keeps_judgements_and_checks_what_is_new_first() {
    let mut world = World::new(2, &[]);
    world.down = HashSet::from([1]);
    world.run(2 * SECOND);
    assert_eq!(world.last(), [false, true]);
    world.engine.reload(source(3), world.now);
    assert_eq!(world.engine.pending(), 1);
    assert!(world.engine.decide(world.now).is_none());
    world.run(SECOND / 10);
    assert_eq!(world.decided.len(), 2);
    assert_eq!(world.last(), [false, true, true]);
    // A late result of a target that is gone changes nothing.
    let job = {
        world.now = world.engine.wake().unwrap();
        world.engine.next_job(world.now).unwrap()
    };
    world.engine.reload(source(1), world.now);
    world.engine.take(job.id, Outcome::Fail(failure()), SECOND, world.now);
    world.run(2 * SECOND);
    assert_eq!(world.last(), [false]);
    assert_eq!(world.engine.targets().count(), 1);
}

#[test]
fn a_check_with_other_times_is_no_new_check() {
    let mut world = World::new(3, &[]);
    world.down = HashSet::from([1]);
    world.drain = Some(true);
    world.run(3 * SECOND);
    assert_eq!(world.last(), [false, true, true]);
    let transitions = |world: &World| -> Vec<(String, u64, bool)> {
        let of = |watched: &Watched| {
            let judge = &watched.judge;
            (watched.target.address.to_string(), judge.transitions(), watched.drain)
        };
        let mut all: Vec<_> = world.engine.targets().map(of).collect();
        all.sort();
        all
    };
    let before = transitions(&world);
    let source = slower(world.engine.source());
    world.engine.reload(source, world.now);
    assert_eq!(world.engine.pending(), 0);
    assert_eq!(transitions(&world), before);
    // One failure is not `fall` of them, one pass not `rise` of them.
    world.down = HashSet::from([2]);
    world.run(SECOND / 10);
    assert_eq!(world.last(), [false, true, true]);
    world.run(5 * SECOND);
    assert_eq!(world.last(), [true, false, true]);
}

/// With one more backend, 9, that accepts and says nothing.
fn with_a_new_one_that_hangs() -> World {
    let mut world = World::new(3, &[]);
    world.run(3 * SECOND);
    assert_eq!(world.last(), [true; 3]);
    world.hanging = HashSet::from([9]);
    world.engine.reload(source_of([1, 2, 3, 9]), world.now);
    world
}

#[test]
fn a_new_one_that_hangs_holds_up_no_death() {
    let mut world = World::new(3, &[]);
    world.run(3 * SECOND);
    // The new one's first result is far away.
    world.hanging = HashSet::from([9]);
    let pace = "healthchecks = { interval_ms = 60000, timeout_ms = 50000 }\n";
    world.engine.reload(parsed(&(source_of([1, 2, 3, 9]).text.clone() + pace)), world.now);
    let died = world.now;
    world.down = HashSet::from([2]);
    world.run(3 * SECOND);
    assert_eq!(world.engine.pending(), 1);
    assert_eq!((world.listed.as_slice(), world.last()), (&[1, 2, 3][..], &[true, false, true][..]));
    let took = world.decided[1].0 - died;
    assert!(took <= 2 * SECOND + SECOND / 5, "{took:?}");
    // And nobody's return.
    world.down.clear();
    world.run(4 * SECOND);
    assert_eq!((world.listed.as_slice(), world.last()), (&[1, 2, 3][..], &[true; 3][..]));
    world.run(60 * SECOND);
    assert_eq!((world.engine.pending(), world.listed.as_slice()), (0, &[1, 2, 3, 9][..]));
    assert_eq!(world.last(), [true, true, true, false]);
}

#[test]
fn nothing_is_written_about_a_new_one_before_its_first_result() {
    let mut world = with_a_new_one_that_hangs();
    world.run(SECOND / 3);
    assert_eq!((world.decided.len(), world.engine.pending()), (1, 1));
    // Those who are asked about are told of, as far as anything is known.
    let findings: Vec<_> =
        world.engine.backends().flat_map(|(_, of)| of).map(|seen| seen.finding).collect();
    assert_eq!(findings.len(), 4);
    assert!(findings[..3].iter().all(Option::is_some) && findings[3].is_none(), "{findings:?}");
    world.run(SECOND);
    assert_eq!((world.decided.len(), world.engine.pending()), (2, 0));
    assert_eq!(world.last(), [true, true, true, false]);
}

#[test]
fn who_was_removed_with_a_new_one_in_the_same_source_is_judged_until_then() {
    let mut world = World::new(3, &[]);
    world.run(3 * SECOND);
    world.hanging = HashSet::from([9]);
    let text = source_of([2, 3, 9]).text.replace("interval_ms = 1000", "interval_ms = 20000");
    let text = text.replace("timeout_ms = 500", "timeout_ms = 19000");
    world.engine.reload(parsed(&text), world.now);
    // 1 is no longer in the source, 2 and 3 are to be asked at another pace.
    assert_eq!(world.engine.targets().count(), 4);
    world.down = HashSet::from([1]);
    world.run(3 * SECOND);
    assert_eq!((world.listed.as_slice(), world.last()), (&[1, 2, 3][..], &[false, true, true][..]));
    world.run(20 * SECOND);
    assert_eq!((world.listed.as_slice(), world.last()), (&[2, 3, 9][..], &[true, true, false][..]));
    assert_eq!(world.engine.targets().count(), 3);
}

#[test]
fn another_reload_before_the_first_result_takes_its_place() {
    let mut world = with_a_new_one_that_hangs();
    world.run(SECOND / 10);
    // The one that hangs is taken out again: nothing is waited for.
    world.engine.reload(source_of([1, 2]), world.now);
    assert_eq!(world.engine.pending(), 0);
    world.run(SECOND);
    assert_eq!((world.listed.as_slice(), world.last()), (&[1, 2][..], &[true; 2][..]));
    // Before anything was written, the newest source alone counts.
    let mut world = World::new(3, &[]);
    world.hanging = HashSet::from([2]);
    world.run(SECOND / 10);
    world.engine.reload(source_of([1, 3]), world.now);
    world.run(SECOND);
    assert_eq!((world.listed.as_slice(), world.last()), (&[1, 3][..], &[true; 2][..]));
}

#[test]
fn a_check_that_is_replaced_is_done_until_the_new_one_has_a_result() {
    let mut world = World::new(2, &[]);
    world.run(3 * SECOND);
    // Another port: both are new checks.
    world.engine.reload(parsed(&source(2).text.replace("tcp = 80", "tcp = 81")), world.now);
    assert_eq!((world.engine.pending(), world.engine.targets().count()), (2, 4));
    world.run(SECOND);
    assert_eq!((world.engine.pending(), world.engine.targets().count()), (0, 2));
    assert_eq!(world.last(), [true; 2]);
}

#[derive(Clone, Debug)]
enum Step {
    /// These are in the source from now on.
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
    /// Whatever is loaded when, and whoever hangs: the truth about those who are written is written
    /// in time, and a source is in force as a whole, in time.
    #[test]
    fn what_is_written_is_true_in_time(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new(4, &[]);
        let mut sources = vec![vec![1, 2, 3, 4]];
        // Since when nothing happened to it.
        let mut quiet = [Moment::ZERO; 9];
        let mut loaded = Moment::ZERO;
        for step in steps {
            match step {
                Step::Reload(backends) => {
                    world.engine.reload(source_of(backends.clone()), world.now);
                    sources.push(backends);
                    loaded = world.now;
                }
                Step::Die(n) | Step::Hang(n) | Step::Heal(n) => {
                    world.down.remove(&n);
                    world.hanging.remove(&n);
                    match step {
                        Step::Die(_) => _ = world.down.insert(n),
                        Step::Hang(_) => _ = world.hanging.insert(n),
                        _ => {}
                    }
                    quiet[usize::from(n)] = world.now;
                }
                Step::Wait(milliseconds) => world.run(Duration::from_millis(milliseconds)),
            }
            let Some((_, healthy)) = world.decided.last() else { continue };
            prop_assert!(sources.contains(&world.listed), "{:?}: half a source", world.listed);
            // A first result takes a timeout, and two writes are a gap apart.
            if world.now - loaded > SECOND {
                prop_assert_eq!(&world.listed, sources.last().unwrap());
            }
            for (n, healthy) in world.listed.iter().zip(healthy) {
                // Two results, an interval of up to 1.05 s apart, a timeout, and what is settled.
                let is_known = world.now - quiet[usize::from(*n)] > 5 * SECOND;
                let is_well = !world.down.contains(n) && !world.hanging.contains(n);
                prop_assert!(!is_known || *healthy == is_well, "{n} is written {healthy}");
            }
        }
    }
}
