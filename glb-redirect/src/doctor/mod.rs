//! `glb-redirect doctor`: finds settings of this host that lose tunnelled packets or replies to them,
//! each with its remedy.
//!
//! To add a check: write a function that returns [`Finding`]s into the file of its subject, and call it
//! in [`examine`].

mod firewall;
mod host;
mod listeners;

use std::net::IpAddr;

pub use glb_host::doctor::{Finding, Level};

use crate::config::Config;

/// Examines this host in this thread's network namespace. Changes nothing.
#[must_use]
pub fn examine(config: &Config) -> Vec<Finding> {
    let addresses = host::addresses();
    let mut findings = Vec::new();
    findings.extend(host::program(config));
    findings.extend(host::tunnel_ends(config));
    findings.extend(host::loopback(&addresses));
    findings.extend(host::vips(config, &addresses));
    findings.extend(host::duplicates(config));
    findings.extend(host::rp_filter(config));
    findings.extend(host::arp(config));
    findings.extend(host::mtu(config));
    findings.extend(firewall::conntrack());
    findings.extend(config.vips.iter().map(|vip: &IpAddr| listeners::listener(*vip)));
    findings
}
