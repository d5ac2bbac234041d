//! `bench redirect`: measures the backend's packet path in a network namespace with a real connection
//! and a real listener.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};
use aya::programs::XdpMode;
use clap::Args;
use glb_common::{checksum, second_chance::abi::PeerNextHop};
use glb_redirect::{config::Config, generation::Generation, program_data::ProgramData};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket},
};

use crate::{
    harness::{Harness, Net, OUTER_LEN, Workload, XDP_PASS, XDP_TX, rounds},
    packet,
};

/// Options of `bench redirect`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Number of rounds. Each runs every program once, in rotating order.
    #[arg(long, default_value_t = 61)]
    rounds: usize,
    /// Packets in each run.
    #[arg(long, default_value_t = 100_000)]
    packets: u32,
    /// Measure only workloads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure another build of the backend's program too: NAME=OBJECT.
    #[arg(long, value_name = "NAME=OBJECT")]
    also: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The index of lo, the interface that test runs receive packets on.
const TEST_INTERFACE: u32 = 1;
const OWN: [u8; 4] = [10, 1, 0, 21];
const PEER: [u8; 4] = [10, 1, 0, 22];
const DIRECTOR: [u8; 4] = [10, 1, 0, 10];
const VIP_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The flow that the generator makes when there is only one.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0xa00, 0);
const CLIENT_PORT: u16 = 1024;
/// A port with a listener, but without connections.
const OTHER_PORT: u16 = 81;
/// A port without a listener.
const NO_PORT: u16 = 82;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A path through the program.
struct Case {
    name: &'static str,
    is_v6: bool,
    flows: u64,
    port: u16,
    flags: u8,
    verdict: u32,
    reason: &'static str,
}

const fn case(name: &'static str, is_v6: bool, flows: u64) -> Case {
    Case {
        name,
        is_v6,
        flows,
        port: 80,
        flags: ACK,
        verdict: XDP_PASS,
        reason: "taken_established",
    }
}

const fn syn(name: &'static str, is_v6: bool, flows: u64) -> Case {
    Case { flags: SYN, reason: "taken_syn", ..case(name, is_v6, flows) }
}

const fn forwarded(name: &'static str, is_v6: bool, flows: u64) -> Case {
    let of = case(name, is_v6, flows);
    Case { port: OTHER_PORT, verdict: XDP_TX, reason: "forwarded", ..of }
}

const fn without_listener(name: &'static str, is_v6: bool, flows: u64) -> Case {
    Case { port: NO_PORT, ..forwarded(name, is_v6, flows) }
}

const CASES: [Case; 10] = [
    syn("v4 SYN", false, 1),
    syn("v4 SYN", false, 1 << 20),
    case("v4 established", false, 1),
    forwarded("v4 forwarded", false, 1),
    forwarded("v4 forwarded", false, 1 << 20),
    without_listener("v4 forwarded, no listener", false, 1),
    without_listener("v4 forwarded, no listener", false, 1 << 20),
    case("v6 established", true, 1),
    forwarded("v6 forwarded", true, 1),
    forwarded("v6 forwarded", true, 1 << 20),
];

/// The cost of one program on one path.
#[derive(Debug, serde::Serialize)]
struct Figure {
    path: &'static str,
    flows: u64,
    program: String,
    /// The cost without the empty program.
    net: Net,
    /// The cost of the floor.
    floor: Net,
    /// The cost of the kernel's socket look-up alone; nothing for packets without one.
    look_up: Option<Net>,
    /// The cost as a multiple of the floor's.
    ratio: Net,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run as root")?;
    for line in [
        "link set lo up".to_owned(),
        format!("addr add {VIP_V4}/32 dev lo"),
        format!("addr add {VIP_V6}/128 dev lo nodad"),
        format!("addr add {CLIENT_V4}/32 dev lo"),
        format!("addr add {CLIENT_V6}/128 dev lo nodad"),
        // A test run of a program that is not attached waits for RCU each time.
        "link add idle0 type veth peer name idle1".to_owned(),
    ] {
        let status = Command::new("ip").args(line.split_whitespace()).status();
        ensure!(status.is_ok_and(|status| status.success()), "ip {line} failed");
    }
    let mut open = Vec::new();
    for (client, vip) in
        [(IpAddr::V4(CLIENT_V4), IpAddr::V4(VIP_V4)), (IpAddr::V6(CLIENT_V6), IpAddr::V6(VIP_V6))]
    {
        open.push(connection(client, vip)?);
    }

    let text = format!(
        "interfaces = [\"lo\"]\nvips = [\"{VIP_V4}\", \"{VIP_V6}\"]\ndirectors = [\"{}\"]\n\
         backends = [\"{}\"]\n",
        Ipv4Addr::from(DIRECTOR),
        Ipv4Addr::from(PEER)
    );
    let config = Config::parse(&text, Path::new("bench.toml"))?;
    let own = BTreeSet::from([IpAddr::from(OWN)]);
    let image = ProgramData::new(&config, &own);
    let mut builds = vec![("backend".to_owned(), Generation::load(&image, None)?)];
    for also in &arguments.also {
        let (name, object) =
            also.split_once('=').with_context(|| format!("`--also {also}` is not NAME=OBJECT"))?;
        let object = packet::read_object(object.as_ref())?;
        let generation = Generation::load_object(&image, None, &object)
            .with_context(|| format!("cannot load `--also {also}`"))?;
        builds.push((name.into(), generation));
    }
    let next_hop = PeerNextHop::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], TEST_INTERFACE);
    for (_, generation) in &mut builds {
        generation.set_next_hop(IpAddr::from(PEER), next_hop)?;
    }
    builds[0].1.program()?.attach("idle0", XdpMode::Driver)?;

    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&arguments.only)) {
        figures.extend(measure(case, &mut builds, arguments)?);
    }
    ensure!(!figures.is_empty(), "no path's name contains `{}`", arguments.only);
    drop(open);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", show(&figures));
        let sizes = builds[0].1.infos()?.map(|(name, info)| packet::size(name, &info));
        print!("{}", packet::show_sizes(&sizes));
    }
    Ok(())
}

/// Makes a listener without connections, and an established connection to another listener.
fn connection(
    client: IpAddr,
    vip: IpAddr,
) -> anyhow::Result<(TcpListener, TcpListener, TcpStream, std::os::fd::OwnedFd)> {
    let other = TcpListener::bind(SocketAddr::new(vip, OTHER_PORT))?;
    let listener = TcpListener::bind(SocketAddr::new(vip, 80))?;
    let family = if vip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let ours = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&ours);
    bind(fd, &SockaddrStorage::from(SocketAddr::new(client, CLIENT_PORT)))?;
    connect(fd, &SockaddrStorage::from(SocketAddr::new(vip, 80)))?;
    let accepted = listener.accept()?.0;
    Ok((other, listener, accepted, ours))
}

fn measure(
    case: &Case,
    builds: &mut [(String, Generation)],
    arguments: &Arguments,
) -> anyhow::Result<Vec<Figure>> {
    let packet = packet(case);
    let length = packet.len() as u32;
    let workload = Workload { name: case.name, length, is_v6: case.is_v6, flows: case.flows };
    let mut harness = Harness::tunnel(workload, packet)?;
    let mut programs = vec![
        (harness.own("nothing")?, XDP_TX),
        (harness.own("floor_strip")?, XDP_PASS),
        (harness.own("look_up")?, XDP_TX),
    ];
    let surroundings = programs.len();
    for (_, generation) in &mut *builds {
        programs.push((generation.program()?.fd()?.try_clone()?, case.verdict));
    }
    let count = |builds: &[(String, Generation)]| -> anyhow::Result<Vec<u64>> {
        builds.iter().map(|(_, generation)| packets(generation, case.reason)).collect()
    };
    let before = count(builds)?;
    let times = rounds(arguments.rounds, programs.len(), |index| {
        let (program, verdict) = &programs[index];
        harness.time(program, *verdict, arguments.packets)
    })?;
    // Every packet must have taken the path of the case.
    let after = count(builds)?;
    let expected = u64::from(arguments.packets) * (arguments.rounds as u64 + 1);
    for (before, after) in before.iter().zip(after) {
        let counted = after - before;
        ensure!(counted == expected, "{}: {counted} of {expected} were {}", case.name, case.reason);
    }
    let net: Vec<Net> = times.iter().map(|program| Net::of(program, &times[0])).collect();
    let (floor, look_up) = (net[1], (case.flags != SYN).then_some(net[2]));
    let of = |((name, _), net): (&(String, Generation), &Net)| Figure {
        path: case.name,
        flows: case.flows,
        program: name.clone(),
        net: *net,
        floor,
        look_up,
        ratio: net.ratio(&floor),
    };
    Ok(builds.iter().zip(&net[surroundings..]).map(of).collect())
}

fn packets(generation: &Generation, reason: &str) -> anyhow::Result<u64> {
    let report = glb_redirect::counters::sum(generation.counters()?)?;
    Ok(report.reasons.get(reason).map_or(0, |count| count.packets))
}

fn show(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<25} {:>8} {:<10} {:>8} {:>8} {:>8} {:>10} {:>8} {:>8}\n",
        "path", "flows", "program", "p10 ns", "median", "floor", "look-up", "p10 ×", "median ×"
    );
    for Figure { path, flows, program, net, floor, look_up, ratio } in figures {
        let look_up = look_up.map_or_else(|| "-".to_owned(), |net| format!("{:.1}", net.p10_ns));
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{path:<25} {flows:>8} {program:<10} {:>8.1} {:>8.1} {:>8.1} {look_up:>10} {:>8.2} {:>8.2}",
            net.p10_ns, net.median_ns, floor.p10_ns, ratio.p10_ns, ratio.median_ns
        );
    }
    text
}

/// Makes a packet in the tunnel with one listed hop. The generator writes its source address and port.
fn packet(case: &Case) -> Vec<u8> {
    let mut inner = Vec::new();
    if case.is_v6 {
        inner.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
        inner.extend(CLIENT_V6.octets());
        inner.extend(VIP_V6.octets());
    } else {
        inner.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        inner.extend(CLIENT_V4.octets());
        inner.extend(VIP_V4.octets());
    }
    inner.extend(CLIENT_PORT.to_be_bytes());
    inner.extend(case.port.to_be_bytes());
    inner.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, case.flags, 1, 0, 0, 0, 0, 0]);

    let total = (OUTER_LEN - 14 + inner.len()) as u16;
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(DIRECTOR);
    packet.extend(OWN);
    let words = packet[14..34].chunks_exact(4);
    let sum = words.map(|word| checksum::sum_4([word[0], word[1], word[2], word[3]])).sum();
    packet[24..26].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    packet.extend(0x8001u16.to_be_bytes());
    packet.extend(19_523u16.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend([2, if case.is_v6 { 41 } else { 4 }, 0, 0, 0, 0, 0, 1]);
    packet.extend(PEER);
    packet.extend(inner);
    packet
}
