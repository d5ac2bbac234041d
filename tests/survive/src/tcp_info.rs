//! The kernel's data on a TCP connection (`TCP_INFO`), as far as the suite needs it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// A part of `struct tcp_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Segments sent and not yet acknowledged.
    pub(crate) unacknowledged: u32,
    /// Segments retransmitted.
    pub(crate) retransmits: u32,
    /// Bytes acknowledged by the peer.
    pub(crate) acknowledged: u64,
    /// Bytes received.
    pub(crate) received: u64,
}

// Offsets in <linux/tcp.h>. The struct only grows at its end.
const UNACKED: usize = 24;
const TOTAL_RETRANS: usize = 100;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const LENGTH: usize = 136;

/// Reads the data of a socket.
///
/// # Errors
/// When the socket is not a TCP socket, or the kernel is older than 4.1.
pub(crate) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut buffer = [0_u8; LENGTH];
    let mut length = LENGTH as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into the buffer, which has that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            buffer.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < LENGTH {
        return Err(io::Error::other("this kernel's tcp_info is too short"));
    }
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|n| buffer[at + n]));
    let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| buffer[at + n]));
    Ok(TcpInfo {
        unacknowledged: word(UNACKED),
        retransmits: word(TOTAL_RETRANS),
        acknowledged: long(BYTES_ACKED),
        received: long(BYTES_RECEIVED),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn bytes_are_counted_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[1; 700]).unwrap();
        far.read_exact(&mut [0; 700]).unwrap();
        far.write_all(&[2; 30]).unwrap();
        near.read_exact(&mut [0; 30]).unwrap();
        let begun = Instant::now();
        loop {
            let info = tcp_info(near.as_fd()).unwrap();
            // The SYN counts as a byte on some kernels.
            if (700..=701).contains(&info.acknowledged) && info.unacknowledged == 0 {
                assert_eq!((info.received, info.retransmits), (30, 0));
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{info:?}");
        }
    }
}
