//! The BGP daemons of a director, and the announcement configuration that matches them.

use std::path::Path;

use anyhow::Result;

use crate::{
    daemons::Program,
    exabgp,
    plan::{AnnounceMethod, Family, Node, Plan, vip},
    topology::Lab,
};

/// The TUN interface of a director's daemon.
pub(crate) const TUN: &str = "glb-vip";

/// The programs of a node, in start order.
pub(crate) const fn programs(plan: &Plan, node: Node) -> &'static [Program] {
    match (node, plan.method) {
        (Node::Router, _) | (_, AnnounceMethod::Bird | AnnounceMethod::Tun) => &[Program::Bird],
        // bgpd and bfdd look for zebra once and retry only after ten seconds, so zebra starts
        // first.
        (_, AnnounceMethod::Frr) => &[Program::Zebra, Program::Bfdd, Program::Bgpd],
        (_, AnnounceMethod::Exabgp) => &[Program::Exabgp],
    }
}

/// The announcement section of a director's configuration.
pub(crate) fn announcement(lab: &Lab, node: Node) -> Result<String> {
    let (vip4, vip6) = (vip(Family::V4), vip(Family::V6));
    let config = match lab.plan().method {
        AnnounceMethod::Bird => {
            "method = \"bird\"\nsocket = \"bird.ctl\"\nprotocols = [\"vip4\", \"vip6\"]\n\
                      low_preference = [\"vip4_drain\", \"vip6_drain\"]\n"
                .to_owned()
        }
        AnnounceMethod::Tun | AnnounceMethod::Frr => {
            format!("method = \"tun\"\ninterface = \"{TUN}\"\nlow_preference_metric = 500\n")
        }
        AnnounceMethod::Exabgp => {
            let hook =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/exabgp-announce");
            let pipe = lab.folder(node)?.join(exabgp::RUN).join("exabgp.in");
            format!(
                "method = \"exec\"\ncommand = [{hook:?}, \"--pipe\", {pipe:?}, \"--next-hop6\", \
                 \"{}\"]\nlow_preference = true\nrepeat = \"1s\"\n",
                node.v6()
            )
        }
    };
    Ok(format!(
        "
[[announce]]
name = \"vips\"
prefixes = [\"{vip4}/32\", \"{vip6}/128\"]
{config}
# Short, so that the lab reacts quickly.
[drain]
quiet = \"300ms\"
"
    ))
}
