//! The plan of a lab: its machines and their addresses.
//!
//! Addresses repeat between labs, because nothing of a lab is visible outside its namespaces.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The IP version of packets between clients and VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// The first machine of clients. It has the addresses that [`client`] returns.
    Client,
    /// The n-th machine of clients, from 2, with its own addresses.
    OtherClient(u8),
    /// The router between clients and data centre.
    Router,
    /// The n-th director, from 1.
    Director(u8),
    /// The n-th backend, from 1.
    Backend(u8),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("client"),
            Self::OtherClient(n) => write!(f, "client{n}"),
            Self::Router => f.write_str("router"),
            Self::Director(n) => write!(f, "director{n}"),
            Self::Backend(n) => write!(f, "backend{n}"),
        }
    }
}

impl Node {
    /// Parses a node's name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let number = |prefix| name.strip_prefix(prefix)?.parse().ok();
        let node = match name {
            "client" => Self::Client,
            "router" => Self::Router,
            _ => number("director")
                .map(Self::Director)
                .or_else(|| number("backend").map(Self::Backend))
                .or_else(|| number("client").filter(|&n| n > 1).map(Self::OtherClient))?,
        };
        (node.to_string() == name).then_some(node)
    }

    /// The node's host number in the data centre's networks, 1 to 254. Clients have none.
    fn host(self) -> u8 {
        match self {
            Self::Client | Self::OtherClient(_) => 0,
            Self::Router => 1,
            Self::Director(n) => 9 + n,
            Self::Backend(n) => 20 + n,
        }
    }

    /// The number of a machine of clients, from 1.
    pub(crate) const fn client_number(self) -> Option<u8> {
        match self {
            Self::Client => Some(1),
            Self::OtherClient(n) => Some(n),
            _ => None,
        }
    }

    /// The node's IPv4 address in the data centre, 10.0.2.0/24.
    #[must_use]
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, self.host())
    }

    /// The node's address of this family.
    #[must_use]
    pub fn address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4().into(),
            Family::V6 => self.v6().into(),
        }
    }

    /// The node's IPv6 address in the data centre, 2001:db8:2::/64, with the same host number.
    #[must_use]
    pub fn v6(self) -> Ipv6Addr {
        let host = u16::from(self.host());
        let digits = host / 100 * 0x100 + host / 10 % 10 * 0x10 + host % 10;
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, digits)
    }
}

impl std::str::FromStr for Node {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::parse(name).with_context(|| {
            format!(
                "{name:?} is not a node: use client, client2, router, director1, backend1 and so on"
            )
        })
    }
}

/// The source of the router's routes to the VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Routing {
    /// Static routes. Directors are on the backends' segment.
    Static,
    /// BGP with BFD between BIRD on the router and each director. Each director has its own router
    /// port, so that a dead link is detected at once.
    Bgp,
}

/// The announcement method of the directors, and the routing daemon that it uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AnnounceMethod {
    /// The control socket of the director's BIRD.
    #[default]
    Bird,
    /// Routes into a TUN interface, which BIRD learns from the kernel.
    Tun,
    /// Routes into a TUN interface, which FRR learns from the kernel.
    Frr,
    /// A command that talks to ExaBGP. There is no BFD with it.
    Exabgp,
}

/// The plan of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name. Namespaces are called `NAME-client`, `NAME-router` and so on.
    pub name: String,
    /// The number of directors, 1 to 10.
    pub directors: u8,
    /// The number of backends, 1 to 200.
    pub backends: u8,
    /// The number of machines of clients, 1 to 9.
    pub clients: u8,
    /// The source of the router's VIP routes.
    pub routing: Routing,
    /// With BGP: the announcement method of the directors.
    #[serde(default)]
    pub method: AnnounceMethod,
    /// Whether each director has a health checker, which writes its table.
    pub health: bool,
    /// The speed of the client links in Mbit/s. Unlimited if none.
    pub client_mbit: Option<u32>,
    /// The MTU of the data centre's links. 1600 leaves room for a full-sized packet in a tunnel.
    pub data_centre_mtu: u32,
    /// The address family of the backends in the table, and so of the tunnel.
    pub tunnel: Family,
}

impl Plan {
    /// One director, three backends, a static route and unlimited client links.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            directors: 1,
            backends: 3,
            clients: 1,
            routing: Routing::Static,
            method: AnnounceMethod::Bird,
            health: false,
            client_mbit: None,
            data_centre_mtu: 1600,
            tunnel: Family::V4,
        }
    }

    /// # Errors
    /// When a name or number is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.chars().all(plain) {
            bail!("{:?} cannot be a lab's name: 1 to 40 letters, digits, '-' and '_'", self.name);
        }
        if !(1..=10).contains(&self.directors) || !(1..=200).contains(&self.backends) {
            bail!(
                "a lab has 1 to 10 directors and 1 to 200 backends, not {} and {}",
                self.directors,
                self.backends
            );
        }
        if !(1..=9).contains(&self.clients) {
            bail!("a lab has 1 to 9 machines of clients, not {}", self.clients);
        }
        Ok(())
    }

    /// Lists all machines of clients.
    pub fn client_nodes(&self) -> impl Iterator<Item = Node> + use<> {
        std::iter::once(Node::Client).chain((2..=self.clients).map(Node::OtherClient))
    }

    /// Lists all directors.
    pub fn director_nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.directors).map(Node::Director)
    }

    /// Lists all backends.
    pub fn backend_nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.backends).map(Node::Backend)
    }

    /// Lists all machines.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        std::iter::once(Node::Router)
            .chain(self.client_nodes())
            .chain(self.director_nodes())
            .chain(self.backend_nodes())
    }

    /// Returns the name of a node's namespace.
    #[must_use]
    pub fn namespace(&self, node: Node) -> String {
        format!("{}-{node}", self.name)
    }
}

/// Returns the VIP of this family.
#[must_use]
pub const fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
    }
}

/// Returns address `n` of the first machine of clients. Number 0 is for programs whose source
/// address cannot be set.
#[must_use]
pub const fn client(family: Family, n: u16) -> IpAddr {
    client_of(1, family, n)
}

/// Returns address `n` of the machine of clients with this number, 1 to 9.
#[must_use]
pub const fn client_of(machine: u8, family: Family, n: u16) -> IpAddr {
    let n = n.wrapping_add(1);
    let [high, low] = n.to_be_bytes();
    match (family, machine) {
        (Family::V4, 1) => IpAddr::V4(Ipv4Addr::new(198, 18, high, low)),
        (Family::V4, _) => IpAddr::V4(Ipv4Addr::new(100, 64 + machine, high, low)),
        (Family::V6, _) => {
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xc, machine as u16 - 1, 0, 0, 0, n))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_distinct_addresses_and_names() {
        let plan = Plan { directors: 10, backends: 200, clients: 9, ..Plan::new("x") };
        plan.check().unwrap();
        let nodes: Vec<_> = plan.nodes().collect();
        for (i, a) in nodes.iter().enumerate() {
            assert_eq!(Node::parse(&a.to_string()), Some(*a));
            for b in &nodes[..i] {
                if a.client_number().is_none() {
                    assert!(a.v4() != b.v4() && a.v6() != b.v6(), "{a} and {b}");
                }
            }
        }
        assert_eq!(Node::Backend(3).v6().to_string(), "2001:db8:2::23");
        assert_eq!(Node::parse("backend03"), None);
        assert_eq!(Node::parse("frontend"), None);
        assert_eq!(Node::parse("client1"), None);
    }

    #[test]
    fn invalid_plans_are_rejected() {
        for name in ["", "a/b", "a b", &"x".repeat(41)] {
            assert!(Plan::new(name).check().is_err(), "{name:?}");
        }
        assert!(Plan { backends: 0, ..Plan::new("x") }.check().is_err());
        assert!(Plan { directors: 11, ..Plan::new("x") }.check().is_err());
        assert!(Plan { clients: 0, ..Plan::new("x") }.check().is_err());
    }
}
