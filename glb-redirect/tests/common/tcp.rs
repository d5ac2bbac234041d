//! A TCP client that sends single segments, to bring a server's socket into any state.

use std::net::SocketAddr;

use super::tun::Tun;
use crate::support::packet::{ACK, FIN, SYN, Segment, segment};

/// The client's side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// The next sequence number.
    pub sequence: u32,
    /// The next one expected from the server.
    pub acknowledgement: u32,
}

/// Flags, sequence and acknowledgement number of a segment from `from` to `to`.
fn read(packet: &[u8], from: SocketAddr, to: SocketAddr) -> Option<(u8, u32, u32)> {
    let sliced = etherparse::SlicedPacket::from_ip(packet).ok()?;
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let addresses = match sliced.net? {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        _ => return None,
    };
    let ports = (tcp.source_port(), tcp.destination_port());
    if addresses != (from.ip(), to.ip()) || ports != (from.port(), to.port()) {
        return None;
    }
    let flags = u8::from(tcp.fin())
        | u8::from(tcp.syn()) << 1
        | u8::from(tcp.rst()) << 2
        | u8::from(tcp.ack()) << 4;
    Some((flags, tcp.sequence_number(), tcp.acknowledgment_number()))
}

impl Client {
    /// Sends a SYN and reads the SYN-ACK. The server's socket, if it keeps one, is then in SYN_RECV.
    pub fn syn(wire: &mut Tun, client: SocketAddr, vip: SocketAddr) -> Self {
        let start = 0x1000_0000;
        let syn = Segment { sequence: start, acknowledgement: 0, ..segment(client, vip, SYN) };
        wire.send(&syn.packet());
        let theirs = wire.receive("SYN-ACK", |packet| match read(packet, vip, client) {
            Some((flags, sequence, _)) if flags == SYN | ACK => Some(sequence),
            _ => None,
        });
        Self { client, vip, sequence: start + 1, acknowledgement: theirs.wrapping_add(1) }
    }

    /// The segment with these flags that comes next.
    pub fn segment(&self, flags: u8) -> Segment {
        Segment {
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            ..segment(self.client, self.vip, flags)
        }
    }

    /// Completes the handshake.
    pub fn connect(wire: &mut Tun, client: SocketAddr, vip: SocketAddr) -> Self {
        let connection = Self::syn(wire, client, vip);
        wire.send(&connection.segment(ACK).packet());
        connection
    }

    /// Sends a FIN. The server's socket is then in CLOSE_WAIT, or in TIME_WAIT if it closed first.
    pub fn fin(&mut self, wire: &mut Tun) {
        wire.send(&self.segment(FIN | ACK).packet());
        self.sequence = self.sequence.wrapping_add(1);
        let (vip, client, wanted) = (self.vip, self.client, self.sequence);
        wire.receive("the ACK of our FIN", |packet| match read(packet, vip, client) {
            Some((flags, _, acknowledged)) if flags & ACK != 0 && acknowledged == wanted => {
                Some(())
            }
            _ => None,
        });
    }

    /// Reads the server's FIN. Its socket is in FIN_WAIT_1, or in LAST_ACK if the client closed first.
    pub fn receive_fin(&mut self, wire: &mut Tun) {
        let (vip, client) = (self.vip, self.client);
        let sequence = wire.receive("their FIN", |packet| match read(packet, vip, client) {
            Some((flags, sequence, _)) if flags & FIN != 0 => Some(sequence),
            _ => None,
        });
        self.acknowledgement = sequence.wrapping_add(1);
    }

    /// Acknowledges everything so far.
    pub fn ack(&self, wire: &mut Tun) {
        wire.send(&self.segment(ACK).packet());
    }
}
