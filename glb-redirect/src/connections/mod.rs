//! Clients' live connections by VIP. A drain is done when there are none.

mod ages;
mod monitor;
mod sock_diag;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use serde::Serialize;

pub use ages::ConnectionAges;
pub(crate) use ages::PIN;
pub use monitor::ConnectionMonitor;
pub use sock_diag::{Listener, Socket, State, listeners, sockets};

/// The connections of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VipConnections {
    /// Connections that would break if their packets no longer came to this host.
    pub live: usize,
    /// Age of the oldest live connection in seconds; nothing without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Connections in TIME_WAIT, which are over.
    pub time_wait: usize,
    /// Live connections by state.
    pub states: BTreeMap<&'static str, usize>,
}

/// All connections of clients to this backend, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConnectionReport {
    /// Live connections of all VIPs.
    pub live: usize,
    /// Age of the oldest live connection in seconds; nothing without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Connections by VIP; every VIP has an entry.
    pub vips: BTreeMap<IpAddr, VipConnections>,
}

/// Whether one of these VIPs is local in this thread's network namespace. An address or a local route
/// can make it so; binding a socket finds both.
pub(crate) fn any_vip_is_local(vips: &BTreeSet<IpAddr>) -> bool {
    // A namespace without any IPv4 address lets a socket bind to any address, but not connect.
    let ask = |vip: &IpAddr| UdpSocket::bind((*vip, 0))?.connect((*vip, 9));
    vips.iter().any(|vip| match ask(vip) {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable
        ),
    })
}

/// The message for a namespace in which no VIP is local and no connection is found.
pub(crate) fn no_local_vip_message(vips: &BTreeSet<IpAddr>) -> String {
    let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
    format!(
        "cannot see connections: none of `vips` ({}) is an address of this network namespace.\n  Run \
         this in the network namespace of the service and `glb-redirect run` (ip netns exec, nsenter \
         --net), and with their configuration file.",
        vips.join(", ")
    )
}

/// Lists and counts the connections of clients to these VIPs in this thread's network namespace.
///
/// # Errors
/// When the kernel does not list its sockets.
pub fn report(vips: &BTreeSet<IpAddr>, ages: &mut ConnectionAges) -> io::Result<ConnectionReport> {
    let mut sockets = sockets()?;
    sockets.retain(|socket| is_client_connection(vips, socket));
    ages.observe(&sockets);
    Ok(count(vips, &sockets, |socket| ages.of(socket)))
}

/// Whether it is a client's connection to a VIP. A connection of this host to itself, such as a health
/// check, needs no drain.
fn is_client_connection(vips: &BTreeSet<IpAddr>, socket: &Socket) -> bool {
    let remote = socket.remote.ip();
    vips.contains(&socket.local.ip()) && !vips.contains(&remote) && !remote.is_loopback()
}

fn count(
    vips: &BTreeSet<IpAddr>,
    sockets: &[Socket],
    age: impl Fn(&Socket) -> Duration,
) -> ConnectionReport {
    let mut report = ConnectionReport::default();
    report.vips.extend(vips.iter().map(|vip| (*vip, VipConnections::default())));
    for socket in sockets {
        let connections = report.vips.entry(socket.local.ip()).or_default();
        if !socket.state.is_live() {
            connections.time_wait += 1;
            continue;
        }
        connections.live += 1;
        report.live += 1;
        *connections.states.entry(socket.state.name()).or_default() += 1;
        let seconds = age(socket).as_secs_f64();
        for oldest in [&mut connections.oldest_seconds, &mut report.oldest_seconds] {
            *oldest = Some(oldest.map_or(seconds, |oldest| oldest.max(seconds)));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_vip_and_state() {
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
        let report = count(&vips, &sockets, |socket| socket.idle);
        assert_eq!((report.live, report.oldest_seconds), (2, Some(7.0)));
        let v4 = &report.vips[&"203.0.113.10".parse::<IpAddr>().unwrap()];
        assert_eq!((v4.live, v4.time_wait), (2, 1));
        assert_eq!(v4.states, [("established", 1), ("close_wait", 1)].into());
        let v6 = &report.vips[&"2001:db8::10".parse::<IpAddr>().unwrap()];
        assert_eq!(v6, &VipConnections::default());

        for (local, remote, wanted) in [
            ("203.0.113.10:80", "198.51.100.7:1", true),
            ("10.0.2.21:22", "198.51.100.7:1", false),
            ("203.0.113.10:80", "203.0.113.10:1", false),
            ("203.0.113.10:80", "127.0.0.1:1", false),
        ] {
            let socket = socket(local, remote, State::Established, 0);
            assert_eq!(is_client_connection(&vips, &socket), wanted, "{local} {remote}");
        }
    }
}
