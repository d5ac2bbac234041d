//! `bench packet`: the director's packet path.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::programs::ProgramFd;
use clap::Args;
use glb_director::{
    generation::{Generation, self_test::TEST_INTERFACE},
    image::{CounterSlots, Image, Options, Owner},
};
use glb_host::{bpffs::PinFolder, next_hop::NextHop};
use serde::Serialize;

use crate::harness::{Harness, Workload, XDP_TX, quantile};

/// Options of `bench packet`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Rounds; in each one every program runs once, in rotating order.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Packets in each run.
    #[arg(long, default_value_t = 400_000)]
    packets: u32,
    /// Exact binds of the table.
    #[arg(long, default_value_t = 2)]
    binds: u32,
    /// Backends of the table.
    #[arg(long, default_value_t = 16)]
    backends: u32,
    /// Measure only workloads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// A further program to measure beside: NAME=OBJECT:PROGRAM. It must send the packet.
    #[arg(long, value_name = "NAME=OBJECT:PROGRAM")]
    also: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured of one program under one workload.
#[derive(Debug, Serialize)]
struct Figure {
    workload: String,
    flows: u64,
    program: String,
    /// Net of the surroundings, in nanoseconds for each packet: 10th percentile and median.
    p10_ns: f64,
    median_ns: f64,
    /// Ratio to the floor's 10th percentile and median.
    p10_ratio: f64,
    median_ratio: f64,
}

#[derive(Debug, Serialize)]
struct Size {
    program: String,
    translated_instructions: Option<u32>,
    jited_bytes: u32,
    verified_instructions: Option<u32>,
}

const KINDS: [(&str, u32, bool); 3] =
    [("v4 64 B", 64, false), ("v4 1400 B", 1400, false), ("v6 ACK", 74, true)];
const FLOWS: [u64; 4] = [1, 4_096, 65_536, 1 << 20];

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pins = PinFolder::private().context("cannot mount a BPF file system (are you root?)")?;
    let tables = glb_table::parse_bytes(
        Path::new("bench.toml"),
        glb_table::Form::Toml,
        table(arguments.binds, arguments.backends).as_bytes(),
    )
    .map_err(|error| anyhow::anyhow!("{}", error.render(false)))?;
    let hop = NextHop {
        interface: TEST_INTERFACE,
        own_mac: [2, 0, 0, 0, 0, 1],
        mac: [2, 0, 0, 0, 0, 2],
        source: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        mtu: 1600,
        link_mtu: 1600,
    };
    let next_hops = tables.tables[0].backends.iter().map(|b| (b.address, Ok(hop))).collect();
    let image = Image::new(&tables, &Slots, &next_hops, &Options::default())?;
    let mut generation = Generation::load(image, 1, &pins)?;
    let mut programs: Vec<(String, ProgramFd)> =
        vec![("director".into(), generation.program()?.fd()?.try_clone()?)];
    let mut sizes = vec![size("director", &generation.program()?.info()?)];
    let mut others = Vec::new();
    for also in &arguments.also {
        let (name, mut ebpf, program) = load_other(also)?;
        let xdp: &mut aya::programs::Xdp = ebpf
            .program_mut(&program)
            .with_context(|| format!("no program {program}"))?
            .try_into()?;
        xdp.load()?;
        sizes.push(size(&name, &xdp.info()?));
        programs.push((name, xdp.fd()?.try_clone()?));
        others.push(ebpf);
    }

    let mut figures = Vec::new();
    for (name, length, is_v6) in KINDS {
        for flows in FLOWS {
            let workload = Workload { name, length, is_v6, flows };
            if name.contains(&arguments.only) {
                figures.extend(measure(workload, &programs, arguments)?);
            }
        }
    }
    if arguments.json {
        let all = serde_json::json!({ "figures": figures, "programs": sizes });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", show(&figures, &sizes));
    }
    Ok(())
}

fn measure(
    workload: Workload,
    programs: &[(String, ProgramFd)],
    arguments: &Arguments,
) -> anyhow::Result<Vec<Figure>> {
    let mut harness = Harness::new(workload, packet(workload))?;
    let mut all: Vec<(String, ProgramFd)> =
        vec![("nothing".into(), harness.own("nothing")?), ("floor".into(), harness.own("floor")?)];
    for (name, program) in programs {
        all.push((name.clone(), program.try_clone()?));
    }
    // Per program: time beyond the surroundings of the same round.
    let mut net: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for round in 0..arguments.rounds + 1 {
        let mut times = vec![0.0; all.len()];
        for turn in 0..all.len() {
            let index = (turn + round) % all.len();
            times[index] = harness.time(&all[index].1, XDP_TX, arguments.packets)?;
        }
        // The first round warms caches and the clock.
        if round > 0 {
            for index in 1..all.len() {
                net.entry(index).or_default().push(times[index] - times[0]);
            }
        }
    }
    let mut floor = (f64::NAN, f64::NAN);
    let mut figures = Vec::new();
    for (index, values) in &mut net {
        let (p10, median) = (quantile(values, 0.1), quantile(values, 0.5));
        if all[*index].0 == "floor" {
            floor = (p10, median);
        }
        figures.push(Figure {
            workload: workload.name.into(),
            flows: workload.flows,
            program: all[*index].0.clone(),
            p10_ns: p10,
            median_ns: median,
            p10_ratio: p10 / floor.0,
            median_ratio: median / floor.1,
        });
    }
    Ok(figures)
}

fn show(figures: &[Figure], sizes: &[Size]) -> String {
    let mut text = format!(
        "{:<10} {:>9}  {:<10} {:>8} {:>8} {:>9} {:>9}\n",
        "packet", "flows", "program", "p10 ns", "median", "p10 ×floor", "median ×"
    );
    for figure in figures {
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{:<10} {:>9}  {:<10} {:>8.1} {:>8.1} {:>9.2} {:>9.2}",
            figure.workload,
            figure.flows,
            figure.program,
            figure.p10_ns,
            figure.median_ns,
            figure.p10_ratio,
            figure.median_ratio
        );
    }
    for size in sizes {
        let number = |value: Option<u32>| value.map_or("?".into(), |value| value.to_string());
        let _written = writeln!(
            text,
            "{}: {} instructions, {} bytes JITed, {} instructions walked by the verifier",
            size.program,
            number(size.translated_instructions),
            size.jited_bytes,
            number(size.verified_instructions)
        );
    }
    text
}

fn size(name: &str, info: &aya::programs::ProgramInfo) -> Size {
    Size {
        program: name.into(),
        translated_instructions: info.size_translated().map(|bytes| bytes / 8),
        jited_bytes: info.size_jitted(),
        verified_instructions: info.verified_instruction_count(),
    }
}

fn load_other(also: &str) -> anyhow::Result<(String, aya::Ebpf, String)> {
    let parts = also.split_once('=').and_then(|(name, rest)| {
        rest.rsplit_once(':').map(|(object, program)| (name, PathBuf::from(object), program))
    });
    let (name, object, program) =
        parts.with_context(|| format!("`--also {also}` is not NAME=OBJECT:PROGRAM"))?;
    let ebpf = aya::Ebpf::load_file(&object)
        .with_context(|| format!("cannot load {}", object.display()))?;
    Ok((name.into(), ebpf, program.into()))
}

/// Counters as they would stand for one table.
struct Slots;

impl CounterSlots for Slots {
    fn table(&self, _name: &str) -> u32 {
        2
    }

    fn backend(&self, owner: &Owner) -> u32 {
        let IpAddr::V4(address) = owner.address else { return 0 };
        u32::from(address) & 0xffff
    }
}

fn table(binds: u32, backends: u32) -> String {
    let mut text =
        "[[tables]]\nname = \"bench\"\nhash_key = \"12345678901234561234567890123456\"\n\
                    seed = \"34567890123456783456789012345678\"\nbinds = [\n"
            .to_owned();
    for index in 0..binds.div_ceil(2).max(1) {
        let (high, low) = (index >> 8, index & 255);
        let _written = writeln!(
            text,
            "{{ ip = \"192.0.{high}.{low}\", proto = \"tcp\", port = 80 }},\n\
             {{ ip = \"2001:db8::{index:x}\", proto = \"tcp\", port = 80 }},"
        );
    }
    text.push_str("]\nbackends = [\n");
    for index in 0..backends {
        let address = Ipv4Addr::from(0x0a01_0001 + index);
        let _written =
            writeln!(text, "{{ ip = \"{address}\", state = \"active\", healthy = true }},");
    }
    text.push_str("]\n");
    text
}

/// The packet under test; `rearm` writes the source address and port.
fn packet(workload: Workload) -> Vec<u8> {
    let mut packet = vec![0; workload.length as usize];
    let ip_length = (workload.length - 14) as u16;
    if workload.is_v6 {
        packet[12..14].copy_from_slice(&[0x86, 0xdd]);
        packet[14] = 0x60;
        packet[18..20].copy_from_slice(&(ip_length - 40).to_be_bytes());
        packet[20..22].copy_from_slice(&[6, 64]);
        packet[22..26].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        packet[38..54].copy_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        packet[56..58].copy_from_slice(&80u16.to_be_bytes());
        packet[66] = 0x50;
    } else {
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14] = 0x45;
        packet[16..18].copy_from_slice(&ip_length.to_be_bytes());
        packet[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
        packet[30..34].copy_from_slice(&[192, 0, 0, 0]);
        packet[36..38].copy_from_slice(&80u16.to_be_bytes());
        packet[46] = 0x50;
    }
    packet
}
