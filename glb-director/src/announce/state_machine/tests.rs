//! Days in the life of a director, told and generated.

use proptest::prelude::*;

use super::*;

const LIMITS: DrainLimits = DrainLimits {
    quiet: Duration::from_secs(2),
    packets_per_second: 5,
    timeout: Duration::from_secs(30),
};

/// A world in which whatever is wanted is done by the next look.
struct World {
    choreography: Choreography,
    seen: Vec<Seen>,
    now: Duration,
    packets: u64,
}

impl World {
    fn new(knows: &[bool]) -> Self {
        Self {
            choreography: Choreography::new(LIMITS, knows.to_vec()),
            seen: vec![Seen { level: Some(Level::Withdrawn), ..Seen::default() }; knows.len()],
            now: Duration::from_secs(100),
            packets: 0,
        }
    }

    fn look(&mut self) -> Option<Turn> {
        let turn = self.choreography.step(Sight {
            now: self.now,
            announcements: &self.seen,
            packets: Some(self.packets),
        });
        for (seen, wanted) in self.seen.iter_mut().zip(self.choreography.wanted()) {
            seen.level = wanted.as_ref().map(|wanted| wanted.level);
        }
        turn
    }

    /// Lets time pass while so many packets come each second; what became of the drain.
    fn pass(&mut self, seconds: u64, packets_per_second: u64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            self.packets += packets_per_second / 4;
            turns.extend(self.look());
        }
        turns
    }

    fn levels(&self) -> Vec<Level> {
        self.seen.iter().map(|seen| seen.level.unwrap()).collect()
    }
}

fn order(force: bool, gently: bool) -> Order {
    Order { timeout: Duration::from_secs(30), force, gently }
}

fn ill() -> Option<Unfit> {
    Some(Unfit::new(Cause::TooFewHealthy, "ill"))
}

#[test]
fn it_is_announced_when_it_is_fit_and_withdrawn_alone() {
    let mut world = World::new(&[true, true]);
    world.seen[0].must_wait = Some(Unfit::new(Cause::NotServing, "no way yet"));
    world.pass(1, 0);
    assert_eq!(world.levels(), [Level::Withdrawn, Level::Announced]);
    world.seen[0].must_wait = None;
    world.look();
    assert_eq!(world.levels(), [Level::Announced, Level::Announced]);
    // What only keeps it from going up does not take it down.
    world.seen[1].must_wait = ill();
    world.pass(1, 0);
    assert_eq!(world.levels(), [Level::Announced, Level::Announced]);
    world.seen[1].must_go = ill();
    world.look();
    assert_eq!(world.levels(), [Level::Announced, Level::Withdrawn]);
    // Back only when that has lasted.
    (world.seen[1].must_go, world.seen[1].must_wait) = (None, None);
    world.pass(2, 0);
    assert_eq!(world.levels(), [Level::Announced, Level::Withdrawn]);
    world.pass(2, 0);
    assert_eq!(world.levels(), [Level::Announced, Level::Announced]);
}

#[test]
fn what_a_predecessor_announced_stays_as_it_is() {
    let mut world = World::new(&[true]);
    world.seen[0] = Seen { level: Some(Level::Announced), must_wait: ill(), must_go: None };
    world.look();
    assert_eq!(world.levels(), [Level::Announced]);
}

#[test]
fn a_drain_waits_for_the_last_packet_twice() {
    let mut world = World::new(&[true]);
    world.look();
    world.choreography.drain(world.now, order(false, true));
    assert_eq!(world.pass(10, 1_000), []);
    assert_eq!(world.levels(), [Level::LessWanted]);
    // Some few are as good as none.
    let turns = world.pass(3, 4);
    assert_eq!(turns, [Turn::Stage(Stage::Withdrawn, "packets have ceased".into())]);
    assert_eq!(world.levels(), [Level::Withdrawn]);
    // They come once more, and the quiet begins anew.
    assert_eq!(world.pass(5, 1_000), []);
    let turns = world.pass(3, 0);
    assert_eq!(turns, [Turn::Stage(Stage::Drained, "packets have ceased".into())]);
    // It stays so, whatever comes.
    assert_eq!(world.pass(100, 1_000), []);
    assert_eq!(
        (world.choreography.stage(), world.levels()),
        (Some(Stage::Drained), vec![Level::Withdrawn])
    );
    assert!(world.choreography.cancel());
    world.look();
    assert_eq!(world.levels(), [Level::Announced]);
}

#[test]
fn a_way_that_knows_no_less_is_withdrawn_and_nobody_waits_for_it_twice() {
    let mut world = World::new(&[true, false]);
    world.look();
    world.choreography.drain(world.now, order(false, true));
    world.pass(1, 1_000);
    assert_eq!(world.levels(), [Level::LessWanted, Level::Withdrawn]);
    let mut world = World::new(&[false]);
    world.look();
    world.choreography.drain(world.now, order(false, true));
    let turns = world.pass(1, 1_000);
    assert!(matches!(turns[..], [Turn::Stage(Stage::Withdrawn, _)]), "{turns:?}");
}

#[test]
fn packets_that_do_not_cease_end_it_one_way_or_the_other() {
    let mut world = World::new(&[true]);
    world.look();
    world.choreography.drain(world.now, order(false, true));
    let turns = world.pass(40, 1_000);
    assert!(
        matches!(&turns[..], [Turn::GivenUp(why)] if why.contains("1000 packets/s")),
        "{turns:?}"
    );
    assert_eq!((world.choreography.stage(), world.levels()), (None, vec![Level::Announced]));

    world.choreography.drain(world.now, order(true, true));
    let turns = world.pass(70, 1_000);
    let stages: Vec<_> = turns.iter().map(|turn| matches!(turn, Turn::Stage(..))).collect();
    assert_eq!((stages, world.choreography.stage()), (vec![true, true], Some(Stage::Drained)));
}

#[test]
fn what_is_not_known_to_be_withdrawn_is_not_drained_by_force() {
    let mut choreography = Choreography::new(LIMITS, vec![false]);
    let deaf = [Seen { level: Some(Level::Announced), ..Seen::default() }];
    choreography.drain(Duration::ZERO, order(true, false));
    let mut turns = Vec::new();
    for quarter in 0..400 {
        let now = Duration::from_millis(250) * quarter;
        turns.extend(choreography.step(Sight { now, announcements: &deaf, packets: Some(0) }));
    }
    assert!(matches!(&turns[..], [Turn::GivenUp(_)]), "{turns:?}");
}

#[test]
fn counters_that_cannot_be_read_are_not_quiet() {
    let mut choreography = Choreography::new(LIMITS, vec![true]);
    choreography.drain(Duration::ZERO, order(false, true));
    for quarter in 0..100 {
        let now = Duration::from_millis(250) * quarter;
        let level = choreography.wanted()[0].as_ref().map(|wanted| wanted.level);
        let seen = [Seen { level: level.or(Some(Level::Announced)), ..Seen::default() }];
        assert_eq!(choreography.step(Sight { now, announcements: &seen, packets: None }), None);
    }
    assert_eq!(choreography.stage(), Some(Stage::LessWanted));
}

#[derive(Clone, Debug)]
enum Event {
    Pass {
        milliseconds: u64,
        packets: u64,
    },
    MustGo(usize, bool),
    MustWait(usize, bool),
    /// The way does what is wanted, or loses it (a restart of BIRD).
    Carry(usize, bool),
    Drain {
        force: bool,
        gently: bool,
    },
    Cancel,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..3_000, prop_oneof![2 => Just(0u64), 1 => 0u64..5_000])
            .prop_map(|(milliseconds, packets)| Event::Pass { milliseconds, packets }),
        1 => (0usize..3, any::<bool>()).prop_map(|(which, is)| Event::MustGo(which, is)),
        1 => (0usize..3, any::<bool>()).prop_map(|(which, is)| Event::MustWait(which, is)),
        4 => (0usize..3, prop::bool::weighted(0.9)).prop_map(|(which, is)| Event::Carry(which, is)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(force, gently)| Event::Drain { force, gently }),
        1 => Just(Event::Cancel),
    ]
}

fn level_of(wanted: Option<&Wanted>) -> Level {
    wanted.map_or(Level::Withdrawn, |wanted| wanted.level)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whatever_happens(events in prop::collection::vec(event(), 1..80), knows in any::<[bool; 3]>()) {
        let mut world = World::new(&knows);
        let mut last_busy = world.now;
        for event in events {
            let before = world.choreography.clone();
            let mut busy = false;
            match event {
                Event::Pass { milliseconds, packets } => {
                    world.now += Duration::from_millis(milliseconds);
                    world.packets += packets;
                    busy = packets > 0;
                }
                Event::MustGo(which, is) => world.seen[which].must_go = is.then(ill).flatten(),
                Event::MustWait(which, is) => world.seen[which].must_wait = is.then(ill).flatten(),
                Event::Carry(which, is) => {
                    let wanted = world.choreography.wanted()[which].as_ref();
                    let wanted = level_of(wanted);
                    world.seen[which].level = Some(if is { wanted } else { Level::Withdrawn });
                }
                Event::Drain { force, gently } => {
                    world.choreography.drain(world.now, order(force, gently));
                }
                Event::Cancel => drop(world.choreography.cancel()),
            }
            if busy {
                last_busy = world.now;
            }
            let sight = Sight {
                now: world.now,
                announcements: &world.seen,
                packets: Some(world.packets),
            };
            let turn = world.choreography.step(sight);
            let stage = world.choreography.stage();
            for (index, knows) in knows.iter().enumerate() {
                let (old, new) =
                    (before.wanted()[index].as_ref(), world.choreography.wanted()[index].as_ref());
                let seen = &world.seen[index];
                let new_level = level_of(new);
                // What must go goes, at once.
                prop_assert!(seen.must_go.is_none() || new_level == Level::Withdrawn);
                // What must wait does not go up.
                let held = seen.must_wait.is_some() && old.is_some();
                prop_assert!(!held || new_level <= level_of(old));
                // In a drain nothing goes up, and nothing is above what the stage allows.
                if stage.is_some() {
                    prop_assert!(old.is_none() || new_level <= level_of(old));
                    let most = match stage {
                        Some(Stage::LessWanted) if *knows => Level::LessWanted,
                        _ => Level::Withdrawn,
                    };
                    prop_assert!(new_level <= most);
                }
                // What is not announced has a reason.
                prop_assert_eq!(new_level == Level::Announced, new.is_some_and(|new| new.why.is_none()));
            }
            match (before.stage(), stage, turn) {
                (_, Some(Stage::Drained), Some(Turn::Stage(..))) => {
                    // All is withdrawn, really, and quiet enough unless the time was up.
                    prop_assert!(world.seen.iter().all(|seen| seen.level == Some(Level::Withdrawn)));
                    let quiet = world.now - last_busy >= LIMITS.quiet;
                    let drain = world.choreography.drain.as_ref().unwrap();
                    let few = drain.traffic.per_second <= f64::from(LIMITS.packets_per_second);
                    prop_assert!(quiet || few || drain.order.force);
                }
                // It never goes back by itself but as a whole.
                (Some(old), Some(new), _) => prop_assert!(new >= old),
                _ => {}
            }
        }
        // Left in peace and fit, everything is announced in the end.
        world.choreography.cancel();
        for seen in &mut world.seen {
            (seen.must_go, seen.must_wait) = (None, None);
        }
        world.pass(AGAIN.as_secs() + 1, 0);
        prop_assert_eq!(world.levels(), [Level::Announced; 3]);
    }
}
