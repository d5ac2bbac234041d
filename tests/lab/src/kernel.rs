//! What a namespace's kernel says about its TCP connections.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// This side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// The kernel's number of the state: [`ESTABLISHED`], [`LISTEN`] and so on.
    pub state: u8,
}

/// State of an open connection.
pub const ESTABLISHED: u8 = 1;

/// State of a listener.
pub const LISTEN: u8 = 10;

/// All TCP sockets of a namespace, addresses of mapped IPv4 as IPv4.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn tcp_sockets(netns: &Netns) -> Result<Vec<TcpSocket>> {
    netns.run(|| {
        let mut sockets = Vec::new();
        for file in ["tcp", "tcp6"] {
            // `self` would be the whole process; only this thread is in the namespace.
            let table = fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
            for line in table.lines().skip(1) {
                let socket = parse_socket(line);
                sockets.push(socket.with_context(|| format!("odd line in {file}: {line}"))?);
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

/// The kernel prints each 32-bit word of an address in its own byte order.
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

/// A TCP counter of a namespace by the kernel's name, for example `RetransSegs`.
///
/// # Errors
/// When there is no counter of this name.
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
    fn the_kernels_socket_tables_are_read() {
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
