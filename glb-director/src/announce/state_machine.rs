//! What each announcement should be now, and how far a drain is: a pure function of what is seen.
//!
//! Up, an announcement goes when the director is fit for it. Down, it goes at once when it must, and
//! in a drain step by step: less wanted, until packets have ceased; withdrawn, until none come any
//! more; drained. While a drain goes on nothing goes up; whoever cancels it lets everything go back.

use std::time::Duration;

use super::{DrainLimits, DrainView, Level, Stage};

/// After a withdrawal for want of fitness, how long it must have been fit again.
pub const AGAIN: Duration = Duration::from_secs(3);

/// Why an announcement is not to be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No generation is in force, or an interface is without one.
    NotServing,
    /// A prefix or a table of it is not in the tables in force.
    NotInTables,
    /// Too few backends of a table take new connections.
    TooFewHealthy,
    /// A VIP is an address of this machine.
    OwnAddress,
    /// It was fit again only a moment ago.
    FitTooShortly,
    /// The director is being drained, or is drained.
    Draining,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::NotServing,
        Self::NotInTables,
        Self::TooFewHealthy,
        Self::OwnAddress,
        Self::FitTooShortly,
        Self::Draining,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotServing => "not_serving",
            Self::NotInTables => "not_in_tables",
            Self::TooFewHealthy => "too_few_healthy",
            Self::OwnAddress => "own_address",
            Self::FitTooShortly => "fit_too_shortly",
            Self::Draining => "draining",
        }
    }
}

/// What speaks against an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// For programs.
    pub cause: Cause,
    /// For people.
    pub words: String,
}

impl Unfit {
    /// It speaks against announcing.
    pub fn new(cause: Cause, words: impl Into<String>) -> Self {
        Self { cause, words: words.into() }
    }
}

/// What is seen of an announcement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Why it must not stay announced, if so.
    pub must_go: Option<Unfit>,
    /// Why it must not become announced, if so, beside that.
    pub must_wait: Option<Unfit>,
    /// What it is now; nothing where the way cannot tell.
    pub level: Option<Level>,
}

/// What is seen of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'s> {
    /// Since some moment that stays the same.
    pub now: Duration,
    /// In the order of the announcements.
    pub announcements: &'s [Seen],
    /// Packets to VIPs since the counters were made; nothing if they cannot be read.
    pub packets: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is to be.
    pub level: Level,
    /// Why not announced, if it is not.
    pub why: Option<Unfit>,
}

/// A drain as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// How long packets may take to cease, at each stage.
    pub timeout: Duration,
    /// Whether it goes on when they have not; else everything goes back to what it was.
    pub force: bool,
    /// Whether the path is made less wanted first; else it is withdrawn at once.
    pub gently: bool,
}

/// What has become of a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It came to another stage.
    Stage(Stage, String),
    /// It was given up, and everything goes back.
    GivenUp(String),
}

#[derive(Clone, Debug)]
struct Drain {
    order: Order,
    begun: Duration,
    stage: Stage,
    /// When the stage was reached.
    since: Duration,
    /// Since when all announcements are what they are to be; nothing while some are not.
    carried_out: Option<Duration>,
    traffic: Traffic,
}

/// How many packets come.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    /// When they were counted last, and what was counted.
    last: Option<(Duration, u64)>,
    per_second: f64,
    /// Since when there have been as few as is wanted.
    quiet_since: Option<Duration>,
}

/// Rates are taken over at least so long.
const MEASURE: Duration = Duration::from_millis(200);

impl Traffic {
    fn count(&mut self, now: Duration, packets: Option<u64>, limit: u32) {
        let Some(packets) = packets else {
            // Not to be known is not quiet.
            *self = Self::default();
            return;
        };
        let Some((then, before)) = self.last else {
            self.last = Some((now, packets));
            return;
        };
        let span = now.saturating_sub(then);
        if span < MEASURE {
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

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Choreography {
    limits: DrainLimits,
    /// Whether the way of each announcement can make it less wanted.
    knows_less_wanted: Vec<bool>,
    wanted: Vec<Option<Wanted>>,
    /// Since when each has been fit, and whether it was withdrawn for not being so.
    fit: Vec<Fit>,
    drain: Option<Drain>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    since: Option<Duration>,
    was_withdrawn: bool,
}

impl Choreography {
    /// With no drain under way, and nothing decided yet. `knows_less_wanted` says for each
    /// announcement whether it can be made less wanted.
    #[must_use]
    pub fn new(limits: DrainLimits, knows_less_wanted: Vec<bool>) -> Self {
        let count = knows_less_wanted.len();
        let (wanted, fit) = (vec![None; count], vec![Fit::default(); count]);
        Self { limits, knows_less_wanted, wanted, fit, drain: None }
    }

    /// Begins a drain; one that is under way goes on under the new order, from where it is.
    pub fn drain(&mut self, now: Duration, order: Order) {
        let stage = if order.gently { Stage::LessWanted } else { Stage::Withdrawn };
        let (stage, begun) = match &self.drain {
            Some(drain) => (drain.stage.max(stage), drain.begun),
            None => (stage, now),
        };
        let (carried_out, traffic) = (None, Traffic::default());
        self.drain = Some(Drain { order, begun, stage, since: now, carried_out, traffic });
    }

    /// The director was drained when it was last seen: it stays so.
    pub fn stay_drained(&mut self, now: Duration) {
        let order = Order { timeout: self.limits.timeout, force: false, gently: false };
        self.drain(now, order);
        if let Some(drain) = &mut self.drain {
            drain.stage = Stage::Drained;
        }
    }

    /// Ends a drain, at whatever stage it is; whether there was one.
    pub fn cancel(&mut self) -> bool {
        self.drain.take().is_some()
    }

    /// The stage of the drain that is under way or done.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.drain.as_ref().map(|drain| drain.stage)
    }

    /// What is wanted of each announcement; nothing before it was looked at.
    #[must_use]
    pub fn wanted(&self) -> &[Option<Wanted>] {
        &self.wanted
    }

    /// How far the drain is.
    #[must_use]
    pub fn view(&self, now: Duration) -> Option<DrainView> {
        let drain = self.drain.as_ref()?;
        let limit = (drain.stage != Stage::Drained).then_some(drain.order.timeout.as_secs_f64());
        let quiet = drain.quiet_since().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let Traffic { per_second, .. } = drain.traffic;
        let message = match drain.stage {
            Stage::Drained => "drained: nothing is announced, and no packets come".to_owned(),
            _ if drain.carried_out.is_none() => {
                format!("{}: waiting until the routers' side says so", drain.stage.name())
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

    /// Looks at everything; [`Self::wanted`] is what follows from it. Returns what became of the
    /// drain.
    pub fn step(&mut self, sight: Sight<'_>) -> Option<Turn> {
        self.want(sight);
        let turn = self.advance(sight);
        if turn.is_some() {
            self.want(sight);
        }
        turn
    }

    /// The highest that an announcement may be in the drain.
    fn ceiling(&self, index: usize) -> Level {
        match &self.drain {
            None => Level::Announced,
            Some(Drain { stage: Stage::LessWanted, .. }) if self.knows_less_wanted[index] => {
                Level::LessWanted
            }
            Some(_) => Level::Withdrawn,
        }
    }

    fn want(&mut self, sight: Sight<'_>) {
        for (index, seen) in sight.announcements.iter().enumerate() {
            let unfit = seen.must_go.as_ref().or(seen.must_wait.as_ref());
            let fit = &mut self.fit[index];
            fit.since = if unfit.is_some() { None } else { fit.since.or(Some(sight.now)) };
            // What a predecessor announced is there already.
            let known = self.wanted[index].as_ref().map(|wanted| wanted.level).or(seen.level);
            let before = known.unwrap_or(Level::Withdrawn);
            let ceiling = self.ceiling(index);
            let wanted = if let Some(why) = &seen.must_go {
                self.fit[index].was_withdrawn |= before > Level::Withdrawn;
                Wanted { level: Level::Withdrawn, why: Some(why.clone()) }
            } else if ceiling < Level::Announced {
                let why = Some(Unfit::new(Cause::Draining, "the director is being drained"));
                Wanted { level: known.unwrap_or(ceiling).min(ceiling), why }
            } else if before == Level::Announced {
                Wanted { level: Level::Announced, why: None }
            } else if let Some(why) = &seen.must_wait {
                // What is not known is left as it is.
                let Some(before) = known else { continue };
                Wanted { level: before, why: Some(why.clone()) }
            } else {
                self.up(index, before, sight.now)
            };
            self.wanted[index] = Some(wanted);
        }
    }

    /// It is fit: it goes up, unless it was withdrawn and is fit only since a moment ago.
    fn up(&mut self, index: usize, before: Level, now: Duration) -> Wanted {
        let fit = &mut self.fit[index];
        let long = fit.since.is_some_and(|since| now.saturating_sub(since) >= AGAIN);
        if fit.was_withdrawn && !long {
            let why = Unfit::new(Cause::FitTooShortly, "it was fit again only a moment ago");
            return Wanted { level: before, why: Some(why) };
        }
        fit.was_withdrawn = false;
        Wanted { level: Level::Announced, why: None }
    }

    fn advance(&mut self, sight: Sight<'_>) -> Option<Turn> {
        let Sight { now, announcements, packets } = sight;
        let limits = self.limits;
        let wanted = self.wanted.iter();
        let all_there = wanted.zip(announcements).all(|(wanted, seen)| {
            let wanted = wanted.as_ref().map(|wanted| wanted.level);
            wanted.is_some() && wanted == seen.level
        });
        let can_wait = self.knows_less_wanted.iter().any(|knows| *knows);
        let drain = self.drain.as_mut().filter(|drain| drain.stage != Stage::Drained)?;
        drain.carried_out = if all_there { drain.carried_out.or(Some(now)) } else { None };
        drain.traffic.count(now, packets, limits.packets_per_second);
        let quiet =
            drain.quiet_since().is_some_and(|since| now.saturating_sub(since) >= limits.quiet);
        let late = now.saturating_sub(drain.since) >= drain.order.timeout;
        let rate = drain.traffic.per_second;
        let (next, why) = match drain.stage {
            Stage::LessWanted if !can_wait => {
                (Stage::Withdrawn, "no way can make it less wanted".to_owned())
            }
            Stage::LessWanted if quiet => (Stage::Withdrawn, "packets have ceased".to_owned()),
            Stage::LessWanted if late && drain.order.force => {
                (Stage::Withdrawn, format!("the time is up, with {rate:.0} packets/s still coming"))
            }
            Stage::Withdrawn if quiet => (Stage::Drained, "packets have ceased".to_owned()),
            // What is not known to be withdrawn is never taken for drained.
            Stage::Withdrawn if late && drain.order.force && all_there => {
                (Stage::Drained, format!("the time is up, with {rate:.0} packets/s still coming"))
            }
            _ if late => {
                let what = if all_there {
                    format!("{rate:.0} packets/s still come to the VIPs")
                } else {
                    "not every announcement is what it is to be".to_owned()
                };
                let timeout = drain.order.timeout;
                let why = format!("after {timeout:?} ({}) {what}", drain.stage.name());
                self.drain = None;
                // It was the drain that withdrew: nothing to be careful about.
                self.fit.iter_mut().for_each(|fit| fit.was_withdrawn = false);
                return Some(Turn::GivenUp(why));
            }
            _ => return None,
        };
        drain.stage = next;
        drain.since = now;
        drain.carried_out = None;
        drain.traffic.quiet_since = None;
        Some(Turn::Stage(next, why))
    }
}

impl Drain {
    /// Since when it has been quiet with everything carried out.
    fn quiet_since(&self) -> Option<Duration> {
        Some(self.carried_out?.max(self.traffic.quiet_since?))
    }
}

#[cfg(test)]
mod tests;
