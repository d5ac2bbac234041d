//! A lab with everything running in it: services, backends' daemons, directors and their BIRDs.

mod operate;
mod status;

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    bgp_daemons, bird, chaos, cleanup,
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

/// Name of the repository that every backend serves.
pub(crate) const REPOSITORY: &str = "big.git";

/// How long routes may take to be as they should. BIRD waits a second before it connects.
const ROUTES: Duration = Duration::from_secs(20);

/// In the run folder: what a lab that is left up is made of.
const SAVED: &str = "lab.json";

/// In the run folder: the table that the directors were given last.
const TABLE: &str = "table.toml";

/// How a fleet's checkers are set. Quick, for a lab's watchers are impatient.
const CHECKS: &str = "director = \"control.sock\"\n\
     [defaults]\ninterval_ms = 500\ntimeout_ms = 400\nrise = 2\nfall = 3\n";

/// A lab in use. The daemons end before the lab goes.
#[derive(Debug)]
pub struct Fleet {
    /// One for each director of the plan, in order.
    pub directors: Vec<Daemon>,
    /// One for each backend of the plan, in order.
    pub redirects: Vec<Daemon>,
    /// With BGP: the router's BIRD, then what speaks BGP on each director.
    pub speakers: Vec<Daemon>,
    /// Where the plan wants them: one for each director.
    pub checkers: Vec<Daemon>,
    servers: Vec<WebServer>,
    /// Where the plan wants them: one for each backend.
    live: Vec<Daemon>,
    /// What the directors were given last by this handle.
    pub table: TableFile,
    /// The repository's HEAD.
    pub head: String,
    /// The lab.
    pub lab: Lab,
}

/// What must be remembered of a lab that is left up; the rest is found in its run folder.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    plan: Plan,
    head: String,
}

impl Fleet {
    /// Brings everything up; the backends serve a repository of so many MB.
    ///
    /// # Errors
    /// When any part does not come up; all others are gone then.
    pub fn up(plan: Plan, megabytes: usize, second_chance: bool) -> Result<Self> {
        let lab = Lab::up(plan)?;
        let repository = lab.scratch().join(REPOSITORY);
        let ports: &[u16] = if lab.plan().live { &[80, chaos::PORT] } else { &[80] };
        let table = TableFile::serving(lab.plan(), ports);
        let mut fleet = Self {
            directors: Vec::new(),
            redirects: Vec::new(),
            speakers: Vec::new(),
            checkers: Vec::new(),
            servers: Vec::new(),
            live: Vec::new(),
            table,
            head: String::new(),
            lab,
        };
        // The repository takes as long as all the rest.
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
        // First, for a session takes a second.
        if plan.routing == Routing::Bgp {
            for node in [Node::Router].into_iter().chain(plan.director_nodes()) {
                for program in bgp_daemons::programs(&plan, node) {
                    let mut speaker = Daemon::speaker(lab, *program, node)?;
                    match program {
                        // The others need it.
                        Program::Zebra => speaker.start(lab)?,
                        _ => speaker.spawn(lab)?,
                    }
                    self.speakers.push(speaker);
                }
            }
        }
        for node in plan.backend_nodes() {
            self.servers.push(WebServer::start(lab, node, lab.scratch())?);
            if plan.live {
                let mut live = Daemon::live(lab, node)?;
                live.start(lab)?;
                self.live.push(live);
            }
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
        // All at once: each waits for the kernel most of its time. A director reads what its checker
        // has written, though, and a checker that asks too early finds everybody ill.
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
        let saved = Saved { plan: self.lab.plan().clone(), head: self.head.clone() };
        replace_file(&self.lab.run_folder().join(SAVED), &serde_json::to_string_pretty(&saved)?)
    }

    /// The lab `name` that was left up, or that another process uses. It stays up when this is
    /// dropped.
    ///
    /// # Errors
    /// When there is no such lab.
    pub fn open(name: &str) -> Result<Self> {
        let (run, _) = cleanup::paths(name);
        let text = fs::read_to_string(run.join(SAVED)).with_context(|| {
            format!("no lab {name} is up; `./x lab up --name {name}` brings it up")
        })?;
        let saved: Saved = serde_json::from_str(&text).context(SAVED)?;
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
        let live = if plan.live { plan.backend_nodes().collect() } else { Vec::new() };
        let servers = plan.backend_nodes().map(|node| WebServer::adopt(&lab, node));
        let table = TableFile::parse(&fs::read_to_string(lab.run_folder().join(TABLE))?)?;
        Ok(Self {
            directors: adopt(Program::Director, directors)?,
            redirects: adopt(Program::Redirect, plan.backend_nodes().collect())?,
            speakers: speakers.collect::<Result<_>>()?,
            checkers: adopt(Program::Healthcheck, checkers)?,
            servers: servers.collect::<Result<_>>()?,
            live: adopt(Program::Live, live)?,
            table,
            head: saved.head,
            lab,
        })
    }

    /// Every daemon of the fleet, by node.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        let servers = self.servers.iter().flat_map(|server| [&server.nginx, &server.fcgiwrap]);
        let ours = self.directors.iter().chain(&self.redirects).chain(&self.checkers);
        self.speakers.iter().chain(ours).chain(servers).chain(&self.live)
    }

    /// The lab, and every daemon in the order in which a machine starts them.
    fn parts(&mut self) -> (&Lab, impl Iterator<Item = &mut Daemon>) {
        let servers = self.servers.iter_mut();
        let servers = servers.flat_map(|server| [&mut server.fcgiwrap, &mut server.nginx]);
        let ours = self.redirects.iter_mut().chain(&mut self.checkers).chain(&mut self.directors);
        (&self.lab, self.speakers.iter_mut().chain(servers).chain(&mut self.live).chain(ours))
    }

    /// The directors that the router's kernel sends the VIP of this family to.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn routed_to(&self, family: Family) -> Result<Vec<Node>> {
        let hops = bird::next_hops(self.lab.netns(Node::Router)?, vip(family))?;
        let directors = self.lab.plan().director_nodes();
        Ok(directors.filter(|node| hops.contains(&node.address(family))).collect())
    }

    /// Waits until the router's kernel sends both VIPs to exactly these directors.
    ///
    /// # Errors
    /// When that has not come after a while: with the routes as they are.
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
    /// When that has not come after a while: with the sessions as they are.
    pub fn wait_for_sessions(&self) -> Result<()> {
        let mut sessions = Vec::new();
        let result = interrupt::wait("the router's sessions", ROUTES, || {
            sessions = bird::sessions(&self.lab)?;
            let all = sessions.len() == self.directors.len();
            Ok((all && sessions.iter().all(bird::Session::is_up)).then_some(()))
        });
        result.with_context(|| format!("{sessions:?}"))
    }

    /// Writes the table for every director whose machine is up; the lab keeps a copy.
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

    /// The name of the file that a director's table is written into: the health checker's source, or
    /// the director's own table.
    pub(crate) fn table_file(&self) -> &'static str {
        if self.lab.plan().health { "source.toml" } else { "table.toml" }
    }

    /// Gives every director that runs the table as it is now in `self.table`, and waits until it is
    /// in force.
    ///
    /// # Errors
    /// When a director refuses it.
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

    /// Waits until the health checker has written the states of the source.
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

    /// The first director.
    ///
    /// # Errors
    /// When there is none.
    pub fn director(&mut self) -> Result<&mut Daemon> {
        self.directors.first_mut().context("this fleet has no director")
    }

    /// The director on this node.
    ///
    /// # Errors
    /// When there is none.
    pub fn director_on(&mut self, node: Node) -> Result<&mut Daemon> {
        let found = self.directors.iter_mut().find(|director| director.node() == node);
        found.with_context(|| format!("this fleet has no {node}"))
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
        counters.retransmits = self.retransmits()?;
        Ok(counters)
    }

    /// TCP segments sent again by each backend and by the clients.
    ///
    /// # Errors
    /// When a kernel cannot say.
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
