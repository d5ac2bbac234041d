//! Checks of this process's permissions before it begins: the kernel's own error comes late, and
//! names neither the capability nor the remedy.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// The process lacks a capability.
#[derive(Debug, thiserror::Error)]
#[error(
    "not permitted: this process lacks {}.\n  \
     Run it as root, or grant them with setpriv, systemd's AmbientCapabilities=, or setcap.",
    missing.join(" and ")
)]
pub struct MissingCapabilities {
    /// The names of the missing capabilities.
    pub missing: Vec<&'static str>,
}

/// Bits from <linux/capability.h>. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON; without
/// CAP_PERFMON the verifier forbids arithmetic on packet pointers.
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Checks that this process may load and attach XDP programs.
///
/// # Errors
/// Names the missing capabilities. If the kernel does not tell them, the check passes.
pub fn check_capabilities() -> Result<(), MissingCapabilities> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let missing = missing(&status);
    if missing.is_empty() { Ok(()) } else { Err(MissingCapabilities { missing }) }
}

/// Returns the mode of a file that all users can read, and `None` for others. It is for files with
/// keys.
#[must_use]
pub fn world_readable_mode(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & 0o004 != 0).then_some(mode)
}

/// Raises the soft limit of open files to the hard limit.
///
/// Maps, clients and pinned objects take a descriptor each; the usual limit is 1,024.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

fn missing(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(Ok(effective)) = effective.map(|hex| u64::from_str_radix(hex.trim(), 16)) else {
        return Vec::new();
    };
    let needed = [
        (BPF | SYS_ADMIN, "CAP_BPF"),
        (NET_ADMIN, "CAP_NET_ADMIN"),
        (PERFMON | SYS_ADMIN, "CAP_PERFMON"),
    ];
    needed.iter().filter(|(any, _)| effective & any == 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        for (effective, names) in [
            ("0000000000000000", vec!["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
            ("0000000000001000", vec!["CAP_BPF", "CAP_PERFMON"]),
            ("000000c000000000", vec!["CAP_NET_ADMIN"]),
            ("0000008000001000", vec!["CAP_PERFMON"]),
            ("000000c000001000", vec![]),
            ("0000000000201000", vec![]),
            ("000001ffffffffff", vec![]),
        ] {
            let status = format!("CapPrm:\t0000000000000000\nCapEff:\t{effective}\n");
            assert_eq!(missing(&status), names, "{effective}");
        }
        assert!(missing("").is_empty());
    }
}
