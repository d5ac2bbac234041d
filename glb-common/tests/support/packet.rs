//! Packets by hand, with right checksums unless told otherwise.

use std::net::{IpAddr, SocketAddr};

use super::{OWN_MAC, SENDER_MAC, ip};

/// The Internet checksum of some pieces, each of even length but the last.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for piece in pieces {
        for word in piece.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet around a payload. `ecn` are the two low bits of the traffic class.
pub fn ip_packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ecn: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = match source {
        IpAddr::V4(_) => {
            let total = (20 + payload.len()) as u16;
            let mut header = vec![0x45, ecn, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header.extend(octets(source));
            header.extend(octets(destination));
            let sum = checksum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        IpAddr::V6(_) => {
            let mut header = vec![0x60, ecn << 4, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    };
    packet.extend(payload);
    packet
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Bytes of payload.
    pub data: usize,
    pub ecn: u8,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// A segment with these flags.
pub fn segment(client: SocketAddr, vip: SocketAddr, flags: u8) -> Segment {
    Segment { client, vip, flags, sequence: 1000, acknowledgement: 2000, data: 0, ecn: 0 }
}

impl Segment {
    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(self.vip.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(std::iter::repeat_n(b'x', self.data));
        let pseudo = pseudo(self.client.ip(), self.vip.ip(), 6, tcp.len());
        let sum = checksum(&[&pseudo, &tcp]).to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        ip_packet(self.client.ip(), self.vip.ip(), 6, self.ecn, &tcp)
    }
}

/// An ICMP message. Only IPv4 messages get a checksum.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 120];
    message.extend(rest);
    let (protocol, sum) = match source {
        IpAddr::V4(_) => (1, checksum(&[&message])),
        IpAddr::V6(_) => {
            (58, checksum(&[&pseudo(source, destination, 58, message.len()), &message]))
        }
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip_packet(source, destination, protocol, 0, &message)
}

/// The "too big" error that a router at `router` sends about the answer of `vip` to `client`.
pub fn too_big(router: IpAddr, client: SocketAddr, vip: SocketAddr) -> Vec<u8> {
    let quoted = segment(vip, client, ACK).packet();
    match router {
        IpAddr::V4(_) => icmp(router, vip.ip(), 3, 4, &quoted),
        IpAddr::V6(_) => icmp(router, vip.ip(), 2, 0, &quoted),
    }
}

/// A packet of the tunnel.
#[derive(Clone, Debug)]
pub struct Gue {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hops: Vec<IpAddr>,
    pub next_hop: u8,
    /// Version, control bit and hlen; right if not said.
    pub first: Option<u8>,
    pub inner_protocol: Option<u8>,
    pub flags: [u8; 2],
    pub private_type: Option<u16>,
    pub hop_count: Option<u8>,
    /// True if the outer UDP checksum is there.
    pub udp_checksum: bool,
    pub ecn: u8,
    pub port: u16,
    pub inner: Vec<u8>,
}

/// From the director to 10.0.2.21, then 10.0.2.22.
pub fn gue(inner: Vec<u8>) -> Gue {
    Gue {
        source: ip("10.0.2.10"),
        destination: ip("10.0.2.21"),
        hops: vec![ip("10.0.2.22")],
        next_hop: 0,
        first: None,
        inner_protocol: None,
        flags: [0; 2],
        private_type: None,
        hop_count: None,
        udp_checksum: false,
        ecn: 0,
        port: 19523,
        inner,
    }
}

/// The same over IPv6.
pub fn gue_v6(inner: Vec<u8>) -> Gue {
    Gue {
        source: ip("fd00:2::10"),
        destination: ip("fd00:2::21"),
        hops: vec![ip("fd00:2::22")],
        ..gue(inner)
    }
}

impl Gue {
    /// The frame, Ethernet header included.
    pub fn frame(&self) -> Vec<u8> {
        let v6 = self.source.is_ipv6();
        let words = if v6 { 4 } else { 1 };
        let inner_protocol = match self.inner.first() {
            Some(byte) if byte >> 4 == 6 => 41,
            _ => 4,
        };
        let mut gue = vec![
            self.first.unwrap_or((1 + words * self.hops.len()) as u8 & 0x1f),
            self.inner_protocol.unwrap_or(inner_protocol),
        ];
        gue.extend(self.flags);
        gue.extend(self.private_type.unwrap_or(u16::from(v6)).to_be_bytes());
        gue.extend([self.next_hop, self.hop_count.unwrap_or(self.hops.len() as u8)]);
        for hop in &self.hops {
            gue.extend(octets(*hop));
        }
        gue.extend(&self.inner);
        let mut udp = 0x8123u16.to_be_bytes().to_vec();
        udp.extend(self.port.to_be_bytes());
        udp.extend(((8 + gue.len()) as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(gue);
        if self.udp_checksum {
            let pseudo = pseudo(self.source, self.destination, 17, udp.len());
            let sum = match checksum(&[&pseudo, &udp]) {
                0 => 0xffff,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        ethernet(&ip_packet(self.source, self.destination, 17, self.ecn, &udp))
    }
}

/// A frame around an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    let mut frame = [OWN_MAC, SENDER_MAC].concat();
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(packet);
    frame
}

/// A frame with VLAN tags (EtherType, then priority and VLAN) behind its MAC addresses.
pub fn tagged(frame: &[u8], tags: &[u32]) -> Vec<u8> {
    let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.to_be_bytes()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An IPv6 packet with extension headers: of each its number and what follows the number of the next
/// one in it.
pub fn extended(packet: &[u8], headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut next = packet[6];
    let mut chain = Vec::new();
    for (kind, rest) in headers.iter().rev() {
        chain.splice(0..0, [&[next], &rest[..]].concat());
        next = *kind;
    }
    let length = (packet.len() - 40 + chain.len()) as u16;
    let mut packet = [&packet[..40], &chain, &packet[40..]].concat();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet[6] = next;
    packet
}
