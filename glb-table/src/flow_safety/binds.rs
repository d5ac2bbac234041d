//! Tells whether a table still receives the packets of its binds.

use std::collections::HashSet;

use crate::{Bind, BuiltTable};

/// Whether other binds together cover every packet of a bind.
pub(super) fn covered(bind: &Bind, binds: &[Bind]) -> bool {
    let over: Vec<&Bind> = binds
        .iter()
        .filter(|other| other.proto == bind.proto && other.prefix.contains(&bind.prefix))
        .collect();
    let mut next = u32::from(*bind.ports.start());
    // Port ranges may have been split or merged, so go through the ports range by range.
    while next <= u32::from(*bind.ports.end()) {
        let reach = over
            .iter()
            .filter(|other| u32::from(*other.ports.start()) <= next)
            .map(|other| u32::from(*other.ports.end()))
            .max();
        match reach {
            Some(end) if end >= next => next = end + 1,
            _ => return false,
        }
    }
    true
}

/// New binds of other tables that take packets from these binds, because their prefix is longer.
pub(super) fn taken(
    name: &str,
    binds: &[Bind],
    others_before: &HashSet<&Bind>,
    built: &[BuiltTable],
) -> Vec<String> {
    let others = built.iter().map(|built| &built.table).filter(|table| table.name != name);
    let new = others.flat_map(|table| table.binds.iter().map(move |bind| (table, bind)));
    new.filter(|(_, bind)| !others_before.contains(bind))
        .filter(|(_, bind)| binds.iter().any(|mine| lies_within(bind, mine)))
        .map(|(table, bind)| format!("{bind} (taken by table \"{}\")", table.name))
        .collect()
}

fn lies_within(bind: &Bind, outer: &Bind) -> bool {
    bind.proto == outer.proto
        && bind.prefix.prefix_len() > outer.prefix.prefix_len()
        && outer.prefix.contains(&bind.prefix)
        && bind.ports.start() <= outer.ports.end()
        && outer.ports.start() <= bind.ports.end()
}
