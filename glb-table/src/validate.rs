//! Checks that need the whole file: duplicate names and addresses, overlapping binds, limits.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use glb_common::wire::gue::PORT as TUNNEL_PORT;
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
    /// `hash_key`, `seed`, `alt_hash_key` and `alt_seed`.
    pub(crate) keys: [Option<Span>; 4],
    pub(crate) allow_weak_keys: bool,
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
        keys(diagnostics, table, place);
    }
    binds(diagnostics, set, places);
    binds_of_backends(diagnostics, set, places);
    wide_binds(diagnostics, set, places);
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

/// Keys that documents of this project and of GLB publish as examples.
const PUBLISHED_KEYS: [&str; 4] = [
    "12345678901234561234567890123456",
    "34567890123456783456789012345678",
    "00112233445566778899aabbccddeeff",
    "ffeeddccbbaa99887766554433221100",
];

/// Warns about keys that a client can guess, unless the table has `allow_weak_keys = true`. A client
/// that knows the key can direct all its flows to one backend.
fn keys(diagnostics: &mut Diagnostics, table: &Table, place: &TableRanges) {
    if place.allow_weak_keys {
        return;
    }
    let keys = [Some(table.hash_key), Some(table.seed), table.alt_hash_key, table.alt_seed];
    for (name, (key, span)) in ["hash_key", "seed", "alt_hash_key", "alt_seed"]
        .into_iter()
        .zip(keys.into_iter().zip(&place.keys))
    {
        let (Some(key), Some(span)) = (key, span) else { continue };
        let bytes: HashSet<u8> = key.bytes().into_iter().collect();
        let why = if PUBLISHED_KEYS.contains(&key.to_hex().as_str()) {
            "this key is published as an example"
        } else if bytes.len() < 4 {
            "the key has few different bytes"
        } else if name == "seed" && key == table.hash_key {
            "the seed equals the hash key"
        } else {
            continue;
        };
        let message = format!("`{name}` of table \"{}\" is weak", table.name);
        let help = "`glb-director table new` writes random keys; rotate to one with `alt_hash_key` or \
                    `alt_seed`, or set allow_weak_keys = true in tests";
        diagnostics.warn(span, message, why, help);
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

/// Binds with a shorter prefix get a warning.
const WIDE_PREFIX_V4: u8 = 8;
const WIDE_PREFIX_V6: u8 = 16;

/// Warns about binds that match a large part of the internet. They are no errors, because GLB's own
/// tables may have them.
fn wide_binds(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    for (table, place) in set.tables.iter().zip(&places.tables) {
        for (bind, span) in table.binds.iter().zip(&place.binds) {
            let shortest = match bind.prefix {
                IpNet::V4(_) => WIDE_PREFIX_V4,
                IpNet::V6(_) => WIDE_PREFIX_V6,
            };
            if bind.prefix.prefix_len() < shortest {
                let message = format!("bind {bind} of table \"{}\" is very wide", table.name);
                let found = "it matches packets to other hosts too";
                let help = "give the VIPs, or ignore this if the director gets no other packets";
                diagnostics.warn(span, message, found, help);
            }
        }
    }
}

/// Reports UDP binds that match the tunnel packets to a backend, which the director would then
/// encapsulate again and again; and warns about binds with a backend's address.
fn binds_of_backends(diagnostics: &mut Diagnostics, set: &TableSet, places: &SourceRanges) {
    let mut tunnels: HashMap<IpNet, (&Bind, &Span)> = HashMap::new();
    let mut addresses: HashMap<IpNet, (&Bind, &Span)> = HashMap::new();
    for (table, place) in set.tables.iter().zip(&places.tables) {
        for (bind, span) in table.binds.iter().zip(&place.binds) {
            if bind.proto == Proto::Udp && bind.ports.contains(&TUNNEL_PORT) {
                let _ = tunnels.entry(bind.prefix).or_insert((bind, span));
            }
            if bind.prefix.prefix_len() == bind.prefix.max_prefix_len() {
                let _ = addresses.entry(bind.prefix).or_insert((bind, span));
            }
        }
    }
    let mut reported = HashSet::new();
    for backend in set.tables.iter().flat_map(|table| &table.backends) {
        let mut prefix = IpNet::from(backend.address);
        if let Some((bind, span)) = addresses.get(&prefix)
            && !(bind.proto == Proto::Udp && bind.ports.contains(&TUNNEL_PORT))
            && reported.insert(*bind)
        {
            let message = format!("bind {bind} has the address of a backend");
            let help = "give the VIP that clients connect to";
            diagnostics.warn(span, message, "packets for this backend are balanced too", help);
        }
        loop {
            if let Some((bind, span)) = tunnels.get(&prefix)
                && reported.insert(*bind)
            {
                let message = format!(
                    "bind {bind} matches the tunnel packets to backend {}",
                    backend.address
                );
                let found = format!("it covers the backend and port {TUNNEL_PORT}");
                let help = "the director would encapsulate its own packets: give the bind other \
                            addresses or ports";
                diagnostics.error(span, message, found, help);
            }
            match prefix.supernet() {
                Some(wider) => prefix = wider,
                None => break,
            }
        }
    }
}
