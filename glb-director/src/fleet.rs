//! Compares the directors of a fleet: what one reports of itself, and what differs between them.
//!
//! No report shows a key. The membership digest covers keys and seeds with a plain hash, because
//! directors share nothing but the table. A reader of the digest can test guesses of all of a table's keys
//! at once; they are 128 random bits each.

use std::collections::{BTreeMap, BTreeSet};

use glb_table::{Table, TableSet};
use serde::{Deserialize, Serialize};

use crate::{announce::AnnounceView, model::Problem, status::Status, views::Observer};

/// A director's report of itself. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The release.
    pub release: String,
    /// The generation in force; the number is local to the director.
    pub generation: Option<u64>,
    /// The digest of the settings of all tables that must be equal.
    pub membership_digest: Option<String>,
    /// The digest of states and health of all tables.
    pub order_digest: Option<String>,
    /// The director's problems.
    pub problems: Vec<Problem>,
    /// The director's announcements.
    pub announce: AnnounceView,
    /// The tables in force.
    pub tables: Vec<MemberTable>,
}

/// A table of a director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTable {
    /// The table's name.
    pub name: String,
    /// The digest of the settings that must be equal.
    pub membership_digest: String,
    /// The digest of states and health.
    pub order_digest: String,
    /// Hops, hash fields and order.
    pub settings: BTreeMap<String, String>,
    /// The binds.
    pub binds: BTreeSet<String>,
    /// The backends by address.
    pub backends: BTreeMap<String, MemberBackend>,
}

/// A backend of a director's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberBackend {
    /// The state.
    pub state: String,
    /// The health.
    pub healthy: bool,
    /// The weight.
    pub weight: u16,
    /// The zone.
    pub zone: String,
}

impl Member {
    /// Creates the report of the running director.
    #[must_use]
    pub fn of(observer: &Observer) -> Self {
        let status = Status::of(observer);
        let snapshot = observer.snapshot();
        let tables = snapshot.in_force.as_ref().map(|running| tables(&running.tables));
        Self {
            release: status.release,
            generation: status.generation,
            membership_digest: status.membership_digest,
            order_digest: status.order_digest,
            problems: status.problems,
            announce: status.announce,
            tables: tables.unwrap_or_default(),
        }
    }
}

fn tables(tables: &TableSet) -> Vec<MemberTable> {
    tables.tables.iter().map(table).collect()
}

fn table(table: &Table) -> MemberTable {
    let digest = table.digest();
    let settings = [
        ("hops", table.hops.to_string()),
        ("hash_fields", format!("{:?}", table.hash_fields)),
        ("order", format!("{:?}", table.order)),
        ("alt_hash_fields", format!("{:?}", table.alt_hash_fields)),
    ];
    let binds = table.binds.iter().map(|bind| {
        let (first, last) = (bind.ports.start(), bind.ports.end());
        let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
        format!("{} {} {ports}", bind.prefix, bind.proto.name())
    });
    let backends = table.backends.iter().map(|backend| {
        let what = MemberBackend {
            state: backend.state.name().to_owned(),
            healthy: backend.healthy,
            weight: backend.weight,
            zone: backend.zone.clone(),
        };
        (backend.address.to_string(), what)
    });
    MemberTable {
        name: table.name.clone(),
        membership_digest: glb_table::hex(&digest.membership),
        order_digest: glb_table::hex(&digest.order),
        settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
        binds: binds.collect(),
        backends: backends.collect(),
    }
}

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// A setting that must be equal: flows that move between these directors break.
    Membership,
    /// States or health, which may differ for a moment.
    Order,
}

/// A setting with different values on different directors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The kind.
    pub about: About,
    /// The table.
    pub table: String,
    /// The backend, if one is concerned.
    pub backend: Option<String>,
    /// The setting, in words.
    pub what: String,
    /// The targets by value.
    pub values: BTreeMap<String, Vec<String>>,
}

/// Returns the differences between directors.
#[must_use]
pub fn compare(members: &[(String, Member)]) -> Vec<Difference> {
    let names: BTreeSet<&str> = members
        .iter()
        .flat_map(|(_, member)| &member.tables)
        .map(|table| table.name.as_str())
        .collect();
    let mut all = Vec::new();
    for name in names {
        let found = members.iter().map(|(target, member)| {
            (target.as_str(), member.tables.iter().find(|table| table.name == name))
        });
        let found: Vec<(&str, Option<&MemberTable>)> = found.collect();
        table_differences(name, &found, &mut all);
    }
    all.sort_by(|a, b| (a.about, &a.table, &a.backend).cmp(&(b.about, &b.table, &b.backend)));
    all
}

type Found<'m> = [(&'m str, Option<&'m MemberTable>)];

fn table_differences(name: &str, found: &Found<'_>, all: &mut Vec<Difference>) {
    let before = all.len();
    let mut look =
        |about, backend: Option<&str>, what: &str, of: &dyn Fn(&MemberTable) -> String| {
            let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (target, table) in found {
                let value = table.map_or_else(|| "no such table".to_owned(), of);
                values.entry(value).or_default().push((*target).to_owned());
            }
            if values.len() > 1 {
                let (table, backend) = (name.to_owned(), backend.map(str::to_owned));
                let what = what.to_owned();
                all.push(Difference { about, table, backend, what, values });
            }
        };
    if found.iter().any(|(_, table)| table.is_none()) {
        look(About::Membership, None, "the table itself", &|_| "there".to_owned());
        return;
    }
    let tables = || found.iter().filter_map(|(_, table)| *table);
    let yes = |is: bool| if is { "there" } else { "not there" }.to_owned();
    for setting in tables().flat_map(|table| table.settings.keys()).collect::<BTreeSet<_>>() {
        let of = |table: &MemberTable| table.settings.get(setting).cloned().unwrap_or_default();
        look(About::Membership, None, setting, &of);
    }
    for bind in tables().flat_map(|table| &table.binds).collect::<BTreeSet<_>>() {
        let of = |table: &MemberTable| yes(table.binds.contains(bind));
        look(About::Membership, None, &format!("bind {bind}"), &of);
    }
    for address in tables().flat_map(|table| table.backends.keys()).collect::<BTreeSet<_>>() {
        let get = |table: &MemberTable, of: &dyn Fn(&MemberBackend) -> String| {
            table.backends.get(address).map_or_else(|| "no such backend".to_owned(), of)
        };
        let everywhere = tables().all(|table| table.backends.contains_key(address));
        let at = Some(address.as_str());
        if !everywhere {
            let of = |table: &MemberTable| yes(table.backends.contains_key(address));
            look(About::Membership, at, "the backend itself", &of);
            continue;
        }
        let of = |table: &MemberTable| get(table, &|backend| backend.weight.to_string());
        look(About::Membership, at, "weight", &of);
        let of = |table: &MemberTable| get(table, &|backend| backend.zone.clone());
        look(About::Membership, at, "zone", &of);
        let of = |table: &MemberTable| get(table, &|backend| backend.state.clone());
        look(About::Order, at, "state", &of);
        let healthy = |is: bool| if is { "healthy" } else { "not healthy" }.to_owned();
        let of = |table: &MemberTable| get(table, &|backend| healthy(backend.healthy));
        look(About::Order, at, "health", &of);
    }
    // Keys and seeds are not shown, so only the digest can differ.
    let named = all[before..].iter().any(|difference| difference.about == About::Membership);
    if !named {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (target, table) in found {
            let digest = table.map(|table| table.membership_digest.chars().take(16).collect());
            values.entry(digest.unwrap_or_default()).or_default().push((*target).to_owned());
        }
        if values.len() > 1 {
            all.push(Difference {
                about: About::Membership,
                table: name.to_owned(),
                backend: None,
                what: "keys or seeds (not shown; these are digests)".to_owned(),
                values,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TABLE: &str = "[[tables]]\nname = \"web\"\n\
        hash_key = \"00112233445566778899aabbccddeeff\"\n\
        seed = \"ffeeddccbbaa99887766554433221100\"\n\
        binds = [{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }]\n\
        backends = [{ ip = \"10.0.0.1\", state = \"active\", healthy = true },\n\
        { ip = \"10.0.0.2\", state = \"active\", healthy = true, weight = 7 }]\n";

    fn member(text: &str) -> Member {
        let path = Path::new("t.toml");
        let form = glb_table::Format::of_path(path);
        let set = glb_table::parse_bytes(path, form, text.as_bytes()).unwrap();
        Member {
            release: String::new(),
            generation: None,
            membership_digest: None,
            order_digest: None,
            problems: Vec::new(),
            announce: AnnounceView::default(),
            tables: tables(&set),
        }
    }

    /// Returns the differences of three directors; the last one has another file.
    fn differences(from: &str, to: &str) -> Vec<Difference> {
        let other = TABLE.replace(from, to);
        assert_ne!(other, TABLE, "{from}");
        let all = [("a", TABLE), ("b", TABLE), ("c", &*other)];
        compare(&all.map(|(target, text)| (target.to_owned(), member(text))))
    }

    #[test]
    fn equal_tables_do_not_differ() {
        assert_eq!(compare(&[]), []);
        let all = ["a", "b"].map(|target| (target.to_owned(), member(TABLE)));
        assert_eq!(compare(&all), []);
    }

    #[test]
    fn differences_name_the_setting_and_the_targets_of_each_value() {
        use About::{Membership, Order};
        for (from, to, about, backend, what) in [
            ("weight = 7", "weight = 8", Membership, Some("10.0.0.2"), "weight"),
            ("10.0.0.1\"", "10.0.0.9\"", Membership, Some("10.0.0.1"), "the backend itself"),
            ("port = 80", "port = 81", Membership, None, "bind 203.0.113.10/32 tcp 80"),
            ("0011", "1011", Membership, None, "keys or seeds"),
            ("ffee", "0fee", Membership, None, "keys or seeds"),
            ("active", "draining", Order, Some("10.0.0.1"), "state"),
            ("healthy = true }", "healthy = false }", Order, Some("10.0.0.1"), "health"),
            ("\"web\"", "\"git\"", Membership, None, "the table itself"),
        ] {
            let found = differences(from, to);
            assert!(!found.is_empty(), "{from}");
            let one = found.iter().find(|one| one.what.starts_with(what));
            let one = one.unwrap_or_else(|| panic!("{what} in {found:?}"));
            assert_eq!((one.about, one.backend.as_deref()), (about, backend), "{one:?}");
            let groups: Vec<&[String]> = one.values.values().map(Vec::as_slice).collect();
            assert!(groups.contains(&&["c".to_owned()][..]), "{one:?}");
            assert!(groups.contains(&&["a".to_owned(), "b".to_owned()][..]), "{one:?}");
            let text = serde_json::to_string(&found).unwrap();
            assert!(!text.contains("00112233") && !text.contains("ffeeddcc"), "{text}");
        }
    }
}
