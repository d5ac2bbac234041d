//! The `gue` check: an ICMP echo request through the GUE tunnel. The backend decapsulates it and
//! replies directly.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use glb_common::checksum::{fold, sum_16};

use super::{
    CurrentStep, Failure,
    icmp_echo::{IcmpEcho, V4_REQUEST, V6_REQUEST, message, sum},
};
use crate::check::Target;

pub(super) async fn run(
    target: &Target,
    port: u16,
    echo: &IcmpEcho,
    step: &CurrentStep,
) -> Result<(), Failure> {
    step.set("echo through the tunnel");
    let backend = SocketAddr::new(target.address, port);
    let failed = |source| Failure::Io { step: "gue", source };
    let any: IpAddr = match backend {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = target.check.settings.source.unwrap_or(any);
    let socket = UdpSocket::bind((source, 0)).map_err(failed)?;
    socket.connect(backend).map_err(failed)?;
    let own = socket.local_addr().map_err(failed)?.ip();
    let reply = echo.expect_reply(backend.ip());
    let inner = match (own, backend.ip()) {
        (IpAddr::V4(own), IpAddr::V4(to)) => inner_v4(own, to, reply.number),
        (IpAddr::V6(own), IpAddr::V6(to)) => inner_v6(own, to, reply.number),
        _ => return Err(failed(io::ErrorKind::InvalidInput.into())),
    };
    socket.send(&encapsulate(&inner, backend.ip())).map_err(failed)?;
    reply.wait().await
}

fn inner_v4(own: Ipv4Addr, to: Ipv4Addr, number: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 1, 0, 0];
    packet.extend(own.octets());
    packet.extend(to.octets());
    let checksum = !fold(sum(&packet));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(message(V4_REQUEST, number, 0));
    packet
}

fn inner_v6(own: Ipv6Addr, to: Ipv6Addr, number: u64) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 64];
    packet.extend(own.octets());
    packet.extend(to.octets());
    let pseudo = sum_16(own.octets()) + sum_16(to.octets()) + 24 + 58;
    packet.extend(message(V6_REQUEST, number, pseudo));
    packet
}

/// Builds the UDP payload of a tunnel packet to one backend: GUE with an empty hop list (private type
/// 1 for lists of IPv6 addresses).
pub(super) fn encapsulate(inner: &[u8], backend: IpAddr) -> Vec<u8> {
    let protocol = if inner.first().is_some_and(|byte| byte >> 4 == 4) { 4 } else { 41 };
    let private_type = u8::from(backend.is_ipv6());
    let mut payload = vec![1, protocol, 0, 0, 0, private_type, 0, 0];
    payload.extend_from_slice(inner);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::icmp_echo::{V4_REPLY, reply_number};

    #[test]
    fn inner_packets_have_correct_checksums() {
        let packet = inner_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 0x1234_5678_9abc);
        assert_eq!(packet.len(), 44);
        assert_eq!(fold(sum(&packet[..20])), 0xffff);
        assert_eq!(fold(sum(&packet[20..])), 0xffff);
        let (own, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let packet = inner_v6(own, to, 77);
        let pseudo = sum_16(own.octets()) + sum_16(to.octets()) + 24 + 58;
        assert_eq!(fold(pseudo + sum(&packet[40..])), 0xffff);
    }

    #[test]
    fn only_replies_to_our_requests_count() {
        let mut packet = inner_v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 99);
        assert_eq!(reply_number(&packet, true), None);
        packet[20] = V4_REPLY;
        assert_eq!(reply_number(&packet, true), Some(99));
        packet[30] ^= 1;
        assert_eq!(reply_number(&packet, true), None);
        assert_eq!(reply_number(&packet[..30], true), None);
    }
}
