//! Decides whether this director may announce, from tables, interfaces and next hops.

use std::net::IpAddr;

use glb_host::next_hop;
use glb_table::{Table, TableSet};

use super::{
    announcement::{Announcement, HealthyThreshold, own_address},
    state_machine::{Blocker, Cause},
};
use crate::views::InterfaceView;

/// Returns why an announcement must be withdrawn, and why it must not go up.
pub(super) fn assess(
    announcement: &Announcement,
    tables: Option<&TableSet>,
    next_hops: Option<&next_hop::Snapshot>,
    interfaces: &[InterfaceView],
) -> (Option<Blocker>, Option<Blocker>) {
    let Some(tables) = tables else {
        let message = "no generation of this process is in force yet";
        return (None, Some(Blocker::new(Cause::NotServing, message)));
    };
    let must_withdraw = detached(interfaces).or_else(|| by_tables(announcement, tables));
    // A local VIP or a lost next hop is often a matter of moments: it keeps an announcement from going
    // up, and does not end one that connections depend on.
    let must_not_announce =
        own_vip(announcement).or_else(|| unreachable(announcement, tables, next_hops));
    (must_withdraw, must_not_announce)
}

/// Returns a blocker if these tables do not serve the announcement, or have too few healthy backends.
pub(super) fn by_tables(announcement: &Announcement, tables: &TableSet) -> Option<Blocker> {
    unserved(announcement, tables).or_else(|| unhealthy(announcement, tables))
}

/// Returns a blocker if an interface has no program: its VIP packets would go to the kernel.
fn detached(interfaces: &[InterfaceView]) -> Option<Blocker> {
    let blocker = |message: String| Some(Blocker::new(Cause::NotServing, message));
    let here = interfaces.iter().filter(|interface| interface.exists);
    let without = here.clone().find(|interface| !interface.attached);
    match without {
        Some(view) => {
            let what = view.problem.as_deref().unwrap_or("no program is attached");
            blocker(format!("interface {}: {what}", view.name))
        }
        None if here.count() == 0 => blocker("none of the configured interfaces exists".into()),
        None => None,
    }
}

fn unserved(announcement: &Announcement, tables: &TableSet) -> Option<Blocker> {
    let blocker = |message: String| Some(Blocker::new(Cause::NotInTables, message));
    if let Some(prefix) = announcement.unserved(tables) {
        return blocker(format!("the tables in force have no bind in {prefix}"));
    }
    let mut names = announcement.tables.iter().flatten();
    let gone = names.find(|name| !tables.tables.iter().any(|table| table.name == **name))?;
    blocker(format!("table {gone:?} is not in force"))
}

/// Returns the number of the table's backends that must take new connections.
fn needed(minimum: HealthyThreshold, table: &Table) -> usize {
    match minimum {
        HealthyThreshold::Backends(count) => count.into(),
        HealthyThreshold::Percent(percent) => {
            (table.usable() * usize::from(percent)).div_ceil(100).max(1)
        }
    }
}

fn unhealthy(announcement: &Announcement, tables: &TableSet) -> Option<Blocker> {
    announcement.tables_of(tables).find_map(|table| {
        let needed = needed(announcement.withdraw_below, table);
        let found = table.backends.iter().filter(|backend| backend.takes_new()).count();
        (found < needed).then(|| {
            let message = format!(
                "table {}: {found} backends take new connections, `withdraw_below` requires {needed}",
                table.name
            );
            Blocker::new(Cause::TooFewHealthy, message)
        })
    })
}

fn own_vip(announcement: &Announcement) -> Option<Blocker> {
    let address = announcement.prefixes.iter().find_map(own_address)?;
    Some(Blocker::new(Cause::OwnAddress, format!("{address} is an address of this machine")))
}

fn unreachable(
    announcement: &Announcement,
    tables: &TableSet,
    next_hops: Option<&next_hop::Snapshot>,
) -> Option<Blocker> {
    let has_next_hop =
        |address: &IpAddr| matches!(next_hops.and_then(|all| all.get(address)), Some(Ok(_)));
    announcement.tables_of(tables).find_map(|table| {
        let needed = needed(announcement.withdraw_below, table);
        let healthy = table.backends.iter().filter(|backend| backend.takes_new());
        let found = healthy.filter(|backend| has_next_hop(&backend.address)).count();
        (found < needed).then(|| {
            let message = format!(
                "table {}: {found} backends that take new connections have a next hop, \
                 `withdraw_below` requires {needed}",
                table.name
            );
            Blocker::new(Cause::TooFewHealthy, message)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::announce::announcement::MethodConfig;

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

    fn announcement(withdraw_below: HealthyThreshold) -> Announcement {
        Announcement {
            name: "web".into(),
            prefixes: vec!["203.0.113.0/24".parse().unwrap()],
            tables: None,
            withdraw_below,
            method: MethodConfig::Tun {
                interface: "t".into(),
                metric: 1,
                low_preference_metric: None,
            },
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

    fn cause(minimum: HealthyThreshold, states: &str) -> Option<Cause> {
        let tables = table(states);
        let up = [interface(true, true), interface(false, false)];
        assess(&announcement(minimum), Some(&tables), None, &up).0.map(|blocker| blocker.cause)
    }

    #[test]
    fn only_backends_that_take_new_connections_count_as_healthy() {
        let few = Some(Cause::TooFewHealthy);
        for (minimum, states, wanted) in [
            (HealthyThreshold::Backends(0), "dd", None),
            (HealthyThreshold::Backends(1), "dd", few),
            (HealthyThreshold::Backends(1), "dx", few),
            (HealthyThreshold::Backends(1), "du", None),
            (HealthyThreshold::Backends(3), "uu", few),
            // A share of the usable backends, rounded up.
            (HealthyThreshold::Percent(50), "uudd", None),
            (HealthyThreshold::Percent(51), "uudd", few),
            (HealthyThreshold::Percent(50), "uuddii", None),
            (HealthyThreshold::Percent(1), "dddd", few),
        ] {
            assert_eq!(cause(minimum, states), wanted, "{minimum:?} {states}");
        }
    }

    #[test]
    fn unserved_prefixes_are_not_announced() {
        let tables = table("uu");
        let one = announcement(HealthyThreshold::Backends(0));
        let assessed = |one: &Announcement, interfaces: &[InterfaceView]| {
            assess(one, Some(&tables), None, interfaces).0.map(|blocker| blocker.cause)
        };
        let up = [interface(true, true)];
        assert_eq!(assessed(&one, &up), None);
        assert_eq!(assessed(&one, &[interface(true, false)]), Some(Cause::NotServing));
        assert_eq!(assessed(&one, &[interface(false, false)]), Some(Cause::NotServing));
        let other = Announcement { prefixes: vec!["192.0.2.1/32".parse().unwrap()], ..one.clone() };
        assert_eq!(assessed(&other, &up), Some(Cause::NotInTables));
        let other = Announcement { tables: Some(vec!["wbe".into()]), ..one.clone() };
        assert_eq!(assessed(&other, &up), Some(Cause::NotInTables));
        // Before a generation is in force, nothing goes up and nothing is withdrawn.
        let (withdraw, hold) = assess(&one, None, None, &up);
        assert_eq!((withdraw, hold.map(|blocker| blocker.cause)), (None, Some(Cause::NotServing)));
    }

    #[test]
    fn a_missing_next_hop_neither_raises_nor_withdraws() {
        let tables = table("uu");
        let one = announcement(HealthyThreshold::Backends(1));
        let (withdraw, hold) = assess(&one, Some(&tables), None, &[interface(true, true)]);
        assert_eq!(
            (withdraw, hold.map(|blocker| blocker.cause)),
            (None, Some(Cause::TooFewHealthy))
        );
    }
}
