//! The network setup of each machine in a lab: sysctls, links, addresses and routes.

use std::{fmt::Write as _, fs};

use anyhow::Result;

use crate::{
    command, link,
    plan::{Family, Node, Routing, client_of},
    topology::{INTERFACE, Lab},
};

impl Lab {
    /// Sets up every machine.
    pub(crate) fn wire(&self) -> Result<()> {
        let mtu = self.plan().data_centre_mtu;
        self.settings(Node::Router)?;
        self.netns(Node::Router)?.ip(&format!(
            "link add dc type bridge\n\
             link set dc mtu {mtu} up\n\
             address add {}/24 dev dc\n\
             address add {}/64 dev dc\n",
            Node::Router.v4(),
            Node::Router.v6(),
        ))?;
        for node in self.plan().client_nodes() {
            self.wire_client(node)?;
        }
        for node in self.plan().director_nodes().chain(self.plan().backend_nodes()) {
            self.wire_machine(node)?;
        }
        Ok(())
    }

    /// Sets up a machine of clients. Any address of its range can be bound there (AnyIP).
    fn wire_client(&self, node: Node) -> Result<()> {
        self.settings(node)?;
        let number = node.client_number().unwrap_or(1);
        let (x, namespace) = (number - 1, self.plan().namespace(node));
        let (any4, any6) = match number {
            1 => ("198.18.0.0/16".to_owned(), "2001:db8:c::/64".to_owned()),
            _ => (format!("100.{}.0.0/16", 64 + number), format!("2001:db8:c:{x}::/64")),
        };
        self.netns(Node::Router)?.ip(&format!(
            "link add {INTERFACE} netns {namespace} type veth peer name {node}\n\
             address add 10.{x}.1.1/24 dev {node}\n\
             address add 2001:db8:1:{x}::1/64 dev {node}\n\
             link set {node} up\n\
             route add {any4} via 10.{x}.1.2\n\
             route add {any6} via 2001:db8:1:{x}::2\n"
        ))?;
        let (own4, own6) = (client_of(number, Family::V4, 0), client_of(number, Family::V6, 0));
        self.netns(node)?.ip(&format!(
            "address add 10.{x}.1.2/24 dev {INTERFACE}\n\
             address add 2001:db8:1:{x}::2/64 dev {INTERFACE}\n\
             address add {own4}/32 dev lo\n\
             address add {own6}/128 dev lo nodad\n\
             route add local {any4} dev lo\n\
             route add local {any6} dev lo\n\
             link set {INTERFACE} up\n\
             route add default via 10.{x}.1.1 src {own4}\n\
             route add default via 2001:db8:1:{x}::1 src {own6}\n"
        ))?;
        let Some(mbit) = self.plan().client_mbit else { return Ok(()) };
        let mut tc = self.netns(Node::Router)?.command("tc");
        let (rate, port) = (format!("{mbit}mbit"), node.to_string());
        tc.args(["qdisc", "add", "dev", &port, "root", "tbf", "rate", &rate]);
        command::run(tc.args(["burst", "128kb", "limit", "8mb"]))
    }

    /// Sets up a director or a backend. Its router port carries `XDP_TX` of the machine behind it.
    pub(crate) fn wire_machine(&self, node: Node) -> Result<()> {
        self.settings(node)?;
        let (mtu, namespace) = (self.plan().data_centre_mtu, self.plan().namespace(node));
        let mut router = format!(
            "link add {INTERFACE} netns {namespace} mtu {mtu} type veth \
             peer name {node} mtu {mtu}\n\
             link set {node} up\n"
        );
        if self.has_own_port(node) {
            let (v4, v6) = (node.v4(), node.v6());
            write!(
                router,
                "address add {} peer {v4} dev {node}\n\
                 address add {} peer {v6} dev {node}\n\
                 route replace {v6} dev {node}\n",
                Node::Router.v4(),
                Node::Router.v6()
            )?;
        } else {
            writeln!(router, "link set {node} master dc")?;
        }
        self.netns(Node::Router)?.ip(&router)?;
        self.plug_in(node)?;

        let pins = self.bpf().join("ports");
        fs::create_dir_all(&pins)?;
        self.netns(Node::Router)?.run(|| {
            let port = node.to_string();
            let pin = pins.join(&port);
            if pin.exists() {
                // These belong to the machine that this one replaced.
                fs::remove_file(&pin)?;
            }
            link::set_offload(&port, link::Offload::TxChecksums, false)?;
            link::attach_pass(&port, &pin)
        })
    }

    /// Takes a machine's interface down. The router's port loses its carrier, as if the cable were
    /// unplugged.
    ///
    /// # Errors
    /// When the machine does not exist.
    pub fn unplug(&self, node: Node) -> Result<()> {
        self.netns(node)?.ip(&format!("link set {INTERFACE} down\n"))
    }

    /// Silently drops all packets to and from a machine, on the router's port.
    ///
    /// # Errors
    /// When nft is missing or the kernel rejects the rule.
    pub fn cut_off(&self, node: Node) -> Result<()> {
        command::require(&[("nft", "nftables")])?;
        let mut nft = self.netns(Node::Router)?.command("nft");
        let mut rules = format!("table netdev cut-{node} {{\n");
        for hook in ["ingress", "egress"] {
            let rule = format!("type filter hook {hook} device {node} priority 0; policy drop;");
            writeln!(rules, "chain {hook} {{ {rule} }}")?;
        }
        rules.push('}');
        command::run_with_input(nft.args(["-f", "-"]), &rules)
    }

    /// Reverts [`Lab::cut_off`].
    ///
    /// # Errors
    /// When the machine was not cut off.
    pub fn reconnect(&self, node: Node) -> Result<()> {
        let mut nft = self.netns(Node::Router)?.command("nft");
        command::run(nft.args(["delete", "table", "netdev", &format!("cut-{node}")]))
    }

    /// Takes a machine's interface up, with its addresses and routes.
    ///
    /// # Errors
    /// When the kernel rejects a step.
    pub fn plug_in(&self, node: Node) -> Result<()> {
        let (v4, v6) = (node.v4(), node.v6());
        let (router4, router6) = (Node::Router.v4(), Node::Router.v6());
        let own_port = self.has_own_port(node);
        let (net4, net6) = if own_port {
            (format!("{v4} peer {router4}"), format!("{v6}/128"))
        } else {
            (format!("{v4}/24"), format!("{v6}/64"))
        };
        // The routes need `onlink`, because a link that just came up is not yet a known path.
        let mut lines = format!(
            "link set {INTERFACE} up\n\
             address replace {net4} dev {INTERFACE}\n\
             address replace {net6} dev {INTERFACE}\n\
             route replace default via {router4} dev {INTERFACE} onlink\n\
             route replace default via {router6} dev {INTERFACE} onlink\n"
        );
        for other in self.plan().director_nodes() {
            if self.has_own_port(other) && !own_port {
                // The address belongs to this segment, but the machine is behind another router
                // port.
                writeln!(lines, "route replace {} via {router4}", other.v4())?;
                writeln!(lines, "route replace {} via {router6}", other.v6())?;
            }
        }
        self.netns(node)?.ip(&lines)
    }

    /// Returns whether the node has its own routed port instead of a port on the segment.
    fn has_own_port(&self, node: Node) -> bool {
        self.plan().routing == Routing::Bgp && matches!(node, Node::Director(_))
    }

    fn settings(&self, node: Node) -> Result<()> {
        // The default values of a new namespace depend on the machine.
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
            Node::Client | Node::OtherClient(_) => vec![
                ("net.ipv6.ip_nonlocal_bind", "1"),
                // This bounds the amount in the throttled queue, so that the queue never overflows
                // and a retransmission is caused by the load balancer.
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
                // Tail loss probes are off: the queue of the throttled link triggers them without a
                // loss, and a retransmission here should mean a loss.
                ("net.ipv4.tcp_early_retrans", "0"),
            ],
        });
        self.netns(node)?.sysctl(&settings)
    }
}
