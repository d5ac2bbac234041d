//! What no field can know alone: names, addresses and binds that clash, and limits.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use ipnet::IpNet;

use crate::{
    Bind, Order, Proto, Table, TableSet,
    model::{MAX_BACKENDS, MAX_BINDS, MAX_ROWS_BYTES, MAX_TABLES},
    parse::Reader,
};

type Span = Range<usize>;

/// Where the parts of the model stand in the file.
#[derive(Default)]
pub(crate) struct Places {
    pub(crate) tables: Vec<TablePlaces>,
}

/// Where the parts of one table stand in the file.
#[derive(Default)]
pub(crate) struct TablePlaces {
    pub(crate) name: Span,
    pub(crate) hops: Option<Span>,
    pub(crate) order: Option<Span>,
    pub(crate) alternatives: [Option<Span>; 3],
    pub(crate) binds_list: Span,
    pub(crate) binds: Vec<Span>,
    pub(crate) backends_list: Span,
    pub(crate) backends: Vec<Span>,
    pub(crate) said_healthy: Vec<bool>,
    /// Some backend could not be read, so nothing is known of all of them together.
    pub(crate) backends_broken: bool,
}

pub(crate) fn set(reader: &mut Reader, set: &TableSet, places: &Places) {
    names(reader, set, places);
    limits(reader, set, places);
    for (table, place) in set.tables.iter().zip(&places.tables) {
        backends(reader, table, place);
        unsaid_health(reader, table, place);
        options(reader, table, place);
    }
    binds(reader, set, places);
}

fn names(reader: &mut Reader, set: &TableSet, places: &Places) {
    let mut seen = HashMap::new();
    for (table, place) in set.tables.iter().zip(&places.tables) {
        if seen.insert(table.name.as_str(), ()).is_some() {
            let message = format!("two tables are named \"{}\"", table.name);
            let help = "counters belong to names: give each table its own";
            reader.error(&place.name, message, "the second one", help);
        }
    }
}

fn limits(reader: &mut Reader, set: &TableSet, places: &Places) {
    if set.tables.len() > MAX_TABLES {
        let message = format!("{} tables are too many", set.tables.len());
        let help = format!("a file holds at most {MAX_TABLES} tables");
        reader.error(&places.tables[MAX_TABLES].name, message, "this is the first too many", help);
    }
    rows(reader, set, places);
    let (mut backends, mut binds) = (0, 0);
    for (table, place) in set.tables.iter().zip(&places.tables) {
        let before = (backends, binds);
        backends += table.backends.len();
        binds += table.binds.len();
        if backends > MAX_BACKENDS && before.0 <= MAX_BACKENDS {
            let span = &place.backends[MAX_BACKENDS - before.0];
            let help = format!("all tables together hold at most {MAX_BACKENDS} backends");
            reader.error(span, "too many backends", "this is the first too many", help);
        }
        if binds > MAX_BINDS && before.1 <= MAX_BINDS {
            let span = &place.binds[MAX_BINDS - before.1];
            let help = format!(
                "all tables together hold at most {MAX_BINDS} binds; a range of ports is one bind"
            );
            reader.error(span, "too many binds", "this is the first too many", help);
        }
    }
}

fn rows(reader: &mut Reader, set: &TableSet, places: &Places) {
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
         `hops`, and twice again with `alt_seed`: end changes of seeds, or give other directors \
         some of the tables",
        mib(MAX_ROWS_BYTES)
    );
    let place = &places.tables[fit.unwrap_or_default()].name;
    reader.error(place, message, "this is the first too many", help);
}

fn backends(reader: &mut Reader, table: &Table, place: &TablePlaces) {
    let mut seen = HashMap::new();
    for (index, (backend, span)) in table.backends.iter().zip(&place.backends).enumerate() {
        if let Some(first) = seen.insert(backend.address, index) {
            let message =
                format!("backend {} stands twice in table \"{}\"", backend.address, table.name);
            let help = format!(
                "it is also backend number {} of this table; keep one, and use weight for a larger share",
                first + 1
            );
            reader.error(span, message, "the second one", help);
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
            let found = format!("{} is not of the family of {}", backend.address, first.address);
            reader.error(
                span,
                message,
                found,
                "a row holds addresses of one family: make two tables of it",
            );
        }
    }
    if !table.backends.is_empty() && !place.backends_broken && table.usable() == 0 {
        let message = format!("no backend of table \"{}\" is usable", table.name);
        let help = "at least one must be active, filling or draining";
        reader.error(&head(&place.backends_list), message, "all are inactive", help);
    } else if !table.backends.is_empty() && !table.backends.iter().any(crate::Backend::takes_new) {
        let message = format!("no backend of table \"{}\" can take new connections", table.name);
        let help =
            "rows go by rank alone; healthy = true on an active or filling backend is needed";
        reader.warn(
            &head(&place.backends_list),
            message,
            "none is healthy and active or filling",
            help,
        );
    }
}

/// Who says nothing counts as unhealthy. That is meant where nobody says anything and a checker
/// fills it in, and a slip where others do.
fn unsaid_health(reader: &mut Reader, table: &Table, place: &TablePlaces) {
    if place.said_healthy.contains(&true) {
        let unsaid = table
            .backends
            .iter()
            .zip(&place.backends)
            .zip(&place.said_healthy)
            .filter(|(_, said)| !**said);
        for ((backend, span), _) in unsaid {
            let message =
                format!("backend {} of table \"{}\" has no `healthy`", backend.address, table.name);
            reader.warn(
                span,
                message,
                "so it counts as unhealthy",
                "write healthy = true or healthy = false",
            );
        }
    }
}

fn options(reader: &mut Reader, table: &Table, place: &TablePlaces) {
    if let (Order::Glb, Some(span), true) = (table.order, &place.order, table.hops != 2) {
        let message = format!("order = \"glb\" with {} hops", table.hops);
        reader.error(span, message, "GLB's rows have two hops", "remove `hops` or `order`");
    }
    zones(reader, table, place);
    let same = [
        ("alt_hash_key", "hash_key", table.alt_hash_key == Some(table.hash_key)),
        ("alt_seed", "seed", table.alt_seed == Some(table.seed)),
        ("alt_hash_fields", "hash_fields", table.alt_hash_fields == Some(table.hash_fields)),
    ];
    for ((alternative, main, same), span) in same.into_iter().zip(&place.alternatives) {
        if let (true, Some(span)) = (same, span) {
            let message = format!("`{alternative}` equals `{main}`");
            let help = format!(
                "the alternative is the old {main} during a change; remove it once the change is over"
            );
            reader.error(span, message, "it adds nothing", help);
        }
    }
}

fn zones(reader: &mut Reader, table: &Table, place: &TablePlaces) {
    let with =
        table.backends.iter().zip(&place.backends).find(|(backend, _)| !backend.zone.is_empty());
    let Some((backend, span)) = with else { return };
    if table.hops < 3 {
        let message = format!(
            "backend {} has a zone, and table \"{}\" two hops",
            backend.address, table.name
        );
        let help =
            "with zones the last hop is of another zone: set hops = 3 or 4, or remove the zones";
        reader.error(span, message, "zones need three hops or more", help);
    }
    let without =
        table.backends.iter().zip(&place.backends).find(|(backend, _)| backend.zone.is_empty());
    if let Some((lacks, span)) = without {
        let message = format!(
            "backend {} of table \"{}\" has no zone, and {} has one",
            lacks.address, table.name, backend.address
        );
        reader.error(
            span,
            message,
            "`zone` is not given",
            "give every backend of a table its zone, or none",
        );
    }
}

fn head(span: &Span) -> Span {
    span.start..span.end.min(span.start + 12)
}

/// A bind with its table and its place.
struct Claim<'s> {
    table: &'s str,
    bind: &'s Bind,
    span: &'s Span,
}

/// Two binds of one prefix must not share a port. A longer prefix inside another is chosen first by
/// every director, so it is only worth a warning.
fn binds(reader: &mut Reader, set: &TableSet, places: &Places) {
    let mut claims: BTreeMap<(Proto, IpNet), Vec<Claim<'_>>> = BTreeMap::new();
    for (table, place) in set.tables.iter().zip(&places.tables) {
        for (bind, span) in table.binds.iter().zip(&place.binds) {
            let claim = Claim { table: &table.name, bind, span };
            claims.entry((bind.proto, bind.prefix)).or_default().push(claim);
        }
    }
    let mut overlaps = false;
    for claims in claims.values_mut() {
        claims.sort_by_key(|claim| (*claim.bind.ports.start(), claim.span.start));
        // The earlier bind that reaches furthest is the one that a later one can run into.
        let mut furthest: Option<&Claim<'_>> = None;
        for claim in claims.iter() {
            if let Some(other) =
                furthest.filter(|other| other.bind.ports.end() >= claim.bind.ports.start())
            {
                let (first, second) = if other.span.start < claim.span.start {
                    (other, claim)
                } else {
                    (claim, other)
                };
                let (message, help) = if first.table == second.table {
                    let message = format!(
                        "binds {} and {} of table \"{}\" overlap",
                        first.bind, second.bind, first.table
                    );
                    (message, "remove one of the two, or part their ports")
                } else {
                    let message = format!(
                        "bind {} of table \"{}\" overlaps bind {} of table \"{}\"",
                        second.bind, second.table, first.bind, first.table
                    );
                    (
                        message,
                        "a packet can have one table only: remove one of the two, or part their ports",
                    )
                };
                reader.error(second.span, message, "the second one", help);
                overlaps = true;
            }
            if furthest.is_none_or(|other| other.bind.ports.end() < claim.bind.ports.end()) {
                furthest = Some(claim);
            }
        }
    }
    if overlaps {
        return;
    }
    for ((proto, prefix), inner) in &claims {
        let mut wider = *prefix;
        while let Some(next) = wider.supernet() {
            wider = next;
            let Some(outer) = claims.get(&(*proto, wider)) else { continue };
            nested(reader, inner, outer);
        }
    }
}

/// Both lists are sorted by port, and no two of a list share one.
fn nested(reader: &mut Reader, inner: &[Claim<'_>], outer: &[Claim<'_>]) {
    for claim in inner {
        let first = outer.partition_point(|over| over.bind.ports.end() < claim.bind.ports.start());
        let shared = outer[first..]
            .iter()
            .take_while(|over| over.bind.ports.start() <= claim.bind.ports.end());
        if let Some(over) = shared.into_iter().find(|over| over.table != claim.table) {
            let message = format!(
                "bind {} of table \"{}\" lies within bind {} of table \"{}\"",
                claim.bind, claim.table, over.bind, over.table
            );
            let help = "nothing to do if this is meant";
            reader.warn(claim.span, message, "the longer prefix is chosen first", help);
        }
    }
}
