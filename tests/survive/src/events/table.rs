//! Events caused by an operator's table changes.

use anyhow::{Context, Result, ensure};
use glb_lab::{Node, State, TableFile};

use super::{Allowed, Event, any_backend, event, table_event};
use crate::{
    random::Random,
    world::{Mode, World},
};

/// A backend is drained, and then set to filling.
pub(super) fn drain(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    vec![
        table_event(world, "drain", node.to_string(), move |table| {
            table.set_state(node, State::Draining);
        }),
        fill(world, vec![node]),
    ]
}

/// As many backends as the hops allow are drained together.
pub(super) fn drain_several(world: &World, random: &mut Random) -> Vec<Event> {
    let mut nodes = world.backends();
    random.shuffle(&mut nodes);
    nodes.truncate(world.drains_at_once);
    let what = names(&nodes);
    let drained = nodes.clone();
    vec![
        table_event(world, "drain several", what, move |table| {
            drained.iter().for_each(|node| table.set_state(*node, State::Draining));
        }),
        fill(world, nodes),
    ]
}

fn fill(world: &World, nodes: Vec<Node>) -> Event {
    table_event(world, "fill", names(&nodes), move |table| {
        nodes.iter().for_each(|node| table.set_state(*node, State::Active));
    })
}

fn names(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(", ")
}

/// A backend is drained until it is empty, removed, and added again.
pub(super) fn remove(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    let set = move |state| move |table: &mut TableFile| table.set_state(node, state);
    let remove = table_event(world, "remove", node.to_string(), set(State::Inactive));
    let add = table_event(world, "add", node.to_string(), set(State::Filling));
    if !world.careful {
        return vec![remove, add];
    }
    let drain = table_event(world, "drain", node.to_string(), set(State::Draining));
    let active = table_event(world, "fill", node.to_string(), set(State::Active));
    vec![drain, when_drained(node, remove), add, active]
}

/// Waits until a backend holds no connections, before the event's own precondition.
fn when_drained(node: Node, event: Event) -> Event {
    let wait = event.prepare;
    let prepare = move |world: &mut World| {
        let limit = world.flow_age * 3;
        world.wait_until_drained(node, limit)?;
        wait(world)
    };
    Event { prepare: Box::new(prepare), ..event }
}

/// A backend's weight is tripled and restored. With the larger weight it owns rows in which it does
/// not stand with the smaller one, so the plan asks for a drain first.
pub(super) fn weight(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    let set = move |weight| move |table: &mut TableFile| table.set_weight(node, weight);
    let up = table_event(world, "weight up", format!("{node} to 3"), set(Some(3)));
    let down = table_event(world, "weight down", format!("{node} to 1"), set(None));
    if !world.careful {
        return vec![up, down];
    }
    let drain = table_event(world, "drain", node.to_string(), move |table| {
        table.set_state(node, State::Draining);
    });
    vec![up, drain, when_drained(node, down), fill(world, vec![node])]
}

/// The directors receive an invalid table and keep the current one.
pub(super) fn bad_table(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let broken = match random.below(3) {
        0 => "[[tables]]\nname = \"git\"\nhash_key = \"nonsense\"\n".to_owned(),
        1 => "\u{0}".repeat(4000),
        _ => String::new(),
    };
    let what = format!("{} bytes", broken.len());
    vec![event(world, "bad table", what, Allowed::Nothing, move |world| push(world, &broken))]
}

fn push(world: &mut World, broken: &str) -> Result<()> {
    for node in world.directors_up() {
        let file = world.lab.folder(node)?.join("table.toml");
        let good = std::fs::read_to_string(&file)?;
        let director = world.director(node)?;
        let said = director.reload_refused(broken)?;
        ensure!(said.contains("table.toml"), "the error names no file: {said}");
        director.write_table(&good)?;
    }
    world.settle()
}

/// The hash fields change, with the old ones as the alternative. The alternative is removed when no
/// older flow can still live.
pub(super) fn hash_migration(world: &World, _random: &mut Random) -> Vec<Event> {
    const FIELDS: [&[&str]; 2] = [&["src_addr"], &["src_addr", "src_port"]];
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let (from, to) = (usize::from(world.hashes_ports), usize::from(!world.hashes_ports));
    let (old, new) = (FIELDS[from], FIELDS[to]);
    let mut change = table_event(world, "hash migration", new.join(" + "), move |table| {
        table.set_hash_fields(new, Some(old));
    });
    let act = change.act;
    change.act = Box::new(move |world| {
        world.hashes_ports = !world.hashes_ports;
        act(world).context("the migration")
    });
    let end = table_event(world, "hash migration ends", new.join(" + "), move |table| {
        table.set_hash_fields(new, None);
    });
    vec![change, end]
}
