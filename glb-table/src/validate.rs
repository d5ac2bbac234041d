//! Checks that need the whole file: duplicate names and addresses, overlapping binds, limits.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use ipnet::IpNet;

use crate::{
    Bind, Order, Proto, Table, TableSet,
    model::{MAX_BACKENDS, MAX_BINDS, MAX_ROWS_BYTES, MAX_TABLES},
    parse::Diagnostics,
};

type Span = Range<usize>;

/// Where the parts of the model are in the file's text.
#[derive(Default)]
pub(crate) struct SourceRanges {
    pub(crate) tables: Vec<TableRanges>,
}

/// Where the parts of one table are in the file's text.
#[derive(Default)]
pub(crate) struct TableRanges {
    pub(crate) name: Span,
    pub(crate) hops: Option<Span>,
    pub(crate) order: Option<Span>,
    pub(crate) alternatives: [Option<Span>; 3],
    pub(crate) binds_list: Span,
    pub(crate) binds: Vec<Span>,
    pub(crate) backends_list: Span,
    pub(crate) backends: Vec<Span>,
    pub(crate) has_healthy_key: Vec<bool>,
    /// A backend could not be parsed, so checks of all backends together are skipped.
    pub(crate) has_invalid_backend: bool,
}

/// Validates a table set.
pub(crate) fn set(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    names(diagnostics, set, places);
    limits(diagnostics, set, places);
    for (table, place) in set.tables.iter().zip(&places.tables) {
        backends(diagnostics, table, place);
        missing_health(diagnostics, table, place);
        options(diagnostics, table, place);
    }
    binds(diagnostics, set, places);
}

fn names(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    let mut seen = HashMap::new();
    for (table, place) in set.tables.iter().zip(&places.tables) {
        if seen.insert(table.name.as_str(), ()).is_some() {
            let message = format!("two tables are named \"{}\"", table.name);
            let help = "give each table a name of its own; counters are kept per name";
            diagnostics.error(&place.name, message, "the second one", help);
        }
    }
}

fn limits(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    if set.tables.len() > MAX_TABLES {
        let message = format!("the file has {} tables", set.tables.len());
        let help = format!("a file holds at most {MAX_TABLES} tables");
        diagnostics.error(
            &places.tables[MAX_TABLES].name,
            message,
            "this is the first one too many",
            help,
        );
    }
    rows(diagnostics, set, places);
    let (mut backends, mut binds) = (0, 0);
    for (table, place) in set.tables.iter().zip(&places.tables) {
        let before = (backends, binds);
        backends += table.backends.len();
        binds += table.binds.len();
        if backends > MAX_BACKENDS && before.0 <= MAX_BACKENDS {
            let span = &place.backends[MAX_BACKENDS - before.0];
            let help = format!("all tables together hold at most {MAX_BACKENDS} backends");
            diagnostics.error(span, "too many backends", "this is the first one too many", help);
        }
        if binds > MAX_BINDS && before.1 <= MAX_BINDS {
            let span = &place.binds[MAX_BINDS - before.1];
            let help = format!(
                "all tables together hold at most {MAX_BINDS} binds; a range of ports is one bind"
            );
            diagnostics.error(span, "too many binds", "this is the first one too many", help);
        }
    }
}

fn rows(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    let bytes = |tables: &[Table]| tables.iter().map(Table::rows_bytes).sum::<usize>();
    let needed = bytes(&set.tables);
    if needed <= MAX_ROWS_BYTES {
        return;
    }
    let fit = (0..set.tables.len()).rfind(|count| bytes(&set.tables[..*count]) <= MAX_ROWS_BYTES);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let message = format!("the tables' rows take {} MiB", mib(needed));
    let help = format!(
        "a director addresses {} MiB of rows. A table takes 256 KiB, twice that with more than two \
         `hops`, and twice again with `alt_seed`: finish seed rotations, or move tables \
         to other directors",
        mib(MAX_ROWS_BYTES)
    );
    let place = &places.tables[fit.unwrap_or_default()].name;
    diagnostics.error(place, message, "this is the first one too many", help);
}

fn backends(diagnostics: &mut Diagnostics, table: &Table, place: &TableRanges) {
    let mut seen = HashMap::new();
    for (index, (backend, span)) in table.backends.iter().zip(&place.backends).enumerate() {
        if let Some(first) = seen.insert(backend.address, index) {
            let message =
                format!("backend {} is listed twice in table \"{}\"", backend.address, table.name);
            let help = format!(
                "it is also backend number {} of this table; remove one, and use `weight` for a larger share",
                first + 1
            );
            diagnostics.error(span, message, "the second one", help);
        }
    }
    if let Some(first) = table.backends.first() {
        let odd = table
            .backends
            .iter()
            .zip(&place.backends)
            .find(|(backend, _)| backend.address.is_ipv4() != first.address.is_ipv4());
        if let Some((backend, span)) = odd {
            let message = format!("table \"{}\" has IPv4 and IPv6 backends", table.name);
            let found = format!(
                "{} and {} have different address families",
                backend.address, first.address
            );
            diagnostics.error(
                span,
                message,
                found,
                "a row holds addresses of one family: split the table in two tables",
            );
        }
    }
    if !table.backends.is_empty() && !place.has_invalid_backend && table.usable() == 0 {
        let message = format!("no backend of table \"{}\" is usable", table.name);
        let help = "at least one must be active, filling or draining";
        diagnostics.error(&head(&place.backends_list), message, "all are inactive", help);
    } else if !table.backends.is_empty() && !table.backends.iter().any(crate::Backend::takes_new) {
        let message = format!("no backend of table \"{}\" can take new connections", table.name);
        let help =
            "set healthy = true on an active or filling backend, or wait for the health checker";
        diagnostics.warn(
            &head(&place.backends_list),
            message,
            "none is healthy and active or filling",
            help,
        );
    }
}

/// Warns about backends without `healthy` if other backends have it. Without any `healthy`, the health
/// checker is expected to fill it in.
fn missing_health(diagnostics: &mut Diagnostics, table: &Table, place: &TableRanges) {
    if place.has_healthy_key.contains(&true) {
        let missing = table
            .backends
            .iter()
            .zip(&place.backends)
            .zip(&place.has_healthy_key)
            .filter(|(_, said)| !**said);
        for ((backend, span), _) in missing {
            let message =
                format!("backend {} of table \"{}\" has no `healthy`", backend.address, table.name);
            diagnostics.warn(
                span,
                message,
                "it counts as unhealthy",
                "write healthy = true or healthy = false",
            );
        }
    }
}

fn options(diagnostics: &mut Diagnostics, table: &Table, place: &TableRanges) {
    if let (Order::Glb, Some(span), true) = (table.order, &place.order, table.hops != 2) {
        let message = format!("order = \"glb\" with {} hops", table.hops);
        diagnostics.error(span, message, "GLB's rows have two hops", "remove `hops` or `order`");
    }
    zones(diagnostics, table, place);
    let same = [
        ("alt_hash_key", "hash_key", table.alt_hash_key == Some(table.hash_key)),
        ("alt_seed", "seed", table.alt_seed == Some(table.seed)),
        ("alt_hash_fields", "hash_fields", table.alt_hash_fields == Some(table.hash_fields)),
    ];
    for ((alternative, main, same), span) in same.into_iter().zip(&place.alternatives) {
        if let (true, Some(span)) = (same, span) {
            let message = format!("`{alternative}` equals `{main}`");
            let help = format!(
                "the alternative is the old {main} during a rotation; remove it after the rotation"
            );
            diagnostics.error(span, message, "it has no effect", help);
        }
    }
}

fn zones(diagnostics: &mut Diagnostics, table: &Table, place: &TableRanges) {
    let with =
        table.backends.iter().zip(&place.backends).find(|(backend, _)| !backend.zone.is_empty());
    let Some((backend, span)) = with else { return };
    if table.hops < 3 {
        let message = format!(
            "backend {} has a zone, and table \"{}\" has two hops",
            backend.address, table.name
        );
        let help =
            "with zones the last hop is in another zone: set hops = 3 or 4, or remove the zones";
        diagnostics.error(span, message, "zones need three hops or more", help);
    }
    let without =
        table.backends.iter().zip(&place.backends).find(|(backend, _)| backend.zone.is_empty());
    if let Some((lacks, span)) = without {
        let message = format!(
            "backend {} of table \"{}\" has no zone, and {} has one",
            lacks.address, table.name, backend.address
        );
        diagnostics.error(
            span,
            message,
            "`zone` is not given",
            "give every backend of a table a zone, or none",
        );
    }
}

fn head(span: &Span) -> Span {
    span.start..span.end.min(span.start + 12)
}

/// A bind with its table and its range in the text.
struct LocatedBind<'s> {
    table: &'s str,
    bind: &'s Bind,
    span: &'s Span,
}

/// Reports binds with equal prefixes that share a port. A bind inside the prefix of another one gets a
/// warning only, because every director prefers the longer prefix.
fn binds(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    let mut located: BTreeMap<(Proto, IpNet), Vec<LocatedBind<'_>>> = BTreeMap::new();
    for (table, place) in set.tables.iter().zip(&places.tables) {
        for (bind, span) in table.binds.iter().zip(&place.binds) {
            let bind_here = LocatedBind { table: &table.name, bind, span };
            located.entry((bind.proto, bind.prefix)).or_default().push(bind_here);
        }
    }
    let mut overlaps = false;
    for located in located.values_mut() {
        located.sort_by_key(|bind_here| (*bind_here.bind.ports.start(), bind_here.span.start));
        // A bind overlaps an earlier one if it overlaps the earlier one with the highest port.
        let mut furthest: Option<&LocatedBind<'_>> = None;
        for bind_here in located.iter() {
            if let Some(other) =
                furthest.filter(|other| other.bind.ports.end() >= bind_here.bind.ports.start())
            {
                let (first, second) = if other.span.start < bind_here.span.start {
                    (other, bind_here)
                } else {
                    (bind_here, other)
                };
                let (message, help) = if first.table == second.table {
                    let message = format!(
                        "binds {} and {} of table \"{}\" overlap",
                        first.bind, second.bind, first.table
                    );
                    (message, "remove one of them, or give them different ports")
                } else {
                    let message = format!(
                        "bind {} of table \"{}\" overlaps bind {} of table \"{}\"",
                        second.bind, second.table, first.bind, first.table
                    );
                    (
                        message,
                        "a packet belongs to one table: remove one of the binds, or give them different ports",
                    )
                };
                diagnostics.error(second.span, message, "the second one", help);
                overlaps = true;
            }
            if furthest.is_none_or(|other| other.bind.ports.end() < bind_here.bind.ports.end()) {
                furthest = Some(bind_here);
            }
        }
    }
    if overlaps {
        return;
    }
    for ((proto, prefix), inner) in &located {
        let mut wider = *prefix;
        while let Some(next) = wider.supernet() {
            wider = next;
            let Some(outer) = located.get(&(*proto, wider)) else { continue };
            nested(diagnostics, inner, outer);
        }
    }
}

/// Warns about binds inside wider binds of another table. Both lists are sorted by port, without
/// overlaps.
fn nested(diagnostics: &mut Diagnostics, inner: &[LocatedBind<'_>], outer: &[LocatedBind<'_>]) {
    for bind_here in inner {
        let first =
            outer.partition_point(|over| over.bind.ports.end() < bind_here.bind.ports.start());
        let shared = outer[first..]
            .iter()
            .take_while(|over| over.bind.ports.start() <= bind_here.bind.ports.end());
        if let Some(over) = shared.into_iter().find(|over| over.table != bind_here.table) {
            let message = format!(
                "bind {} of table \"{}\" lies within bind {} of table \"{}\"",
                bind_here.bind, bind_here.table, over.bind, over.table
            );
            let help = "the longer prefix is preferred; ignore this if it is intended";
            diagnostics.warn(bind_here.span, message, "the longer prefix is preferred", help);
        }
    }
}
