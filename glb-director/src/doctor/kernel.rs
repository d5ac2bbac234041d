//! Checks of the kernel: features, JIT compiler, memory limits and permissions.

use std::{fs, path::Path};

use glb_host::{doctor::net_setting, permission};

use super::{
    Finding,
    feature::{self, Tried},
};

/// The first upstream release that has every needed feature.
const NEEDED: (u32, u32) = (5, 18);

/// From this release on, the cgroup accounts the memory of BPF objects, not RLIMIT_MEMLOCK.
const NO_MEMLOCK: (u32, u32) = (5, 11);

pub(super) fn examine() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let mut findings =
        vec![features(release.trim(), feature::try_all()), jit(net_setting("core/bpf_jit_enable"))];
    findings.extend(memlock(release.trim(), &limits));
    findings.push(if btf {
        Finding::ok("btf", "the kernel has BTF")
    } else {
        Finding::warning(
            "btf",
            "the kernel has no BTF (/sys/kernel/btf/vmlinux)",
            "The director does not need it, but bpftool and bpftrace show less. Use a kernel with \
             CONFIG_DEBUG_INFO_BTF.",
        )
    });
    findings.push(match permission::check_capabilities() {
        Ok(()) => Finding::ok("capabilities", "this process may load and attach programs"),
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

/// Judges the kernel by its features; by its release only where they cannot be tried.
fn features(release: &str, tried: Tried) -> Finding {
    const CHECK: &str = "kernel";
    let remedy = format!(
        "Use Linux {}.{} or newer, or a kernel with these features back-ported.",
        NEEDED.0, NEEDED.1
    );
    match tried {
        Tried::All => Finding::ok(CHECK, format!("Linux {release} has every needed BPF feature")),
        Tried::Missing(features) => {
            let found = format!("Linux {release} lacks {}", features.join(", "));
            Finding::problem(CHECK, found, remedy)
        }
        Tried::Unknown(why) => match numbers(release) {
            Some(found) if found >= NEEDED => {
                Finding::ok(CHECK, format!("Linux {release}; its features were not tried: {why}"))
            }
            _ => Finding::warning(
                CHECK,
                format!("Linux {release} may be too old; its features were not tried: {why}"),
                format!("Run `doctor` as root. {remedy}"),
            ),
        },
    }
}

fn jit(setting: Option<i64>) -> Finding {
    const CHECK: &str = "jit";
    match setting {
        Some(0) => Finding::problem(
            CHECK,
            "the kernel interprets BPF programs, which is many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(2) => Finding::warning(
            CHECK,
            "the kernel logs the code of each BPF program",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(CHECK, "the kernel compiles BPF programs"),
        // A kernel that always compiles may lack the setting, or hide it in other namespaces.
        None => {
            Finding::ok(CHECK, "this kernel has no setting for it, or hides it in this namespace")
        }
    }
}

fn memlock(release: &str, limits: &str) -> Option<Finding> {
    const CHECK: &str = "memlock";
    if numbers(release).is_none_or(|found| found >= NO_MEMLOCK) {
        return Some(Finding::ok(CHECK, "not limited from Linux 5.11 on"));
    }
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let soft = line.split_whitespace().next()?;
    Some(if soft == "unlimited" {
        Finding::ok(CHECK, "unlimited")
    } else {
        Finding::problem(
            CHECK,
            format!("this kernel counts maps as locked memory, and the limit is {soft} bytes"),
            "Set LimitMEMLOCK=infinity in the unit, or run `ulimit -l unlimited`.",
        )
    })
}

#[cfg(test)]
mod tests {
    use glb_host::doctor::Level;

    use super::*;

    #[test]
    fn each_kernel_fault_is_found() {
        // A back-ported feature counts, a new release without it does not.
        let unknown = || Tried::Unknown("not permitted".into());
        assert_eq!(features("4.18.0-553.el8", Tried::All).level, Level::Ok);
        let lacks = Tried::Missing(vec!["bpf_xdp_load_bytes (Linux 5.18)".into()]);
        let found = features("6.18.0", lacks);
        assert!(found.level == Level::Problem && found.found.contains("bpf_xdp_load_bytes"));
        assert_eq!(features("6.18.0-1-amd64", unknown()).level, Level::Ok);
        assert_eq!(features("5.18.0", unknown()).level, Level::Ok);
        assert_eq!(features("5.10.0-30-amd64", unknown()).level, Level::Warning);
        assert_eq!(features("6", unknown()).level, Level::Warning);
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
