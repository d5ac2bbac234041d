//! A lab with everything running in it: services, backends' daemons and directors.

use std::{collections::BTreeMap, thread};

use anyhow::{Context, Result};

use crate::{
    daemons::{Daemon, DirectorCounters, RedirectCounters},
    kernel,
    plan::{Node, Plan},
    repository,
    services::WebServer,
    table::TableFile,
    topology::Lab,
};

/// Name of the repository that every backend serves.
pub(crate) const REPOSITORY: &str = "big.git";

/// A lab in use. The daemons end before the lab goes.
#[derive(Debug)]
pub struct Fleet {
    /// One for each director of the plan, in order.
    pub directors: Vec<Daemon>,
    /// One for each backend of the plan, in order.
    pub redirects: Vec<Daemon>,
    servers: Vec<WebServer>,
    /// What the directors were given last by this handle.
    pub table: TableFile,
    /// The repository's HEAD.
    pub head: String,
    /// The lab.
    pub lab: Lab,
}

impl Fleet {
    /// Brings everything up; the backends serve a repository of so many MB.
    ///
    /// # Errors
    /// When any part does not come up; all others are gone then.
    pub fn up(plan: Plan, megabytes: usize, second_chance: bool) -> Result<Self> {
        let lab = Lab::up(plan)?;
        let repository = lab.scratch().join(REPOSITORY);
        let table = TableFile::new(lab.plan());
        let (mut directors, mut redirects) = (Vec::new(), Vec::new());
        let mut servers = Vec::new();
        // The repository takes as long as all the rest.
        let head = thread::scope(|scope| {
            let head = scope.spawn(|| repository::create(&repository, megabytes));
            for node in lab.plan().backend_nodes() {
                servers.push(WebServer::start(&lab, node, lab.scratch())?);
                redirects.push(Daemon::redirect(&lab, node, second_chance)?);
            }
            for node in lab.plan().director_nodes() {
                directors.push(Daemon::director(&lab, node, &table)?);
            }
            for daemon in redirects.iter_mut().chain(&mut directors) {
                daemon.start(&lab)?;
            }
            head.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Self { directors, redirects, servers, table, head, lab })
    }

    /// Gives every director the table as it is now in `self.table`.
    ///
    /// # Errors
    /// When a director refuses it.
    pub fn reload(&mut self) -> Result<()> {
        for director in &mut self.directors {
            director.reload(&self.table)?;
        }
        Ok(())
    }

    /// The first director.
    ///
    /// # Errors
    /// When there is none.
    pub fn director(&mut self) -> Result<&mut Daemon> {
        self.directors.first_mut().context("this fleet has no director")
    }

    /// How many backends serve.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.servers.len()
    }

    /// All counters as they are now.
    ///
    /// # Errors
    /// When some cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for daemon in &self.directors {
            counters.directors.push(daemon.director_counters(&self.lab)?);
        }
        for daemon in &self.redirects {
            counters.backends.insert(daemon.node(), daemon.redirect_counters(&self.lab)?);
        }
        for node in self.lab.plan().backend_nodes().chain([Node::Client]) {
            let sent = kernel::tcp_counter(self.lab.netns(node)?, "RetransSegs")?;
            counters.retransmits.insert(node, sent);
        }
        Ok(counters)
    }
}

/// The counters of a fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Of each director.
    pub directors: Vec<DirectorCounters>,
    /// Of each backend's daemon.
    pub backends: BTreeMap<Node, RedirectCounters>,
    /// TCP segments sent again, by backend, and by the client.
    pub retransmits: BTreeMap<Node, u64>,
}

impl Counters {
    /// Packets that the directors sent to this backend as first hop.
    #[must_use]
    pub fn sent_to(&self, node: Node) -> u64 {
        self.directors.iter().map(|director| director.sent_to(node)).sum()
    }

    /// Packets that this backend handed to its own stack.
    #[must_use]
    pub fn taken(&self, node: Node) -> u64 {
        self.backends.get(&node).map_or(0, RedirectCounters::taken)
    }

    /// Packets that this backend gave a second chance elsewhere.
    #[must_use]
    pub fn forwarded(&self, node: Node) -> u64 {
        self.backends.get(&node).map_or(0, RedirectCounters::forwarded)
    }

    /// Packets that any backend gave a second chance elsewhere.
    #[must_use]
    pub fn all_forwarded(&self) -> u64 {
        self.backends.values().map(RedirectCounters::forwarded).sum()
    }
}
