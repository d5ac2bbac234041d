//! A data centre whose MTU leaves no room for the tunnel: uploads work because clients are told a
//! smaller segment size.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use glb_lab::{
    Daemon, Family, INTERFACE, Lab, Node, Plan, TableFile, client, files_below, http, link, vip,
};
use nix::sys::signal::Signal;

use crate::support::build;

const BYTES: usize = 300_000;

/// The director's reasons for packets that do not fit the tunnel.
const REASONS: [&str; 3] = ["too_big", "too_big_unanswered", "too_big_may_fragment"];

/// Counts the bytes of each connection to port 80 and prints the count, until the process ends.
fn sink(lab: &Lab, node: Node) -> Result<()> {
    let listener = lab.netns(node)?.run(|| {
        // This socket accepts both families.
        Ok(TcpListener::bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80))?)
    })?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut received = Vec::new();
                // A client that gave up gets no answer.
                if stream.read_to_end(&mut received).is_ok() {
                    stream.write_all(&received.len().to_be_bytes()).ok();
                }
            });
        }
    });
    Ok(())
}

/// Sends enough data to produce full-sized segments, and returns how much arrived.
fn upload(lab: &Lab, family: Family, number: u16) -> Result<usize> {
    lab.netns(Node::Client)?.run(|| {
        let to = SocketAddr::new(vip(family), 80);
        let mut stream = http::connect(client(family, number), to, Duration::from_secs(3))?;
        stream.write_all(&vec![7; BYTES])?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        Ok(usize::from_be_bytes(answer))
    })
}

fn uploads_arrive(lab: &Lab, numbers: std::ops::Range<u16>) -> Result<()> {
    for number in numbers {
        for family in [Family::V4, Family::V6] {
            let received = upload(lab, family, number).with_context(|| format!("{family:?}"))?;
            ensure!(received == BYTES, "{received} of {BYTES} bytes over {family:?}");
        }
    }
    Ok(())
}

#[test]
fn uploads_through_a_data_centre_of_1500_bytes() -> Result<()> {
    build()?;
    let plan = Plan { backends: 2, data_centre_mtu: 1500, ..Plan::new("glb-t-mtu") };
    let lab = Lab::up(plan)?;
    let table = TableFile::new(lab.plan());
    let mut redirects = Vec::new();
    for node in lab.plan().backend_nodes() {
        sink(&lab, node)?;
        let mut daemon = Daemon::redirect(&lab, node, true)?;
        daemon.start(&lab)?;
        redirects.push(daemon);
    }
    let mut director = Daemon::director(&lab, Node::Director(1), &table)?;
    director.start(&lab)?;
    uploads_arrive(&lab, 0..4)?;

    // The client verifies checksums that the backend's kernel computed.
    for node in lab.plan().backend_nodes() {
        lab.netns(node)?.run(|| link::set_offload(INTERFACE, link::Offload::TxChecksums, false))?;
    }
    uploads_arrive(&lab, 10..14)?;

    // The daemon's death changes nothing, and a restart adopts the program.
    for daemon in &mut redirects {
        daemon.end(Signal::SIGKILL)?;
    }
    uploads_arrive(&lab, 20..22)?;
    for daemon in &mut redirects {
        daemon.start(&lab)?;
    }
    uploads_arrive(&lab, 30..32)?;

    // No packet was too big for the tunnel.
    ensure!(too_big(&director, &lab)? == 0, "{:?}", director.director_counters(&lab)?);

    // Each of these connections was told the lower MSS, over both families, and the counters
    // survived the restarts.
    let clamped = || -> Result<u64> {
        let of = |daemon: &Daemon| Ok(daemon.redirect_counters(&lab)?.clamped_syn_acks);
        redirects.iter().map(of).sum()
    };
    let connections = 2 * (4 + 4 + 2 + 2);
    ensure!(clamped()? >= connections, "{} of {connections} SYN-ACKs", clamped()?);

    // Without the clamp, full-sized packets arrive, so the test can fail. (The director answers
    // them with ICMP, which helps clients whose networks deliver it.)
    for daemon in &mut redirects {
        let config = fs::read_to_string(daemon.config())?;
        fs::write(daemon.config(), format!("mss_clamp = false\n{config}"))?;
        let process = daemon.process()?;
        let from = process.log()?.len();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_log("in force", from, Duration::from_secs(20))?;
        let clamps = lab.bpf().join(daemon.node().to_string()).join("clamps");
        ensure!(files_below(&clamps)?.is_empty(), "{:?}", files_below(&clamps)?);
    }
    for family in [Family::V4, Family::V6] {
        let before = too_big(&director, &lab)?;
        // It does not matter here whether this upload arrives.
        upload(&lab, family, 40).ok();
        ensure!(too_big(&director, &lab)? > before, "{family:?} fits without help");
    }
    Ok(())
}

/// Returns the packets that did not fit the tunnel, with any outcome.
fn too_big(director: &Daemon, lab: &Lab) -> Result<u64> {
    let counters = director.director_counters(lab)?;
    Ok(REASONS.iter().map(|reason| counters.packets(reason)).sum())
}
