//! Probes of connectivity targets, the hosts that show whether this machine has connectivity.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

use super::IcmpEcho;

/// A host that shows whether this machine has connectivity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectivityTarget {
    /// Probed by an ICMP echo request.
    Ping(IpAddr),
    /// Probed by a TCP connection; a refusal is a reply too.
    Tcp(SocketAddr),
}

impl fmt::Display for ConnectivityTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ping(address) => address.fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Probes a connectivity target once; returns whether it replied within `timeout`.
pub async fn connectivity_target_replies(
    target: &ConnectivityTarget,
    echo: Option<&IcmpEcho>,
    timeout: Duration,
) -> bool {
    let probe = async {
        match target {
            ConnectivityTarget::Ping(address) => match echo {
                Some(echo) => echo.ping(*address).await.is_ok(),
                None => false,
            },
            ConnectivityTarget::Tcp(address) => match tokio::net::TcpStream::connect(address).await
            {
                Ok(_) => true,
                Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            },
        }
    };
    tokio::time::timeout(timeout, probe).await.unwrap_or(false)
}
