//! The parts that the `doctor` commands of all programs share: findings with remedies, and kernel
//! settings.

use std::fs;

use serde::Serialize;

/// How severe a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but may surprise.
    Warning,
    /// Packets are lost, or connections break.
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's stable name.
    pub check: &'static str,
    /// The severity.
    pub level: Level,
    /// The observation.
    pub found: String,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// Creates a finding without a problem.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), remedy: None }
    }

    /// Creates a warning.
    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { check, level: Level::Warning, found, remedy }
    }

    /// Creates a problem.
    pub fn problem(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, found, remedy) }
    }
}

/// Returns whether one of the findings is a problem.
#[must_use]
pub fn has_problem(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Problem)
}

/// Formats the findings for people.
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

/// Reads a kernel setting of this thread's network namespace; `None` if the kernel lacks it.
#[must_use]
pub fn net_setting(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}

/// Reads an interface's setting by the kernel's rule: the greater of the values of `all` and of the
/// interface.
#[must_use]
pub fn interface_setting(name: &str, interface: &str) -> Option<i64> {
    let of = |interface: &str| net_setting(&format!("ipv4/conf/{interface}/{name}"));
    Some(of("all")?.max(of(interface)?))
}

/// Returns whether an interface of this thread's network namespace has this address.
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
