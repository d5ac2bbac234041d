//! Checks of interfaces, addresses and sysctls.

use std::{collections::BTreeSet, fs, net::IpAddr};

pub(super) use glb_host::doctor::net_setting;
use glb_host::{
    bpffs::PinFolder,
    doctor::interface_setting,
    tc_egress,
    xdp_link::{self, Mode},
};
use nix::net::if_::InterfaceFlags;

use super::Finding;
use crate::{
    config::Config, daemon::CLAMPS, local_addresses, program_data::mss_limits, status::Attachment,
};

/// An address of this host, or an interface without one.
pub(super) struct LocalAddress {
    interface: String,
    up: bool,
    address: Option<IpAddr>,
}

pub(super) fn addresses() -> Vec<LocalAddress> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.map(|entry| {
        let address = entry.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.and_then(|a| a.as_sockaddr_in6()).map(|v6| IpAddr::V6(v6.ip()));
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        LocalAddress { interface: entry.interface_name, up, address: v4.or(v6) }
    })
    .collect()
}

/// Checks that this backend's program is attached to each interface, and in which mode.
pub(super) fn program(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "program";
    let pins = PinFolder::open(&config.bpffs_dir, crate::PIN_OWNER).ok().flatten();
    let of = |name: &String| {
        let run = format!("glb-redirect run --config {}", config.path.display());
        match Attachment::of(name, pins.as_ref()) {
            Err(error) => Finding::problem(
                CHECK,
                error.to_string(),
                "Correct `interfaces` in the configuration.",
            ),
            Ok(Attachment::Nothing) => Finding::problem(
                CHECK,
                format!("nothing is attached to {name}: tunnelled packets are not accepted"),
                format!("Start it: {run}"),
            ),
            Ok(Attachment::Foreign) => Finding::problem(
                CHECK,
                format!("another XDP program is on {name}: tunnelled packets are not accepted"),
                format!("Detach it: ip link set dev {name} xdp off   Then start ours: {run}"),
            ),
            Ok(Attachment::Own(Mode::Generic)) => Finding::warning(
                CHECK,
                format!("the program is on {name} in generic mode, which is slow"),
                "Use an interface whose driver has native XDP.",
            ),
            Ok(Attachment::Own(Mode::Native)) => Finding::ok(CHECK, format!("native on {name}")),
        }
    };
    config.interfaces.iter().map(of).collect()
}

/// Checks that the tunnel can end at an address of this host, and that `backends` names it.
pub(super) fn tunnel_ends(config: &Config) -> Option<Finding> {
    const CHECK: &str = "own_address";
    let own = local_addresses::tunnel_ends(config).ok()?;
    let list = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if own.is_empty() {
        let found = "this host has no address that directors can send to";
        return Some(Finding::problem(
            CHECK,
            found,
            "Give an interface an address: ip address add ADDRESS/PREFIX dev INTERFACE",
        ));
    }
    Some(if config.backends.is_disjoint(&own) {
        Finding::warning(
            CHECK,
            format!("none of this host's addresses ({list}) is in `backends`"),
            "Use the same list of backends on all backends; it includes this one.",
        )
    } else {
        Finding::ok(CHECK, format!("the tunnel ends at {list}"))
    })
}

pub(super) fn loopback(addresses: &[LocalAddress]) -> Option<Finding> {
    let lo = addresses.iter().find(|local| local.interface == "lo");
    match lo {
        Some(lo) if lo.up => None,
        _ => Some(Finding::problem(
            "loopback",
            "lo is down: the kernel accepts no packet for an address on it",
            "ip link set lo up",
        )),
    }
}

/// Checks that each VIP is an address of this host, and on lo.
pub(super) fn vips(config: &Config, addresses: &[LocalAddress]) -> Vec<Finding> {
    const CHECK: &str = "vip";
    let of = |vip: &IpAddr| {
        let bits = if vip.is_ipv4() { 32 } else { 128 };
        let add = if vip.is_ipv4() { "" } else { " nodad" };
        match addresses.iter().find(|local| local.address == Some(*vip)) {
            None => Finding::problem(
                CHECK,
                format!("{vip} is not an address of this host: its packets are not accepted"),
                format!(
                    "ip address add {vip}/{bits} dev lo{add}   (`glb-redirect run` does it unless \
                     `vips_on_lo = false`)"
                ),
            ),
            Some(local) if local.interface != "lo" => Finding::warning(
                CHECK,
                format!(
                    "{vip} is on {}, not on lo: this host may answer ARP requests for it",
                    local.interface
                ),
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

/// Checks that duplicate address detection does not block an IPv6 VIP.
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
                "{vip} on {name} waits for duplicate address detection or failed it, because every \
                 backend has it: the kernel does not use it"
            ),
            format!("ip address del {vip} dev {name}; ip address add {vip}/128 dev lo nodad"),
        ))
    };
    table.lines().filter_map(bad).collect()
}

/// Checks rp_filter. Clients' packets arrive by the tunnel's interface, but the route to a client may
/// leave by another one.
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

/// Checks that this host does not answer ARP requests for a VIP on a shared segment.
pub(super) fn arp(config: &Config) -> Vec<Finding> {
    if !config.vips.iter().any(IpAddr::is_ipv4) {
        return Vec::new();
    }
    let interfaces: BTreeSet<&String> =
        config.interfaces.iter().chain(config.mss.iter().flat_map(|mss| &mss.interfaces)).collect();
    let mut findings = Vec::new();
    for name in interfaces {
        for (check, least, found) in [
            ("arp_ignore", 1, "answers ARP requests for VIPs: routers may bypass the directors"),
            ("arp_announce", 2, "may announce a VIP as sender address of ARP requests"),
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

/// Checks that a client's full-sized packet fits into the tunnel, or that the MSS is lowered.
pub(super) fn mtu(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    const CLIENTS: u32 = 1500;
    let v6 = config.backends.iter().any(IpAddr::is_ipv6);
    let of = |name: &String| {
        let mtu = xdp_link::interface_mtu(name).ok()?;
        let Some(mss) = &config.mss else {
            // Without `mss`, the number of hops is unknown: two are usual.
            let needed = CLIENTS + if v6 { 72 } else { 40 };
            return Some(if mtu < needed {
                Finding::problem(
                    CHECK,
                    format!(
                        "{name} has an MTU of {mtu}, a full-sized packet needs {needed} in the tunnel, \
                         and `mss_clamp` is off: uploads hang"
                    ),
                    format!(
                        "ip link set {name} mtu {needed}, on all hosts of the path; or mss_clamp = true"
                    ),
                )
            } else {
                Finding::ok(CHECK, format!("{mtu} on {name}"))
            });
        };
        let limits = mss_limits(mss, config, mtu);
        let needed = CLIENTS + mss.overhead(v6);
        let clamps = Clamps::read(config, &mss.interfaces);
        Some(if mss.tunnel_mtu.unwrap_or(mtu) >= needed {
            Finding::ok(
                CHECK,
                format!("{mtu} on {name}: a full-sized packet fits with room for the tunnel"),
            )
        } else if clamps.missing.is_empty() {
            Finding::ok(
                CHECK,
                format!(
                    "{mtu} on {name}: clients are told an MSS of {} (IPv6: {}) by {}",
                    limits.v4,
                    limits.v6,
                    clamps.attached.join(", ")
                ),
            )
        } else {
            Finding::problem(
                CHECK,
                format!(
                    "{name} has an MTU of {mtu}, a full-sized packet needs {needed} in the tunnel, \
                     and the MSS is not lowered on {}: uploads hang",
                    clamps.missing.join(", ")
                ),
                format!(
                    "Start glb-redirect; if it runs, its log says why the MSS clamp is not attached \
                     (journalctl -u glb-redirect -g MSS). Or: ip link set {name} mtu {needed}, on \
                     all hosts of the path"
                ),
            )
        })
    };
    config.interfaces.iter().filter_map(of).collect()
}

/// Where the MSS clamp is attached, in words, and where it is missing.
struct Clamps {
    attached: Vec<String>,
    missing: Vec<String>,
}

impl Clamps {
    fn read(config: &Config, interfaces: &[String]) -> Self {
        let folder = config.bpffs_dir.join(CLAMPS);
        let mut clamps = Self { attached: Vec::new(), missing: Vec::new() };
        for name in interfaces {
            match tc_egress::attached(name, &folder) {
                Ok(Some(hook)) => clamps.attached.push(format!("a {} on {name}", hook.name())),
                Ok(None) => clamps.missing.push(name.clone()),
                Err(error) => clamps.missing.push(format!("{name} ({error})")),
            }
        }
        clamps
    }
}
