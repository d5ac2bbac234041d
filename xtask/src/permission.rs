//! Checks that this process may load BPF programs and make network namespaces, before any other
//! work.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::process;

/// The needed capabilities and their bits in the kernel's masks.
const NEEDED: [(&str, u32); 5] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Fails unless BPF programs can be loaded and network namespaces made.
///
/// # Errors
/// When a permission is missing; the message names it and the remedy.
pub(crate) fn check(command: &str) -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let lacking = lacking(&status);
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        if nix::unistd::geteuid().is_root() {
            bail!(
                "root lacks {lacking}. This looks like a container: start it with `--privileged`, or \
                 run `./x {command}` outside."
            );
        }
        bail!(
            "`./x {command}` loads BPF programs and makes network namespaces, which needs root \
             ({lacking} missing).\n  Run:  sudo ./x {command}"
        );
    }
    // A sandbox (seccomp, AppArmor) can refuse despite all capabilities.
    let probe = "mount -t bpf bpf /mnt";
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount", "sh", "-c", probe]).stdin(Stdio::null());
    let shown = process::shown(&unshare);
    match unshare.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!(
            "cannot make a network namespace with a BPF file system: `{shown}` failed although the \
             capabilities suffice: {}\n  This looks like a sandbox (seccomp, AppArmor): run \
             `./x {command}` outside.",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(error) => bail!("cannot run `{shown}`: {error}. Install util-linux."),
    }
}

/// The needed capabilities that this process lacks.
fn lacking(status: &str) -> Vec<&'static str> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    NEEDED.iter().filter(|(_, bit)| mask >> bit & 1 == 0).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_mask() {
        assert_eq!(lacking("Name:\tx\nCapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(
            lacking("CapEff:\t00000000a80425fb\n"),
            ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert_eq!(lacking("").len(), NEEDED.len());
    }
}
