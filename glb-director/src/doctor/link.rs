//! Checks of the interfaces: program, driver, queues, offloads, veth peers and dropped packets.

use glb_host::{
    bpffs::PinFolder,
    ethtool::{self, Channels},
    generations,
    xdp_link::{self, Mode},
};

use super::{Finding, veth};
use crate::config::Config;

/// Drivers with native XDP, transmission included.
const NATIVE: [&str; 25] = [
    "amazon",
    "atlantic",
    "bnxt_en",
    "ena",
    "enetc",
    "fsl_dpaa2_eth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "sfc",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pins = PinFolder::open(&config.bpffs_dir, crate::OWNER).ok().flatten();
    for name in &config.interfaces {
        let program = program(config, name, pins.as_ref());
        let there = xdp_link::interface_index(name).is_ok();
        findings.push(program);
        if !there {
            continue;
        }
        let driver = ethtool::driver(name).ok();
        findings.push(driver_finding(name, driver.as_deref()));
        if let Ok(channels) = ethtool::channels(name) {
            findings.push(queues(name, channels, processors(), driver.as_deref()));
        }
        if let Ok(on) = ethtool::offloads(name) {
            findings.extend(offloads(name, &on));
        }
        findings.extend(veth::peer(name));
        findings.extend(veth::drops(name));
    }
    findings
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn program(config: &Config, name: &str, pins: Option<&PinFolder>) -> Finding {
    const CHECK: &str = "program";
    let attached = match xdp_link::attached(name) {
        Ok(attached) => attached,
        Err(error) => return Finding::problem(CHECK, error.to_string(), "Correct `interfaces`."),
    };
    let ours = pins.and_then(|pins| {
        xdp_link::program_behind(&generations::link_pin(pins, name)).ok().flatten()
    });
    let run = format!("glb-director run --config {}", config.path.display());
    match attached {
        None => Finding::problem(
            CHECK,
            format!("no program is attached to {name}, so VIP packets are not forwarded"),
            format!("Start the daemon: {run}"),
        ),
        Some((_, id)) if id != ours => Finding::problem(
            CHECK,
            format!("another XDP program is attached to {name}, so VIP packets are not forwarded"),
            format!(
                "Find it with `bpftool net show dev {name}`, detach it with `ip link set {name} xdp \
                 off`, then start the daemon: {run}"
            ),
        ),
        Some((Mode::Generic, _)) => Finding::warning(
            CHECK,
            format!("the program is attached to {name} in generic mode, which is slow"),
            "Use an interface whose driver has native XDP.",
        ),
        Some((Mode::Native, _)) => Finding::ok(CHECK, format!("native on {name}")),
    }
}

fn driver_finding(name: &str, driver: Option<&str>) -> Finding {
    const CHECK: &str = "driver";
    match driver {
        Some(driver) if NATIVE.contains(&driver) => {
            Finding::ok(CHECK, format!("{driver} on {name} has native XDP"))
        }
        Some(driver) => Finding::warning(
            CHECK,
            format!("driver {driver} of {name} is not in the list of drivers with native XDP"),
            "If the daemon cannot attach, use another interface, or `mode = \"generic\"`, which works \
             everywhere and is slow.",
        ),
        None => Finding::warning(
            CHECK,
            format!("the driver of {name} is unknown"),
            "If the daemon cannot attach, use another interface.",
        ),
    }
}

/// Returns the largest number of queues with which the driver accepts XDP and transmits without locks.
///
/// ena uses a second queue for each XDP queue, so it refuses XDP above half of its maximum. virtio_net
/// needs one queue pair for each processor beside those in use; with fewer it transmits under a lock.
fn xdp_queue_limit(driver: Option<&str>, maximum: u32, processors: u32) -> u32 {
    match driver {
        Some("ena") => (maximum / 2).max(1),
        Some("virtio_net") if maximum > processors => maximum - processors,
        _ => maximum,
    }
}

fn queues(name: &str, channels: Channels, processors: usize, driver: Option<&str>) -> Finding {
    const CHECK: &str = "queues";
    let (receive, processors) = (channels.receive, processors as u32);
    let limit = xdp_queue_limit(driver, channels.maximum, processors);
    let wanted = processors.min(limit);
    let found = format!("{name} receives on {receive} queues, for {processors} processors");
    if receive > limit {
        let what = if channels.combined { "combined" } else { "rx" };
        return Finding::warning(
            CHECK,
            format!(
                "{found}; with XDP the driver {} supports {limit}",
                driver.unwrap_or("of the interface")
            ),
            format!("ethtool -L {name} {what} {wanted}"),
        );
    }
    if receive >= wanted {
        return Finding::ok(CHECK, found);
    }
    let what = if channels.combined { "combined" } else { "rx" };
    Finding::warning(
        CHECK,
        format!("{found}; with XDP it supports {limit}"),
        format!("ethtool -L {name} {what} {wanted}   (one processor serves each queue)"),
    )
}

/// Checks offloads that merge packets before XDP, or that make a driver refuse XDP.
fn offloads(name: &str, on: &[String]) -> Vec<Finding> {
    const CHECK: &str = "offloads";
    let bad: Vec<&str> = [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")]
        .into_iter()
        .filter(|(feature, _)| on.iter().any(|on| on == feature))
        .map(|(_, switch)| switch)
        .collect();
    if bad.is_empty() {
        return vec![Finding::ok(CHECK, format!("{name} merges no packets (LRO, GRO-HW)"))];
    }
    let one = |switch: &&str| {
        Finding::problem(
            CHECK,
            format!("{switch} is on: {name} merges packets before XDP sees them"),
            format!("ethtool -K {name} {switch} off"),
        )
    };
    bad.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use glb_host::doctor::Level;

    use super::*;

    #[test]
    fn queue_advice_follows_processors_and_the_maximum() {
        let channels = |receive, maximum| Channels { receive, maximum, combined: true };
        assert_eq!(queues("e", channels(8, 64), 8, None).level, Level::Ok);
        assert_eq!(queues("e", channels(1, 1), 8, None).level, Level::Ok);
        let found = queues("e", channels(2, 64), 8, None);
        assert_eq!(found.level, Level::Warning);
        assert!(found.remedy.unwrap().contains("ethtool -L e combined 8"));
        let rx = Channels { combined: false, ..channels(1, 4) };
        assert!(queues("e", rx, 8, None).remedy.unwrap().contains("rx 4"));
    }

    #[test]
    fn queue_advice_respects_the_drivers_limit_with_xdp() {
        let channels = |receive, maximum| Channels { receive, maximum, combined: true };
        let advice = |channels, driver| queues("e", channels, 8, Some(driver)).remedy;
        // ena: half of the queues.
        assert!(advice(channels(1, 8), "ena").unwrap().contains("combined 4"));
        assert!(advice(channels(8, 8), "ena").unwrap().contains("combined 4"));
        assert_eq!(advice(channels(4, 8), "ena"), None);
        // virtio_net: one more pair for each processor.
        assert!(advice(channels(1, 12), "virtio_net").unwrap().contains("combined 4"));
        assert_eq!(advice(channels(4, 12), "virtio_net"), None);
        assert!(advice(channels(1, 32), "virtio_net").unwrap().contains("combined 8"));
    }

    #[test]
    fn offloads_that_merge_packets_are_problems() {
        let on = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let fine = offloads("e", &on(&["rx-checksum", "rx-gro"]));
        assert!(fine.len() == 1 && fine[0].level == Level::Ok);
        let found = offloads("e", &on(&["rx-lro", "rx-gro-hw"]));
        assert_eq!(found.len(), 2);
        assert!(found[0].remedy.as_ref().unwrap().contains("ethtool -K e lro off"));
        assert!(found.iter().all(|finding| finding.level == Level::Problem));
    }

    #[test]
    fn unlisted_drivers_get_a_warning() {
        assert_eq!(driver_finding("e", Some("veth")).level, Level::Ok);
        assert_eq!(driver_finding("e", Some("r8169")).level, Level::Warning);
        assert_eq!(driver_finding("e", None).level, Level::Warning);
    }
}
