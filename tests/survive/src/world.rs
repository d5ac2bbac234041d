//! The fleet of a run, and the operations on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use glb_lab::{
    Daemon, Family, Lab, Node, Plan, Routing, State, TableFile, bird, command, interrupt, kernel,
    repository, vip,
};
use glb_table::hex;
use nix::sys::signal::Signal;

use crate::{
    accounting::Ledger,
    monitor::Monitor,
    rule::{self, PlanRule},
    run::RunConfig,
    services::{self, Database, PORTS, REPOSITORY, Services},
};

/// The system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// This load balancer, with this number of hops.
    Hops(u8),
    /// This load balancer, with second chance disabled.
    NoSecondChance,
    /// No load balancer: the router spreads flows over the backends by ECMP.
    Ecmp,
}

impl Mode {
    /// Returns the name in reports.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Hops(hops) => format!("{hops} hops"),
            Self::NoSecondChance => "no second chance".to_owned(),
            Self::Ecmp => "ECMP to the backends".to_owned(),
        }
    }

    /// Returns the number of backends in a row.
    pub(crate) const fn hops(self) -> u8 {
        match self {
            Self::Hops(hops) => hops,
            Self::NoSecondChance | Self::Ecmp => 2,
        }
    }
}

/// The time limit for any change to come into force. The machine can be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// The health checkers' settings: short intervals and a short hold-down.
const CHECKS: &str = "director = \"control.sock\"\ndebounce = \"100ms\"\nhold_down = \"300ms\"\n\
                      hold_down_max = \"1000ms\"\n\
                      [defaults]\ninterval = \"500ms\"\ntimeout = \"400ms\"\nrise = 2\nfall = 3\n";

/// A fleet with everything that runs in it. Daemons end before the lab is removed.
pub(crate) struct World {
    pub(crate) mode: Mode,
    /// Whether each table change waits until the plan calls it safe.
    pub(crate) careful: bool,
    /// The number of backends drained together in scenarios with several drains.
    pub(crate) drains_at_once: usize,
    /// The longest life of a flow.
    pub(crate) flow_age: Duration,
    pub(crate) with_glance: bool,
    /// The table that the operator wants.
    pub(crate) table: TableFile,
    /// Backends whose health checks fail on purpose.
    pub(crate) ill: BTreeSet<Node>,
    /// Directors that are down.
    pub(crate) down: BTreeSet<Node>,
    /// Directors that run but must not receive packets from the router.
    pub(crate) withdrawn: BTreeSet<Node>,
    /// Whether the client's port is part of the hash.
    pub(crate) hashes_ports: bool,
    pub(crate) rule: PlanRule,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) monitor: Monitor,
    checkers: BTreeMap<Node, Daemon>,
    /// The BIRDs of the router and the directors.
    pub(crate) birds: BTreeMap<Node, Daemon>,
    pub(crate) directors: Vec<Daemon>,
    pub(crate) redirects: BTreeMap<Node, Daemon>,
    pub(crate) services: BTreeMap<Node, Services>,
    _database: Option<Database>,
    pub(crate) lab: Lab,
}

impl World {
    /// Starts a fleet.
    ///
    /// # Errors
    /// When a part does not start.
    pub(crate) fn up(config: &RunConfig) -> Result<Self> {
        let (mode, load) = (config.mode, &config.load);
        let routing = if mode == Mode::Ecmp { Routing::Static } else { Routing::Bgp };
        let plan = Plan {
            directors: config.directors,
            backends: config.backends,
            routing,
            method: config.method,
            ..Plan::new(&config.name)
        };
        let lab = Lab::up(plan)?;
        fs::create_dir_all(services::repositories(&lab))?;
        repository::create(&services::repositories(&lab).join(REPOSITORY), load.repository)?;
        let database = load.has_glance().then(|| services::shared_by_glance(&lab)).transpose()?;
        let mut table = TableFile::serving(lab.plan(), &PORTS);
        table.set_hops(mode.hops());
        let ledger = Ledger::new();
        let nodes: Vec<Node> = lab.plan().backend_nodes().collect();
        let netns = nodes.iter().map(|node| Ok((*node, lab.netns(*node)?.clone())));
        let monitor = Monitor::start(&ledger, netns.collect::<Result<_>>()?);
        let mut world = Self {
            mode,
            careful: true,
            drains_at_once: usize::from(mode.hops()).saturating_sub(1),
            flow_age: load.flow_age,
            with_glance: load.has_glance(),
            table,
            ill: BTreeSet::new(),
            down: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            hashes_ports: false,
            rule: PlanRule::new(load.flow_age.as_secs()),
            ledger,
            monitor,
            checkers: BTreeMap::new(),
            birds: BTreeMap::new(),
            directors: Vec::new(),
            redirects: BTreeMap::new(),
            services: BTreeMap::new(),
            _database: database,
            lab,
        };
        for node in &nodes {
            world.start_backend(*node, load.has_glance())?;
        }
        let World { services, lab, .. } = &mut world;
        services.values_mut().try_for_each(|services| services.wait(lab))?;
        if mode == Mode::Ecmp {
            nodes.iter().try_for_each(|node| world.lab.add_vips(*node))?;
        } else {
            world.start_directors()?;
        }
        let table = world.table.clone();
        world.apply(&table)?;
        Ok(world)
    }

    fn start_backend(&mut self, node: Node, with_glance: bool) -> Result<()> {
        self.services.insert(node, Services::start(&self.lab, node, with_glance)?);
        if self.mode != Mode::Ecmp {
            let second_chance = self.mode != Mode::NoSecondChance;
            let mut redirect = Daemon::redirect(&self.lab, node, second_chance)?;
            redirect.start(&self.lab)?;
            self.redirects.insert(node, redirect);
        }
        Ok(())
    }

    fn start_directors(&mut self) -> Result<()> {
        let directors: Vec<Node> = self.lab.plan().director_nodes().collect();
        for node in [Node::Router].into_iter().chain(directors.iter().copied()) {
            let mut bird = Daemon::bird(&self.lab, node)?;
            bird.start(&self.lab)?;
            self.birds.insert(node, bird);
        }
        for node in directors {
            self.directors.push(Daemon::director(&self.lab, node, &self.table)?);
            self.start_director(node)?;
            self.start_checker(node)?;
        }
        Ok(())
    }

    /// Starts a director's daemon, which announces the VIPs when it is eligible.
    ///
    /// # Errors
    /// When the daemon does not start.
    pub(crate) fn start_director(&mut self, node: Node) -> Result<()> {
        let Self { directors, lab, .. } = self;
        let director = directors.iter_mut().find(|daemon| daemon.node() == node);
        director.context("no such director")?.start(lab)
    }

    /// Starts the health checker of a director.
    ///
    /// # Errors
    /// When the checker does not start.
    pub(crate) fn start_checker(&mut self, node: Node) -> Result<()> {
        let mut checker = Daemon::healthcheck(&self.lab, node, &self.source()?, CHECKS)?;
        checker.start(&self.lab)?;
        self.checkers.insert(node, checker);
        Ok(())
    }

    /// Returns the table with its checks, as the operator writes it.
    fn source(&self) -> Result<String> {
        let check = |family| {
            let port = crate::serve::PORT;
            format!("{{ address = \"{}\", port = {port}, path = \"/health\" }}", vip(family))
        };
        Ok(format!(
            "[healthchecks]\ngue = 19523\nvip = [{}, {}]\n\n{}",
            check(Family::V4),
            check(Family::V6),
            self.table.toml()?,
        ))
    }

    fn write_source(&self, node: Node) -> Result<()> {
        self.replace_source(node, &self.source()?)
    }

    fn replace_source(&self, node: Node, text: &str) -> Result<()> {
        let folder = self.lab.folder(node)?;
        let (new, file) = (folder.join("source.new"), folder.join("source.toml"));
        fs::write(&new, text)?;
        fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// All backends.
    pub(crate) fn backends(&self) -> Vec<Node> {
        self.lab.plan().backend_nodes().collect()
    }

    /// Returns the backend with this address in the table.
    pub(crate) fn backend_at(&self, address: std::net::IpAddr) -> Option<Node> {
        let tunnel = self.lab.plan().tunnel;
        self.backends().into_iter().find(|node| node.address(tunnel) == address)
    }

    /// Waits until the plan calls a table safe.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub(crate) fn wait_until_safe(&mut self, table: &TableFile, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let judgement = self.rule.judge(table)?;
            if judgement.safe {
                return Ok(());
            }
            if begun.elapsed() > limit {
                bail!("after {limit:?} the plan still says: {judgement:?}");
            }
            interrupt::sleep(Duration::from_secs(1))?;
        }
    }

    /// Brings a table into force on all directors and records it.
    ///
    /// # Errors
    /// When the table does not come into force.
    pub(crate) fn apply(&mut self, table: &TableFile) -> Result<()> {
        self.table = table.clone();
        self.rule.adopt(table)?;
        if self.mode == Mode::Ecmp {
            return self.route_to_backends();
        }
        let nodes: Vec<Node> = self.checkers.keys().copied().collect();
        for node in nodes {
            self.write_source(node)?;
            if let Some(checker) = self.checkers.get_mut(&node)
                && !self.down.contains(&node)
            {
                checker.process()?.signal(Signal::SIGHUP)?;
            }
        }
        self.settle()
    }

    /// Waits until every running director has the wanted states in force, with the health that the
    /// suite expects.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.mode == Mode::Ecmp {
            return self.route_to_backends();
        }
        let mut table = self.table.clone();
        for node in &self.ill {
            table.set_healthy(*node, false);
        }
        let wanted = rule::parsed(&table)?.digest();
        let wanted = (hex(&wanted.membership), hex(&wanted.order));
        for director in &self.directors {
            if !self.directors_routed().contains(&director.node()) {
                continue;
            }
            let what = format!("the table on {}", director.node());
            interrupt::wait(&what, PATIENCE, || {
                // A daemon that is just starting does not answer yet.
                let Ok(status) = status(&self.lab, director) else { return Ok(None) };
                let word = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
                let has = (word("membership_digest"), word("order_digest"));
                thread::sleep(Duration::from_millis(50));
                Ok((has == wanted).then_some(()))
            })?;
        }
        self.wait_for_routes()
    }

    /// Waits until the router sends to exactly the directors that are up and announce.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub(crate) fn wait_for_routes(&self) -> Result<()> {
        let router = self.lab.netns(Node::Router)?;
        for family in [Family::V4, Family::V6] {
            let mut wanted: Vec<_> =
                self.directors_routed().iter().map(|node| node.address(family)).collect();
            wanted.sort_unstable();
            let mut seen = Vec::new();
            let result = interrupt::wait("the router's routes", PATIENCE, || {
                seen = bird::next_hops(router, vip(family))?;
                Ok((seen == wanted).then_some(()))
            });
            result.with_context(|| format!("wanted {wanted:?}, routed are {seen:?}"))?;
        }
        Ok(())
    }

    /// Routes the VIPs by ECMP to the backends that take new connections.
    fn route_to_backends(&self) -> Result<()> {
        let mut hops = Vec::new();
        for (address, state, weight) in self.table.shares() {
            let Some(node) = self.backend_at(address) else { continue };
            if matches!(state, State::Active | State::Filling) && !self.ill.contains(&node) {
                hops.push((node, weight));
            }
        }
        self.route(&hops)
    }

    /// Routes the VIPs to these machines by ECMP, in this order and with these weights.
    ///
    /// # Errors
    /// When the router rejects the routes.
    pub(crate) fn route(&self, hops: &[(Node, u16)]) -> Result<()> {
        let mut lines = String::new();
        for family in [Family::V4, Family::V6] {
            let hops = hops.iter().map(|(node, weight)| {
                format!(" nexthop via {} weight {weight}", node.address(family))
            });
            lines += &format!("route replace {}{}\n", vip(family), hops.collect::<String>());
        }
        self.lab.netns(Node::Router)?.ip(&lines)
    }

    /// Lists the directors that are up.
    pub(crate) fn directors_up(&self) -> Vec<Node> {
        self.lab.plan().director_nodes().filter(|node| !self.down.contains(node)).collect()
    }

    /// Lists the directors that must receive packets from the router.
    fn directors_routed(&self) -> Vec<Node> {
        self.directors_up().into_iter().filter(|node| !self.withdrawn.contains(node)).collect()
    }

    /// Returns a director's daemon.
    ///
    /// # Errors
    /// When the daemon does not exist.
    pub(crate) fn director(&mut self, node: Node) -> Result<&mut Daemon> {
        let found = self.directors.iter_mut().find(|daemon| daemon.node() == node);
        found.with_context(|| format!("no daemon on {node}"))
    }

    /// Takes the VIPs out of one director's table, or puts them back, and waits until the router
    /// follows.
    ///
    /// # Errors
    /// When the change does not come into force.
    pub(crate) fn serve_vips(&mut self, node: Node, serves: bool) -> Result<()> {
        let source = if serves {
            self.withdrawn.remove(&node);
            self.source()?
        } else {
            self.withdrawn.insert(node);
            let mut text = self.table.toml()?;
            for (family, other) in [(Family::V4, "203.0.113.99"), (Family::V6, "2001:db8::99")] {
                text = text.replace(&vip(family).to_string(), other);
            }
            format!("[healthchecks]\ngue = 19523\n\n{text}")
        };
        self.replace_source(node, &source)?;
        let checker =
            self.checkers.get_mut(&node).context("a director without a health checker")?;
        checker.process()?.signal(Signal::SIGHUP)?;
        self.settle()
    }

    /// Kills a director's health checker and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn restart_checker(&mut self, node: Node) -> Result<()> {
        let checker =
            self.checkers.get_mut(&node).context("a director without a health checker")?;
        checker.kill()?;
        interrupt::sleep(Duration::from_millis(500))?;
        checker.start(&self.lab)
    }

    /// Ends a director's health checker.
    pub(crate) fn end_checker(&mut self, node: Node) {
        self.checkers.remove(&node);
    }

    /// Waits until a backend's kernel holds no connection of the VIPs, as reported by `glb-redirect
    /// wait --until-drained`, and records that in the rule. Without the daemon it does not wait.
    ///
    /// # Errors
    /// When it takes longer than `limit`.
    pub(crate) fn wait_until_drained(&mut self, node: Node, limit: Duration) -> Result<()> {
        if let Some(redirect) = self.redirects.get(&node) {
            let mut wait = redirect.command(&self.lab, "wait")?;
            wait.args(["--until-drained", "--timeout", &format!("{}s", limit.as_secs())]);
            let begun = Instant::now();
            let done = command::finish(&mut wait)?;
            if !done.status.success() {
                bail!(
                    "{node} is not drained after {:.0?}: {}",
                    begun.elapsed(),
                    String::from_utf8_lossy(&done.stderr).trim()
                );
            }
            self.rule.drained(node.address(self.lab.plan().tunnel));
        }
        Ok(())
    }

    /// Destroys the sockets of an isolated machine, as a power loss would.
    ///
    /// # Errors
    /// When `ss` is missing.
    pub(crate) fn forget_sockets(&self, node: Node) -> Result<()> {
        for kind in ["-tK", "-tKa"] {
            let mut ss = self.lab.netns(node)?.command("ss");
            command::finish(ss.arg(kind))?;
        }
        Ok(())
    }

    /// Returns the packets that each backend forwarded to the next hop.
    ///
    /// # Errors
    /// When counters cannot be read.
    pub(crate) fn second_chances(&self) -> Result<BTreeMap<Node, u64>> {
        let of = |(node, daemon): (&Node, &Daemon)| {
            Ok((*node, daemon.redirect_counters(&self.lab)?.forwarded()))
        };
        self.redirects.iter().map(of).collect()
    }

    /// Returns the TCP segments that backends and clients retransmitted.
    ///
    /// # Errors
    /// When a kernel's counters cannot be read.
    pub(crate) fn retransmits(&self) -> Result<u64> {
        let mut sum = 0;
        for node in self.backends().into_iter().chain([Node::Client]) {
            sum += kernel::tcp_counter(self.lab.netns(node)?, "RetransSegs")?;
        }
        Ok(sum)
    }
}

fn status(lab: &Lab, director: &Daemon) -> Result<serde_json::Value> {
    let done = command::finish(director.command(lab, "status")?.args(["-o", "json"]))?;
    // Exit status 4 reports a problem, which an unhealthy backend is.
    serde_json::from_slice(&done.stdout).context("glb-director status")
}
