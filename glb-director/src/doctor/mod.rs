//! Examines this machine for a director; each finding has a remedy.
//!
//! [`examine`] runs every check. To add one, write a function that returns [`Finding`]s in the module of
//! its subject, and call it from that module's `examine` or from [`examine`].

mod feature;
mod kernel;
mod link;
mod network;
pub mod probe;
mod veth;

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc, time::Duration};

pub use glb_host::doctor::Finding;
use glb_host::{
    bpffs::PinFolder,
    control::Client,
    next_hop::{NextHops, Snapshot, Unresolved},
    permission,
};
use glb_table::TableSet;

use crate::{announce, config::Config, control::Command, status::Status};

/// How long backends may take to answer ARP or neighbour discovery.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs every check in this thread's network namespace. Sends only ARP requests and neighbour
/// solicitations.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = kernel::examine();
    findings.push(pins(config));
    findings.extend(daemon(config));
    findings.extend(link::examine(config));
    match glb_table::load(&config.table) {
        Ok(tables) => {
            findings.push(keys(config));
            findings.extend(announcements(config, &tables));
            findings.extend(methods(config).await);
            findings.extend(network::settings(config, &tables));
            match resolve(config, &tables).await {
                Ok(ways) => {
                    findings.extend(network::next_hops(config, &tables, &ways));
                    let rules = announce::policy_rules::list_installed().await.unwrap_or_default();
                    findings.push(network::answers(config, &tables, &ways, &rules));
                }
                Err(error) => {
                    let remedy = "A director needs netlink; check seccomp filters and RestrictAddressFamilies=.";
                    findings.push(Finding::problem("netlink", error, remedy));
                }
            }
        }
        Err(error) => findings.push(Finding::problem(
            "table",
            error.render(false).trim_end(),
            format!("Correct {}; the running table stays in force.", config.table.display()),
        )),
    }
    findings
}

/// Resolves the next hops of backends, VIPs and the configured source addresses.
async fn resolve(config: &Config, tables: &TableSet) -> Result<Arc<Snapshot>, String> {
    let all: BTreeSet<IpAddr> =
        backends(tables).chain(network::vips(tables)).chain(network::sources(config)).collect();
    let next_hops = NextHops::start_with(config.gateway(), config.transmit(), all)
        .await
        .map_err(|error| error.to_string())?;
    let mut changes = next_hops.subscribe();
    let wanted: Vec<IpAddr> = backends(tables).collect();
    // Only backends must resolve; no neighbour answers for a VIP.
    let settled = changes.wait_for(|snapshot| {
        let known = |address| matches!(snapshot.get(address), Some(Ok(_) | Err(Unresolved::Local)));
        wanted.iter().all(known)
    });
    drop(tokio::time::timeout(NEIGHBOUR_TIMEOUT, settled).await);
    Ok(next_hops.snapshot())
}

fn backends(tables: &TableSet) -> impl Iterator<Item = IpAddr> {
    let all = tables.tables.iter().flat_map(|table| &table.backends);
    all.filter(|backend| backend.is_usable()).map(|backend| backend.address)
}

/// Checks that the pin directory can be used.
fn pins(config: &Config) -> Finding {
    const CHECK: &str = "pin_folder";
    match PinFolder::check(&config.bpffs_dir, crate::OWNER) {
        Ok(()) => Finding::ok(CHECK, config.bpffs_dir.display().to_string()),
        Err(error) => {
            let text = error.to_string();
            let (found, remedy) = text.split_once('\n').unwrap_or((&text, "See above."));
            Finding::problem(CHECK, found, remedy.trim())
        }
    }
}

/// Checks that the daemon runs and reports no problem.
fn daemon(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "daemon";
    let asked = Client::connect(&config.control.place.path)
        .and_then(|client| client.ask::<Status>(&Command::Status, Duration::from_secs(5)));
    let run = format!("glb-director run --config {}", config.path.display());
    match asked {
        Err(error) => vec![Finding::warning(
            CHECK,
            error.to_string().lines().next().unwrap_or_default(),
            format!("Start it: {run}"),
        )],
        Ok(status) if status.problems.is_empty() => {
            let number = status.generation.unwrap_or_default();
            vec![Finding::ok(CHECK, format!("generation {number} is in force"))]
        }
        Ok(status) => status
            .problems
            .into_iter()
            .map(|problem| {
                let found = format!("{}: {}", problem.name, problem.message);
                Finding::problem(CHECK, found, "See `glb-director status`.")
            })
            .collect(),
    }
}

/// Checks announcements against tables, and asks their methods.
fn announcements(config: &Config, tables: &TableSet) -> Vec<Finding> {
    const CHECK: &str = "announce";
    let (errors, doubts) = announce::announcement::check_against(&config.announcements, tables);
    let remedy = "See docs/announcing.md.";
    let errors = errors.into_iter().map(|error| Finding::problem(CHECK, error, remedy));
    let doubts = doubts.into_iter().map(|doubt| Finding::warning(CHECK, doubt, remedy));
    errors.chain(doubts).collect()
}

/// Asks each announcement's method whether it works.
async fn methods(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "announce_method";
    let errors = announce::check_methods(&config.announcements).await;
    let remedy = "See docs/announcing.md, and `glb-director config check`.";
    errors.into_iter().map(|error| Finding::problem(CHECK, error, remedy)).collect()
}

fn keys(config: &Config) -> Finding {
    const CHECK: &str = "keys";
    let path = config.table.display();
    match permission::world_readable_mode(&config.table) {
        Some(mode) => Finding::warning(
            CHECK,
            format!("every user can read the hash keys in {path} (mode {mode:o})"),
            restrict_access(&config.table),
        ),
        None => Finding::ok(CHECK, format!("{path} is not readable by every user")),
    }
}

/// The user and group that the packages create for the daemon.
const DAEMON_GROUP: &str = "glb-director";

/// Returns the command that hides a file from other users and leaves it to the daemon.
#[must_use]
pub fn restrict_access(file: &Path) -> String {
    let path = file.display();
    match nix::unistd::Group::from_name(DAEMON_GROUP) {
        Ok(Some(_)) => format!("chgrp {DAEMON_GROUP} {path} && chmod 640 {path}"),
        // Without the packages' group, the daemon usually runs as the file's owner.
        _ => format!("chmod 640 {path} (its group must be the daemon's)"),
    }
}
