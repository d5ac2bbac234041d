//! `bench packet`: measures the director's packet path.

mod live;

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use clap::Args;
use glb_director::{
    compiled_tables::{CompiledTables, ForwardingOptions},
    counters::{BackendId, CounterSlots},
    generation::{
        Generation,
        self_test::{TEST_INTERFACE, test_run},
    },
};
use glb_host::{bpffs::PinFolder, next_hop::NextHop};
use serde::Serialize;

use crate::harness::{Harness, Net, Workload, XDP_REDIRECT, XDP_TX, rounds};

/// Options of `bench packet`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Number of rounds. Each runs every program once, in rotating order.
    #[arg(long, default_value_t = 61)]
    rounds: usize,
    /// Packets in each run.
    #[arg(long, default_value_t = 100_000)]
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
    /// Measure another program too: NAME=OBJECT:PROGRAM. It must send the packet. A program named
    /// glb_director is another build of the director and gets the same table.
    #[arg(long, value_name = "NAME=OBJECT:PROGRAM")]
    also: Vec<String>,
    /// Leave out the measurement with live frames.
    #[arg(long)]
    no_live: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The cost of one program under one workload.
#[derive(Debug, Serialize)]
struct Figure {
    workload: String,
    flows: u64,
    program: String,
    /// The cost without the empty program.
    net: Net,
    /// The cost as a multiple of the floor's.
    ratio: Net,
}

/// The size of a loaded program.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    program: String,
    translated_instructions: Option<u32>,
    jited_bytes: u32,
    verified_instructions: Option<u32>,
}

const KINDS: [(&str, u32, bool); 3] =
    [("v4 64 B", 64, false), ("v4 1400 B", 1400, false), ("v6 ACK", 74, true)];
const FLOWS: [u64; 4] = [1, 4_096, 65_536, 1 << 20];

/// A director with a configuration to measure.
struct Setup {
    name: &'static str,
    table: String,
}

impl Setup {
    /// The default configuration.
    fn plain(arguments: &Arguments) -> Self {
        let table = table(arguments.binds, "port = 80", arguments.backends, "10.1.", "");
        Self { name: "director", table }
    }

    /// Other configurations: more of everything, and those that the general program handles.
    fn others() -> Vec<Self> {
        let of = |name, table| Self { name, table };
        let range = "port_start = 80, port_end = 90";
        let fields = r#"hash_fields = ["src_addr", "dst_addr", "src_port", "dst_port"]"#;
        vec![
            of("2 backends", table(2, "port = 80", 2, "10.1.", "")),
            of("256 backends", table(2, "port = 80", 256, "10.1.", "")),
            of("100 binds", table(100, "port = 80", 16, "10.1.", "")),
            of("10,000 binds", table(10_000, "port = 80", 16, "10.1.", "")),
            of("port ranges", table(2, range, 16, "10.1.", "")),
            of("all fields", table(2, "port = 80", 16, "10.1.", fields)),
            of("four hops", table(2, "port = 80", 16, "10.1.", "hops = 4")),
            of("IPv6 backends", table(2, "port = 80", 16, "2001:db8:1::", "")),
        ]
    }

    fn load(&self, number: u64, interface: u32, pins: &PinFolder) -> anyhow::Result<Generation> {
        Ok(Generation::load(self.image(interface)?, number, pins)?)
    }

    fn image(&self, interface: u32) -> anyhow::Result<CompiledTables> {
        let path = Path::new("bench.toml");
        let tables = glb_table::parse_bytes(path, glb_table::Format::Toml, self.table.as_bytes())
            .map_err(|error| anyhow::anyhow!("{}", error.render(false)))?;
        let hop = |to: IpAddr| NextHop {
            interface,
            own_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            source: Some(if to.is_ipv4() {
                IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))
            } else {
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
            }),
            mtu: 1600,
            link_mtu: 1600,
        };
        let backends = tables.tables[0].backends.iter();
        let next_hops = backends.map(|b| (b.address, Ok(hop(b.address)))).collect();
        Ok(CompiledTables::new(&tables, &Slots, &next_hops, &ForwardingOptions::default())?)
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pins = PinFolder::private().context("cannot mount a BPF file system: run as root")?;
    let mut generations = Vec::new();
    let mut programs = Vec::new();
    for (number, setup) in
        std::iter::once(Setup::plain(arguments)).chain(Setup::others()).enumerate()
    {
        let mut generation = setup.load(number as u64, TEST_INTERFACE, &pins)?;
        programs.push((setup.name.to_owned(), generation.program()?.fd()?.try_clone()?));
        generations.push(generation);
    }
    let setups = programs.split_off(1);
    let mut sizes = generations[0]
        .programs()
        .map(|(name, info)| info.map(|info| size(name, &info)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut others = Vec::new();
    for also in &arguments.also {
        let (name, object, program) = other(also)?;
        if program == "glb_director" {
            let image = Setup::plain(arguments).image(TEST_INTERFACE)?;
            let mut generation = Generation::load_object_unpinned(&object, image)
                .with_context(|| format!("cannot load `--also {also}`"))?;
            let fd = generation.program()?.fd()?.try_clone()?;
            sizes.push(size(&name, &generation.program()?.info()?));
            programs.push((name, fd));
            generations.push(generation);
            continue;
        }
        let mut ebpf =
            aya::Ebpf::load(&object).with_context(|| format!("cannot load `--also {also}`"))?;
        let xdp: &mut aya::programs::Xdp = ebpf
            .program_mut(program)
            .with_context(|| format!("no program {program}"))?
            .try_into()?;
        xdp.load()?;
        sizes.push(size(&name, &xdp.info()?));
        programs.push((name, xdp.fd()?.try_clone()?));
        others.push(ebpf);
    }

    let mut figures = Vec::new();
    for (name, length, is_v6) in KINDS {
        if !name.contains(&arguments.only) {
            continue;
        }
        for flows in FLOWS {
            let workload = Workload { name, length, is_v6, flows };
            let outer = outer(&packet(workload), &mut generations[0])?;
            figures.extend(measure(workload, outer, &programs, arguments)?);
        }
    }
    ensure!(
        !figures.is_empty(),
        "no workload's name contains `{}`: there are {}",
        arguments.only,
        KINDS.map(|(name, ..)| format!("`{name}`")).join(", ")
    );
    let mut variants = Vec::new();
    for (name, length, is_v6) in [KINDS[0], KINDS[2]] {
        if name.contains(&arguments.only) {
            let workload = Workload { name, length, is_v6, flows: 65_536 };
            let outer = outer(&packet(workload), &mut generations[0])?;
            variants.extend(measure(workload, outer, &setups, arguments)?);
        }
    }
    let live = if arguments.no_live { Vec::new() } else { live::measure(arguments, &pins)? };
    if arguments.json {
        let all = serde_json::json!({
            "figures": figures, "setups": variants, "live": live, "programs": sizes,
        });
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", show(&figures));
        println!("\nOther configurations (the general program handles the last four):");
        print!("{}", show(&variants));
        if !live.is_empty() {
            println!("\nLive frames of 80 bytes on a pair of veth, one core, back and forth:");
            print!("{}", live::show(&live));
        }
        println!();
        print!("{}", show_sizes(&sizes));
    }
    Ok(())
}

fn measure(
    workload: Workload,
    outer: [u64; 7],
    programs: &[(String, ProgramFd)],
    arguments: &Arguments,
) -> anyhow::Result<Vec<Figure>> {
    let mut harness = Harness::new(workload, packet(workload), outer)?;
    let mut all: Vec<(String, ProgramFd)> =
        vec![("nothing".into(), harness.own("nothing")?), ("floor".into(), harness.own("floor")?)];
    for (name, program) in programs {
        all.push((name.clone(), program.try_clone()?));
    }
    let times = rounds(arguments.rounds, all.len(), |index| {
        harness.time(&all[index].1, XDP_TX, arguments.packets)
    })?;
    let nets: Vec<Net> = times.iter().map(|of| Net::of(of, &times[0])).collect();
    let figure = |(net, (name, _)): (&Net, &(String, ProgramFd))| Figure {
        workload: workload.name.into(),
        flows: workload.flows,
        program: name.clone(),
        net: *net,
        ratio: net.ratio(&nets[1]),
    };
    Ok(nets.iter().zip(&all).skip(1).map(figure).collect())
}

/// The words that the floor writes: the director's own answer.
fn outer(packet: &[u8], generation: &mut Generation) -> anyhow::Result<[u64; 7]> {
    let (verdict, out) = test_run(generation.program()?, packet)?;
    // The verdict is a redirect if the backend is behind another interface than the test run's.
    anyhow::ensure!(
        matches!(verdict, XDP_TX | XDP_REDIRECT),
        "the director's verdict is {verdict}"
    );
    let mut words = [0; 7];
    for (word, bytes) in words.iter_mut().zip(out.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}

fn show(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<10} {:>9}  {:<14} {:>8} {:>8} {:>8} {:>8}\n",
        "packet", "flows", "program", "p10 ns", "median", "p10 ×", "median ×"
    );
    for Figure { workload, flows, program, net, ratio } in figures {
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{workload:<10} {flows:>9}  {program:<14} {:>8.1} {:>8.1} {:>8.2} {:>8.2}",
            net.p10_ns, net.median_ns, ratio.p10_ns, ratio.median_ns
        );
    }
    text
}

pub(crate) fn show_sizes(sizes: &[Size]) -> String {
    let mut text = String::new();
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

pub(crate) fn size(name: &str, info: &aya::programs::ProgramInfo) -> Size {
    Size {
        program: name.into(),
        translated_instructions: info.size_translated().map(|bytes| bytes / 8),
        jited_bytes: info.size_jitted(),
        verified_instructions: info.verified_instruction_count(),
    }
}

/// Reads the name, the object and the program of `--also`.
fn other(also: &str) -> anyhow::Result<(String, Vec<u8>, &str)> {
    let parts = also.split_once('=').and_then(|(name, rest)| {
        rest.rsplit_once(':').map(|(object, program)| (name, object, program))
    });
    let (name, object, program) =
        parts.with_context(|| format!("`--also {also}` is not NAME=OBJECT:PROGRAM"))?;
    Ok((name.into(), read_object(object.as_ref())?, program))
}

/// Reads a BPF object file.
pub(crate) fn read_object(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Counter slots for one table.
struct Slots;

impl CounterSlots for Slots {
    fn table(&self, _name: &str) -> u32 {
        2
    }

    fn backend(&self, backend_id: &BackendId) -> u32 {
        match backend_id.address {
            IpAddr::V4(address) => u32::from(address) & 0xffff,
            IpAddr::V6(address) => u128::from(address) as u32 & 0xffff,
        }
    }
}

fn table(binds: u32, ports: &str, backends: u32, prefix: &str, more: &str) -> String {
    let mut text = format!(
        "[[tables]]\nname = \"bench\"\nhash_key = \"12345678901234561234567890123456\"\n\
         seed = \"34567890123456783456789012345678\"\n{more}\nbinds = [\n"
    );
    for index in 0..binds.div_ceil(2).max(1) {
        let (high, low) = (index >> 8, index & 255);
        let _written = writeln!(
            text,
            "{{ ip = \"192.0.{high}.{low}\", proto = \"tcp\", {ports} }},\n\
             {{ ip = \"2001:db8::{index:x}\", proto = \"tcp\", {ports} }},"
        );
    }
    text.push_str("]\nbackends = [\n");
    for index in 1..=backends {
        let address = if prefix.contains(':') {
            format!("{prefix}{index:x}")
        } else {
            format!("{prefix}{}.{}", index >> 8, index & 255)
        };
        let _written =
            writeln!(text, "{{ ip = \"{address}\", state = \"active\", healthy = true }},");
    }
    text.push_str("]\n");
    text
}

/// Makes the packet under test. `rearm` writes its source address and port.
pub(crate) fn packet(workload: Workload) -> Vec<u8> {
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
