//! Generated frames: to addresses and ports that the tests' tables bind, or nearly; with every kind of
//! header in front, cut, padded and lied about.

use proptest::prelude::*;

/// An address that the tables bind, or nearly.
fn v4() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        6 => (1u8..5).prop_map(|last| [1, 1, 1, last]),
        1 => (0u8..6).prop_map(|last| [1, 1, 1, last]),
        2 => Just([2, 2, 2, 2]),
        1 => (0u8..3, any::<u8>()).prop_map(|(third, last)| [1, 1, third, last]),
        1 => any::<[u8; 4]>(),
    ]
}

fn v6() -> impl Strategy<Value = [u8; 16]> {
    let bound = |last: u16| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
    prop_oneof![
        6 => prop::sample::select(vec![1u16, 3, 4]).prop_map(bound),
        1 => (0u16..6).prop_map(bound),
        1 => any::<[u8; 16]>(),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => prop::sample::select(vec![53u16, 80, 80, 443]),
        2 => prop::sample::select(vec![0u16, 1, 53, 79, 80, 81, 443, 444, 65_534, 65_535]),
        1 => any::<u16>(),
    ]
}

fn mostly<T: Clone + std::fmt::Debug + 'static>(
    usual: T,
    odd: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![12 => Just(usual), 1 => odd]
}

/// TCP, UDP or ICMP with a quoted packet, at any length.
fn payload(ports: (u16, u16), quoted: Vec<u8>) -> impl Strategy<Value = (u8, Vec<u8>)> {
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    let transport = (
        prop_oneof![
            5 => Just(6u8),
            2 => Just(17u8),
            1 => prop::sample::select(vec![1u8, 58, 0, 44, 132, 60]),
        ],
        // Some are longer than the tests' MTU of 1,600 lets through a tunnel.
        prop_oneof![
            6 => prop::collection::vec(any::<u8>(), 0..60),
            1 => (1_400usize..1_700).prop_map(|length| vec![0x5a; length]),
        ],
    )
        .prop_map(move |(protocol, rest)| (protocol, [header.clone(), rest].concat()));
    let message = (
        prop::sample::select(vec![
            (1u8, 3u8),
            (1, 8),
            (1, 11),
            (1, 12),
            (1, 0),
            (58, 1),
            (58, 2),
            (58, 3),
            (58, 4),
            (58, 128),
            (58, 129),
            (58, 135),
        ]),
        prop::sample::select(vec![0u8, 0, 0, 4, 1]),
    )
        .prop_map(move |((protocol, kind), code)| {
            let head = [kind, code, 0, 0, 0, 0, 5, 0x78];
            (protocol, [head.to_vec(), quoted.clone()].concat())
        });
    prop_oneof![3 => transport, 2 => message]
}

fn v4_packet(
    source: [u8; 4],
    destination: [u8; 4],
    inner: Vec<u8>,
    protocol: u8,
) -> BoxedStrategy<Vec<u8>> {
    let length = 20 + inner.len() as u16;
    (
        mostly(0x45u8, prop::sample::select(vec![0x46u8, 0x4f, 0x44, 0x40, 0x55, 0x65])),
        any::<u8>(),
        mostly(length, any::<u16>()),
        any::<u16>(),
        prop_oneof![
            8 => Just(0x4000u16),
            2 => Just(0u16),
            1 => prop::sample::select(vec![0x2000u16, 0x2001, 1, 0x1fff]),
        ],
    )
        .prop_map(move |(version, tos, length, id, fragment)| {
            let mut packet = vec![version, tos];
            packet.extend(length.to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(source);
            packet.extend(destination);
            packet.extend(&inner);
            packet
        })
        .boxed()
}

fn v6_packet(
    source: [u8; 16],
    destination: [u8; 16],
    inner: Vec<u8>,
    protocol: u8,
) -> BoxedStrategy<Vec<u8>> {
    let length = inner.len() as u16;
    (mostly(0x60u8, any::<u8>()), any::<[u8; 3]>(), mostly(length, any::<u16>()))
        .prop_map(move |(version, flow, length)| {
            let mut packet = vec![version];
            packet.extend(flow);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source);
            packet.extend(destination);
            packet.extend(&inner);
            packet
        })
        .boxed()
}

/// Extension headers before a payload: none mostly, more than are walked over sometimes.
fn extended((protocol, inner): (u8, Vec<u8>)) -> BoxedStrategy<(u8, Vec<u8>)> {
    let kind = prop::sample::select(vec![0u8, 43, 44, 60]);
    let fragment = mostly(0u16, prop::sample::select(vec![1u16, 8, 0xfff8]));
    let header = (kind, 0usize..3, fragment);
    mostly(vec![], prop::collection::vec(header, 1..6))
        .prop_map(move |headers| {
            let (mut protocol, mut packet) = (protocol, inner.clone());
            for (kind, units, fragment) in headers {
                let units = if kind == 44 { 0 } else { units };
                let mut header = vec![0; 8 + 8 * units];
                header[..2].copy_from_slice(&[protocol, units as u8]);
                header[2..4].copy_from_slice(&fragment.to_be_bytes());
                header.extend(packet);
                (protocol, packet) = (kind, header);
            }
            (protocol, packet)
        })
        .boxed()
}

fn ip_packet() -> impl Strategy<Value = ([u8; 2], Vec<u8>)> {
    let four = (v4(), v4(), port(), port(), any::<bool>()).prop_flat_map(|(a, b, p, q, same)| {
        // Quoted: what a backend sent from the VIP, mostly.
        let from = if same { b } else { a };
        let quoted =
            v4_packet(from, a, [q.to_be_bytes(), p.to_be_bytes(), [0; 2], [0; 2]].concat(), 6);
        quoted
            .prop_flat_map(move |quoted| payload((p, q), quoted))
            .prop_flat_map(move |(protocol, inner)| v4_packet(a, b, inner, protocol))
            .prop_map(|packet| ([8, 0], packet))
    });
    let six = (v6(), v6(), port(), port(), any::<bool>()).prop_flat_map(|(a, b, p, q, same)| {
        let from = if same { b } else { a };
        let quoted =
            v6_packet(from, a, [q.to_be_bytes(), p.to_be_bytes(), [0; 2], [0; 2]].concat(), 17);
        quoted
            .prop_flat_map(move |quoted| payload((p, q), quoted))
            .prop_flat_map(extended)
            .prop_flat_map(move |(protocol, inner)| v6_packet(a, b, inner, protocol))
            .prop_map(|packet| ([0x86, 0xdd], packet))
    });
    prop_oneof![four, six]
}

/// None mostly, else one, two, or more tags than are looked behind.
fn tags() -> impl Strategy<Value = Vec<u8>> {
    let tag = (prop::sample::select(vec![[0x81, 0], [0x88, 0xa8]]), any::<[u8; 2]>())
        .prop_map(|(kind, information)| [kind, information].concat());
    mostly(vec![], prop::collection::vec(tag, 1..4).prop_map(|tags| tags.concat()))
}

/// Frames, most of them to the tests' tables' binds, many of them broken.
pub(crate) fn frame() -> impl Strategy<Value = Vec<u8>> {
    (
        ip_packet(),
        mostly(None, any::<[u8; 2]>().prop_map(Some)),
        mostly(0usize, 1usize..40),
        mostly(None, any::<prop::sample::Index>().prop_map(Some)),
        tags(),
    )
        .prop_map(|((ethertype, packet), odd_type, padding, cut, tags)| {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(tags);
            frame.extend(odd_type.unwrap_or(ethertype));
            frame.extend(packet);
            frame.resize(frame.len() + padding, 0xa5);
            if let Some(cut) = cut {
                frame.truncate(14 + cut.index(frame.len() - 14));
            }
            frame
        })
}
