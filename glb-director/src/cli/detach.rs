//! `glb-director detach`

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::bail;
use glb_host::{bpffs::PinFolder, generations};

use crate::{announce, config::Config, counters, daemon};

pub(super) fn execute(file: &Path, force: bool) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let Some(pins) = PinFolder::open(&config.bpffs_dir, crate::OWNER)? else {
        daemon::detached(&config);
        println!("not attached: nothing is pinned at {}", config.bpffs_dir.display());
        return Ok(());
    };
    let _lock = pins.lock()?;
    if !config.announcements.is_empty() {
        withdraw(&config, &pins, force)?;
    }
    let interfaces = generations::detach_all_but(&pins, &[])?;
    pins.remove_all()?;
    daemon::detached(&config);
    if interfaces.is_empty() {
        println!("was not attached; {} removed", config.bpffs_dir.display());
    } else {
        println!("detached from {}; {} removed", interfaces.join(", "), config.bpffs_dir.display());
    }
    Ok(())
}

/// Withdraws every announcement, and waits until traffic to the VIPs has stopped.
fn withdraw(config: &Config, pins: &PinFolder, force: bool) -> anyhow::Result<()> {
    let failed = announce::block_on(announce::withdraw_all(&config.announcements))?;
    let in_words: Vec<String> =
        failed.iter().map(|(name, error)| format!("announcement {name}: {error}")).collect();
    if !failed.is_empty() && !force {
        bail!(
            "not detached, because routers may still send packets here; the withdrawal is not \
             confirmed:\n  {}\n  Correct this, or use --force to detach although packets would be lost",
            in_words.join("\n  ")
        );
    }
    let limits = config.drain;
    let begun = Instant::now();
    let (mut quiet_since, mut before) = (begun, packets(pins));
    let pause = Duration::from_millis(250);
    while !force && quiet_since.elapsed() < limits.quiet {
        if begun.elapsed() >= limits.timeout {
            bail!(
                "not detached: everything is withdrawn, but after {:?} packets still arrive for the \
                 VIPs. Find the router that sends them, or use --force",
                limits.timeout
            );
        }
        sleep(pause);
        let now = packets(pins);
        let rate = now.saturating_sub(before) as f64 / pause.as_secs_f64();
        if rate > f64::from(limits.packets_per_second) {
            quiet_since = Instant::now();
        }
        before = now;
    }
    let (all, failed) = (config.announcements.len(), failed.len());
    println!("withdrawn: {} of {all} announcements", all - failed);
    Ok(())
}

fn packets(pins: &PinFolder) -> u64 {
    // Without counters, nothing was ever attached.
    let report = counters::read(pins).unwrap_or_default();
    let tables = report.tables.iter();
    tables.flat_map(|table| table.reasons.values()).map(|count| count.packets).sum()
}
