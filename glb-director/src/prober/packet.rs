//! The packets of the prober: a client's packet as input of the program, and the echo request that
//! takes its place in the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use glb_common::{checksum::fold, wire::protocol};

/// Marks the prober's echo requests, before the probe's number.
const MAGIC: [u8; 4] = *b"glbp";

/// IP header and echo header with mark and number: the smallest probe.
pub(super) const fn smallest(vip: IpAddr) -> usize {
    (if vip.is_ipv4() { 20 } else { 40 }) + 8 + MAGIC.len() + 8
}

/// The made-up client number `number`, in ranges for benchmarks and documentation.
pub(super) fn client(vip: IpAddr, number: u32) -> (IpAddr, u16) {
    let address = if vip.is_ipv4() {
        Ipv4Addr::from(0xc612_0000 | (number & 0x1_ffff)).into()
    } else {
        Ipv6Addr::from(0x2001_0db8_ffff_0000_0000_0000_0000_0000 | u128::from(number)).into()
    };
    (address, 1024 + (number % 60_000) as u16)
}

/// An Ethernet frame with an IP packet of `length` bytes from a client to a bind. The program reads its
/// addresses and ports only.
pub(super) fn client_frame(
    client: (IpAddr, u16),
    vip: (IpAddr, u16),
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if vip.0.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(ip_header(client.0, vip.0, protocol, length));
    frame.extend(client.1.to_be_bytes());
    frame.extend(vip.1.to_be_bytes());
    frame.resize(14 + length, 0);
    if protocol == protocol::TCP {
        // Data offset and the SYN flag of a TCP header.
        let tcp = 14 + if vip.0.is_ipv4() { 20 } else { 40 };
        frame[tcp + 12..tcp + 14].copy_from_slice(&[0x50, 0x02]);
    }
    frame
}

/// An echo request of `length` bytes, with DF, that carries `number`.
pub(super) fn echo_request(
    source: IpAddr,
    vip: IpAddr,
    identifier: u16,
    number: u64,
    length: usize,
) -> Vec<u8> {
    let v4 = vip.is_ipv4();
    let (protocol, kind) = if v4 { (protocol::ICMP, 8) } else { (protocol::ICMPV6, 128) };
    let mut packet = ip_header(source, vip, protocol, length);
    let start = packet.len();
    packet.extend([kind, 0, 0, 0]);
    packet.extend(identifier.to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend(MAGIC);
    packet.extend(number.to_be_bytes());
    packet.resize(length, 0);
    let pseudo = if v4 {
        0
    } else {
        // ICMPv6 sums the addresses, the length and the protocol too.
        sum(&packet[8..40]) + (length - start) as u32 + u32::from(protocol)
    };
    let checksum = !fold(fold_once(pseudo + sum(&packet[start..])));
    packet[start + 2..start + 4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The number of the probe that an ICMP message answers, if it is an answer to a probe.
pub(super) fn answered_number(message: &[u8], v4: bool) -> Option<u64> {
    let kind = if v4 { 0 } else { 129 };
    let is_answer = message.first() == Some(&kind) && message.get(8..12)? == MAGIC;
    let number = message.get(12..20)?.try_into().ok()?;
    is_answer.then_some(u64::from_be_bytes(number))
}

/// The destination of the outer IP header of a frame, after any VLAN tags.
pub(super) fn outer_destination(frame: &[u8]) -> Option<IpAddr> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    let ip = at + 2;
    match frame.get(at..ip)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(ip + 16..ip + 20)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(ip + 24..ip + 40)?).ok()?.into()),
        _ => None,
    }
}

fn ip_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            ip.extend(from.octets());
            ip.extend(to.octets());
            let checksum = !fold(sum(&ip));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            ip[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            ip.extend(octets(from));
            ip.extend(octets(to));
            ip
        }
    }
}

/// The sum of bytes as 16-bit words.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    bytes.chunks(2).map(word).sum()
}

/// Adds the carries once, so that no further sum overflows.
const fn fold_once(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_requests_are_valid_for_an_independent_parser() {
        for (from, to) in [("10.0.0.1", "203.0.113.10"), ("2001:db8::1", "2001:db8::10")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            for length in [smallest(to), 1_001, 1_460] {
                let packet = echo_request(from, to, 77, 0x1234_5678_9abc, length);
                assert_eq!(packet.len(), length);
                let sliced = etherparse::SlicedPacket::from_ip(&packet).unwrap();
                let start = if to.is_ipv4() { 20 } else { 40 };
                match sliced.transport.unwrap() {
                    etherparse::TransportSlice::Icmpv4(icmp) => {
                        let sums = icmp.header().icmp_type.calc_checksum(icmp.payload());
                        assert_eq!(icmp.checksum(), sums);
                    }
                    etherparse::TransportSlice::Icmpv6(icmp) => {
                        let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { panic!() };
                        assert!(icmp.is_checksum_valid(from.octets(), to.octets()));
                    }
                    other => panic!("{other:?}"),
                }
                let mut message = packet[start..].to_vec();
                assert_eq!(answered_number(&message, to.is_ipv4()), None);
                message[0] = if to.is_ipv4() { 0 } else { 129 };
                assert_eq!(answered_number(&message, to.is_ipv4()), Some(0x1234_5678_9abc));
                assert_eq!(answered_number(&message[..12], to.is_ipv4()), None);
            }
        }
    }
}
