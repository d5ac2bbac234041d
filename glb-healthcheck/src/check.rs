//! What is checked, how, and how often: the validated form.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

/// One check of one address: the unit that is probed and judged. Tables that ask for the same
/// check of the same backend share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The backend.
    pub address: IpAddr,
    /// What is done.
    pub check: Check,
}

/// A check, of whatever backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is asked.
    pub kind: Kind,
    /// How often, and how many answers count.
    pub pace: Pace,
}

/// What is asked of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A TCP handshake.
    Tcp {
        /// The port.
        port: u16,
    },
    /// An HTTP/1.1 request, over TLS or not.
    Http(Http),
    /// An ICMP echo inside the tunnel, answered directly.
    Gue {
        /// The tunnel's port.
        port: u16,
    },
    /// A connection to a VIP through the tunnel to this one backend, answered directly.
    Vip(Vip),
    /// HAProxy's agent protocol.
    Agent {
        /// The port.
        port: u16,
        /// What is sent first.
        send: Option<String>,
    },
    /// A command; the address is in its environment as `GLB_BACKEND`.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// A connection to a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vip {
    /// The VIP.
    pub address: IpAddr,
    /// The tunnel's port.
    pub tunnel: u16,
    /// The VIP's port.
    pub port: u16,
    /// What is asked on the connection, if anything.
    pub http: Option<Http>,
}

/// An HTTP request and what its answer must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Http {
    /// The port.
    pub port: u16,
    /// How TLS is spoken, if it is.
    pub tls: Option<Tls>,
    /// Path and query.
    pub path: String,
    /// The Host header; by default the address, with the port unless it is the usual one.
    pub host: Option<String>,
    /// The method.
    pub method: String,
    /// Lowest and highest status that passes.
    pub status: (u16, u16),
    /// What must stand in the first 64 KB of the body.
    pub body: Option<String>,
}

/// How TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The name that is sent and that the certificate must have; by default the Host header's,
    /// or the backend's address.
    pub name: Option<String>,
    /// Whether the certificate is looked at.
    pub verify: bool,
    /// The authorities that are trusted, a PEM file; by default the system's.
    pub ca: Option<PathBuf>,
}

/// How often a check runs, and how many results turn a judgement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    /// From one probe's start to the next one's.
    pub interval: Duration,
    /// A probe without an answer has failed after this; below the interval.
    pub timeout: Duration,
    /// So many passes in a row make it healthy.
    pub rise: u32,
    /// So many failures in a row make it unhealthy.
    pub fall: u32,
    /// Each interval is up to so many percent longer or shorter, so that many checkers do not
    /// come to march in step.
    pub jitter_percent: u8,
    /// Where probes come from, if the kernel is not to choose.
    pub source: Option<IpAddr>,
}

impl Default for Pace {
    /// GLB's: every 2 s, 1 s for an answer, three in a row.
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

impl Kind {
    /// The word for it in a table, a metric and a log line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Http(Http { tls: None, .. }) => "http",
            Self::Http(_) => "https",
            Self::Gue { .. } => "gue",
            Self::Vip(_) => "vip",
            Self::Agent { .. } => "agent",
            Self::Exec { .. } => "exec",
        }
    }
}

impl fmt::Display for Kind {
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
                // Its own address is the host that it has if none is given.
                let host = http.host.as_deref().filter(|host| *host != address);
                write!(f, " {} {}{}", http.method, host.unwrap_or_default(), http.path)
            }
            Self::Agent { port, .. } => write!(f, "agent {port}"),
            // A script's lines would break those of tables and logs.
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
