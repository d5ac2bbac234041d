//! The checked configuration of an announcement, and the checks of it against tables and machine.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use glb_host::config_file::closest_name;
use glb_table::{Table, TableSet};
use ipnet::IpNet;

/// Prefixes that are announced and withdrawn together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The name in messages and metrics.
    pub name: String,
    /// At least one prefix; no two overlap.
    pub prefixes: Vec<IpNet>,
    /// The tables whose health counts; by default those with binds in the prefixes.
    pub tables: Option<Vec<String>>,
    /// With fewer eligible backends in one of its tables, the announcement is withdrawn.
    pub withdraw_below: HealthyThreshold,
    /// How the prefixes reach routers.
    pub method: MethodConfig,
}

/// The number of backends that must take new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthyThreshold {
    /// An absolute number; 0 ignores health.
    Backends(u16),
    /// A share of the usable backends, from 1 to 100 percent.
    Percent(u8),
}

/// The method that announces prefixes to routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MethodConfig {
    /// Enables and disables protocols of BIRD.
    Bird {
        /// BIRD's control socket.
        socket: PathBuf,
        /// Protocols enabled while the state is `announced`.
        protocols: Vec<String>,
        /// Protocols enabled while the state is `low_preference`; may be empty.
        low_preference: Vec<String>,
        /// BGP protocols that carry the prefixes; empty to find them.
        sessions: Vec<String>,
    },
    /// Routes the prefixes into a TUN interface, where a routing daemon learns them.
    Tun {
        /// The interface's name.
        interface: String,
        /// The metric of the routes.
        metric: u32,
        /// The metric of the routes while the state is `low_preference`.
        low_preference_metric: Option<u32>,
    },
    /// Runs a command.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
        /// The longest time that one run may take.
        timeout: Duration,
        /// The interval at which the command is run again without a change.
        repeat: Option<Duration>,
        /// Whether the command supports `low-preference`.
        low_preference: bool,
    },
}

impl MethodConfig {
    /// The method's name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bird { .. } => "bird",
            Self::Tun { .. } => "tun",
            Self::Exec { .. } => "hook",
        }
    }

    /// Whether the method can lower the preference without withdrawing.
    #[must_use]
    pub fn supports_low_preference(&self) -> bool {
        match self {
            Self::Bird { low_preference, .. } => !low_preference.is_empty(),
            Self::Tun { low_preference_metric, .. } => low_preference_metric.is_some(),
            Self::Exec { low_preference, .. } => *low_preference,
        }
    }
}

/// When a drain takes traffic as stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainLimits {
    /// How long the packet rate must stay at or below the limit.
    pub quiet: Duration,
    /// Traffic at or below this rate counts as stopped.
    pub packets_per_second: u32,
    /// How long each stage waits for traffic to stop.
    pub timeout: Duration,
}

/// How long a withdrawal may delay the change that ends a VIP's service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithdrawLimits {
    /// How long the change waits until the withdrawal is confirmed.
    pub timeout: Duration,
    /// How long the change then waits for late packets.
    pub grace: Duration,
}

/// Whether two prefixes overlap.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Announcement {
    /// Whether one of the prefixes contains all of `net`.
    #[must_use]
    pub fn covers(&self, net: &IpNet) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(net))
    }

    /// The tables in `tables` whose health counts.
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

/// Checks announcements against tables and machine; returns errors and warnings.
#[must_use]
pub fn check_against(
    announcements: &[Announcement],
    tables: &TableSet,
) -> (Vec<String>, Vec<String>) {
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
                    "announcement {name:?}: `tables` names {table:?}, which the table file does not \
                     have{near}"
                ));
            }
        }
        if let Some(prefix) = one.unserved(tables) {
            errors.push(format!(
                "announcement {name:?}: no table has a bind in {prefix}, so its packets would be \
                 dropped. Add a bind, or remove the prefix"
            ));
        }
        for prefix in &one.prefixes {
            if let Some(address) = own_address(prefix) {
                errors.push(format!(
                    "announcement {name:?}: {address} is an address of this machine, so its kernel \
                     would reset live connections. Remove it: `ip address del {address} dev …`"
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
                "table {}: no announcement covers its bind {}. Announce it, or route it here by other means",
                table.name, bind.prefix
            ));
        }
    }
    (errors, warnings)
}

/// Returns one of this machine's addresses that lies in `prefix`.
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
