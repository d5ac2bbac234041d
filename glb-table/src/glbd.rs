//! GLB's binary table format, `GLBD` version 2: little-endian, packed, 256 slots for backends and binds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{Backend, Bind, HashFields, Key, Proto, ROWS, Rows, State, Table, TableSet};

const MAGIC: &[u8; 4] = b"GLBD";
const VERSION: u32 = 2;
/// Number of backend slots, and of bind slots, in each table.
pub const SLOTS: usize = 256;
const HEADER: usize = 24;
const BACKEND: usize = 24;
const BIND: usize = 28;
const TABLE: usize = 4 + SLOTS * BACKEND + 4 + SLOTS * BIND + 16 + ROWS * 8;

/// Why a table set cannot be exported, or bytes cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlbdError {
    /// The format cannot hold the table.
    #[error("table \"{table}\" {what}; {help}")]
    Export {
        /// The name of the table.
        table: String,
        /// What the format cannot hold.
        what: String,
        /// What to do.
        help: &'static str,
    },
    /// The bytes are not a valid GLBD file.
    #[error("byte {at}: {what}")]
    Import {
        /// The offset in the file.
        at: usize,
        /// What is wrong.
        what: String,
    },
}

/// Exports a table set as a GLBD file.
///
/// # Errors
/// When a table has more than the format holds: 256 IPv4 backends, 256 binds, two hops, one key.
pub fn export(set: &TableSet) -> Result<Vec<u8>, GlbdError> {
    for table in &set.tables {
        fits(table)?;
    }
    let mut out = Vec::with_capacity(HEADER + set.tables.len() * TABLE);
    out.extend(MAGIC);
    for word in [VERSION, set.tables.len() as u32, ROWS as u32, SLOTS as u32, SLOTS as u32] {
        out.extend(word.to_le_bytes());
    }
    for table in &set.tables {
        write_table(&mut out, table);
    }
    Ok(out)
}

fn fits(table: &Table) -> Result<(), GlbdError> {
    let refuse =
        |what: String, help| Err(GlbdError::Export { table: table.name.clone(), what, help });
    if table.backends.len() > SLOTS {
        return refuse(
            format!("has {} backends", table.backends.len()),
            "a GLBD file holds 256 per table",
        );
    }
    if table.binds.len() > SLOTS {
        return refuse(
            format!("has {} binds", table.binds.len()),
            "a GLBD file holds 256 per table",
        );
    }
    if table.backends.iter().any(|backend| backend.address.is_ipv6()) {
        return refuse("has IPv6 backends".into(), "GLB's directors send to IPv4 only");
    }
    if table.hops > 2 {
        return refuse(
            format!("has {} hops", table.hops),
            "a GLBD file's rows have two; export it with hops = 2",
        );
    }
    if table.alt_hash_key.is_some() || table.alt_seed.is_some() {
        return refuse(
            "has an alternative key or seed".into(),
            "a GLBD file has one of each; finish the rotation first",
        );
    }
    Ok(())
}

/// The settings of a table that a GLBD file does not hold and GLB's director.conf needs.
#[must_use]
pub fn notes(table: &Table) -> Vec<String> {
    let mut notes = Vec::new();
    let list = |fields| crate::hash_field_names(fields).join(", ");
    if table.hash_fields != HashFields::default() {
        notes.push(format!(
            "table \"{}\": set hash_fields to {} in director.conf",
            table.name,
            list(table.hash_fields)
        ));
    }
    if let Some(fields) = table.alt_hash_fields {
        notes.push(format!(
            "table \"{}\": set alt_hash_fields to {} in director.conf",
            table.name,
            list(fields)
        ));
    }
    notes
}

fn write_table(out: &mut Vec<u8>, table: &Table) {
    let start = out.len();
    out.extend((table.backends.len() as u32).to_le_bytes());
    for backend in &table.backends {
        write_address(out, backend.address);
        let state: u16 = match backend.state {
            State::Filling => 0,
            State::Active => 1,
            State::Draining | State::Inactive => 2,
        };
        out.extend(state.to_le_bytes());
        out.extend(u16::from(backend.healthy).to_le_bytes());
    }
    out.resize(start + 4 + SLOTS * BACKEND, 0);
    out.extend((table.binds.len() as u32).to_le_bytes());
    for bind in &table.binds {
        write_address(out, bind.prefix.addr());
        out.extend(u16::from(bind.prefix.prefix_len()).to_le_bytes());
        out.extend(bind.ports.start().to_le_bytes());
        out.extend(bind.ports.end().to_le_bytes());
        out.extend([bind.proto.number(), 0]);
    }
    out.resize(start + 8 + SLOTS * (BACKEND + BIND), 0);
    out.extend(table.hash_key.bytes());
    let rows = table.rows();
    for row in rows.iter() {
        let first = row.first().copied().unwrap_or_default();
        // With one usable backend the second hop repeats the first; GLB's backends accept that.
        let second = row.get(1).copied().unwrap_or(first);
        out.extend((u64::from(second) << 32 | u64::from(first)).to_le_bytes());
    }
}

fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    let mut bytes = [0; 20];
    match address {
        IpAddr::V4(address) => {
            bytes[0] = 1;
            bytes[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[0] = 2;
            bytes[4..].copy_from_slice(&address.octets());
        }
    }
    out.extend(bytes);
}

/// A table of a GLBD file: everything except name, seed, hash fields and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct GlbdTable {
    /// The backends. The format writes inactive as draining, so a draining one in no row is inactive.
    pub backends: Vec<Backend>,
    /// The binds. Host bits, which GLB leaves in a prefix, are cleared.
    pub binds: Vec<Bind>,
    /// The hash key.
    pub hash_key: Key,
    /// The rows, with two hops, or with one if every row repeats its backend.
    pub rows: Rows,
}

/// Whether the bytes begin like a GLBD file.
#[must_use]
pub fn is_glbd(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Imports a GLBD file.
///
/// # Errors
/// When anything is inconsistent: the size, an index without a backend, an unknown state.
pub fn import(bytes: &[u8]) -> Result<Vec<GlbdTable>, GlbdError> {
    let wrong = |at, what: String| Err(GlbdError::Import { at, what });
    if !is_glbd(bytes) {
        return wrong(0, "the file does not start with GLBD".into());
    }
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return wrong(bytes.len(), format!("the header of {HEADER} bytes is cut short"));
    };
    let words = [
        (4, VERSION, "version"),
        (12, ROWS as u32, "number of rows"),
        (16, SLOTS as u32, "backend slots"),
        (20, SLOTS as u32, "bind slots"),
    ];
    for (at, expected, what) in words {
        let found = u32_at(header, at);
        if found != expected {
            return wrong(at, format!("the {what} is {found}; it must be {expected}"));
        }
    }
    let tables = u32_at(header, 8) as usize;
    let expected = tables.checked_mul(TABLE).and_then(|size| size.checked_add(HEADER));
    if expected != Some(bytes.len()) {
        let size =
            expected.map_or("more bytes than there are".into(), |size| format!("{size} bytes"));
        return wrong(8, format!("{tables} tables take {size}; the file has {}", bytes.len()));
    }
    if tables == 0 {
        return wrong(8, "the file holds no table".into());
    }
    bytes[HEADER..]
        .chunks_exact(TABLE)
        .enumerate()
        .map(|(index, table)| TableReader { bytes: table, base: HEADER + index * TABLE }.table())
        .collect()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads one table of a GLBD file.
struct TableReader<'b> {
    bytes: &'b [u8],
    /// Offset of the table in the file.
    base: usize,
}

impl TableReader<'_> {
    fn wrong<T>(&self, at: usize, what: String) -> Result<T, GlbdError> {
        Err(GlbdError::Import { at: self.base + at, what })
    }

    fn count(&self, at: usize, what: &str) -> Result<usize, GlbdError> {
        let count = u32_at(self.bytes, at) as usize;
        if count == 0 || count > SLOTS {
            return self.wrong(at, format!("there are {count} {what}; there must be 1 to {SLOTS}"));
        }
        Ok(count)
    }

    fn address(&self, at: usize) -> Result<IpAddr, GlbdError> {
        let octets: [u8; 16] = std::array::from_fn(|i| self.bytes[at + 4 + i]);
        match u32_at(self.bytes, at) {
            1 => Ok(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()),
            2 => Ok(Ipv6Addr::from(octets).into()),
            family => {
                self.wrong(at, format!("address family {family}; it must be 1 (IPv4) or 2 (IPv6)"))
            }
        }
    }

    fn backend(&self, at: usize) -> Result<Backend, GlbdError> {
        let address = self.address(at)?;
        if address.is_ipv6() || address.is_unspecified() || address.is_multicast() {
            return self.wrong(at, format!("{address} cannot be a backend of a GLBD file"));
        }
        let state = match u16_at(self.bytes, at + 20) {
            0 => State::Filling,
            1 => State::Active,
            2 => State::Draining,
            state => return self.wrong(at + 20, format!("state {state}; it must be 0, 1 or 2")),
        };
        let healthy = match u16_at(self.bytes, at + 22) {
            0 => false,
            1 => true,
            health => return self.wrong(at + 22, format!("health {health}; it must be 0 or 1")),
        };
        Ok(Backend { state, healthy, ..Backend::new(address) })
    }

    fn bind(&self, at: usize) -> Result<Bind, GlbdError> {
        let address = self.address(at)?;
        let bits = u16_at(self.bytes, at + 20);
        let prefix = u8::try_from(bits).ok().and_then(|bits| IpNet::new(address, bits).ok());
        let Some(prefix) = prefix else {
            return self.wrong(at + 20, format!("{address} has a prefix of {bits} bits"));
        };
        let (first, last) = match (u16_at(self.bytes, at + 22), u16_at(self.bytes, at + 24)) {
            // GLB writes "any port" as 0 to 65535. No flow has port 0.
            (0, u16::MAX) => (1, u16::MAX),
            ports => ports,
        };
        if first == 0 || first > last {
            return self.wrong(
                at + 22,
                format!("ports {first} to {last} are not a range from 1 to 65535"),
            );
        }
        let proto = match self.bytes[at + 26] {
            6 => Proto::Tcp,
            17 => Proto::Udp,
            proto => {
                return self
                    .wrong(at + 26, format!("protocol {proto}; it must be 6 (TCP) or 17 (UDP)"));
            }
        };
        Ok(Bind { prefix: prefix.trunc(), proto, ports: first..=last })
    }

    fn table(&self) -> Result<GlbdTable, GlbdError> {
        let count = self.count(0, "backends")?;
        let mut backends =
            (0..count).map(|i| self.backend(4 + i * BACKEND)).collect::<Result<Vec<_>, _>>()?;
        for (i, backend) in backends.iter().enumerate() {
            if backends[..i].iter().any(|other| other.address == backend.address) {
                return self.wrong(
                    4 + i * BACKEND,
                    format!("backend {} is listed twice", backend.address),
                );
            }
        }
        let binds_at = 4 + SLOTS * BACKEND;
        let binds = self.count(binds_at, "binds")?;
        let binds = (0..binds)
            .map(|i| self.bind(binds_at + 4 + i * BIND))
            .collect::<Result<Vec<_>, _>>()?;
        let key_at = binds_at + 4 + SLOTS * BIND;
        let hash_key = Key::new(std::array::from_fn(|i| self.bytes[key_at + i]));
        let rows_at = key_at + 16;
        let mut indices = Vec::with_capacity(ROWS * 2);
        for at in (rows_at..TABLE).step_by(4) {
            let index = u32_at(self.bytes, at) as usize;
            if index >= count {
                let row = (at - rows_at) / 8;
                return self.wrong(at, format!("row {row} names backend {index} of {count}"));
            }
            indices.push(index as u16);
        }
        let twins = indices.chunks_exact(2).filter(|row| row[0] == row[1]).count();
        let rows = if twins == ROWS {
            Rows::from_flat(1, indices.into_iter().step_by(2).collect())
        } else {
            Rows::from_flat(2, indices)
        };
        let Some(rows) = rows else { return self.wrong(rows_at, "the rows are cut short".into()) };
        let mut used = vec![false; count];
        rows.as_flat().iter().for_each(|index| used[usize::from(*index)] = true);
        for (backend, used) in backends.iter_mut().zip(used) {
            if !used && backend.state == State::Draining {
                backend.state = State::Inactive;
            }
        }
        Ok(GlbdTable { backends, binds, hash_key, rows })
    }
}

impl GlbdTable {
    /// The table, with the name and seed that the file does not hold.
    #[must_use]
    pub fn with_name_and_seed(&self, name: &str, seed: Key) -> Table {
        Table {
            name: name.to_owned(),
            hash_key: self.hash_key,
            seed,
            hash_fields: HashFields::default(),
            alt_hash_fields: None,
            alt_hash_key: None,
            alt_seed: None,
            hops: 2,
            order: crate::Order::Glb,
            binds: self.binds.clone(),
            backends: self.backends.clone(),
            healthchecks: None,
        }
    }

    /// The number of rows in which the file and this table differ.
    #[must_use]
    pub fn differing_rows(&self, table: &Table) -> usize {
        let rows = table.rows();
        let pairs = self.rows.iter().zip(rows.iter());
        pairs.filter(|(a, b)| a.first() != b.first() || a.last() != b.last()).count()
    }
}
