//! The daemons of this project, run on a lab's nodes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    command, interrupt,
    plan::{Family, Node, vip},
    process::Process,
    table::{TableFile, replace_file},
    topology::{INTERFACE, Lab},
};

/// How long a daemon may take to be ready or to end. A machine with two busy cores is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `glb-director`
    Director,
    /// `glb-redirect`
    Redirect,
    /// `glb-healthcheck`
    Healthcheck,
    /// `glb-lab`, which is the demo.
    Lab,
}

impl Program {
    /// Name of the binary and, without its extension, of its configuration file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Director => "glb-director",
            Self::Redirect => "glb-redirect",
            Self::Healthcheck => "glb-healthcheck",
            Self::Lab => "glb-lab",
        }
    }

    /// The binary beside the one that runs now, in cargo's target folder.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn path(self) -> Result<PathBuf> {
        let own = std::env::current_exe()?;
        let mut folders = own.ancestors().skip(1).take(2);
        let found = folders.find_map(|folder| {
            let path = folder.join(self.name());
            path.is_file().then_some(path)
        });
        found.with_context(|| format!("{} is not built: run `cargo build --bins`", self.name()))
    }
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What `glb-director counters` tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DirectorCounters {
    /// Of packets that belong to no table, by reason.
    pub reasons: BTreeMap<String, Count>,
    /// Of each table.
    pub tables: Vec<TableCounters>,
    /// Of each table's backends, as first hop.
    pub backends: Vec<BackendCounters>,
}

/// One table's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct TableCounters {
    /// The table's name.
    pub name: String,
    /// By reason.
    pub reasons: BTreeMap<String, Count>,
}

/// One backend's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendCounters {
    /// Name of the table.
    pub table: String,
    /// The backend's address.
    pub address: String,
    /// What was sent to it as first hop.
    #[serde(flatten)]
    pub count: Count,
}

impl DirectorCounters {
    /// Packets sent to this backend as first hop.
    #[must_use]
    pub fn sent_to(&self, node: Node) -> u64 {
        let addresses = [node.v4().to_string(), node.v6().to_string()];
        let backends = self.backends.iter().filter(|backend| addresses.contains(&backend.address));
        backends.map(|backend| backend.count.packets).sum()
    }

    /// Packets counted under a reason, in all tables and outside them.
    #[must_use]
    pub fn packets(&self, reason: &str) -> u64 {
        let of = |reasons: &BTreeMap<String, Count>| {
            reasons.get(reason).map_or(0, |count| count.packets)
        };
        of(&self.reasons) + self.tables.iter().map(|table| of(&table.reasons)).sum::<u64>()
    }
}

/// What `glb-redirect counters` tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RedirectCounters {
    /// By reason.
    pub reasons: BTreeMap<String, Count>,
    /// By VIP and reason.
    pub vips: BTreeMap<std::net::IpAddr, BTreeMap<String, Count>>,
    /// SYN-ACKs whose MSS was lowered.
    pub clamped_syn_acks: u64,
}

impl RedirectCounters {
    /// Packets that were handed to this backend's own stack.
    #[must_use]
    pub fn taken(&self) -> u64 {
        let taken = self.reasons.iter().filter(|(reason, _)| reason.starts_with("taken"));
        taken.map(|(_, count)| count.packets).sum()
    }

    /// Packets that were given their second chance elsewhere.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.reasons.get("forwarded").map_or(0, |count| count.packets)
    }
}

/// A daemon on a node: its configuration, and its process while it runs.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    node: Node,
    config: PathBuf,
    process: Option<Process>,
}

impl Daemon {
    fn new(lab: &Lab, program: Program, node: Node, config: &str) -> Result<Self> {
        let path = lab.folder(node)?.join(program.name()).with_extension("toml");
        replace_file(&path, config)?;
        Ok(Self { program, node, config: path, process: None })
    }

    /// The director's configuration and table, not running yet.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn director(lab: &Lab, node: Node, table: &TableFile) -> Result<Self> {
        let pin = lab.bpf().join(node.to_string());
        let daemon = Self::new(lab, Program::Director, node, &director_config(INTERFACE, &pin))?;
        daemon.write_table(&table.toml()?)?;
        Ok(daemon)
    }

    /// A backend's configuration, not running yet. It accepts packets from every director and
    /// backend of the lab.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn redirect(lab: &Lab, node: Node, second_chance: bool) -> Result<Self> {
        let pin = lab.bpf().join(node.to_string());
        let list = |nodes: Vec<String>| format!("[\"{}\"]", nodes.join("\", \""));
        let both = |node: Node| [node.v4().to_string(), node.v6().to_string()];
        let vips = [Family::V4, Family::V6].map(|family| vip(family).to_string());
        let mut config = format!(
            "interfaces = [\"{INTERFACE}\"]\npin = \"{}\"\nvips = {}\ndirectors = {}\n\
             backends = {}\ncontrol.socket = \"control.sock\"\n",
            pin.display(),
            list(vips.to_vec()),
            list(lab.plan().director_nodes().flat_map(both).collect()),
            list(lab.plan().backend_nodes().flat_map(both).collect()),
        );
        if !second_chance {
            writeln!(config, "second_chance = false")?;
        }
        Self::new(lab, Program::Redirect, node, &config)
    }

    /// A health checker of this source, not running yet; it writes the table of the director on the
    /// same node. `more` goes into its configuration.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn healthcheck(lab: &Lab, node: Node, source: &str, more: &str) -> Result<Self> {
        let config = format!(
            "source = \"source.toml\"\nchecked = \"table.toml\"\n\
             control.socket = \"health.sock\"\n{more}"
        );
        let daemon = Self::new(lab, Program::Healthcheck, node, &config)?;
        replace_file(&daemon.config.with_file_name("source.toml"), source)?;
        Ok(daemon)
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where the daemon runs.
    #[must_use]
    pub const fn node(&self) -> Node {
        self.node
    }

    /// The daemon's process while it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn process(&mut self) -> Result<&mut Process> {
        let what = format!("{} on {} does not run", self.program.name(), self.node);
        self.process.as_mut().context(what)
    }

    /// The process's id while the daemon runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Starts the daemon and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends instead, or takes too long: with what it wrote.
    pub fn start(&mut self, lab: &Lab) -> Result<()> {
        self.spawn(lab)?;
        self.process()?.wait_for_log("ready", 0, PATIENCE)
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, lab: &Lab) -> Result<()> {
        let mut command = self.command(lab, "run")?;
        self.process = Some(lab.spawn(self.node, self.program.name(), &mut command)?);
        Ok(())
    }

    /// One of the program's commands on this daemon's configuration.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn command(&self, lab: &Lab, name: &str) -> Result<Command> {
        let mut command = lab.netns(self.node)?.command(self.program.path()?);
        command.arg(name).arg("--config").arg(&self.config);
        Ok(command)
    }

    /// Ends the daemon with a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not run or does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let process = self.process()?;
        process.signal(signal)?;
        let status = process.wait(PATIENCE)?;
        self.process = None;
        Ok(status)
    }

    /// Runs `detach`.
    ///
    /// # Errors
    /// With its message.
    pub fn detach(&self, lab: &Lab) -> Result<()> {
        command::run(&mut self.command(lab, "detach")?)
    }

    /// The director's counters.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn director_counters(&self, lab: &Lab) -> Result<DirectorCounters> {
        self.counters(lab)
    }

    /// A backend's counters.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn redirect_counters(&self, lab: &Lab) -> Result<RedirectCounters> {
        self.counters(lab)
    }

    fn counters<T: DeserializeOwned>(&self, lab: &Lab) -> Result<T> {
        let text = command::output(self.command(lab, "counters")?.args(["-o", "json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("odd counters of {}: {text}", self.program.name()))
    }

    /// Writes the director's table file, at once and whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_table(&self, text: &str) -> Result<()> {
        replace_file(&self.config.with_file_name("table.toml"), text)
    }

    /// Gives the director another table and waits until it is in force; returns how long that
    /// took.
    ///
    /// # Errors
    /// When the director refuses it.
    pub fn reload(&mut self, table: &TableFile) -> Result<Duration> {
        self.write_table(&table.toml()?)?;
        let process = self.process()?;
        let from = process.log()?.len();
        let started = Instant::now();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_log("in force", from, PATIENCE)?;
        Ok(started.elapsed())
    }

    /// Gives the director a text as table and waits until it has refused it; returns its words.
    ///
    /// # Errors
    /// When it accepts it or ends.
    pub fn reload_refused(&mut self, text: &str) -> Result<String> {
        self.write_table(text)?;
        self.hangup_refused()
    }

    /// Sends SIGHUP and waits until the daemon has refused what it then read; returns its words.
    ///
    /// # Errors
    /// When it accepts it or ends.
    pub fn hangup_refused(&mut self) -> Result<String> {
        let name = self.program.name();
        let process = self.process()?;
        let from = process.log()?.len();
        process.signal(Signal::SIGHUP)?;
        interrupt::wait("the daemon's answer to SIGHUP", PATIENCE, || {
            if let Some(status) = process.ended()? {
                bail!("{name} ended with {status}");
            }
            let log = process.log()?;
            let answer = log.get(from..).unwrap_or_default();
            if answer.contains("in force") {
                bail!("{name} took it: {answer}");
            }
            Ok(answer.contains("ERROR").then(|| answer.to_owned()))
        })
    }
}

/// A director's configuration with the table beside it.
#[must_use]
pub fn director_config(interface: &str, pin: &Path) -> String {
    format!(
        "table = \"table.toml\"\ninterfaces = [\"{interface}\"]\npin = \"{}\"\n\
         control.socket = \"control.sock\"\nstate = \"state\"\n",
        pin.display()
    )
}

/// Every file below a folder, for checks that nothing is left.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                found.extend(files_below(&path)?);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}
