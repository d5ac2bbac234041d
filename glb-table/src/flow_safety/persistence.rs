//! The memory as bytes, so that it outlives a process. They hold the hash keys: whoever stores them
//! lets nobody else read them.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{FlowHash, FlowHistory, Held, Layer, NONE, Past};
use crate::{Bind, HashFields, Key, Proto, ROWS};

/// What the bytes begin with; the last one is the form's version.
const MAGIC: [u8; 8] = *b"GLBhold\x01";
/// Length of the sum at the end.
const SUM: usize = 32;

/// Why bytes are not a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// They begin with something else, or are of another version.
    #[error("it is no memory of holders, or one of another version")]
    Format,
    /// They are cut off or changed.
    #[error("it is damaged: its sum is not right")]
    Sum,
    /// They say what cannot be.
    #[error("it is damaged: it says what cannot be")]
    Content,
}

impl FlowHistory {
    /// The memory as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.now.to_le_bytes());
        count(&mut out, self.tables.len());
        for (name, held) in &self.tables {
            text(&mut out, name);
            held.write(&mut out);
        }
        let sum: [u8; SUM] = Sha256::digest(&out).into();
        out.extend(sum);
        out
    }

    /// A memory from bytes. `flow_age` is how long a flow lives at most, in seconds.
    ///
    /// # Errors
    /// When they are not what [`Self::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8], flow_age: u64) -> Result<Self, SavedError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(SavedError::Format);
        }
        let (rest, sum) = bytes.split_last_chunk::<SUM>().ok_or(SavedError::Sum)?;
        if <[u8; SUM]>::from(Sha256::digest(rest)) != *sum {
            return Err(SavedError::Sum);
        }
        let mut reader = Reader(rest.get(MAGIC.len()..).unwrap_or_default());
        let memory = reader.memory(flow_age).filter(|_| reader.0.is_empty());
        memory.ok_or(SavedError::Content)
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

impl Held {
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
        count(out, self.layers.len());
        for layer in &self.layers {
            hash(out, layer.hash);
            count(out, layer.past.len());
            for past in &layer.past {
                out.extend(past.row.to_le_bytes());
                out.extend(past.backend.to_le_bytes());
                out.extend(past.until.to_le_bytes());
            }
        }
        hash(out, self.current);
        self.first.iter().for_each(|first| out.extend(first.to_le_bytes()));
    }
}

/// Takes from the front; nothing when there is too little.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
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

    /// A list; what follows bounds its length, so that a wrong one costs no memory.
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

    fn memory(&mut self, flow_age: u64) -> Option<FlowHistory> {
        let now = self.u64()?;
        let tables = self.list(|reader| Some((reader.text()?, reader.held(now)?)))?;
        Some(FlowHistory { tables: tables.into_iter().collect(), now, flow_age })
    }

    fn held(&mut self, now: u64) -> Option<Held> {
        let backends = self.list(|reader| Some((reader.address()?, reader.byte()? == 1)))?;
        let known = backends.len() as u32;
        let (addresses, healthy): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let numbers: std::collections::HashMap<_, _> = addresses.iter().copied().zip(0..).collect();
        let binds = self.list(Self::bind)?;
        let layers = self.list(|reader| {
            let hash = reader.hash()?;
            let past = reader.list(|reader| {
                let past =
                    Past { row: reader.u16()?, backend: reader.u32()?, until: reader.u64()? };
                (past.backend < known && past.until <= now).then_some(past)
            })?;
            past.is_sorted_by_key(|past| past.row).then_some(Layer { hash, past })
        })?;
        let current = self.hash()?;
        let first = (0..ROWS)
            .map(|_| self.u32().filter(|first| *first < known || *first == NONE))
            .collect::<Option<Vec<_>>>()?;
        (numbers.len() == addresses.len()).then_some(Held {
            addresses,
            numbers,
            healthy,
            layers,
            binds,
            first,
            current,
        })
    }
}
