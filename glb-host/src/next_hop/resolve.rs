//! From what the kernel knows to next hops: no sockets here.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    net::IpAddr,
};

use futures::future::join_all;

use super::{NextHop, Snapshot, Unresolved};

/// Requests under way at once; more could overflow the socket's buffer with answers.
const AT_ONCE: usize = 32;

/// The kernel's answer to "how would you send to this address?".
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
    /// Nothing if it is not Ethernet.
    pub(super) mac: Option<[u8; 6]>,
    pub(super) up: bool,
    pub(super) mtu: u32,
}

/// A neighbour table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Nothing while it is not known.
    pub(super) mac: Option<[u8; 6]>,
    /// Whether the kernel keeps it without being asked: confirmed of late, or set by hand.
    pub(super) settled: bool,
}

/// The questions that are asked of the kernel.
pub(super) trait Kernel: Send + Sync {
    fn route(&self, to: IpAddr) -> impl Future<Output = Result<Route, Unresolved>> + Send;
    fn link(&self, interface: u32)
    -> impl Future<Output = Result<Option<Link>, Unresolved>> + Send;
    fn neighbour(
        &self,
        interface: u32,
        address: IpAddr,
    ) -> impl Future<Output = Result<Option<Neighbour>, Unresolved>> + Send;
}

/// Who stands next on the way: an interface and an address on it.
pub(super) type Next = (u32, IpAddr);

/// One round of questions.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) snapshot: Snapshot,
    /// Everyone who stands next on a way, and whether the kernel should be asked to resolve or
    /// confirm him.
    pub(super) next: HashMap<Next, bool>,
}

/// Asks the kernel about every target.
pub(super) async fn round<K: Kernel>(kernel: &K, targets: &BTreeSet<IpAddr>) -> Round {
    let routes = all(targets, |to| kernel.route(to)).await;
    let used = routes.values().filter_map(|route| route.as_ref().ok());
    let interfaces: BTreeSet<u32> = used.clone().map(|route| route.interface).collect();
    let next: BTreeSet<Next> = routes
        .iter()
        .filter_map(|(to, route)| route.as_ref().ok().map(|route| next_of(*to, route)))
        .collect();
    let links = all(&interfaces, |interface| kernel.link(interface)).await;
    let neighbours = all(&next, |(interface, address)| kernel.neighbour(interface, address)).await;

    let snapshot = routes
        .into_iter()
        .map(|(to, route)| {
            let found = route.and_then(|route| {
                let next = next_of(to, &route);
                let link = links.get(&route.interface).cloned().unwrap_or(Ok(None))?;
                let neighbour = neighbours.get(&next).cloned().unwrap_or(Ok(None))?;
                combine(next, route, link, neighbour)
            });
            (to, found)
        })
        .collect();
    let next = neighbours
        .into_iter()
        .map(|(next, found)| {
            let settled = matches!(found, Ok(Some(Neighbour { mac: Some(_), settled: true })));
            (next, !settled)
        })
        .collect();
    Round { snapshot, next }
}

fn next_of(to: IpAddr, route: &Route) -> Next {
    (route.interface, route.gateway.unwrap_or(to))
}

fn combine(
    (interface, address): Next,
    route: Route,
    link: Option<Link>,
    neighbour: Option<Neighbour>,
) -> Result<NextHop, Unresolved> {
    // A link that vanished between two questions is down.
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
    for some in keys.chunks(AT_ONCE) {
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
        neighbours: HashMap<Next, Neighbour>,
    }

    impl Kernel for Fake {
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

    fn round_of(link: Option<Link>, neighbours: &[(Next, Neighbour)]) -> Round {
        let fake = Fake { link, neighbours: neighbours.iter().copied().collect() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(round(&fake, &[HOST, FAR].into()))
    }

    const LINK: Link = Link { mac: Some(OWN), up: true, mtu: 1600 };

    #[test]
    fn the_gateway_stands_for_what_is_behind_it() {
        let known = Neighbour { mac: Some(MAC), settled: true };
        let round = round_of(Some(LINK), &[((3, GATEWAY), known)]);
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
    fn a_stale_neighbour_is_used_and_asked_for() {
        let stale = Neighbour { mac: Some(MAC), settled: false };
        let round = round_of(Some(LINK), &[((3, HOST), stale)]);
        assert_eq!(round.snapshot[&HOST].as_ref().map(|hop| hop.mac), Ok(MAC));
        assert!(round.next[&(3, HOST)]);
    }

    #[test]
    fn a_link_that_cannot_send_is_named() {
        let known = [((3, HOST), Neighbour { mac: Some(MAC), settled: true })];
        let down = round_of(Some(Link { up: false, ..LINK }), &known);
        assert_eq!(down.snapshot[&HOST], Err(Unresolved::LinkDown { interface: 3 }));
        let gone = round_of(None, &known);
        assert_eq!(gone.snapshot[&HOST], Err(Unresolved::LinkDown { interface: 3 }));
        let tunnel = round_of(Some(Link { mac: None, ..LINK }), &known);
        assert_eq!(tunnel.snapshot[&HOST], Err(Unresolved::NotEthernet { interface: 3 }));
    }
}
