//! Events that hit directors.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use glb_lab::{Daemon, Node, command, interrupt};
use nix::sys::signal::Signal;

use super::{Allowed, Event, event};
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
            another_program(world, upgraded)?;
            world.start_director(upgraded)?;
            world.settle()
        }),
    ]
}

/// A changed setting produces a different program, which replaces the running one as an upgrade
/// does.
fn another_program(world: &mut World, node: Node) -> Result<()> {
    let director = world.director(node)?;
    let first = fs::read_to_string(director.config())?.contains("answers_per_second = 900");
    director.configure("answers_per_second", if first { "901" } else { "900" })
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
    vec![
        event(world, "director down", node.to_string(), Allowed::Nothing, move |world| {
            world.lab.unplug(node)?;
            world.down.insert(node);
            world.wait_for_routes()?;
            world.end_checker(node);
            world.director(node)?.end(Signal::SIGKILL)?;
            world.birds.get_mut(&node).context("a director without BIRD")?.kill()?;
            found(world, node)?.detach(&world.lab)
        }),
        event(world, "director machine back", node.to_string(), Allowed::Nothing, move |world| {
            world.lab.plug_in(node)?;
            world.birds.get_mut(&node).context("a director without BIRD")?.start(&world.lab)?;
            world.start_director(node)?;
            world.start_checker(node)?;
            world.down.remove(&node);
            world.settle()
        }),
    ]
}
