//! The status of a fleet.

use std::{collections::BTreeMap, fmt, fmt::Write as _, fs, net::IpAddr};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::Fleet;
use crate::{
    bird::{self, Session},
    command,
    plan::{Family, Node, Routing, vip},
    table::{State, TableFile},
};

/// The status of a lab at one moment. Fields are added, never renamed.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// Its machines with their daemons.
    pub nodes: Vec<NodeStatus>,
    /// The router's BGP sessions.
    pub sessions: Vec<Session>,
    /// The directors that receive each VIP's packets from the router's kernel.
    pub vips: Vec<VipStatus>,
    /// The state of each director.
    pub directors: Vec<DirectorStatus>,
    /// The backends of the lab's table.
    pub backends: Vec<BackendStatus>,
}

/// A machine.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// The name of the machine.
    pub name: String,
    /// The network namespace, as `ip netns` shows it.
    pub namespace: String,
    /// Whether the link is up.
    pub up: bool,
    /// The daemons that should run on the machine.
    pub daemons: Vec<DaemonStatus>,
}

/// A daemon.
#[derive(Clone, Debug, Serialize)]
pub struct DaemonStatus {
    /// The name, as `lab kill NODE/NAME` takes it.
    pub name: String,
    /// The process id, if the daemon runs.
    pub pid: Option<u32>,
}

/// A VIP.
#[derive(Clone, Debug, Serialize)]
pub struct VipStatus {
    /// The address.
    pub vip: IpAddr,
    /// The directors that receive the VIP's packets.
    pub routed_to: Vec<String>,
}

/// A director's daemon.
#[derive(Clone, Debug, Serialize)]
pub struct DirectorStatus {
    /// The machine of the director.
    pub name: String,
    /// The generation in force.
    pub generation: Option<u64>,
    /// The digest of the settings that must be equal on all directors.
    pub membership_digest: Option<String>,
    /// The digest of states and health.
    pub order_digest: Option<String>,
    /// Each announcement's state: `announced`, `low_preference`, `withdrawn` or `unknown`.
    pub announcements: BTreeMap<String, String>,
    /// The stage of the director's own drain, if any.
    pub drain: Option<String>,
    /// The problems that the director reports.
    pub problems: Vec<String>,
    /// The backends that the director's table calls unhealthy.
    pub unhealthy: Vec<String>,
}

/// A backend.
#[derive(Clone, Debug, Serialize)]
pub struct BackendStatus {
    /// The machine of the backend.
    pub name: String,
    /// The address in the table.
    pub address: IpAddr,
    /// Its state.
    pub state: State,
}

impl Fleet {
    /// Reads the status of the fleet.
    ///
    /// # Errors
    /// When the lab itself cannot be read. A daemon that does not answer is not an error.
    pub fn status(&self) -> Result<Status> {
        let plan = self.lab.plan();
        let mut nodes = Vec::new();
        for node in plan.nodes() {
            let daemons = self.daemons().filter(|daemon| daemon.node() == node);
            let daemons = daemons.map(|daemon| DaemonStatus {
                name: daemon.program().name().to_owned(),
                pid: daemon.id().filter(|_| daemon.runs()),
            });
            nodes.push(NodeStatus {
                name: node.to_string(),
                namespace: plan.namespace(node),
                up: self.lab.is_connected(node)?,
                daemons: daemons.collect(),
            });
        }
        let mut vips = Vec::new();
        for family in [Family::V4, Family::V6] {
            let routed_to = self.routed_to(family)?.iter().map(Node::to_string).collect();
            vips.push(VipStatus { vip: vip(family), routed_to });
        }
        let sessions = match plan.routing {
            Routing::Static => Vec::new(),
            Routing::Bgp => bird::sessions(&self.lab)?,
        };
        let backends = self.table.backends();
        let backends = backends.map(|(address, state, _)| BackendStatus {
            name: self.backend_name(address),
            address,
            state,
        });
        Ok(Status {
            name: plan.name.clone(),
            nodes,
            sessions,
            vips,
            directors: self.director_states()?,
            backends: backends.collect(),
        })
    }

    fn backend_name(&self, address: IpAddr) -> String {
        let mut nodes = self.lab.plan().backend_nodes();
        let node = nodes.find(|node| [node.v4().into(), node.v6().into()].contains(&address));
        node.map_or_else(|| address.to_string(), |node| node.to_string())
    }

    pub(super) fn director_states(&self) -> Result<Vec<DirectorStatus>> {
        let mut states = Vec::new();
        for director in &self.directors {
            let table = director.config().with_file_name("table.toml");
            let table = fs::read_to_string(&table).with_context(|| table.display().to_string())?;
            // A test can have written an invalid table.
            let unhealthy = TableFile::parse(&table).map_or_else(
                |_| Vec::new(),
                |table| {
                    let ill = table.backends().filter(|(_, _, healthy)| !healthy);
                    ill.map(|(address, ..)| self.backend_name(address)).collect()
                },
            );
            let mut command = director.command(&self.lab, "status")?;
            // The exit status reports problems too, so it is not an error here.
            let answer = command::finish(command.args(["-o", "json"]))?.stdout;
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let text = |key: &str| answer[key].as_str().map(str::to_owned);
            let problems = answer["problems"].as_array().into_iter().flatten();
            let problems = problems.filter_map(|problem| problem["message"].as_str());
            let mut problems: Vec<_> = problems.map(str::to_owned).collect();
            let announcements =
                answer["announce"]["announcements"].as_array().into_iter().flatten();
            let announcements = announcements.map(|one| {
                let level = one["state"].as_str().unwrap_or("unknown");
                (one["name"].as_str().unwrap_or_default().to_owned(), level.to_owned())
            });
            let announcements = announcements.collect();
            let drain = answer["announce"]["drain"]["stage"].as_str().map(str::to_owned);
            if answer.is_null() {
                problems.push("its daemon does not answer".to_owned());
            }
            states.push(DirectorStatus {
                name: director.node().to_string(),
                generation: answer["generation"].as_u64(),
                membership_digest: text("membership_digest"),
                order_digest: text("order_digest"),
                announcements,
                drain,
                problems,
                unhealthy,
            });
        }
        Ok(states)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab {}", self.name)?;
        for node in &self.nodes {
            write!(f, "  {:<10} {:<5}", node.name, if node.up { "up" } else { "DEAD" })?;
            for daemon in &node.daemons {
                match daemon.pid {
                    Some(pid) => write!(f, " {} ({pid})", daemon.name)?,
                    None => write!(f, " {} DEAD", daemon.name)?,
                }
            }
            writeln!(f)?;
        }
        writeln!(f, "BGP sessions of the router")?;
        for session in &self.sessions {
            writeln!(f, "  {:<10} {}", session.director, session.state)?;
        }
        if self.sessions.is_empty() {
            writeln!(f, "  none")?;
        }
        writeln!(f, "routes of the router")?;
        for vip in &self.vips {
            let to = vip.routed_to.join(", ");
            let to = if to.is_empty() { "NOBODY".to_owned() } else { to };
            writeln!(f, "  {:<16} {to}", vip.vip)?;
        }
        writeln!(f, "directors: tables in force, and what is announced")?;
        for director in &self.directors {
            let mut line = format!("  {:<10}", director.name);
            if let Some(generation) = director.generation {
                write!(line, " generation {generation}")?;
            }
            for (what, digest) in
                [("members", &director.membership_digest), ("order", &director.order_digest)]
            {
                if let Some(digest) = digest {
                    write!(line, ", {what} {:.12}", digest)?;
                }
            }
            for (name, level) in &director.announcements {
                write!(line, ", {name} {}", level.replace('_', " "))?;
            }
            match director.drain.as_deref() {
                None => {}
                Some("drained") => write!(line, ", DRAINED")?,
                Some(stage) => write!(line, ", BEING DRAINED ({})", stage.replace('_', " "))?,
            }
            if !director.unhealthy.is_empty() {
                write!(line, ", UNHEALTHY {}", director.unhealthy.join(" "))?;
            }
            for problem in &director.problems {
                write!(line, ", PROBLEM: {problem}")?;
            }
            writeln!(f, "{line}")?;
        }
        writeln!(f, "backends in the table")?;
        for backend in &self.backends {
            let state = format!("{:?}", backend.state).to_lowercase();
            writeln!(f, "  {:<10} {:<16} {state}", backend.name, backend.address)?;
        }
        Ok(())
    }
}
