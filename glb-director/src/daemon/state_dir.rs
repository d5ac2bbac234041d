//! What the daemon keeps on disk: the tables of the pinned generations, who may hold flows, and that
//! a table was rolled back. Without a disk it goes on and says so; what is damaged is said and left.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use glb_host::failpoints;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::boot_time::Moment;

/// A file's contents, by its SHA-256.
pub(super) type Sum = [u8; 32];

/// A generation, as it was when it came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its number.
    pub(super) number: u64,
    /// The table file that it was made from, for messages and for its form.
    pub(super) path: PathBuf,
    /// What stood in it. With keys: nobody else may read it.
    pub(super) text: String,
    /// Which program it was made with, and from which configuration.
    pub(super) release: String,
}

/// A drain that somebody asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Drain {
    /// When.
    #[serde(default)]
    pub(super) asked: Moment,
    /// How long packets may take to cease, in seconds.
    pub(super) timeout_seconds: f64,
    /// Whether it goes on when they have not.
    pub(super) force: bool,
    /// Whether it is done.
    pub(super) is_drained: bool,
}

/// The folder. Every file in it is replaced as a whole.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    /// What the folder says of whose it is.
    owner: String,
    /// What could not be written yet, by the files' names.
    owed: BTreeMap<String, Vec<u8>>,
    is_well: bool,
    /// It is another director's: nothing is read there, and nothing written.
    is_foreign: bool,
}

/// Holds the owner.
const OWNER: &str = "pin";

impl Store {
    /// Opens the folder for the daemon that pins at `pin`.
    pub(super) fn open(folder: &Path, pin: &Path) -> Self {
        let mut store = Self {
            folder: folder.to_owned(),
            owner: format!("{}\n", pin.display()),
            owed: BTreeMap::new(),
            is_well: true,
            is_foreign: false,
        };
        match fs::read_to_string(folder.join(OWNER)) {
            Ok(other) if other != store.owner => {
                store.is_foreign = true;
                store.is_ill(&io::Error::other(format!(
                    "it belongs to a director with `bpffs_dir = \"{}\"`; give each director its own `state_dir`",
                    other.trim_end()
                )));
            }
            Ok(_) => {}
            Err(_) => store.put(OWNER, store.owner.clone().into_bytes()),
        }
        store
    }

    /// Says once that the disk fails.
    fn is_ill(&mut self, error: &io::Error) {
        if std::mem::replace(&mut self.is_well, false) {
            warn!(
                folder = %self.folder.display(), %error,
                "cannot write to the state folder: forwarding is not touched by that, but who may hold \
                 flows, and what `rollback` leads to, will not outlive this process; it is tried again"
            );
        }
    }

    fn put(&mut self, name: &str, bytes: Vec<u8>) {
        if self.is_foreign {
            return;
        }
        let result = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .and_then(|()| write(&self.folder.join(name), &bytes));
        match result {
            Ok(()) => {
                self.owed.remove(name);
                // Of a full disk some of what is small still finds room: all must be there.
                if self.owed.is_empty() && !std::mem::replace(&mut self.is_well, true) {
                    info!(folder = %self.folder.display(), "the state folder is in order again");
                }
            }
            Err(error) => {
                self.owed.insert(name.to_owned(), bytes);
                self.is_ill(&error);
            }
        }
    }

    /// Tries again what could not be written.
    pub(super) fn retry(&mut self) {
        if self.is_well || self.is_foreign {
            return;
        }
        if self.owed.is_empty() {
            // What was owed is not wanted any more; whether the disk is well again is to be seen.
            self.owed.insert(OWNER.to_owned(), self.owner.clone().into_bytes());
        }
        while let Some((name, bytes)) = self.owed.pop_first() {
            self.put(&name, bytes);
            if self.owed.contains_key(&name) {
                break;
            }
        }
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        if self.is_foreign {
            return None;
        }
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(file = %path.display(), %error, "cannot be read; it is passed over");
                None
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if self.is_foreign {
            return;
        }
        self.owed.remove(name);
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "cannot be removed");
            }
            _ => {}
        }
    }

    /// Keeps a generation's table.
    pub(super) fn keep(&mut self, record: &Record) {
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        self.put(&name(record.number), bytes);
    }

    /// The table of a generation, if it was kept.
    pub(super) fn record(&self, number: u64) -> Option<Record> {
        let bytes = self.get(&name(number))?;
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.number == number => Some(record),
            _ => {
                let file = self.folder.join(name(number));
                warn!(file = %file.display(), "is damaged; it is passed over");
                None
            }
        }
    }

    /// Forgets all generations but these.
    pub(super) fn forget_all_but(&mut self, numbers: &[u64]) {
        let is_stale = |file: &str| {
            let of = file.strip_prefix("generation-").and_then(|rest| rest.strip_suffix(".json"));
            let number = of.and_then(|number| number.parse().ok());
            file.ends_with(".new") || number.is_some_and(|number| !numbers.contains(&number))
        };
        self.owed.retain(|file, _| !is_stale(file));
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Some(file) = entry.file_name().to_str()
                && is_stale(file)
            {
                self.remove(file);
            }
        }
    }

    /// Nothing is pinned any more: forgets what was kept of it, which holds keys. Who may hold flows is
    /// kept.
    pub(super) fn detached(&mut self) {
        self.forget_all_but(&[]);
        self.remove("in-force");
        self.remove("rolled-back");
    }

    /// Keeps who may hold flows.
    pub(super) fn keep_holders(&mut self, bytes: Vec<u8>) {
        self.put("holders", bytes);
    }

    /// Who may hold flows, as kept last.
    pub(super) fn holders(&self) -> Option<Vec<u8>> {
        self.get("holders")
    }

    /// Where the holders are, for messages.
    pub(super) fn holders_file(&self) -> PathBuf {
        self.folder.join("holders")
    }

    /// Keeps which generation is in force, and which one is the way back.
    pub(super) fn keep_pair(&mut self, current: u64, previous: Option<u64>) {
        let bytes = serde_json::to_vec(&(current, previous)).unwrap_or_default();
        self.put("in-force", bytes);
    }

    /// Which generation was in force, and which one the way back.
    pub(super) fn pair(&self) -> Option<(u64, Option<u64>)> {
        serde_json::from_slice(&self.get("in-force")?).ok()
    }

    /// Keeps that the director is being drained or is drained, or that it is not any more.
    pub(super) fn keep_drain(&mut self, drain: Option<&Drain>) {
        match drain {
            Some(drain) => self.put("drain", serde_json::to_vec(drain).unwrap_or_default()),
            None => self.remove("drain"),
        }
    }

    /// Whether the director was being drained or was drained.
    pub(super) fn drain(&self) -> Option<Drain> {
        serde_json::from_slice(&self.get("drain")?).ok()
    }

    /// Keeps which table file was rolled back.
    pub(super) fn keep_rolled_back(&mut self, sum: Option<Sum>) {
        match sum {
            Some(sum) => self.put("rolled-back", glb_table::hex(&sum).into_bytes()),
            None => self.remove("rolled-back"),
        }
    }

    /// Which table file was rolled back.
    pub(super) fn rolled_back(&self) -> Option<Sum> {
        let bytes = self.get("rolled-back")?;
        let text = std::str::from_utf8(&bytes).ok()?;
        let digits = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let sum: Option<Vec<u8>> = (0..32).map(digits).collect();
        sum?.try_into().ok()
    }
}

fn name(number: u64) -> String {
    format!("generation-{number}.json")
}

/// A new file in the old one's place. After a crash of the machine it may be the old one: what is
/// kept here is only needed with the machine's flows, and a sync costs more than all the rest.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            failpoints::point("store")
        })
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The first error says more.
        fs::remove_file(&new).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn record(number: u64) -> Record {
        let text = format!("table {number}");
        Record { number, path: "/etc/glb/table.toml".into(), text, release: "r".into() }
    }

    #[test]
    fn what_is_kept_is_found_again_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("deep/state");
        let mut store = Store::open(&at, Path::new("/pin"));
        for number in [1, 2, 11] {
            store.keep(&record(number));
        }
        store.keep_holders(b"holders".to_vec());
        store.keep_rolled_back(Some([0xa5; 32]));
        let mut store = Store::open(&at, Path::new("/pin"));
        assert_eq!(store.record(2), Some(record(2)));
        assert_eq!((store.record(3), store.holders()), (None, Some(b"holders".to_vec())));
        assert_eq!(store.rolled_back(), Some([0xa5; 32]));
        store.keep_rolled_back(None);
        assert_eq!(store.rolled_back(), None);
        let asked = Moment::now();
        let drain = Drain { asked, timeout_seconds: 2.0, force: true, is_drained: false };
        assert_eq!(store.drain(), None);
        store.keep_drain(Some(&drain));
        assert_eq!(store.drain(), Some(drain));
        store.keep_drain(None);
        assert_eq!(store.drain(), None);
        store.forget_all_but(&[11]);
        assert_eq!((store.record(2), store.record(11)), (None, Some(record(11))));
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o700);
        let file = at.join("generation-11.json");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        // Damage is survived.
        fs::write(&file, "{\"number\": 11").unwrap();
        fs::write(at.join("rolled-back"), "a5").unwrap();
        assert_eq!((store.record(11), store.rolled_back()), (None, None));
        // Detached: what holds keys goes, and who may hold flows stays.
        store.keep(&record(11));
        store.keep_pair(11, None);
        store.detached();
        let mut left: Vec<_> =
            fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["holders", "pin"]);
    }

    #[test]
    fn without_a_disk_it_goes_on() {
        let mut store = Store::open(Path::new("/proc/no/such/folder"), Path::new("/pin"));
        store.keep(&record(1));
        assert!(!store.is_well);
        assert_eq!(store.record(1), None);
        // And is in order again when the disk is.
        let folder = tempfile::tempdir().unwrap();
        store.folder = folder.path().to_owned();
        store.retry();
        assert!(store.is_well && store.owed.is_empty());
        assert_eq!(store.record(1), Some(record(1)));
    }

    #[test]
    fn a_disk_is_in_order_when_all_is_there_that_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), Path::new("/pin"));
        // A folder in its place: this one file cannot be written.
        fs::create_dir(folder.path().join("holders")).unwrap();
        store.keep_holders(b"many".to_vec());
        assert!(!store.is_well);
        for number in 1..4 {
            store.keep(&record(number));
            store.keep_pair(number, None);
            store.retry();
            assert!(!store.is_well);
        }
        fs::remove_dir(folder.path().join("holders")).unwrap();
        store.retry();
        assert!(store.is_well);
        assert_eq!(store.holders(), Some(b"many".to_vec()));
        // What is not wanted any more is not owed either.
        fs::create_dir(folder.path().join("generation-9.json")).unwrap();
        store.keep(&record(9));
        assert!(!store.is_well);
        fs::remove_dir(folder.path().join("generation-9.json")).unwrap();
        store.forget_all_but(&[1]);
        store.retry();
        assert!(store.is_well && store.record(9).is_none());
    }

    #[test]
    fn two_directors_do_not_share_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Store::open(folder.path(), Path::new("/pin/a")).is_well);
        let mut first = Store::open(folder.path(), Path::new("/pin/a"));
        first.keep(&record(1));
        first.keep_pair(1, None);
        let mut second = Store::open(folder.path(), Path::new("/pin/b"));
        assert!(!second.is_well);
        // What it does harms the other one's nowhere, and it does not take the other one's for its own.
        assert_eq!((second.record(1), second.pair()), (None, None));
        second.keep(&Record { text: "another's".into(), ..record(1) });
        second.keep_pair(7, None);
        second.forget_all_but(&[7]);
        assert!(!second.is_well);
        assert_eq!((first.record(1), first.pair()), (Some(record(1)), Some((1, None))));
        assert!(Store::open(folder.path(), Path::new("/pin/a")).is_well);
    }
}
