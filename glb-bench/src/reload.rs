//! `bench reload`: measures the time from a changed table file to the active generation, by step.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::maps::MapData;
use clap::Args;
use glb_director::{
    config::Config, control::Command as Ask, daemon, model::ReloadOutcome, status::Status,
};
use glb_host::{
    bpffs::PinFolder,
    control::Client,
    generations::{self, link_pin},
    xdp_link::program_behind,
};
use nix::sched::{CloneFlags, unshare};

use crate::harness::quantile;

/// Options of `bench reload`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Backends of the table.
    #[arg(long, default_value_t = 256)]
    backends: u32,
    /// Number of other tables, which do not change.
    #[arg(long, default_value_t = 0)]
    beside: u32,
    /// Number of interfaces.
    #[arg(long, default_value_t = 1)]
    interfaces: u32,
    /// Number of changes of each kind.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Pause between changes, in milliseconds. Without a pause the director cannot load a program in
    /// advance.
    #[arg(long, default_value_t = 700)]
    pause: u64,
}

/// A kind of change to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The state of a backend.
    State,
    /// The number of backends: one more, or one less.
    Member,
    /// The port of a bind.
    Bind,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        (2..=1000).contains(&arguments.backends),
        "cannot measure {} backends: use 2 to 1000",
        arguments.backends
    );
    // Made before the private mounts hide it.
    let folder = PathBuf::from(format!("/var/tmp/glb-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = measure(arguments, &folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn measure(arguments: &Arguments, folder: &Path) -> anyhow::Result<()> {
    let pins = PinFolder::private().context("cannot mount a BPF file system: run as root")?;
    let pins = pins.path().with_file_name("director");
    unshare(CloneFlags::CLONE_NEWNET)?;
    network(arguments)?;
    let names: Vec<String> = (0..arguments.interfaces).map(|n| format!("\"v{n}\"")).collect();
    let config = format!(
        "table = \"table.toml\"\ninterfaces = [{}]\nbpffs_dir = \"{}\"\nstate_dir = \"state\"\n\
         control.socket = \"c.sock\"\nprobe.enabled = false\n",
        names.join(", "),
        pins.display()
    );
    fs::write(folder.join("director.toml"), config)?;
    let mut site = Site { arguments, folder, drained: 0, more: false, port: 80, reported: 1 };
    site.write()?;
    // The director is a process of its own: this program again.
    let mut daemon = Daemon(
        Command::new(std::env::current_exe()?)
            .arg("director")
            .arg(folder.join("director.toml"))
            .spawn()?,
    );
    let begun = Instant::now();
    while site.status().is_err() {
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "the director did not start within 60 s"
        );
        ensure!(daemon.0.try_wait()?.is_none(), "the director ended");
        thread::sleep(Duration::from_millis(50));
    }
    while site.status()?.generation.is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    let folder = PinFolder::open(&pins, glb_director::OWNER)?.context("nothing is pinned")?;
    let link = link_pin(&folder, &format!("v{}", arguments.interfaces - 1));
    println!(
        "from the change of the file to the active generation, ms; {} backends, {} other tables, {} \
         interface(s)",
        arguments.backends, arguments.beside, arguments.interfaces
    );
    for (kind, name) in [
        (Kind::State, "a state changes"),
        (Kind::Member, "a backend is added or removed"),
        (Kind::Bind, "a bind changes"),
    ] {
        site.kind(kind, name, &link)?;
    }
    // By then the director has loaded the next program.
    thread::sleep(Duration::from_secs(2));
    println!("memory of the director: {}", resident(daemon.0.id())?);
    for number in generations::numbers(&folder) {
        let kilobytes = pinned_memory(&generations::folder(&folder, number))? / 1024;
        println!("maps of generation {number}, in the kernel: {kilobytes} kB");
    }
    Ok(())
}

/// A child process that is killed on drop.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs the director that is measured.
pub(crate) fn director(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(daemon::run(&config))?)
}

/// The table file and the director that reads it.
struct Site<'a> {
    arguments: &'a Arguments,
    folder: &'a Path,
    drained: u32,
    more: bool,
    port: u16,
    /// The generation of the last reload that the director reported.
    reported: u64,
}

impl Site<'_> {
    fn kind(&mut self, kind: Kind, name: &str, link: &Path) -> anyhow::Result<()> {
        let (mut totals, mut steps) = (Vec::new(), BTreeMap::<(usize, String), Vec<f64>>::new());
        for _ in 0..self.arguments.rounds {
            thread::sleep(Duration::from_millis(self.arguments.pause));
            match kind {
                Kind::State => self.drained = (self.drained + 1) % self.arguments.backends,
                Kind::Member => self.more = !self.more,
                Kind::Bind => self.port += 1,
            }
            let before = program_behind(link)?;
            let begun = Instant::now();
            self.write()?;
            while program_behind(link)? == before {
                ensure!(
                    begun.elapsed() < Duration::from_secs(20),
                    "the new generation did not become active within 20 s"
                );
                thread::sleep(Duration::from_micros(200));
            }
            totals.push(begun.elapsed().as_secs_f64() * 1e3);
            let done = self.wait_for_report()?;
            for (place, (step, took)) in done.steps.into_iter().enumerate() {
                steps.entry((place, step)).or_default().push(took);
            }
        }
        let mut line = String::new();
        for ((_, step), took) in &mut steps {
            write!(line, " {step} {:.1}", quantile(took, 0.5))?;
        }
        println!(
            "{name:<42} median {:6.1}  p90 {:6.1}  worst {:6.1}\n    medians of the steps:{line}",
            quantile(&mut totals.clone(), 0.5),
            quantile(&mut totals.clone(), 0.9),
            quantile(&mut totals, 1.0),
        );
        Ok(())
    }

    /// Waits until the director reports the last reload.
    fn wait_for_report(&mut self) -> anyhow::Result<ReloadOutcome> {
        for _ in 0..1_000 {
            thread::sleep(Duration::from_millis(10));
            let last = self.status()?.last_reload.and_then(|reload| reload.outcome);
            if let Some(done) = last.filter(|done| done.generation > self.reported) {
                self.reported = done.generation;
                return Ok(done);
            }
        }
        bail!("the director did not report the reload within 10 s")
    }

    fn status(&self) -> anyhow::Result<Status> {
        let client = Client::connect(&self.folder.join("c.sock"))?;
        Ok(client.ask(&Ask::Status, Duration::from_secs(10))?)
    }

    /// Replaces the table file.
    fn write(&self) -> anyhow::Result<()> {
        let mut text = String::new();
        let head = "hash_key = \"5b1f8a1e6f0c43d2a7e94c0d1b2a3f48\"\n\
                    seed = \"d17b6f20c39e4855b0a1427e8cf3690b\"\n";
        for table in 0..=self.arguments.beside {
            let port = if table == 0 { self.port } else { 10_000 + table as u16 };
            let count = self.arguments.backends + u32::from(table == 0 && self.more);
            write!(
                text,
                "[[tables]]\nname = \"t{table}\"\n{head}\n[[tables.binds]]\nip = \"198.51.100.1\"\n\
                 proto = \"tcp\"\nport = {port}\n"
            )?;
            for number in 0..count {
                let state =
                    if table == 0 && number == self.drained { "draining" } else { "active" };
                write!(
                    text,
                    "[[tables.backends]]\nip = \"{}\"\nstate = \"{state}\"\nhealthy = true\n",
                    address(number)
                )?;
            }
        }
        fs::write(self.folder.join("table.new"), text)?;
        Ok(fs::rename(self.folder.join("table.new"), self.folder.join("table.toml"))?)
    }
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0100 + number)
}

/// Makes interfaces with permanent neighbour entries.
fn network(arguments: &Arguments) -> anyhow::Result<()> {
    let mut lines = String::new();
    for number in 0..arguments.interfaces {
        writeln!(lines, "link add name v{number} type veth peer name p{number}")?;
        writeln!(lines, "link set dev v{number} up\nlink set dev p{number} up")?;
    }
    writeln!(lines, "address add 10.0.0.1/16 dev v0")?;
    for number in 0..=arguments.backends {
        let address = address(number);
        writeln!(
            lines,
            "neighbour replace {address} lladdr 02:00:00:00:00:02 dev v0 nud permanent"
        )?;
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no pipe to ip")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "`ip -batch -` failed");
    Ok(())
}

/// The kernel memory of the maps that are pinned in a folder, in bytes.
fn pinned_memory(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path == generations::program_pin(folder) {
            continue;
        }
        let open = MapData::from_pin(&path)?.fd().as_fd().try_clone_to_owned()?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd()))?;
        let memory = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        sum += memory.context("no memlock")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

fn resident(process: u32) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.context("no VmRSS")?.trim().to_owned())
}
