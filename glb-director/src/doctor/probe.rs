//! Sends a packet through the attached program to each backend, and waits for the answers.
//!
//! For each table and address family, the probe runs SYNs of invented clients through the attached program
//! (`BPF_PROG_TEST_RUN`) until every backend was chosen as first hop once. It then sends the program's
//! outer headers to the backend with a SYN of this machine inside. The backend's answer comes back here
//! from the VIP, by the backend's own route to its clients. This machine's kernel resets the connection,
//! which it did not begin. The counters include these packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use aya::programs::Xdp;
use glb_common::checksum::{fold, sum_4, sum_16};
use glb_host::{
    bpffs::PinFolder,
    generations,
    next_hop::{NextHops, Snapshot},
    raw_socket,
};
use glb_table::{Proto, Table, TableSet};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{config::Config, generation::self_test};

/// How long a backend may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of clients to try for each backend; enough to choose every backend with any share.
const TRIES: u32 = 400;

/// A probe and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The table's name.
    pub table: String,
    /// The probed VIP and port.
    pub vip: String,
    /// The probed backend.
    pub backend: IpAddr,
    /// The outcome.
    pub outcome: Outcome,
}

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The service answered.
    Answered {
        /// The time to the answer.
        microseconds: u64,
    },
    /// The backend's kernel refused: nothing listens on the VIP's port.
    Refused,
    /// No answer arrived in time.
    Silent,
    /// The program never chose the backend; for example, a draining one is first hop of no row.
    NeverFirst,
    /// The probe could not be sent.
    NotAsked {
        /// The reason.
        why: String,
    },
}

/// Why no probe can be sent.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No program is attached.
    #[error("no program of this director is attached; start the daemon first")]
    NotAttached,
    /// The pins cannot be opened.
    #[error(transparent)]
    Pins(#[from] glb_host::bpffs::PinFolderError),
    /// The attached program cannot be opened.
    #[error(transparent)]
    Generation(#[from] generations::SwapError),
    /// Netlink cannot be opened.
    #[error(transparent)]
    NextHops(#[from] glb_host::next_hop::NetlinkError),
    /// A raw socket cannot be opened.
    #[error("cannot {what}: {source}. Run this as root, or with CAP_NET_RAW")]
    Socket {
        /// The operation.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The program cannot be run on a packet.
    #[error("cannot run the attached program on a test packet: {0}")]
    Run(aya::programs::ProgramError),
}

/// A probe that was sent.
struct Sent {
    index: usize,
    vip: (IpAddr, u16),
    port: u16,
    at: Instant,
}

/// Probes each usable backend of each table, over each address family of its VIPs.
///
/// # Errors
/// When no program is attached, or permissions are missing.
pub async fn run(config: &Config, tables: &TableSet) -> Result<Vec<Probed>, ProbeError> {
    let pins = PinFolder::open(&config.bpffs_dir, crate::OWNER)?.ok_or(ProbeError::NotAttached)?;
    let (_, program) =
        generations::current_program(&config.interfaces, &pins)?.ok_or(ProbeError::NotAttached)?;
    let addresses: BTreeSet<IpAddr> = super::backends(tables).collect();
    let next_hops = NextHops::start_with(config.gateway(), config.transmit(), addresses).await?;
    let ways = next_hops.wait_resolved(ANSWER_TIMEOUT).await;
    let replies = ReplySockets::open()?;
    let mut probed = Vec::new();
    let mut frames = Vec::new();
    // Distinct source ports, so that answers can be matched to probes.
    let mut port = 20_000 + (std::process::id() as u16 % 20_000);
    for table in &tables.tables {
        for vip in asked(table) {
            for (backend, chosen) in choose(&program, table, vip)? {
                port = port.wrapping_add(1).max(1024);
                let outcome = match chosen.map(|chosen| frame(&chosen, backend, vip, port, &ways)) {
                    None => Outcome::NeverFirst,
                    Some(Err(why)) => Outcome::NotAsked { why },
                    Some(Ok((interface, frame))) => {
                        frames.push((probed.len(), vip, port, interface, frame));
                        Outcome::Silent
                    }
                };
                let vip = std::net::SocketAddr::new(vip.0, vip.1).to_string();
                probed.push(Probed { table: table.name.clone(), vip, backend, outcome });
            }
        }
    }
    // Sent together, so that the measured times are the network's.
    let mut sent = Vec::new();
    for (index, vip, port, interface, frame) in frames {
        match raw_socket::send_frame(interface, &frame) {
            Ok(()) => sent.push(Sent { index, vip, port, at: Instant::now() }),
            Err(error) => probed[index].outcome = Outcome::NotAsked { why: error.to_string() },
        }
        replies.receive(&sent, &mut probed, Duration::ZERO);
    }
    replies.receive(&sent, &mut probed, ANSWER_TIMEOUT);
    Ok(probed)
}

/// Returns address and port of the first TCP bind of each address family.
fn asked(table: &Table) -> Vec<(IpAddr, u16)> {
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for bind in table.binds.iter().filter(|bind| bind.proto == Proto::Tcp) {
        let address = bind.prefix.addr();
        if !found.iter().any(|(other, _)| other.is_ipv4() == address.is_ipv4()) {
            found.push((address, *bind.ports.start()));
        }
    }
    found
}

/// The program's output for a client's packet.
struct Chosen {
    /// All bytes before the inner packet.
    outer: Vec<u8>,
}

/// Returns for each usable backend the program's output for a packet that it sends there.
fn choose(
    program: &Xdp,
    table: &Table,
    vip: (IpAddr, u16),
) -> Result<Vec<(IpAddr, Option<Chosen>)>, ProbeError> {
    let usable = table.backends.iter().filter(|backend| backend.is_usable());
    let mut found: BTreeMap<IpAddr, Option<Chosen>> =
        usable.map(|backend| (backend.address, None)).collect();
    let tries = TRIES * found.len() as u32;
    for number in 0..tries {
        if found.values().all(Option::is_some) {
            break;
        }
        let inner = syn((client(vip.0, number), 1024 + (number % 60_000) as u16), vip);
        let mut frame = ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], vip.0);
        frame.extend(&inner);
        let (_, out) = self_test::test_run(program, &frame).map_err(ProbeError::Run)?;
        // A passed or dropped packet has no outer headers.
        let Some(length) = out.len().checked_sub(inner.len()).filter(|l| *l > 34) else { continue };
        if out[length..] != inner[..] {
            continue;
        }
        let Some(to) = destination(&out) else { continue };
        if let Some(chosen @ None) = found.get_mut(&to) {
            *chosen = Some(Chosen { outer: out[..length].to_vec() });
        }
    }
    Ok(found.into_iter().collect())
}

/// Returns an invented client of the VIP's family, from ranges for benchmarks and documentation.
fn client(vip: IpAddr, number: u32) -> IpAddr {
    if vip.is_ipv4() {
        Ipv4Addr::from(0xc612_0000 | (number & 0x1_ffff)).into()
    } else {
        Ipv6Addr::from(0x2001_0db8_ffff_0000_0000_0000_0000_0000 | u128::from(number)).into()
    }
}

/// Returns the outer destination of a frame.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(30..34)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(38..54)?).ok()?.into()),
        _ => None,
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], inner: IpAddr) -> Vec<u8> {
    let kind = if inner.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&to[..], &from, &kind].concat()
}

/// Builds an IP packet with a SYN.
fn syn(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut tcp = Vec::from(from.1.to_be_bytes());
    tcp.extend(to.1.to_be_bytes());
    tcp.extend([0x67, 0x6c, 0x62, 0x70, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
    let length = tcp.len() as u16;
    let (mut packet, sum) = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
            ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            ip.extend(from.octets());
            ip.extend(to.octets());
            let check = !fold(words(&ip));
            ip[10..12].copy_from_slice(&check.to_be_bytes());
            (ip, sum_4(from.octets()) + sum_4(to.octets()))
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
            ip[4..6].copy_from_slice(&length.to_be_bytes());
            ip.extend(octets(from));
            ip.extend(octets(to));
            (ip, sum_16(octets(from)) + sum_16(octets(to)))
        }
    };
    let pseudo = 6 + u32::from(length);
    let check = !fold(sum + pseudo + words(&tcp));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// Sums an even number of bytes as 16-bit words.
fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

/// Builds the frame to send: the program's outer headers, with this machine as client inside.
fn frame(
    chosen: &Chosen,
    backend: IpAddr,
    vip: (IpAddr, u16),
    port: u16,
    ways: &Snapshot,
) -> Result<(u32, Vec<u8>), String> {
    let way = match ways.get(&backend) {
        Some(Ok(way)) => way,
        Some(Err(why)) => return Err(why.to_string()),
        None => return Err("no answer from the kernel in time".into()),
    };
    let own = own_address(vip)
        .map_err(|error| format!("no own address to receive the answer: {error}"))?;
    if own == vip.0 {
        return Err("the VIP is an address of this machine".into());
    }
    let mut frame = chosen.outer.clone();
    frame.extend(syn((own, port), vip));
    Ok((way.interface, frame))
}

/// Returns the source address of this machine towards the VIP; sends nothing.
fn own_address(vip: (IpAddr, u16)) -> io::Result<IpAddr> {
    let any: IpAddr = match vip.0 {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(vip)?;
    Ok(socket.local_addr()?.ip())
}

/// Raw sockets that receive every TCP segment to this machine.
struct ReplySockets {
    sockets: Vec<(Socket, bool)>,
}

impl ReplySockets {
    fn open() -> Result<Self, ProbeError> {
        let error = |source| ProbeError::Socket { what: "open a raw socket", source };
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let mut sockets = vec![(open(Domain::IPV4).map_err(error)?, true)];
        // A machine without IPv6 has no IPv6 VIPs.
        sockets.extend(open(Domain::IPV6).ok().map(|socket| (socket, false)));
        Ok(Self { sockets })
    }

    /// Receives until every sent probe was answered, or the time is up.
    fn receive(&self, sent: &[Sent], probed: &mut [Probed], patience: Duration) {
        let begun = Instant::now();
        loop {
            for (socket, v4) in &self.sockets {
                while receive_one(socket, *v4, sent, probed) {}
            }
            let waits = sent.iter().any(|sent| probed[sent.index].outcome == Outcome::Silent);
            if !waits || begun.elapsed() >= patience {
                return;
            }
            let mut polled: Vec<libc::pollfd> = self
                .sockets
                .iter()
                .map(|(socket, _)| libc::pollfd {
                    fd: socket.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            // SAFETY: the array has as many descriptors as the length says, and outlives the call.
            unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 50) };
        }
    }
}

/// Receives one segment from a socket; returns whether there was one.
fn receive_one(socket: &Socket, v4: bool, sent: &[Sent], probed: &mut [Probed]) -> bool {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
    let Ok((length, from)) = socket.recv_from(&mut buffer) else { return false };
    // SAFETY: the kernel has written the first `length` bytes.
    let bytes: Vec<u8> =
        buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    // Only IPv4 raw sockets deliver the IP header.
    let header = if v4 { usize::from(bytes.first().copied().unwrap_or(0) & 0xf) * 4 } else { 0 };
    let (Some(tcp), Some(from)) = (bytes.get(header..header + 20), from.as_socket()) else {
        return true;
    };
    let (theirs, own) =
        (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
    let of = sent.iter().find(|sent| (sent.vip, sent.port) == ((from.ip(), theirs), own));
    if let Some(of) = of.filter(|of| probed[of.index].outcome == Outcome::Silent) {
        let microseconds = of.at.elapsed().as_micros() as u64;
        match tcp[13] {
            flags if flags & RST != 0 => probed[of.index].outcome = Outcome::Refused,
            flags if flags & SYN != 0 => {
                probed[of.index].outcome = Outcome::Answered { microseconds };
            }
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_independent_parser_accepts_the_syn() {
        for (from, to) in [("10.0.0.1", "203.0.113.10"), ("2001:db8::1", "2001:db8::10")] {
            let packet = syn((from.parse().unwrap(), 4711), (to.parse().unwrap(), 80));
            let sliced = etherparse::SlicedPacket::from_ip(&packet).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
                panic!("no TCP in {packet:02x?}")
            };
            assert!(tcp.syn() && !tcp.ack() && tcp.destination_port() == 80);
            let sum = match sliced.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                    tcp.to_header().calc_checksum_ipv4(&header, &[]).unwrap()
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), &[]).unwrap()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(sum, tcp.checksum());
        }
    }
}
