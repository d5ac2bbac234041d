//! A fleet whose director reads the output of a health checker on the same node, and whose backends
//! can fail in every known way.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    command,
    daemons::Daemon,
    faulty_server::{FaultyServer, Health},
    http,
    plan::{Family, Node, Plan, client, vip},
    table::TableFile,
    topology::Lab,
};

const DIRECTOR: Node = Node::Director(1);

/// The time limit for every wait. A machine with two busy cores is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// The probe timing of the health checker.
#[derive(Clone, Copy, Debug)]
pub struct ProbeTiming {
    /// The time between two probes.
    pub interval: Duration,
    /// The probe timeout.
    pub timeout: Duration,
    /// The number of consecutive failures that mark a backend unhealthy.
    pub fall: u32,
}

impl ProbeTiming {
    /// The longest detection time: the failure comes just after a probe, and each further probe is
    /// up to 5 % late.
    #[must_use]
    pub fn noticed(&self) -> Duration {
        self.interval * self.fall
    }
}

/// A way for a backend to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendFault {
    /// The server stops listening.
    Dies,
    /// The server accepts connections and sends nothing.
    Hangs,
    /// The server answers after the timeout.
    Slow,
    /// The server answers with an error status.
    WrongStatus,
    /// The server resets connections.
    Resets,
    /// The network drops all packets to and from the backend.
    Blackholed,
    /// The program that decapsulates packets is detached.
    ProgramGone,
    /// The VIP is missing from the loopback.
    VipMissing,
}

impl BackendFault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Dies,
        Self::Hangs,
        Self::Slow,
        Self::WrongStatus,
        Self::Resets,
        Self::Blackholed,
        Self::ProgramGone,
        Self::VipMissing,
    ];
}

impl fmt::Display for BackendFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dies => "dies",
            Self::Hangs => "hangs",
            Self::Slow => "slow",
            Self::WrongStatus => "wrong status",
            Self::Resets => "resets",
            Self::Blackholed => "blackholed",
            Self::ProgramGone => "redirect program gone",
            Self::VipMissing => "VIP missing",
        })
    }
}

/// A point in time and in the logs, for later comparison.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// The start time.
    begun: Instant,
    director_log: usize,
    checker_log: usize,
}

/// Times measured since a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct ReactionTimes {
    /// The time until the checker wrote the table.
    pub written: Duration,
    /// The time until the director activated it.
    pub in_force: Duration,
}

/// The fleet.
#[derive(Debug)]
pub struct CheckedFleet {
    /// The health checker, on the director's node.
    pub checker: Daemon,
    /// The director.
    pub director: Daemon,
    /// The backends' daemons.
    pub redirects: Vec<Daemon>,
    /// The backends' web servers.
    pub servers: Vec<FaultyServer>,
    /// The lab.
    pub lab: Lab,
}

impl CheckedFleet {
    /// Starts everything in a healthy state. Each backend is checked by `gue`, `http` and `vip`
    /// over both families. `more` is appended to the checker's configuration; the checker asks the
    /// director to reload over its control socket.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn up(plan: Plan, pace: ProbeTiming, more: &str) -> Result<Self> {
        let lab = Lab::up(plan)?;
        let (mut servers, mut redirects) = (Vec::new(), Vec::new());
        for node in lab.plan().backend_nodes() {
            servers.push(FaultyServer::start(&lab, node, pace.timeout + pace.timeout / 2)?);
            let mut redirect = Daemon::redirect(&lab, node, true)?;
            redirect.start(&lab)?;
            redirects.push(redirect);
        }
        let table = TableFile::new(lab.plan());
        let mut director = Daemon::director(&lab, DIRECTOR, &table)?;
        director.start(&lab)?;
        lab.route_vips_to(&[DIRECTOR])?;

        let check =
            |family| format!("{{ address = \"{}\", port = 80, path = \"/\" }}", vip(family));
        let source = format!(
            "[healthchecks]\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nrise = 2\nfall = {}\n\
             gue = 19523\nhttp = 80\nvip = [{}, {}]\n\n{}",
            pace.interval.as_millis(),
            pace.timeout.as_millis(),
            pace.fall,
            check(Family::V4),
            check(Family::V6),
            table.toml()?,
        );
        let mut checker = Daemon::healthcheck(
            &lab,
            DIRECTOR,
            &source,
            &format!("director = \"control.sock\"\ndebounce = \"200ms\"\n{more}"),
        )?;
        checker.start(&lab)?;
        let mut fleet = Self { checker, director, redirects, servers, lab };
        let all = vec![true; fleet.servers.len()];
        fleet.wait("the first word to the director", |fleet| Ok(fleet.table_writes(0)? > 0))?;
        ensure!(fleet.healths()? == all, "{:?}: {}", fleet.healths()?, fleet.log()?);
        Ok(fleet)
    }

    /// Makes a backend (counted from 0) fail.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn strike(&mut self, backend: usize, illness: BackendFault) -> Result<()> {
        let health = match illness {
            BackendFault::Dies => Health::Dead,
            BackendFault::Hangs => Health::Hangs,
            BackendFault::Slow => Health::Slow,
            BackendFault::WrongStatus => Health::Busy,
            BackendFault::Resets => Health::Resets,
            BackendFault::Blackholed => return self.blackhole(backend, true),
            BackendFault::VipMissing => return self.vip(backend, false),
            BackendFault::ProgramGone => {
                let redirect = &mut self.redirects[backend];
                redirect.end(Signal::SIGTERM)?;
                return redirect.detach(&self.lab);
            }
        };
        self.servers[backend].set(health);
        Ok(())
    }

    /// Repairs a backend.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn heal(&mut self, backend: usize, illness: BackendFault) -> Result<()> {
        match illness {
            BackendFault::Blackholed => self.blackhole(backend, false),
            BackendFault::VipMissing => self.vip(backend, true),
            BackendFault::ProgramGone => self.redirects[backend].start(&self.lab),
            _ => {
                self.servers[backend].set(Health::Well);
                Ok(())
            }
        }
    }

    fn node(&self, backend: usize) -> Result<Node> {
        self.lab.plan().backend_nodes().nth(backend).context("no such backend")
    }

    fn blackhole(&self, backend: usize, on: bool) -> Result<()> {
        let state = if on { "down" } else { "up" };
        let port = self.node(backend)?;
        self.lab.netns(Node::Router)?.ip(&format!("link set {port} {state}\n"))
    }

    fn vip(&self, backend: usize, there: bool) -> Result<()> {
        let word = if there { "add" } else { "del" };
        let netns = self.lab.netns(self.node(backend)?)?;
        netns.ip(&format!("address {word} {}/32 dev lo\n", vip(Family::V4)))
    }

    /// Returns each backend's health from the checker's output file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn written(&self) -> Result<Vec<bool>> {
        let text = fs::read_to_string(self.director.config().with_file_name("table.toml"))?;
        let of = |line: &str| line.strip_prefix("healthy = ").map(|word| word == "true");
        Ok(text.lines().filter_map(of).collect())
    }

    /// Returns each backend's health from the table in force at the director.
    ///
    /// # Errors
    /// When the director does not answer.
    pub fn healths(&self) -> Result<Vec<bool>> {
        let backends = self.backends()?;
        Ok(backends.iter().map(|backend| backend["healthy"] == true).collect())
    }

    /// Returns in how many rows each backend is the first hop.
    ///
    /// # Errors
    /// When the director does not answer.
    pub fn first_rows(&self) -> Result<Vec<u64>> {
        let backends = self.backends()?;
        Ok(backends.iter().filter_map(|backend| backend["rows"][0].as_u64()).collect())
    }

    fn backends(&self) -> Result<Vec<serde_json::Value>> {
        let mut show = self.director.command(&self.lab, "show")?;
        let text = command::output(show.args(["backends", "-o", "json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("cannot parse the output of `show backends`: {text}"))
    }

    /// Records the current time and log positions.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn mark(&mut self) -> Result<Checkpoint> {
        Ok(Checkpoint {
            director_log: self.director.process()?.log()?.len(),
            checker_log: self.log()?.len(),
            begun: Instant::now(),
        })
    }

    /// Waits until this health is written and in force at the director.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn in_force(&mut self, mark: &Checkpoint, wanted: &[bool]) -> Result<ReactionTimes> {
        let (mut written, mut seen, mut swapped) = (None, 0, Duration::ZERO);
        while mark.begun.elapsed() < PATIENCE {
            if written.is_none() && self.written()? == wanted {
                written = Some(mark.begun.elapsed());
            }
            let swaps = self.generations(mark)?;
            if swaps > seen {
                (seen, swapped) = (swaps, mark.begun.elapsed());
            }
            // The log reports a swap shortly before the director shows the new table.
            if let Some(written) = written.filter(|_| seen > 0)
                && self.healths()? == wanted
            {
                return Ok(ReactionTimes { written, in_force: swapped });
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!(
            "written {:?}, in force {:?}, wanted {wanted:?}:\n{}",
            self.written()?,
            self.healths()?,
            self.log()?
        )
    }

    /// Counts the generations activated since the checkpoint.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn generations(&mut self, mark: &Checkpoint) -> Result<usize> {
        let log = self.director.process()?.log()?;
        Ok(log
            .get(mark.director_log..)
            .unwrap_or_default()
            .matches(": generation in force ")
            .count())
    }

    /// Counts the table writes since the checkpoint.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes(&mut self, mark: &Checkpoint) -> Result<usize> {
        Ok(self.log_since(mark)?.matches("output written").count())
    }

    fn table_writes(&mut self, from: usize) -> Result<usize> {
        let log = self.log()?;
        Ok(log.get(from..).unwrap_or_default().matches("in force at the director").count())
    }

    /// Returns the checker's log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&mut self) -> Result<String> {
        self.checker.process()?.log()
    }

    /// Returns the checker's log since the checkpoint.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_since(&mut self, mark: &Checkpoint) -> Result<String> {
        Ok(self.log()?.get(mark.checker_log..).unwrap_or_default().to_owned())
    }

    /// Returns the checker's reason for the first failed target since the checkpoint.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn reason(&mut self, mark: &Checkpoint) -> Result<String> {
        let log = self.log_since(mark)?;
        let line = log.lines().find(|line| line.contains(" WARN "));
        let line = line.and_then(|line| line.split("unhealthy ").nth(1)).unwrap_or("?");
        Ok(line.chars().take(150).collect())
    }

    /// Waits until `done` returns true.
    ///
    /// # Errors
    /// When that does not happen in time; the error holds the checker's log.
    pub fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if done(self)? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("{what} did not happen in time:\n{}", self.log()?)
    }

    /// Sends new requests from many clients and counts the answers by backend.
    ///
    /// # Errors
    /// When the clients' namespace cannot be entered.
    pub fn ask(&self, family: Family, requests: u16) -> Result<BTreeMap<String, u32>> {
        let mut answers = BTreeMap::new();
        for number in 0..requests {
            let to = SocketAddr::new(vip(family), 80);
            let from = client(family, number);
            let reply = http::get_in(self.lab.netns(Node::Client)?, from, to, "/");
            let reply = reply.map_or_else(|error| format!("none: {error:#}"), |r| r.to_string());
            *answers.entry(reply).or_default() += 1;
        }
        Ok(answers)
    }
}
