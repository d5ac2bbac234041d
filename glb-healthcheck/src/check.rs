//! The validated model of health checks: which backend, what kind of check, and its settings.
//!
//! [`check_config`](crate::check_config) reads it from a table file, and [`probe`](crate::probe)
//! carries it out. A new kind of check starts with a variant of [`CheckKind`].

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

/// One check of one backend address: the unit that is probed and has a health state. Tables that
/// list the same check of the same backend share one target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// The check.
    pub check: Check,
}

/// A check, independent of the backend that it is applied to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// The protocol and its parameters.
    pub kind: CheckKind,
    /// Interval, timeout and thresholds.
    pub settings: Settings,
}

/// The kinds of health checks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A TCP handshake.
    Tcp {
        /// The port.
        port: u16,
    },
    /// An HTTP/1.1 request, with or without TLS.
    Http(HttpCheck),
    /// An ICMP echo request inside the GUE tunnel; the backend replies outside the tunnel.
    Gue {
        /// The tunnel's UDP port.
        port: u16,
    },
    /// A TCP connection to a VIP through the tunnel to this backend; replies come outside the tunnel.
    Vip(VipCheck),
    /// HAProxy's agent protocol.
    Agent {
        /// The port.
        port: u16,
        /// Text to send after connecting.
        send: Option<String>,
    },
    /// A command; its environment has the backend's address as `GLB_BACKEND`.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// Parameters of a `vip` check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VipCheck {
    /// The VIP.
    pub address: IpAddr,
    /// The tunnel's UDP port on the backend.
    pub tunnel_port: u16,
    /// The VIP's TCP port.
    pub port: u16,
    /// The HTTP request to send; without one, a completed handshake passes.
    pub http: Option<HttpCheck>,
}

/// An HTTP request and the response that passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    /// The port.
    pub port: u16,
    /// TLS settings; `None` for plain HTTP.
    pub tls: Option<TlsSettings>,
    /// Path and query.
    pub path: String,
    /// The Host header. Default: the address, with the port unless it is the protocol's default.
    pub host: Option<String>,
    /// The request method.
    pub method: String,
    /// Lowest and highest status code that pass.
    pub status: (u16, u16),
    /// Text that the first 64 KB of the body must contain.
    pub body: Option<String>,
}

/// TLS settings of an `https` check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// The server name for SNI and certificate verification. Default: the Host header's name, then
    /// the backend's address.
    pub name: Option<String>,
    /// True if the certificate is verified.
    pub verify: bool,
    /// A PEM file with the trusted certificate authorities. Default: the system's.
    pub ca: Option<PathBuf>,
}

/// How often a check runs, and how many results change a target's health.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Time between the starts of two probes.
    pub interval: Duration,
    /// A probe without a reply fails after this time, which is shorter than the interval.
    pub timeout: Duration,
    /// Consecutive passes that make a target healthy.
    pub rise: u32,
    /// Consecutive failures that make a target unhealthy.
    pub fall: u32,
    /// Each interval varies by up to this percentage, so that checkers do not synchronize.
    pub jitter_percent: u8,
    /// Source address of probes. Default: the kernel's choice.
    pub source: Option<IpAddr>,
}

impl Default for Settings {
    /// GLB's defaults: an interval of 2 s, a timeout of 1 s, rise and fall 3.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 3,
            fall: 3,
            jitter_percent: 5,
            source: None,
        }
    }
}

impl CheckKind {
    /// The kind's name in tables, metrics and log lines.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Http(HttpCheck { tls: None, .. }) => "http",
            Self::Http(_) => "https",
            Self::Gue { .. } => "gue",
            Self::Vip(_) => "vip",
            Self::Agent { .. } => "agent",
            Self::Exec { .. } => "exec",
        }
    }
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp {port}"),
            Self::Http(http) => {
                write!(f, "{} {} {} ", self.name(), http.port, http.method)?;
                f.write_str(http.host.as_deref().unwrap_or_default())?;
                f.write_str(&http.path)
            }
            Self::Gue { port } => write!(f, "gue {port}"),
            Self::Vip(vip) => {
                let address = std::net::SocketAddr::new(vip.address, vip.port).to_string();
                write!(f, "vip {address}")?;
                let Some(http) = &vip.http else { return Ok(()) };
                // The VIP itself is the default host.
                let host = http.host.as_deref().filter(|host| *host != address);
                write!(f, " {} {}{}", http.method, host.unwrap_or_default(), http.path)
            }
            Self::Agent { port, .. } => write!(f, "agent {port}"),
            // Line breaks of a script would break the lines of status tables and logs.
            Self::Exec { command } => {
                f.write_str("exec ")?;
                for letter in command.join(" ").chars() {
                    match letter {
                        control if control.is_control() => write!(f, "{}", control.escape_debug())?,
                        plain => write!(f, "{plain}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.check.kind)
    }
}
