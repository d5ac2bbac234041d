//! Checks of addresses, routes, neighbours, MTU and kernel settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use glb_host::{
    doctor::{interface_setting, net_setting},
    next_hop::{Snapshot, Unresolved, interface_name},
};
use glb_table::{Table, TableSet};

use super::{Finding, backends};
use crate::{announce::policy_rules::Rule, config::Config};

/// The size of a client's full-sized packet.
const CLIENT_MTU: u32 = 1500;

/// Returns the VIPs of binds with a single address.
pub(super) fn vips(tables: &TableSet) -> impl Iterator<Item = IpAddr> {
    let binds = tables.tables.iter().flat_map(|table| &table.binds);
    binds
        .filter(|bind| bind.prefix.prefix_len() == bind.prefix.max_prefix_len())
        .map(|bind| bind.prefix.addr())
}

/// Checks kernel settings that affect packets passed to the kernel.
pub(super) fn settings(config: &Config, tables: &TableSet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in &config.interfaces {
        findings.extend(interface_setting("rp_filter", name).map(|value| rp_filter(name, value)));
    }
    if let Some(value) = net_setting("ipv4/ip_forward") {
        findings.push(ip_forward(value));
    }
    let count = backends(tables).collect::<BTreeSet<_>>().len() as i64;
    if let Some(limit) = net_setting("ipv4/neigh/default/gc_thresh3") {
        findings.push(neighbour_room(count, limit));
    }
    findings
}

fn rp_filter(name: &str, value: i64) -> Finding {
    const CHECK: &str = "rp_filter";
    if value != 1 {
        return Finding::ok(CHECK, format!("not strict on {name}"));
    }
    Finding::warning(
        CHECK,
        format!(
            "rp_filter is strict on {name}: the kernel drops packets passed to it (a probe's answer, a \
             ping) if the route back uses another interface"
        ),
        format!(
            "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2   (loose)"
        ),
    )
}

fn ip_forward(value: i64) -> Finding {
    const CHECK: &str = "ip_forward";
    if value == 0 {
        return Finding::ok(CHECK, "off");
    }
    Finding::warning(
        CHECK,
        "ip_forward is on: a VIP packet without a bind is routed back to the router, which sends it here \
         again, until its TTL expires",
        "sysctl -w net.ipv4.ip_forward=0   (or add a blackhole route for each VIP)",
    )
}

fn neighbour_room(backends: i64, limit: i64) -> Finding {
    const CHECK: &str = "neighbour_table";
    if backends * 2 < limit {
        return Finding::ok(CHECK, format!("room for {limit} neighbours"));
    }
    Finding::warning(
        CHECK,
        format!("{backends} backends, but the kernel keeps at most {limit} neighbours"),
        format!("sysctl -w net.ipv4.neigh.default.gc_thresh3={}", backends * 4),
    )
}

/// Checks that depend on the next hops of backends and VIPs.
pub(super) fn next_hops(config: &Config, tables: &TableSet, ways: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(sources(config).map(|source| outer_source(source, ways)));
    findings.extend(local_vips(tables, ways));
    findings.extend(neighbours(tables, ways));
    findings.extend(mtu(tables, ways));
    findings
}

/// Returns the configured source addresses of the tunnel.
pub(super) fn sources(config: &Config) -> impl Iterator<Item = IpAddr> {
    let v4 = config.options.outer_source.map(IpAddr::from);
    v4.into_iter().chain(config.options.outer_source_ipv6.map(IpAddr::from))
}

fn outer_source(source: IpAddr, ways: &Snapshot) -> Finding {
    const CHECK: &str = "outer_source";
    if let Some(Err(Unresolved::Local)) = ways.get(&source) {
        return Finding::ok(CHECK, format!("{source} is this machine's"));
    }
    let family = if source.is_ipv4() { "ipv4" } else { "ipv6" };
    Finding::problem(
        CHECK,
        format!(
            "`outer_source_{family} = \"{source}\"` is not an address of this machine: backends may \
             refuse its packets, and ICMP errors go elsewhere"
        ),
        "Set one of its own addresses (`ip -brief address`), or remove the key.",
    )
}

fn local_vips(tables: &TableSet, ways: &Snapshot) -> Vec<Finding> {
    const CHECK: &str = "vip";
    let vips: BTreeSet<IpAddr> = vips(tables).collect();
    let is_local = |vip: &&IpAddr| matches!(ways.get(*vip), Some(Err(Unresolved::Local)));
    let local: Vec<&IpAddr> = vips.iter().filter(is_local).collect();
    if local.is_empty() {
        return vec![Finding::ok(
            CHECK,
            format!("none of {} VIPs is an address of this machine", vips.len()),
        )];
    }
    let one = |vip: &&IpAddr| {
        Finding::problem(
            CHECK,
            format!(
                "{vip} is an address of this machine, so its kernel answers VIP packets and resets live \
                 connections"
            ),
            format!("ip address del {vip} dev …   (route it to this machine instead)"),
        )
    };
    local.iter().map(one).collect()
}

/// Checks whether this kernel may answer "unreachable" for a VIP.
///
/// It may if it has neither a route to the VIP nor a rule that drops its packets silently: with IPv4
/// where it forwards, with IPv6 always.
pub(super) fn answers(
    config: &Config,
    tables: &TableSet,
    ways: &Snapshot,
    rules: &BTreeSet<Rule>,
) -> Finding {
    const CHECK: &str = "kernel_answers";
    let forwards = net_setting("ipv4/ip_forward").is_some_and(|value| value != 0);
    let is_dropped = |name: &String, vip: IpAddr| {
        rules.iter().any(|(interface, prefix)| interface == name && prefix.contains(&vip))
    };
    let open = vips(tables)
        .filter(|vip| vip.is_ipv6() || forwards)
        .filter(|vip| matches!(ways.get(vip), Some(Err(Unresolved::NoRoute(_)))))
        .flat_map(|vip| config.interfaces.iter().map(move |name| (name, vip)))
        .find(|(name, vip)| !is_dropped(name, *vip));
    let Some((name, vip)) = open else {
        return Finding::ok(CHECK, "for no VIP");
    };
    let family = if vip.is_ipv6() { "ip -6" } else { "ip" };
    Finding::warning(
        CHECK,
        format!(
            "no route to {vip}, so this kernel answers \"unreachable\" for packets passed to it (all of \
             them while no program is attached)"
        ),
        format!(
            "{family} rule add iif {name} to {vip} blackhole priority 1000   (the daemon does so for \
             announced prefixes)"
        ),
    )
}

fn neighbours(tables: &TableSet, ways: &Snapshot) -> Vec<Finding> {
    const CHECK: &str = "next_hop";
    let all: BTreeSet<IpAddr> = backends(tables).collect();
    let mut findings = Vec::new();
    for address in &all {
        let (why, remedy) = match ways.get(address) {
            Some(Ok(_)) => continue,
            Some(Err(why)) => {
                let remedy = match why {
                    Unresolved::NoRoute(_) => format!("ip route get {address}; add a route."),
                    Unresolved::Local => {
                        "A director cannot be its own backend: set the backend's own address."
                            .into()
                    }
                    Unresolved::LinkDown { interface } => {
                        let name = interface_name(*interface);
                        format!("ip link set {} up", name.unwrap_or_else(|| "…".into()))
                    }
                    Unresolved::NoAnswer { address, .. } => {
                        format!("Check that it is up and on this segment: ip neigh show {address}")
                    }
                    // Its text has the remedy.
                    Unresolved::CannotTransmit { interface, .. } => {
                        format!("Look at `ip -details link show {interface}`.")
                    }
                    Unresolved::NotEthernet { .. } | Unresolved::Kernel(_) => {
                        format!("See `ip route get {address}`.")
                    }
                };
                (why.to_string(), remedy)
            }
            None => ("no answer from the kernel in time".to_owned(), "Try again.".to_owned()),
        };
        let found = format!("no next hop for backend {address}: {why}");
        findings.push(Finding::problem(CHECK, found, remedy));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("known for each of {} backends", all.len())));
    }
    findings
}

/// Returns the tunnel overhead of this table, in bytes.
fn overhead(table: &Table) -> u32 {
    let listed = u32::from(table.hops).min(table.usable() as u32).saturating_sub(1);
    let listed = if table.has_alternative() { 2 * listed + 1 } else { listed };
    let v6 = table.backends.iter().any(|backend| backend.address.is_ipv6());
    if v6 { 56 + 16 * listed } else { 36 + 4 * listed }
}

fn mtu(tables: &TableSet, ways: &Snapshot) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    // The smallest MTU of each interface, and the largest need.
    let mut worst: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for table in &tables.tables {
        let needed = CLIENT_MTU + overhead(table);
        for backend in &table.backends {
            if let Some(Ok(hop)) = ways.get(&backend.address) {
                let entry = worst.entry(hop.interface).or_insert((hop.mtu, needed));
                *entry = (entry.0.min(hop.mtu), entry.1.max(needed));
            }
        }
    }
    let one = |(interface, (mtu, needed)): (u32, (u32, u32))| {
        let name = interface_name(interface).unwrap_or_else(|| format!("interface {interface}"));
        if mtu >= needed {
            return Finding::ok(CHECK, format!("{mtu} on {name}: room for a full-sized packet"));
        }
        Finding::warning(
            CHECK,
            format!(
                "{mtu} on {name}, but a client's full-sized packet needs {needed} in the tunnel: the \
                 director answers \"too big\", and clients that do not get the answer hang. Backends \
                 with `mss_clamp = true` avoid this for TCP"
            ),
            format!(
                "Set `mss_clamp = true` on every backend, or `ip link set {name} mtu {needed}` here and \
                 on all machines up to the backends"
            ),
        )
    };
    worst.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use glb_host::doctor::Level;

    use super::*;

    #[test]
    fn harmful_settings_get_a_warning() {
        assert_eq!(rp_filter("e", 1).level, Level::Warning);
        assert_eq!(rp_filter("e", 2).level, Level::Ok);
        assert_eq!(ip_forward(1).level, Level::Warning);
        assert_eq!(ip_forward(0).level, Level::Ok);
        assert_eq!(neighbour_room(600, 1024).level, Level::Warning);
        assert_eq!(neighbour_room(100, 1024).level, Level::Ok);
    }
}
