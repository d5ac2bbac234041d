//! Checks of veth pairs, and of the packets that a driver dropped for XDP.
//!
//! A veth delivers XDP frames only to a peer that polls (NAPI): one with an XDP program of its own, or
//! with GRO on. Otherwise the kernel drops every transmitted frame.

use glb_host::{ethtool, xdp_link};

use super::Finding;

/// Checks a veth's peer as far as it can be seen from this network namespace.
pub(super) fn peer(name: &str) -> Option<Finding> {
    const CHECK: &str = "veth_peer";
    if ethtool::driver(name).ok().as_deref() != Some("veth") {
        return None;
    }
    let statistics = ethtool::statistics(name).unwrap_or_default();
    let index =
        statistics.iter().find(|(key, _)| key == "peer_ifindex").map(|(_, value)| *value)?;
    let peer = u32::try_from(index).ok().and_then(glb_host::next_hop::interface_name);
    // Another namespace may have an interface with the same index.
    let peer = peer.filter(|peer| {
        let own = glb_host::next_hop::interface_index(name).map(u64::from);
        let back = ethtool::statistics(peer).unwrap_or_default();
        back.iter().any(|(key, value)| key == "peer_ifindex" && own.as_ref().ok() == Some(value))
    });
    Some(match peer {
        None => Finding::ok(
            CHECK,
            format!("the peer of {name} is in another network namespace; see xdp_drops"),
        ),
        Some(peer) => {
            let has_program = xdp_link::attached(&peer).is_ok_and(|program| program.is_some());
            let has_gro =
                ethtool::offloads(&peer).is_ok_and(|on| on.iter().any(|on| on == "rx-gro"));
            judge(name, &peer, has_program, has_gro)
        }
    })
}

fn judge(name: &str, peer: &str, has_program: bool, has_gro: bool) -> Finding {
    const CHECK: &str = "veth_peer";
    if has_program || has_gro {
        return Finding::ok(CHECK, format!("{peer}, the peer of {name}, receives XDP frames"));
    }
    Finding::problem(
        CHECK,
        format!(
            "{peer}, the peer of {name}, has neither an XDP program nor GRO, so the kernel drops every \
             packet that the program transmits on {name}"
        ),
        format!("ethtool -K {peer} gro on   (or attach an XDP program that passes every packet)"),
    )
}

/// Checks the driver's counters of frames that XDP could not transmit.
pub(super) fn drops(name: &str) -> Option<Finding> {
    const CHECK: &str = "xdp_drops";
    let statistics = ethtool::statistics(name).ok()?;
    let failed = failed_transmissions(&statistics);
    Some(if failed == 0 {
        Finding::ok(CHECK, format!("{name} has transmitted every packet of XDP"))
    } else {
        Finding::warning(
            CHECK,
            format!("{name} has failed to transmit {failed} packets of XDP since it exists"),
            format!(
                "`ethtool -S {name} | grep xdp`: if the number grows, the device or its peer cannot \
                 transmit XDP frames. On a veth, set `gro on` at the peer"
            ),
        )
    })
}

/// Sums the counters of failed XDP transmissions. Queue counters (`rx_queue_0_xdp_tx_errors`) and totals
/// have different names in different drivers.
fn failed_transmissions(statistics: &[(String, u64)]) -> u64 {
    let is_failure = |name: &str| {
        ["xdp_tx_errors", "xdp_xmit_errors", "xdp_tx_err", "xdp_tx_full", "xdp_redirect_fail"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
    };
    statistics.iter().filter(|(name, _)| is_failure(name)).map(|(_, value)| value).sum()
}

#[cfg(test)]
mod tests {
    use glb_host::doctor::Level;

    use super::*;

    #[test]
    fn a_peer_without_program_and_gro_is_a_problem() {
        assert_eq!(judge("a", "b", false, false).level, Level::Problem);
        assert_eq!(judge("a", "b", true, false).level, Level::Ok);
        assert_eq!(judge("a", "b", false, true).level, Level::Ok);
    }

    #[test]
    fn failed_transmissions_of_all_queues_are_summed() {
        let statistics = [
            ("rx_queue_0_xdp_packets", 7),
            ("rx_queue_0_xdp_tx_errors", 2),
            ("rx_queue_1_xdp_tx_errors", 3),
            ("tx_queue_0_xdp_xmit_errors", 1),
        ];
        let statistics = statistics.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(failed_transmissions(&statistics), 6);
    }
}
