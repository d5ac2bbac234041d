//! `bench tunnel`: measures the throughput of one TCP connection through the tunnel and the backend's
//! program, and of the same connection without a tunnel through an XDP program that passes everything.
//! Both use the same veth pair with the same offloads, in two network namespaces.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode, tc::TcAttachOptions, xdp::XdpLinkId,
    },
};
use clap::Args;
use glb_lab::link::{Offload, set_offload};
use glb_redirect::{config::Config, counters, generation::Generation, program_data::ProgramData};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

use crate::harness::{OUTER_LEN, quantile};

/// Options of `bench tunnel`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Number of rounds. Each measures both connections.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Duration of each measurement, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 21);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 22);
const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// An MTU that a client's full-sized packet in the tunnel fits.
const MTU: u32 = 1600;

/// The throughput with one setting of the offloads.
#[derive(Debug, serde::Serialize)]
struct Figure {
    /// Whether the (virtual) hardware computes the checksums.
    checksum_offload: bool,
    /// Payload in Gbit/s without tunnel, median.
    plain_gbit: f64,
    /// Payload in Gbit/s through the tunnel, median.
    tunnel_gbit: f64,
    /// The median of the rounds' ratios.
    ratio: f64,
}

/// A function for the client's thread.
type Job = Box<dyn FnOnce() + Send>;

/// A thread in the client's network namespace, which runs functions there.
struct Client(Sender<Job>);

impl Client {
    /// Starts the thread. Returns its id too, which names its namespace for the kernel.
    fn start() -> anyhow::Result<(Self, i32)> {
        let (sender, jobs) = channel::<Job>();
        let (id, ids) = channel();
        thread::spawn(move || {
            let entered = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            if id.send(entered).is_ok() {
                jobs.into_iter().for_each(|job| job());
            }
        });
        let id = ids.recv()?.context("cannot make a network namespace: run as root")?;
        Ok((Self(sender), id))
    }

    /// Runs `work` on the thread and returns its result.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (answer, answers) = channel();
        let job = move || drop(answer.send(work()));
        ensure!(self.0.send(Box::new(job)).is_ok(), "the client's thread has ended");
        answers.recv()?
    }
}

fn ip(line: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(line.split_whitespace()).output();
    let output = output.context("cannot run ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {line}: {error}");
    Ok(())
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run as root")?;
    let (client, id) = Client::start()?;
    for line in [
        "link set lo up".to_owned(),
        format!("addr add {VIP}/32 dev lo"),
        format!("link add b0 mtu {MTU} type veth peer name c0 mtu {MTU}"),
        format!("link set c0 netns {id}"),
        format!("addr add {BACKEND}/24 dev b0"),
        "link set b0 up".to_owned(),
    ] {
        ip(&line)?;
    }
    client.run(|| {
        ip(&format!("addr add {DIRECTOR}/24 dev c0"))?;
        ip("link set c0 up")?;
        // With this MTU the segments are the same with and without a tunnel.
        ip(&format!("route add {VIP}/32 via {BACKEND} mtu 1500"))
    })?;
    let mut programs = Programs::load()?;
    let mut sender = client.run(Encapsulation::load)?;
    let listener = TcpListener::bind(SocketAddr::new(VIP.into(), 80))?;

    let mut figures = Vec::new();
    for checksum_offload in [true, false] {
        set_offloads("b0", checksum_offload)?;
        client.run(move || set_offloads("c0", checksum_offload))?;
        let (mut plain, mut tunnel, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=arguments.rounds {
            let mut gbit = [0.0; 2];
            // The order changes from round to round.
            for turn in [round % 2, 1 - round % 2] {
                let tunnelled = turn == 1;
                programs.attach(tunnelled)?;
                sender = client.run(move || sender.switched(tunnelled))?;
                let taken = programs.taken()?;
                gbit[turn] = transfer(&client, &listener, arguments.seconds)?;
                let taken = programs.taken()? - taken;
                ensure!((taken > 0) == tunnelled, "{taken} packets came through the tunnel");
            }
            // The first round warms up.
            if round > 0 {
                plain.push(gbit[0]);
                tunnel.push(gbit[1]);
                ratios.push(gbit[1] / gbit[0]);
            }
        }
        figures.push(Figure {
            checksum_offload,
            plain_gbit: quantile(&mut plain, 0.5),
            tunnel_gbit: quantile(&mut tunnel, 0.5),
            ratio: quantile(&mut ratios, 0.5),
        });
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", show(&figures));
    }
    Ok(())
}

fn set_offloads(interface: &str, checksums: bool) -> anyhow::Result<()> {
    set_offload(interface, Offload::Gro, true)?;
    set_offload(interface, Offload::TxChecksums, checksums)
}

fn show(figures: &[Figure]) -> String {
    let mut text = format!(
        "{:<17} {:>12} {:>13} {:>6}\n",
        "checksum offload", "plain Gbit/s", "tunnel Gbit/s", "ratio"
    );
    for figure in figures {
        let offload = if figure.checksum_offload { "on" } else { "off" };
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "{offload:<17} {:>12.2} {:>13.2} {:>6.2}",
            figure.plain_gbit, figure.tunnel_gbit, figure.ratio
        );
    }
    text
}

/// The programs of the backend's side: one that passes everything, and the backend's.
struct Programs {
    passing: Ebpf,
    generation: Generation,
    attached: Option<(bool, XdpLinkId)>,
}

impl Programs {
    fn load() -> anyhow::Result<Self> {
        let text = format!(
            "interfaces = [\"b0\"]\nvips = [\"{VIP}\"]\ndirectors = [\"{DIRECTOR}\"]\n\
             backends = [\"{PEER}\"]\n"
        );
        let config = Config::parse(&text, Path::new("bench.toml"))?;
        let image = ProgramData::new(&config, &BTreeSet::from([IpAddr::from(BACKEND)]));
        let generation = Generation::load(&image, None)?;
        let mut passing = EbpfLoader::new().load(glb_host::BENCH_OBJECT)?;
        xdp(&mut passing, "pass")?.load()?;
        Ok(Self { passing, generation, attached: None })
    }

    /// Attaches the program under test, or the one that only passes.
    fn attach(&mut self, tested: bool) -> anyhow::Result<()> {
        if let Some((was_tested, link)) = self.attached.take() {
            self.program(was_tested)?.detach(link)?;
        }
        let link = self.program(tested)?.attach("b0", XdpMode::Driver)?;
        self.attached = Some((tested, link));
        Ok(())
    }

    fn program(&mut self, tested: bool) -> anyhow::Result<&mut Xdp> {
        if tested { Ok(self.generation.program()?) } else { xdp(&mut self.passing, "pass") }
    }

    fn taken(&self) -> anyhow::Result<u64> {
        let report = counters::sum(self.generation.counters()?)?;
        Ok(report.reasons.get("taken_established").map_or(0, |count| count.packets))
    }
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// The client's side: a tc program in the director's place.
struct Encapsulation {
    ebpf: Ebpf,
    link: Option<aya::programs::tc::SchedClassifierLinkId>,
}

impl Encapsulation {
    fn load() -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(glb_host::BENCH_OBJECT)?;
        let mut outer = [0u8; OUTER_LEN];
        outer[14..34]
            .copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        outer[26..30].copy_from_slice(&DIRECTOR.octets());
        outer[30..34].copy_from_slice(&BACKEND.octets());
        outer[34..38].copy_from_slice(&[0x81, 0x23, 0x4c, 0x43]);
        outer[42..50].copy_from_slice(&[2, 4, 0, 0, 0, 0, 0, 1]);
        outer[50..54].copy_from_slice(&PEER.octets());
        let map = ebpf.map_mut("OUTER").context("no map OUTER")?;
        Array::<_, [u8; OUTER_LEN]>::try_from(map)?.set(0, outer, 0)?;
        classifier(&mut ebpf)?.load()?;
        Ok(Self { ebpf, link: None })
    }

    /// Attaches the program, or detaches it.
    fn switched(mut self, on: bool) -> anyhow::Result<Self> {
        let program = classifier(&mut self.ebpf)?;
        if let Some(link) = self.link.take() {
            program.detach(link)?;
        }
        if on {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            self.link = Some(program.attach_with_options("c0", TcAttachType::Egress, options)?);
        }
        Ok(self)
    }
}

fn classifier(ebpf: &mut Ebpf) -> anyhow::Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut("encapsulate").context("no program encapsulate")?.try_into()?)
}

/// Sends for `seconds` and returns the payload that arrived, in Gbit/s.
fn transfer(client: &Client, listener: &TcpListener, seconds: u64) -> anyhow::Result<f64> {
    let sender = client.run(|| {
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::new(VIP.into(), 80), Duration::from_secs(5))?;
        let thread = move || {
            let buffer = vec![7u8; 1 << 18];
            // Until the receiver closes the connection.
            while stream.write_all(&buffer).is_ok() {}
        };
        Ok(thread::spawn(thread))
    })?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = vec![0u8; 1 << 18];
    // The measurement begins after slow start.
    let (warm, end) = (Duration::from_millis(200), Duration::from_secs(seconds));
    let begun = Instant::now();
    let (mut bytes, mut start) = (0u64, None);
    while start.is_none_or(|start: Instant| start.elapsed() < end) {
        let length = stream.read(&mut buffer).context("no data arrived for 5 s")?;
        if length == 0 {
            bail!("the sender closed the connection");
        }
        match start {
            Some(_) => bytes += length as u64,
            None if begun.elapsed() >= warm => start = Some(Instant::now()),
            None => {}
        }
    }
    let spent = start.map_or(end, |start| start.elapsed());
    drop(stream);
    ensure!(sender.join().is_ok(), "the sending thread panicked");
    Ok(bytes as f64 * 8.0 / spent.as_secs_f64() / 1e9)
}
