//! Saves and restores a flow history, so that it outlives the process.
//!
//! The bytes contain hash keys: store them where only the daemon can read them.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{FlowHash, FlowHistory, HashHistory, NONE, PastHolder, TableHistory};
use crate::{Bind, HashFields, Key, Proto, ROWS};

/// The first bytes. The last of them is the version of the format.
const MAGIC: [u8; 8] = *b"GLBhold\x01";
/// Length of the checksum at the end.
const CHECKSUM: usize = 32;

/// Why bytes are not a flow history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The first bytes are wrong, or the version is another.
    #[error("this is not a flow history, or one of another version")]
    Format,
    /// The checksum is wrong.
    #[error("the flow history is damaged: its checksum is wrong")]
    Checksum,
    /// The content is inconsistent.
    #[error("the flow history is damaged: its content is inconsistent")]
    Content,
}

impl FlowHistory {
    /// Saves the history.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.now.to_le_bytes());
        count(&mut out, self.tables.len());
        for (name, held) in &self.tables {
            text(&mut out, name);
            held.write(&mut out);
        }
        let sum: [u8; CHECKSUM] = Sha256::digest(&out).into();
        out.extend(sum);
        out
    }

    /// Restores a history. `flow_age` is the longest lifetime of a flow, in seconds.
    ///
    /// # Errors
    /// When the bytes are not those that [`Self::to_bytes`] returned.
    pub fn from_bytes(bytes: &[u8], flow_age: u64) -> Result<Self, HistoryError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(HistoryError::Format);
        }
        let (rest, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(HistoryError::Checksum)?;
        if <[u8; CHECKSUM]>::from(Sha256::digest(rest)) != *sum {
            return Err(HistoryError::Checksum);
        }
        let mut reader = ByteReader(rest.get(MAGIC.len()..).unwrap_or_default());
        let history = reader.flow_history(flow_age).filter(|_| reader.0.is_empty());
        history.ok_or(HistoryError::Content)
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend((count as u32).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    count(out, text.len());
    out.extend(text.as_bytes());
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.push(4);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.push(6);
            out.extend(address.octets());
        }
    }
}

fn hash(out: &mut Vec<u8>, hash: FlowHash) {
    out.extend(hash.key.bytes());
    out.push(hash.fields.bits());
}

impl TableHistory {
    fn write(&self, out: &mut Vec<u8>) {
        count(out, self.addresses.len());
        for (backend, healthy) in self.addresses.iter().zip(&self.healthy) {
            address(out, *backend);
            out.push(u8::from(*healthy));
        }
        count(out, self.binds.len());
        for bind in &self.binds {
            address(out, bind.prefix.addr());
            out.extend([bind.prefix.prefix_len(), bind.proto.number()]);
            out.extend(bind.ports.start().to_le_bytes());
            out.extend(bind.ports.end().to_le_bytes());
        }
        count(out, self.hashes.len());
        for hash_history in &self.hashes {
            hash(out, hash_history.hash);
            count(out, hash_history.past.len());
            for past in &hash_history.past {
                out.extend(past.row.to_le_bytes());
                out.extend(past.backend.to_le_bytes());
                out.extend(past.until.to_le_bytes());
            }
        }
        hash(out, self.current);
        self.first.iter().for_each(|first| out.extend(first.to_le_bytes()));
    }
}

/// Reads values from the front of a byte slice; each method returns `None` at the end.
struct ByteReader<'b>(&'b [u8]);

impl ByteReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Reads a list. The number of remaining bytes bounds the allocation.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()? as usize;
        let mut list = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            list.push(one(self)?);
        }
        Some(list)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(taken.to_vec()).ok()
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.take::<4>().map(IpAddr::from),
            6 => self.take::<16>().map(IpAddr::from),
            _ => None,
        }
    }

    fn hash(&mut self) -> Option<FlowHash> {
        let key = Key::new(self.take()?);
        Some(FlowHash { key, fields: HashFields::from_bits(self.byte()?)? })
    }

    fn bind(&mut self) -> Option<Bind> {
        let address = self.address()?;
        let prefix = IpNet::new(address, self.byte()?).ok()?;
        let proto = match self.byte()? {
            6 => Proto::Tcp,
            17 => Proto::Udp,
            _ => return None,
        };
        Some(Bind { prefix, proto, ports: self.u16()?..=self.u16()? })
    }

    fn flow_history(&mut self, flow_age: u64) -> Option<FlowHistory> {
        let now = self.u64()?;
        let tables = self.list(|reader| Some((reader.text()?, reader.held(now)?)))?;
        Some(FlowHistory { tables: tables.into_iter().collect(), now, flow_age })
    }

    fn held(&mut self, now: u64) -> Option<TableHistory> {
        let backends = self.list(|reader| Some((reader.address()?, reader.byte()? == 1)))?;
        let known = backends.len() as u32;
        let (addresses, healthy): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let numbers: std::collections::HashMap<_, _> = addresses.iter().copied().zip(0..).collect();
        let binds = self.list(Self::bind)?;
        let hashes = self.list(|reader| {
            let hash = reader.hash()?;
            let past = reader.list(|reader| {
                let past =
                    PastHolder { row: reader.u16()?, backend: reader.u32()?, until: reader.u64()? };
                (past.backend < known && past.until <= now).then_some(past)
            })?;
            past.is_sorted_by_key(|past| past.row).then_some(HashHistory { hash, past })
        })?;
        let current = self.hash()?;
        let first = (0..ROWS)
            .map(|_| self.u32().filter(|first| *first < known || *first == NONE))
            .collect::<Option<Vec<_>>>()?;
        (numbers.len() == addresses.len()).then_some(TableHistory {
            addresses,
            numbers,
            healthy,
            hashes,
            binds,
            first,
            current,
        })
    }
}
