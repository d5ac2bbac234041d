//! The announcement state machine: a pure function from observations to desired states and drain stages.
//!
//! An announcement goes up when the director is eligible for it. It goes down at once when it must
//! withdraw. A drain lowers it step by step: low preference until traffic stops, withdrawn until
//! traffic stops again, drained. During a drain nothing goes up; cancelling the drain restores
//! everything.

use std::time::Duration;

use super::{AnnouncementState, DrainLimits, DrainView, Stage};

/// How long an announcement must be eligible again after it was withdrawn.
pub const RECOVERY: Duration = Duration::from_secs(3);

/// Why a prefix must not be announced; the names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No generation is in force, or an interface has no program.
    NotServing,
    /// The tables in force lack a prefix or a table of the announcement.
    NotInTables,
    /// A table has fewer eligible backends than `withdraw_below`.
    TooFewHealthy,
    /// A VIP is an address of this machine.
    OwnAddress,
    /// The director became eligible again less than [`RECOVERY`] ago.
    Recovering,
    /// The director is draining or drained.
    Draining,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 6] = [
        Self::NotServing,
        Self::NotInTables,
        Self::TooFewHealthy,
        Self::OwnAddress,
        Self::Recovering,
        Self::Draining,
    ];

    /// The name used in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotServing => "not_serving",
            Self::NotInTables => "not_in_tables",
            Self::TooFewHealthy => "too_few_healthy",
            Self::OwnAddress => "own_address",
            Self::Recovering => "recovering",
            Self::Draining => "draining",
        }
    }
}

/// A reason not to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The cause, for programs.
    pub cause: Cause,
    /// The cause in words, with names and numbers.
    pub message: String,
}

impl Blocker {
    /// Makes a reason not to announce.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }
}

/// The inputs that concern one announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Why it must be withdrawn, if it must.
    pub must_withdraw: Option<Blocker>,
    /// Why it must not go up, beside `must_withdraw`.
    pub must_not_announce: Option<Blocker>,
    /// What is announced now; nothing if that is unknown.
    pub state: Option<AnnouncementState>,
    /// Why the desired state is not confirmed; empty if it is, or if no answer has come yet.
    pub error: String,
}

/// All inputs of one step.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'s> {
    /// The time since a fixed moment.
    pub now: Duration,
    /// The announcements, in the order of the configuration.
    pub announcements: &'s [Observation],
    /// Packets to VIPs since the counters were created; nothing if they cannot be read.
    pub packets: Option<u64>,
}

/// The desired state of one announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The desired state.
    pub state: AnnouncementState,
    /// Why that is not `announced`, if it is not.
    pub blocker: Option<Blocker>,
}

/// The parameters of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainRequest {
    /// How long each stage waits for traffic to stop.
    pub timeout: Duration,
    /// Whether the next stage begins although traffic has not stopped; otherwise the drain is aborted.
    pub force: bool,
    /// Whether the low-preference stage comes first; otherwise routes are withdrawn at once.
    pub low_preference_first: bool,
}

/// A change in a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainEvent {
    /// The drain reached this stage, for this reason.
    StageReached(Stage, String),
    /// The drain was aborted for this reason, and everything is announced again.
    Aborted(String),
}

#[derive(Clone, Debug)]
struct Drain {
    request: DrainRequest,
    begun: Duration,
    stage: Stage,
    /// When this stage was reached.
    since: Duration,
    /// Since when every announcement is confirmed in its desired state; nothing while one is not.
    confirmed_since: Option<Duration>,
    traffic: Traffic,
}

/// The packet rate to VIPs.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    /// The time and the value of the last reading.
    last: Option<(Duration, u64)>,
    per_second: f64,
    /// Since when the rate has been at or below the limit.
    quiet_since: Option<Duration>,
}

/// The shortest time over which a rate is computed.
const SHORTEST_SPAN: Duration = Duration::from_millis(200);

impl Traffic {
    fn count(&mut self, now: Duration, packets: Option<u64>, limit: u32) {
        let Some(packets) = packets else {
            // Counters that cannot be read do not count as idle.
            *self = Self::default();
            return;
        };
        let Some((then, before)) = self.last else {
            self.last = Some((now, packets));
            return;
        };
        let span = now.saturating_sub(then);
        if span < SHORTEST_SPAN {
            return;
        }
        self.per_second = packets.saturating_sub(before) as f64 / span.as_secs_f64();
        self.last = Some((now, packets));
        if self.per_second > f64::from(limit) {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(then);
        }
    }
}

/// The announcement state machine.
#[derive(Clone, Debug)]
pub struct StateMachine {
    limits: DrainLimits,
    /// Whether the method of each announcement supports low preference.
    supports_low_preference: Vec<bool>,
    decisions: Vec<Option<Decision>>,
    eligibility: Vec<Eligibility>,
    drain: Option<Drain>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Eligibility {
    /// Since when the director has been eligible; nothing while it is not.
    since: Option<Duration>,
    /// Whether the announcement was withdrawn because the director was not eligible.
    was_withdrawn: bool,
}

impl StateMachine {
    /// Creates the machine, with no drain and no decisions. `supports_low_preference` has one entry
    /// for each announcement.
    #[must_use]
    pub fn new(limits: DrainLimits, supports_low_preference: Vec<bool>) -> Self {
        let count = supports_low_preference.len();
        let decisions = vec![None; count];
        let eligibility = vec![Eligibility::default(); count];
        Self { limits, supports_low_preference, decisions, eligibility, drain: None }
    }

    /// Begins a drain. A drain under way keeps its stage and takes the new parameters.
    pub fn drain(&mut self, now: Duration, request: DrainRequest) {
        let stage =
            if request.low_preference_first { Stage::LowPreference } else { Stage::Withdrawn };
        let (stage, begun) = match &self.drain {
            Some(drain) => (drain.stage.max(stage), drain.begun),
            None => (stage, now),
        };
        let (confirmed_since, traffic) = (None, Traffic::default());
        self.drain = Some(Drain { request, begun, stage, since: now, confirmed_since, traffic });
    }

    /// Starts in the drained stage, as the previous process left it.
    pub fn stay_drained(&mut self, now: Duration) {
        let request = DrainRequest {
            timeout: self.limits.timeout,
            force: false,
            low_preference_first: false,
        };
        self.drain(now, request);
        if let Some(drain) = &mut self.drain {
            drain.stage = Stage::Drained;
        }
    }

    /// Cancels the drain at any stage; returns whether there was one.
    pub fn cancel(&mut self) -> bool {
        self.drain.take().is_some()
    }

    /// The stage of the drain that is under way or complete.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.drain.as_ref().map(|drain| drain.stage)
    }

    /// The decision for each announcement; nothing before the first one.
    #[must_use]
    pub fn decisions(&self) -> &[Option<Decision>] {
        &self.decisions
    }

    /// The progress of the drain, for `status`.
    #[must_use]
    pub fn view(&self, now: Duration) -> Option<DrainView> {
        let drain = self.drain.as_ref()?;
        let limit = (drain.stage != Stage::Drained).then_some(drain.request.timeout.as_secs_f64());
        let quiet = drain.quiet_since().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let Traffic { per_second, .. } = drain.traffic;
        let message = match drain.stage {
            Stage::Drained => "drained: nothing is announced, and no packets arrive".to_owned(),
            _ if drain.confirmed_since.is_none() => {
                format!("{}: waiting for the routing daemon to confirm", drain.stage.name())
            }
            stage => format!(
                "{}: {per_second:.0} packets/s to VIPs, quiet for {:.1} of {:.1} s",
                stage.name(),
                quiet.as_secs_f64(),
                self.limits.quiet.as_secs_f64()
            ),
        };
        Some(DrainView {
            stage: drain.stage,
            seconds: now.saturating_sub(drain.begun).as_secs_f64(),
            limit_seconds: limit,
            packets_per_second: per_second,
            quiet_seconds: quiet.as_secs_f64(),
            message,
        })
    }

    /// Updates [`Self::decisions`] and the drain; returns a change in the drain.
    pub fn step(&mut self, inputs: Inputs<'_>) -> Option<DrainEvent> {
        self.decide(inputs);
        let event = self.advance(inputs);
        if event.is_some() {
            self.decide(inputs);
        }
        event
    }

    /// The highest state that the drain allows.
    fn ceiling(&self, index: usize) -> AnnouncementState {
        match &self.drain {
            None => AnnouncementState::Announced,
            Some(Drain { stage: Stage::LowPreference, .. })
                if self.supports_low_preference[index] =>
            {
                AnnouncementState::LowPreference
            }
            Some(_) => AnnouncementState::Withdrawn,
        }
    }

    fn decide(&mut self, inputs: Inputs<'_>) {
        for (index, seen) in inputs.announcements.iter().enumerate() {
            let is_blocked = seen.must_withdraw.is_some() || seen.must_not_announce.is_some();
            let eligibility = &mut self.eligibility[index];
            eligibility.since =
                if is_blocked { None } else { eligibility.since.or(Some(inputs.now)) };
            // Before the first decision, what the previous process announced stays.
            let known = self.decisions[index].as_ref().map(|last| last.state).or(seen.state);
            let before = known.unwrap_or(AnnouncementState::Withdrawn);
            let ceiling = self.ceiling(index);
            let decision = if let Some(why) = &seen.must_withdraw {
                self.eligibility[index].was_withdrawn |= before > AnnouncementState::Withdrawn;
                Decision { state: AnnouncementState::Withdrawn, blocker: Some(why.clone()) }
            } else if ceiling < AnnouncementState::Announced {
                let blocker = Some(Blocker::new(Cause::Draining, "the director is draining"));
                Decision { state: known.unwrap_or(ceiling).min(ceiling), blocker }
            } else if before == AnnouncementState::Announced {
                Decision { state: AnnouncementState::Announced, blocker: None }
            } else if let Some(why) = &seen.must_not_announce {
                // An unknown state is left as it is.
                let Some(before) = known else { continue };
                Decision { state: before, blocker: Some(why.clone()) }
            } else {
                self.raise(index, before, inputs.now)
            };
            self.decisions[index] = Some(decision);
        }
    }

    /// Announces, unless the announcement was withdrawn and is eligible again only since a moment.
    fn raise(&mut self, index: usize, before: AnnouncementState, now: Duration) -> Decision {
        let eligibility = &mut self.eligibility[index];
        let has_recovered =
            eligibility.since.is_some_and(|since| now.saturating_sub(since) >= RECOVERY);
        if eligibility.was_withdrawn && !has_recovered {
            let message = format!("eligible again for less than {RECOVERY:?}");
            return Decision {
                state: before,
                blocker: Some(Blocker::new(Cause::Recovering, message)),
            };
        }
        eligibility.was_withdrawn = false;
        Decision { state: AnnouncementState::Announced, blocker: None }
    }

    fn advance(&mut self, inputs: Inputs<'_>) -> Option<DrainEvent> {
        let Inputs { now, announcements, packets } = inputs;
        let limits = self.limits;
        let unconfirmed = self.decisions.iter().zip(announcements).find(|(decision, seen)| {
            let desired = decision.as_ref().map(|decision| decision.state);
            desired.is_none() || desired != seen.state
        });
        let is_confirmed = unconfirmed.is_none();
        let can_lower = self.supports_low_preference.iter().any(|supports| *supports);
        let drain = self.drain.as_mut().filter(|drain| drain.stage != Stage::Drained)?;
        drain.confirmed_since =
            if is_confirmed { drain.confirmed_since.or(Some(now)) } else { None };
        drain.traffic.count(now, packets, limits.packets_per_second);
        let quiet =
            drain.quiet_since().is_some_and(|since| now.saturating_sub(since) >= limits.quiet);
        let late = now.saturating_sub(drain.since) >= drain.request.timeout;
        let rate = drain.traffic.per_second;
        let (next, why) = match drain.stage {
            Stage::LowPreference if !can_lower => {
                (Stage::Withdrawn, "no announcement supports low preference".to_owned())
            }
            Stage::LowPreference if quiet => (Stage::Withdrawn, "traffic has stopped".to_owned()),
            Stage::LowPreference if late && drain.request.force => {
                (Stage::Withdrawn, format!("timeout with {rate:.0} packets/s still arriving"))
            }
            Stage::Withdrawn if quiet => (Stage::Drained, "traffic has stopped".to_owned()),
            // An unconfirmed withdrawal never counts as drained.
            Stage::Withdrawn if late && drain.request.force && is_confirmed => {
                (Stage::Drained, format!("timeout with {rate:.0} packets/s still arriving"))
            }
            _ if late => {
                let what = match unconfirmed {
                    None => format!("{rate:.0} packets/s still arrive for the VIPs"),
                    Some((_, Observation { error, .. })) if error.is_empty() => {
                        "an announcement's state is not confirmed".to_owned()
                    }
                    Some((_, Observation { error, .. })) => {
                        format!("an announcement's state is not confirmed: {error}")
                    }
                };
                let timeout = drain.request.timeout;
                let why = format!("after {timeout:?} in stage {}: {what}", drain.stage.name());
                self.drain = None;
                // The drain withdrew, not a lack of eligibility: no recovery time is needed.
                self.eligibility.iter_mut().for_each(|one| one.was_withdrawn = false);
                return Some(DrainEvent::Aborted(why));
            }
            _ => return None,
        };
        drain.stage = next;
        drain.since = now;
        drain.confirmed_since = None;
        drain.traffic.quiet_since = None;
        Some(DrainEvent::StageReached(next, why))
    }
}

impl Drain {
    /// Since when traffic has been stopped and every announcement confirmed.
    fn quiet_since(&self) -> Option<Duration> {
        Some(self.confirmed_since?.max(self.traffic.quiet_since?))
    }
}

#[cfg(test)]
mod tests;
