//! Asking a target once. Every probe makes a fresh connection and ends at its timeout.

mod agent;
mod connect;
mod echo;
mod exec;
mod http;
mod tls;
mod tunnel;

use std::{io, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use echo::{Echo, EchoError};
pub use tls::{TlsConfigs, TlsError};
pub use tunnel::{Tunnel, TunnelError};

use crate::check::{Kind, Target};

/// A probe that wakes up so long after its time says more about this machine than about the target.
const LATE: Duration = Duration::from_millis(100);

/// What came of a probe.
#[derive(Debug)]
pub enum Outcome {
    /// The answer is as it must be.
    Pass(Said),
    /// The target does not answer as it must.
    Fail(Failure),
    /// Nothing can be said about the target: this machine is at fault.
    Unsure(Failure),
}

/// What a backend's agent says beside that it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether it wants no new connections; None if it says nothing about that.
    pub drain: Option<bool>,
    /// Percent of its usual weight.
    pub weight: Option<u16>,
}

/// Why a probe did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer in time.
    #[error("timeout after {} ms ({step})", after.as_millis())]
    Timeout {
        /// What was waited for.
        step: &'static str,
        /// How long.
        after: Duration,
    },
    /// The machine that checks stood still meanwhile.
    #[error("this machine stood still for {} ms", by.as_millis())]
    Late {
        /// How long.
        by: Duration,
    },
    /// The connection was not made, or broke.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// TLS was not agreed upon.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The other side does not speak HTTP, or broke off.
    #[error("HTTP: {0}")]
    Http(hyper::Error),
    /// Another status than wanted.
    #[error("status {status}, wanted {}", shown(*.wanted))]
    Status {
        /// What came.
        status: u16,
        /// Lowest and highest that pass.
        wanted: (u16, u16),
    },
    /// The body lacks what it must have.
    #[error("the body does not contain {wanted:?}")]
    Body {
        /// What it must have.
        wanted: String,
    },
    /// The backend's agent.
    #[error("agent: {0}")]
    Agent(String),
    /// The operator's command.
    #[error("the command ended with {0}")]
    Command(std::process::ExitStatus),
    /// The check cannot be done as it is configured.
    #[error("{0}")]
    Setup(String),
}

fn shown((low, high): (u16, u16)) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

impl Failure {
    /// A word for metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Late { .. } => "late",
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::ConnectionRefused => "refused",
                io::ErrorKind::ConnectionReset => "reset",
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
                _ => "io",
            },
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Status { .. } => "status",
            Self::Body { .. } => "body",
            Self::Agent(_) => "agent",
            Self::Command(_) => "command",
            Self::Setup(_) => "setup",
        }
    }

    /// Whether this machine, and not the target, is at fault: out of files, memory or ports.
    fn is_own(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return matches!(self, Self::Late { .. } | Self::Setup(_));
        };
        matches!(
            source.raw_os_error(),
            Some(
                libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EADDRNOTAVAIL
                    | libc::EADDRINUSE
                    | libc::EPERM
                    | libc::EACCES
            )
        )
    }
}

/// What all probes share.
#[derive(Debug)]
pub struct Tools {
    /// TLS configurations, made once.
    tls: TlsConfigs,
    /// Raw sockets, if a target needs them.
    echo: Option<Arc<Echo>>,
    /// The device that packets to VIPs go out by, if a target needs it.
    tunnel: Option<Arc<Tunnel>>,
}

/// Why some targets cannot be checked on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// TLS.
    #[error("healthchecks.https: {0}")]
    Tls(#[from] TlsError),
    /// Echoes.
    #[error("healthchecks.gue: {0}")]
    Echo(#[from] EchoError),
    /// The tunnel.
    #[error("healthchecks.vip: {0}")]
    Tunnel(#[from] TunnelError),
}

impl Tools {
    /// Makes what the probes of these targets need. What `old` has is used on; CA files are read anew.
    ///
    /// # Errors
    /// When a CA file cannot be used, or this process lacks a permission.
    pub async fn new<'t>(
        targets: impl IntoIterator<Item = &'t Target> + Clone,
        old: Option<&Self>,
    ) -> Result<Self, ToolsError> {
        let kinds = || targets.clone().into_iter().map(|target| &target.check.kind);
        let tls = kinds().filter_map(|kind| match kind {
            Kind::Http(http) => http.tls.as_ref(),
            _ => None,
        });
        let tls = TlsConfigs::new(tls, old.map(|old| &old.tls))?;
        let echo = match old.and_then(|old| old.echo.clone()) {
            Some(echo) => Some(echo),
            None if kinds().any(|kind| matches!(kind, Kind::Gue { .. })) => {
                Some(Arc::new(Echo::open()?))
            }
            None => None,
        };
        let tunnel = match old.and_then(|old| old.tunnel.clone()) {
            Some(tunnel) => Some(tunnel),
            None if kinds().any(|kind| matches!(kind, Kind::Vip(_))) => {
                Some(Arc::new(Tunnel::open().await?))
            }
            None => None,
        };
        Ok(Self { tls, echo, tunnel })
    }
}

/// Asks `target` once. Returns after its timeout at the latest.
pub async fn probe(target: &Target, tools: &Tools) -> (Outcome, Duration) {
    let timeout = target.check.pace.timeout;
    let started = Instant::now();
    let step = Step::default();
    let ended = tokio::time::timeout(timeout, run(target, tools, &step)).await;
    let took = started.elapsed();
    let outcome = match ended {
        Ok(Ok(said)) => Outcome::Pass(said),
        Ok(Err(failure)) if failure.is_own() => Outcome::Unsure(failure),
        Ok(Err(failure)) => Outcome::Fail(failure),
        // The answer may have come while nobody was awake to read it.
        Err(_) if took > timeout + LATE => Outcome::Unsure(Failure::Late { by: took - timeout }),
        Err(_) => Outcome::Fail(Failure::Timeout { step: step.get(), after: timeout }),
    };
    (outcome, took)
}

async fn run(target: &Target, tools: &Tools, step: &Step) -> Result<Said, Failure> {
    let nothing = Ok(Said::default());
    let missing = || Failure::Setup("a tool of this check is missing".into());
    match &target.check.kind {
        Kind::Tcp { port } => connect::tcp(target, *port, step).await.and(nothing),
        Kind::Http(http) => http::run(target, http, tools, step).await.and(nothing),
        Kind::Gue { port } => {
            step.set("echo through the tunnel");
            let echo = tools.echo.as_ref().ok_or_else(missing)?;
            let backend = std::net::SocketAddr::new(target.address, *port);
            echo.through_gue(backend, target.check.pace.source).await.and(nothing)
        }
        Kind::Vip(vip) => {
            let tunnel = tools.tunnel.as_ref().ok_or_else(missing)?;
            let stream = tunnel.connect(target, vip, step).await?;
            match &vip.http {
                Some(http) => http::exchange(stream, target, http, step).await.and(nothing),
                None => nothing,
            }
        }
        Kind::Agent { port, send } => agent::run(target, *port, send.as_deref(), step).await,
        Kind::Exec { command } => exec::run(target, command, step).await.and(nothing),
    }
}

/// Whether anything answers at a control target: a refusal is an answer.
pub async fn alive(control: &Control, echo: Option<&Echo>, timeout: Duration) -> bool {
    let ask = async {
        match control {
            Control::Ping(address) => match echo {
                Some(echo) => echo.ping(*address).await.is_ok(),
                None => false,
            },
            Control::Tcp(address) => match tokio::net::TcpStream::connect(address).await {
                Ok(_) => true,
                Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            },
        }
    };
    tokio::time::timeout(timeout, ask).await.unwrap_or(false)
}

/// A machine that tells whether this one is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// By ICMP echo.
    Ping(std::net::IpAddr),
    /// By a TCP handshake or its refusal.
    Tcp(std::net::SocketAddr),
}

/// What a probe waits for at the moment: a timeout names it.
#[derive(Debug)]
struct Step(std::sync::Mutex<&'static str>);

impl Default for Step {
    fn default() -> Self {
        Self(std::sync::Mutex::new("start"))
    }
}

impl Step {
    fn set(&self, step: &'static str) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = step;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
