//! What happens to directors.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use glb_lab::{Node, command, interrupt};
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

/// The daemon is reloaded, killed and started, and upgraded.
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
                start(world, killed)?;
                world.settle()
            },
        ),
        event(world, "director upgraded", upgraded.to_string(), Allowed::Nothing, move |world| {
            world.director(upgraded)?.end(Signal::SIGTERM)?;
            another_program(world, upgraded)?;
            start(world, upgraded)?;
            world.settle()
        }),
    ]
}

/// Another setting gives another program, which replaces the running one as another release's does.
fn another_program(world: &mut World, node: Node) -> Result<()> {
    const SETTING: &str = "answers_per_second = 900\n";
    let file = world.director(node)?.config().to_owned();
    let text = fs::read_to_string(&file)?;
    let text = match text.strip_prefix(SETTING) {
        Some(rest) => rest.to_owned(),
        None => format!("{SETTING}{text}"),
    };
    Ok(fs::write(&file, text)?)
}

fn start(world: &mut World, node: Node) -> Result<()> {
    let World { directors, lab, .. } = world;
    let director = directors.iter_mut().find(|daemon| daemon.node() == node);
    director.context("no such director")?.start(lab)
}

/// A director is taken off in order: no more routes to it, then its end; and comes back.
pub(super) fn drained(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    vec![
        event(world, "director drained", node.to_string(), Allowed::Nothing, move |world| {
            world.down.insert(node);
            world.route_to_directors()?;
            // What is on the way arrives.
            interrupt::sleep(Duration::from_millis(300))?;
            let director = world.director(node)?;
            director.end(Signal::SIGTERM)?;
            let director = world.directors.iter().find(|daemon| daemon.node() == node);
            director.context("no such director")?.detach(&world.lab)
        }),
        event(world, "director back", node.to_string(), Allowed::Nothing, move |world| {
            back(world, node)
        }),
    ]
}

fn back(world: &mut World, node: Node) -> Result<()> {
    start(world, node)?;
    world.down.remove(&node);
    world.settle()?;
    world.route_to_directors()
}

/// A director's machine goes down without a word, and comes back empty.
pub(super) fn down(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_director(world, random);
    vec![
        event(world, "director down", node.to_string(), Allowed::Nothing, move |world| {
            world.unplug(node)?;
            world.down.insert(node);
            // As long as BFD takes to find out.
            interrupt::sleep(Duration::from_millis(150))?;
            world.route_to_directors()?;
            world.end_checker(node);
            world.director(node)?.end(Signal::SIGKILL)?;
            let director = world.directors.iter().find(|daemon| daemon.node() == node);
            director.context("no such director")?.detach(&world.lab)
        }),
        event(world, "director machine back", node.to_string(), Allowed::Nothing, move |world| {
            world.plug(node)?;
            start(world, node)?;
            world.start_checker(node)?;
            world.down.remove(&node);
            world.settle()?;
            world.route_to_directors()
        }),
    ]
}
