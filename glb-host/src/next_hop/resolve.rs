//! The resolution of next hops from the kernel's answers, without sockets.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    net::IpAddr,
};

use futures::future::join_all;

use super::{NextHop, Snapshot, Unresolved};

/// Concurrent requests; more could overflow the socket's receive buffer.
const MAX_CONCURRENT: usize = 32;

/// The kernel's route to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) interface: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The MAC address; `None` if it is not Ethernet.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) up: bool,
    pub(super) mtu: u32,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// The MAC address, once it is known.
    pub(super) mac: Option<[u8; 6]>,
    /// Whether the kernel keeps the entry without a probe: confirmed recently, or permanent.
    pub(super) settled: bool,
}

/// Requests to the kernel.
pub(super) trait Kernel: Send + Sync {
    /// Returns the device to transmit through for frames to `mac` by `interface`.
    fn egress(
        &self,
        interface: u32,
        mac: [u8; 6],
    ) -> impl Future<Output = Result<u32, Unresolved>> + Send;
    fn route(&self, to: IpAddr) -> impl Future<Output = Result<Route, Unresolved>> + Send;
    fn link(&self, interface: u32)
    -> impl Future<Output = Result<Option<Link>, Unresolved>> + Send;
    fn neighbour(
        &self,
        interface: u32,
        address: IpAddr,
    ) -> impl Future<Output = Result<Option<Neighbour>, Unresolved>> + Send;
}

/// A neighbour: an interface and an address on it.
pub(super) type NeighbourKey = (u32, IpAddr);

/// The result of one resolution.
#[derive(Debug, Default)]
pub(super) struct Resolution {
    pub(super) snapshot: Snapshot,
    /// Every neighbour in use, and whether the kernel should probe it.
    pub(super) next: HashMap<NeighbourKey, bool>,
}

/// Resolves every target.
pub(super) async fn resolve_all<K: Kernel>(kernel: &K, targets: &BTreeSet<IpAddr>) -> Resolution {
    let routes = all(targets, |to| kernel.route(to)).await;
    let used = routes.values().filter_map(|route| route.as_ref().ok());
    let interfaces: BTreeSet<u32> = used.clone().map(|route| route.interface).collect();
    let next: BTreeSet<NeighbourKey> = routes
        .iter()
        .filter_map(|(to, route)| route.as_ref().ok().map(|route| neighbour_key(*to, route)))
        .collect();
    let links = all(&interfaces, |interface| kernel.link(interface)).await;
    let neighbours = all(&next, |(interface, address)| kernel.neighbour(interface, address)).await;

    let mut snapshot: Snapshot = routes
        .into_iter()
        .map(|(to, route)| {
            let found = route.and_then(|route| {
                let next = neighbour_key(to, &route);
                let link = links.get(&route.interface).cloned().unwrap_or(Ok(None))?;
                let neighbour = neighbours.get(&next).cloned().unwrap_or(Ok(None))?;
                combine(next, route, link, neighbour)
            });
            (to, found)
        })
        .collect();
    let frames: BTreeSet<(u32, [u8; 6])> =
        snapshot.values().flatten().map(|hop| (hop.interface, hop.mac)).collect();
    let egress = all(&frames, |(interface, mac)| kernel.egress(interface, mac)).await;
    for found in snapshot.values_mut() {
        let Ok(hop) = found else { continue };
        match egress.get(&(hop.interface, hop.mac)) {
            Some(Ok(interface)) => hop.interface = *interface,
            Some(Err(why)) => *found = Err(why.clone()),
            None => {}
        }
    }
    let next = neighbours
        .into_iter()
        .map(|(next, found)| {
            let settled = matches!(found, Ok(Some(Neighbour { mac: Some(_), settled: true })));
            (next, !settled)
        })
        .collect();
    Resolution { snapshot, next }
}

fn neighbour_key(to: IpAddr, route: &Route) -> NeighbourKey {
    (route.interface, route.gateway.unwrap_or(to))
}

fn combine(
    (interface, address): NeighbourKey,
    route: Route,
    link: Option<Link>,
    neighbour: Option<Neighbour>,
) -> Result<NextHop, Unresolved> {
    // A link that vanished between two requests is down.
    let link = link.filter(|link| link.up).ok_or(Unresolved::LinkDown { interface })?;
    let own_mac = link.mac.ok_or(Unresolved::NotEthernet { interface })?;
    let mac = neighbour
        .and_then(|neighbour| neighbour.mac)
        .ok_or(Unresolved::NoAnswer { interface, address })?;
    let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Ok(NextHop { interface, own_mac, mac, source: route.source, mtu, link_mtu: link.mtu })
}

async fn all<Key, Answer, F>(keys: &BTreeSet<Key>, ask: impl Fn(Key) -> F) -> HashMap<Key, Answer>
where
    Key: Copy + Eq + std::hash::Hash,
    F: Future<Output = Answer>,
{
    let keys: Vec<Key> = keys.iter().copied().collect();
    let mut answers = HashMap::with_capacity(keys.len());
    for some in keys.chunks(MAX_CONCURRENT) {
        let found = join_all(some.iter().map(|key| ask(*key))).await;
        answers.extend(some.iter().copied().zip(found));
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 21));
    const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9));
    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 1));
    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    struct Fake {
        link: Option<Link>,
        neighbours: HashMap<NeighbourKey, Neighbour>,
    }

    impl Kernel for Fake {
        async fn egress(&self, interface: u32, _: [u8; 6]) -> Result<u32, Unresolved> {
            Ok(interface)
        }
        async fn route(&self, to: IpAddr) -> Result<Route, Unresolved> {
            let gateway = (to == FAR).then_some(GATEWAY);
            Ok(Route { interface: 3, gateway, source: Some(HOST), mtu: gateway.map(|_| 1400) })
        }
        async fn link(&self, _: u32) -> Result<Option<Link>, Unresolved> {
            Ok(self.link)
        }
        async fn neighbour(
            &self,
            interface: u32,
            address: IpAddr,
        ) -> Result<Option<Neighbour>, Unresolved> {
            Ok(self.neighbours.get(&(interface, address)).copied())
        }
    }

    fn resolution_of(link: Option<Link>, neighbours: &[(NeighbourKey, Neighbour)]) -> Resolution {
        let fake = Fake { link, neighbours: neighbours.iter().copied().collect() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(resolve_all(&fake, &[HOST, FAR].into()))
    }

    const LINK: Link = Link { mac: Some(OWN), up: true, mtu: 1600 };

    #[test]
    fn targets_behind_a_gateway_use_its_mac() {
        let known = Neighbour { mac: Some(MAC), settled: true };
        let round = resolution_of(Some(LINK), &[((3, GATEWAY), known)]);
        let expected = NextHop {
            interface: 3,
            own_mac: OWN,
            mac: MAC,
            source: Some(HOST),
            mtu: 1400,
            link_mtu: 1600,
        };
        assert_eq!(round.snapshot[&FAR], Ok(expected));
        let unknown = Unresolved::NoAnswer { interface: 3, address: HOST };
        assert_eq!(round.snapshot[&HOST], Err(unknown));
        assert_eq!(round.next, [((3, GATEWAY), false), ((3, HOST), true)].into());
    }

    #[test]
    fn stale_neighbours_are_used_and_probed() {
        let stale = Neighbour { mac: Some(MAC), settled: false };
        let round = resolution_of(Some(LINK), &[((3, HOST), stale)]);
        assert_eq!(round.snapshot[&HOST].as_ref().map(|hop| hop.mac), Ok(MAC));
        assert!(round.next[&(3, HOST)]);
    }

    #[test]
    fn links_that_cannot_send_are_reported() {
        let known = [((3, HOST), Neighbour { mac: Some(MAC), settled: true })];
        let down = resolution_of(Some(Link { up: false, ..LINK }), &known);
        assert_eq!(down.snapshot[&HOST], Err(Unresolved::LinkDown { interface: 3 }));
        let gone = resolution_of(None, &known);
        assert_eq!(gone.snapshot[&HOST], Err(Unresolved::LinkDown { interface: 3 }));
        let tunnel = resolution_of(Some(Link { mac: None, ..LINK }), &known);
        assert_eq!(tunnel.snapshot[&HOST], Err(Unresolved::NotEthernet { interface: 3 }));
    }
}
