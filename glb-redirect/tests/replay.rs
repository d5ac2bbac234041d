//! `glb-redirect replay` with real sockets in a network namespace. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use common::{in_namespace, tcp::Client};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use glb_common::{
    reason::{Action, RedirectReason as Reason},
    second_chance::abi::PeerNextHop,
};
use glb_host::{
    capture_file::{CaptureReader, CaptureWriter, CapturedFrame},
    next_hop::NextHop,
    packet_trace::replay::{FrameStage, ReplayNextHops, ReplayProgram as _, TEST_INTERFACE},
};
use glb_redirect::{
    config::{Config, UnknownSenders},
    program_data::ProgramData,
    replay::Replay,
};
use serde_json::Value;
use support::{
    FakeHost, OWN_MAC, golden, ip,
    packet::{ACK, SYN, Segment, gue, gue_v6},
    run, socket,
};

/// A replay with the configuration of `host`; all peers are behind the ingress interface.
fn replay_for(host: &FakeHost) -> Replay {
    let config = Config {
        path: PathBuf::new(),
        interfaces: Vec::new(),
        bpffs_dir: PathBuf::new(),
        vips: host.vips.iter().copied().collect(),
        directors: host.senders.iter().map(|(ip, bits)| (*ip, *bits)).map(net).collect(),
        backends: host.peers.keys().copied().collect(),
        table: None,
        metrics: None,
        addresses: None,
        second_chance: !host.no_second_chance,
        unknown_senders: if host.passes_unknown_senders {
            UnknownSenders::Pass
        } else {
            UnknownSenders::Drop
        },
        vips_on_lo: false,
        mss: None,
        control: glb_host::control::RawControlConfig::default()
            .check("".as_ref(), "unused")
            .unwrap(),
    };
    let own = host.own.iter().copied().collect();
    let image = ProgramData::new(&config, &own);
    let way = |(address, peer): (&IpAddr, &PeerNextHop)| {
        let bytes: Vec<u8> = peer.macs.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let hop = NextHop {
            interface: TEST_INTERFACE,
            own_mac: OWN_MAC,
            mac: bytes[..6].try_into().unwrap(),
            source: None,
            mtu: 1500,
            link_mtu: 1500,
        };
        (*address, Ok(hop))
    };
    let next_hops = host.peers.iter().filter(|(_, peer)| peer.interface != 0).map(way).collect();
    Replay::load(
        &image,
        ReplayNextHops { next_hops, interface: "eth0".into(), ..ReplayNextHops::default() },
    )
    .unwrap()
}

fn net((address, bits): (IpAddr, u8)) -> ipnet::IpNet {
    ipnet::IpNet::new(address, bits).unwrap()
}

/// The golden cases of GLB's kernel module that need no socket: reason, verdict and frame.
#[test]
fn golden_cases_are_replayed_with_reason_and_verdict() {
    in_namespace(|_wire| {
        let mut replays: BTreeMap<Vec<IpAddr>, Replay> = BTreeMap::new();
        let mut verdicts: BTreeMap<&str, u32> = BTreeMap::new();
        for case in golden::cases().into_iter().filter(|case| case.flow.is_none()) {
            let own: Vec<IpAddr> = case.host.own.iter().copied().collect();
            let replay = replays.entry(own).or_insert_with(|| replay_for(&case.host));
            let expected = run(&case.host, &case.frame);
            let ran = replay.run(&case.frame).unwrap();
            let decision = ran.decision;
            assert_eq!(decision.reason, Some(case.reason.name()), "{}", case.name);
            assert_eq!(ran.frame, expected.frame, "{}", case.name);
            let (verdict, to) = match expected.action {
                Action::Pass => ("passed", Some(FrameStage::Kernel)),
                Action::Take => ("taken", Some(FrameStage::Kernel)),
                Action::Send => ("sent", Some(FrameStage::Sent)),
                Action::Drop | Action::Answer => ("dropped", None),
            };
            assert_eq!((decision.verdict, ran.to), (verdict, to), "{}", case.name);
            *verdicts.entry(verdict).or_default() += 1;
            if let Some(forwarded) = case.forwarded {
                assert_eq!(ran.frame, forwarded, "{}", case.name);
                let next = IpAddr::from(<[u8; 4]>::try_from(&forwarded[30..34]).unwrap());
                assert_eq!(decision.hops[0], next, "{}", case.name);
            }
        }
        assert!(verdicts["sent"] >= 4 && verdicts["taken"] >= 10, "{verdicts:?}");
        assert!(verdicts["dropped"] >= 8, "{verdicts:?}");
    });
}

const CONFIG: &str = "interfaces = [\"glb-none\"]\n\
    vips = [\"203.0.113.10\", \"2001:db8::10\"]\n\
    directors = [\"10.0.2.10\", \"fd00:2::10\"]\n\
    backends = [\"10.0.2.21\", \"10.0.2.22\", \"10.0.2.23\", \"fd00:2::21\", \"fd00:2::22\"]\n\
    addresses = [\"10.0.2.21\", \"fd00:2::21\"]\n";

fn folder(name: &str, frames: &[Vec<u8>]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("glb-replay-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("redirect.toml"), CONFIG).unwrap();
    let interfaces = [("eth0", "")];
    let mut writer =
        CaptureWriter::create(&folder.join("in.pcapng"), "test", &interfaces, None).unwrap();
    for (number, data) in (1..).zip(frames) {
        let (time, length) = (Duration::from_millis(number), data.len() as u32);
        writer.write(0, &CapturedFrame { number, time, length, data: data.clone() }, "").unwrap();
    }
    writer.flush().unwrap();
    folder
}

fn replay(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_glb-redirect"))
        .current_dir(folder)
        .args(["replay", "--config", "redirect.toml", "--next-hops", "synthetic"])
        .args(args)
        .output()
        .unwrap()
}

/// The output capture has the frames that are forwarded and those that the kernel gets.
#[test]
fn replay_looks_flows_up_in_the_sockets_of_its_namespace() {
    in_namespace(|mut wire| {
        let (client, vip) = (socket("198.51.100.7:40000"), socket("203.0.113.10:80"));
        let listener = TcpListener::bind(vip).unwrap();
        let here = Client::connect(&mut wire, client, vip);
        let _stream = listener.accept().unwrap();
        let elsewhere = Client { client: socket("198.51.100.7:40001"), ..here };
        let segment = |of: &Client, flags| Segment { data: 10, ..of.segment(flags) }.packet();
        let mut unknown_sender = gue(segment(&here, ACK));
        unknown_sender.source = ip("192.0.2.66");
        let mut elsewhere_vip = gue(segment(&here, SYN));
        elsewhere_vip.inner[16..20].copy_from_slice(&[203, 0, 113, 99]);
        let frames = [
            gue(segment(&here, ACK)).frame(),
            gue(segment(&elsewhere, ACK)).frame(),
            gue_v6(segment(&elsewhere, ACK)).frame(),
            gue(segment(&elsewhere, SYN)).frame(),
            unknown_sender.frame(),
            support::packet::ethernet(&segment(&here, ACK)),
        ];
        let expected = [
            ("taken", Reason::TakenEstablished),
            ("sent", Reason::Forwarded),
            ("sent", Reason::Forwarded),
            ("taken", Reason::TakenSyn),
            ("dropped", Reason::UnknownSender),
            ("passed", Reason::NotTunnel),
        ];
        let folder = folder("sockets", &frames);
        let output = replay(&folder, &["in.pcapng", "-w", "out.pcapng", "-o", "json"]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        let lines: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), expected.len());
        for (line, (verdict, reason)) in lines.iter().zip(expected) {
            assert_eq!(
                (&line["verdict"], &line["reason"]),
                (&verdict.into(), &reason.name().into())
            );
        }
        assert_eq!(lines[0]["source_port"], 40000);
        assert_eq!(lines[1]["hops"][0], "10.0.2.22");
        assert_eq!(lines[2]["hops"][0], "fd00:2::22");
        assert_eq!(lines[1]["egress"]["synthetic"], true);
        assert!(lines[4]["note"].as_str().unwrap().contains("192.0.2.66"), "{}", lines[4]);
        assert!(errors.contains("synthetic") && errors.contains("2 sent (forwarded)"), "{errors}");

        let mut reader = CaptureReader::open(&folder.join("out.pcapng")).unwrap();
        let out: Vec<CapturedFrame> =
            std::iter::from_fn(|| reader.next_packet().unwrap()).collect();
        // All frames but the unknown sender's, in order.
        assert_eq!(out.len(), 5);
        let taken = SlicedPacket::from_ethernet(&out[0].data).unwrap();
        let Some(NetSlice::Ipv4(ip)) = taken.net else { panic!("{lines:?}") };
        assert_eq!(ip.header().destination_addr(), vip.ip());
        let Some(TransportSlice::Tcp(tcp)) = taken.transport else { panic!("{lines:?}") };
        assert_eq!((tcp.source_port(), tcp.payload().len()), (40000, 10));
        let sent = SlicedPacket::from_ethernet(&out[1].data).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sent.net else { panic!("{lines:?}") };
        let header = ip.header().to_header();
        assert_eq!(header.destination, [10, 0, 2, 22]);
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(out[4].data, frames[5]);
        fs::remove_dir_all(folder).unwrap();
    });
}
