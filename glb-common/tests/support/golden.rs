//! The second-chance cases that were produced by running GLB's own module.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use glb_common::reason::RedirectReason as Reason;
use serde_json::Value;

use super::{FakeHost, OWN_MAC, ip, packet::ethernet, peer, peer_mac};

/// One case.
pub struct Case {
    pub name: String,
    /// The frame as received.
    pub frame: Vec<u8>,
    /// The backend's sockets.
    pub host: FakeHost,
    /// Where the case needs a socket: client and VIP.
    pub flow: Option<(SocketAddr, SocketAddr)>,
    /// True if that flow is a cookie's.
    pub cookie: bool,
    pub reason: Reason,
    /// The frame as sent, if it is.
    pub forwarded: Option<Vec<u8>>,
}

/// The difference to GLB, with its reason.
const DIFFERENT: [(&str, Reason); 3] = [
    // GLB looks at neither version nor control bit (its fault R3): not a packet of the tunnel.
    ("gue_version_1", Reason::BadVersion),
    // Nor at the private type, so it would read IPv6 hops as IPv4 ones.
    ("gue_private_type_1", Reason::BadPrivateType),
    // It drops what has IPv6 extension headers, without looking whose it is. Walking over them is
    // what its vectors recommend.
    ("v6_inner_exthdr", Reason::Forwarded),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// The flow of the packet inside: of TCP itself, of ICMP errors the quoted one reversed.
fn inner_flow(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let inner = &packet[20 + 8 + 4 + 4 * usize::from(packet[28] & 0x1f)..];
    let tuple = |ip: &[u8]| -> (SocketAddr, SocketAddr) {
        let (source, destination, ports): (IpAddr, IpAddr, &[u8]) = if ip[0] >> 4 == 4 {
            let at = |i: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[i..i + 4]).unwrap());
            (at(12), at(16), &ip[usize::from(ip[0] & 15) * 4..])
        } else {
            let at = |i: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[i..i + 16]).unwrap());
            (at(8), at(24), &ip[40..])
        };
        let port = |i: usize| u16::from_be_bytes([ports[i], ports[i + 1]]);
        (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)))
    };
    if inner[0] >> 4 == 6 && inner[6] == 58 {
        let (vip, client) = tuple(&inner[48..]);
        return (client, vip);
    }
    tuple(inner)
}

fn reason(case: &Value) -> Reason {
    let name = case["name"].as_str().unwrap();
    if let Some((_, reason)) = DIFFERENT.iter().find(|(different, _)| *different == name) {
        return *reason;
    }
    match (name, case["glb_action"].as_str().unwrap(), case["glb_counter"].as_str()) {
        ("v6_ptb_unknown", "forward", _) => Reason::ForwardedIcmpError,
        ("v6_ptb_established", "accept", _) => Reason::TakenIcmpError,
        (_, "forward", _) => Reason::Forwarded,
        (_, "accept", Some("accepted_syn_packets")) => Reason::TakenSyn,
        (_, "accept", Some("accepted_established_packets")) => Reason::TakenEstablished,
        (_, "accept", Some("accepted_syn_cookie_packets")) => Reason::TakenCookie,
        (_, "accept", Some("accepted_last_resort_packets")) => Reason::TakenLastHop,
        (_, "accept", Some("forwarded_to_self_packets")) => Reason::TakenOwnHop,
        ("v4_inner_udp", "accept", None) => Reason::TakenUdp,
        (_, "accept", None) => Reason::TakenIcmp,
        ("v4_inner_gre", "drop", _) => Reason::UnknownTransport,
        ("gue_hlen_0" | "gue_hlen_too_big", "drop", _) => Reason::BadHeaderLength,
        ("gue_proto_41_with_v4", "drop", _) => Reason::BadInnerProtocol,
        ("truncated_30" | "truncated_35", "drop", _) => Reason::OuterMalformed,
        (name, "drop", _) if name.starts_with("truncated") => Reason::InnerMalformed,
        other => panic!("a case that this test does not know: {other:?}"),
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let file: Value = serde_json::from_str(include_str!("../data/redirect_cases.json")).unwrap();
    file["cases"].as_array().unwrap().iter().map(case).collect()
}

fn case(case: &Value) -> Case {
    let text = |key: &str| case[key].as_str();
    let packet = bytes(text("packet").unwrap());
    let own = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
    let state = text("local_state").unwrap();
    let cookie = state.contains("is a valid cookie");
    let owned = state.starts_with("ESTABLISHED socket for the tuple")
        || state.starts_with("ESTABLISHED socket for SELF")
        || state.starts_with("TIME_WAIT");
    let flow = (owned || cookie).then(|| inner_flow(&packet));
    let hops = 1..=60u8;
    let peers: HashMap<_, _> = hops
        .flat_map(|last| [50, 51].map(|net| (IpAddr::from([192, 168, net, last]), peer(last))))
        .filter(|(address, _)| *address != own)
        .collect();
    let mut host = FakeHost {
        own: [own].into(),
        peers,
        vips: [
            ip("10.10.10.10"),
            ip("fd2c:394c:33a3:26bf::1"),
            // Some of the packets are addressed to the proxy itself.
            ip("192.168.50.10"),
            ip("192.168.50.11"),
            ip("fd33:75c6:d3f2:7e9f::10"),
        ]
        .into(),
        ..FakeHost::default()
    };
    if cookie {
        host.cookies.extend(flow);
    } else {
        host.flows.extend(flow);
    }
    let reason = reason(case);
    let forwarded =
        text("forwarded").filter(|_| reason.action() == glb_common::reason::Action::Send);
    let forwarded = forwarded.map(|hex| {
        let sent = bytes(hex);
        let mut frame = ethernet(&sent);
        frame[..6].copy_from_slice(&peer_mac(sent[19]));
        frame[6..12].copy_from_slice(&OWN_MAC);
        frame
    });
    Case {
        name: text("name").unwrap().to_owned(),
        frame: ethernet(&packet),
        host,
        flow,
        cookie,
        reason,
        forwarded,
    }
}
