//! The lab itself: a client with many addresses, a router, and a data centre on one segment.
//!
//! ```text
//! client ── router ══╤══ director1     ══ is a bridge in the router's namespace whose ports
//!                    ├── backend1         carry XDP as a real switch's would
//!                    └── backend2
//! ```
//!
//! With BGP each director has a port of the router of its own instead ([`crate::Routing`]).

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
    cleanup::{self, Folders, Keep, Lock},
    command, link,
    netns::{self, Netns, OwnedNetns},
    plan::{Family, Node, Plan, Routing, vip},
    process::Process,
};

/// Every node's interface towards the others.
pub const INTERFACE: &str = "eth0";

/// A running lab. All of it goes when this is dropped, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    plan: Plan,
    nodes: BTreeMap<Node, OwnedNetns>,
    folders: Folders,
    keep: Keep,
    /// Last, so that the name is free only when everything is gone. None of a lab that was left up.
    _lock: Option<Lock>,
}

impl Lab {
    /// Brings the lab up. What a killed lab of the same name left is removed first.
    ///
    /// # Errors
    /// When not root, when a needed program is missing, when a lab of this name is in use, or when
    /// the kernel refuses a step; nothing is left behind then.
    pub fn up(plan: Plan) -> Result<Self> {
        plan.check()?;
        require_root()?;
        command::require(&[("ip", "iproute2"), ("tc", "iproute2")])?;
        let lock = Lock::name(&plan.name)?;
        remove_leftovers(&plan.name)?;

        let keep = Keep::default();
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

    /// A lab that was left up, as `plan` made it. It stays up when this is dropped.
    pub(crate) fn open(plan: Plan) -> Result<Self> {
        let keep = Keep::default();
        keep.set();
        let folders = Folders::open(&plan.name, &keep);
        let nodes = plan
            .nodes()
            .map(|node| Ok((node, OwnedNetns::open(&plan.namespace(node), &keep)?)))
            .collect::<Result<_>>()?;
        Ok(Self { plan, nodes, folders, keep, _lock: None })
    }

    /// Replaces a machine by a new one of the same name and addresses, on which nothing runs: what a
    /// reboot leaves.
    pub(crate) fn renew(&mut self, node: Node) -> Result<()> {
        // The link first: the kernel takes its time to let go what is in a removed namespace.
        self.netns(Node::Router)?.ip(&format!("link delete {node}\n"))?;
        self.netns(node)?.end_processes()?;
        // Its name goes when it is dropped, unless the lab is kept.
        self.nodes.remove(&node);
        if netns::names()?.contains(&self.plan.namespace(node)) {
            netns::remove(&self.plan.namespace(node))?;
        }
        cleanup::remove_all(&self.bpf().join(node.to_string()))?;
        let new = OwnedNetns::create(&self.plan.namespace(node), &self.keep)?;
        self.nodes.insert(node, new);
        self.wire_machine(node)
    }

    /// What the lab is made of.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The namespace of a node.
    ///
    /// # Errors
    /// When the plan has no such node.
    pub fn netns(&self, node: Node) -> Result<&Netns> {
        let owned = self.nodes.get(&node);
        owned.map(OwnedNetns::netns).with_context(|| format!("this lab has no {node}"))
    }

    /// Where a node's configuration and sockets are; made if missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, node: Node) -> Result<PathBuf> {
        let folder = self.folders.run().join(node.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// A folder for large files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folders.scratch()
    }

    /// The lab's own bpffs.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        self.folders.bpf()
    }

    /// The lab's run folder, with configurations, logs and sockets.
    #[must_use]
    pub fn run_folder(&self) -> &Path {
        self.folders.run()
    }

    /// Starts `command`, made by [`Netns::command`]; its output goes to `log/NODE-NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, node: Node, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.folders.run().join("log").join(format!("{node}-{name}.log"));
        let record = self.record(node, name);
        Process::spawn(&format!("{name} on {node}"), command, log, &record, &self.keep)
    }

    /// What [`Lab::spawn`] started last under this name, if it still runs.
    pub(crate) fn running(&self, node: Node, name: &str) -> Option<Process> {
        let log = self.folders.run().join("log").join(format!("{node}-{name}.log"));
        Process::adopt(&format!("{name} on {node}"), &self.record(node, name), log)
    }

    fn record(&self, node: Node, name: &str) -> PathBuf {
        self.folders.run().join("pid").join(format!("{node}-{name}"))
    }

    /// The lab and all its processes stay when their handles are dropped, also when this process
    /// ends; [`down`] removes them.
    pub fn keep(&self) {
        self.keep.set();
    }

    /// Whether a director's or backend's interface is up; those of others always are.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn is_connected(&self, node: Node) -> Result<bool> {
        let netns = self.netns(node)?;
        if !matches!(node, Node::Director(_) | Node::Backend(_)) {
            return Ok(true);
        }
        netns.run(|| link::is_up(INTERFACE))
    }

    /// Routes the VIPs of both families to these nodes, spread over them by flow.
    ///
    /// # Errors
    /// When the router refuses.
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

    /// Puts the VIPs on a backend's loopback. `glb-redirect` does it by itself.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_vips(&self, node: Node) -> Result<()> {
        self.netns(node)?.ip(&format!(
            "address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n",
            vip(Family::V4),
            vip(Family::V6)
        ))
    }
}

/// Removes a lab that was kept, or what a killed one left.
///
/// # Errors
/// When not root, when the lab is in use, or when something cannot be removed.
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

/// What a lab does needs these; root in a container may lack them.
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
