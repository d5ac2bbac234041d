//! Operations on a running fleet: kill and start daemons and machines, drain backends and
//! directors.

use std::{fmt, fs::File, io::Write, str::FromStr};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

use super::{Fleet, SAVED, status::DirectorStatus};
use crate::{
    bird, command,
    daemons::{Daemon, Program},
    interrupt,
    plan::{Family, Node, Routing, vip},
    table::{State, replace_file},
};

/// A machine with all its processes, or one daemon: `director1` or `director1/bird`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The machine.
    pub node: Node,
    /// The daemon; none means the whole machine.
    pub program: Option<Program>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program {
            None => write!(f, "{}", self.node),
            Some(program) => write!(f, "{}/{}", self.node, program.name()),
        }
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((node, name)) = text.split_once('/') else {
            return Ok(Self { node: text.parse()?, program: None });
        };
        let program = Program::DAEMONS.into_iter().find(|program| program.name() == name);
        let names = Program::DAEMONS.map(Program::name).join(", ");
        let program = program.with_context(|| format!("{name:?} is not a daemon: {names}"))?;
        Ok(Self { node: node.parse()?, program: Some(program) })
    }
}

impl Fleet {
    /// Locks this lab against changes by other processes while the result lives.
    ///
    /// # Errors
    /// When the lab no longer exists.
    pub fn lock(&self) -> Result<Flock<File>> {
        let file = File::open(self.lab.run_folder().join(SAVED))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("cannot lock the lab")
    }

    /// Kills one daemon with its children, or a machine: its link goes down, then all its processes
    /// die at once.
    ///
    /// # Errors
    /// When the target does not exist or is dead already.
    pub fn kill(&mut self, target: Target) -> Result<()> {
        if target.program.is_some() {
            return self.daemon_mut(target)?.kill();
        }
        if !matches!(target.node, Node::Director(_) | Node::Backend(_)) {
            bail!(
                "the whole lab hangs on the {0}; one of its daemons may die: {0}/bird",
                target.node
            );
        }
        if !self.lab.is_connected(target.node)? {
            bail!("{} is dead", target.node);
        }
        self.lab.unplug(target.node)?;
        for daemon in self.parts().1.filter(|daemon| daemon.node() == target.node) {
            if daemon.runs() {
                daemon.kill()?;
            }
        }
        self.lab.netns(target.node)?.end_processes()
    }

    /// Starts a killed daemon or machine. A machine starts as after a reboot: with its files only,
    /// and with the current table.
    ///
    /// # Errors
    /// When the target runs already or does not start.
    pub fn start(&mut self, target: Target) -> Result<()> {
        let up = self.lab.is_connected(target.node)?;
        match target.program {
            Some(_) if !up => bail!("{0} is dead; `start {0}` starts it", target.node),
            Some(_) if self.daemon_mut(target)?.runs() => bail!("{target} runs"),
            None if up => bail!("{target} is up"),
            Some(_) => {}
            None => {
                self.lab.renew(target.node)?;
                self.write_table()?;
            }
        }
        let (lab, daemons) = self.parts();
        for daemon in daemons.filter(|daemon| daemon.node() == target.node) {
            if target.program.is_none_or(|program| program == daemon.program()) {
                daemon.start(lab)?;
            }
        }
        Ok(())
    }

    /// Waits, after a start on a director, until the router has a session with it. If its daemon
    /// runs and is not drained, also waits until the router sends it the VIPs' packets. Progress
    /// goes to `out`.
    ///
    /// # Errors
    /// When that does not happen in time. The error holds the current state.
    pub fn wait_for_director(&self, node: Node, out: &mut dyn Write) -> Result<()> {
        if self.lab.plan().routing == Routing::Static || !matches!(node, Node::Director(_)) {
            return Ok(());
        }
        let mut said = String::new();
        let result = interrupt::wait(&format!("{node} in service"), super::ROUTES, || {
            let (now, done) = self.service_of(node)?;
            if now != said {
                writeln!(out, "{node}: {now}")?;
                said = now;
            }
            Ok(done.then_some(()))
        });
        result.with_context(|| format!("{node}: {said}"))
    }

    /// Returns the state of a director on its way into service, and whether it is final.
    fn service_of(&self, node: Node) -> Result<(String, bool)> {
        let sessions = bird::sessions(&self.lab)?;
        let session = sessions.into_iter().find(|session| session.director == node.to_string());
        let session = session.map_or_else(|| "no BGP session".to_owned(), |session| session.state);
        if session != "Established" {
            return Ok((format!("BGP session {session}"), false));
        }
        let state = self.director_state(node)?;
        let runs = self.directors.iter().any(|director| director.node() == node && director.runs());
        if !runs {
            return Ok(("BGP session Established; glb-director does not run".to_owned(), true));
        }
        if let Some(stage) = state.drain {
            return Ok((format!("BGP session Established; its drain: {stage}"), true));
        }
        let mut routed = true;
        for family in [Family::V4, Family::V6] {
            routed &= self.routed_to(family)?.contains(&node);
        }
        let words = if routed { "in service" } else { "BGP session Established; no routes yet" };
        Ok((words.to_owned(), routed))
    }

    /// Drains a director: it lowers its route preference, waits until traffic stops, then
    /// withdraws.
    ///
    /// # Errors
    /// The error holds the message of `glb-director drain`.
    pub fn drain_director(&self, node: Node) -> Result<()> {
        self.ask_director(node, "drain")
    }

    /// Makes a drained director announce again.
    ///
    /// # Errors
    /// The error holds the message of `glb-director undrain`.
    pub fn undrain_director(&self, node: Node) -> Result<()> {
        self.ask_director(node, "undrain")
    }

    fn ask_director(&self, node: Node, word: &str) -> Result<()> {
        let director = self.directors.iter().find(|director| director.node() == node);
        let director = director.with_context(|| format!("no {node}"))?;
        command::run(&mut director.command(&self.lab, word)?)
    }

    /// Takes a director out of service cleanly: drains it, then stops the daemon. Its program stays
    /// attached.
    ///
    /// # Errors
    /// When a step fails.
    pub fn take_out(&mut self, node: Node) -> Result<()> {
        self.drain_director(node)?;
        self.director_on(node)?.end(Signal::SIGTERM)?;
        Ok(())
    }

    /// Detaches the program of a director that was taken out of service.
    ///
    /// # Errors
    /// The error holds the message of `glb-director detach`.
    pub fn detach(&self, node: Node) -> Result<()> {
        self.ask_director(node, "detach")
    }

    /// Puts a director back into service.
    ///
    /// # Errors
    /// When the director does not start.
    pub fn put_back(&mut self, node: Node) -> Result<()> {
        self.start(Target { node, program: Some(Program::Director) })?;
        // A drain outlives the daemon, so that a crash during maintenance does not announce.
        self.undrain_director(node)
    }

    /// Changes a backend's state in all tables.
    ///
    /// # Errors
    /// When the backend does not exist, or a director rejects the table.
    pub fn set_state(&mut self, backend: Node, state: State) -> Result<()> {
        if !self.lab.plan().backend_nodes().any(|node| node == backend) {
            bail!("{backend} is not a backend of this lab");
        }
        self.table.set_state(backend, state);
        self.reload()
    }

    /// Removes the VIPs from one director's table, or adds them again, and waits until that is in
    /// force.
    ///
    /// # Errors
    /// When the change does not come into force.
    pub fn serve_vips(&mut self, node: Node, serves: bool) -> Result<()> {
        let mut text = self.table.toml()?;
        if !serves {
            for (family, other) in [(Family::V4, "203.0.113.99"), (Family::V6, "2001:db8::99")] {
                text = text.replace(&vip(family).to_string(), other);
            }
        }
        let before = self.director_state(node)?.membership_digest;
        replace_file(&self.lab.folder(node)?.join(self.table_file()), &text)?;
        for checker in self.checkers.iter_mut().filter(|checker| checker.node() == node) {
            checker.process()?.signal(Signal::SIGHUP)?;
        }
        interrupt::wait(&format!("another table on {node}"), super::ROUTES, || {
            let now = self.director_state(node)?.membership_digest;
            Ok((now.is_some() && now != before).then_some(()))
        })
    }

    fn director_state(&self, node: Node) -> Result<DirectorStatus> {
        let states = self.director_states()?;
        let state = states.into_iter().find(|state| state.name == node.to_string());
        state.with_context(|| format!("no {node}"))
    }

    fn daemon_mut(&mut self, target: Target) -> Result<&mut Daemon> {
        let there: Vec<_> = self
            .daemons()
            .filter(|daemon| daemon.node() == target.node)
            .map(|daemon| format!("{}/{}", daemon.node(), daemon.program().name()))
            .collect();
        let found = self.parts().1.find(|daemon| {
            daemon.node() == target.node && Some(daemon.program()) == target.program
        });
        found.with_context(|| format!("this lab has no {target}; it has {}", there.join(", ")))
    }
}
