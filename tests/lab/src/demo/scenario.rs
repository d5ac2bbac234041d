//! The steps of the demo, in order.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{AFTERWARDS, Options, Outcome, screen::Screen};
use crate::{
    command,
    fleet::{Counters, Fleet, REPOSITORY},
    git_clone::GitClone,
    interrupt,
    plan::Node,
    report::{Check, Table, grouped},
    repository,
    requests::Requests,
    row_diff::RowDiff,
    table::State,
};

/// The drain starts when this share of the repository has arrived.
const DRAIN_AT_PERCENT: u8 = 35;

/// A director goes out of service at this share, if second chance keeps the clone alive.
const DIRECTOR_OUT_AT_PERCENT: u8 = 65;

/// The name of the phase after the director has left.
const DIRECTOR_OUT: &str = "director1 out";

/// The director that leaves.
const OUT: Node = Node::Director(1);

/// The number of clients that send requests in parallel.
const PARALLEL: usize = 4;

/// A phase of the demo between two changes.
struct Phase {
    name: &'static str,
    from: Instant,
    to: Instant,
    before: Counters,
    after: Counters,
    /// The rows changed by the event that opened this phase.
    moved: Option<RowDiff>,
}

impl Phase {
    /// Starts a phase now, with counters from before the change.
    fn begin(name: &'static str, before: Counters, moved: Option<RowDiff>) -> Self {
        let now = Instant::now();
        Self { name, from: now, to: now, after: before.clone(), before, moved }
    }

    /// Returns the growth of a counter in this phase.
    fn grew(&self, counter: impl Fn(&Counters) -> u64) -> u64 {
        counter(&self.after).saturating_sub(counter(&self.before))
    }
}

/// The running demo.
pub(super) struct DemoRun<'a> {
    screen: Screen<'a>,
    checks: Vec<Check>,
    phases: Vec<Phase>,
    second_chance: bool,
    /// The current phase, which has not ended yet.
    phase: Phase,
    /// The backend that serves the clone, and the clone's source port.
    served_by: (Node, u16),
    requests: Requests,
    clone: GitClone,
    fleet: Fleet,
}

impl<'a> DemoRun<'a> {
    /// Starts the clone and the requests, and finds the backend that serves the clone.
    pub(super) fn begin(fleet: Fleet, options: &Options, mut screen: Screen<'a>) -> Result<Self> {
        let phase = Phase::begin("before the drain", fleet.counters()?, None);
        let pause = Duration::from_millis(20);
        let requests = Requests::start(&fleet.lab, options.family, PARALLEL, pause)?;
        let mut clone = GitClone::start(&fleet.lab, options.family, REPOSITORY, "copy")?;
        screen.say(&format!(
            "git clone {} from {} ({} MB over {} Mbit/s), and short requests from 1,000 other \
             addresses.",
            clone.url(),
            clone.address(),
            options.megabytes,
            options.mbit
        ))?;
        let served_by = interrupt::wait("the clone's transfer", Duration::from_secs(15), || {
            if let Some((status, _)) = clone.finished()? {
                bail!("the clone ended at once with {status}: {}", clone.complaints()?.join(" "));
            }
            let found = clone.served_by(&fleet.lab)?;
            Ok(if clone.percent()? > 0 { found.first().copied() } else { None })
        })?;
        let (node, port) = served_by;
        screen.say(&format!("{node} serves it, over the TCP connection from port {port}."))?;
        let (checks, phases) = (Vec::new(), Vec::new());
        let second_chance = options.second_chance;
        Ok(Self { screen, checks, phases, second_chance, phase, served_by, requests, clone, fleet })
    }

    /// Drains the backend that serves the clone and watches the clone until it ends.
    pub(super) fn clone_and_drain(&mut self) -> Result<()> {
        loop {
            interrupt::sleep(Duration::from_millis(100))?;
            ensure!(
                self.clone.finished()?.is_none(),
                "the clone ended before the drain: {}",
                self.clone.complaints()?.join(" ")
            );
            let percent = self.clone.percent()?;
            self.show()?;
            if percent >= DRAIN_AT_PERCENT {
                break;
            }
        }
        let (drained, _) = self.served_by;
        let percent = self.clone.percent()?;
        let took = self.set_state(State::Draining, "drained")?;
        self.screen.say(&format!(
            "{drained} is set to draining in table.toml; both directors have it in force after \
             {took:.0?}.",
        ))?;
        let mut other_connections = 0;
        let mut director_is_in = self.second_chance;
        let ended = loop {
            if director_is_in && self.clone.percent()? >= DIRECTOR_OUT_AT_PERCENT {
                director_is_in = false;
                self.take_director_out()?;
            }
            if let Some(ended) = self.clone.finished()? {
                break ended;
            }
            let now = self.clone.served_by(&self.fleet.lab)?;
            other_connections += now.iter().filter(|found| **found != self.served_by).count();
            self.show()?;
            interrupt::sleep(Duration::from_millis(200))?;
        };
        self.clone_ended(ended.0.success(), other_connections == 0, percent)
    }

    /// Takes the first director out of service cleanly while the clone continues.
    fn take_director_out(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.fleet.take_out(OUT)?;
        let took = begun.elapsed();
        let counters = self.fleet.counters()?;
        self.end_phase(Phase::begin(DIRECTOR_OUT, counters, None));
        let percent = self.clone.percent()?;
        self.screen.say(&format!(
            "At {percent} % of the clone {OUT} is drained (less wanted by BGP, quiet, withdrawn) and \
             stopped, in {took:.1?}. The other one has all packets."
        ))?;
        Ok(())
    }

    fn clone_ended(&mut self, is_whole: bool, same_connection: bool, percent: u8) -> Result<()> {
        let (drained, _) = self.served_by;
        let seconds = self.clone.finished()?.map_or(0.0, |(_, time)| time.as_secs_f64());
        let after_drain = self.phase.from.elapsed().as_secs_f64();
        let complaints = self.clone.complaints()?.into_iter().next().unwrap_or_default();
        let forwarded = self.fleet.counters()?.all_forwarded();
        let early = format!("at {percent} %");
        if self.second_chance {
            self.screen.say(&format!("The clone ended after {seconds:.1} s."))?;
            self.check("the drain came in the middle of the clone", percent < 70, early);
            self.check("the clone went on to its end", is_whole, complaints);
            let name = format!("it stayed on one TCP connection, on {drained}");
            self.check(&name, same_connection, String::new());
            let name = format!("after the drain its packets reached {drained} by second chance");
            self.check(&name, forwarded > 0, format!("{} packets", grouped(forwarded)));
        } else {
            self.screen.say(&format!(
                "Without second chance the clone broke {after_drain:.1} s after the drain: \
                 {complaints}"
            ))?;
            self.check("the drain came in the middle of the clone", percent < 70, early);
            let name = "without second chance the drain broke the clone";
            self.check(name, !is_whole && !complaints.is_empty(), complaints);
            let name = "it broke within 15 s of the drain";
            self.check(name, after_drain < 15.0, format!("{after_drain:.1} s"));
            self.check("no backend sent a packet on", forwarded == 0, grouped(forwarded));
            self.afterwards()?;
        }
        Ok(())
    }

    /// Verifies the clone, removes the drained backend from the table, and watches for a while.
    pub(super) fn verify_and_remove(&mut self) -> Result<()> {
        let (drained, _) = self.served_by;
        let target = self.clone.target().to_owned();
        if target.exists() {
            let mut fsck = repository::in_repository(&target);
            let fsck = command::run_interruptible(fsck.args(["fsck", "--full", "--strict"]));
            interrupt::check()?;
            let seen = fsck.as_ref().err().map(ToString::to_string).unwrap_or_default();
            self.check("git fsck --full finds nothing wrong with it", fsck.is_ok(), seen);
            let head = repository::head(&target).unwrap_or_else(|error| error.to_string());
            let same = head == self.fleet.head;
            self.check("its HEAD is the repository's", same, head);
        }

        let took = self.set_state(State::Inactive, "removed")?;
        self.screen.say(&format!("{drained} is out of the table (inactive) after {took:.0?}."))?;
        self.afterwards()
    }

    /// Watches for a while after the last change.
    fn afterwards(&mut self) -> Result<()> {
        let end = Instant::now() + AFTERWARDS;
        while Instant::now() < end {
            self.show()?;
            interrupt::sleep(Duration::from_millis(200))?;
        }
        Ok(())
    }

    /// Runs the last checks, prints the table, and returns the parts to keep or drop.
    pub(super) fn end(mut self) -> Result<(Fleet, Outcome, Screen<'a>)> {
        let after = Phase::begin("after", self.fleet.counters()?, None);
        self.end_phase(after);
        let (drained, _) = self.served_by;
        let mut failed = Vec::new();
        let mut counts = Vec::new();
        for phase in &self.phases {
            let (answers, errors) = self.requests.between(phase.from, phase.to);
            failed.extend(errors);
            counts.push(answers);
        }
        let of = |answers: &BTreeMap<String, u64>, node: Node| {
            answers.get(&node.to_string()).copied().unwrap_or(0)
        };
        let here: u64 = counts.iter().skip(1).map(|answers| of(answers, drained)).sum();
        let all: u64 = counts.iter().skip(1).flat_map(BTreeMap::values).sum();
        let before = counts.first().map_or(0, |answers| of(answers, drained));
        let name = format!("before the drain {drained} answered requests");
        self.check(&name, before > 0, grouped(before));
        let name = format!("after the drain no new request reached {drained}");
        self.check(&name, here == 0 && all > 0, format!("{here} of {}", grouped(all)));
        if self.second_chance {
            let seen = failed.first().cloned().unwrap_or_default();
            self.check("no request failed in all that time", failed.is_empty(), seen);
            let removed = self.phases.last().context("no phase")?;
            let sent = removed.grew(|counters| counters.sent_to(drained));
            let name = format!("after its removal the directors sent nothing to {drained}");
            self.check(&name, sent == 0, grouped(sent));
            self.check_directors();
        }
        let table = self.table(&counts, failed.len());
        self.screen.print(&format!("\n{table}"))?;
        for check in &self.checks {
            self.screen.print(&format!("  {check}"))?;
        }
        let outcome = Outcome { checks: self.checks };
        self.screen.print(&verdict(&outcome, self.second_chance))?;
        drop((self.requests, self.clone));
        Ok((self.fleet, outcome, self.screen))
    }

    /// Checks that both directors had traffic, and that the removed one got none afterwards.
    fn check_directors(&mut self) {
        let shares: Vec<_> = self.through_directors().collect();
        let before = shares.iter().map(|(_, cells)| cells[0]);
        let (both, seen) = (before.clone().all(|packets| packets > 0), before.map(grouped));
        let seen = seen.collect::<Vec<_>>().join(" and ");
        self.check("before the drain both directors forwarded", both, seen);
        let out = self.phases.iter().position(|phase| phase.name == DIRECTOR_OUT);
        let late = shares.iter().filter(|(node, _)| *node == OUT).flat_map(|(_, cells)| cells);
        let late: u64 = late.skip(out.unwrap_or(0)).sum();
        let name = format!("{OUT} went out during the clone and forwarded nothing after that");
        self.check(&name, out.is_some() && late == 0, grouped(late));
    }

    /// Packets through each director, by phase.
    fn through_directors(&self) -> impl Iterator<Item = (Node, Vec<u64>)> {
        self.fleet.lab.plan().director_nodes().enumerate().map(|(index, node)| {
            let sent = |counters: &Counters| {
                counters.directors.get(index).map_or(0, |director| director.packets("encapsulated"))
            };
            (node, self.phases.iter().map(|phase| phase.grew(sent)).collect())
        })
    }

    fn table(&self, counts: &[BTreeMap<String, u64>], failed: usize) -> Table {
        let mut table = Table::new(&self.phases.iter().map(|phase| phase.name).collect::<Vec<_>>());
        let phases = || self.phases.iter();
        let moved = |pick: fn(&RowDiff) -> u64| {
            let cell = move |moved: &RowDiff| grouped(pick(moved));
            let cells = phases().map(move |p| p.moved.as_ref().map_or("-".to_owned(), cell));
            cells.collect::<Vec<_>>()
        };
        table.row("rows moved (of 65,536)", moved(|moved| moved.any));
        table.row("  to another first hop", moved(|moved| moved.first));
        let sent: Vec<_> = self.fleet.lab.plan().backend_nodes().collect();
        let all = |counters: &Counters| sent.iter().map(|&n| counters.sent_to(n)).sum::<u64>();
        table.numbers("packets through the directors", phases().map(|p| p.grew(all)));
        for (node, cells) in self.through_directors() {
            table.numbers(&format!("  through {node}"), cells);
        }
        table.numbers(
            "  taken at the first hop",
            phases().map(|p| p.grew(all).saturating_sub(p.grew(Counters::all_forwarded))),
        );
        table.numbers(
            "  by second chance at the next",
            phases().map(|p| p.grew(Counters::all_forwarded)),
        );
        for node in self.fleet.lab.plan().backend_nodes() {
            let mark = if node == self.served_by.0 { " (drained)" } else { "" };
            let requests =
                counts.iter().map(|answers| answers.get(&node.to_string()).copied().unwrap_or(0));
            table.numbers(&format!("requests answered by {node}{mark}"), requests);
        }
        table.row("requests failed, in all", [grouped(failed as u64)]);
        let retransmits = |counters: &Counters| counters.retransmits.values().sum::<u64>();
        table.numbers("TCP segments retransmitted", phases().map(|p| p.grew(retransmits)));
        table
    }

    /// Updates the progress line once.
    fn show(&mut self) -> Result<()> {
        let (drained, _) = self.served_by;
        let counters = self.fleet.counters()?;
        let (answers, errors) = self.requests.between(self.phase.from, Instant::now());
        let mut line = match self.clone.finished()? {
            None => format!("clone {:3} %", self.clone.percent()?),
            Some((status, _)) if status.success() => "clone done".to_owned(),
            Some(_) => "clone broken".to_owned(),
        };
        let seconds = self.phase.from.elapsed().as_secs_f64();
        write!(line, " | new requests:")?;
        for node in self.fleet.lab.plan().backend_nodes() {
            let mark = if node == drained { "*" } else { "" };
            let count = answers.get(&node.to_string()).copied().unwrap_or(0);
            write!(line, " {node}{mark} {count}")?;
        }
        if !errors.is_empty() {
            write!(line, " failed {}", errors.len())?;
        }
        let by_chance = counters.all_forwarded();
        write!(line, " in {seconds:.0} s | {} packets by second chance", grouped(by_chance))?;
        let via: Vec<_> = self
            .fleet
            .lab
            .plan()
            .backend_nodes()
            .filter(|&node| node != drained && counters.forwarded(node) > 0)
            .map(|node| node.to_string())
            .collect();
        if !via.is_empty() {
            write!(line, ", {} > {drained}", via.join(", "))?;
        }
        self.screen.live(&line)?;
        Ok(())
    }

    /// Changes the state of the clone's backend. The next phase starts when the change is in force.
    fn set_state(&mut self, state: State, phase: &'static str) -> Result<Duration> {
        let before = self.fleet.table.clone();
        self.fleet.table.set_state(self.served_by.0, state);
        let moved = RowDiff::between(&before, &self.fleet.table)?;
        let counters = self.fleet.counters()?;
        let begun = Instant::now();
        self.fleet.reload()?;
        let took = begun.elapsed();
        self.end_phase(Phase::begin(phase, counters, Some(moved)));
        Ok(took)
    }

    fn end_phase(&mut self, next: Phase) {
        let mut ended = std::mem::replace(&mut self.phase, next);
        ended.to = self.phase.from;
        ended.after = self.phase.before.clone();
        self.phases.push(ended);
    }

    fn check(&mut self, name: &str, held: bool, seen: String) {
        self.checks.push(Check { name: name.to_owned(), held, seen });
    }
}

fn verdict(outcome: &Outcome, second_chance: bool) -> String {
    let failed = outcome.checks.iter().filter(|check| !check.held).count();
    match (failed, second_chance) {
        (0, true) => "\nEverything held: the backend was drained and removed, and the clone never \
                      noticed."
            .to_owned(),
        (0, false) => "\nAs predicted: without second chance the clone broke. Run the demo \
                       without --without-second-chance to see it live."
            .to_owned(),
        (failed, _) => format!("\n{failed} of {} checks FAILED.", outcome.checks.len()),
    }
}
