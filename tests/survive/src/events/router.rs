//! What happens to the routers.

use std::time::Duration;

use glb_lab::interrupt;

use super::{Allowed, Event, event};
use crate::{
    random::Random,
    world::{Mode, World},
};

/// The router hashes flows onto its next hops anew, again and again: nearly every flow changes its
/// director.
pub(super) fn path_change(world: &World, _random: &mut Random) -> Vec<Event> {
    vec![event(world, "ECMP rehash", "all flows".to_owned(), Allowed::Nothing, |world| {
        let nodes = match world.mode {
            Mode::Ecmp => world.backends(),
            _ => world.directors_up(),
        };
        for round in 0..4 {
            // Other weights, and another order.
            let mut hops: Vec<_> = nodes.iter().map(|node| (*node, 1)).collect();
            hops.rotate_left(round % nodes.len());
            hops[0].1 = 3;
            world.route(&hops)?;
            interrupt::sleep(Duration::from_millis(300))?;
        }
        match world.mode {
            Mode::Ecmp => world.settle(),
            _ => world.route_to_directors(),
        }
    })]
}
