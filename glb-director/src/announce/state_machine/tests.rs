//! Scenarios of announcing and draining, written by hand and generated.

use proptest::prelude::*;

use super::*;

const LIMITS: DrainLimits = DrainLimits {
    quiet: Duration::from_secs(2),
    packets_per_second: 5,
    timeout: Duration::from_secs(30),
};

/// A simulated director whose speakers confirm every decision by the next step.
struct World {
    machine: StateMachine,
    seen: Vec<Observation>,
    now: Duration,
    packets: u64,
}

impl World {
    fn new(knows: &[bool]) -> Self {
        Self {
            machine: StateMachine::new(LIMITS, knows.to_vec()),
            seen: vec![
                Observation {
                    state: Some(AnnouncementState::Withdrawn),
                    ..Observation::default()
                };
                knows.len()
            ],
            now: Duration::from_secs(100),
            packets: 0,
        }
    }

    fn look(&mut self) -> Option<DrainEvent> {
        let event = self.machine.step(Inputs {
            now: self.now,
            announcements: &self.seen,
            packets: Some(self.packets),
        });
        for (seen, wanted) in self.seen.iter_mut().zip(self.machine.decisions()) {
            seen.state = wanted.as_ref().map(|wanted| wanted.state);
        }
        event
    }

    /// Lets time pass at a packet rate; returns the drain's events.
    fn pass(&mut self, seconds: u64, packets_per_second: u64) -> Vec<DrainEvent> {
        let mut events = Vec::new();
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            self.packets += packets_per_second / 4;
            events.extend(self.look());
        }
        events
    }

    fn states(&self) -> Vec<AnnouncementState> {
        self.seen.iter().map(|seen| seen.state.unwrap()).collect()
    }
}

fn request(force: bool, low_preference_first: bool) -> DrainRequest {
    DrainRequest { timeout: Duration::from_secs(30), force, low_preference_first }
}

fn blocker() -> Option<Blocker> {
    Some(Blocker::new(Cause::TooFewHealthy, "ill"))
}

#[test]
fn eligible_announcements_go_up_and_each_is_withdrawn_alone() {
    let mut world = World::new(&[true, true]);
    world.seen[0].must_not_announce = Some(Blocker::new(Cause::NotServing, "no way yet"));
    world.pass(1, 0);
    assert_eq!(world.states(), [AnnouncementState::Withdrawn, AnnouncementState::Announced]);
    world.seen[0].must_not_announce = None;
    world.look();
    assert_eq!(world.states(), [AnnouncementState::Announced, AnnouncementState::Announced]);
    // A reason not to go up does not withdraw.
    world.seen[1].must_not_announce = blocker();
    world.pass(1, 0);
    assert_eq!(world.states(), [AnnouncementState::Announced, AnnouncementState::Announced]);
    world.seen[1].must_withdraw = blocker();
    world.look();
    assert_eq!(world.states(), [AnnouncementState::Announced, AnnouncementState::Withdrawn]);
    // It goes up again only after the recovery time.
    (world.seen[1].must_withdraw, world.seen[1].must_not_announce) = (None, None);
    world.pass(2, 0);
    assert_eq!(world.states(), [AnnouncementState::Announced, AnnouncementState::Withdrawn]);
    world.pass(2, 0);
    assert_eq!(world.states(), [AnnouncementState::Announced, AnnouncementState::Announced]);
}

#[test]
fn what_the_previous_process_announced_stays() {
    let mut world = World::new(&[true]);
    world.seen[0] = Observation {
        state: Some(AnnouncementState::Announced),
        must_not_announce: blocker(),
        must_withdraw: None,
        ..Observation::default()
    };
    world.look();
    assert_eq!(world.states(), [AnnouncementState::Announced]);
}

#[test]
fn a_drain_waits_for_quiet_traffic_at_both_stages() {
    let mut world = World::new(&[true]);
    world.look();
    world.machine.drain(world.now, request(false, true));
    assert_eq!(world.pass(10, 1_000), []);
    assert_eq!(world.states(), [AnnouncementState::LowPreference]);
    // A rate at the limit counts as stopped.
    let events = world.pass(3, 4);
    assert_eq!(events, [DrainEvent::StageReached(Stage::Withdrawn, "traffic has stopped".into())]);
    assert_eq!(world.states(), [AnnouncementState::Withdrawn]);
    // New traffic restarts the quiet time.
    assert_eq!(world.pass(5, 1_000), []);
    let events = world.pass(3, 0);
    assert_eq!(events, [DrainEvent::StageReached(Stage::Drained, "traffic has stopped".into())]);
    // Drained is final, whatever arrives.
    assert_eq!(world.pass(100, 1_000), []);
    assert_eq!(
        (world.machine.stage(), world.states()),
        (Some(Stage::Drained), vec![AnnouncementState::Withdrawn])
    );
    assert!(world.machine.cancel());
    world.look();
    assert_eq!(world.states(), [AnnouncementState::Announced]);
}

#[test]
fn without_low_preference_a_drain_withdraws_at_once() {
    let mut world = World::new(&[true, false]);
    world.look();
    world.machine.drain(world.now, request(false, true));
    world.pass(1, 1_000);
    assert_eq!(world.states(), [AnnouncementState::LowPreference, AnnouncementState::Withdrawn]);
    let mut world = World::new(&[false]);
    world.look();
    world.machine.drain(world.now, request(false, true));
    let events = world.pass(1, 1_000);
    assert!(matches!(events[..], [DrainEvent::StageReached(Stage::Withdrawn, _)]), "{events:?}");
}

#[test]
fn lasting_traffic_aborts_a_drain_unless_forced() {
    let mut world = World::new(&[true]);
    world.look();
    world.machine.drain(world.now, request(false, true));
    let events = world.pass(40, 1_000);
    assert!(
        matches!(&events[..], [DrainEvent::Aborted(why)] if why.contains("1000 packets/s")),
        "{events:?}"
    );
    assert_eq!((world.machine.stage(), world.states()), (None, vec![AnnouncementState::Announced]));

    world.machine.drain(world.now, request(true, true));
    let events = world.pass(70, 1_000);
    let stages: Vec<_> =
        events.iter().map(|event| matches!(event, DrainEvent::StageReached(..))).collect();
    assert_eq!((stages, world.machine.stage()), (vec![true, true], Some(Stage::Drained)));
}

#[test]
fn an_unconfirmed_withdrawal_is_not_drained_even_by_force() {
    let mut machine = StateMachine::new(LIMITS, vec![false]);
    let deaf =
        [Observation { state: Some(AnnouncementState::Announced), ..Observation::default() }];
    machine.drain(Duration::ZERO, request(true, false));
    let mut events = Vec::new();
    for quarter in 0..400 {
        let now = Duration::from_millis(250) * quarter;
        events.extend(machine.step(Inputs { now, announcements: &deaf, packets: Some(0) }));
    }
    assert!(matches!(&events[..], [DrainEvent::Aborted(_)]), "{events:?}");
}

#[test]
fn unreadable_counters_do_not_count_as_quiet() {
    let mut machine = StateMachine::new(LIMITS, vec![true]);
    machine.drain(Duration::ZERO, request(false, true));
    for quarter in 0..100 {
        let now = Duration::from_millis(250) * quarter;
        let state = machine.decisions()[0].as_ref().map(|wanted| wanted.state);
        let seen = [Observation {
            state: state.or(Some(AnnouncementState::Announced)),
            ..Observation::default()
        }];
        assert_eq!(machine.step(Inputs { now, announcements: &seen, packets: None }), None);
    }
    assert_eq!(machine.stage(), Some(Stage::LowPreference));
}

#[derive(Clone, Debug)]
enum Event {
    Pass {
        milliseconds: u64,
        packets: u64,
    },
    MustGo(usize, bool),
    MustWait(usize, bool),
    /// The speaker confirms the decision, or loses the state (BIRD restarted).
    Confirm(usize, bool),
    Drain {
        force: bool,
        low_preference_first: bool,
    },
    Cancel,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..3_000, prop_oneof![2 => Just(0u64), 1 => 0u64..5_000])
            .prop_map(|(milliseconds, packets)| Event::Pass { milliseconds, packets }),
        1 => (0usize..3, any::<bool>()).prop_map(|(which, is)| Event::MustGo(which, is)),
        1 => (0usize..3, any::<bool>()).prop_map(|(which, is)| Event::MustWait(which, is)),
        4 => (0usize..3, prop::bool::weighted(0.9)).prop_map(|(which, is)| Event::Confirm(which, is)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(force, low_preference_first)| Event::Drain { force, low_preference_first }),
        1 => Just(Event::Cancel),
    ]
}

fn state_of(wanted: Option<&Decision>) -> AnnouncementState {
    wanted.map_or(AnnouncementState::Withdrawn, |wanted| wanted.state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn invariants_hold_for_any_sequence_of_events(events in prop::collection::vec(event(), 1..80), knows in any::<[bool; 3]>()) {
        let mut world = World::new(&knows);
        let mut last_busy = world.now;
        for event in events {
            let before = world.machine.clone();
            let mut busy = false;
            match event {
                Event::Pass { milliseconds, packets } => {
                    world.now += Duration::from_millis(milliseconds);
                    world.packets += packets;
                    busy = packets > 0;
                }
                Event::MustGo(which, is) => world.seen[which].must_withdraw = is.then(blocker).flatten(),
                Event::MustWait(which, is) => world.seen[which].must_not_announce = is.then(blocker).flatten(),
                Event::Confirm(which, is) => {
                    let wanted = world.machine.decisions()[which].as_ref();
                    let wanted = state_of(wanted);
                    world.seen[which].state = Some(if is { wanted } else { AnnouncementState::Withdrawn });
                }
                Event::Drain { force, low_preference_first } => {
                    world.machine.drain(world.now, request(force, low_preference_first));
                }
                Event::Cancel => drop(world.machine.cancel()),
            }
            if busy {
                last_busy = world.now;
            }
            let inputs = Inputs {
                now: world.now,
                announcements: &world.seen,
                packets: Some(world.packets),
            };
            let event = world.machine.step(inputs);
            let stage = world.machine.stage();
            for (index, knows) in knows.iter().enumerate() {
                let (old, new) =
                    (before.decisions()[index].as_ref(), world.machine.decisions()[index].as_ref());
                let seen = &world.seen[index];
                let new_state = state_of(new);
                // What must be withdrawn is withdrawn at once.
                prop_assert!(seen.must_withdraw.is_none() || new_state == AnnouncementState::Withdrawn);
                // What must not go up does not.
                let held = seen.must_not_announce.is_some() && old.is_some();
                prop_assert!(!held || new_state <= state_of(old));
                // In a drain nothing goes up, and nothing exceeds the stage's limit.
                if stage.is_some() {
                    prop_assert!(old.is_none() || new_state <= state_of(old));
                    let most = match stage {
                        Some(Stage::LowPreference) if *knows => AnnouncementState::LowPreference,
                        _ => AnnouncementState::Withdrawn,
                    };
                    prop_assert!(new_state <= most);
                }
                // A state below `announced` has a reason.
                prop_assert_eq!(new_state == AnnouncementState::Announced, new.is_some_and(|new| new.blocker.is_none()));
            }
            match (before.stage(), stage, event) {
                (_, Some(Stage::Drained), Some(DrainEvent::StageReached(..))) => {
                    // Everything is confirmed withdrawn, and traffic is quiet unless the drain was forced.
                    prop_assert!(world.seen.iter().all(|seen| seen.state == Some(AnnouncementState::Withdrawn)));
                    let quiet = world.now - last_busy >= LIMITS.quiet;
                    let drain = world.machine.drain.as_ref().unwrap();
                    let few = drain.traffic.per_second <= f64::from(LIMITS.packets_per_second);
                    prop_assert!(quiet || few || drain.request.force);
                }
                // A stage never goes back by itself.
                (Some(old), Some(new), _) => prop_assert!(new >= old),
                _ => {}
            }
        }
        // Eligible and without a drain, everything is announced in the end.
        world.machine.cancel();
        for seen in &mut world.seen {
            (seen.must_withdraw, seen.must_not_announce) = (None, None);
        }
        world.pass(RECOVERY.as_secs() + 1, 0);
        prop_assert_eq!(world.states(), [AnnouncementState::Announced; 3]);
    }
}
