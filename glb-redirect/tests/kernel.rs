//! The program in the kernel with real sockets, compared with the reference decision. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use common::{in_namespace, program::Program, sysctl, tcp::Client, tun::Tun};
use glb_common::reason::RedirectReason as Reason;
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        socket as new_socket, sockopt,
    },
};
use support::{
    FakeHost, backend, golden, ip,
    packet::{ACK, FIN, PSH, RST, SYN, Segment, gue, gue_v6, too_big},
    socket,
};

/// A client and a VIP of each address family.
const PAIRS: [(&str, &str); 2] =
    [("198.51.100.7:40000", "203.0.113.10:80"), ("[2001:db8:9::7]:40000", "[2001:db8::10]:80")];

fn pairs() -> [(SocketAddr, SocketAddr); 2] {
    PAIRS.map(|(client, vip)| (socket(client), socket(vip)))
}

/// `address`, with another port.
fn port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Waits until the kernel has a TCP socket in `state` (as in /proc/net/tcp) from `vip` to `client`.
fn wait_for_state(client: SocketAddr, vip: SocketAddr, state: u8) {
    let file = if vip.is_ipv4() { "tcp" } else { "tcp6" };
    // The file has addresses as native-endian words in hex.
    let name = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
        }
        SocketAddr::V6(v6) => {
            let words = v6.ip().octets();
            let words = words.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
            let words: String = words.map(|word| format!("{word:08X}")).collect();
            format!("{words}:{:04X}", v6.port())
        }
    };
    let wanted = format!("{} {} {state:02X}", name(vip), name(client));
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        if table.contains(&wanted) {
            return;
        }
        assert!(Instant::now() < end, "no socket like {wanted:?} in:\n{table}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

// States of /proc/net/tcp.
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;

/// Sends every kind of segment of a flow, over both outer families, and expects the reason for each.
fn expect(program: &mut Program, what: &str, client: &Client, expected: Reason) {
    let data = Segment { data: 100, ..client.segment(ACK | PSH) };
    let keep_alive = Segment { sequence: client.sequence.wrapping_sub(1), ..client.segment(ACK) };
    let window_probe = Segment { data: 1, ..client.segment(ACK) };
    for (kind, segment) in [
        ("ACK", client.segment(ACK)),
        ("data", data),
        ("FIN", client.segment(FIN | ACK)),
        ("RST", client.segment(RST)),
        ("keep-alive", keep_alive),
        ("zero-window probe", window_probe),
    ] {
        for packet in [gue(segment.packet()), gue_v6(segment.packet())] {
            let outcome = program.compare(&format!("{what}, {kind}"), &packet.frame());
            assert_eq!(outcome.reason, expected, "{what}, {kind}");
        }
    }
    // An ICMP error about the flow follows it.
    let router = if client.vip.is_ipv4() { ip("192.0.2.1") } else { ip("2001:db8:9::1") };
    let error = gue(too_big(router, client.client, client.vip)).frame();
    let outcome = program.compare(&format!("{what}, too big"), &error);
    let expected = match expected {
        Reason::Forwarded => Reason::ForwardedIcmpError,
        _ => Reason::TakenIcmpError,
    };
    assert_eq!(outcome.reason, expected, "{what}, too big");
}

/// Asserts that the flow has a socket here and that the program takes it.
fn is_here(program: &mut Program, what: &str, client: &Client) {
    program.host.flows.insert((client.client, client.vip));
    expect(program, what, client, Reason::TakenEstablished);
}

fn is_not_here(program: &mut Program, what: &str, client: &Client) {
    program.host.flows.remove(&(client.client, client.vip));
    expect(program, what, client, Reason::Forwarded);
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().unwrap().0
}

#[test]
fn golden_cases_have_the_expected_verdict_and_frame() {
    in_namespace(|mut wire| {
        for mut case in golden::cases() {
            if case.cookie {
                // A cookie depends on the kernel's secret: the SYN cookie test covers it.
                case.host.cookies.clear();
                case.reason = Reason::Forwarded;
                case.forwarded = None;
            }
            let established = case.flow.filter(|_| !case.cookie).map(|(client, vip)| {
                let listener = TcpListener::bind(vip).unwrap();
                let client = Client::connect(&mut wire, client, vip);
                (client, accept(&listener))
            });
            let mut program = Program::new(case.host);
            let outcome = program.compare(&case.name, &case.frame);
            assert_eq!(outcome.reason, case.reason, "{}", case.name);
            if let Some(forwarded) = case.forwarded {
                assert_eq!(outcome.frame, forwarded, "{}", case.name);
            }
            if let Some((client, stream)) = established {
                wire.send(&client.segment(RST).packet());
                drop(stream);
            }
        }
    });
}

#[test]
fn a_flow_is_taken_in_every_socket_state() {
    in_namespace(|mut wire| {
        let mut program = Program::new(backend());
        for (client, vip) in pairs() {
            let listener = TcpListener::bind(vip).unwrap();
            every_state(&mut program, &mut wire, &listener, client, vip, "bound to the VIP");
            drop(listener);
            let any = if vip.is_ipv4() { "0.0.0.0:80" } else { "[::]:80" };
            let listener = TcpListener::bind(any).unwrap();
            let client = port(client, 41_000);
            every_state(&mut program, &mut wire, &listener, client, vip, "bound to any address");
        }
    });
}

fn every_state(
    program: &mut Program,
    wire: &mut Tun,
    listener: &TcpListener,
    client: SocketAddr,
    vip: SocketAddr,
    how: &str,
) {
    let name = |state: &str| format!("{state}, {vip}, {how}");
    let without_socket = Client { client: port(client, 1), vip, sequence: 5, acknowledgement: 6 };
    is_not_here(program, &name("listener only"), &without_socket);
    let without_listener = Client { vip: port(vip, 81), ..without_socket };
    is_not_here(program, &name("no listener"), &without_listener);

    let half = Client::syn(wire, client, vip);
    wait_for_state(client, vip, SYN_RECV);
    is_here(program, &name("SYN-received"), &half);

    wire.send(&half.segment(ACK).packet());
    let stream = accept(listener);
    wait_for_state(client, vip, ESTABLISHED);
    let mut open = half;
    is_here(program, &name("established"), &open);

    open.fin(wire);
    wait_for_state(client, vip, CLOSE_WAIT);
    is_here(program, &name("half-closed by the client"), &open);
    drop(stream);
    open.receive_fin(wire);
    wait_for_state(client, vip, LAST_ACK);
    is_here(program, &name("LAST_ACK"), &open);
    open.ack(wire);

    let second = port(client, client.port() + 1);
    let mut open = Client::connect(wire, second, vip);
    let stream = accept(listener);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    open.receive_fin(wire);
    wait_for_state(second, vip, FIN_WAIT_1);
    is_here(program, &name("FIN_WAIT_1"), &open);
    open.ack(wire);
    wait_for_state(second, vip, FIN_WAIT_2);
    is_here(program, &name("half-closed by the server"), &open);
    drop(stream);
    open.fin(wire);
    // From here on the socket is a TIME_WAIT socket.
    wait_for_state(second, vip, TIME_WAIT);
    is_here(program, &name("TIME_WAIT"), &open);
}

#[test]
fn a_closed_connection_is_forwarded() {
    in_namespace(|mut wire| {
        let mut program = Program::new(backend());
        for (client, vip) in pairs() {
            let listener = TcpListener::bind(vip).unwrap();
            let open = Client::connect(&mut wire, client, vip);
            let stream = accept(&listener);
            is_here(&mut program, "established", &open);
            wire.send(&open.segment(RST).packet());
            drop(stream);
            is_not_here(&mut program, "after RST", &open);
        }
    });
}

/// Listeners that share an address and a port (SO_REUSEPORT).
fn reuse_port(vip: SocketAddr, count: usize) -> Vec<TcpListener> {
    (0..count)
        .map(|_| {
            let family = if vip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let listener =
                new_socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&listener, sockopt::ReusePort, &true).unwrap();
            let address = SockaddrStorage::from(vip);
            bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address).unwrap();
            listen(&listener, Backlog::new(16).unwrap()).unwrap();
            let listener = TcpListener::from(listener);
            listener.set_nonblocking(true).unwrap();
            listener
        })
        .collect()
}

#[test]
fn every_listener_of_a_reuseport_group_owns_its_connections() {
    in_namespace(|mut wire| {
        let mut program = Program::new(backend());
        for (client, vip) in pairs() {
            let listeners = reuse_port(vip, 4);
            let mut taken_by = [0; 4];
            let mut streams = Vec::new();
            for i in 0..32 {
                let client = port(client, 42_000 + i);
                let without_socket = Client { client, vip, sequence: 5, acknowledgement: 6 };
                is_not_here(&mut program, "before", &without_socket);
                let open = Client::connect(&mut wire, client, vip);
                wait_for_state(client, vip, ESTABLISHED);
                is_here(&mut program, "established", &open);
                let (by, stream) = listeners
                    .iter()
                    .enumerate()
                    .find_map(|(by, listener)| Some((by, listener.accept().ok()?)))
                    .unwrap();
                taken_by[by] += 1;
                streams.push(stream);
            }
            assert!(taken_by.iter().filter(|count| **count > 0).count() > 1, "{taken_by:?}");
        }
    });
}

#[test]
fn a_dual_stack_listener_owns_flows_of_both_families() {
    in_namespace(|mut wire| {
        let mut program = Program::new(backend());
        let listener = TcpListener::bind("[::]:80").unwrap();
        let [(client, vip), _] = pairs();
        let without_socket =
            Client { client: port(client, 1), vip, sequence: 5, acknowledgement: 6 };
        is_not_here(&mut program, "listener only", &without_socket);
        let open = Client::connect(&mut wire, client, vip);
        let _stream = accept(&listener);
        is_here(&mut program, "IPv4 on an IPv6 socket", &open);
    });
}

#[test]
fn sockets_of_another_namespace_are_not_found() {
    in_namespace(|_| {
        let mut program = Program::new(backend());
        let [(client, vip), _] = pairs();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            common::ip("link set lo up");
            common::ip("addr add 203.0.113.10/32 dev lo");
            let mut wire = Tun::new("wire0");
            common::ip("link set wire0 up");
            common::ip("route add default dev wire0");
            let listener = TcpListener::bind(vip).unwrap();
            let open = Client::connect(&mut wire, client, vip);
            let _stream = accept(&listener);
            ready.send(open).unwrap();
            assert!(is_done.recv().is_err(), "the channel carries no message");
        });
        let open = is_ready.recv().unwrap();
        is_not_here(&mut program, "established elsewhere", &open);
        drop(done);
        other.join().unwrap();
    });
}

#[test]
fn only_valid_syn_cookies_are_taken() {
    in_namespace(|mut wire| {
        let mut program = Program::new(backend());
        for (client, vip) in pairs() {
            for mode in [1, 2] {
                sysctl("ipv4.tcp_syncookies", &mode.to_string());
                cookies(&mut program, &mut wire, client, vip, mode);
            }
            // Without SYN cookies, no acknowledgement number is valid.
            sysctl("ipv4.tcp_syncookies", "0");
        }
    });
}

fn cookies(program: &mut Program, wire: &mut Tun, client: SocketAddr, vip: SocketAddr, mode: u16) {
    let what = format!("cookies in mode {mode}, {vip}");
    let listener = new_socket(
        if vip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&listener, sockopt::ReuseAddr, &true).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &SockaddrStorage::from(vip)).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();

    // In mode 1 the queue must overflow first: these handshakes are never completed.
    let base = 43_000 + 1_000 * mode;
    if mode == 1 {
        for i in 0..32 {
            Client::syn(wire, port(client, base + i), vip);
        }
    }
    let client = Client::syn(wire, port(client, base + 100), vip);
    // A cookie cannot be told from another answer, but the kernel keeps no socket for it.
    let file = if vip.is_ipv4() { "tcp" } else { "tcp6" };
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let port_hex = format!(":{:04X} 03", client.client.port());
    assert!(!table.contains(&port_hex), "{what}: the handshake was kept:\n{table}");

    let flow = (client.client, client.vip);
    program.host.cookies.insert(flow);
    for (kind, flags) in [("ACK", ACK), ("data", ACK | PSH), ("FIN", ACK | FIN)] {
        let segment = Segment { data: usize::from(flags & PSH != 0), ..client.segment(flags) };
        for packet in [gue(segment.packet()), gue_v6(segment.packet())] {
            let outcome = program.compare(&format!("{what}, {kind}"), &packet.frame());
            assert_eq!(outcome.reason, Reason::TakenCookie, "{what}, {kind}");
        }
    }
    program.host.cookies.remove(&flow);
    let acknowledgement = client.acknowledgement;
    for (kind, forged) in [
        ("another number", Client { acknowledgement: acknowledgement ^ 0x0010_0000, ..client }),
        ("another client port", Client { client: port(client.client, 7), ..client }),
        ("another sequence number", Client { sequence: client.sequence ^ 0x100, ..client }),
    ] {
        let outcome =
            program.compare(&format!("{what}, {kind}"), &gue(forged.segment(ACK).packet()).frame());
        assert_eq!(outcome.reason, Reason::Forwarded, "{what}, {kind}");
    }
    for (kind, flags) in [("RST", RST), ("RST with ACK", RST | ACK), ("no ACK", PSH)] {
        let frame = gue(client.segment(flags).packet()).frame();
        let outcome = program.compare(&format!("{what}, {kind}"), &frame);
        assert_eq!(outcome.reason, Reason::Forwarded, "{what}, {kind}");
    }
    let frame = gue(client.segment(SYN).packet()).frame();
    assert_eq!(program.compare(&what, &frame).reason, Reason::TakenSyn);
}

#[test]
fn a_forwarded_packet_leaves_by_the_interface_of_its_next_hop() {
    in_namespace(|_| {
        let mut host = backend();
        let here = common::program::TEST_INTERFACE;
        let (address, back) = (ip("10.0.2.22"), support::peer(22));
        host.peers.insert(
            address,
            glb_common::second_chance::abi::PeerNextHop { interface: here, ..back },
        );
        let mut program = Program::new(host);
        let [(client, vip), _] = pairs();
        let without_socket = Client { client, vip, sequence: 5, acknowledgement: 6 };
        // Compared with XDP_TX for the ingress interface, and with XDP_REDIRECT for the others.
        is_not_here(&mut program, "the same interface", &without_socket);
    });
}

#[test]
fn more_vips_and_directors_than_settings_hold() {
    in_namespace(|_| {
        let mut host = backend();
        host.vips.extend((0..40).map(|i| ip(&format!("203.0.113.{}", 100 + i))));
        host.vips.extend((0..40).map(|i| ip(&format!("2001:db8::1:{i:x}"))));
        host.senders.extend((0..40).map(|i| (ip(&format!("10.{i}.7.0")), 24)));
        host.senders.extend((0..40).map(|i| (ip(&format!("fd00:{i:x}:7::")), 48)));
        let mut program = Program::new(host);
        for i in 0..45 {
            for (client, vip) in [
                ("198.51.100.7:40000".to_owned(), format!("203.0.113.{}:80", 100 + i)),
                ("[2001:db8:9::7]:40000".to_owned(), format!("[2001:db8::1:{i:x}]:80")),
            ] {
                let client = Client {
                    client: socket(&client),
                    vip: socket(&vip),
                    sequence: 5,
                    acknowledgement: 6,
                };
                for mut packet in
                    [gue(client.segment(SYN).packet()), gue_v6(client.segment(SYN).packet())]
                {
                    packet.source = if packet.source.is_ipv4() {
                        ip(&format!("10.{i}.7.9"))
                    } else {
                        ip(&format!("fd00:{i:x}:7::9"))
                    };
                    let expected = if i < 40 { Reason::TakenSyn } else { Reason::UnknownSender };
                    assert_eq!(program.compare("many", &packet.frame()).reason, expected);
                    packet.source =
                        if packet.source.is_ipv4() { ip("10.0.2.10") } else { ip("fd00:2::10") };
                    let expected = if i < 40 { Reason::TakenSyn } else { Reason::NotVip };
                    assert_eq!(program.compare("many", &packet.frame()).reason, expected);
                }
            }
        }
    });
}

#[test]
fn second_chance_off_takes_every_packet() {
    in_namespace(|mut wire| {
        let mut program = Program::new(FakeHost { no_second_chance: true, ..backend() });
        let [(client, vip), _] = pairs();
        let listener = TcpListener::bind(vip).unwrap();
        let without_socket =
            Client { client: port(client, 1), vip, sequence: 5, acknowledgement: 6 };
        let frame = gue(without_socket.segment(ACK).packet()).frame();
        assert_eq!(program.compare("not here", &frame).reason, Reason::TakenNoSecondChance);
        let open = Client::connect(&mut wire, client, vip);
        let _stream = accept(&listener);
        is_here(&mut program, "here", &open);
    });
}
