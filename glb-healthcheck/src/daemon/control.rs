//! Asking the control targets, for as long as the checker runs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{Done, Error};
use crate::{
    config::ControlTargets,
    connectivity::Controls,
    probe::{self, Control, Echo},
};

/// The control targets in use.
pub(super) struct Started {
    /// For the judgement.
    pub(super) judged: Controls,
    /// For people.
    pub(super) names: Vec<String>,
}

/// Begins to ask them.
pub(super) fn start(
    config: &ControlTargets,
    results: &mpsc::UnboundedSender<Done>,
    began: Instant,
) -> Result<Started, Error> {
    let explicit = config.targets.is_some();
    let mut targets = match &config.targets {
        Some(targets) => targets.clone(),
        None => gateways().into_iter().map(Control::Ping).collect(),
    };
    let pings = targets.iter().any(|target| matches!(target, Control::Ping(_)));
    let echo = match pings.then(Echo::open) {
        None => None,
        Some(Ok(echo)) => Some(Arc::new(echo)),
        Some(Err(problem)) if explicit => return Err(Error::Control(problem)),
        Some(Err(problem)) => {
            warn!("the gateway is not asked: {problem}");
            targets.clear();
            None
        }
    };
    let names: Vec<String> = targets.iter().map(name).collect();
    if names.is_empty() {
        warn!(
            "no control target: if this machine is cut off, all backends seem dead (`control_targets`)"
        );
    } else {
        info!(targets = names.join(", "), "control targets");
    }
    let judged = Controls::new(targets.iter().map(|_| explicit));
    for (index, target) in targets.into_iter().enumerate() {
        let (results, echo, timeout) = (results.clone(), echo.clone(), config.timeout);
        let mut ticks = tokio::time::interval(config.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::task::spawn_local(async move {
            let target = Arc::new(target);
            while !results.is_closed() {
                ticks.tick().await;
                let (results, echo) = (results.clone(), echo.clone());
                let target = Arc::clone(&target);
                // One that hangs does not delay the next.
                tokio::task::spawn_local(async move {
                    let started = began.elapsed();
                    let passed = probe::alive(&target, echo.as_deref(), timeout).await;
                    drop(results.send(Done::Control { index, passed, started }));
                });
            }
        });
    }
    Ok(Started { judged, names })
}

fn name(control: &Control) -> String {
    match control {
        Control::Ping(address) => address.to_string(),
        Control::Tcp(address) => address.to_string(),
    }
}

/// The default routes' gateways.
fn gateways() -> Vec<IpAddr> {
    let mut found = Vec::new();
    let v4 = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    for line in v4.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Interface, destination, gateway, …, mask: little-endian hex.
        if let [_, "00000000", gateway, _, _, _, _, "00000000", ..] = words[..]
            && let Ok(word) = u32::from_str_radix(gateway, 16)
            && word != 0
        {
            found.push(IpAddr::V4(Ipv4Addr::from(word.to_le_bytes())));
        }
    }
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    for line in v6.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Destination, its length, source, its length, next hop.
        if let [destination, "00", _, _, hop, ..] = words[..]
            && destination.bytes().all(|digit| digit == b'0')
            && let Ok(bits) = u128::from_str_radix(hop, 16)
            && bits != 0
        {
            found.push(IpAddr::V6(Ipv6Addr::from(bits)));
        }
    }
    found.retain(|address| match address {
        // Needs an interface to be asked by.
        IpAddr::V6(address) => !address.is_unicast_link_local(),
        IpAddr::V4(_) => true,
    });
    found.dedup();
    found
}
