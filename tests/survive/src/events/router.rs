//! Events that hit the router, and the routing daemons of all machines.

use std::time::Duration;

use anyhow::{Context, Result};
use glb_lab::{Node, interrupt};

use super::{Allowed, Event, event, unplanned};
use crate::{
    random::Random,
    world::{Mode, World},
};

/// Nothing happens for two seconds: the loss of the measurement itself.
pub(super) fn quiet(world: &World, _random: &mut Random) -> Vec<Event> {
    vec![event(world, "quiet", "two seconds".to_owned(), Allowed::Nothing, |_| {
        interrupt::sleep(Duration::from_secs(2))
    })]
}

/// The router changes its multipath hash policy several times. Each change moves about half of all
/// flows to another director.
pub(super) fn path_change(world: &World, _random: &mut Random) -> Vec<Event> {
    let act = |world: &mut World| {
        // By flow, by address only, and by flow again.
        for policy in ["0", "1", "0", "1"] {
            world.lab.netns(Node::Router)?.sysctl(&[
                ("net.ipv4.fib_multipath_hash_policy", policy),
                ("net.ipv6.fib_multipath_hash_policy", policy),
            ])?;
            interrupt::sleep(Duration::from_millis(700))?;
        }
        Ok(())
    };
    vec![event(world, "ECMP rehash", "all flows".to_owned(), Allowed::Nothing, act)]
}

/// The router's BIRD is killed and restarted, then a director's. Graceful restart keeps the routes,
/// or the other director takes over until the director's daemon has announced again.
pub(super) fn bird(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let directors = world.directors_up();
    let director = directors[random.below(directors.len() as u64) as usize];
    let restarted = |name, node: Node| {
        let restarted = move |world: &mut World| restart(world, node);
        unplanned(event(world, name, node.to_string(), Allowed::Nothing, restarted))
    };
    vec![
        restarted("router's BIRD restarted", Node::Router),
        restarted("director's BIRD restarted", director),
    ]
}

fn restart(world: &mut World, node: Node) -> Result<()> {
    let bird = world.birds.get_mut(&node).context("a machine without BIRD")?;
    bird.kill()?;
    interrupt::sleep(Duration::from_secs(1))?;
    bird.start(&world.lab)?;
    // BGP sessions take some seconds.
    interrupt::sleep(Duration::from_secs(4))?;
    world.wait_for_routes()
}
