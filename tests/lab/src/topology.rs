//! The lab itself: a client with many addresses, a router, and a data centre on one segment.
//!
//! ```text
//! client ── router ══╤══ director1     ══ is a bridge in the router's namespace whose ports
//!                    ├── backend1         carry XDP as a real switch's would
//!                    └── backend2
//! ```
//!
//! With BGP each director has its own router port instead ([`crate::Routing`]).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::{
    cleanup::{self, Folders, KeepFlag, Lock},
    command, link,
    netns::{self, Netns, OwnedNetns},
    plan::{Family, Node, Plan, Routing, vip},
    process::Process,
};

/// The interface of every node that faces the other nodes.
pub const INTERFACE: &str = "eth0";

/// A running lab. Dropping it removes the lab, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    plan: Plan,
    nodes: BTreeMap<Node, OwnedNetns>,
    folders: Folders,
    keep: KeepFlag,
    /// Dropped last, so that the name is free only when everything is removed. None for a lab that
    /// another process started.
    _lock: Option<Lock>,
}

impl Lab {
    /// Starts the lab. Leftovers of a killed lab with the same name are removed first.
    ///
    /// # Errors
    /// When not root, when a program is missing, when a lab of this name is in use, or when the
    /// kernel rejects a step. Nothing stays behind then.
    pub fn up(plan: Plan) -> Result<Self> {
        plan.check()?;
        require_root()?;
        command::require(&[("ip", "iproute2"), ("tc", "iproute2")])?;
        let lock = Lock::name(&plan.name)?;
        remove_leftovers(&plan.name)?;

        let keep = KeepFlag::default();
        let folders = Folders::create(&plan.name, &keep)?;
        let nodes = plan
            .nodes()
            .map(|node| Ok((node, OwnedNetns::create(&plan.namespace(node), &keep)?)))
            .collect::<Result<_>>()?;
        let lab = Self { plan, nodes, folders, keep, _lock: Some(lock) };
        lab.wire()?;
        if lab.plan.routing == Routing::Static {
            lab.route_vips_to(&lab.plan.director_nodes().collect::<Vec<_>>())?;
        }
        Ok(lab)
    }

    /// Opens a lab that another process started from `plan`. It keeps running on drop.
    pub(crate) fn open(plan: Plan) -> Result<Self> {
        let keep = KeepFlag::default();
        keep.set();
        let folders = Folders::open(&plan.name, &keep);
        let nodes = plan
            .nodes()
            .map(|node| Ok((node, OwnedNetns::open(&plan.namespace(node), &keep)?)))
            .collect::<Result<_>>()?;
        Ok(Self { plan, nodes, folders, keep, _lock: None })
    }

    /// Replaces a machine by a new one with the same name and addresses and no processes, as after
    /// a reboot.
    pub(crate) fn renew(&mut self, node: Node) -> Result<()> {
        // The link goes first, because the kernel destroys a removed namespace with a delay.
        self.netns(Node::Router)?.ip(&format!("link delete {node}\n"))?;
        self.netns(node)?.end_processes()?;
        // Dropping the old namespace frees its name, unless the lab is kept.
        self.nodes.remove(&node);
        if netns::names()?.contains(&self.plan.namespace(node)) {
            netns::remove(&self.plan.namespace(node))?;
        }
        cleanup::remove_all(&self.bpf().join(node.to_string()))?;
        let new = OwnedNetns::create(&self.plan.namespace(node), &self.keep)?;
        self.nodes.insert(node, new);
        self.wire_machine(node)
    }

    /// Returns the plan of the lab.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the namespace of a node.
    ///
    /// # Errors
    /// When the plan does not have the node.
    pub fn netns(&self, node: Node) -> Result<&Netns> {
        let owned = self.nodes.get(&node);
        owned.map(OwnedNetns::netns).with_context(|| format!("this lab has no {node}"))
    }

    /// Returns the folder of a node's configuration and sockets, and creates it if missing.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn folder(&self, node: Node) -> Result<PathBuf> {
        let folder = self.folders.run().join(node.to_string());
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Returns a folder for large files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folders.scratch()
    }

    /// Returns the lab's private bpffs.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        self.folders.bpf()
    }

    /// Returns the lab's run folder, with configurations, logs and sockets.
    #[must_use]
    pub fn run_folder(&self) -> &Path {
        self.folders.run()
    }

    /// Starts `command`, built by [`Netns::command`]. Its output goes to `log/NODE-NAME.log`.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn spawn(&self, node: Node, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.folders.run().join("log").join(format!("{node}-{name}.log"));
        let record = self.record(node, name);
        Process::spawn(&format!("{name} on {node}"), command, log, &record, &self.keep)
    }

    /// Returns the process that [`Lab::spawn`] last started under this name, if it still runs.
    pub(crate) fn running(&self, node: Node, name: &str) -> Option<Process> {
        let log = self.folders.run().join("log").join(format!("{node}-{name}.log"));
        Process::adopt(&format!("{name} on {node}"), &self.record(node, name), log)
    }

    fn record(&self, node: Node, name: &str) -> PathBuf {
        self.folders.run().join("pid").join(format!("{node}-{name}"))
    }

    /// Keeps the lab and its processes when handles are dropped and when this process ends.
    /// [`down`] removes them.
    pub fn keep(&self) {
        self.keep.set();
    }

    /// Returns whether a director's or backend's interface is up. Other nodes' interfaces are
    /// always up.
    ///
    /// # Errors
    /// When the machine does not exist.
    pub fn is_connected(&self, node: Node) -> Result<bool> {
        let netns = self.netns(node)?;
        if !matches!(node, Node::Director(_) | Node::Backend(_)) {
            return Ok(true);
        }
        netns.run(|| link::is_up(INTERFACE))
    }

    /// Routes the VIPs of both families to these nodes, with ECMP by flow.
    ///
    /// # Errors
    /// When the router rejects the routes.
    pub fn route_vips_to(&self, nodes: &[Node]) -> Result<()> {
        let mut lines = String::new();
        let (mut via4, mut via6) = (String::new(), String::new());
        for node in nodes {
            write!(via4, " nexthop via {}", node.v4())?;
            write!(via6, " nexthop via {}", node.v6())?;
        }
        writeln!(lines, "route replace {}/32{via4}", vip(Family::V4))?;
        writeln!(lines, "route replace {}/128{via6}", vip(Family::V6))?;
        self.netns(Node::Router)?.ip(&lines)
    }

    /// Adds the VIPs to a backend's loopback. `glb-redirect` does this on its own.
    ///
    /// # Errors
    /// When the kernel rejects an address.
    pub fn add_vips(&self, node: Node) -> Result<()> {
        self.netns(node)?.ip(&format!(
            "address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n",
            vip(Family::V4),
            vip(Family::V6)
        ))
    }
}

/// Removes a lab that was kept, or the leftovers of a killed lab.
///
/// # Errors
/// When not root, when the lab is in use, or when a part cannot be removed.
pub fn down(name: &str) -> Result<()> {
    Plan::new(name).check()?;
    require_root()?;
    let _lock = Lock::name(name)?;
    remove_leftovers(name)
}

fn remove_leftovers(name: &str) -> Result<()> {
    for namespace in netns::names()? {
        let node = namespace.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        if node.and_then(Node::parse).is_some() {
            netns::remove(&namespace)?;
        }
    }
    let (run, scratch) = cleanup::paths(name);
    cleanup::remove(&run)?;
    cleanup::remove(&scratch)
}

/// The lab needs these capabilities; root in a container can lack them.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

fn require_root() -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("a lab of network namespaces needs root: run the same command with sudo");
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    for (number, name) in CAPABILITIES {
        if effective.is_some_and(|bits| bits & (1 << number) == 0) {
            bail!(
                "a lab of network namespaces needs {name}, which this root lacks: run the same \
                 command outside of the container, or in a privileged one"
            );
        }
    }
    Ok(())
}
