//! A TUN device: reads what the kernel sends to clients, and writes what clients send.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    time::{Duration, Instant},
};

/// Longer than any answer takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Tun {
    file: File,
}

impl Tun {
    /// A new device, down.
    pub fn new(name: &str) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        // struct ifreq: the name, then the flags.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request is as large as the kernel's struct ifreq.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        Self { file }
    }

    /// Hands an IP packet to the kernel, as if a client had sent it.
    pub fn send(&mut self, packet: &[u8]) {
        self.file.write_all(packet).unwrap();
    }

    /// The first packet from the kernel that `wanted` says yes to; others are thrown away.
    pub fn receive<T>(&mut self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut packet = vec![0; 65_536];
        let mut others = 0;
        while Instant::now() < end {
            match self.file.read(&mut packet) {
                Ok(length) => {
                    if let Some(found) = wanted(&packet[..length]) {
                        return found;
                    }
                    others += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("not within {PATIENCE:?}: {what}, but {others} other packets");
    }
}
