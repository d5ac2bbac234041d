//! Probing the connectivity targets for as long as the daemon runs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{DaemonError, ProbeResult};
use crate::{
    config::ConnectivityConfig,
    connectivity::ConnectivityTracker,
    probe::{ConnectivityTarget, IcmpEcho, connectivity_target_replies},
};

/// The connectivity targets that are being probed.
pub(super) struct Started {
    /// Records their results.
    pub(super) tracker: ConnectivityTracker,
    /// Their names, for the status.
    pub(super) names: Vec<String>,
}

/// Starts a probing task for each target.
pub(super) fn start(
    config: &ConnectivityConfig,
    results: &mpsc::UnboundedSender<ProbeResult>,
    began: Instant,
) -> Result<Started, DaemonError> {
    let configured = config.targets.is_some();
    let mut targets = match &config.targets {
        Some(targets) => targets.clone(),
        None => default_gateways().into_iter().map(ConnectivityTarget::Ping).collect(),
    };
    let pings = targets.iter().any(|target| matches!(target, ConnectivityTarget::Ping(_)));
    let echo = match pings.then(IcmpEcho::open) {
        None => None,
        Some(Ok(echo)) => Some(Arc::new(echo)),
        Some(Err(error)) if configured => return Err(DaemonError::Connectivity(error)),
        Some(Err(error)) => {
            warn!(%error, "the default gateway is not used as connectivity target");
            targets.clear();
            None
        }
    };
    let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        warn!(
            "no connectivity target: if this machine loses its network, all backends become unhealthy; \
             set `connectivity_targets`"
        );
    } else {
        info!(targets = names.join(", "), "connectivity targets");
    }
    let tracker = ConnectivityTracker::new(targets.iter().map(|_| configured));
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
                // A separate task, so that a hanging probe does not delay the next one.
                tokio::task::spawn_local(async move {
                    let started = began.elapsed();
                    let passed =
                        connectivity_target_replies(&target, echo.as_deref(), timeout).await;
                    drop(results.send(ProbeResult::Connectivity { index, passed, started }));
                });
            }
        });
    }
    Ok(Started { tracker, names })
}

/// The gateways of the default routes in /proc.
pub(crate) fn default_gateways() -> Vec<IpAddr> {
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
        // A link-local address cannot be pinged without its interface.
        IpAddr::V6(address) => !address.is_unicast_link_local(),
        IpAddr::V4(_) => true,
    });
    found.dedup();
    found
}
