//! Probes: one module for each kind of check. A probe opens a new connection and ends at its timeout.
//!
//! | kind | module |
//! |---|---|
//! | `tcp` | `tcp` |
//! | `http`, `https` | `http`, with `tls` |
//! | `gue` | `gue`, with `icmp_echo` |
//! | `vip` | `vip`, with `vip_tunnel` |
//! | `agent` | `agent` |
//! | `exec` | `exec` |
//!
//! To add a kind of check: add a variant to [`CheckKind`], read its keys in
//! [`check_config`](crate::check_config), write a module with a `run` function here, and call it from
//! `run` below. Sockets or devices that its probes share belong in [`ProbeContext`].

mod agent;
mod connectivity;
mod exec;
mod gue;
mod http;
mod icmp_echo;
mod tcp;
mod tls;
mod vip;
mod vip_tunnel;

use std::{io, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use connectivity::{ConnectivityTarget, connectivity_target_replies};
pub use icmp_echo::{IcmpEcho, IcmpEchoError};
pub use tls::{TlsConfigs, TlsError};
pub use vip_tunnel::{VipTunnel, VipTunnelError};

use crate::{
    check::{CheckKind, Target},
    config::ExecUser,
};

/// A timeout that is noticed this much too late is the fault of this machine.
const LATE: Duration = Duration::from_millis(100);

/// The result of a probe.
#[derive(Debug)]
pub enum Outcome {
    /// The target replied as configured.
    Pass(AgentReply),
    /// The target did not reply as configured.
    Fail(Failure),
    /// This machine, not the target, caused the failure.
    Inconclusive(Failure),
}

/// The report of a backend's agent; empty for other kinds of checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentReply {
    /// True if it asks for draining; `None` leaves that unchanged.
    pub drain: Option<bool>,
    /// Its weight in percent.
    pub weight: Option<u16>,
}

/// Why a probe did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No reply within the timeout.
    #[error("timeout after {} ms ({step})", after.as_millis())]
    Timeout {
        /// The step that the probe was waiting for.
        step: &'static str,
        /// The timeout.
        after: Duration,
    },
    /// This machine was suspended or overloaded during the probe.
    #[error("this machine was suspended or overloaded for {} ms", by.as_millis())]
    Late {
        /// How long.
        by: Duration,
    },
    /// The connection failed.
    #[error("{step}: {source}")]
    Io {
        /// The step that failed.
        step: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The response is not HTTP, or is incomplete.
    #[error("HTTP: {0}")]
    Http(hyper::Error),
    /// The response has an unexpected status.
    #[error("status {status}, expected {}", shown_range(*.expected))]
    Status {
        /// The response's status.
        status: u16,
        /// Lowest and highest status that pass.
        expected: (u16, u16),
    },
    /// The body lacks the configured text.
    #[error("the body does not contain {expected:?}")]
    Body {
        /// The configured text.
        expected: String,
    },
    /// The backend's agent reports a failure.
    #[error("agent: {0}")]
    Agent(String),
    /// The command failed.
    #[error("the command ended with {0}")]
    Command(std::process::ExitStatus),
    /// This machine cannot do the check.
    #[error("{0}")]
    Setup(String),
}

fn shown_range((low, high): (u16, u16)) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

impl Failure {
    /// The value of the `result` label in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
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

    /// Returns whether this machine, not the target, caused it: for instance no free descriptors or ports.
    fn is_local(&self) -> bool {
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

/// Resources that all probes share.
#[derive(Debug)]
pub struct ProbeContext {
    /// TLS configurations.
    tls: TlsConfigs,
    /// Raw ICMP sockets, if a target needs them.
    echo: Option<Arc<IcmpEcho>>,
    /// The TUN device for `vip` checks, if a target needs it.
    tunnel: Option<Arc<VipTunnel>>,
    /// The user that runs commands; `None` for this process's user.
    exec_user: Option<ExecUser>,
}

/// Why this machine cannot do the checks of some targets.
#[derive(Debug, thiserror::Error)]
pub enum ProbeContextError {
    /// A TLS configuration is not possible.
    #[error("healthchecks.https: {0}")]
    Tls(#[from] TlsError),
    /// ICMP sockets are not possible.
    #[error("healthchecks.gue: {0}")]
    Echo(#[from] IcmpEchoError),
    /// The tunnel device is not possible.
    #[error("healthchecks.vip: {0}")]
    Tunnel(#[from] VipTunnelError),
}

impl ProbeContext {
    /// Creates what the probes of these targets need. Sockets and devices of `old` are reused; CA files
    /// are read again.
    ///
    /// # Errors
    /// A CA file is not usable, or the process lacks a capability.
    pub async fn new<'t>(
        targets: impl IntoIterator<Item = &'t Target> + Clone,
        exec_user: Option<ExecUser>,
        old: Option<&Self>,
    ) -> Result<Self, ProbeContextError> {
        let kinds = || targets.clone().into_iter().map(|target| &target.check.kind);
        let tls = kinds().filter_map(|kind| match kind {
            CheckKind::Http(http) => http.tls.as_ref(),
            _ => None,
        });
        let tls = TlsConfigs::new(tls, old.map(|old| &old.tls))?;
        let echo = match old.and_then(|old| old.echo.clone()) {
            Some(echo) => Some(echo),
            None if kinds().any(|kind| matches!(kind, CheckKind::Gue { .. })) => {
                Some(Arc::new(IcmpEcho::open()?))
            }
            None => None,
        };
        let tunnel = match old.and_then(|old| old.tunnel.clone()) {
            Some(tunnel) => Some(tunnel),
            None if kinds().any(|kind| matches!(kind, CheckKind::Vip(_))) => {
                Some(Arc::new(VipTunnel::open().await?))
            }
            None => None,
        };
        Ok(Self { tls, echo, tunnel, exec_user })
    }
}

/// Probes `target` once. Returns the outcome and the duration, which is at most the timeout.
pub async fn probe(target: &Target, context: &ProbeContext) -> (Outcome, Duration) {
    let timeout = target.check.settings.timeout;
    let started = Instant::now();
    let step = CurrentStep::default();
    let result = tokio::time::timeout(timeout, run(target, context, &step)).await;
    let took = started.elapsed();
    let outcome = match result {
        Ok(Ok(reply)) => Outcome::Pass(reply),
        Ok(Err(failure)) if failure.is_local() => Outcome::Inconclusive(failure),
        Ok(Err(failure)) => Outcome::Fail(failure),
        // The reply may have arrived while this process did not run.
        Err(_) if took > timeout + LATE => {
            Outcome::Inconclusive(Failure::Late { by: took - timeout })
        }
        Err(_) => Outcome::Fail(Failure::Timeout { step: step.get(), after: timeout }),
    };
    (outcome, took)
}

async fn run(
    target: &Target,
    context: &ProbeContext,
    step: &CurrentStep,
) -> Result<AgentReply, Failure> {
    let passed = Ok(AgentReply::default());
    let missing = || Failure::Setup("the check's socket or device is missing".into());
    match &target.check.kind {
        CheckKind::Tcp { port } => tcp::connect(target, *port, step).await.and(passed),
        CheckKind::Http(http) => http::run(target, http, context, step).await.and(passed),
        CheckKind::Gue { port } => {
            let echo = context.echo.as_ref().ok_or_else(missing)?;
            gue::run(target, *port, echo, step).await.and(passed)
        }
        CheckKind::Vip(vip) => {
            let tunnel = context.tunnel.as_ref().ok_or_else(missing)?;
            vip::run(target, vip, tunnel, step).await.and(passed)
        }
        CheckKind::Agent { port, send } => agent::run(target, *port, send.as_deref(), step).await,
        CheckKind::Exec { command } => {
            exec::run(target, command, context.exec_user, step).await.and(passed)
        }
    }
}

/// The step that a probe is waiting for; the error of a timeout names it.
#[derive(Debug)]
struct CurrentStep(std::sync::Mutex<&'static str>);

impl Default for CurrentStep {
    fn default() -> Self {
        Self(std::sync::Mutex::new("start"))
    }
}

impl CurrentStep {
    fn set(&self, step: &'static str) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = step;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
