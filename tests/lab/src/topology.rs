//! The lab itself: a client with many addresses, a router, and a data centre on one segment.
//!
//! ```text
//! client ── router ══╤══ director1     ══ is a bridge in the router's namespace whose ports
//!                    ├── backend1         carry XDP as a real switch's would
//!                    └── backend2
//! ```

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
    command,
    guard::{self, Folders, Keep, Lock},
    link,
    netns::{self, Netns, OwnedNetns},
    plan::{Family, Node, Plan, client, vip},
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
    /// Last, so that the name is free only when everything is gone.
    _lock: Lock,
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
        let lab = Self { plan, nodes, folders, keep, _lock: lock };
        lab.settings()?;
        lab.wire()?;
        lab.carry_xdp()?;
        lab.throttle()?;
        lab.route_vips_to(&lab.plan.director_nodes().collect::<Vec<_>>())?;
        Ok(lab)
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
        Process::spawn(&format!("{name} on {node}"), command, log, &self.keep)
    }

    /// The lab and all its processes stay when their handles are dropped, also when this process
    /// ends; [`down`] removes them.
    pub fn keep(&self) {
        self.keep.set();
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

    fn settings(&self) -> Result<()> {
        for (node, owned) in &self.nodes {
            // The values that a new namespace starts with depend on the machine.
            let mut settings = vec![
                ("net.ipv4.conf.all.rp_filter", "0"),
                ("net.ipv4.conf.default.rp_filter", "0"),
                ("net.ipv6.conf.all.disable_ipv6", "0"),
                ("net.ipv6.conf.default.disable_ipv6", "0"),
                ("net.ipv6.conf.default.accept_dad", "0"),
                ("net.ipv6.conf.default.accept_ra", "0"),
                ("net.ipv6.conf.default.router_solicitations", "0"),
            ];
            settings.extend(match node {
                Node::Client => vec![
                    // Any address of the client ranges can be bound (AnyIP).
                    ("net.ipv6.ip_nonlocal_bind", "1"),
                    // Bounds what stands in the throttled queue, so that it never overflows:
                    // a retransmit then tells of the load balancer, not of the queue.
                    ("net.ipv4.tcp_rmem", "4096 131072 262144"),
                ],
                Node::Router => vec![
                    ("net.ipv4.ip_forward", "1"),
                    ("net.ipv6.conf.all.forwarding", "1"),
                    ("net.ipv4.conf.all.send_redirects", "0"),
                    ("net.ipv4.conf.default.send_redirects", "0"),
                    ("net.ipv4.fib_multipath_hash_policy", "1"),
                    ("net.ipv6.fib_multipath_hash_policy", "1"),
                ],
                Node::Director(_) => vec![("net.ipv4.ip_forward", "0")],
                Node::Backend(_) => vec![
                    ("net.ipv4.ip_forward", "0"),
                    ("net.ipv4.conf.all.arp_ignore", "1"),
                    ("net.ipv4.conf.all.arp_announce", "2"),
                    // No tail loss probes: the throttled link's queue provokes them although
                    // nothing was lost, and a retransmit here should tell of a loss.
                    ("net.ipv4.tcp_early_retrans", "0"),
                ],
            });
            owned.netns().sysctl(&settings)?;
        }
        Ok(())
    }

    /// Links, addresses and routes.
    fn wire(&self) -> Result<()> {
        let mtu = self.plan.data_centre_mtu;
        let mut router = format!(
            "link add {INTERFACE} netns {client} type veth peer name client\n\
             address add 10.0.1.1/24 dev client\n\
             address add 2001:db8:1::1/64 dev client\n\
             link set client up\n\
             link add dc type bridge\n\
             link set dc mtu {mtu} up\n\
             address add {v4}/24 dc\n\
             address add {v6}/64 dc\n",
            client = self.plan.namespace(Node::Client),
            v4 = Node::Router.v4(),
            v6 = Node::Router.v6(),
        )
        .replace(" dc\n", " dev dc\n");
        for node in self.machines() {
            writeln!(
                router,
                "link add {INTERFACE} netns {} mtu {mtu} type veth \
                 peer name {node} mtu {mtu}\n\
                 link set {node} master dc up",
                self.plan.namespace(node)
            )?;
        }
        let (any4, any6) = ("198.18.0.0/16", "2001:db8:c::/64");
        writeln!(router, "route add {any4} via 10.0.1.2\nroute add {any6} via 2001:db8:1::2")?;
        self.netns(Node::Router)?.ip(&router)?;

        let (own4, own6) = (client(Family::V4, 0), client(Family::V6, 0));
        self.netns(Node::Client)?.ip(&format!(
            "address add 10.0.1.2/24 dev {INTERFACE}\n\
             address add 2001:db8:1::2/64 dev {INTERFACE}\n\
             address add {own4}/32 dev lo\n\
             address add {own6}/128 dev lo nodad\n\
             route add local {any4} dev lo\n\
             route add local {any6} dev lo\n\
             link set {INTERFACE} up\n\
             route add default via 10.0.1.1 src {own4}\n\
             route add default via 2001:db8:1::1 src {own6}\n"
        ))?;
        for node in self.machines() {
            self.netns(node)?.ip(&format!(
                "address add {}/24 dev {INTERFACE}\n\
                 address add {}/64 dev {INTERFACE}\n\
                 link set {INTERFACE} up\n\
                 route add default via {}\n\
                 route add default via {}\n",
                node.v4(),
                node.v6(),
                Node::Router.v4(),
                Node::Router.v6(),
            ))?;
        }
        Ok(())
    }

    /// Makes the segment's ports carry `XDP_TX` of the machines behind them.
    fn carry_xdp(&self) -> Result<()> {
        let pins = self.bpf().join("ports");
        fs::create_dir_all(&pins)?;
        self.netns(Node::Router)?.run(|| {
            for node in self.machines() {
                let port = node.to_string();
                link::tx_checksums_off(&port)?;
                link::attach_pass(&port, &pins.join(&port))?;
            }
            Ok(())
        })
    }

    fn throttle(&self) -> Result<()> {
        let Some(mbit) = self.plan.client_mbit else { return Ok(()) };
        let mut tc = self.netns(Node::Router)?.command("tc");
        let rate = format!("{mbit}mbit");
        tc.args(["qdisc", "add", "dev", "client", "root", "tbf", "rate", &rate]);
        command::run(tc.args(["burst", "128kb", "limit", "8mb"]))
    }

    fn machines(&self) -> impl Iterator<Item = Node> + use<> {
        self.plan.director_nodes().chain(self.plan.backend_nodes())
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
    let (run, scratch) = guard::paths(name);
    guard::remove(&run)?;
    guard::remove(&scratch)
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
