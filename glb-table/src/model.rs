//! What a table file means, once nothing in it is wrong.

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
/// Most hops of a row.
pub const MAX_HOPS: u8 = 4;
/// Most tables in one file.
pub const MAX_TABLES: usize = 1_024;
/// Most backends of all tables together; a row holds 16-bit indices.
pub const MAX_BACKENDS: usize = 65_535;
/// Most binds of all tables together; a range of ports is one bind.
pub const MAX_BINDS: usize = 65_536;
/// Most bytes of rows of all tables together ([`Table::rows_bytes`]): what a director's program can
/// address.
pub const MAX_ROWS_BYTES: usize = abi::MAX_ROWS * size_of::<TableRows>();
/// Longest name of a table or a zone, in bytes.
pub const MAX_NAME: usize = 63;
/// Largest table file, in bytes.
pub const MAX_FILE: u64 = 64 << 20;

/// All tables of a file. Nothing in it is wrong, and no two binds claim the same packet.
#[derive(Clone, Debug)]
pub struct TableSet {
    /// The tables, in the file's order.
    pub tables: Vec<Table>,
    /// What is allowed but doubtful.
    pub warnings: Vec<Diagnostic>,
    /// GLB's top-level `healthchecks`, which nothing here looks into.
    pub healthchecks: Option<Json>,
}

/// One table: what it answers for, and who serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its name, unique in the file; counters belong to it.
    pub name: String,
    /// Keys the flow hash.
    pub hash_key: Key,
    /// Keys the rank of backends in rows.
    pub seed: Key,
    /// What of a flow is hashed.
    pub hash_fields: HashFields,
    /// The fields before a migration: the row they lead to adds its hops.
    pub alt_hash_fields: Option<HashFields>,
    /// The hash key before a rotation: the row it leads to adds its hops.
    pub alt_hash_key: Option<Key>,
    /// The seed before a rotation: its rows' hops are added.
    pub alt_seed: Option<Key>,
    /// How many hops a row has, 2 to 4, if there are as many usable backends.
    pub hops: u8,
    /// Which rule puts the hops of a row in order.
    pub order: Order,
    /// What packets are this table's.
    pub binds: Vec<Bind>,
    /// Who serves them, all of one address family; a row's indices point here.
    pub backends: Vec<Backend>,
    /// Checks for all backends, kept for the health checker.
    pub healthchecks: Option<Json>,
}

/// Which rule puts the hops of a row in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Who can take new connections stands before who cannot.
    #[default]
    HealthyFirst,
    /// GLB's rule with its faults T1 and T2, for a fleet that is half GLB's.
    Glb,
}

/// Packets to `prefix` and one of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bind {
    /// The VIP or VIPs; no host bits.
    pub prefix: IpNet,
    /// The protocol.
    pub proto: Proto,
    /// Destination ports, never empty, from 1.
    pub ports: RangeInclusive<u16>,
}

/// A bind's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
}

/// A server behind the tables' VIPs.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Where packets for it are sent; its identity.
    pub address: IpAddr,
    /// What the operator wants of it.
    pub state: State,
    /// What the health checker says of it.
    pub healthy: bool,
    /// Its share of the rows is its weight over the sum of all weights.
    pub weight: u16,
    /// The zone it stands in; empty if none is given.
    pub zone: String,
    /// Its checks, kept for the health checker.
    pub healthchecks: Option<Json>,
}

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new connections; it came only lately, so others should not be changed yet.
    Filling,
    /// Takes new connections.
    Active,
    /// Keeps its connections and takes no new ones.
    Draining,
    /// Is in no row.
    Inactive,
}

impl State {
    /// Every state, as it is written.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("filling", Self::Filling),
        ("active", Self::Active),
        ("draining", Self::Draining),
        ("inactive", Self::Inactive),
    ];

    /// The word in a table file.
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
    /// The word in a table file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number in an IP header.
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

    /// Whether it stands in rows at all.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state != State::Inactive
    }

    /// Whether it can take new connections.
    #[must_use]
    pub fn takes_new(&self) -> bool {
        self.healthy && matches!(self.state, State::Active | State::Filling)
    }
}

impl Table {
    /// Whether an alternative row adds its hops to each row.
    #[must_use]
    pub fn has_alternative(&self) -> bool {
        self.alt_hash_fields.is_some() || self.alt_hash_key.is_some() || self.alt_seed.is_some()
    }

    /// Memory of its rows in a director, once as many backends are usable as a row has hops. Two
    /// hops stand together; another seed leads to rows of their own.
    #[must_use]
    pub fn rows_bytes(&self) -> usize {
        let rows = 1 + usize::from(self.alt_seed.is_some());
        rows * usize::from(self.hops).div_ceil(2) * size_of::<TableRows>()
    }

    /// Which backends stand in rows.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.backends.iter().filter(|backend| backend.is_usable()).count()
    }
}

/// Reads a table file: GLB's JSON if its name ends in `.json`, else TOML.
///
/// # Errors
/// The file cannot be read, or something in it is wrong: then every problem is in the error.
pub fn load(path: &Path) -> Result<TableSet, LoadError> {
    parse_bytes(path, Format::of_path(path), &read_bytes(path)?)
}

/// Reads a table file's bytes, and does not wait for a pipe.
///
/// # Errors
/// It cannot be read, is no regular file, or is longer than [`MAX_FILE`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { path: PathBuf::from(path), source };
    // Asked before it is opened: opening a pipe would wait for a writer.
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

/// Reads a table from bytes that were read from `path`, or are to be written there.
///
/// # Errors
/// As [`load`].
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
