//! Installs Debian packages without starting the services that some of them contain.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{needs, process};

/// Whether this machine runs Debian itself. Derivatives have other packages.
pub(crate) fn is_here() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && needs::find("apt-get").is_some()
}

/// Whether this process may install packages.
pub(crate) fn may_install() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the configured package sources have a package.
pub(crate) fn has(package: &str) -> bool {
    let output = Command::new("apt-cache").args(["policy", package]).output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .any(|line| line.trim_start().starts_with("Candidate: ") && !line.contains("(none)"))
    })
}

/// The shell command that installs `packages`.
pub(crate) fn install_command(packages: &[&str]) -> String {
    format!("apt-get update && {}", process::shown(&install(packages)))
}

fn install(packages: &[&str]) -> Command {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    command
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Waits for another apt on the machine, such as unattended upgrades.
    command.args(["-o", "DPkg::Lock::Timeout=300"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Fetches the package lists.
///
/// # Errors
/// When apt-get fails.
pub(crate) fn update() -> Result<()> {
    process::run_with_progress("reading Debian's package lists", apt_get().arg("update"))
}

/// Installs `packages` in one call. Their services are not started, now or at boot: nginx would take
/// port 80 of this machine.
///
/// # Errors
/// When apt-get fails.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    let had: Vec<_> =
        SERVICES.iter().filter(|service| needs::find(service.program).is_some()).collect();
    let no_services = NoServices::begin(Path::new("/usr/sbin/policy-rc.d"))
        .context("cannot keep services from being started (/usr/sbin/policy-rc.d)")?;
    let title = format!("installing {} packages of Debian", packages.len());
    let result = process::run_with_progress(&title, &mut install(packages));
    drop(no_services);
    result?;
    for service in SERVICES {
        let new = !had.iter().any(|other| other.program == service.program);
        if new && needs::find(service.program).is_some() && needs::find("systemctl").is_some() {
            let mut disable = Command::new("systemctl");
            disable.args(["--quiet", "disable"]).args(service.units);
            process::run_with_progress("disabling the services of the new packages", &mut disable)?;
        }
    }
    Ok(())
}

struct Service {
    program: &'static str,
    units: &'static [&'static str],
}

const SERVICES: [Service; 8] = [
    Service { program: "nginx", units: &["nginx.service"] },
    Service { program: "bird", units: &["bird.service"] },
    Service { program: "fcgiwrap", units: &["fcgiwrap.service", "fcgiwrap.socket"] },
    Service { program: "prometheus", units: &["prometheus.service"] },
    Service { program: "glance-api", units: &["glance-api.service"] },
    Service { program: "bgpd", units: &["frr.service"] },
    Service { program: "exabgp", units: &["exabgp.service"] },
    Service { program: "initdb", units: &["postgresql.service"] },
];

/// A guard: package scripts start no services while it lives (by `policy-rc.d`). An existing policy
/// file is restored at its end.
struct NoServices {
    policy: PathBuf,
    saved: PathBuf,
}

const MARK: &str = "# Written by xtask setup for the duration of an installation.";

impl NoServices {
    fn begin(policy: &Path) -> io::Result<Self> {
        let guard =
            Self { policy: policy.to_owned(), saved: policy.with_extension("d.before-xtask") };
        // An interrupted run (power, SIGKILL) may have left its file behind.
        if fs::read_to_string(policy).is_ok_and(|text| text.contains(MARK)) {
            guard.end()?;
        }
        if policy.exists() {
            fs::rename(policy, &guard.saved)?;
        }
        ignore_interrupts();
        fs::write(policy, format!("#!/bin/sh\n{MARK}\nexit 101\n"))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }

    fn end(&self) -> io::Result<()> {
        if self.saved.exists() {
            fs::rename(&self.saved, &self.policy)
        } else if self.policy.exists() {
            fs::remove_file(&self.policy)
        } else {
            Ok(())
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: cannot restore {}: {error}", self.policy.display());
        }
    }
}

/// Ignores interrupts: Ctrl-C ends apt-get, and this process restores the policy file.
fn ignore_interrupts() {
    extern "C" fn nothing(_signal: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing, so it is safe in a signal's context. `exec` restores the
        // default action for children.
        if let Err(error) = unsafe { sigaction(signal, &action) } {
            eprintln!("warning: cannot catch {signal}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_policy_file_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        fs::write(&policy, "mine").unwrap();
        let guard = NoServices::begin(&policy).unwrap();
        assert!(fs::read_to_string(&policy).unwrap().contains("exit 101"));
        drop(guard);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "mine");
    }

    #[test]
    fn the_policy_file_of_a_killed_run_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        std::mem::forget(NoServices::begin(&policy).unwrap());
        assert!(policy.exists());
        drop(NoServices::begin(&policy).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
