//! Interfaces, addresses and the kernel's settings.

use std::{collections::BTreeSet, fs, net::IpAddr};

pub(super) use glb_host::doctor::net_setting;
use glb_host::{
    bpffs::PinFolder,
    doctor::interface_setting,
    generations,
    xdp_link::{self, Mode},
};
use nix::net::if_::InterfaceFlags;

use super::Finding;
use crate::{config::Config, daemon::CLAMPS, image::mss_limits, local_addresses};

/// An address of this machine, or an interface without any.
pub(super) struct Local {
    interface: String,
    up: bool,
    address: Option<IpAddr>,
}

pub(super) fn addresses() -> Vec<Local> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.map(|entry| {
        let address = entry.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|v6| IpAddr::V6(v6.ip()));
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        Local { interface: entry.interface_name, up, address: v4.or(v6) }
    })
    .collect()
}

/// Whether our program is on each interface, and how.
pub(super) fn program(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "program";
    let pins = PinFolder::open(&config.pin, crate::OWNER).ok().flatten();
    let of = |name: &String| {
        let attached = match xdp_link::attached(name) {
            Ok(attached) => attached,
            Err(error) => return Finding::problem(CHECK, error.to_string(), "Mend `interfaces`."),
        };
        let ours = pins.as_ref().and_then(|pins| {
            xdp_link::program_behind(&generations::link_pin(pins, name)).ok().flatten()
        });
        let run = format!("glb-redirect run --config {}", config.path.display());
        match attached {
            None => Finding::problem(
                CHECK,
                format!("nothing is attached to {name}: tunnelled packets are not taken"),
                format!("Start it: {run}"),
            ),
            Some((_, id)) if id != ours => Finding::problem(
                CHECK,
                format!("another XDP program is on {name}: tunnelled packets are not taken"),
                format!("Take it off: ip link set dev {name} xdp off   Then start ours: {run}"),
            ),
            Some((Mode::Generic, _)) => Finding::warning(
                CHECK,
                format!("the program is on {name} in generic mode, which is slow"),
                "Use an interface whose driver has native XDP.",
            ),
            Some((Mode::Native, _)) => Finding::ok(CHECK, format!("native on {name}")),
        }
    };
    config.interfaces.iter().map(of).collect()
}

/// Whether there is an address that the tunnel can end at.
pub(super) fn own(config: &Config) -> Option<Finding> {
    const CHECK: &str = "own_address";
    let own = local_addresses::addresses(config).ok()?;
    let list = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if own.is_empty() {
        let found = "this machine has no address that directors could send to";
        return Some(Finding::problem(CHECK, found, "Give the interface an address."));
    }
    // Otherwise a table that names this machine is a surprise to its fellows.
    Some(if config.backends.is_disjoint(&own) {
        Finding::warning(
            CHECK,
            format!("none of this machine's addresses ({list}) is among `backends`"),
            "Use the same list of backends on all of them, this one included.",
        )
    } else {
        Finding::ok(CHECK, format!("the tunnel ends at {list}"))
    })
}

pub(super) fn loopback(addresses: &[Local]) -> Option<Finding> {
    let lo = addresses.iter().find(|local| local.interface == "lo");
    match lo {
        Some(lo) if lo.up => None,
        _ => Some(Finding::problem(
            "loopback",
            "lo is down: the kernel takes no packet for an address on it",
            "ip link set lo up",
        )),
    }
}

/// Whether each VIP is an address of this machine.
pub(super) fn vips(config: &Config, addresses: &[Local]) -> Vec<Finding> {
    const CHECK: &str = "vip";
    let of = |vip: &IpAddr| {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        let add = if vip.is_ipv4() { "" } else { " nodad" };
        match addresses.iter().find(|local| local.address == Some(*vip)) {
            None => Finding::problem(
                CHECK,
                format!("{vip} is not an address of this machine: its packets are not taken"),
                format!(
                    "ip address add {vip}/{bits} dev lo{add}   (`glb-redirect run` does it unless \
                     `vips_on_lo = false`)"
                ),
            ),
            Some(local) if local.interface != "lo" => Finding::warning(
                CHECK,
                format!("{vip} is on {}, not on lo: this machine may claim it", local.interface),
                format!(
                    "ip address del {vip}/{bits} dev {}; ip address add {vip}/{bits} dev lo{add}",
                    local.interface
                ),
            ),
            Some(_) => Finding::ok(CHECK, format!("{vip} is on lo")),
        }
    };
    config.vips.iter().map(of).collect()
}

/// Whether the kernel believes that another machine has an IPv6 VIP.
pub(super) fn duplicates(config: &Config) -> Vec<Finding> {
    // linux/if_addr.h
    const TENTATIVE: u32 = 0x40;
    const FAILED: u32 = 0x08;
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let bad = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
        let (vip, name) = (IpAddr::V6(address.into()), words.next()?);
        if !config.vips.contains(&vip) || flags & (TENTATIVE | FAILED) == 0 {
            return None;
        }
        Some(Finding::problem(
            "duplicate_address",
            format!(
                "{vip} on {name} waits for duplicate address detection or failed it: it is not \
                 used, since every backend has it"
            ),
            format!("ip address del {vip} dev {name}; ip address add {vip}/128 dev lo nodad"),
        ))
    };
    table.lines().filter_map(bad).collect()
}

/// Clients' packets come in by an interface that the route to them may not leave by.
pub(super) fn rp_filter(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "rp_filter";
    let has_v4 = config.vips.iter().any(IpAddr::is_ipv4);
    let interfaces = config.interfaces.iter().filter(|_| has_v4);
    let of = |name: &String| {
        Some(match interface_setting("rp_filter", name)? {
            1 => Finding::problem(
                CHECK,
                format!(
                    "rp_filter is strict on {name}: a client's packet is dropped if the route \
                     back to the client leaves by another interface"
                ),
                format!(
                    "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0   \
                     (2, loose, does too)"
                ),
            ),
            _ => Finding::ok(CHECK, format!("not strict on {name}")),
        })
    };
    interfaces.filter_map(of).collect()
}

/// Backends that share a segment must not claim the VIP there.
pub(super) fn arp(config: &Config) -> Vec<Finding> {
    if !config.vips.iter().any(IpAddr::is_ipv4) {
        return Vec::new();
    }
    let interfaces: BTreeSet<&String> =
        config.interfaces.iter().chain(config.mss.iter().flat_map(|mss| &mss.interfaces)).collect();
    let mut findings = Vec::new();
    for name in interfaces {
        for (check, least, found) in [
            ("arp_ignore", 1, "answers ARP requests for VIPs: clients may bypass the directors"),
            ("arp_announce", 2, "may name a VIP as its own in ARP requests"),
        ] {
            let Some(value) = interface_setting(check, name) else { continue };
            findings.push(if value < least {
                Finding::problem(
                    check,
                    format!("{check} is {value} on {name}, which {found}"),
                    format!("sysctl -w net.ipv4.conf.all.{check}={least}"),
                )
            } else {
                Finding::ok(check, format!("{value} on {name}"))
            });
        }
    }
    findings
}

/// Room for a client's full-sized packet with the tunnel's headers around it.
pub(super) fn mtu(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    const CLIENTS: u32 = 1500;
    let v6 = config.backends.iter().any(IpAddr::is_ipv6);
    let of = |name: &String| {
        let mtu = xdp_link::interface_mtu(name).ok()?;
        let Some(mss) = &config.mss else {
            // Without a statement about hops, the usual two.
            let needed = CLIENTS + if v6 { 72 } else { 40 };
            return Some(if mtu < needed {
                Finding::problem(
                    CHECK,
                    format!(
                        "{name} has an MTU of {mtu}, a full-sized packet in the tunnel needs \
                         {needed}, and `mss_clamp` is off: uploads hang"
                    ),
                    format!(
                        "ip link set {name} mtu {needed}, on all machines; or mss_clamp = true"
                    ),
                )
            } else {
                Finding::ok(CHECK, format!("{mtu} on {name}"))
            });
        };
        let limits = mss_limits(mss, config, mtu);
        let needed = CLIENTS + mss.overhead(v6);
        let missing: Vec<&str> = mss
            .interfaces
            .iter()
            .filter(|name| !config.pin.join(CLAMPS).join(name.as_str()).exists())
            .map(String::as_str)
            .collect();
        Some(if mss.tunnel_mtu.unwrap_or(mtu) >= needed {
            Finding::ok(CHECK, format!("{mtu} on {name}: room for a full-sized packet"))
        } else if missing.is_empty() {
            Finding::ok(
                CHECK,
                format!(
                    "{mtu} on {name}: clients are told an MSS of {} (IPv6: {})",
                    limits.v4, limits.v6
                ),
            )
        } else {
            Finding::problem(
                CHECK,
                format!(
                    "{name} has an MTU of {mtu}, a full-sized packet in the tunnel needs {needed}, \
                     and the MSS is not lowered on {}: uploads hang",
                    missing.join(", ")
                ),
                format!(
                    "Start glb-redirect (Linux 6.6 or newer lowers the MSS); or ip link set {name} \
                     mtu {needed}, on all machines"
                ),
            )
        })
    };
    config.interfaces.iter().filter_map(of).collect()
}
