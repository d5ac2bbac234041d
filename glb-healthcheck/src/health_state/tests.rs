use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules(rise: u32, fall: u32) -> HealthRules {
    HealthRules {
        rise,
        fall,
        hold_down: Duration::ZERO,
        hold_down_max: Duration::ZERO,
        flap_reset: Duration::ZERO,
    }
}

/// Returns whether a target is healthy after each result; the results are one second apart.
fn healthy_after(rules: &HealthRules, results: &[bool]) -> Vec<bool> {
    let mut health_state = HealthState::new(Moment::ZERO);
    let mut now = Moment::ZERO;
    let mut healthy = Vec::new();
    for result in results {
        health_state.record(rules, *result, now);
        healthy.push(health_state.health() == Health::Healthy);
        now += SECOND;
    }
    healthy
}

fn bits(text: &str) -> Vec<bool> {
    text.bytes().map(|byte| byte == b'1').collect()
}

/// The assertions of GLB's HealthResultDampener_test.go: rise, fall, results, health after each result.
#[test]
fn rise_and_fall_work_as_in_glb() {
    for (rise, fall, results, wanted) in [
        (1, 1, "101010", "101010"),
        (1, 3, "001010000010", "001111100011"),
        (3, 1, "110101111101", "110000011100"),
        (3, 3, "001010000010111110", "000000000000001111"),
        (3, 3, "110101111101000001", "111111111111110000"),
    ] {
        let (results, wanted) = (bits(results), bits(wanted));
        assert_eq!(healthy_after(&rules(rise, fall), &results), wanted, "rise {rise}, fall {fall}");
    }
}

#[test]
fn each_flap_doubles_the_hold_down() {
    let rules = HealthRules {
        rise: 1,
        fall: 1,
        hold_down: 4 * SECOND,
        hold_down_max: 20 * SECOND,
        flap_reset: 60 * SECOND,
    };
    let mut health_state = HealthState::new(Moment::ZERO);
    let mut now = Moment::ZERO;
    health_state.record(&rules, true, now);
    let mut holds = Vec::new();
    for _ in 0..5 {
        now += SECOND;
        health_state.record(&rules, false, now);
        let failed = now;
        while health_state.health() == Health::Unhealthy {
            now += SECOND;
            health_state.record(&rules, true, now);
        }
        holds.push((now - failed).as_secs());
    }
    assert_eq!(holds, [4, 8, 16, 20, 20]);
    assert_eq!((health_state.transitions(), health_state.flaps()), (10, 4));
    // Healthy for longer than flap_reset: the hold-down starts from the first value.
    now += 60 * SECOND;
    health_state.record(&rules, false, now);
    assert_eq!(health_state.held_until() - now, 4 * SECOND);
    assert_eq!(health_state.flaps(), 4);
}

#[test]
fn a_resumed_state_changes_only_after_rise_or_fall_results() {
    let rules = rules(3, 3);
    for up in [true, false] {
        let mut health_state = HealthState::resume(up, Moment::ZERO);
        assert_eq!(health_state.record(&rules, !up, SECOND), None);
        assert_eq!(health_state.record(&rules, !up, SECOND), None);
        assert!(health_state.record(&rules, !up, SECOND).is_some());
    }
}

/// A simple model that evaluates the whole history for each result.
fn model(rules: &HealthRules, history: &[(Moment, bool)]) -> bool {
    let mut up = history[0].1;
    let mut changed = 0;
    let mut up_since = None;
    let (mut held_until, mut hold_down) = (Moment::ZERO, rules.hold_down);
    for end in 1..history.len() {
        let now = history[end].0;
        let streak =
            history[changed + 1..=end].iter().rev().take_while(|(_, passed)| *passed != up).count();
        if up && streak >= rules.fall as usize {
            let lately = up_since.is_some_and(|since| now - since < rules.flap_reset);
            hold_down =
                if lately { (hold_down * 2).min(rules.hold_down_max) } else { rules.hold_down };
            held_until = now + hold_down.min(rules.hold_down_max);
            (up, changed) = (false, end);
        } else if !up && streak >= rules.rise as usize && now >= held_until {
            up_since = Some(now);
            (up, changed) = (true, end);
        }
    }
    up
}

fn any_rules() -> impl Strategy<Value = HealthRules> {
    (1..5_u32, 1..5_u32, 0..10_u32, 0..60_u32, 0..60_u32).prop_map(
        |(rise, fall, hold_down, hold_down_max, flap_reset)| HealthRules {
            rise,
            fall,
            hold_down: SECOND * hold_down,
            hold_down_max: SECOND * hold_down.max(hold_down_max),
            flap_reset: SECOND * flap_reset,
        },
    )
}

fn any_history() -> impl Strategy<Value = Vec<(Moment, bool)>> {
    prop::collection::vec((0..5_000_u64, any::<bool>()), 1..120).prop_map(|steps| {
        let mut now = Moment::ZERO;
        let step = |(wait, passed)| {
            now += Duration::from_millis(wait);
            (now, passed)
        };
        steps.into_iter().map(step).collect()
    })
}

proptest! {
    #[test]
    fn state_agrees_with_the_model(rules in any_rules(), history in any_history()) {
        let mut health_state = HealthState::new(Moment::ZERO);
        for (end, (now, passed)) in history.iter().enumerate() {
            health_state.record(&rules, *passed, *now);
            prop_assert_eq!(health_state.health() == Health::Healthy, model(&rules, &history[..=end]));
        }
    }

    /// In a time T a target returns at most as often as hold-downs fit into T.
    #[test]
    fn hold_down_bounds_the_number_of_returns(history in any_history()) {
        let rules = HealthRules {
            rise: 1, fall: 1, hold_down: SECOND, hold_down_max: 64 * SECOND, flap_reset: 1000 * SECOND,
        };
        let mut health_state = HealthState::new(Moment::ZERO);
        for (now, passed) in &history {
            health_state.record(&rules, *passed, *now);
        }
        let time = history[history.len() - 1].0.as_secs();
        let returns = health_state.transitions() / 2;
        // 1 + 2 + 4 + … up to 64, then 64 each.
        let bound = if time < 127 { u64::from((time + 2).ilog2()) + 1 } else { 7 + time / 64 };
        prop_assert!(returns <= bound, "{} returns in {} s", returns, time);
    }
}
