//! What would otherwise cost an afternoon: the settings of this machine that make tunnelled packets
//! or their answers vanish, each with its remedy.

mod firewall;
mod listeners;
mod machine;

use std::net::IpAddr;

pub use glb_host::doctor::{Finding, Level};

use crate::config::Config;

/// Looks at this machine, in this thread's network namespace. Changes nothing.
#[must_use]
pub fn examine(config: &Config) -> Vec<Finding> {
    let addresses = machine::addresses();
    let mut findings = Vec::new();
    findings.extend(machine::program(config));
    findings.extend(machine::own(config));
    findings.extend(machine::loopback(&addresses));
    findings.extend(machine::vips(config, &addresses));
    findings.extend(machine::duplicates(config));
    findings.extend(machine::rp_filter(config));
    findings.extend(machine::arp(config));
    findings.extend(machine::mtu(config));
    findings.extend(firewall::conntrack());
    findings.extend(config.vips.iter().map(|vip: &IpAddr| listeners::listener(*vip)));
    findings
}
