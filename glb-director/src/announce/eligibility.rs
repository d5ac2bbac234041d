//! Whether the director is fit for an announcement, from what is in force and what the kernel says.

use std::net::IpAddr;

use glb_host::next_hop;
use glb_table::{Table, TableSet};

use super::{
    announcement::{Announcement, Minimum, own_address},
    state_machine::{Cause, Unfit},
};
use crate::views::InterfaceView;

/// Why it must not stay announced, and why it must not become announced, if so.
pub(super) fn judge(
    announcement: &Announcement,
    tables: Option<&TableSet>,
    ways: Option<&next_hop::Snapshot>,
    interfaces: &[InterfaceView],
) -> (Option<Unfit>, Option<Unfit>) {
    let Some(tables) = tables else {
        let words = "no generation of this process is in force yet";
        return (None, Some(Unfit::new(Cause::NotServing, words)));
    };
    let must_go = attached(interfaces).or_else(|| by_tables(announcement, tables));
    // An address can be taken away as easily as it came, and a way is often back in a moment: they
    // keep an announcement from beginning, and do not end one that connections depend on.
    let must_wait = own(announcement).or_else(|| reachable(announcement, tables, ways));
    (must_go, must_wait)
}

/// What these tables say against it: they do not serve it, or too few of its backends are healthy.
pub(super) fn by_tables(announcement: &Announcement, tables: &TableSet) -> Option<Unfit> {
    in_tables(announcement, tables).or_else(|| healthy(announcement, tables))
}

/// VIP packets that come where no program is would be left to the kernel.
fn attached(interfaces: &[InterfaceView]) -> Option<Unfit> {
    let unfit = |words: String| Some(Unfit::new(Cause::NotServing, words));
    let here = interfaces.iter().filter(|interface| interface.exists);
    let without = here.clone().find(|interface| !interface.attached);
    match without {
        Some(view) => {
            let what = view.problem.as_deref().unwrap_or("no program is attached");
            unfit(format!("interface {}: {what}", view.name))
        }
        None if here.count() == 0 => unfit("none of the interfaces is there".into()),
        None => None,
    }
}

fn in_tables(announcement: &Announcement, tables: &TableSet) -> Option<Unfit> {
    let unfit = |words: String| Some(Unfit::new(Cause::NotInTables, words));
    if let Some(prefix) = announcement.unserved(tables) {
        return unfit(format!("no bind in force lies in {prefix}"));
    }
    let mut names = announcement.tables.iter().flatten();
    let gone = names.find(|name| !tables.tables.iter().any(|table| table.name == **name))?;
    unfit(format!("no table {gone:?} is in force"))
}

/// How many of a table's backends must take new connections.
fn needed(minimum: Minimum, table: &Table) -> usize {
    match minimum {
        Minimum::Backends(count) => count.into(),
        Minimum::Percent(percent) => (table.usable() * usize::from(percent)).div_ceil(100).max(1),
    }
}

fn healthy(announcement: &Announcement, tables: &TableSet) -> Option<Unfit> {
    announcement.tables_of(tables).find_map(|table| {
        let needed = needed(announcement.min_healthy, table);
        let found = table.backends.iter().filter(|backend| backend.takes_new()).count();
        (found < needed).then(|| {
            let words = format!(
                "table {}: {found} backends take new connections, and `min_healthy` wants {needed}",
                table.name
            );
            Unfit::new(Cause::TooFewHealthy, words)
        })
    })
}

fn own(announcement: &Announcement) -> Option<Unfit> {
    let address = announcement.prefixes.iter().find_map(own_address)?;
    Some(Unfit::new(Cause::OwnAddress, format!("{address} is an address of this machine")))
}

fn reachable(
    announcement: &Announcement,
    tables: &TableSet,
    ways: Option<&next_hop::Snapshot>,
) -> Option<Unfit> {
    let has_way = |address: &IpAddr| matches!(ways.and_then(|w| w.get(address)), Some(Ok(_)));
    announcement.tables_of(tables).find_map(|table| {
        let needed = needed(announcement.min_healthy, table);
        let healthy = table.backends.iter().filter(|backend| backend.takes_new());
        let found = healthy.filter(|backend| has_way(&backend.address)).count();
        (found < needed).then(|| {
            let words = format!(
                "table {}: the way is known to {found} backends that take new connections, and \
                 `min_healthy` wants {needed}",
                table.name
            );
            Unfit::new(Cause::TooFewHealthy, words)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::announce::announcement::WayConfig;

    fn table(states: &str) -> TableSet {
        let text = format!(
            "[[tables]]\nname = \"web\"\nhash_key = \"00112233445566778899aabbccddeeff\"\n\
             seed = \"ffeeddccbbaa99887766554433221100\"\n\
             binds = [{{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }}]\nbackends = [{}]\n",
            states
                .chars()
                .zip(1..)
                .map(|(state, n)| {
                    let (healthy, state) = match state {
                        'u' => (true, "active"),
                        'd' => (false, "active"),
                        'i' => (true, "inactive"),
                        _ => (true, "draining"),
                    };
                    format!("{{ ip = \"10.0.0.{n}\", state = \"{state}\", healthy = {healthy} }}, ")
                })
                .collect::<String>()
        );
        let path = Path::new("t.toml");
        glb_table::parse_bytes(path, glb_table::Format::of_path(path), text.as_bytes()).unwrap()
    }

    fn announcement(min_healthy: Minimum) -> Announcement {
        Announcement {
            name: "web".into(),
            prefixes: vec!["203.0.113.0/24".parse().unwrap()],
            tables: None,
            min_healthy,
            way: WayConfig::Tun { interface: "t".into(), metric: 1, less_wanted_metric: None },
        }
    }

    fn interface(exists: bool, attached: bool) -> InterfaceView {
        InterfaceView {
            name: "eth0".into(),
            exists,
            attached,
            mode: None,
            generation: None,
            problem: None,
        }
    }

    fn cause(minimum: Minimum, states: &str) -> Option<Cause> {
        let tables = table(states);
        let up = [interface(true, true), interface(false, false)];
        judge(&announcement(minimum), Some(&tables), None, &up).0.map(|unfit| unfit.cause)
    }

    #[test]
    fn too_few_healthy_backends_are_those_that_take_new_connections() {
        let few = Some(Cause::TooFewHealthy);
        for (minimum, states, wanted) in [
            (Minimum::Backends(0), "dd", None),
            (Minimum::Backends(1), "dd", few),
            (Minimum::Backends(1), "dx", few),
            (Minimum::Backends(1), "du", None),
            (Minimum::Backends(3), "uu", few),
            // Of those that are usable: 2 of 4, and a part of one is one.
            (Minimum::Percent(50), "uudd", None),
            (Minimum::Percent(51), "uudd", few),
            (Minimum::Percent(50), "uuddii", None),
            (Minimum::Percent(1), "dddd", few),
        ] {
            assert_eq!(cause(minimum, states), wanted, "{minimum:?} {states}");
        }
    }

    #[test]
    fn what_is_not_served_is_not_announced() {
        let tables = table("uu");
        let one = announcement(Minimum::Backends(0));
        let judged = |one: &Announcement, interfaces: &[InterfaceView]| {
            judge(one, Some(&tables), None, interfaces).0.map(|unfit| unfit.cause)
        };
        let up = [interface(true, true)];
        assert_eq!(judged(&one, &up), None);
        assert_eq!(judged(&one, &[interface(true, false)]), Some(Cause::NotServing));
        assert_eq!(judged(&one, &[interface(false, false)]), Some(Cause::NotServing));
        let other = Announcement { prefixes: vec!["192.0.2.1/32".parse().unwrap()], ..one.clone() };
        assert_eq!(judged(&other, &up), Some(Cause::NotInTables));
        let other = Announcement { tables: Some(vec!["wbe".into()]), ..one.clone() };
        assert_eq!(judged(&other, &up), Some(Cause::NotInTables));
        // Before anything is in force nothing begins, and nothing that is there ends.
        let (go, wait) = judge(&one, None, None, &up);
        assert_eq!((go, wait.map(|unfit| unfit.cause)), (None, Some(Cause::NotServing)));
    }

    #[test]
    fn without_a_way_nothing_begins_and_nothing_ends() {
        let tables = table("uu");
        let one = announcement(Minimum::Backends(1));
        let (go, wait) = judge(&one, Some(&tables), None, &[interface(true, true)]);
        assert_eq!((go, wait.map(|unfit| unfit.cause)), (None, Some(Cause::TooFewHealthy)));
    }
}
