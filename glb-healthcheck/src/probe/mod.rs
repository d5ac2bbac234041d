//! Asking a target once. Every probe makes a fresh connection and ends at its timeout.

mod connect;
mod http;
mod tls;

use std::{io, time::Duration};

use tokio::time::Instant;

pub use tls::{TlsConfigs, TlsError};

use crate::check::{Kind, Target};

/// A probe that wakes up so long after its time says more about this machine than about the target.
const LATE: Duration = Duration::from_millis(100);

/// What came of a probe.
#[derive(Debug)]
pub enum Outcome {
    /// The answer is as it must be.
    Pass,
    /// The target does not answer as it must.
    Fail(Failure),
    /// Nothing can be said about the target: this machine is at fault.
    Unsure(Failure),
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
    pub tls: TlsConfigs,
}

impl Tools {
    /// Makes what the probes of these targets need.
    ///
    /// # Errors
    /// When a CA file cannot be used.
    pub fn new<'t>(targets: impl IntoIterator<Item = &'t Target>) -> Result<Self, TlsError> {
        let checks = targets.into_iter().filter_map(|target| match &target.check.kind {
            Kind::Http(http) => http.tls.as_ref(),
            Kind::Tcp { .. } => None,
        });
        Ok(Self { tls: TlsConfigs::new(checks)? })
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
        Ok(Ok(())) => Outcome::Pass,
        Ok(Err(failure)) if failure.is_own() => Outcome::Unsure(failure),
        Ok(Err(failure)) => Outcome::Fail(failure),
        // The answer may have come while nobody was awake to read it.
        Err(_) if took > timeout + LATE => Outcome::Unsure(Failure::Late { by: took - timeout }),
        Err(_) => Outcome::Fail(Failure::Timeout { step: step.get(), after: timeout }),
    };
    (outcome, took)
}

async fn run(target: &Target, tools: &Tools, step: &Step) -> Result<(), Failure> {
    match &target.check.kind {
        Kind::Tcp { port } => connect::tcp(target, *port, step).await.map(drop),
        Kind::Http(http) => http::run(target, http, tools, step).await,
    }
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
