//! The director's daemon is killed, stopped, given invalid tables, and detached.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use glb_lab::{
    Family, Fleet, GitClone, Lock, Node, Requests, State, client, files_below, http, vip,
};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{ask, ends_well, everybody_answers, fleet, has_program, reaches};

#[test]
fn clone_survives_kill_and_restart_of_the_director_daemon() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = fleet("glb-t-kill")?;
    let begun = Instant::now();
    let requests = Requests::start(&fleet.lab, Family::V6, 2, Duration::from_millis(20))?;
    let mut clone = GitClone::start(&fleet.lab, Family::V4, "big.git", "copy")?;
    reaches(&mut clone, 15)?;
    let before = fleet.counters()?;
    ensure!(fleet.director()?.end(Signal::SIGKILL)?.code().is_none());

    // The daemon is gone, and packets continue.
    reaches(&mut clone, 35)?;
    let director = &mut fleet.directors[0];
    director.start(&fleet.lab)?;
    reaches(&mut clone, 45)?;

    // The new daemon is in charge: its counters continue, and it reloads.
    let (serving, _) = clone.served_by(&fleet.lab)?[0];
    let after = fleet.counters()?;
    ensure!(after.sent_to(serving) > before.sent_to(serving), "{before:?} {after:?}");
    fleet.table.set_state(serving, State::Draining);
    fleet.reload()?;
    ends_well(&mut clone, &fleet)?;
    ensure!(fleet.counters()?.all_forwarded() > 0, "the drain had no effect");

    let (answers, errors) = requests.between(begun, Instant::now());
    ensure!(errors.is_empty() && answers.len() == 3, "{answers:?} {errors:?}");
    Ok(())
}

#[test]
fn director_forwards_after_sigterm_until_detach() -> Result<()> {
    let mut fleet = fleet("glb-t-term")?;
    let node = Node::Director(1);
    let pins = fleet.lab.bpf().join(node.to_string());
    ensure!(fleet.director()?.end(Signal::SIGTERM)?.success());
    everybody_answers(&fleet.lab)?;
    ensure!(has_program(&fleet.lab, node)? && !files_below(&pins)?.is_empty());

    let director = &fleet.directors[0];
    director.detach(&fleet.lab)?;
    ensure!(!has_program(&fleet.lab, node)?, "still attached");
    ensure!(files_below(&pins)?.is_empty(), "left: {:?}", files_below(&pins)?);
    ensure!(ask(&fleet.lab, Family::V4, 1).is_err(), "who forwards now?");
    // A second detach is not an error.
    director.detach(&fleet.lab)?;

    fleet.directors[0].start(&fleet.lab)?;
    everybody_answers(&fleet.lab)
}

/// Counts the RST and ICMP messages that the client's kernel received during `work`.
fn icmp_and_rst_during(fleet: &Fleet, work: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let read = || {
        fleet.lab.netns(Node::Client)?.run(|| {
            let mut counters = BTreeMap::new();
            let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let mut lines = text.lines();
            while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
                for (name, value) in names.split(' ').zip(values.split(' ')).skip(1) {
                    counters.insert(name.to_owned(), value.parse::<i64>()?);
                }
            }
            for line in fs::read_to_string("/proc/thread-self/net/snmp6")?.lines() {
                let mut words = line.split_whitespace();
                if let (Some(name), Some(value)) = (words.next(), words.next()) {
                    counters.insert(name.to_owned(), value.parse()?);
                }
            }
            Ok(counters)
        })
    };
    let before = read()?;
    work()?;
    // A refused connection is a failed attempt without a timeout.
    let telling =
        ["InDestUnreachs", "InTimeExcds", "InRedirects", "Icmp6InDestUnreachs", "Icmp6InTimeExcds"];
    let after = read()?;
    let changed = telling.into_iter().filter(|name| before.get(*name) != after.get(*name));
    Ok(changed.map(str::to_owned).collect())
}

/// Sends every kind of packet that a director leaves to its kernel, which would answer if it owned
/// a VIP.
fn send_packets_left_to_the_kernel(fleet: &Fleet) -> Result<()> {
    let icmp_and_rst_during = icmp_and_rst_during(fleet, || {
        for family in [Family::V4, Family::V6] {
            fleet.lab.netns(Node::Client)?.run(|| {
                // A TCP port without a bind must not cause an RST.
                let to = SocketAddr::new(vip(family), 81);
                let refused = http::connect(client(family, 1), to, Duration::from_millis(700));
                let kind = refused.err().map(|error| error.kind());
                ensure!(kind == Some(ErrorKind::TimedOut), "{family:?}: {kind:?}");
                // UDP must not cause "port unreachable", which the next call would report.
                let socket = UdpSocket::bind((client(family, 1), 0))?;
                socket.connect(SocketAddr::new(vip(family), 81))?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                for _ in 0..2 {
                    socket.send(b"anybody there?")?;
                    let kind = socket.recv(&mut [0]).err().map(|error| error.kind());
                    ensure!(kind == Some(ErrorKind::WouldBlock), "{family:?}: {kind:?}");
                }
                Ok(())
            })?;
        }
        // Later fragments, which match no table, and protocols without ports.
        fleet.lab.netns(Node::Client)?.run(|| {
            let from = SocketAddr::new(client(Family::V4, 1), 0);
            let socket = UdpSocket::bind(from)?;
            let echoes = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            echoes.bind(&from.into())?;
            // An echo request with an all-zero payload and its checksum.
            let mut echo = [0; 4000];
            echo[..4].copy_from_slice(&[8, 0, 0xf7, 0xff]);
            for _ in 0..2 {
                ensure!(socket.send_to(&[0; 4000], (vip(Family::V4), 81))? == 4000);
                ensure!(
                    echoes.send_to(&echo, &SocketAddr::new(vip(Family::V4), 0).into())? == 4000
                );
                // Time for an answer.
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        })
    })?;
    ensure!(
        icmp_and_rst_during.is_empty(),
        "the client was icmp_and_rst_during: {icmp_and_rst_during:?}"
    );
    Ok(())
}

#[test]
fn director_kernel_never_answers_for_a_vip() -> Result<()> {
    let mut fleet = fleet("glb-t-mute")?;
    let node = Node::Director(1);
    send_packets_left_to_the_kernel(&fleet)?;
    // A director that is also a router: the VIPs are blackhole routes there.
    fleet
        .lab
        .netns(node)?
        .sysctl(&[("net.ipv4.conf.all.forwarding", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
    for family in [Family::V4, Family::V6] {
        fleet.lab.netns(node)?.ip(&format!("route add blackhole {}", vip(family)))?;
    }
    send_packets_left_to_the_kernel(&fleet)?;
    everybody_answers(&fleet.lab)?;
    // After stop and detach, the kernel still does not answer.
    ensure!(fleet.director()?.end(Signal::SIGTERM)?.success());
    fleet.directors[0].detach(&fleet.lab)?;
    send_packets_left_to_the_kernel(&fleet)?;
    fleet.directors[0].start(&fleet.lab)?;
    everybody_answers(&fleet.lab)?;
    // The counter-check: with the VIP as a local address, the kernel does answer.
    fleet.lab.netns(node)?.ip(&format!("address add {} dev lo", vip(Family::V4)))?;
    let answered = send_packets_left_to_the_kernel(&fleet);
    ensure!(answered.is_err(), "a refusal goes unnoticed");
    Ok(())
}

#[test]
fn invalid_table_leaves_the_current_one_in_force() -> Result<()> {
    let mut fleet = fleet("glb-t-bad")?;
    let good = fleet.table.toml()?;
    for (bad, word) in [
        ("this is not a table".to_owned(), "table.toml"),
        (good.replace("10.0.2.22", "10.0.2.21"), "10.0.2.21"),
        (good.replace("\"active\"", "\"asleep\""), "asleep"),
        (good.replace("\"active\"", "\"inactive\""), "inactive"),
    ] {
        let answer = fleet.director()?.reload_refused(&bad)?;
        ensure!(answer.contains(word), "{word:?} is not in: {answer}");
        everybody_answers(&fleet.lab)?;
    }
    fleet.table.set_state(Node::Backend(2), State::Inactive);
    fleet.reload()?;
    let before = fleet.counters()?.sent_to(Node::Backend(2));
    for number in 0..20 {
        ensure!(ask(&fleet.lab, Family::V4, number)?.to_string() != "200 backend2");
    }
    ensure!(fleet.counters()?.sent_to(Node::Backend(2)) == before);
    Ok(())
}
