//! The kernel itself.

use std::{fs, path::Path};

use glb_host::{doctor::net_setting, permission};

use super::Finding;

/// The first release that has everything the programs need (`bpf_xdp_load_bytes`, live frames).
const NEEDED: (u32, u32) = (5, 18);
/// From here on the memory of BPF objects is the cgroup's, not RLIMIT_MEMLOCK's.
const NO_MEMLOCK: (u32, u32) = (5, 11);

pub(super) fn examine() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let mut findings = vec![version(release.trim()), jit(net_setting("core/bpf_jit_enable"))];
    findings.extend(memlock(release.trim(), &limits));
    findings.push(if btf {
        Finding::ok("btf", "the kernel describes its types")
    } else {
        Finding::warning(
            "btf",
            "the kernel has no BTF (/sys/kernel/btf/vmlinux)",
            "Nothing here needs it; tools such as bpftool and bpftrace show less. Use a kernel with \
             CONFIG_DEBUG_INFO_BTF.",
        )
    });
    findings.push(match permission::check_capabilities() {
        Ok(()) => Finding::ok("capabilities", "programs may be loaded and attached"),
        Err(error) => {
            let text = error.to_string();
            let (found, remedy) = text.split_once('\n').unwrap_or((&text, "Run this as root."));
            Finding::warning("capabilities", format!("as this user: {found}"), remedy.trim())
        }
    });
    findings
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn version(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    match numbers(release) {
        Some(found) if found >= NEEDED => Finding::ok(CHECK, format!("Linux {release}")),
        Some(_) => Finding::problem(
            CHECK,
            format!("Linux {release} is too old"),
            format!("Linux {}.{} or newer is needed.", NEEDED.0, NEEDED.1),
        ),
        None => Finding::warning(
            CHECK,
            format!("the kernel's release {release:?} says no number"),
            format!("Linux {}.{} or newer is needed.", NEEDED.0, NEEDED.1),
        ),
    }
}

fn jit(setting: Option<i64>) -> Finding {
    const CHECK: &str = "jit";
    match setting {
        Some(0) => Finding::problem(
            CHECK,
            "BPF programs are interpreted, which is many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(2) => Finding::warning(
            CHECK,
            "each BPF program is dumped into the kernel's log",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(CHECK, "BPF programs are compiled"),
        // A kernel that always compiles need not have the switch, nor show it in each namespace.
        None => Finding::ok(CHECK, "this kernel (or namespace) has no switch for it"),
    }
}

fn memlock(release: &str, limits: &str) -> Option<Finding> {
    const CHECK: &str = "memlock";
    if numbers(release).is_none_or(|found| found >= NO_MEMLOCK) {
        return Some(Finding::ok(CHECK, "not needed from Linux 5.11 on"));
    }
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let soft = line.split_whitespace().next()?;
    Some(if soft == "unlimited" {
        Finding::ok(CHECK, "unlimited")
    } else {
        Finding::problem(
            CHECK,
            format!("this kernel counts maps as locked memory, and {soft} bytes are allowed"),
            "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
        )
    })
}

#[cfg(test)]
mod tests {
    use glb_host::doctor::Level;

    use super::*;

    #[test]
    fn each_fault_of_a_kernel_is_found() {
        assert_eq!(version("6.18.0-1-amd64").level, Level::Ok);
        assert_eq!(version("5.18.0").level, Level::Ok);
        assert_eq!(version("5.10.0-30-amd64").level, Level::Problem);
        assert_eq!(version("6").level, Level::Warning);
        assert_eq!(jit(Some(0)).level, Level::Problem);
        assert_eq!(jit(Some(1)).level, Level::Ok);
        assert_eq!(jit(Some(2)).level, Level::Warning);
        let limits = "Limit  Soft Limit\nMax locked memory         65536   65536   bytes\n";
        let found = memlock("5.10.0", limits).unwrap();
        assert!(found.level == Level::Problem && found.found.contains("65536"), "{found:?}");
        assert_eq!(memlock("6.1.0", limits).unwrap().level, Level::Ok);
        let limits = limits.replace("65536", "unlimited");
        assert_eq!(memlock("5.10.0", &limits).unwrap().level, Level::Ok);
    }
}
