//! The backend's server for the long-lived connections of a chaos run.

use std::{
    io::{self, Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// The TCP port, on every address of a backend.
pub const PORT: u16 = 7;

/// The kind of a connection. The client sends it as the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The server sends every byte back.
    Echo,
    /// Like echo, but silent between two checks.
    Idle,
    /// The client sends numbers until it stops. The server confirms each chunk and reports the
    /// total at the end.
    Upload,
    /// The server sends numbers until the client closes the connection.
    Download,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Echo, Self::Idle, Self::Upload, Self::Download];

    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Echo | Self::Idle => b'e',
            Self::Upload => b'u',
            Self::Download => b'd',
        }
    }
}

/// The chunk size and pause of uploads and downloads, chosen so that many of them fit on two cores.
pub(super) const CHUNK: usize = 4096;
pub(super) const CHUNK_EVERY: Duration = Duration::from_millis(50);

/// Serves until the process is killed. Prints `ready` first.
///
/// # Errors
/// When the port is in use.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .with_context(|| format!("cannot listen on port {PORT}"))?;
    println!("ready");
    for stream in listener.incoming() {
        match stream {
            // A client that closes its connection is normal here.
            Ok(stream) => drop(thread::spawn(move || talk(stream).ok())),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

fn talk(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        b'u' => upload(stream),
        b'd' => download(stream),
        _ => io::copy(&mut stream.try_clone()?, &mut stream).map(drop),
    }
}

fn upload(mut stream: TcpStream) -> io::Result<()> {
    let mut numbers = Numbers::default();
    let mut bytes = [0; CHUNK];
    loop {
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            return stream.write_all(&numbers.count().to_be_bytes());
        }
        let before = numbers.count();
        numbers.check(&bytes[..length])?;
        if before / CHUNK as u64 != numbers.count() / CHUNK as u64 {
            stream.write_all(&[0])?;
        }
    }
}

fn download(mut stream: TcpStream) -> io::Result<()> {
    let mut numbers = Numbers::default();
    let mut bytes = [0; CHUNK];
    loop {
        numbers.fill(&mut bytes);
        stream.write_all(&bytes)?;
        thread::sleep(CHUNK_EVERY);
    }
}

/// A stream of the 64-bit numbers 0, 1, 2 and so on, which reveals lost, repeated and swapped
/// bytes.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    bytes: u64,
}

impl Numbers {
    /// The number of bytes generated or checked.
    pub(super) const fn count(&self) -> u64 {
        self.bytes
    }

    fn next(&mut self) -> u8 {
        let byte = (self.bytes / 8).to_be_bytes()[(self.bytes % 8) as usize];
        self.bytes += 1;
        byte
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next());
    }

    pub(super) fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        for &byte in bytes {
            let at = self.bytes;
            let wanted = self.next();
            if byte != wanted {
                let what = format!("byte {at} is {byte}, not {wanted}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_byte_is_detected() {
        let mut sent = [0; 64];
        Numbers::default().fill(&mut sent);
        let mut numbers = Numbers::default();
        numbers.check(&sent[..20]).unwrap();
        numbers.check(&sent[20..40]).unwrap();
        assert_eq!(numbers.count(), 40);
        // Lost bytes show at the latest at the next number.
        assert!(numbers.check(&sent[41..]).is_err());
    }
}
