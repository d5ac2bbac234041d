//! The checks of `glb-healthcheck doctor`: problems of this machine and configuration.

use std::{fs, path::Path};

use glb_host::{control::Client, doctor::Finding};

use crate::{
    check::CheckKind,
    config::{Config, ReloadMethod},
    daemon::{self, default_gateways},
    engine::InputTable,
    probe::ConnectivityTarget,
};

/// Examines the configuration `file` and what it refers to. Changes nothing.
#[must_use]
pub fn examine(file: &Path) -> Vec<Finding> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            let remedy = "correct the file; `glb-healthcheck config check` validates it";
            return vec![Finding::problem("config", error.to_string(), remedy)];
        }
    };
    let mut findings = vec![Finding::ok("config", format!("{} is valid", file.display()))];
    match daemon::read_input(&config.input, &config.defaults) {
        Ok(input) => {
            findings.push(input_finding(&input));
            findings.extend(capability_findings(&config, &input));
        }
        Err(error) => {
            let remedy = "correct the input; the running daemon keeps the previous one";
            findings.push(Finding::problem("input", error.to_string(), remedy));
        }
    }
    findings.push(output_finding(&config));
    findings.push(connectivity_finding(&config));
    findings.extend(director_finding(&config));
    findings
}

fn input_finding(input: &InputTable) -> Finding {
    let targets: usize = input.targets.iter().flatten().map(Vec::len).sum();
    let found = format!("{} is valid, with {targets} checks", input.path.display());
    match input.unchecked_backends() {
        0 => Finding::ok("input", found),
        unchecked => Finding::warning(
            "input",
            format!("{found}; {unchecked} backends have no check and count as healthy"),
            "add `healthchecks` to the file, the table or these backends",
        ),
    }
}

/// Compares this process's capabilities with those that the checks need. The daemon may have others,
/// so a missing one is only a warning.
fn capability_findings(config: &Config, input: &InputTable) -> Vec<Finding> {
    let kinds = || input.targets.iter().flatten().flatten().map(|target| &target.check.kind);
    let ping = |target: &ConnectivityTarget| matches!(target, ConnectivityTarget::Ping(_));
    let configured = config.connectivity.targets.as_ref();
    let pings = configured.is_none_or(|targets| targets.iter().any(ping));
    let gue = kinds().any(|kind| matches!(kind, CheckKind::Gue { .. }));
    let vip = kinds().any(|kind| matches!(kind, CheckKind::Vip(_)));
    let mut findings = Vec::new();
    for (needed, capability, bit, user) in [
        (gue || pings, "CAP_NET_RAW", 13, "`gue` checks and pinged connectivity targets"),
        (vip, "CAP_NET_ADMIN", 12, "`vip` checks"),
    ] {
        if !needed {
            continue;
        }
        findings.push(if has_capability(bit) {
            Finding::ok("capabilities", format!("{capability} is present, for {user}"))
        } else {
            Finding::warning(
                "capabilities",
                format!("this process lacks {capability}, which {user} need"),
                "run `doctor` as the daemon's user; the unit's AmbientCapabilities= gives it to the daemon",
            )
        });
    }
    if vip && fs::metadata("/dev/net/tun").is_err() {
        findings.push(Finding::problem(
            "tun",
            "/dev/net/tun does not exist, but `vip` checks need it",
            "load the kernel module: modprobe tun",
        ));
    }
    findings
}

fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> bit & 1 == 1)
}

fn output_finding(config: &Config) -> Finding {
    let output = config.output.display();
    let folder = config.output.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let found = format!("the output's directory {} does not exist", folder.display());
        let remedy = "create it, writable by the daemon's user";
        return Finding::problem("output", found, remedy);
    }
    if !config.output.exists() {
        let found = format!("{output} does not exist yet");
        let remedy = "start the daemon; it writes the output when each check has a result";
        return Finding::warning("output", found, remedy);
    }
    match glb_table::load(&config.output) {
        Ok(_) => Finding::ok("output", format!("{output} is a valid table")),
        Err(error) => {
            let found = error.render(false).trim_end().to_owned();
            let remedy = "remove the file; the running daemon writes it again";
            Finding::problem("output", found, remedy)
        }
    }
}

fn connectivity_finding(config: &Config) -> Finding {
    let names: Vec<String> = match &config.connectivity.targets {
        Some(targets) => targets.iter().map(ToString::to_string).collect(),
        None => default_gateways().iter().map(ToString::to_string).collect(),
    };
    if names.is_empty() {
        return Finding::warning(
            "connectivity",
            "there is no connectivity target: if this machine loses its network, all backends become \
             unhealthy",
            "set `connectivity_targets` to hosts that do not depend on the backends",
        );
    }
    Finding::ok("connectivity", format!("connectivity targets: {}", names.join(", ")))
}

fn director_finding(config: &Config) -> Option<Finding> {
    let Some(ReloadMethod::ControlSocket(socket)) = &config.reload_method else { return None };
    Some(match Client::connect(socket) {
        Ok(_) => Finding::ok("director", format!("the director answers at {}", socket.display())),
        Err(error) => Finding::problem(
            "director",
            error.to_string(),
            "start the director, or add this user to its `control.group` and `control.operators`",
        ),
    })
}
