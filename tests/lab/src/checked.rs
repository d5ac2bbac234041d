//! A fleet whose director reads what a health checker beside it writes, and whose backends can fall
//! ill in every way.

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
    faulty_server::{Health, IllServer},
    http,
    plan::{Family, Node, Plan, client, vip},
    table::TableFile,
    topology::Lab,
};

const DIRECTOR: Node = Node::Director(1);

/// How long something may take that is waited for. A machine with two busy cores is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the checker asks, and how many failures count.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From one probe to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many failures in a row.
    pub fall: u32,
}

impl Pace {
    /// The longest that a death may go unnoticed: it comes just after a probe, and each further one
    /// is up to 5 % late.
    #[must_use]
    pub fn noticed(&self) -> Duration {
        self.interval * self.fall
    }
}

/// A way for a backend to fall ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    /// Its server stops listening.
    Dies,
    /// Its server accepts and says nothing.
    Hangs,
    /// Its server answers too late.
    Slow,
    /// Its server answers with another status.
    WrongStatus,
    /// Its server resets connections.
    Resets,
    /// No packet comes to it or from it.
    Blackholed,
    /// The program that takes packets out of the tunnel is not there.
    ProgramGone,
    /// A VIP is not on its loopback.
    VipMissing,
}

impl Illness {
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

impl fmt::Display for Illness {
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

/// The moment before something happens, to be compared with what comes after.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// When that was.
    begun: Instant,
    director_log: usize,
    checker_log: usize,
}

/// How long it took after a [`Mark`].
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// Until the table was written.
    pub written: Duration,
    /// Until the director had it in force.
    pub in_force: Duration,
}

/// The fleet.
#[derive(Debug)]
pub struct Checked {
    /// The health checker, on the director's machine.
    pub checker: Daemon,
    /// The director.
    pub director: Daemon,
    /// The backends' daemons.
    pub redirects: Vec<Daemon>,
    /// The backends' web servers.
    pub servers: Vec<IllServer>,
    /// The lab.
    pub lab: Lab,
}

impl Checked {
    /// Brings everything up, healthy; each backend is checked by `gue`, `http` and `vip` over both
    /// families. `more` goes into the checker's configuration; the director is asked over its socket.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn up(plan: Plan, pace: Pace, more: &str) -> Result<Self> {
        let lab = Lab::up(plan)?;
        let (mut servers, mut redirects) = (Vec::new(), Vec::new());
        for node in lab.plan().backend_nodes() {
            servers.push(IllServer::start(&lab, node, pace.timeout + pace.timeout / 2)?);
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
            "[healthchecks]\ninterval_ms = {}\ntimeout_ms = {}\nrise = 2\nfall = {}\n\
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
            &format!("director = \"control.sock\"\nsettle_ms = 200\n{more}"),
        )?;
        checker.start(&lab)?;
        let mut fleet = Self { checker, director, redirects, servers, lab };
        let all = vec![true; fleet.servers.len()];
        fleet.wait("the first word to the director", |fleet| Ok(fleet.told(0)? > 0))?;
        ensure!(fleet.healths()? == all, "{:?}: {}", fleet.healths()?, fleet.log()?);
        Ok(fleet)
    }

    /// Has a backend (from 0) fall ill.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn strike(&mut self, backend: usize, illness: Illness) -> Result<()> {
        let health = match illness {
            Illness::Dies => Health::Dead,
            Illness::Hangs => Health::Hangs,
            Illness::Slow => Health::Slow,
            Illness::WrongStatus => Health::Busy,
            Illness::Resets => Health::Resets,
            Illness::Blackholed => return self.blackhole(backend, true),
            Illness::VipMissing => return self.vip(backend, false),
            Illness::ProgramGone => {
                let redirect = &mut self.redirects[backend];
                redirect.end(Signal::SIGTERM)?;
                return redirect.detach(&self.lab);
            }
        };
        self.servers[backend].set(health);
        Ok(())
    }

    /// Has it recover.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn heal(&mut self, backend: usize, illness: Illness) -> Result<()> {
        match illness {
            Illness::Blackholed => self.blackhole(backend, false),
            Illness::VipMissing => self.vip(backend, true),
            Illness::ProgramGone => self.redirects[backend].start(&self.lab),
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

    /// What the checked table says of each backend.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn written(&self) -> Result<Vec<bool>> {
        let text = fs::read_to_string(self.director.config().with_file_name("table.toml"))?;
        let of = |line: &str| line.strip_prefix("healthy = ").map(|word| word == "true");
        Ok(text.lines().filter_map(of).collect())
    }

    /// What the director has in force: each backend's health.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn healths(&self) -> Result<Vec<bool>> {
        let backends = self.backends()?;
        Ok(backends.iter().map(|backend| backend["healthy"] == true).collect())
    }

    /// In how many rows each backend is the first hop.
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
        serde_json::from_str(&text).with_context(|| format!("odd backends: {text}"))
    }

    /// Now.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn mark(&mut self) -> Result<Mark> {
        Ok(Mark {
            director_log: self.director.process()?.log()?.len(),
            checker_log: self.log()?.len(),
            begun: Instant::now(),
        })
    }

    /// Waits until these healths are written and in force at the director.
    ///
    /// # Errors
    /// When they do not come to be.
    pub fn in_force(&mut self, mark: &Mark, wanted: &[bool]) -> Result<Took> {
        let (mut written, mut seen, mut swapped) = (None, 0, Duration::ZERO);
        while mark.begun.elapsed() < PATIENCE {
            if written.is_none() && self.written()? == wanted {
                written = Some(mark.begun.elapsed());
            }
            let swaps = self.generations(mark)?;
            if swaps > seen {
                (seen, swapped) = (swaps, mark.begun.elapsed());
            }
            // The log tells of a swap a moment before the director shows what it has.
            if let Some(written) = written.filter(|_| seen > 0)
                && self.healths()? == wanted
            {
                return Ok(Took { written, in_force: swapped });
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

    /// How many generations have come into force since.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn generations(&mut self, mark: &Mark) -> Result<usize> {
        let log = self.director.process()?.log()?;
        Ok(log.get(mark.director_log..).unwrap_or_default().matches(": in force ").count())
    }

    /// How many times the table was written since.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes(&mut self, mark: &Mark) -> Result<usize> {
        Ok(self.log_since(mark)?.matches("checked table written").count())
    }

    fn told(&mut self, from: usize) -> Result<usize> {
        let log = self.log()?;
        Ok(log.get(from..).unwrap_or_default().matches("in force at the director").count())
    }

    /// The checker's log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&mut self) -> Result<String> {
        self.checker.process()?.log()
    }

    /// The checker's log since.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_since(&mut self, mark: &Mark) -> Result<String> {
        Ok(self.log()?.get(mark.checker_log..).unwrap_or_default().to_owned())
    }

    /// Why the first target to fall since fell, in the checker's words.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn reason(&mut self, mark: &Mark) -> Result<String> {
        let log = self.log_since(mark)?;
        let line = log.lines().find(|line| line.contains(" WARN "));
        let line = line.and_then(|line| line.split("down ").nth(1)).unwrap_or("?");
        Ok(line.chars().take(150).collect())
    }

    /// Waits until `done` finds it so.
    ///
    /// # Errors
    /// When it does not come to be, with the checker's log.
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
        bail!("{what} did not come:\n{}", self.log()?)
    }

    /// New requests from many clients: who answered.
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
