//! The events of a run: the action of each, and the connections that it may break.
//!
//! A scenario is a sequence of events that belong together, such as a drain and its end. The
//! allowed damage of an event is fixed before anything runs.

mod backend;
mod director;
mod router;
mod table;

use std::{fmt, net::IpAddr, time::Duration};

use anyhow::Result;
use glb_lab::{Node, TableFile};
use glb_table::BuiltTable;

use crate::{
    accounting::Connection,
    random::Random,
    rule,
    services::Service,
    world::{Mode, World},
};

type Action = Box<dyn FnOnce(&mut World) -> Result<()>>;

/// One event.
pub(crate) struct Event {
    /// The name in reports, and for `--only`.
    pub(crate) name: &'static str,
    /// The concrete action, for the log.
    pub(crate) what: String,
    /// The connections that it may break.
    pub(crate) allowed: Allowed,
    /// The longest time in which a client may lose all its packets.
    pub(crate) loss_limit: Duration,
    /// Waits for the event's precondition.
    pub(crate) prepare: Action,
    /// Runs the event. Returns when it is in force.
    pub(crate) act: Action,
}

/// The limit for planned changes: no path is ever wrong, but a full queue on a busy machine can
/// still drop a packet.
const PLANNED: Duration = Duration::from_millis(200);

/// The limit for failures without notice: BFD detects them in 150 ms and a lost carrier at once; a
/// busy machine needs longer.
const UNPLANNED: Duration = Duration::from_secs(2);

/// The connections that an event may break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Nothing.
    Nothing,
    /// The connections of one process.
    Process(Node, Service),
    /// The connections of one machine.
    Machine(Node),
    /// The connections whose backend is in none of the hops of their new row, after a table change
    /// that did not wait as the plan asks.
    Lost,
    /// Anything: without directors no rule applies.
    Anything,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Process(..) => f.write_str("the process's own"),
            Self::Machine(_) => f.write_str("the machine's own"),
            Self::Lost => f.write_str("whose backend left the row"),
            Self::Anything => f.write_str("anything"),
        }
    }
}

impl Allowed {
    /// Returns whether a broken connection was allowed to break, with these tables in force.
    pub(crate) fn covers(
        &self,
        connection: &Connection,
        in_force: &[BuiltTable],
        address: impl Fn(Node) -> IpAddr,
    ) -> bool {
        let hops = rule::hops(in_force, connection);
        // If no socket table showed the holder in time, it is the first hop, which gets the first
        // packet.
        let is_of = |node: Node| match connection.holder {
            Some(holder) => holder == node,
            None => hops.first() == Some(&address(node)),
        };
        match self {
            Self::Nothing => false,
            Self::Process(node, service) => {
                connection.server.port() == service.port() && is_of(*node)
            }
            Self::Machine(node) => is_of(*node),
            Self::Lost => connection.holder.is_some_and(|holder| !hops.contains(&address(holder))),
            Self::Anything => true,
        }
    }
}

/// Events that belong together, in order.
pub(crate) struct Scenario {
    /// The name, also for `--only`.
    pub(crate) name: &'static str,
    /// Creates the events for the current state of the fleet.
    pub(crate) make: fn(&World, &mut Random) -> Vec<Event>,
}

const fn scenario(name: &'static str, make: fn(&World, &mut Random) -> Vec<Event>) -> Scenario {
    Scenario { name, make }
}

/// Every scenario.
pub(crate) const ALL: [Scenario; 26] = [
    scenario("drain", table::drain),
    scenario("drain-several", table::drain_several),
    scenario("remove", table::remove),
    scenario("weight", table::weight),
    scenario("bad-table", table::bad_table),
    scenario("hash-migration", table::hash_migration),
    scenario("health", backend::health),
    scenario("flapping", backend::flapping),
    scenario("web-reload", backend::web_reload),
    scenario("web-restart", |world, random| backend::restart(world, random, Service::Web)),
    scenario("git-restart", |world, random| backend::restart(world, random, Service::Git)),
    scenario("glance-restart", |world, random| backend::restart(world, random, Service::Glance)),
    scenario("talk-restart", |world, random| backend::restart(world, random, Service::Talk)),
    scenario("backend-daemon", backend::daemon_killed),
    scenario("backend-down", backend::down),
    scenario("director-daemon", director::daemon),
    scenario("director-drain", director::drained),
    scenario("director-down", director::down),
    scenario("path-change", router::path_change),
    scenario("bird", router::bird),
    scenario("quiet", router::quiet),
    scenario("vips-leave", director::vips_leave),
    scenario("checker", director::checker_killed),
    scenario("link-down", director::link_down),
    scenario("partition", director::partitioned),
    scenario("overlap", director::overlap),
];

/// The scenarios of the fleet form, in order: those of directors, routers and daemons.
pub(crate) const FLEET: [&str; 14] = [
    "quiet",
    "director-drain",
    "vips-leave",
    "director-daemon",
    "director-daemon",
    "backend-daemon",
    "checker",
    "bird",
    "bird",
    "path-change",
    "link-down",
    "partition",
    "director-down",
    "overlap",
];

/// The scenarios used in comparisons: they make sense without directors, too.
pub(crate) const COMPARED: [&str; 7] =
    ["drain", "drain-several", "remove", "weight", "health", "path-change", "director-down"];

/// Picks a random backend.
fn any_backend(world: &World, random: &mut Random) -> Node {
    let backends = world.backends();
    backends[random.below(backends.len() as u64) as usize]
}

/// Creates an event that only changes the table. In careful mode, it waits until the plan calls the
/// change safe.
fn table_event(
    world: &World,
    name: &'static str,
    what: String,
    edit: impl Fn(&mut TableFile) + 'static,
) -> Event {
    let careful = world.careful;
    let edited = move |world: &World| {
        let mut table = world.table.clone();
        edit(&mut table);
        table
    };
    let edited = std::rc::Rc::new(edited);
    let again = std::rc::Rc::clone(&edited);
    Event {
        name,
        what,
        allowed: match (world.mode, careful) {
            (Mode::Ecmp, _) => Allowed::Anything,
            (_, true) => Allowed::Nothing,
            (_, false) => Allowed::Lost,
        },
        loss_limit: PLANNED,
        prepare: Box::new(move |world| {
            if careful {
                let limit = world.flow_age * 3;
                world.wait_until_safe(&again(world), limit)?;
            }
            Ok(())
        }),
        act: Box::new(move |world| {
            let table = edited(world);
            world.apply(&table)
        }),
    }
}

/// Allows an event the packet loss of a failure without notice.
fn unplanned(event: Event) -> Event {
    Event { loss_limit: UNPLANNED, ..event }
}

/// Creates an event that does not change the table and has no precondition.
fn event(
    world: &World,
    name: &'static str,
    what: String,
    allowed: Allowed,
    act: impl FnOnce(&mut World) -> Result<()> + 'static,
) -> Event {
    let allowed = if world.mode == Mode::Ecmp { Allowed::Anything } else { allowed };
    let prepare = Box::new(|_: &mut World| Ok(()));
    Event { name, what, allowed, loss_limit: PLANNED, prepare, act: Box::new(act) }
}

#[cfg(test)]
mod tests {
    use glb_lab::{Plan, State};

    use super::*;
    use crate::{
        accounting::{Kind, Ledger},
        rule::PlanRule,
    };

    const ALL_NODES: [Node; 4] =
        [Node::Backend(1), Node::Backend(2), Node::Backend(3), Node::Backend(4)];

    fn address(node: Node) -> IpAddr {
        node.v4().into()
    }

    fn in_force(edit: impl Fn(&mut TableFile)) -> Vec<BuiltTable> {
        let mut table = TableFile::serving(&Plan { backends: 4, ..Plan::new("x") }, &[80, 7000]);
        edit(&mut table);
        let mut rule = PlanRule::new(60);
        rule.adopt(&table).unwrap();
        rule.in_force()
    }

    /// Creates a connection from each of many addresses, held by the hop that `holder` picks.
    fn connections(
        built: &[BuiltTable],
        holder: impl Fn(&[IpAddr]) -> Option<Node>,
    ) -> Vec<Connection> {
        let ledger = Ledger::new();
        for number in 0..200 {
            let client = std::net::SocketAddr::new([198, 18, 0, number].into(), 5000);
            ledger.begin(Kind::Idle, client, "203.0.113.10:80".parse().unwrap()).end(Ok(()));
        }
        let mut closed = std::mem::take(&mut ledger.entries().closed);
        for connection in &mut closed {
            connection.holder = holder(&rule::hops(built, connection));
        }
        closed
    }

    fn node_at(hops: &[IpAddr], place: usize) -> Option<Node> {
        ALL_NODES.into_iter().find(|node| hops.get(place) == Some(&address(*node)))
    }

    #[test]
    fn dead_machine_may_lose_only_its_own_connections() {
        let built = in_force(|_| {});
        let down = Node::Backend(2);
        let rule = Allowed::Machine(down);
        let known = connections(&built, |hops| node_at(hops, 0));
        let covered = known.iter().filter(|c| rule.covers(c, &built, address)).count();
        assert_eq!(covered, known.iter().filter(|c| c.holder == Some(down)).count());
        assert!((20..90).contains(&covered), "{covered}");
        // A connection without a known holder went to the first hop.
        let unknown = connections(&built, |_| None);
        for (known, unknown) in known.iter().zip(&unknown) {
            let [a, b] = [known, unknown].map(|c| rule.covers(c, &built, address));
            assert_eq!(a, b);
        }
    }

    #[test]
    fn killed_service_may_lose_only_its_port() {
        let built = in_force(|_| {});
        let mine = connections(&built, |_| Some(Node::Backend(1)));
        let of = |service| Allowed::Process(Node::Backend(1), service);
        assert!(mine.iter().all(|c| of(Service::Web).covers(c, &built, address)));
        assert!(!mine.iter().any(|c| of(Service::Talk).covers(c, &built, address)));
        assert!(!mine.iter().any(|c| Allowed::Nothing.covers(c, &built, address)));
    }

    #[test]
    fn removed_backend_may_lose_only_its_own_connections() {
        let before = in_force(|_| {});
        let gone = Node::Backend(3);
        let after = in_force(|table| table.set_state(gone, State::Inactive));
        let held = connections(&before, |hops| node_at(hops, 0));
        for connection in &held {
            let lost = Allowed::Lost.covers(connection, &after, address);
            assert_eq!(lost, connection.holder == Some(gone), "{connection:?}");
        }
    }
}
