//! Live connections by VIP: what tells an operator that a drain is done.

mod ages;
mod sock_diag;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use serde::Serialize;

pub use ages::Ages;
pub(crate) use ages::PIN;
pub use sock_diag::{Socket, State, listeners, sockets};
pub use watch::Watch;

/// The connections of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfVip {
    /// Those that would break if their packets no longer came here.
    pub live: usize,
    /// Since when the oldest of them has been known, in seconds; nothing without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Those that are over, whose numbers the kernel still keeps.
    pub time_wait: usize,
    /// The live ones by state.
    pub states: BTreeMap<&'static str, usize>,
}

/// All connections that clients have to this backend, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Survey {
    /// Live ones of all VIPs.
    pub live: usize,
    /// Since when the oldest of them has been known, in seconds; nothing without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// By VIP; each has an entry.
    pub vips: BTreeMap<IpAddr, OfVip>,
}

/// Whether one of these VIPs is an address of this thread's network namespace. A route may make it
/// one, too, so the kernel is asked by what it lets a socket do.
pub(crate) fn any_is_here(vips: &BTreeSet<IpAddr>) -> bool {
    // A namespace that never had an IPv4 address lets a socket be bound to any; but it leads nowhere.
    let ask = |vip: &IpAddr| UdpSocket::bind((*vip, 0))?.connect((*vip, 9));
    vips.iter().any(|vip| match ask(vip) {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable
        ),
    })
}

/// What is said where [`any_is_here`] is not so and no connection is seen.
pub(crate) fn none_is_here(vips: &BTreeSet<IpAddr>) -> String {
    let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
    format!(
        "none of `vips` ({}) is an address of this network namespace: connections to them cannot be \
         seen from here.\n  Ask where the service and `glb-redirect run` are (ip netns exec, nsenter \
         --net), and with their configuration.",
        vips.join(", ")
    )
}

/// The connections of clients to these VIPs in this thread's network namespace.
///
/// # Errors
/// When the kernel does not tell.
pub fn survey(vips: &BTreeSet<IpAddr>, ages: &mut Ages) -> io::Result<Survey> {
    let mut sockets = sockets()?;
    sockets.retain(|socket| is_clients(vips, socket));
    ages.observe(&sockets);
    Ok(count(vips, &sockets, |socket| ages.of(socket)))
}

/// A connection of this machine to itself (a health check, say) is nobody's to drain.
fn is_clients(vips: &BTreeSet<IpAddr>, socket: &Socket) -> bool {
    let remote = socket.remote.ip();
    vips.contains(&socket.local.ip()) && !vips.contains(&remote) && !remote.is_loopback()
}

fn count(vips: &BTreeSet<IpAddr>, sockets: &[Socket], age: impl Fn(&Socket) -> Duration) -> Survey {
    let mut survey = Survey::default();
    survey.vips.extend(vips.iter().map(|vip| (*vip, OfVip::default())));
    for socket in sockets {
        let of_vip = survey.vips.entry(socket.local.ip()).or_default();
        if !socket.state.is_live() {
            of_vip.time_wait += 1;
            continue;
        }
        of_vip.live += 1;
        survey.live += 1;
        *of_vip.states.entry(socket.state.name()).or_default() += 1;
        let seconds = age(socket).as_secs_f64();
        for oldest in [&mut of_vip.oldest_seconds, &mut survey.oldest_seconds] {
            *oldest = Some(oldest.map_or(seconds, |oldest| oldest.max(seconds)));
        }
    }
    survey
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_by_vip_and_state() {
        let vips: BTreeSet<IpAddr> =
            ["203.0.113.10", "2001:db8::10"].iter().map(|vip| vip.parse().unwrap()).collect();
        let socket = |local: &str, remote: &str, state, idle| Socket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state,
            cookie: 1,
            idle: Duration::from_secs(idle),
        };
        let sockets = [
            socket("203.0.113.10:80", "198.51.100.7:1", State::Established, 5),
            socket("203.0.113.10:80", "198.51.100.7:2", State::CloseWait, 7),
            socket("203.0.113.10:80", "198.51.100.7:3", State::TimeWait, 900),
        ];
        let survey = count(&vips, &sockets, |socket| socket.idle);
        assert_eq!((survey.live, survey.oldest_seconds), (2, Some(7.0)));
        let v4 = &survey.vips[&"203.0.113.10".parse::<IpAddr>().unwrap()];
        assert_eq!((v4.live, v4.time_wait), (2, 1));
        assert_eq!(v4.states, [("established", 1), ("close_wait", 1)].into());
        let v6 = &survey.vips[&"2001:db8::10".parse::<IpAddr>().unwrap()];
        assert_eq!(v6, &OfVip::default());

        for (local, remote, wanted) in [
            ("203.0.113.10:80", "198.51.100.7:1", true),
            ("10.0.2.21:22", "198.51.100.7:1", false),
            ("203.0.113.10:80", "203.0.113.10:1", false),
            ("203.0.113.10:80", "127.0.0.1:1", false),
        ] {
            let socket = socket(local, remote, State::Established, 0);
            assert_eq!(is_clients(&vips, &socket), wanted, "{local} {remote}");
        }
    }
}
