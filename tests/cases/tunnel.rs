//! The tunnel on real links, over IPv4 and IPv6, with and without UDP checksums and VLAN tags:
//! packets reach the backend that holds their connection, and its answers return directly.

use std::{
    fs,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use glb_lab::{Daemon, Family, INTERFACE, Lab, Node, Plan, command, interrupt, vip};
use nix::sys::{signal::Signal, socket::sockopt};

use crate::support::build;

const DIRECTOR: Node = Node::Director(1);
const FIRST: Node = Node::Backend(1);
const SECOND: Node = Node::Backend(2);
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 2, 7].into(),
        Family::V6 => [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7].into(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IP packet with a correct header checksum.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if from.is_ipv4() {
        let total = (20 + payload.len()) as u16;
        [&[0x45, 0][..], &total.to_be_bytes(), &[0, 0, 0x40, 0, 64, protocol, 0, 0]].concat()
    } else {
        let length = payload.len() as u16;
        [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat()
    };
    packet.extend(octets(from));
    packet.extend(octets(to));
    if from.is_ipv4() {
        let checksum = fold(sum(&packet));
        packet[10..12].copy_from_slice(&checksum);
    }
    packet.extend(payload);
    packet
}

/// The client's side of one connection, built from single segments.
struct Connection {
    client: SocketAddr,
    vip: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
}

impl Connection {
    fn segment(&self, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(self.vip.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let ends = [octets(self.client.ip()), octets(self.vip.ip())].concat();
        let checksum = fold(sum(&ends) + 6 + tcp.len() as u32 + sum(&tcp));
        tcp[16..18].copy_from_slice(&checksum);
        ip(self.client.ip(), self.vip.ip(), 6, &tcp)
    }

    /// Parses flags, sequence number and data of a segment from the VIP to this client.
    fn read(&self, packet: &[u8]) -> Option<(u8, u32, Vec<u8>)> {
        let (header, total) = if packet.first()? >> 4 == 4 {
            (20, usize::from(u16::from_be_bytes([packet[2], packet[3]])))
        } else {
            (40, 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])))
        };
        let tcp = packet.get(header..total)?;
        let ports = [self.vip.port().to_be_bytes(), self.client.port().to_be_bytes()].concat();
        let offset = usize::from(*tcp.get(12)? >> 4) * 4;
        (tcp[..4] == ports).then(|| {
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            (tcp[13], sequence, tcp[offset..].to_vec())
        })
    }
}

/// A TUN device in the director's namespace with the client's addresses behind it. The backends'
/// answers appear here without a TCP stack in between.
struct ClientTun(File);

impl ClientTun {
    fn new(name: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        // struct ifreq: the name, then the flags.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request is as large as the kernel's struct ifreq.
        let made = unsafe {
            nix::libc::ioctl(file.as_raw_fd(), nix::libc::TUNSETIFF, request.as_mut_ptr())
        };
        ensure!(made == 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        Ok(Self(file))
    }

    /// Waits for the first segment to `connection` for which `wanted` returns a value.
    fn receive<T>(
        &mut self,
        connection: &Connection,
        what: &str,
        wanted: impl Fn(u8, u32, Vec<u8>) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut packet = vec![0; 65_536];
        while Instant::now() < end {
            match self.0.read(&mut packet) {
                Ok(length) => {
                    let found = connection.read(&packet[..length]);
                    if let Some(found) = found.and_then(|(a, b, c)| wanted(a, b, c)) {
                        return Ok(found);
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        bail!("not within {PATIENCE:?}: {what}")
    }
}

/// The form of the tunnel packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TunnelForm {
    /// With the kernel's UDP checksum.
    Summed,
    /// Without a UDP checksum.
    Unsummed,
    /// In a frame with a priority tag (VLAN 0), the only tag that a kernel without VLANs accepts.
    Tagged,
}

/// Builds the GUE header with its hop list.
fn gue(inner: &[u8], hops: &[IpAddr]) -> Vec<u8> {
    let list: Vec<u8> = hops.iter().flat_map(|hop| octets(*hop)).collect();
    let inner_protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let kind = u8::from(hops.iter().all(IpAddr::is_ipv6));
    let head = [(1 + list.len() / 4) as u8, inner_protocol, 0, 0, 0, kind, 0, hops.len() as u8];
    [&head[..], &list, inner].concat()
}

/// Returns the node's address in the data centre.
fn address(node: Node, outer: Family) -> IpAddr {
    match outer {
        Family::V4 => node.v4().into(),
        Family::V6 => node.v6().into(),
    }
}

/// Sends `inner` to the first of these nodes, with the other nodes as the hop list.
fn send(lab: &Lab, outer: Family, way: TunnelForm, nodes: &[Node], inner: &[u8]) -> Result<()> {
    let hops: Vec<IpAddr> = nodes[1..].iter().map(|node| address(*node, outer)).collect();
    let payload = gue(inner, &hops);
    let (from, to) = (address(DIRECTOR, outer), address(nodes[0], outer));
    if way == TunnelForm::Tagged {
        let length = (8 + payload.len()) as u16;
        let udp =
            [&[0x81, 0x23, 0x4c, 0x43][..], &length.to_be_bytes(), &[0, 0], &payload].concat();
        let mac = |node| -> Result<Vec<u8>> {
            let mut cat = lab.netns(node)?.command("ip");
            let shown = command::output(cat.args(["-br", "link", "show", "dev", INTERFACE]))?;
            let mac = shown.split_whitespace().nth(2).context("no MAC")?;
            Ok(mac.split(':').map(|hex| u8::from_str_radix(hex, 16)).collect::<Result<_, _>>()?)
        };
        let kind: &[u8] = if from.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] };
        let tag = [0x81, 0, 0xe0, 0];
        let macs = [mac(nodes[0])?, mac(DIRECTOR)?].concat();
        let frame = [&macs[..], &tag, kind, &ip(from, to, 17, &udp)].concat();
        return lab.netns(DIRECTOR)?.run(|| send_frame(&frame));
    }
    lab.netns(DIRECTOR)?.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
        if way == TunnelForm::Unsummed {
            if from.is_ipv6() {
                // linux/udp.h: a zero checksum is allowed for tunnels (RFC 6935).
                const UDP_NO_CHECK6_TX: i32 = 101;
                let one = 1i32;
                // SAFETY: the option is an int, as given.
                let set = unsafe {
                    nix::libc::setsockopt(
                        socket.as_raw_fd(),
                        nix::libc::IPPROTO_UDP,
                        UDP_NO_CHECK6_TX,
                        (&raw const one).cast(),
                        4,
                    )
                };
                ensure!(set == 0, "{}", std::io::Error::last_os_error());
            } else {
                let one = 1i32;
                // SAFETY: the option is an int, as given.
                let set = unsafe {
                    nix::libc::setsockopt(
                        socket.as_raw_fd(),
                        nix::libc::SOL_SOCKET,
                        nix::libc::SO_NO_CHECK,
                        (&raw const one).cast(),
                        4,
                    )
                };
                ensure!(set == 0, "{}", std::io::Error::last_os_error());
            }
        }
        socket.send_to(&payload, SocketAddr::new(to, 19_523))?;
        Ok(())
    })
}

fn send_frame(frame: &[u8]) -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&raw, sockopt::SndBuf, &65_536)?;
    let index = nix::net::if_::if_nametoindex(INTERFACE)?;
    // SAFETY: the struct holds plain numbers, for which zero is valid.
    let mut to: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = nix::libc::AF_PACKET as u16;
    to.sll_ifindex = index.cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // SAFETY: the frame and the address have the given lengths.
    let sent = unsafe {
        nix::libc::sendto(
            raw.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    ensure!(sent == frame.len() as isize, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Two backends that accept each other and the director over both families, with an echo service on
/// the second one.
fn set_up(lab: &Lab) -> Result<(ClientTun, Vec<Daemon>)> {
    let mut daemons = Vec::new();
    for node in [FIRST, SECOND] {
        let mut daemon = Daemon::redirect(lab, node, true)?;
        daemon.start(lab)?;
        daemons.push(daemon);
        lab.netns(node)?.ip(&format!(
            "route add {}/32 via {}\nroute add {}/128 via {}",
            client(Family::V4),
            DIRECTOR.v4(),
            client(Family::V6),
            DIRECTOR.v6()
        ))?;
    }
    let director = lab.netns(DIRECTOR)?;
    director.sysctl(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "0"),
    ])?;
    let wire = director.run(|| ClientTun::new("wire0"))?;
    director.ip(&format!(
        "link set wire0 up\nroute add {}/32 dev wire0\nroute add {}/128 dev wire0",
        client(Family::V4),
        client(Family::V6)
    ))?;
    for family in [Family::V4, Family::V6] {
        let listener = lab
            .netns(SECOND)?
            .run(|| Ok(TcpListener::bind(SocketAddr::new(vip(family), PORT))?))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let (mut reader, mut writer) = (stream.try_clone()?, stream);
                    std::io::copy(&mut reader, &mut writer).map(drop)?;
                    writer.flush()
                });
            }
        });
    }
    Ok((wire, daemons))
}

/// Opens a connection to the second backend, then sends on it through the first.
fn through_the_first(
    lab: &Lab,
    wire: &mut ClientTun,
    outer: Family,
    inner: Family,
    way: TunnelForm,
    port: u16,
) -> Result<Connection> {
    let what = format!("{way:?}, {inner:?} in {outer:?}");
    let (client, vip) = (SocketAddr::new(client(inner), port), SocketAddr::new(vip(inner), PORT));
    let mut connection = Connection { client, vip, sequence: 1_000, acknowledgement: 0 };
    send(lab, outer, way, &[SECOND, FIRST], &connection.segment(SYN, &[]))?;
    let theirs = wire.receive(&connection, &format!("SYN-ACK, {what}"), |flags, sequence, _| {
        (flags == SYN | ACK).then_some(sequence)
    })?;
    connection.sequence += 1;
    connection.acknowledgement = theirs.wrapping_add(1);
    send(lab, outer, way, &[SECOND, FIRST], &connection.segment(ACK, &[]))?;
    echo(lab, wire, outer, way, &mut connection, &what)?;
    Ok(connection)
}

/// Sends a line through the first backend and expects it back.
fn echo(
    lab: &Lab,
    wire: &mut ClientTun,
    outer: Family,
    way: TunnelForm,
    connection: &mut Connection,
    what: &str,
) -> Result<()> {
    let line = format!("{what} {}\n", connection.sequence).into_bytes();
    send(lab, outer, way, &[FIRST, SECOND], &connection.segment(ACK | PSH, &line))?;
    let back = wire.receive(connection, &format!("echo, {what}"), |_, _, data| {
        data.ends_with(&line).then_some(data.len())
    })?;
    connection.sequence += line.len() as u32;
    connection.acknowledgement += back as u32;
    Ok(())
}

#[test]
fn second_chance_works_over_every_tunnel_form() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-tunnel") })?;
    let (mut wire, daemons) = set_up(&lab)?;
    let mut port = 40_000;
    for outer in [Family::V4, Family::V6] {
        for inner in [Family::V4, Family::V6] {
            for way in [TunnelForm::Summed, TunnelForm::Unsummed, TunnelForm::Tagged] {
                let before = daemons[0].redirect_counters(&lab)?.forwarded();
                through_the_first(&lab, &mut wire, outer, inner, way, port)?;
                let forwarded = daemons[0].redirect_counters(&lab)?.forwarded() - before;
                ensure!(forwarded == 1, "{forwarded} forwarded: {way:?}, {inner:?} in {outer:?}");
                port += 1;
            }
        }
    }
    Ok(())
}

#[test]
fn first_packet_after_restart_survives_a_missing_neighbour() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-first") })?;
    let (mut wire, mut daemons) = set_up(&lab)?;
    for (outer, port) in [(Family::V4, 41_004), (Family::V6, 41_006)] {
        let mut connection =
            through_the_first(&lab, &mut wire, outer, Family::V4, TunnelForm::Summed, port)?;
        ensure!(daemons[0].end(Signal::SIGTERM)?.success());
        lab.netns(FIRST)?.ip("neigh flush all")?;
        let mut ip = lab.netns(FIRST)?.command("ip");
        let known = command::output(ip.args(["neigh", "show", "nud", "reachable"]))?;
        ensure!(!known.contains(&address(SECOND, outer).to_string()), "{known}");
        daemons[0].start(&lab)?;
        // Each packet is sent only once, so a lost one shows.
        echo(&lab, &mut wire, outer, TunnelForm::Summed, &mut connection, "first after a restart")?;
        let counters = daemons[0].redirect_counters(&lab)?;
        ensure!(!counters.reasons.contains_key("peer_unresolved"), "{counters:?}");
    }
    Ok(())
}

#[test]
fn traffic_flows_while_the_program_is_replaced_and_the_daemon_is_killed() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-replace") })?;
    let (mut wire, mut daemons) = set_up(&lab)?;
    let mut connection =
        through_the_first(&lab, &mut wire, Family::V4, Family::V4, TunnelForm::Summed, 42_000)?;
    let start = daemons[0].redirect_counters(&lab)?.forwarded();
    let mut sent = 0;
    let mut talk = |lab: &Lab, times: u64, what: &str| -> Result<()> {
        for _ in 0..times {
            // Alternates between the fast path and the general program.
            let way = if sent % 2 == 0 { TunnelForm::Summed } else { TunnelForm::Tagged };
            echo(lab, &mut wire, Family::V4, way, &mut connection, what)?;
            sent += 1;
        }
        Ok(())
    };
    // Each reload replaces the program, because the configuration has changed.
    for round in 0..3 {
        daemons[0].configure("unknown_senders", ["\"pass\"", "\"drop\""][round % 2])?;
        let process = daemons[0].process()?;
        let from = process.log()?.len();
        process.signal(Signal::SIGHUP)?;
        let mut in_force = false;
        while !in_force {
            talk(&lab, 1, &format!("reload {round}"))?;
            in_force = daemons[0].process()?.log()?[from..].contains("in force");
        }
    }
    // The daemon is killed at various moments of its start (and so of an upgrade), then started for
    // good.
    for milliseconds in [0, 20, 120, 300, 700] {
        daemons[0].end(Signal::SIGKILL)?;
        talk(&lab, 3, "nobody is there")?;
        daemons[0].spawn(&lab)?;
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end {
            talk(&lab, 1, &format!("killed {milliseconds} ms after the start"))?;
        }
    }
    daemons[0].end(Signal::SIGKILL)?;
    daemons[0].start(&lab)?;
    talk(&lab, 5, "started for good")?;
    // Each packet was counted once, and the counters continued all the time.
    let forwarded = daemons[0].redirect_counters(&lab)?.forwarded() - start;
    ensure!(forwarded == sent, "{forwarded} forwarded of {sent}");
    // Only the generation in force and the previous one are left.
    let folder = lab.bpf().join(FIRST.to_string()).join("generations");
    interrupt::wait("old generations to go", PATIENCE, || {
        Ok((fs::read_dir(&folder)?.count() <= 2).then_some(()))
    })
}
