//! Events that hit directors.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use glb_lab::{Daemon, Node, State, command, interrupt};
use nix::sys::signal::Signal;

use super::{Allowed, Event, any_backend, event, table_event, unplanned};
use crate::{
    random::Random,
    world::{Mode, World},
};

fn any_director(world: &World, random: &mut Random) -> Node {
    let directors = world.directors_up();
    directors[random.below(directors.len() as u64) as usize]
}

/// The daemon is reloaded, killed and restarted, and upgraded.
pub(super) fn daemon(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let mut any = || any_director(world, random);
    let (killed, upgraded) = (any(), any());
    vec![
        event(world, "director reload", "both".to_owned(), Allowed::Nothing, |world| {
            for node in world.directors_up() {
                for _ in 0..3 {
                    let director = world.directors.iter().find(|daemon| daemon.node() == node);
                    let director = director.context("no such director")?;
                    let mut reload = director.command(&world.lab, "reload")?;
                    command::run(reload.arg("--force"))?;
                }
            }
            world.settle()
        }),
        event(
            world,
            "director daemon killed",
            killed.to_string(),
            Allowed::Nothing,
            move |world| {
                world.director(killed)?.end(Signal::SIGKILL)?;
                interrupt::sleep(Duration::from_secs(1))
            },
        ),
        event(
            world,
            "director daemon started",
            killed.to_string(),
            Allowed::Nothing,
            move |world| {
                world.start_director(killed)?;
                world.settle()
            },
        ),
        event(world, "director upgraded", upgraded.to_string(), Allowed::Nothing, move |world| {
            world.director(upgraded)?.end(Signal::SIGTERM)?;
            another_release(world, upgraded)?;
            world.start_director(upgraded)?;
            let log = world.director(upgraded)?.process()?.log()?;
            ensure!(log.contains("by another release"), "{log}");
            world.settle()
        }),
    ]
}

/// Makes the daemon another release with a different program: the changed setting is a constant of
/// the program.
fn another_release(world: &mut World, node: Node) -> Result<()> {
    let director = world.director(node)?;
    let other = fs::read_to_string(director.config())?.contains("answers_per_second = 900");
    director.pretend(if other { None } else { Some("0.0.1-other") });
    director.configure("answers_per_second", if other { "901" } else { "900" })
}

/// A director leaves service cleanly (lowers its preference, waits until traffic stops, ends) and
/// returns.
pub(super) fn drained(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    vec![
        event(world, "director drained", node.to_string(), Allowed::Nothing, move |world| {
            let director = found(world, node)?;
            command::run(&mut director.command(&world.lab, "drain")?)?;
            world.director(node)?.end(Signal::SIGTERM)?;
            found(world, node)?.detach(&world.lab)?;
            world.down.insert(node);
            world.wait_for_routes()
        }),
        event(world, "director back", node.to_string(), Allowed::Nothing, move |world| {
            world.start_director(node)?;
            // A drain outlives the daemon.
            command::run(&mut found(world, node)?.command(&world.lab, "undrain")?)?;
            world.down.remove(&node);
            world.settle()
        }),
    ]
}

fn found(world: &World, node: Node) -> Result<&Daemon> {
    world.directors.iter().find(|daemon| daemon.node() == node).context("no such director")
}

/// A director's machine goes down without notice and comes back empty. BFD detects it.
pub(super) fn down(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    vec![power_off(world, node), boot(world, node)]
}

fn power_off(world: &World, node: Node) -> Event {
    let act = move |world: &mut World| {
        world.lab.unplug(node)?;
        world.down.insert(node);
        world.wait_for_routes()?;
        world.end_checker(node);
        world.director(node)?.end(Signal::SIGKILL)?;
        world.birds.get_mut(&node).context("a director without BIRD")?.kill()?;
        // The machine is dead, so no routing daemon can confirm the withdrawal.
        let mut detach = found(world, node)?.command(&world.lab, "detach")?;
        command::run(detach.arg("--force"))
    };
    unplanned(event(world, "director down", node.to_string(), Allowed::Nothing, act))
}

fn boot(world: &World, node: Node) -> Event {
    let act = move |world: &mut World| {
        world.lab.plug_in(node)?;
        world.birds.get_mut(&node).context("a director without BIRD")?.start(&world.lab)?;
        world.start_director(node)?;
        world.start_checker(node)?;
        world.down.remove(&node);
        world.settle()
    };
    event(world, "director machine back", node.to_string(), Allowed::Nothing, act)
}

/// A director dies, a backend is drained meanwhile, and the director boots as another release.
pub(super) fn overlap(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let (node, backend) = (any_director(world, random), any_backend(world, random));
    let set = |name, state| {
        table_event(world, name, backend.to_string(), move |table| table.set_state(backend, state))
    };
    let booted = boot(world, node);
    let reboot = Event {
        name: "director boots as another release",
        act: Box::new(move |world| {
            another_release(world, node)?;
            (booted.act)(world)
        }),
        ..event(world, "", node.to_string(), Allowed::Nothing, |_| Ok(()))
    };
    vec![
        power_off(world, node),
        set("drain while a director is down", State::Draining),
        reboot,
        set("fill", State::Active),
    ]
}

/// One director's table loses the VIPs: it withdraws them and serves until no packets arrive.
pub(super) fn vips_leave(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    let serve = |name, serves| {
        event(world, name, node.to_string(), Allowed::Nothing, move |world| {
            world.serve_vips(node, serves)
        })
    };
    vec![serve("VIPs leave a director's table", false), serve("VIPs return to its table", true)]
}

/// A director's health checker is killed and restarted.
pub(super) fn checker_killed(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    let name = "health checker killed and started";
    vec![event(world, name, node.to_string(), Allowed::Nothing, move |world| {
        world.restart_checker(node)?;
        world.settle()
    })]
}

/// A director's cable is unplugged and plugged in again.
pub(super) fn link_down(world: &World, random: &mut Random) -> Vec<Event> {
    unreachable(
        world,
        random,
        ["director's link down", "director's link up"],
        |world, node| world.lab.unplug(node),
        |world, node| world.lab.plug_in(node),
    )
}

/// The network silently drops all packets of a director, and carries them again.
pub(super) fn partitioned(world: &World, random: &mut Random) -> Vec<Event> {
    unreachable(
        world,
        random,
        ["director partitioned", "director reachable again"],
        |world, node| world.lab.cut_off(node),
        |world, node| world.lab.reconnect(node),
    )
}

type Reach = fn(&World, Node) -> Result<()>;

fn unreachable(
    world: &World,
    random: &mut Random,
    [lost, found]: [&'static str; 2],
    cut: Reach,
    mend: Reach,
) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    vec![
        unplanned(event(world, lost, node.to_string(), Allowed::Nothing, move |world| {
            cut(world, node)?;
            world.withdrawn.insert(node);
            world.wait_for_routes()
        })),
        event(world, found, node.to_string(), Allowed::Nothing, move |world| {
            mend(world, node)?;
            world.withdrawn.remove(&node);
            world.settle()
        }),
    ]
}
