//! What would otherwise cost an afternoon: the settings of this machine that make tunnelled packets
//! or their answers vanish, each with its remedy.

mod firewall;
mod listeners;
mod machine;

use std::net::IpAddr;

use serde::Serialize;

use crate::config::Config;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and may surprise.
    Warning,
    /// Packets are lost, or connections break.
    Problem,
}

/// The answer of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's stable name.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), remedy: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { check, level: Level::Warning, found, remedy }
    }

    fn problem(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, found, remedy) }
    }
}

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
