//! The `tcp` check, and the connections of the checks on top of TCP.

use std::{net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{CurrentStep, Failure};
use crate::check::Target;

/// Connects to a port of the target. Dropping the stream resets the connection: sockets in TIME_WAIT
/// would use up all ports with thousands of checks per second.
pub(super) async fn connect(
    target: &Target,
    port: u16,
    step: &CurrentStep,
) -> Result<TcpStream, Failure> {
    step.set("connect");
    let failed = |source| Failure::Io { step: "connect", source };
    let to = SocketAddr::new(target.address, port);
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
    socket.set_tcp_nodelay(true).map_err(failed)?;
    if let Some(source) = target.check.settings.source {
        // The kernel chooses the port at connect(), where it may be shared by different destinations.
        // Without this option all targets would share about 28,000 ports.
        set_bind_address_no_port(&socket).map_err(failed)?;
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(failed)?;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = socket.connect(to).await.map_err(failed)?;
    // A connection to an ephemeral port of this machine can be connected to itself (simultaneous open).
    if stream.local_addr().is_ok_and(|own| own == to) {
        let source = std::io::ErrorKind::ConnectionRefused.into();
        return Err(Failure::Io { step: "connected to itself", source });
    }
    Ok(stream)
}

/// Sets IP_BIND_ADDRESS_NO_PORT, which is an option of level IP for both address families.
fn set_bind_address_no_port(socket: &Socket) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
