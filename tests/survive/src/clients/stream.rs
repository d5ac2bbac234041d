//! A recorded connection from one of the client's addresses.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use glb_lab::{Family, vip};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::ClientContext,
};

/// Opens a connection to a port of the VIP. If that fails, the record is closed as broken.
pub(crate) fn open(
    site: &ClientContext,
    kind: Kind,
    family: Family,
    port: u16,
) -> Option<(TcpStream, ConnectionRecord)> {
    let to = SocketAddr::new(vip(family), port);
    let from = site.address(family);
    // The socket is bound before the SYN, because the port is part of the record.
    let (socket, from) = match bound(from) {
        Ok(bound) => bound,
        Err(error) => {
            let account = site.ledger.begin(kind, SocketAddr::new(from, 0), to);
            account.end(Err(format!("no socket: {error}")));
            return None;
        }
    };
    let account = site.ledger.begin(kind, from, to);
    match connect(&socket, to, site.load.patience) {
        Ok(()) => {
            let stream = TcpStream::from(socket);
            account.opened(&stream);
            Some((stream, account))
        }
        Err(error) => {
            account.end(Err(format!("not opened: {}", in_words(&error, site.load.patience))));
            None
        }
    }
}

fn bound(from: IpAddr) -> io::Result<(Socket, SocketAddr)> {
    let from = SocketAddr::new(from, 0);
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    let from = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket, from))
}

fn connect(socket: &Socket, to: SocketAddr, patience: Duration) -> io::Result<()> {
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_tcp_nodelay(true)?;
    // Sent data must be acknowledged in time, however much the socket buffer accepts.
    let limit = u32::try_from(patience.as_millis()).map_err(io::Error::other)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &limit)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))
}

/// Formats an error for the record: short, and the same for the same cause.
pub(crate) fn in_words(error: &io::Error, patience: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("nothing for {} s", patience.as_secs())
        }
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::BrokenPipe => "closed by the other side while sending".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed by the other side".to_owned(),
        _ => error.to_string(),
    }
}

/// Sends a line and reads the answer line.
pub(crate) fn ask(
    stream: &mut TcpStream,
    account: &ConnectionRecord,
    line: &str,
) -> io::Result<String> {
    stream.write_all(line.as_bytes())?;
    account.expects(true);
    let answer = read_line(stream);
    account.expects(false);
    answer
}

/// Reads up to a newline and returns the line without it.
pub(crate) fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => {
                return String::from_utf8(line).map_err(io::Error::other);
            }
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
