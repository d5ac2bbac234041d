//! What the daemons' `doctor` commands have in common: findings with their remedies, and the kernel's
//! settings.

use std::fs;

use serde::Serialize;

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
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), remedy: None }
    }

    /// It works, and may surprise.
    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { check, level: Level::Warning, found, remedy }
    }

    /// Packets are lost, or connections break.
    pub fn problem(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, found, remedy) }
    }
}

/// Whether a finding is a problem.
#[must_use]
pub fn has_problem(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Problem)
}

/// The findings for people.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        text += &format!("{mark}  {}: {}\n", finding.check, finding.found);
        if let Some(remedy) = &finding.remedy {
            text += &format!("         -> {remedy}\n");
        }
    }
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    text += &match problems {
        0 => "no problem found\n".to_owned(),
        1 => "1 problem\n".to_owned(),
        n => format!("{n} problems\n"),
    };
    text
}

/// A kernel net_setting of this thread's network namespace; nothing if this kernel lacks it.
#[must_use]
pub fn net_setting(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}

/// The kernel's rule for settings of an interface: the interface_setting of `all` and the interface's own.
#[must_use]
pub fn interface_setting(name: &str, interface: &str) -> Option<i64> {
    let of = |interface: &str| net_setting(&format!("ipv4/conf/{interface}/{name}"));
    Some(of("all")?.max(of(interface)?))
}

/// Whether one of the interfaces of this thread's network namespace has this address.
#[must_use]
pub fn has_address(address: std::net::IpAddr) -> bool {
    let mut all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.any(|entry| {
        let own = entry.address.as_ref();
        let v4 = own.and_then(|own| own.as_sockaddr_in()).map(|v4| v4.ip().into());
        let v6 = own.and_then(|own| own.as_sockaddr_in6()).map(|v6| v6.ip().into());
        v4.or(v6) == Some(address)
    })
}
