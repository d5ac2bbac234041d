//! The daemons on a lab's nodes: those of this project, and the routing daemons and servers.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::{
    bgp_daemons, bird, command,
    counters::{DirectorCounters, RedirectCounters},
    exabgp, frr, interrupt,
    plan::{Family, Node, Routing, vip},
    process::Process,
    services,
    table::{TableFile, replace_file},
    topology::{INTERFACE, Lab},
};

/// The time limit for a daemon to become ready or to end. A machine with two busy cores is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program that a lab runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// `glb-director`
    Director,
    /// `glb-redirect`
    Redirect,
    /// `glb-healthcheck`
    Healthcheck,
    /// `glb-lab`: the lab and demo commands.
    Lab,
    /// BIRD, the routing daemon of the router, and of directors in most labs.
    Bird,
    /// FRR's zebra, which manages the kernel's routes.
    Zebra,
    /// FRR's bfdd.
    Bfdd,
    /// FRR's bgpd.
    Bgpd,
    /// ExaBGP.
    Exabgp,
    /// nginx, on backends.
    Nginx,
    /// fcgiwrap, which runs git-http-backend for nginx.
    Fcgiwrap,
}

impl Program {
    /// Every program that runs on a node until it is stopped.
    pub(crate) const DAEMONS: [Self; 10] = [
        Self::Director,
        Self::Redirect,
        Self::Healthcheck,
        Self::Bird,
        Self::Zebra,
        Self::Bfdd,
        Self::Bgpd,
        Self::Exabgp,
        Self::Nginx,
        Self::Fcgiwrap,
    ];

    /// The name of the binary. For this project's programs it is also the name of the configuration
    /// file, without extension.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Director => "glb-director",
            Self::Redirect => "glb-redirect",
            Self::Healthcheck => "glb-healthcheck",
            Self::Lab => "glb-lab",
            Self::Bird => "bird",
            Self::Zebra => "zebra",
            Self::Bfdd => "bfdd",
            Self::Bgpd => "bgpd",
            Self::Exabgp => "exabgp",
            Self::Nginx => "nginx",
            Self::Fcgiwrap => "fcgiwrap",
        }
    }

    /// Returns whether this project builds the program.
    pub(crate) const fn is_ours(self) -> bool {
        !self.speaks_bgp() && !matches!(self, Self::Nginx | Self::Fcgiwrap)
    }

    /// Returns whether the program is a routing daemon (BGP).
    pub(crate) const fn speaks_bgp(self) -> bool {
        matches!(self, Self::Bird | Self::Zebra | Self::Bfdd | Self::Bgpd | Self::Exabgp)
    }

    /// Returns the path of this project's binary, next to the running executable in cargo's target
    /// folder.
    ///
    /// # Errors
    /// When the binary has not been built.
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

/// A daemon on a node: its configuration, and its process while it runs.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    node: Node,
    config: PathBuf,
    process: Option<Process>,
    /// The release that the daemon pretends to be, if not its own.
    release: Option<String>,
}

impl Daemon {
    fn new(lab: &Lab, program: Program, node: Node, config: &str) -> Result<Self> {
        let daemon = Self::named(lab, program, node)?;
        replace_file(&daemon.config, config)?;
        Ok(daemon)
    }

    /// Returns a daemon whose configuration file exists already.
    fn named(lab: &Lab, program: Program, node: Node) -> Result<Self> {
        let extension = if program.is_ours() { "toml" } else { "conf" };
        let config = lab.folder(node)?.join(program.name()).with_extension(extension);
        Ok(Self { program, node, config, process: None, release: None })
    }

    /// Returns the daemon of a lab that another process started.
    pub(crate) fn adopt(lab: &Lab, program: Program, node: Node) -> Result<Self> {
        let mut daemon = Self::named(lab, program, node)?;
        daemon.process = lab.running(node, program.name());
        Ok(daemon)
    }

    /// Prepares BIRD on the router or on a director without starting it. A director's VIP routes
    /// are disabled.
    ///
    /// # Errors
    /// When the configuration file cannot be written.
    pub fn bird(lab: &Lab, node: Node) -> Result<Self> {
        Self::new(lab, Program::Bird, node, &bird::config(lab.plan(), node)?)
    }

    /// Prepares a routing daemon of the router or of a director without starting it.
    pub(crate) fn speaker(lab: &Lab, program: Program, node: Node) -> Result<Self> {
        match program {
            Program::Bird => Self::bird(lab, node),
            Program::Exabgp => Self::new(lab, program, node, &exabgp::config(node)),
            _ => Self::new(lab, program, node, &frr::config(program, node)),
        }
    }

    /// Prepares fcgiwrap, which runs git-http-backend on a backend, without starting it.
    pub(crate) fn fcgiwrap(lab: &Lab, node: Node) -> Result<Self> {
        Self::named(lab, Program::Fcgiwrap, node)
    }

    /// Prepares a backend's nginx, which serves the repositories in a folder, without starting it.
    pub(crate) fn nginx(lab: &Lab, node: Node, repositories: &Path) -> Result<Self> {
        let folder = lab.folder(node)?;
        Self::new(lab, Program::Nginx, node, &services::nginx_config(node, &folder, repositories)?)
    }

    /// Writes the director's configuration and table without starting the daemon.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn director(lab: &Lab, node: Node, table: &TableFile) -> Result<Self> {
        let pin = lab.bpf().join(node.to_string());
        let mut config = director_config(INTERFACE, &pin);
        if lab.plan().routing == Routing::Bgp {
            config += &bgp_daemons::announcement(lab, node)?;
        }
        let daemon = Self::new(lab, Program::Director, node, &config)?;
        daemon.write_table(&table.toml()?)?;
        Ok(daemon)
    }

    /// Writes a backend's configuration without starting the daemon. The backend accepts packets
    /// from every director and backend of the lab.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn redirect(lab: &Lab, node: Node, second_chance: bool) -> Result<Self> {
        let pin = lab.bpf().join(node.to_string());
        let list = |nodes: Vec<String>| format!("[\"{}\"]", nodes.join("\", \""));
        let both = |node: Node| [node.v4().to_string(), node.v6().to_string()];
        let vips = [Family::V4, Family::V6].map(|family| vip(family).to_string());
        let mut config = format!(
            "interfaces = [\"{INTERFACE}\"]\nbpffs_dir = \"{}\"\nvips = {}\ndirectors = {}\n\
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

    /// Writes a health checker's configuration without starting the daemon. The checker reads
    /// `source` and writes the table of the director on the same node. `more` is appended to the
    /// configuration.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn healthcheck(lab: &Lab, node: Node, source: &str, more: &str) -> Result<Self> {
        let config = format!(
            "input = \"source.toml\"\noutput = \"table.toml\"\n\
             control.socket = \"health.sock\"\n{more}"
        );
        let daemon = Self::new(lab, Program::Healthcheck, node, &config)?;
        replace_file(&daemon.config.with_file_name("source.toml"), source)?;
        Ok(daemon)
    }

    /// Returns the path of the configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Changes or adds a key of the configuration file. `value` is TOML.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn configure(&self, key: &str, value: &str) -> Result<()> {
        let old = fs::read_to_string(&self.config)?;
        let others = old.lines().filter(|line| !line.starts_with(&format!("{key} = ")));
        // The key goes first, before any section header.
        let lines = std::iter::once(format!("{key} = {value}")).chain(others.map(str::to_owned));
        replace_file(&self.config, &lines.map(|line| line + "\n").collect::<String>())
    }

    /// Makes a director pretend to be another release from its next start on, or its own again. It
    /// then treats the running program as foreign.
    pub fn pretend(&mut self, release: Option<&str>) {
        self.release = release.map(str::to_owned);
    }

    /// Replaces a line of the configuration file.
    ///
    /// # Errors
    /// When the line does not exist, or the file cannot be written.
    pub fn reconfigure(&self, line: &str, new: &str) -> Result<()> {
        let old = fs::read_to_string(&self.config)?;
        if !old.lines().any(|other| other == line) {
            bail!("no line {line:?} in {}: {old}", self.config.display());
        }
        replace_file(&self.config, &old.replace(line, new))
    }

    /// Returns the program.
    #[must_use]
    pub const fn program(&self) -> Program {
        self.program
    }

    /// Returns the node that the daemon runs on.
    #[must_use]
    pub const fn node(&self) -> Node {
        self.node
    }

    /// Returns the daemon's process while it runs.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn process(&mut self) -> Result<&mut Process> {
        let what = format!("{} on {} does not run", self.program.name(), self.node);
        self.process.as_mut().context(what)
    }

    /// Returns the process id while the daemon runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Starts the daemon and waits until it reports that it is ready.
    ///
    /// # Errors
    /// When the daemon ends instead or takes too long. The error holds its output.
    pub fn start(&mut self, lab: &Lab) -> Result<()> {
        self.spawn(lab)?;
        self.wait_until_ready(lab)
    }

    /// Waits until a spawned daemon is ready.
    pub(crate) fn wait_until_ready(&mut self, lab: &Lab) -> Result<()> {
        let (program, node) = (self.program, self.node);
        let process = self.process()?;
        if program.is_ours() {
            return process.wait_for_log("ready", 0, PATIENCE);
        }
        interrupt::wait(&format!("{} on {node}", program.name()), PATIENCE, || {
            if let Some(status) = process.ended()? {
                bail!(
                    "{} on {node} ended with {status}: {}",
                    program.name(),
                    process.log()?.trim()
                );
            }
            let ready = match program {
                Program::Bird => bird::is_ready(lab, node)?,
                Program::Zebra | Program::Bfdd | Program::Bgpd => {
                    frr::is_ready(lab, program, node)?
                }
                Program::Exabgp => process.log()?.contains("loaded new configuration"),
                Program::Nginx => services::listens(lab.netns(node)?)?,
                _ => services::fcgiwrap_socket(lab, node)?.exists(),
            };
            Ok(ready.then_some(()))
        })
    }

    /// Starts the daemon without waiting.
    ///
    /// # Errors
    /// When the daemon cannot be started.
    pub fn spawn(&mut self, lab: &Lab) -> Result<()> {
        let mut command = match self.program {
            Program::Bird => bird::command(lab, self.node, &self.config)?,
            Program::Zebra | Program::Bfdd | Program::Bgpd => {
                frr::command(lab, self.program, self.node, &self.config)?
            }
            Program::Exabgp => exabgp::command(lab, self.node, &self.config)?,
            Program::Nginx => services::nginx(lab, self.node, &self.config)?,
            Program::Fcgiwrap => services::fcgiwrap(lab, self.node)?,
            _ => self.command(lab, "run")?,
        };
        self.process = Some(lab.spawn(self.node, self.program.name(), &mut command)?);
        Ok(())
    }

    /// Builds a command of the program that uses this daemon's configuration.
    ///
    /// # Errors
    /// When the program has not been built.
    pub fn command(&self, lab: &Lab, name: &str) -> Result<Command> {
        let mut command = lab.netns(self.node)?.command(self.program.path()?);
        command.arg(name).arg("--config").arg(&self.config);
        if let Some(release) = &self.release {
            command.env("GLB_FAULT_RELEASE", release);
        }
        Ok(command)
    }

    /// Sends a signal to the daemon and waits until it ends.
    ///
    /// # Errors
    /// When the daemon does not run or does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let process = self.process()?;
        process.signal(signal)?;
        let status = process.wait(PATIENCE)?;
        self.process = None;
        Ok(status)
    }

    /// Kills the daemon and its children at once, as in a crash, and waits until they are gone.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.end_at_once()?;
        self.process = None;
        Ok(())
    }

    /// Returns whether the daemon runs.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(Process::runs)
    }

    /// Runs `detach`.
    ///
    /// # Errors
    /// The error holds the command's message.
    pub fn detach(&self, lab: &Lab) -> Result<()> {
        command::run(&mut self.command(lab, "detach")?)
    }

    /// Reads the director's counters.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn director_counters(&self, lab: &Lab) -> Result<DirectorCounters> {
        self.counters(lab)
    }

    /// Reads a backend's counters.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn redirect_counters(&self, lab: &Lab) -> Result<RedirectCounters> {
        self.counters(lab)
    }

    fn counters<T: DeserializeOwned>(&self, lab: &Lab) -> Result<T> {
        let text = command::output(self.command(lab, "counters")?.args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| {
            format!("cannot parse the counters of {}: {text}", self.program.name())
        })
    }

    /// Replaces the director's table file atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_table(&self, text: &str) -> Result<()> {
        replace_file(&self.config.with_file_name("table.toml"), text)
    }

    /// Writes a new table, waits until it is in force, and returns the elapsed time.
    ///
    /// # Errors
    /// When the director rejects the table.
    pub fn reload(&mut self, table: &TableFile) -> Result<Duration> {
        self.write_table(&table.toml()?)?;
        let process = self.process()?;
        let from = process.log()?.len();
        let started = Instant::now();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_log("in force", from, PATIENCE)?;
        Ok(started.elapsed())
    }

    /// Writes `text` as the table, waits until the director rejects it, and returns the message.
    ///
    /// # Errors
    /// When the director accepts the table or ends.
    pub fn reload_refused(&mut self, text: &str) -> Result<String> {
        self.write_table(text)?;
        self.hangup_refused()
    }

    /// Sends SIGHUP, waits until the daemon rejects the files, and returns the message.
    ///
    /// # Errors
    /// When the daemon accepts the files or ends.
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
            // A rejection says, too, what stays in force.
            if answer.contains("ERROR") {
                return Ok(Some(answer.to_owned()));
            }
            ensure!(!answer.contains("in force"), "{name} accepted it: {answer}");
            Ok(None)
        })
    }
}

/// Returns a director's configuration with the table next to it. The prober is off, since most tests
/// count packets; a test can set `probe.enabled`.
#[must_use]
pub fn director_config(interface: &str, pin: &Path) -> String {
    format!(
        "table = \"table.toml\"\ninterfaces = [\"{interface}\"]\nbpffs_dir = \"{}\"\n\
         control.socket = \"control.sock\"\nstate_dir = \"state\"\nprobe.enabled = false\n",
        pin.display()
    )
}

/// Lists every file below a folder, for tests that check for leftovers.
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
