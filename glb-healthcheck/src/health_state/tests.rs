use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules(rise: u32, fall: u32) -> Rules {
    Rules { rise, fall, hold: Duration::ZERO, hold_max: Duration::ZERO, forgive: Duration::ZERO }
}

/// What is said after each result; the results are a second apart.
fn said(rules: &Rules, results: &[bool]) -> Vec<bool> {
    let mut judge = Judge::new(Moment::ZERO);
    let mut now = Moment::ZERO;
    let mut said = Vec::new();
    for result in results {
        judge.take(rules, *result, now);
        said.push(judge.standing() == Standing::Up);
        now += SECOND;
    }
    said
}

fn bits(text: &str) -> Vec<bool> {
    text.bytes().map(|byte| byte == b'1').collect()
}

/// The assertions of GLB's HealthResultDampener_test.go: rise, fall, results, what is said.
#[test]
fn as_glb_dampens() {
    for (rise, fall, results, wanted) in [
        (1, 1, "101010", "101010"),
        (1, 3, "001010000010", "001111100011"),
        (3, 1, "110101111101", "110000011100"),
        (3, 3, "001010000010111110", "000000000000001111"),
        (3, 3, "110101111101000001", "111111111111110000"),
    ] {
        let (results, wanted) = (bits(results), bits(wanted));
        assert_eq!(said(&rules(rise, fall), &results), wanted, "rise {rise}, fall {fall}");
    }
}

#[test]
fn who_flaps_is_held_down_for_longer_and_longer() {
    let rules =
        Rules { rise: 1, fall: 1, hold: 4 * SECOND, hold_max: 20 * SECOND, forgive: 60 * SECOND };
    let mut judge = Judge::new(Moment::ZERO);
    let mut now = Moment::ZERO;
    judge.take(&rules, true, now);
    let mut holds = Vec::new();
    for _ in 0..5 {
        now += SECOND;
        judge.take(&rules, false, now);
        let failed = now;
        while judge.standing() == Standing::Down {
            now += SECOND;
            judge.take(&rules, true, now);
        }
        holds.push((now - failed).as_secs());
    }
    assert_eq!(holds, [4, 8, 16, 20, 20]);
    assert_eq!((judge.transitions(), judge.flaps()), (10, 4));
    // Long enough up: all is forgiven.
    now += 60 * SECOND;
    judge.take(&rules, false, now);
    assert_eq!(judge.held_until() - now, 4 * SECOND);
    assert_eq!(judge.flaps(), 4);
}

#[test]
fn a_restart_turns_nothing() {
    let rules = rules(3, 3);
    for up in [true, false] {
        let mut judge = Judge::resumed(up, Moment::ZERO);
        assert_eq!(judge.take(&rules, !up, SECOND), None);
        assert_eq!(judge.take(&rules, !up, SECOND), None);
        assert!(judge.take(&rules, !up, SECOND).is_some());
    }
}

/// The model: looks at the whole past anew after each result.
fn model(rules: &Rules, past: &[(Moment, bool)]) -> bool {
    let mut up = past[0].1;
    let mut changed = 0;
    let mut up_since = None;
    let (mut held_until, mut hold) = (Moment::ZERO, rules.hold);
    for end in 1..past.len() {
        let now = past[end].0;
        let streak =
            past[changed + 1..=end].iter().rev().take_while(|(_, passed)| *passed != up).count();
        if up && streak >= rules.fall as usize {
            let lately = up_since.is_some_and(|since| now - since < rules.forgive);
            hold = if lately { (hold * 2).min(rules.hold_max) } else { rules.hold };
            held_until = now + hold.min(rules.hold_max);
            (up, changed) = (false, end);
        } else if !up && streak >= rules.rise as usize && now >= held_until {
            up_since = Some(now);
            (up, changed) = (true, end);
        }
    }
    up
}

fn any_rules() -> impl Strategy<Value = Rules> {
    (1..5_u32, 1..5_u32, 0..10_u32, 0..60_u32, 0..60_u32).prop_map(
        |(rise, fall, hold, hold_max, forgive)| Rules {
            rise,
            fall,
            hold: SECOND * hold,
            hold_max: SECOND * hold.max(hold_max),
            forgive: SECOND * forgive,
        },
    )
}

fn any_past() -> impl Strategy<Value = Vec<(Moment, bool)>> {
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
    fn agrees_with_the_model(rules in any_rules(), past in any_past()) {
        let mut judge = Judge::new(Moment::ZERO);
        for (end, (now, passed)) in past.iter().enumerate() {
            judge.take(&rules, *passed, *now);
            prop_assert_eq!(judge.standing() == Standing::Up, model(&rules, &past[..=end]));
        }
    }

    /// However it flaps: in a time T it comes back at most as often as holds fit into T.
    #[test]
    fn flapping_is_bounded(past in any_past()) {
        let rules = Rules {
            rise: 1, fall: 1, hold: SECOND, hold_max: 64 * SECOND, forgive: 1000 * SECOND,
        };
        let mut judge = Judge::new(Moment::ZERO);
        for (now, passed) in &past {
            judge.take(&rules, *passed, *now);
        }
        let time = past[past.len() - 1].0.as_secs();
        let returns = judge.transitions() / 2;
        // 1 + 2 + 4 + … up to 64, then 64 each.
        let bound = if time < 127 { u64::from((time + 2).ilog2()) + 1 } else { 7 + time / 64 };
        prop_assert!(returns <= bound, "{} returns in {} s", returns, time);
    }
}
