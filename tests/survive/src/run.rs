//! A run: a fleet under load, one event after the other, and the verdict on every connection.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use glb_lab::{
    AnnounceMethod, Node, interrupt,
    pings::{Loss, Pings},
};
use glb_table::BuiltTable;

use crate::{
    accounting::{Connection, Kind},
    clients::{self, ClientContext, Clients, Pool},
    events::{self, Allowed, Event, Scenario},
    options::Load,
    random::Random,
    report::{self, EventReport, Report},
    services,
    world::{Mode, World},
};

/// The configuration of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunConfig {
    /// The lab's name.
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) load: Load,
    pub(crate) seed: u64,
    /// The number of backends.
    pub(crate) backends: u8,
    /// The number of directors.
    pub(crate) directors: u8,
    /// The announcement method of the directors.
    pub(crate) method: AnnounceMethod,
    /// Whether an event fails when packets are lost for longer than its limit.
    pub(crate) limit_loss: bool,
    /// Run events for this long. Without it, each event runs once.
    pub(crate) time: Option<Duration>,
    /// Run only scenarios or events whose name contains this text.
    pub(crate) only: Option<String>,
    /// Whether each table change waits until the plan calls it safe.
    pub(crate) careful: bool,
    /// The scenarios, by name and in this order. Without it, all scenarios run in random order.
    pub(crate) scenarios: Option<Vec<&'static str>>,
}

/// The notes on an event while the run continues.
struct EventRecord {
    name: &'static str,
    what: String,
    allowed: Allowed,
    in_force: Vec<BuiltTable>,
    began: Duration,
    settled: Duration,
    alive: usize,
    second_chances: u64,
    retransmits: u64,
    worst_stall: Duration,
    loss: Loss,
    loss_limit: Option<Duration>,
}

/// A silence that is too long to wait for after each event.
const LONG_SILENCE: Duration = Duration::from_secs(10);

/// The quiet time after an event before its results are read.
const HOLD: Duration = Duration::from_secs(1);

/// Runs the events and returns the report and every connection.
///
/// # Errors
/// When the fleet does not start, or the records cannot be completed. An event that does not come
/// into force ends the run and is named in the report.
pub(crate) fn run(wanted: &RunConfig) -> Result<(Report, Vec<Connection>)> {
    interrupt::install()?;
    let started = Instant::now();
    let mut world = World::up(wanted)?;
    world.careful = wanted.careful;
    if !wanted.careful {
        // The same number for every number of hops.
        world.drains_at_once = 2;
    }
    say(&world, &format!("a fleet is up after {:.0?}: {}", started.elapsed(), wanted.mode.name()));
    let copies = world.lab.scratch().join("copies");
    fs::create_dir_all(&copies)?;
    let site = Arc::new(ClientContext::new(
        &world.ledger,
        world.lab.netns(Node::Client)?.clone(),
        wanted.load.clone(),
        wanted.seed,
        services::repositories(&world.lab),
        copies,
    ));
    let pool = wanted.load.has_glance().then(|| fill_pool(&site)).transpose()?;
    if let Some(pool) = &pool {
        say(&world, &format!("Glance has {} images", pool.len()));
    }
    let clients = Clients::start(&site, pool.as_ref());
    let pings = Pings::start(&world.lab)?;
    // Every client should have started before the first event.
    interrupt::sleep(Duration::from_secs(3))?;
    let mut noted = Vec::new();
    let failure = all_events(wanted, &mut world, &pings, &mut noted).err();
    interrupt::check()?;
    if let Some(failure) = &failure {
        // Connections that broke before the failure are still recorded, because they can point to
        // its cause.
        say(&world, &format!("no more events: {failure:#}"));
    }
    drop(pings);
    say(&world, "the clients bring to an end what they have begun");
    clients.finish()?;
    let (mut report, connections) = judge(wanted, &world, &noted)?;
    report.failure = failure.map(|failure| format!("{failure:#}"));
    Ok((report, connections))
}

/// Prints a line with the time to stderr.
fn say(world: &World, text: &str) {
    eprintln!("{:7.1} s  {text}", world.ledger.now().as_secs_f64());
}

fn fill_pool(site: &Arc<ClientContext>) -> Result<Arc<Pool>> {
    let pool = Pool::new();
    let wanted = usize::from(site.load.pool);
    let mut begun = 0;
    while pool.len() < wanted && begun < wanted * 2 {
        interrupt::check()?;
        // As many in parallel as there will be uploads.
        let now = (wanted - pool.len()).min(usize::from(site.load.uploads.max(1)));
        thread::scope(|scope| {
            for _ in 0..now {
                let number = begun as u16;
                begun += 1;
                let (site, pool) = (Arc::clone(site), Arc::clone(&pool));
                scope.spawn(move || match site.netns.enter_this_thread() {
                    Ok(()) => clients::fill(&site, &pool, number),
                    Err(error) => eprintln!("{error:#}"),
                });
            }
        });
    }
    let broken: Vec<String> = {
        let books = site.ledger.entries();
        books.closed.iter().filter_map(|c| Some(c.broke()?.1.to_owned())).collect()
    };
    ensure!(pool.len() >= wanted, "Glance has only {} of {wanted} images: {broken:?}", pool.len());
    Ok(pool)
}

fn all_events(
    wanted: &RunConfig,
    world: &mut World,
    pings: &Pings,
    noted: &mut Vec<EventRecord>,
) -> Result<()> {
    let mut random = Random::new(wanted.seed, 0);
    loop {
        let mut round: Vec<&Scenario> = match &wanted.scenarios {
            Some(names) => {
                let find = |name| events::ALL.iter().find(|scenario| scenario.name == name);
                names.iter().filter_map(|name| find(*name)).collect()
            }
            None => events::ALL.iter().collect(),
        };
        if wanted.scenarios.is_none() {
            random.shuffle(&mut round);
        }
        let before = noted.len();
        for scenario in round {
            let made = (scenario.make)(world, &mut random);
            let meant = |name: &str| {
                wanted
                    .only
                    .as_ref()
                    .is_none_or(|only| scenario.name.contains(only) || name.contains(only))
            };
            if !made.iter().any(|event| meant(event.name)) {
                continue;
            }
            // Scenarios run completely, because half a scenario would leave the fleet changed.
            for event in made {
                let name = event.name;
                let done = one_event(wanted, world, pings, event);
                noted.push(done.with_context(|| format!("the event \"{name}\""))?);
            }
            if wanted.time.is_some_and(|time| world.ledger.now() >= time) {
                return Ok(());
            }
        }
        ensure!(noted.len() > before, "no event is called {:?}", wanted.only);
        if wanted.time.is_none() {
            return Ok(());
        }
    }
}

fn one_event(
    wanted: &RunConfig,
    world: &mut World,
    pings: &Pings,
    event: Event,
) -> Result<EventRecord> {
    (event.prepare)(world)?;
    world.monitor.find_holders()?;
    let (chances, again) = (world.second_chances()?, world.retransmits()?);
    world.monitor.worst_stall();
    let (alive, began) = (world.ledger.alive().len(), world.ledger.now());
    let begun = Instant::now();
    (event.act)(world)?;
    let settled = world.ledger.now();
    let in_force = world.rule.in_force();
    interrupt::sleep(HOLD)?;
    prove(wanted, world, settled)?;
    let (worst_stall, who) = world.monitor.worst_stall();
    let loss = pings.loss_since(begun);
    let noted = EventRecord {
        name: event.name,
        what: event.what,
        allowed: event.allowed,
        in_force,
        began,
        settled,
        alive,
        second_chances: more(&chances, &world.second_chances()?),
        retransmits: world.retransmits()?.saturating_sub(again),
        worst_stall,
        loss,
        loss_limit: wanted.limit_loss.then_some(event.loss_limit),
    };
    let broken = broken_since(world, began);
    if worst_stall > Duration::from_secs(1) {
        say(world, &format!("  stood still for {worst_stall:.1?}: {}", described(world, who)));
    }
    say(
        world,
        &format!(
            "{} ({}): {} alive, {broken} broken, {} second chances, worst stall {:.1?}, {} of {} pings lost for at most {:.0?}, in force after {:.1?}",
            noted.name,
            noted.what,
            noted.alive,
            noted.second_chances,
            noted.worst_stall,
            loss.lost,
            loss.sent,
            loss.longest,
            settled - began,
        ),
    );
    Ok(noted)
}

/// Returns the increase of counters. A restarted machine counts from zero.
fn more(before: &BTreeMap<Node, u64>, after: &BTreeMap<Node, u64>) -> u64 {
    let of = |(node, after): (&Node, &u64)| {
        after.checked_sub(before.get(node).copied().unwrap_or(0)).unwrap_or(*after)
    };
    after.iter().map(of).sum()
}

/// Describes a connection as far as it is known.
fn described(world: &World, id: Option<u64>) -> String {
    let books = world.ledger.entries();
    let mut all = books.closed.iter().chain(books.open.values());
    all.find(|connection| Some(connection.id) == id)
        .and_then(|connection| serde_json::to_string(connection).ok())
        .unwrap_or_else(|| "a long poll, whose answer came late".to_owned())
}

fn broken_since(world: &World, began: Duration) -> usize {
    let books = world.ledger.entries();
    books.closed.iter().filter(|c| c.broke().is_some_and(|(at, _)| at >= began)).count()
}

/// Waits until each open connection has shown a sign of life or has ended, so that damage is known
/// before the next event. Connections that are silent for long by design are not awaited; their
/// damage is attributed to several events.
fn prove(wanted: &RunConfig, world: &World, since: Duration) -> Result<()> {
    let limit = wanted.load.longest_silence() + wanted.load.patience;
    let unproved = || {
        let books = world.ledger.entries();
        let waits = |kind| kind != Kind::Idle || wanted.load.idle_interval < LONG_SILENCE;
        let open = books.open.values().filter(|c| c.is_alive() && waits(c.kind));
        let silent = open.filter(|c| c.proved <= since);
        silent.map(|c| (c.id, c.kind)).collect::<Vec<_>>()
    };
    interrupt::wait("a sign of life of every connection", limit, || {
        thread::sleep(Duration::from_millis(50));
        Ok(unproved().is_empty().then_some(()))
    })
    .with_context(|| format!("silent: {:?}", unproved()))
}

fn judge(
    wanted: &RunConfig,
    world: &World,
    noted: &[EventRecord],
) -> Result<(Report, Vec<Connection>)> {
    let tunnel = world.lab.plan().tunnel;
    let mut books = world.ledger.entries();
    ensure!(books.open.is_empty(), "{} connections have no verdict", books.open.len());
    let mut closed = std::mem::take(&mut books.closed);
    drop(books);
    closed.sort_by_key(|connection| connection.id);
    let mut events: Vec<EventReport> = noted.iter().map(|noted| noted.report()).collect();
    let mut broken = Vec::new();
    for connection in &closed {
        let Some((at, why)) = connection.broke() else { continue };
        let covers = |number: &usize| {
            let noted = &noted[*number];
            noted.allowed.covers(connection, &noted.in_force, |node| node.address(tunnel))
        };
        let candidates = candidates(noted, connection, at);
        let allowing = candidates.clone().find(covers);
        let number = allowing.or(candidates.last());
        let allowed = allowing.is_some();
        if let Some(number) = number {
            events[number].broken += 1;
            events[number].allowed += usize::from(allowed);
        }
        broken.push(report::BrokenConnection {
            connection: connection.id,
            kind: connection.kind,
            client: connection.client,
            server: connection.server,
            holder: connection.holder.map(|node| node.to_string()),
            began: connection.began.as_secs_f64(),
            heard: connection.proved.as_secs_f64(),
            at: at.as_secs_f64(),
            why: why.to_owned(),
            event: number.map(|number| noted[number].name.to_owned()),
            allowed,
        });
    }
    Ok((Report::new(wanted, world.ledger.now(), &closed, events, broken), closed))
}

/// Returns the events that can have broken a connection: those between its last sign of life and
/// its end. An event lasts until the next one begins.
fn candidates(
    noted: &[EventRecord],
    connection: &Connection,
    at: Duration,
) -> impl DoubleEndedIterator<Item = usize> + Clone {
    let since = connection.proved.max(connection.began);
    let last = noted.partition_point(|noted| noted.began <= at);
    let first = noted.partition_point(|noted| noted.began <= since).saturating_sub(1);
    first.min(last)..last
}

impl EventRecord {
    fn report(&self) -> EventReport {
        EventReport {
            name: self.name.to_owned(),
            what: self.what.clone(),
            rule: self.allowed.to_string(),
            began: self.began.as_secs_f64(),
            in_force_after: (self.settled - self.began).as_secs_f64(),
            alive: self.alive,
            broken: 0,
            allowed: 0,
            second_chances: self.second_chances,
            retransmits: self.retransmits,
            worst_stall: self.worst_stall.as_secs_f64(),
            pings: self.loss.sent,
            pings_lost: self.loss.lost,
            loss: self.loss.longest.as_secs_f64(),
            loss_limit: self.loss_limit.map(|limit| limit.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::Ledger;

    #[test]
    fn events_since_the_last_sign_of_life_are_candidates() {
        let seconds = Duration::from_secs;
        let noted: Vec<EventRecord> = [10, 20, 30]
            .map(|began| EventRecord {
                name: "x",
                what: String::new(),
                allowed: Allowed::Nothing,
                in_force: Vec::new(),
                began: seconds(began),
                settled: seconds(began + 1),
                alive: 0,
                second_chances: 0,
                retransmits: 0,
                worst_stall: Duration::ZERO,
                loss: Loss::default(),
                loss_limit: None,
            })
            .into();
        let ledger = Ledger::new();
        let address = "198.18.0.1:5000".parse().unwrap();
        ledger.begin(Kind::Idle, address, address).end(Ok(()));
        let mut connection = ledger.entries().closed.remove(0);
        connection.began = seconds(1);
        let mut blamed = |heard, at| {
            connection.proved = seconds(heard);
            candidates(&noted, &connection, seconds(at)).collect::<Vec<_>>()
        };
        assert_eq!(blamed(5, 9), [] as [usize; 0]);
        assert_eq!(blamed(5, 15), [0]);
        assert_eq!(blamed(15, 19), [0]);
        assert_eq!(blamed(15, 35), [0, 1, 2]);
        assert_eq!(blamed(31, 99), [2]);
    }
}
