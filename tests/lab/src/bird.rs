//! BIRD on the router and on the directors: configuration files and `birdc` output.

use std::{fmt::Write as _, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    command,
    netns::Netns,
    plan::{AnnounceMethod, Family, Node, Plan, vip},
    topology::Lab,
};

/// The configuration of the BIRD on `node`.
pub(crate) fn config(plan: &Plan, node: Node) -> Result<String> {
    match plan.method {
        _ if node == Node::Router => router(plan),
        AnnounceMethod::Tun => Ok(director(node, learned_routes())),
        _ => Ok(director(node, switched_routes())),
    }
}

/// docs/fleet.md explains both configurations; only the addresses differ.
fn router(plan: &Plan) -> Result<String> {
    let (vip4, vip6) = (vip(Family::V4), vip(Family::V6));
    let mut config = format!(
        "log stderr all;
router id {id};
# After a crash of this BIRD, one that is started with -R leaves the kernel's routes until the sessions
# are back, or for so many seconds.
graceful restart wait 10;

protocol device {{ }}
protocol bfd {{
  interface \"director*\" {{ interval 50 ms; multiplier 3; }};
}}
protocol kernel {{
  ipv4 {{ export where source = RTS_BGP; }};
  merge paths on limit 16;
  graceful restart on;
}}
protocol kernel {{
  ipv6 {{ export where source = RTS_BGP; }};
  merge paths on limit 16;
  graceful restart on;
}}
template bgp director {{
  local as 65001;
  bfd on;
  graceful restart on;
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
  ipv4 {{ import where net = {vip4}/32; export none; }};
  ipv6 {{ import where net = {vip6}/128; export none; }};
}}
",
        id = Node::Router.v4(),
    );
    for node in plan.director_nodes() {
        writeln!(
            config,
            "protocol bgp {node} from director {{ neighbor {} as 65010; }}",
            node.v4()
        )?;
    }
    Ok(config)
}

/// The BIRD configuration of a director with the given routes and export filter.
fn director(node: Node, (routes, exported): (String, &str)) -> String {
    format!(
        "log stderr all;
router id {id};

protocol device {{ }}
protocol bfd {{
  interface \"eth0\" {{ interval 50 ms; multiplier 3; }};
}}

{routes}
protocol bgp upstream {{
  local {id} as 65010;
  neighbor {router} as 65001;
  bfd on;
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 2;
  ipv4 {{ import none; export {exported}; next hop self; }};
  ipv6 {{ import none; export {exported}; next hop address {id6}; }};
}}
",
        id = node.v4(),
        id6 = node.v6(),
        router = Node::Router.v4(),
    )
}

fn switched_routes() -> (String, &'static str) {
    let (vip4, vip6) = (vip(Family::V4), vip(Family::V6));
    let routes = format!(
        "# The director's daemon enables and disables these. There is no `protocol kernel`: nothing of it
# reaches this machine's own routes.
protocol static vip4 {{
  disabled;
  ipv4 {{ preference 200; }};
  route {vip4}/32 blackhole;
}}
protocol static vip6 {{
  disabled;
  ipv6 {{ preference 200; }};
  route {vip6}/128 blackhole;
}}

# The same, less wanted. What stands above is preferred while both are enabled.
protocol static vip4_drain {{
  disabled;
  ipv4 {{ preference 190; }};
  route {vip4}/32 blackhole {{ bgp_med = 100; }};
}}
protocol static vip6_drain {{
  disabled;
  ipv6 {{ preference 190; }};
  route {vip6}/128 blackhole {{ bgp_med = 100; }};
}}
"
    );
    (routes, "where source = RTS_STATIC")
}

/// Routes that BIRD learns from the TUN interface of the daemon.
fn learned_routes() -> (String, &'static str) {
    let (vip4, vip6) = (vip(Family::V4), vip(Family::V6));
    let routes = format!(
        "# The director's daemon sets and removes these routes, and the kernel when it is dead.
protocol kernel {{
  learn;
  ipv4 {{ import where net = {vip4}/32; export none; }};
}}
protocol kernel {{
  learn;
  ipv6 {{ import where net = {vip6}/128; export none; }};
}}

filter learned {{
  if source != RTS_INHERIT then reject;
  bgp_med = krt_metric;
  accept;
}}"
    );
    (routes, "filter learned")
}

/// The command that starts BIRD on `node`.
pub(crate) fn command(lab: &Lab, node: Node, config: &Path) -> Result<Command> {
    command::require(&[("bird", "bird2"), ("birdc", "bird2")])?;
    let folder = lab.folder(node)?;
    let mut bird = lab.netns(node)?.command("bird");
    bird.arg("-f").arg("-c").arg(config).arg("-s").arg(folder.join("bird.ctl"));
    bird.arg("-P").arg(folder.join("bird.pid"));
    // A BIRD that ended cleanly removed its socket and left no routes to recover.
    if node == Node::Router && folder.join("bird.ctl").exists() {
        bird.arg("-R");
    }
    Ok(bird)
}

/// Runs a `birdc` command against the BIRD on `node` and returns the output.
///
/// # Errors
/// When it does not run.
pub fn ask(lab: &Lab, node: Node, words: &[&str]) -> Result<String> {
    let mut birdc = lab.netns(node)?.command("birdc");
    birdc.arg("-s").arg(lab.folder(node)?.join("bird.ctl"));
    command::output(birdc.args(words)).with_context(|| format!("BIRD on {node}"))
}

/// Returns whether BIRD on `node` answers.
pub(crate) fn is_ready(lab: &Lab, node: Node) -> Result<bool> {
    Ok(lab.folder(node)?.join("bird.ctl").exists() && ask(lab, node, &["show", "status"]).is_ok())
}

/// A BGP session of the router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The peer: the director at the other end.
    pub director: String,
    /// The session state as BIRD prints it, for example `Established`.
    pub state: String,
}

impl Session {
    /// Returns whether the session is established.
    pub(crate) fn is_up(&self) -> bool {
        self.state == "Established"
    }
}

/// Reads the router's sessions. The list is empty if the router's BIRD does not run.
///
/// # Errors
/// When birdc cannot be run.
pub fn sessions(lab: &Lab) -> Result<Vec<Session>> {
    if !is_ready(lab, Node::Router)? {
        return Ok(Vec::new());
    }
    Ok(parse_sessions(&ask(lab, Node::Router, &["show", "protocols"])?))
}

fn parse_sessions(text: &str) -> Vec<Session> {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|words| words.get(1) == Some(&"BGP"))
        .map(|words| {
            // BIRD prints the time, with a date in front if the change was before today.
            let info = words.get(4..).unwrap_or_default().iter();
            let info = info.skip_while(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            let info = info.copied().collect::<Vec<_>>().join(" ");
            let up_or_down = words.get(3).copied().unwrap_or_default();
            Session {
                director: words[0].to_owned(),
                state: if info.is_empty() { up_or_down.to_owned() } else { info },
            }
        })
        .collect()
}

/// Reads the next hops of a VIP from the router's kernel: the addresses that packets go to.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn next_hops(router: &Netns, address: IpAddr) -> Result<Vec<IpAddr>> {
    let mut ip = router.command("ip");
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    ip.args([family, "-json", "route", "show", &address.to_string()]);
    let text = command::output(&mut ip)?;
    let routes: Vec<Route> = serde_json::from_str(&text).with_context(|| text.clone())?;
    let mut hops: Vec<_> = routes
        .into_iter()
        .flat_map(|route| {
            route.nexthops.into_iter().chain([Hop { gateway: route.gateway, flags: route.flags }])
        })
        .filter(|hop| !hop.flags.iter().any(|flag| flag == "dead" || flag == "linkdown"))
        .filter_map(|hop| hop.gateway)
        .collect();
    hops.sort_unstable();
    Ok(hops)
}

#[derive(serde::Deserialize)]
struct Route {
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    nexthops: Vec<Hop>,
}

#[derive(serde::Deserialize)]
struct Hop {
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    flags: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn birdc_sessions_are_parsed() {
        let text = "BIRD 2.0.12 ready.\n\
                    Name       Proto      Table      State  Since         Info\n\
                    device1    Device     ---        up     12:00:00.000\n\
                    director1  BGP        ---        up     12:00:00.000  Established\n\
                    director2  BGP        ---        start  2026-01-01 12:00:00  Active        Socket: Connection closed\n";
        let sessions = parse_sessions(text);
        let states: Vec<_> =
            sessions.iter().map(|s| (s.director.as_str(), s.state.as_str())).collect();
        assert_eq!(
            states,
            [("director1", "Established"), ("director2", "Active Socket: Connection closed")]
        );
    }
}
