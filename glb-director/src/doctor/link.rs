//! The interfaces that VIP packets arrive on.

use glb_host::{
    bpffs::PinFolder,
    ethtool::{self, Channels},
    generations,
    xdp_link::{self, Mode},
};

use super::Finding;
use crate::config::Config;

/// Drivers that are known to have native XDP, transmission included.
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
        // Of an interface that is not there nothing else can be said.
        let there = xdp_link::interface_index(name).is_ok();
        findings.push(program);
        if !there {
            continue;
        }
        let driver = ethtool::driver(name).ok();
        findings.push(driver_finding(name, driver.as_deref()));
        if let Ok(channels) = ethtool::channels(name) {
            findings.push(queues(name, channels, processors()));
        }
        if let Ok(on) = ethtool::offloads(name) {
            findings.extend(offloads(name, &on));
        }
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
        Err(error) => return Finding::problem(CHECK, error.to_string(), "Mend `interfaces`."),
    };
    let ours = pins.and_then(|pins| {
        xdp_link::program_behind(&generations::link_pin(pins, name)).ok().flatten()
    });
    let run = format!("glb-director run --config {}", config.path.display());
    match attached {
        None => Finding::problem(
            CHECK,
            format!("nothing is attached to {name}: VIP packets are not forwarded"),
            format!("Start it: {run}"),
        ),
        Some((_, id)) if id != ours => Finding::problem(
            CHECK,
            format!("another XDP program is on {name}: VIP packets are not forwarded"),
            format!("Look: bpftool net show dev {name}   Take it off, then start ours: {run}"),
        ),
        Some((Mode::Generic, _)) => Finding::warning(
            CHECK,
            format!("the program is on {name} in generic mode, which is slow"),
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
            format!("{driver} on {name} is not known here to have native XDP"),
            "If the start says that the driver refuses it, use another interface; mode = \"generic\" \
             works everywhere and is slow.",
        ),
        None => Finding::warning(
            CHECK,
            format!("{name} does not say which driver it has"),
            "If the start says that the driver refuses native XDP, use another interface.",
        ),
    }
}

fn queues(name: &str, channels: Channels, processors: usize) -> Finding {
    const CHECK: &str = "queues";
    let (receive, wanted) = (channels.receive, (processors as u32).min(channels.maximum));
    let found = format!("{name} receives on {receive} queues, for {processors} processors");
    if receive >= wanted {
        return Finding::ok(CHECK, found);
    }
    let what = if channels.combined { "combined" } else { "rx" };
    Finding::warning(
        CHECK,
        format!("{found}; it could on {}", channels.maximum),
        format!("ethtool -L {name} {what} {wanted}   (each queue is one processor's work)"),
    )
}

/// Offloads that join packets before XDP sees them, or make a driver refuse it.
fn offloads(name: &str, on: &[String]) -> Vec<Finding> {
    const CHECK: &str = "offloads";
    let bad: Vec<&str> = [("rx-lro", "lro"), ("rx-gro-hw", "rx-gro-hw")]
        .into_iter()
        .filter(|(feature, _)| on.iter().any(|on| on == feature))
        .map(|(_, switch)| switch)
        .collect();
    if bad.is_empty() {
        return vec![Finding::ok(CHECK, format!("{name} joins no packets (LRO, GRO-HW)"))];
    }
    let one = |switch: &&str| {
        Finding::problem(
            CHECK,
            format!("{switch} is on: {name} joins packets before they are forwarded"),
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
    fn queues_are_compared_with_processors_and_with_what_there_can_be() {
        let channels = |receive, maximum| Channels { receive, maximum, combined: true };
        assert_eq!(queues("e", channels(8, 64), 8).level, Level::Ok);
        assert_eq!(queues("e", channels(1, 1), 8).level, Level::Ok);
        let found = queues("e", channels(2, 64), 8);
        assert_eq!(found.level, Level::Warning);
        assert!(found.remedy.unwrap().contains("ethtool -L e combined 8"));
        let rx = Channels { combined: false, ..channels(1, 4) };
        assert!(queues("e", rx, 8).remedy.unwrap().contains("rx 4"));
    }

    #[test]
    fn offloads_that_join_packets_are_problems() {
        let on = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let fine = offloads("e", &on(&["rx-checksum", "rx-gro"]));
        assert!(fine.len() == 1 && fine[0].level == Level::Ok);
        let found = offloads("e", &on(&["rx-lro", "rx-gro-hw"]));
        assert_eq!(found.len(), 2);
        assert!(found[0].remedy.as_ref().unwrap().contains("ethtool -K e lro off"));
        assert!(found.iter().all(|finding| finding.level == Level::Problem));
    }

    #[test]
    fn drivers_that_are_not_known_are_warned_of() {
        assert_eq!(driver_finding("e", Some("veth")).level, Level::Ok);
        assert_eq!(driver_finding("e", Some("r8169")).level, Level::Warning);
        assert_eq!(driver_finding("e", None).level, Level::Warning);
    }
}
