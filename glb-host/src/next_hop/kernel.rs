//! The rtnetlink connection: requests to the kernel, and its notifications.

use std::{io, net::IpAddr, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
            RouteVia,
        },
    },
    sys::{AsyncSocket, SocketAddr},
};

use super::{
    Gateway, Transmit, Unresolved,
    egress::{self, Device},
    resolve::{Kernel, Link, Neighbour, NeighbourKey, Route},
};

/// How long the kernel may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The receive buffer for notifications, in bytes; an overflow costs a full resolution.
const EVENT_BUFFER: libc::c_int = 1 << 20;

/// The netlink socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a netlink route socket: {0}")]
pub struct NetlinkError(#[from] io::Error);

/// A netlink connection for requests.
pub(super) struct Netlink {
    handle: Handle,
    /// The configured gateway; with it, no neighbour is looked up and no route is needed.
    gateway: Option<Gateway>,
    transmit: Transmit,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A refused request.
enum Refused {
    Errno(io::Error),
    Other(String),
}

impl From<Refused> for Unresolved {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Errno(error) => Self::Kernel(error.to_string()),
            Refused::Other(text) => Self::Kernel(text),
        }
    }
}

impl Netlink {
    pub(super) fn open(gateway: Option<Gateway>, transmit: Transmit) -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, gateway, transmit, task: tokio::spawn(connection) })
    }

    /// Opens another connection with the same settings.
    pub(super) fn reopen(&self) -> Result<Self, NetlinkError> {
        Self::open(self.gateway.clone(), self.transmit.clone())
    }

    /// Makes the kernel resolve a neighbour, or confirm one that it knows.
    pub(super) async fn probe(&self, interface: u32, address: IpAddr) -> Result<(), Unresolved> {
        // A probe would turn a permanent neighbour entry into one that expires. One may have been
        // added since the last lookup, so it is looked up again here.
        let flags = match self.neighbour(interface, address).await? {
            Some(known) if known.settled => return Ok(()),
            Some(_) => NLM_F_ACK,
            None => NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        };
        let mut message = neighbour_message(interface, address);
        // Acts as if a packet had just been sent there (`neigh_event_send`).
        message.header.flags = NeighbourFlags::Use;
        match self.request(RouteNetlinkMessage::NewNeighbour(message), flags).await {
            // The entry was added or removed in this instant: a notification follows.
            Err(Refused::Errno(error))
                if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) =>
            {
                Ok(())
            }
            Err(refused) => Err(refused.into()),
            Ok(_) => Ok(()),
        }
    }

    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, Refused> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let mut answers =
            handle.request(request).map_err(|error| Refused::Other(error.to_string()))?;
        let answer = tokio::time::timeout(TIMEOUT, answers.next())
            .await
            .map_err(|_| Refused::Other(format!("no answer within {TIMEOUT:?}")))?;
        match answer.map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => Ok(Some(message)),
            Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                Err(Refused::Errno(error.to_io()))
            }
            Some(NetlinkPayload::Overrun(_)) => Err(Refused::Other("overrun".into())),
            _ => Ok(None),
        }
    }
}

/// How many devices may be stacked, to end a loop.
const MAX_STACKED: usize = 4;

impl Netlink {
    /// Returns the port of a bridge that leads to this MAC address.
    async fn bridge_port(&self, bridge: u32, mac: [u8; 6]) -> Result<u32, Unresolved> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes.push(NeighbourAttribute::Controller(bridge));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        match self.request(RouteNetlinkMessage::GetNeighbour(message), 0).await {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message)))
                if message.header.ifindex != bridge =>
            {
                Ok(message.header.ifindex)
            }
            Ok(_) | Err(Refused::Errno(_)) => {
                let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                let why = format!("the bridge has not learned a port for {}", mac.join(":"));
                Err(egress::cannot_transmit(bridge, why))
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn device(&self, interface: u32) -> Result<Device, Unresolved> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        match self.request(RouteNetlinkMessage::GetLink(message), 0).await {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Device::read(&message)),
            Ok(_) => Err(Unresolved::LinkDown { interface }),
            Err(refused) => Err(refused.into()),
        }
    }
}

impl Kernel for Netlink {
    async fn egress(&self, interface: u32, mac: [u8; 6]) -> Result<u32, Unresolved> {
        if self.transmit == Transmit::AnyDevice {
            return Ok(interface);
        }
        let (mut current, mut tags) = (interface, Vec::new());
        for _ in 0..MAX_STACKED {
            match self.device(current).await? {
                Device::Vlan { id, below } => {
                    tags.push(id);
                    current = below;
                }
                Device::Bridge { filters_vlans: true } => {
                    let why = "the bridge filters VLANs; route to the backends through its port";
                    return Err(egress::cannot_transmit(current, why));
                }
                Device::Bridge { filters_vlans: false } => {
                    current = self.bridge_port(current, mac).await?;
                }
                Device::Port { kind, has_program } => {
                    egress::check_tags(interface, &tags, &self.transmit)?;
                    egress::ask_port(current, kind.as_deref(), has_program)?;
                    // The caller looks the tag up by the VLAN device.
                    let is_tagged = self.transmit == Transmit::XdpTagged && !tags.is_empty();
                    return Ok(if is_tagged { interface } else { current });
                }
            }
        }
        Err(egress::cannot_transmit(interface, "too many devices are stacked"))
    }

    async fn route(&self, to: IpAddr) -> Result<Route, Unresolved> {
        let (address_family, bits) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family,
            destination_prefix_length: bits,
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(to.into()));
        match self.request(RouteNetlinkMessage::GetRoute(message), 0).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => read_route(&message),
            Ok(_) => Err(Unresolved::Kernel("an empty answer to a route request".into())),
            // "Network unreachable", "no route to host", "permission denied" (prohibit), …
            Err(Refused::Errno(error)) => {
                let route = self.gateway.as_ref().and_then(|gateway| gateway.route(to));
                route.ok_or_else(|| Unresolved::NoRoute(error.to_string()))
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn link(&self, interface: u32) -> Result<Option<Link>, Unresolved> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        match self.request(RouteNetlinkMessage::GetLink(message), 0).await {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(read_link(&message))),
            Err(Refused::Errno(error)) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Ok(_) => Err(Unresolved::Kernel("an empty answer to a link request".into())),
            Err(refused) => Err(refused.into()),
        }
    }

    async fn neighbour(
        &self,
        interface: u32,
        address: IpAddr,
    ) -> Result<Option<Neighbour>, Unresolved> {
        if let Some(gateway) = &self.gateway {
            return Ok(Some(Neighbour { mac: Some(gateway.mac), settled: true }));
        }
        let message = neighbour_message(interface, address);
        match self.request(RouteNetlinkMessage::GetNeighbour(message), 0).await {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => {
                Ok(Some(read_neighbour(&message)))
            }
            Ok(_) => Ok(None),
            Err(Refused::Errno(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }
}

fn neighbour_message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.header.ifindex = interface;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}

fn address(found: &RouteAddress) -> Option<IpAddr> {
    match found {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read_route(message: &RouteMessage) -> Result<Route, Unresolved> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::Local),
        kind => return Err(Unresolved::NoRoute(format!("its type is {kind:?}"))),
    }
    let mut route = Route { interface: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => route.interface = *interface,
            RouteAttribute::Gateway(gateway) => route.gateway = address(gateway),
            // An IPv4 route through an IPv6 neighbour (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                route.gateway = Some((*gateway).into());
            }
            RouteAttribute::PrefSource(source) => route.source = address(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if route.interface == 0 {
        return Err(Unresolved::NoRoute("it names no interface".into()));
    }
    Ok(route)
}

fn read_link(message: &LinkMessage) -> Link {
    let needed = LinkFlags::Up | LinkFlags::LowerUp;
    let mut link = Link { mac: None, up: message.header.flags.contains(needed), mtu: 0 };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.as_slice().try_into().ok(),
            _ => {}
        }
    }
    link
}

fn read_neighbour(message: &NeighbourMessage) -> Neighbour {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let state = message.header.state;
    let usable = matches!(state, Reachable | Permanent | Noarp | Stale | Delay | Probe);
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) if usable => mac.as_slice().try_into().ok(),
        _ => None,
    });
    // The kernel moves Delay and Probe on to Reachable or Failed by itself.
    let settled = matches!(state, Reachable | Permanent | Noarp | Delay | Probe);
    Neighbour { mac, settled }
}

/// A notification.
#[derive(Debug)]
pub(super) enum Event {
    /// A neighbour changed.
    Neighbour(NeighbourKey),
    /// A link, route, rule or address changed.
    Other,
    /// Notifications were lost.
    Overrun,
}

/// The stream of notifications.
pub(super) struct Events {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Events {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        use MulticastGroup as Group;
        let groups = [
            Group::Link,
            Group::Neigh,
            Group::Ipv4Ifaddr,
            Group::Ipv4Route,
            Group::Ipv4Rule,
            Group::Ipv6Ifaddr,
            Group::Ipv6Route,
            Group::Ipv6Rule,
            Group::Nexthop,
        ];
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(EVENT_BUFFER)?;
        Ok(Self { messages, task: tokio::spawn(connection) })
    }

    /// Returns the next notification, or `None` when netlink is closed.
    pub(super) async fn next(&mut self) -> Option<Event> {
        let (message, _) = self.messages.next().await?;
        Some(match message.payload {
            NetlinkPayload::Overrun(_) => {
                tracing::debug!("netlink notifications lost; resolving everything again");
                Event::Overrun
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(message)
                | RouteNetlinkMessage::DelNeighbour(message),
            ) => read_neighbour_event(&message),
            _ => Event::Other,
        })
    }
}

fn read_neighbour_event(message: &NeighbourMessage) -> Event {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::from(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::from(*address))
        }
        _ => None,
    });
    match address {
        Some(address) => Event::Neighbour((message.header.ifindex, address)),
        None => Event::Other,
    }
}
