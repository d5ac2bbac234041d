//! `glb-director table new`

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, anyhow};
use glb_table::Key;

use super::print;

pub(super) fn execute(file: &Path) -> anyhow::Result<()> {
    let text = text(random_key()?, random_key()?);
    let mut created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|error| anyhow!("cannot create {}: {error}", file.display()))?;
    created
        .write_all(text.as_bytes())
        .and_then(|()| created.sync_all())
        .map_err(|error| anyhow!("cannot write {}: {error}", file.display()))?;
    print::out(&format!(
        "{}: a new table with random keys. Set its binds and backends, then run \
         `glb-director table check {0}`\n",
        file.display()
    ))
}

fn random_key() -> anyhow::Result<Key> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read random bytes from /dev/urandom")?;
    Ok(Key::new(bytes))
}

fn text(hash_key: Key, seed: Key) -> String {
    format!(
        r#"# The forwarding table, the same on all directors of a fleet. docs/table.md describes every key.
# It holds secrets: a client that knows the keys can direct all its flows to one backend.

[[tables]]
name = "web"
# Random keys, made for this file.
hash_key = "{}"
seed = "{}"

# What clients connect to: replace the address with your VIP.
[[tables.binds]]
ip = "203.0.113.10"
proto = "tcp"
port = 443

# The servers, one block each. The health checker sets `healthy`.
[[tables.backends]]
ip = "10.0.2.21"
state = "active"
healthy = true

[[tables.backends]]
ip = "10.0.2.22"
state = "active"
healthy = true
"#,
        hash_key.to_hex(),
        seed.to_hex()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_tables_are_valid_without_warnings_and_differ_in_their_keys() {
        let new = || {
            let text = text(random_key().unwrap(), random_key().unwrap());
            glb_table::parse_bytes("t.toml".as_ref(), glb_table::Format::Toml, text.as_bytes())
                .unwrap()
        };
        let (one, two) = (new(), new());
        assert!(one.warnings.is_empty(), "{:?}", one.warnings);
        assert_ne!(one.tables[0].hash_key, two.tables[0].hash_key);
        assert_ne!(one.tables[0].seed, one.tables[0].hash_key);
    }
}
