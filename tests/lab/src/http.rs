//! A small HTTP client that can use any client address as source.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// An HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body).trim())
    }
}

/// Connects from `from` to `to`. The calling thread must be in the client's namespace.
///
/// # Errors
/// The kernel's error.
pub fn connect(from: IpAddr, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), limit)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Fetches `path` over a new connection. The calling thread must be in the client's namespace.
///
/// # Errors
/// When the connection breaks, when `limit` passes between two reads, and when the response is not
/// HTTP.
pub fn get(from: IpAddr, to: SocketAddr, path: &str, limit: Duration) -> Result<Reply> {
    let mut stream =
        connect(from, to, limit).with_context(|| format!("cannot connect to {to} from {from}"))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n", to.ip())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the connection broke")?;
    parse(&answer)
}

/// Runs [`get`] from outside the client's namespace.
///
/// # Errors
/// The same as [`get`].
pub fn get_in(netns: &Netns, from: IpAddr, to: SocketAddr, path: &str) -> Result<Reply> {
    netns.run(|| get(from, to, path, Duration::from_secs(3)))
}

fn parse(answer: &[u8]) -> Result<Reply> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = answer.windows(END.len()).position(|window| window == END) else {
        bail!("the answer ends within its headers ({} bytes)", answer.len());
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    let status = status.and_then(|digits| digits.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {head:.40}"))?;
    let body = answer[end + END.len()..].to_vec();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    if let Some(length) = length.transpose()?
        && length != body.len()
    {
        bail!("the answer ends after {} of {length} bytes", body.len());
    }
    Ok(Reply { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_responses_are_errors() {
        let whole = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab").unwrap();
        assert_eq!(whole, Reply { status: 200, body: b"ab".to_vec() });
        for broken in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            b"SSH-2.0\r\n\r\n",
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
