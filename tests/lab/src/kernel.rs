//! TCP sockets and counters of a namespace's kernel.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// The local address and port.
    pub local: SocketAddr,
    /// The remote address and port.
    pub remote: SocketAddr,
    /// The kernel's state number, for example [`ESTABLISHED`] or [`LISTEN`].
    pub state: u8,
}

/// The state of an open connection.
pub const ESTABLISHED: u8 = 1;

/// The state of a listener.
pub const LISTEN: u8 = 10;

/// Lists all TCP sockets of a namespace. IPv4-mapped addresses are returned as IPv4.
///
/// # Errors
/// When the kernel's socket table cannot be read.
pub fn tcp_sockets(netns: &Netns) -> Result<Vec<TcpSocket>> {
    netns.run(|| {
        let mut sockets = Vec::new();
        for file in ["tcp", "tcp6"] {
            // `self` would be the whole process; only this thread is in the namespace.
            let table = fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
            for line in table.lines().skip(1) {
                let socket = parse_socket(line);
                sockets.push(
                    socket.with_context(|| format!("cannot parse a line of {file}: {line}"))?,
                );
            }
        }
        Ok(sockets)
    })
}

fn parse_socket(line: &str) -> Option<TcpSocket> {
    let mut words = line.split_whitespace().skip(1);
    Some(TcpSocket {
        local: parse_address(words.next()?)?,
        remote: parse_address(words.next()?)?,
        state: u8::from_str_radix(words.next()?, 16).ok()?,
    })
}

/// Parses an address. The kernel prints each 32-bit word in host byte order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)).to_canonical()
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Reads a TCP counter of a namespace by the kernel's name, for example `RetransSegs`.
///
/// # Errors
/// When the counter does not exist.
pub fn tcp_counter(netns: &Netns, name: &str) -> Result<u64> {
    let table = netns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
    let (_, value) = found.with_context(|| format!("the kernel has no TCP counter {name}"))?;
    value.parse().with_context(|| format!("{name} is {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn kernel_socket_tables_are_parsed() {
        let v4 = "   0: 0100007F:0050 0204000A:C35A 01 00000000:00000000 00:00000000 0 0 0 1 1";
        let v4 = parse_socket(v4).unwrap();
        assert_eq!(v4.local, "127.0.0.1:80".parse().unwrap());
        assert_eq!(v4.remote, "10.0.4.2:50010".parse().unwrap());
        assert_eq!(v4.state, ESTABLISHED);
        let v6 = "   0: B80D0120000000000000000010000000:0050 \
                  00000000000000000000000000000000:0000 0A 00000000";
        let v6 = parse_socket(v6).unwrap();
        assert_eq!(v6.local, "[2001:db8::10]:80".parse().unwrap());
        assert_eq!(v6.state, LISTEN);
    }
}
