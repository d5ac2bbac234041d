//! What is announced, once the configuration is checked, and what tables and this machine say to it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use glb_host::config_file::closest_name;
use glb_table::{Table, TableSet};
use ipnet::IpNet;

/// A group of prefixes that are announced and withdrawn together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// What it is called in messages and metrics.
    pub name: String,
    /// At least one, no two of which overlap.
    pub prefixes: Vec<IpNet>,
    /// The tables whose health counts; nothing for those with binds in the prefixes.
    pub tables: Option<Vec<String>>,
    /// How many backends of each table must take new connections.
    pub min_healthy: Minimum,
    /// How routers are told.
    pub way: WayConfig,
}

/// How many backends must take new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    /// So many; with 0, health is not looked at.
    Backends(u16),
    /// So many of a hundred usable ones, from 1 to 100.
    Percent(u8),
}

/// How routers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayConfig {
    /// Protocols of BIRD are enabled and disabled.
    Bird {
        /// BIRD's control socket.
        socket: PathBuf,
        /// Enabled when announced.
        protocols: Vec<String>,
        /// Enabled instead when less wanted; empty if there are none.
        less_wanted: Vec<String>,
    },
    /// The prefixes are routed into a TUN interface, for a routing daemon to learn.
    Tun {
        /// The interface's name.
        interface: String,
        /// Metric of the routes.
        metric: u32,
        /// Their metric when less wanted.
        less_wanted_metric: Option<u32>,
    },
    /// A command is run.
    Hook {
        /// The program and its arguments.
        command: Vec<String>,
        /// How long it may take.
        timeout: Duration,
        /// How often it is told the same once more; never if nothing.
        repeat: Option<Duration>,
        /// Whether it knows `less_wanted`.
        less_wanted: bool,
    },
}

impl WayConfig {
    /// The way's name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bird { .. } => "bird",
            Self::Tun { .. } => "tun",
            Self::Hook { .. } => "hook",
        }
    }

    /// Whether it can make a path less wanted without withdrawing it.
    #[must_use]
    pub fn knows_less_wanted(&self) -> bool {
        match self {
            Self::Bird { less_wanted, .. } => !less_wanted.is_empty(),
            Self::Tun { less_wanted_metric, .. } => less_wanted_metric.is_some(),
            Self::Hook { less_wanted, .. } => *less_wanted,
        }
    }
}

/// When packets have ceased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainLimits {
    /// For so long they must have been few.
    pub quiet: Duration,
    /// Few are so many a second.
    pub packets_per_second: u32,
    /// How long that is waited for, at each stage.
    pub timeout: Duration,
}

/// How a withdrawal goes before the change that ends a VIP's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithdrawLimits {
    /// How long the change waits for it.
    pub timeout: Duration,
    /// How long it then waits for packets that are on their way, or for routers that hear of it late.
    pub grace: Duration,
}

/// Whether an address lies in both.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Announcement {
    /// Whether one of the prefixes holds all of `net`.
    #[must_use]
    pub fn covers(&self, net: &IpNet) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(net))
    }

    /// The tables whose health counts, as far as they are there.
    pub fn tables_of<'t>(&self, tables: &'t TableSet) -> impl Iterator<Item = &'t Table> {
        let has_bind = |table: &Table| table.binds.iter().any(|bind| self.covers(&bind.prefix));
        tables.tables.iter().filter(move |table| match &self.tables {
            Some(names) => names.contains(&table.name),
            None => has_bind(table),
        })
    }

    /// The first prefix in which no table has a bind.
    #[must_use]
    pub fn unserved(&self, tables: &TableSet) -> Option<IpNet> {
        let binds = || tables.tables.iter().flat_map(|table| &table.binds);
        let is_unserved = |prefix: &&IpNet| !binds().any(|bind| overlap(prefix, &bind.prefix));
        self.prefixes.iter().find(is_unserved).copied()
    }
}

/// What the tables and this machine say against the announcements: errors, and what may surprise.
#[must_use]
pub fn against(announcements: &[Announcement], tables: &TableSet) -> (Vec<String>, Vec<String>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    if announcements.is_empty() {
        return (errors, warnings);
    }
    for one in announcements {
        let name = &one.name;
        for table in one.tables.iter().flatten() {
            if !tables.tables.iter().any(|known| known.name == *table) {
                let known = tables.tables.iter().map(|table| table.name.as_str());
                let near = closest_name(table, known)
                    .map(|near| format!("; did you mean \"{near}\"?"))
                    .unwrap_or_default();
                errors.push(format!(
                    "announcement {name:?}: `tables` names {table:?}, and the table file has no such \
                     table{near}"
                ));
            }
        }
        if let Some(prefix) = one.unserved(tables) {
            errors.push(format!(
                "announcement {name:?}: no bind of any table lies in {prefix}: routers would send \
                 what nobody serves; add the bind, or take the prefix out"
            ));
        }
        for prefix in &one.prefixes {
            if let Some(address) = own_address(prefix) {
                errors.push(format!(
                    "announcement {name:?}: {address} is an address of this machine; a VIP must not \
                     be one, or its kernel answers what is left to it and so resets live \
                     connections: `ip address del {address} dev …`"
                ));
            }
        }
    }
    for table in &tables.tables {
        let open = table.binds.iter().find(|bind| {
            !announcements.iter().any(|announcement| announcement.covers(&bind.prefix))
        });
        if let Some(bind) = open {
            warnings.push(format!(
                "table {}: its bind {} lies in no announced prefix: somebody else must route it here",
                table.name, bind.prefix
            ));
        }
    }
    (errors, warnings)
}

/// An address in `prefix` that this machine has.
#[must_use]
pub fn own_address(prefix: &IpNet) -> Option<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    })
    .find(|address| prefix.contains(address))
}
