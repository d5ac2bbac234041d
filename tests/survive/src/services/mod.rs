//! The services of each backend: a page and git over HTTP, the git protocol, Glance, and the
//! suite's own server. Repositories, images and Glance's database are shared, as in production, so
//! any backend serves any of them.

mod database;
mod glance;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
pub(crate) use database::Database;
use glb_lab::{
    Lab, Netns, Node, Process, WebServer, interrupt,
    kernel::{self, LISTEN},
    repository,
};

use crate::serve;

/// The repository that every backend serves and that pushes start from.
pub(crate) const REPOSITORY: &str = "big.git";

/// The git protocol's port.
pub(crate) const GIT_PORT: u16 = 9418;

/// Glance's port.
pub(crate) const GLANCE_PORT: u16 = 9292;

/// Every port that the VIPs serve.
pub(crate) const PORTS: [u16; 4] = [80, GIT_PORT, GLANCE_PORT, serve::PORT];

/// The time limit for a service to start. Glance takes seconds, and longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// One of a backend's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// nginx, with git over HTTP.
    Web,
    /// `git daemon`.
    Git,
    /// Glance.
    Glance,
    /// The suite's own server.
    Talk,
}

impl Service {
    /// Returns the port.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Web => 80,
            Self::Git => GIT_PORT,
            Self::Glance => GLANCE_PORT,
            Self::Talk => serve::PORT,
        }
    }
}

/// The services of one backend.
#[derive(Debug)]
pub(crate) struct Services {
    node: Node,
    with_glance: bool,
    web: Option<WebServer>,
    git: Option<Process>,
    glance: Option<Process>,
    talk: Option<Process>,
}

impl Services {
    /// Starts all services. [`Services::wait`] waits until they listen.
    ///
    /// # Errors
    /// When a service does not start.
    pub(crate) fn start(lab: &Lab, node: Node, with_glance: bool) -> Result<Self> {
        let mut services =
            Self { node, with_glance, web: None, git: None, glance: None, talk: None };
        services.boot(lab)?;
        Ok(services)
    }

    /// Starts the services that do not run.
    fn boot(&mut self, lab: &Lab) -> Result<()> {
        set_healthy(lab, self.node, true)?;
        for service in self.all() {
            self.start_one(lab, service)?;
        }
        Ok(())
    }

    /// Lists the services of this backend.
    pub(crate) fn all(&self) -> Vec<Service> {
        let mut all = vec![Service::Web, Service::Git, Service::Talk];
        all.extend(self.with_glance.then_some(Service::Glance));
        all
    }

    /// Starts one service without waiting.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn start_one(&mut self, lab: &Lab, service: Service) -> Result<()> {
        match service {
            Service::Web => self.web = Some(WebServer::start(lab, self.node, &repositories(lab))?),
            Service::Git => self.git = Some(git_daemon(lab, self.node)?),
            Service::Glance => self.glance = Some(glance::start(lab, self.node)?),
            Service::Talk => self.talk = Some(talk(lab, self.node)?),
        }
        Ok(())
    }

    /// Kills one service together with its connections.
    pub(crate) fn end_one(&mut self, service: Service) {
        match service {
            Service::Web => self.web = None,
            Service::Git => self.git = None,
            Service::Glance => self.glance = None,
            Service::Talk => self.talk = None,
        }
    }

    /// Waits until all running services listen.
    ///
    /// # Errors
    /// When a service has ended or takes too long.
    pub(crate) fn wait(&mut self, lab: &Lab) -> Result<()> {
        let netns = lab.netns(self.node)?;
        for service in self.all() {
            let what = format!("{service:?} on {}", self.node);
            interrupt::wait(&what, PATIENCE, || {
                let process = match service {
                    Service::Web => None,
                    Service::Git => self.git.as_mut(),
                    Service::Glance => self.glance.as_mut(),
                    Service::Talk => self.talk.as_mut(),
                };
                if let Some(process) = process
                    && let Some(status) = process.ended()?
                {
                    let log = process.log()?;
                    let tail = log.get(log.len().saturating_sub(600)..).unwrap_or(&log);
                    bail!("{what} ended with {status}: {}", tail.trim());
                }
                Ok(listens(netns, service.port())?.then_some(()))
            })?;
        }
        Ok(())
    }

    /// Forgets all services after the machine has gone down.
    pub(crate) fn forget(&mut self) {
        for service in self.all() {
            self.end_one(service);
        }
    }

    /// Starts all services again, as at boot.
    ///
    /// # Errors
    /// When a service does not start.
    pub(crate) fn reboot(&mut self, lab: &Lab) -> Result<()> {
        self.boot(lab)?;
        self.wait(lab)
    }
}

fn listens(netns: &Netns, port: u16) -> Result<bool> {
    let sockets = kernel::tcp_sockets(netns)?;
    Ok(sockets.iter().any(|socket| socket.state == LISTEN && socket.local.port() == port))
}

/// Creates Glance's shared database with its tables.
///
/// # Errors
/// When PostgreSQL or Glance is missing.
pub(crate) fn shared_by_glance(lab: &Lab) -> Result<Database> {
    let database = Database::start(lab)?;
    glance::prepare(lab, &database)?;
    Ok(database)
}

/// Returns the folder of the repositories.
pub(crate) fn repositories(lab: &Lab) -> PathBuf {
    lab.scratch().join("repositories")
}

fn health_file(lab: &Lab, node: Node) -> Result<PathBuf> {
    Ok(lab.folder(node)?.join("healthy"))
}

/// Sets whether a backend's health check passes.
///
/// # Errors
/// When the health file cannot be written.
pub(crate) fn set_healthy(lab: &Lab, node: Node, healthy: bool) -> Result<()> {
    let file = health_file(lab, node)?;
    if healthy {
        fs::write(&file, "")?;
    } else if file.exists() {
        fs::remove_file(&file)?;
    }
    Ok(())
}

fn git_daemon(lab: &Lab, node: Node) -> Result<Process> {
    let root = repositories(lab);
    let mut daemon = repository::isolated(lab.netns(node)?.command("git"));
    daemon.args(["daemon", "--reuseaddr", "--export-all", "--enable=receive-pack"]);
    daemon.arg("--max-connections=200").arg(format!("--base-path={}", root.display())).arg(root);
    lab.spawn(node, "git-daemon", &mut daemon)
}

fn talk(lab: &Lab, node: Node) -> Result<Process> {
    let own = std::env::current_exe().context("this program's own path")?;
    let mut command = lab.netns(node)?.command(own);
    command.args(["serve", &node.to_string()]).arg(health_file(lab, node)?);
    lab.spawn(node, "talk", &mut command)
}
