//! Measures live frames on a veth pair. A generator sends them at one end, the program under test sends
//! them back from the other end, and they are counted and dropped. All of it runs on one core.

use std::{
    fmt::Write as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, xdp::XdpMode},
};
use glb_host::bpffs::PinFolder;
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use serde::Serialize;

use super::{Arguments, Setup, Workload, packet};
use crate::harness::quantile;

/// Frames in a run, and frames in a batch.
const FRAMES: u32 = 400_000;
const BATCH: u32 = 64;
/// Bytes of a frame.
const LENGTH: u32 = 80;
/// Flows.
const FLOWS: u64 = 65_536;
/// Number of rounds. Each runs every program once.
const ROUNDS: usize = 7;

/// The rate of one program.
#[derive(Debug, Serialize)]
pub(super) struct Live {
    packet: &'static str,
    program: String,
    /// Millions of frames per second that came back: the median of the rounds.
    median_mpps: f64,
    /// Nanoseconds per frame, both directions and the kernel's work included.
    median_ns: f64,
    /// Frames that did not come back, in all rounds.
    lost: u64,
}

/// Measures on a thread with its own network namespace.
pub(super) fn measure(arguments: &Arguments, pins: &PinFolder) -> anyhow::Result<Vec<Live>> {
    let mut all = Vec::new();
    for (name, is_v6) in [("v4 80 B", false), ("v6 80 B", true)] {
        let workload = Workload { name, length: LENGTH, is_v6, flows: FLOWS };
        let setup = Setup::plain(arguments);
        let result = thread::scope(|scope| {
            let thread = scope.spawn(|| in_namespace(workload, &setup, pins));
            thread.join().map_err(|_| anyhow::anyhow!("the thread that measures panicked"))
        });
        all.extend(result??);
    }
    Ok(all)
}

fn in_namespace(workload: Workload, setup: &Setup, pins: &PinFolder) -> anyhow::Result<Vec<Live>> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    for arguments in [
        "link add name near type veth peer name far",
        "link set dev near address 02:00:00:00:00:02 up",
        "link set dev far address 02:00:00:00:00:01 up",
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status()?;
        ensure!(status.success(), "`ip {arguments}` failed");
    }
    let far = glb_host::next_hop::interface_index("far")?;
    let mut generation = setup.load(100, far, pins)?;
    let mut ebpf = load(workload, super::outer(&packet(workload), &mut generation)?)?;
    xdp(&mut ebpf, "sink")?.attach("near", XdpMode::Driver)?;

    let mut rates = vec![Vec::new(); 3];
    let mut lost = [0; 3];
    for round in 0..=ROUNDS {
        for turn in 0..3 {
            let index = (turn + round) % 3;
            let (rate, gone) = match index {
                0 => once(&mut ebpf, Which::Own("nothing"), &mut generation)?,
                1 => once(&mut ebpf, Which::Own("floor"), &mut generation)?,
                _ => once(&mut ebpf, Which::Director, &mut generation)?,
            };
            // The first round warms up.
            if round > 0 {
                rates[index].push(rate);
                lost[index] += gone;
            }
        }
    }
    generation.discard(pins);
    let names = ["nothing", "floor", "director"];
    let results = names.into_iter().zip(&mut rates).zip(lost).map(|((name, rates), lost)| {
        let rate = quantile(rates, 0.5);
        Live {
            packet: workload.name,
            program: name.into(),
            median_mpps: rate / 1e6,
            median_ns: 1e9 / rate,
            lost,
        }
    });
    Ok(results.collect())
}

enum Which {
    Own(&'static str),
    Director,
}

/// Attaches a program and sends frames. Returns the frames per second that came back, and the number
/// of lost frames.
fn once(
    ebpf: &mut Ebpf,
    which: Which,
    generation: &mut glb_director::generation::Generation,
) -> anyhow::Result<(f64, u64)> {
    // Taken out of the program's list of links, the link is dropped at the end of this function.
    let _link = match which {
        Which::Own(name) => {
            let program = xdp(ebpf, name)?;
            let link = program.attach("far", XdpMode::Driver)?;
            program.take_link(link)?
        }
        Which::Director => {
            let program = generation.program()?;
            let link = program.attach("far", XdpMode::Driver)?;
            program.take_link(link)?
        }
    };
    let near = glb_host::next_hop::interface_index("near")?;
    let before = returned(ebpf)?;
    let frame = vec![0; LENGTH as usize];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> =
        [0, LENGTH, 0, near, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let begun = Instant::now();
    xdp(ebpf, "generate")?.test_run(TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: FRAMES,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    })?;
    let mut count = returned(ebpf)? - before;
    let spent = begun.elapsed();
    // Late frames count as received, but not in the rate.
    let patience = Instant::now() + Duration::from_millis(50);
    while count < u64::from(FRAMES) && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
        count = returned(ebpf)? - before;
    }
    Ok((count as f64 / spent.as_secs_f64(), u64::from(FRAMES) - count.min(u64::from(FRAMES))))
}

fn load(workload: Workload, outer: [u64; 7]) -> anyhow::Result<Ebpf> {
    let mask = workload.flows - 1;
    let mut ebpf = EbpfLoader::new()
        .override_global("IS_V6", &u32::from(workload.is_v6), true)
        .override_global("FLOW_MASK", &mask, true)
        .override_global("OUTER_WORDS", &outer, true)
        .load(glb_host::BENCH_OBJECT)?;
    let mut words = [0u64; LENGTH as usize / 8];
    for (word, bytes) in words.iter_mut().zip(packet(workload).as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let map = ebpf.map_mut("FRAME").context("no map FRAME")?;
    Array::<_, [u64; LENGTH as usize / 8]>::try_from(map)?.set(0, words, 0)?;
    for name in ["generate", "sink", "nothing", "floor"] {
        xdp(&mut ebpf, name)?.load()?;
    }
    Ok(ebpf)
}

fn returned(ebpf: &Ebpf) -> anyhow::Result<u64> {
    let map = ebpf.map("RETURNED").context("no map RETURNED")?;
    Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

pub(super) fn show(live: &[Live]) -> String {
    let mut text = format!(
        "{:<10} {:<10} {:>8} {:>9} {:>6}\n",
        "packet", "program", "Mpps", "ns/frame", "lost"
    );
    for Live { packet, program, median_mpps, median_ns, lost } in live {
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{packet:<10} {program:<10} {median_mpps:>8.2} {median_ns:>9.1} {lost:>6}"
        );
    }
    text
}
