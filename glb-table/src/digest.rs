//! Digests that tell whether two directors have the same tables.

use sha2::{Digest as _, Sha256};

use crate::{Backend, Key, Table, TableSet, serialize::bind_address};

/// The digests of a table or table set. They do not depend on the order of the file and do not reveal
/// keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Digest {
    /// Digest of seeds, keys, hash fields, hops, order, binds, backends, weights and zones. It must be
    /// equal on all directors of a fleet.
    #[serde(serialize_with = "as_hex")]
    pub membership: [u8; 32],
    /// Digest of states and health. It may differ while a change is being distributed.
    #[serde(serialize_with = "as_hex")]
    pub order: [u8; 32],
}

/// Formats a digest as hex digits.
#[must_use]
pub fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_hex<S: serde::Serializer>(digest: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(digest))
}

/// Hashes byte strings with their lengths, so that different lists never give the same input.
struct Hasher(Sha256);

impl Hasher {
    fn new(what: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.text(what);
        hasher
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn key(&mut self, key: Option<Key>) {
        self.bytes(key.map(|key| key.bytes()).as_ref().map_or(&[][..], |bytes| bytes));
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl Table {
    /// The table's digests.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut backends: Vec<&Backend> = self.backends.iter().collect();
        backends.sort_by_key(|backend| backend.address);
        let mut binds: Vec<String> = self
            .binds
            .iter()
            .map(|bind| {
                let (first, last) = (bind.ports.start(), bind.ports.end());
                format!("{} {} {first} {last}", bind_address(&bind.prefix), bind.proto)
            })
            .collect();
        binds.sort_unstable();
        let mut membership = Hasher::new("glb-table membership 1");
        membership.text(&self.name);
        for key in [Some(self.hash_key), Some(self.seed), self.alt_hash_key, self.alt_seed] {
            membership.key(key);
        }
        let order = self.order as u8;
        let alternative = self.alt_hash_fields.map_or(0, |fields| fields.bits());
        membership.bytes(&[self.hash_fields.bits(), alternative, self.hops, order]);
        membership.bytes(&(binds.len() as u64).to_le_bytes());
        binds.iter().for_each(|bind| membership.text(bind));
        let mut states = Hasher::new("glb-table order 1");
        states.text(&self.name);
        for backend in backends {
            let address = backend.address.to_string();
            membership.text(&address);
            membership.bytes(&backend.weight.to_le_bytes());
            membership.text(&backend.zone);
            states.text(&address);
            states.text(backend.state.name());
            states.bytes(&[u8::from(backend.healthy)]);
        }
        Digest { membership: membership.finish(), order: states.finish() }
    }
}

impl TableSet {
    /// The digests of all tables together.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut digests: Vec<(&str, Digest)> =
            self.tables.iter().map(|table| (table.name.as_str(), table.digest())).collect();
        digests.sort_by_key(|(name, _)| *name);
        let all = |of: fn(&Digest) -> &[u8; 32]| {
            let mut hasher = Hasher::new("glb-table set 1");
            digests.iter().for_each(|(_, digest)| hasher.bytes(of(digest)));
            hasher.finish()
        };
        Digest { membership: all(|digest| &digest.membership), order: all(|digest| &digest.order) }
    }
}
