//! The events of the chaos run, in order.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    daemons::Program,
    fleet::{Fleet, Target},
    interrupt,
    plan::Node,
    table::State,
};

/// An event, and the packet loss that it may cause.
pub(super) struct Event {
    pub(super) name: String,
    /// The longest packet loss that is allowed.
    pub(super) limit: Duration,
    pub(super) act: Box<Act>,
}

type Act = dyn Fn(&mut Fleet) -> Result<()>;

/// The limit for announced, withdrawn and maintained directors. No path is ever wrong, but a full
/// queue on a busy machine can still drop a packet.
const IN_ORDER: Duration = Duration::from_millis(200);

/// The limit for failures without notice. BFD detects them in 150 ms and a lost carrier at once; a
/// busy machine needs longer.
const BY_SURPRISE: Duration = Duration::from_secs(2);

fn event(
    name: impl Into<String>,
    limit: Duration,
    act: impl Fn(&mut Fleet) -> Result<()> + 'static,
) -> Event {
    Event { name: name.into(), limit, act: Box::new(act) }
}

/// Lists all events. Each event leaves the fleet as it found it.
pub(super) fn all(fleet: &Fleet) -> Vec<Event> {
    let plan = fleet.lab.plan();
    let directors: Vec<_> = plan.director_nodes().collect();
    let (first, last) = (Node::Director(1), Node::Director(plan.directors));
    let backend = Node::Backend(1);
    let mut events = vec![
        event("nothing, for two seconds", IN_ORDER, |_| interrupt::sleep(Duration::from_secs(2))),
        event(format!("{last} is drained, and withdraws"), IN_ORDER, move |fleet| {
            fleet.drain_director(last)?;
            fleet.wait_for_routes(&others(fleet, last))
        }),
        event(format!("{last} announces: one path more"), IN_ORDER, move |fleet| {
            fleet.undrain_director(last)?;
            all_routed(fleet)
        }),
    ];
    // The director withdraws first and keeps serving until no packets arrive.
    events.push(event(format!("the VIPs leave the table of {last}"), IN_ORDER, move |fleet| {
        fleet.serve_vips(last, false)?;
        fleet.wait_for_routes(&others(fleet, last))
    }));
    events.push(event(format!("the VIPs are back on {last}"), IN_ORDER, move |fleet| {
        fleet.serve_vips(last, true)?;
        all_routed(fleet)
    }));
    for &node in &directors {
        events.push(event(format!("planned maintenance of {node}"), IN_ORDER, move |fleet| {
            fleet.take_out(node)?;
            fleet.detach(node)?;
            fleet.put_back(node)?;
            all_routed(fleet)
        }));
    }
    for daemon in fleet.daemons() {
        // These connections end with their server. The load balancer cannot keep them.
        if matches!(daemon.program(), Program::Nginx | Program::Fcgiwrap | Program::Live) {
            continue;
        }
        let target = Target { node: daemon.node(), program: Some(daemon.program()) };
        // With a TUN interface, the kernel withdraws the routes when the director's daemon dies.
        let reroutes = daemon.program().speaks_bgp();
        let limit = if reroutes { BY_SURPRISE } else { IN_ORDER };
        events.push(event(format!("SIGKILL of {target}, and its return"), limit, move |fleet| {
            fleet.kill(target)?;
            if reroutes && target.node != Node::Router {
                fleet.wait_for_routes(&others(fleet, target.node))?;
            }
            interrupt::sleep(Duration::from_millis(500))?;
            fleet.start(target)?;
            fleet.wait_for_sessions()?;
            all_routed(fleet)
        }));
    }
    events.extend([
        event(format!("link of {first} down"), BY_SURPRISE, move |fleet| {
            fleet.lab.unplug(first)?;
            fleet.wait_for_routes(&others(fleet, first))
        }),
        event(format!("link of {first} up"), IN_ORDER, move |fleet| {
            fleet.lab.plug_in(first)?;
            all_routed(fleet)
        }),
        event(format!("{last} silently cut off"), BY_SURPRISE, move |fleet| {
            fleet.lab.cut_off(last)?;
            fleet.wait_for_routes(&others(fleet, last))
        }),
        event(format!("{last} reachable again"), IN_ORDER, move |fleet| {
            fleet.lab.reconnect(last)?;
            all_routed(fleet)
        }),
        event(format!("{first} dies"), BY_SURPRISE, move |fleet| {
            fleet.kill(Target { node: first, program: None })?;
            fleet.wait_for_routes(&others(fleet, first))
        }),
        event(format!("meanwhile {backend} is drained"), IN_ORDER, move |fleet| {
            fleet.set_state(backend, State::Draining)
        }),
        event(
            format!("{first} reboots, with another release and program"),
            IN_ORDER,
            move |fleet| {
                // This key is read-only data of the BPF program, so a change loads a different
                // program.
                fleet.director_on(first)?.configure("outer_tos", "0")?;
                fleet.director_on(first)?.pretend(Some("0.0.1-other"));
                fleet.start(Target { node: first, program: None })?;
                all_routed(fleet)
            },
        ),
        event(format!("{backend} is back in all tables"), IN_ORDER, move |fleet| {
            fleet.set_state(backend, State::Active)
        }),
        event(format!("{first} is upgraded in place"), IN_ORDER, move |fleet| {
            let director = fleet.director_on(first)?;
            director.configure("outer_tos", "\"copy\"")?;
            director.pretend(None);
            director.end(Signal::SIGTERM)?;
            fleet.start(Target { node: first, program: Some(Program::Director) })?;
            let log = fleet.director_on(first)?.process()?.log()?;
            ensure!(log.contains("by another release"), "{log}");
            all_routed(fleet)
        }),
    ]);
    events
}

fn others(fleet: &Fleet, but: Node) -> Vec<Node> {
    fleet.lab.plan().director_nodes().filter(|&node| node != but).collect()
}

fn all_routed(fleet: &Fleet) -> Result<()> {
    fleet.wait_for_routes(&fleet.lab.plan().director_nodes().collect::<Vec<_>>())
}
