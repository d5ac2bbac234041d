//! A frame's headers as structures and as text.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use glb_common::{
    flow_dissector::{self, FlowKeys},
    wire::protocol,
};
use serde::Serialize;

/// Protocol, addresses and ports of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FiveTuple {
    /// Name of the IP protocol, or its number.
    pub protocol: String,
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

impl From<&FlowKeys> for FiveTuple {
    fn from(ends: &FlowKeys) -> Self {
        let port = |port| ends.has_ports.then_some(port);
        Self {
            protocol: protocol_name(ends.protocol),
            source: address(ends.family, ends.source),
            source_port: port(ends.source_port),
            destination: address(ends.family, ends.destination),
            destination_port: port(ends.destination_port),
        }
    }
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, address: IpAddr, port: Option<u16>| match port {
            Some(port) => write!(f, "{}", SocketAddr::new(address, port)),
            None => write!(f, "{address}"),
        };
        write!(f, "{} ", self.protocol)?;
        end(f, self.source, self.source_port)?;
        write!(f, " > ")?;
        end(f, self.destination, self.destination_port)
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMP => "icmp".into(),
        protocol::ICMPV6 => "icmp6".into(),
        number => format!("proto-{number}"),
    }
}

fn address(family: u8, [high, low]: [u64; 2]) -> IpAddr {
    if family == 4 {
        return Ipv4Addr::from((low as u32).to_le_bytes()).into();
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    Ipv6Addr::from(bytes).into()
}

/// A packet's tunnel header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// The outer source: the director, or the backend that forwarded the packet.
    pub source: IpAddr,
    /// The outer destination: a backend.
    pub destination: IpAddr,
    /// The listed hops, in order.
    pub listed: Vec<IpAddr>,
    /// The index of the next hop in the list.
    pub next_hop: u8,
}

/// The headers of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The tunnel header, if the frame has one.
    pub tunnel: Option<Tunnel>,
    /// The packet: the inner one if the frame is a tunnel packet.
    pub packet: Option<FiveTuple>,
    /// The packet that an ICMP error quotes.
    pub quoted: Option<FiveTuple>,
}

impl Headers {
    /// Parses `frame`.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut layers = Vec::new();
        flow_dissector::visit(frame, |ends| {
            layers.push(FiveTuple::from(ends));
            false
        });
        let mut layers = layers.into_iter();
        let tunnel = flow_dissector::tunnel(frame).map(|(ends, gue, start)| {
            let outer = FiveTuple::from(&ends);
            let width = if gue.private_type == [0, 1] { 16 } else { 4 };
            let hops = frame.get(start..).unwrap_or_default().chunks_exact(width);
            let listed = hops.take(usize::from(gue.hop_count)).filter_map(hop).collect();
            Tunnel {
                source: outer.source,
                destination: outer.destination,
                listed,
                next_hop: gue.next_hop,
            }
        });
        if tunnel.is_some() {
            layers.next();
        }
        Self { tunnel, packet: layers.next(), quoted: layers.next() }
    }
}

fn hop(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Tunnel { source, destination, .. }) = &self.tunnel {
            write!(f, "gue {source} > {destination}")?;
            if self.packet.is_some() {
                write!(f, ": ")?;
            }
        }
        match (&self.packet, &self.quoted) {
            (Some(packet), Some(quoted)) => write!(f, "{packet} about {quoted}"),
            (Some(packet), None) => write!(f, "{packet}"),
            (None, _) if self.tunnel.is_some() => Ok(()),
            (None, _) => write!(f, "not IP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a GUE packet with two listed hops, of which the second is next, around a TCP
    /// segment.
    fn tunnelled() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x80, 1, 0x4c, 0x43, 0, 0, 0, 0]);
        frame.extend([3, 4, 0, 0, 0, 0, 1, 2, 10, 0, 0, 3, 10, 0, 0, 4]);
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 198, 51, 100, 7, 203, 0, 113, 1]);
        frame.extend([0x13, 0x88, 0x01, 0xbb]);
        frame
    }

    #[test]
    fn tunnel_and_inner_packet_are_parsed() {
        let frame = tunnelled();
        let headers = Headers::of(&frame);
        assert_eq!(
            headers.to_string(),
            "gue 10.0.0.1 > 10.0.0.2: tcp 198.51.100.7:5000 > 203.0.113.1:443"
        );
        let tunnel = headers.tunnel.unwrap();
        assert_eq!(tunnel.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(tunnel.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(tunnel.listed, [[10, 0, 0, 3], [10, 0, 0, 4]].map(IpAddr::from));
        assert_eq!(tunnel.next_hop, 1);
        // Truncated in the list.
        let headers = Headers::of(&frame[..55]);
        assert_eq!(headers.to_string(), "gue 10.0.0.1 > 10.0.0.2");
        assert_eq!(headers.tunnel.unwrap().listed.len(), 1);
        assert_eq!(Headers::of(&[0; 14]).to_string(), "not IP");
        assert_eq!(Headers::of(&[]), Headers::default());
    }
}
