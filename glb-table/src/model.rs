//! The model of a valid table file: table sets, tables, binds and backends.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use glb_common::abi::{self, TableRows};
use ipnet::IpNet;
use serde_json::Value as Json;

use crate::{Diagnostic, HashFields, Key, LoadError, syntax::Format};

/// Rows of every table: the low 16 bits of a flow's hash choose one.
pub const ROWS: usize = 65_536;
/// Largest number of hops of a row.
pub const MAX_HOPS: u8 = 4;
/// Largest number of tables in one file.
pub const MAX_TABLES: usize = 1_024;
/// Largest number of backends in all tables together; rows hold 16-bit indices.
pub const MAX_BACKENDS: usize = 65_535;
/// Largest number of binds in all tables together; a port range is one bind.
pub const MAX_BINDS: usize = 65_536;
/// Largest size in bytes of the rows of all tables together ([`Table::rows_bytes`]): what a director's
/// BPF program can address.
pub const MAX_ROWS_BYTES: usize = abi::MAX_ROWS * size_of::<TableRows>();
/// Longest name of a table or a zone, in bytes.
pub const MAX_NAME: usize = 63;
/// Largest table file, in bytes.
pub const MAX_FILE: u64 = 64 << 20;

/// The tables of a valid file. No two binds match the same packet with equal prefix length.
#[derive(Clone, Debug)]
pub struct TableSet {
    /// The tables, in the file's order.
    pub tables: Vec<Table>,
    /// Warnings about the file.
    pub warnings: Vec<Diagnostic>,
    /// GLB's top-level `healthchecks`, kept for the health checker.
    pub healthchecks: Option<Json>,
}

/// A table: the binds that it serves, and its backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The name, unique in the file. Counters are kept per name.
    pub name: String,
    /// The key of the flow hash.
    pub hash_key: Key,
    /// The key of the hash that ranks backends in rows.
    pub seed: Key,
    /// The fields of a packet that the flow hash covers.
    pub hash_fields: HashFields,
    /// The fields before a change of `hash_fields`. The row that they select adds its hops.
    pub alt_hash_fields: Option<HashFields>,
    /// The key before a rotation of `hash_key`. The row that it selects adds its hops.
    pub alt_hash_key: Option<Key>,
    /// The seed before a rotation of `seed`. Its rows add their hops.
    pub alt_seed: Option<Key>,
    /// Number of hops of a row, 2 to 4. Rows have fewer if fewer backends are usable.
    pub hops: u8,
    /// The rule for the order of hops.
    pub order: Order,
    /// The packets that the table serves.
    pub binds: Vec<Bind>,
    /// The backends, all of one address family. Rows hold indices into this list.
    pub backends: Vec<Backend>,
    /// Health checks for all backends, kept for the health checker.
    pub healthchecks: Option<Json>,
}

/// The rule for the order of a row's hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Backends that take new connections come before those that do not.
    #[default]
    HealthyFirst,
    /// GLB's rule, with its faults T1 and T2 (`docs/glb-faults.md`). For fleets with GLB directors.
    Glb,
}

/// A bind: packets of a protocol to an address in `prefix` and a port in `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bind {
    /// The VIP, or the network of VIPs. Host bits are zero.
    pub prefix: IpNet,
    /// The transport protocol.
    pub proto: Proto,
    /// The destination ports; never empty.
    pub ports: RangeInclusive<u16>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
}

/// A server behind the VIPs of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// The address that packets are sent to. It identifies the backend.
    pub address: IpAddr,
    /// The state, as the operator set it.
    pub state: State,
    /// The health, as the health checker found it.
    pub healthy: bool,
    /// The weight. The backend's share of rows is its weight divided by the sum of all weights.
    pub weight: u16,
    /// The zone; empty if none is given.
    pub zone: String,
    /// Its health checks, kept for the health checker.
    pub healthchecks: Option<Json>,
}

/// The state of a backend, as the operator sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections. It was added recently, so other changes should wait.
    Filling,
    /// Takes new connections.
    Active,
    /// Keeps its connections and takes no new ones.
    Draining,
    /// Is in no row and gets no packets.
    Inactive,
}

impl State {
    /// All states with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("filling", Self::Filling),
        ("active", Self::Active),
        ("draining", Self::Draining),
        ("inactive", Self::Inactive),
    ];

    /// The name in table files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Inactive => "inactive",
        }
    }
}

impl Proto {
    /// The name in table files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The protocol number in IP headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HealthyFirst => "healthy_first",
            Self::Glb => "glb",
        })
    }
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.prefix.prefix_len() == self.prefix.max_prefix_len() {
            write!(f, "{}", self.prefix.addr())?;
        } else {
            write!(f, "{}", self.prefix)?;
        }
        let (first, last) = (self.ports.start(), self.ports.end());
        if first == last {
            write!(f, " {} {first}", self.proto)
        } else {
            write!(f, " {} {first}-{last}", self.proto)
        }
    }
}

impl Backend {
    /// A healthy active backend of weight 1.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self {
            address,
            state: State::Active,
            healthy: true,
            weight: 1,
            zone: String::new(),
            healthchecks: None,
        }
    }

    /// Whether the backend can be in rows.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state != State::Inactive
    }

    /// Whether the backend takes new connections.
    #[must_use]
    pub fn takes_new(&self) -> bool {
        self.healthy && matches!(self.state, State::Active | State::Filling)
    }
}

impl Table {
    /// Whether the table has an alternative hash or seed, whose rows add their hops.
    #[must_use]
    pub fn has_alternative(&self) -> bool {
        self.alt_hash_fields.is_some() || self.alt_hash_key.is_some() || self.alt_seed.is_some()
    }

    /// The size in bytes of the table's rows in a director, with enough usable backends. Hops are stored
    /// in pairs; an alternative seed needs rows of its own.
    #[must_use]
    pub fn rows_bytes(&self) -> usize {
        let rows = 1 + usize::from(self.alt_seed.is_some());
        rows * usize::from(self.hops).div_ceil(2) * size_of::<TableRows>()
    }

    /// The number of usable backends.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.backends.iter().filter(|backend| backend.is_usable()).count()
    }
}

/// Loads a table file: GLB's JSON if its name ends in `.json`, else TOML.
///
/// # Errors
/// When the file cannot be read or is invalid; the error then lists all problems.
pub fn load(path: &Path) -> Result<TableSet, LoadError> {
    parse_bytes(path, Format::of_path(path), &read_bytes(path)?)
}

/// Reads the bytes of a table file. Never blocks on a FIFO.
///
/// # Errors
/// When the file cannot be read, is not a regular file, or is larger than [`MAX_FILE`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { path: PathBuf::from(path), source };
    // Checked before opening, because opening a FIFO would block until it has a writer.
    let found = std::fs::metadata(path).map_err(io)?;
    if !found.is_file() {
        let message = "it is not a regular file";
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, message)));
    }
    let length = found.len();
    if length > MAX_FILE {
        let message = format!("the file has {length} bytes; a table file may have {MAX_FILE}");
        return Err(io(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message)));
    }
    std::fs::read(path).map_err(io)
}

/// Reads the bytes of a table for a command: a file, a pipe (`<(…)`), or standard input (`-`). Stops
/// after [`MAX_FILE`] bytes, and gives up if a pipe sends nothing for `PIPE_TIMEOUT`.
///
/// # Errors
/// When the input cannot be read, is a device or folder, is too large or too slow.
pub fn read_input(path: &Path) -> Result<Vec<u8>, LoadError> {
    use std::{io, os::unix::fs::FileTypeExt as _, sync::mpsc};
    let failed = |source| LoadError::Io { path: PathBuf::from(path), source };
    let is_stdin = path == Path::new("-");
    if !is_stdin {
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if kind.is_file() {
            return read_bytes(path);
        }
        if !kind.is_fifo() {
            let message =
                "it is not a file or pipe; give a table file, a pipe, or - for standard input";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, message)));
        }
    }
    // Opening and reading a FIFO block, so a thread does both. It ends with the process.
    let (sender, receiver) = mpsc::channel();
    let source = path.to_owned();
    let _detached = std::thread::spawn(move || {
        let result = if is_stdin {
            send_all(&mut io::stdin().lock(), &sender)
        } else {
            std::fs::File::open(source).and_then(|mut pipe| send_all(&mut pipe, &sender))
        };
        drop(sender.send(result.map(|()| Vec::new())));
    });
    let mut bytes = Vec::new();
    loop {
        let chunk = receiver.recv_timeout(PIPE_TIMEOUT).map_err(|_| {
            let message = format!("no data within {} s", PIPE_TIMEOUT.as_secs());
            failed(io::Error::new(io::ErrorKind::TimedOut, message))
        })?;
        let chunk = chunk.map_err(failed)?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        bytes.extend(chunk);
        if bytes.len() as u64 > MAX_FILE {
            let message = format!("it has more than {MAX_FILE} bytes, the limit for a table");
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, message)));
        }
    }
}

/// How long [`read_input`] waits for a pipe.
const PIPE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

type Chunk = std::io::Result<Vec<u8>>;

fn send_all(
    from: &mut dyn std::io::Read,
    to: &std::sync::mpsc::Sender<Chunk>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        // The receiver is gone after a timeout or too much data.
        if count == 0 || to.send(Ok(buffer[..count].to_vec())).is_err() {
            return Ok(());
        }
    }
}

/// Parses the bytes of a table file. `path` is used in messages only.
///
/// # Errors
/// When the bytes are not a valid table.
pub fn parse_bytes(path: &Path, form: Format, bytes: &[u8]) -> Result<TableSet, LoadError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => crate::parse::read(path, form, text),
        Err(error) => {
            let line =
                1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            let message = format!("line {line} (byte {}) is not UTF-8 text", error.valid_up_to());
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, message);
            Err(LoadError::Io { path: PathBuf::from(path), source })
        }
    }
}
