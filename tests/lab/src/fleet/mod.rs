//! A lab with all daemons running: services, backends, directors and routing daemons.

mod operate;
mod status;

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    bgp_daemons, bird, cleanup,
    counters::{DirectorCounters, RedirectCounters},
    daemons::{Daemon, Program},
    interrupt, kernel,
    plan::{Family, Node, Plan, Routing, vip},
    repository,
    services::WebServer,
    table::{TableFile, replace_file},
    topology::Lab,
};

pub use self::{operate::Target, status::Status};

/// The repository that every backend serves.
pub(crate) const REPOSITORY: &str = "big.git";

/// The time limit for routes. BIRD waits a second before it connects.
const ROUTES: Duration = Duration::from_secs(20);

/// The file in the run folder that describes a lab that keeps running.
const SAVED: &str = "lab.json";

/// The file in the run folder that holds the table last given to the directors.
const TABLE: &str = "table.toml";

/// The health checkers' settings, with short intervals.
const CHECKS: &str = "director = \"control.sock\"\n\
     [defaults]\ninterval = \"500ms\"\ntimeout = \"400ms\"\nrise = 2\nfall = 3\n";

/// A running lab. The daemons end before the lab is removed.
#[derive(Debug)]
pub struct Fleet {
    /// The directors of the plan, in order.
    pub directors: Vec<Daemon>,
    /// The backends' daemons, in order.
    pub redirects: Vec<Daemon>,
    /// With BGP: the router's BIRD, then the routing daemons of each director.
    pub speakers: Vec<Daemon>,
    /// The health checkers, one per director, if the plan has them.
    pub checkers: Vec<Daemon>,
    servers: Vec<WebServer>,
    /// The table that this handle last gave to the directors.
    pub table: TableFile,
    /// The repository's HEAD.
    pub head: String,
    /// The lab.
    pub lab: Lab,
}

/// The state of a lab that must be saved; the rest is found in its run folder.
#[derive(Debug, Serialize, Deserialize)]
struct SavedLab {
    plan: Plan,
    head: String,
}

impl Fleet {
    /// Starts everything. The backends serve a repository of `megabytes` MB.
    ///
    /// # Errors
    /// When a part does not start. All other parts are removed then.
    pub fn up(plan: Plan, megabytes: usize, second_chance: bool) -> Result<Self> {
        let lab = Lab::up(plan)?;
        let repository = lab.scratch().join(REPOSITORY);
        let table = TableFile::serving(lab.plan(), &[80]);
        let mut fleet = Self {
            directors: Vec::new(),
            redirects: Vec::new(),
            speakers: Vec::new(),
            checkers: Vec::new(),
            servers: Vec::new(),
            table,
            head: String::new(),
            lab,
        };
        // Creating the repository takes as long as everything else.
        fleet.head = thread::scope(|scope| {
            let head = scope.spawn(|| repository::create(&repository, megabytes));
            fleet.start_all(second_chance)?;
            head.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        fleet.save()?;
        Ok(fleet)
    }

    fn start_all(&mut self, second_chance: bool) -> Result<()> {
        let lab = &self.lab;
        let plan = lab.plan().clone();
        // Routing daemons start first, because a BGP session takes a second.
        if plan.routing == Routing::Bgp {
            for node in [Node::Router].into_iter().chain(plan.director_nodes()) {
                for program in bgp_daemons::programs(&plan, node) {
                    let mut speaker = Daemon::speaker(lab, *program, node)?;
                    match program {
                        // The other FRR daemons need zebra.
                        Program::Zebra => speaker.start(lab)?,
                        _ => speaker.spawn(lab)?,
                    }
                    self.speakers.push(speaker);
                }
            }
        }
        for node in plan.backend_nodes() {
            self.servers.push(WebServer::start(lab, node, lab.scratch())?);
            self.redirects.push(Daemon::redirect(lab, node, second_chance)?);
        }
        for node in plan.director_nodes() {
            let director = Daemon::director(lab, node, &self.table)?;
            if plan.health {
                let source = self.table.toml()?;
                self.checkers.push(Daemon::healthcheck(lab, node, &source, CHECKS)?);
            }
            self.directors.push(director);
        }
        self.write_table()?;
        // The daemons start in parallel, because each mostly waits for the kernel. A director needs
        // the checker's output, and a checker that probes too early finds every backend unhealthy.
        let start = |daemons: &mut [Daemon]| -> Result<()> {
            daemons.iter_mut().try_for_each(|daemon| daemon.spawn(&self.lab))?;
            daemons.iter_mut().try_for_each(|daemon| daemon.wait_until_ready(&self.lab))
        };
        start(&mut self.redirects)?;
        start(&mut self.checkers)?;
        start(&mut self.directors)?;
        for speaker in &mut self.speakers {
            speaker.wait_until_ready(&self.lab)?;
        }
        if plan.routing == Routing::Bgp {
            self.wait_for_routes(&plan.director_nodes().collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let saved = SavedLab { plan: self.lab.plan().clone(), head: self.head.clone() };
        replace_file(&self.lab.run_folder().join(SAVED), &serde_json::to_string_pretty(&saved)?)
    }

    /// Opens the lab `name` that another process started. It keeps running when this handle is
    /// dropped.
    ///
    /// # Errors
    /// When the lab does not exist.
    pub fn open(name: &str) -> Result<Self> {
        let (run, _) = cleanup::paths(name);
        let text = fs::read_to_string(run.join(SAVED)).with_context(|| {
            format!("no lab {name} is up; `./x lab up --name {name}` brings it up")
        })?;
        let saved: SavedLab = serde_json::from_str(&text).context(SAVED)?;
        let lab = Lab::open(saved.plan)?;
        let plan = lab.plan().clone();
        let adopt = |program, nodes: Vec<Node>| {
            nodes.into_iter().map(|node| Daemon::adopt(&lab, program, node)).collect::<Result<_>>()
        };
        let directors: Vec<_> = plan.director_nodes().collect();
        let routers = match plan.routing {
            Routing::Static => Vec::new(),
            Routing::Bgp => [vec![Node::Router], directors.clone()].concat(),
        };
        let speakers = routers.into_iter().flat_map(|node| {
            bgp_daemons::programs(&plan, node).iter().map(move |program| (*program, node))
        });
        let speakers = speakers.map(|(program, node)| Daemon::adopt(&lab, program, node));
        let checkers = if plan.health { directors.clone() } else { Vec::new() };
        let servers = plan.backend_nodes().map(|node| WebServer::adopt(&lab, node));
        let table = TableFile::parse(&fs::read_to_string(lab.run_folder().join(TABLE))?)?;
        Ok(Self {
            directors: adopt(Program::Director, directors)?,
            redirects: adopt(Program::Redirect, plan.backend_nodes().collect())?,
            speakers: speakers.collect::<Result<_>>()?,
            checkers: adopt(Program::Healthcheck, checkers)?,
            servers: servers.collect::<Result<_>>()?,
            table,
            head: saved.head,
            lab,
        })
    }

    /// Iterates over every daemon of the fleet, by node.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        let servers = self.servers.iter().flat_map(|server| [&server.nginx, &server.fcgiwrap]);
        let ours = self.directors.iter().chain(&self.redirects).chain(&self.checkers);
        self.speakers.iter().chain(ours).chain(servers)
    }

    /// Returns the lab, and every daemon in boot order.
    fn parts(&mut self) -> (&Lab, impl Iterator<Item = &mut Daemon>) {
        let servers = self.servers.iter_mut();
        let servers = servers.flat_map(|server| [&mut server.fcgiwrap, &mut server.nginx]);
        let ours = self.redirects.iter_mut().chain(&mut self.checkers).chain(&mut self.directors);
        (&self.lab, self.speakers.iter_mut().chain(servers).chain(ours))
    }

    /// Returns the directors that receive this family's VIP packets from the router's kernel.
    ///
    /// # Errors
    /// When the routes cannot be read.
    pub fn routed_to(&self, family: Family) -> Result<Vec<Node>> {
        let hops = bird::next_hops(self.lab.netns(Node::Router)?, vip(family))?;
        let directors = self.lab.plan().director_nodes();
        Ok(directors.filter(|node| hops.contains(&node.address(family))).collect())
    }

    /// Waits until the router's kernel sends both VIPs to exactly these directors.
    ///
    /// # Errors
    /// When that does not happen in time. The error holds the current routes.
    pub fn wait_for_routes(&self, directors: &[Node]) -> Result<()> {
        let mut seen = Vec::new();
        let result = interrupt::wait("the router's routes", ROUTES, || {
            seen = [self.routed_to(Family::V4)?, self.routed_to(Family::V6)?].to_vec();
            Ok(seen.iter().all(|nodes| nodes == directors).then_some(()))
        });
        result.with_context(|| format!("wanted {directors:?}, routed are {seen:?}"))
    }

    /// Waits until the router has a session with every director.
    ///
    /// # Errors
    /// When that does not happen in time. The error holds the current sessions.
    pub fn wait_for_sessions(&self) -> Result<()> {
        let mut sessions = Vec::new();
        let result = interrupt::wait("the router's sessions", ROUTES, || {
            sessions = bird::sessions(&self.lab)?;
            let all = sessions.len() == self.directors.len();
            Ok((all && sessions.iter().all(bird::Session::is_up)).then_some(()))
        });
        result.with_context(|| format!("{sessions:?}"))
    }

    /// Writes the table for every director whose machine is up, and a copy in the run folder.
    pub(crate) fn write_table(&self) -> Result<()> {
        let text = self.table.toml()?;
        replace_file(&self.lab.run_folder().join(TABLE), &text)?;
        for director in &self.directors {
            if self.lab.is_connected(director.node())? {
                replace_file(&self.lab.folder(director.node())?.join(self.table_file()), &text)?;
            }
        }
        Ok(())
    }

    /// The name of a director's table file: the health checker's input, or the director's own
    /// table.
    pub(crate) fn table_file(&self) -> &'static str {
        if self.lab.plan().health { "source.toml" } else { "table.toml" }
    }

    /// Gives `self.table` to every running director and waits until it is in force.
    ///
    /// # Errors
    /// When a director rejects the table.
    pub fn reload(&mut self) -> Result<()> {
        self.write_table()?;
        for checker in self.checkers.iter_mut().filter(|checker| checker.runs()) {
            checker.process()?.signal(nix::sys::signal::Signal::SIGHUP)?;
        }
        for director in self.directors.iter().filter(|director| director.runs()) {
            if self.lab.plan().health {
                self.wait_for_checked_table(director)?;
            }
            crate::command::run(&mut director.command(&self.lab, "reload")?)?;
        }
        Ok(())
    }

    /// Waits until the health checker's output holds the states of its input.
    fn wait_for_checked_table(&self, director: &Daemon) -> Result<()> {
        let file = director.config().with_file_name("table.toml");
        let states =
            |table: &TableFile| table.backends().map(|(ip, s, _)| (ip, s)).collect::<Vec<_>>();
        let wanted = states(&self.table);
        interrupt::wait(&format!("{}", file.display()), Duration::from_secs(20), || {
            let checked = TableFile::parse(&fs::read_to_string(&file)?)?;
            Ok((states(&checked) == wanted).then_some(()))
        })
    }

    /// Returns the first director.
    ///
    /// # Errors
    /// When the plan has no director.
    pub fn director(&mut self) -> Result<&mut Daemon> {
        self.directors.first_mut().context("this fleet has no director")
    }

    /// Returns the director on this node.
    ///
    /// # Errors
    /// When there is no director on this node.
    pub fn director_on(&mut self, node: Node) -> Result<&mut Daemon> {
        let found = self.directors.iter_mut().find(|director| director.node() == node);
        found.with_context(|| format!("this fleet has no {node}"))
    }

    /// Returns the number of backends that serve.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.servers.len()
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for daemon in &self.directors {
            counters.directors.push(daemon.director_counters(&self.lab)?);
        }
        for daemon in &self.redirects {
            counters.backends.insert(daemon.node(), daemon.redirect_counters(&self.lab)?);
        }
        counters.retransmits = self.retransmits()?;
        Ok(counters)
    }

    /// Reads the TCP retransmissions of each backend and of the clients.
    ///
    /// # Errors
    /// When a kernel counter cannot be read.
    pub(crate) fn retransmits(&self) -> Result<BTreeMap<Node, u64>> {
        let plan = self.lab.plan();
        let nodes = plan.backend_nodes().chain(plan.client_nodes());
        nodes
            .map(|node| Ok((node, kernel::tcp_counter(self.lab.netns(node)?, "RetransSegs")?)))
            .collect()
    }
}

/// The counters of a fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// The counters of each director.
    pub directors: Vec<DirectorCounters>,
    /// The counters of each backend.
    pub backends: BTreeMap<Node, RedirectCounters>,
    /// TCP retransmissions by node.
    pub retransmits: BTreeMap<Node, u64>,
}

impl Counters {
    /// Returns the packets that the directors sent to this backend as first hop.
    #[must_use]
    pub fn sent_to(&self, node: Node) -> u64 {
        self.directors.iter().map(|director| director.sent_to(node)).sum()
    }

    /// Returns the packets that this backend delivered to its own stack.
    #[must_use]
    pub fn taken(&self, node: Node) -> u64 {
        self.backends.get(&node).map_or(0, RedirectCounters::taken)
    }

    /// Returns the packets that this backend forwarded to the next hop.
    #[must_use]
    pub fn forwarded(&self, node: Node) -> u64 {
        self.backends.get(&node).map_or(0, RedirectCounters::forwarded)
    }

    /// Returns the packets that any backend forwarded to the next hop.
    #[must_use]
    pub fn all_forwarded(&self) -> u64 {
        self.backends.values().map(RedirectCounters::forwarded).sum()
    }
}
