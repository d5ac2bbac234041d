//! A `git clone` through the load balancer, observed while it runs.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    kernel::{self, ESTABLISHED},
    plan::{Family, Node, client, vip},
    process::Process,
    repository,
    topology::Lab,
};

/// The clone gives up after this many seconds without a byte.
const STALL_LIMIT: u32 = 10;

/// A running or finished clone. It uses client address 0, which no other client uses.
#[derive(Debug)]
pub struct GitClone {
    process: Process,
    family: Family,
    url: String,
    target: PathBuf,
    started: Instant,
    finished: Option<(ExitStatus, Duration)>,
}

impl GitClone {
    /// Starts `git clone http://VIP/git/NAME` into `lab.scratch()/target`.
    ///
    /// # Errors
    /// When git cannot be started.
    pub fn start(lab: &Lab, family: Family, name: &str, target: &str) -> Result<Self> {
        let url = format!("http://{}/git/{name}", SocketAddr::new(vip(family), 80))
            .replacen(":80/", "/", 1);
        let target = lab.scratch().join(target);
        let mut command = repository::isolated(lab.netns(Node::Client)?.command("git"));
        command.args(["-c", "http.lowSpeedLimit=1", "-c"]);
        command.arg(format!("http.lowSpeedTime={STALL_LIMIT}"));
        command.args(["clone", "--progress", &url]).arg(&target);
        let process = lab.spawn(Node::Client, "git-clone", &mut command)?;
        Ok(Self { process, family, url, target, started: Instant::now(), finished: None })
    }

    /// Returns the URL of the repository.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the target folder.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns the source address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        client(self.family, 0)
    }

    /// Returns the progress of the transfer, 0 to 100.
    ///
    /// # Errors
    /// When git's output cannot be read.
    pub fn percent(&self) -> Result<u8> {
        let log = self.process.log()?;
        let found = log.rsplit(['\r', '\n']).find_map(|line| {
            let (percent, _) = line.strip_prefix("Receiving objects:")?.split_once('%')?;
            percent.trim().parse().ok()
        });
        Ok(found.unwrap_or(0))
    }

    /// Returns the exit status and the duration if the clone has ended.
    ///
    /// # Errors
    /// When the process cannot be queried.
    pub fn finished(&mut self) -> Result<Option<(ExitStatus, Duration)>> {
        if self.finished.is_none()
            && let Some(status) = self.process.ended()?
        {
            self.finished = Some((status, self.started.elapsed()));
        }
        Ok(self.finished)
    }

    /// Returns git's error messages.
    ///
    /// # Errors
    /// When git's output cannot be read.
    pub fn complaints(&self) -> Result<Vec<String>> {
        let log = self.process.log()?;
        let lines = log.split(['\r', '\n']).map(str::trim);
        let bad = |line: &&str| line.starts_with("error:") || line.starts_with("fatal:");
        Ok(lines.filter(bad).map(str::to_owned).collect())
    }

    /// Finds the backends that hold a connection of this clone, with the clone's source port.
    ///
    /// # Errors
    /// When a kernel's socket table cannot be read.
    pub fn served_by(&self, lab: &Lab) -> Result<Vec<(Node, u16)>> {
        let mut found = Vec::new();
        for node in lab.plan().backend_nodes() {
            let sockets = kernel::tcp_sockets(lab.netns(node)?)?;
            let ours = sockets.iter().filter(|socket| {
                socket.state == ESTABLISHED
                    && socket.local.ip() == vip(self.family)
                    && socket.remote.ip() == self.address()
            });
            // The kernel lists sockets in pieces while they come and go, so one can appear twice.
            for here in ours.map(|socket| (node, socket.remote.port())) {
                if !found.contains(&here) {
                    found.push(here);
                }
            }
        }
        Ok(found)
    }
}
