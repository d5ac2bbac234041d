//! Whether this process may do what a daemon does, asked before anything is begun: the kernel's
//! own answer comes late and names neither the capability nor the remedy.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// A capability is missing.
#[derive(Debug, thiserror::Error)]
#[error(
    "not permitted: this process lacks {}.\n  \
     Run it as root, or with these: setpriv, systemd's AmbientCapabilities=, or setcap.",
    missing.join(" and ")
)]
pub struct MissingCapabilities {
    /// Names of the capabilities.
    pub missing: Vec<&'static str>,
}

/// Numbers from <linux/capability.h>. CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON; without the
/// latter the verifier allows no arithmetic with packet pointers.
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Asks whether this process may load XDP programs and attach them.
///
/// # Errors
/// Names what is missing. Where the kernel does not say, its later answers have to do.
pub fn check_capabilities() -> Result<(), MissingCapabilities> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let missing = missing(&status);
    if missing.is_empty() { Ok(()) } else { Err(MissingCapabilities { missing }) }
}

/// The mode of a file that everybody on this machine can read; nothing if they cannot. For files with
/// keys.
#[must_use]
pub fn world_readable_mode(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & 0o004 != 0).then_some(mode)
}

/// Lets this process have as many descriptors as it may: each table's maps, each client and each pinned
/// object takes one, and the usual 1,024 are for programs that know no better.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
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
    fn what_is_missing_is_named() {
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
