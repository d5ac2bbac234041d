//! The daemon's state folder on disk: the tables of the pinned generations, the flow history, the drain
//! that is under way, and the table that was rolled back. If the disk fails, the daemon logs that and
//! goes on; damaged files are logged and ignored.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use glb_host::{
    failpoints,
    table_source::{DocumentDigest, TableDocument},
};
use glb_table::LoadError;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::boot_time::BootTimestamp;

/// The record of a generation, written before it becomes active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GenerationRecord {
    /// The generation's number.
    pub(super) number: u64,
    /// The location of its table, which tells the syntax.
    pub(super) path: PathBuf,
    /// The table's text. It holds keys: only the daemon's user may read it.
    pub(super) text: String,
    /// The program and options that it was built with.
    pub(super) release: String,
}

/// The record of a requested drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DrainRecord {
    /// When it was requested.
    #[serde(default)]
    pub(super) requested: BootTimestamp,
    /// How long it waits for traffic to stop, in seconds.
    pub(super) timeout_seconds: f64,
    /// Whether it goes on if traffic has not stopped by then.
    pub(super) force: bool,
    /// Whether it is complete.
    pub(super) is_drained: bool,
}

/// The state folder. Every file in it is replaced as a whole.
#[derive(Debug)]
pub(super) struct StateDir {
    folder: PathBuf,
    /// The contents of the folder's owner file.
    owner: String,
    /// Files that could not be written yet, by name.
    unwritten: BTreeMap<String, Vec<u8>>,
    is_writable: bool,
    /// The folder belongs to another director: it is neither read nor written.
    is_foreign: bool,
}

/// The name of the owner file, which holds the pin folder of the director that uses the state folder.
const OWNER: &str = "pin";

impl GenerationRecord {
    /// The record of generation `number`, built from `document`.
    pub(super) fn new(
        number: u64,
        document: &TableDocument,
        release: &str,
    ) -> Result<Self, LoadError> {
        let text = document.text()?.to_owned();
        Ok(Self { number, path: document.path.clone(), text, release: release.to_owned() })
    }

    /// The table document.
    pub(super) fn document(&self) -> TableDocument {
        TableDocument::new(&self.path, self.text.clone().into_bytes())
    }
}

impl StateDir {
    /// Opens the folder for the daemon whose pin folder is `pin`.
    pub(super) fn open(folder: &Path, pin: &Path) -> Self {
        let mut state_dir = Self {
            folder: folder.to_owned(),
            owner: format!("{}\n", pin.display()),
            unwritten: BTreeMap::new(),
            is_writable: true,
            is_foreign: false,
        };
        match fs::read_to_string(folder.join(OWNER)) {
            Ok(other) if other != state_dir.owner => {
                state_dir.is_foreign = true;
                state_dir.log_failure(&io::Error::other(format!(
                    "it belongs to a director with `bpffs_dir = \"{}\"`; give each director its own `state_dir`",
                    other.trim_end()
                )));
            }
            Ok(_) => {}
            Err(_) => state_dir.put(OWNER, state_dir.owner.clone().into_bytes()),
        }
        state_dir
    }

    /// Logs a failure of the disk, once until it works again.
    fn log_failure(&mut self, error: &io::Error) {
        if std::mem::replace(&mut self.is_writable, false) {
            warn!(
                folder = %self.folder.display(), %error,
                "cannot write to the state folder; forwarding goes on, but the flow history and the \
                 rollback target are lost with this process. Make room on the disk or mend the folder; \
                 the daemon tries again."
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
                self.unwritten.remove(name);
                // A full disk still has room for small files: it is in order only when all are written.
                if self.unwritten.is_empty() && !std::mem::replace(&mut self.is_writable, true) {
                    info!(folder = %self.folder.display(), "the state folder is in order again");
                }
            }
            Err(error) => {
                self.unwritten.insert(name.to_owned(), bytes);
                self.log_failure(&error);
            }
        }
    }

    /// Writes again what could not be written.
    pub(super) fn retry(&mut self) {
        if self.is_writable || self.is_foreign {
            return;
        }
        if self.unwritten.is_empty() {
            // The failed files are not needed any more: write the owner file to see if the disk works.
            self.unwritten.insert(OWNER.to_owned(), self.owner.clone().into_bytes());
        }
        while let Some((name, bytes)) = self.unwritten.pop_first() {
            self.put(&name, bytes);
            if self.unwritten.contains_key(&name) {
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
                warn!(file = %path.display(), %error, "cannot read a file of the state folder; it is ignored");
                None
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if self.is_foreign {
            return;
        }
        self.unwritten.remove(name);
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %path.display(), %error, "cannot remove a file of the state folder");
            }
            _ => {}
        }
    }

    /// Writes a generation's record.
    pub(super) fn keep(&mut self, record: &GenerationRecord) {
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        self.put(&name(record.number), bytes);
    }

    /// The record of a generation, if there is one.
    pub(super) fn record(&self, number: u64) -> Option<GenerationRecord> {
        let bytes = self.get(&name(number))?;
        match serde_json::from_slice::<GenerationRecord>(&bytes) {
            Ok(record) if record.number == number => Some(record),
            _ => {
                let file = self.folder.join(name(number));
                warn!(file = %file.display(), "a file of the state folder is damaged; it is ignored");
                None
            }
        }
    }

    /// Removes the records of all generations but these.
    pub(super) fn forget_all_but(&mut self, numbers: &[u64]) {
        let is_stale = |file: &str| {
            let of = file.strip_prefix("generation-").and_then(|rest| rest.strip_suffix(".json"));
            let number = of.and_then(|number| number.parse().ok());
            file.ends_with(".new") || number.is_some_and(|number| !numbers.contains(&number))
        };
        self.unwritten.retain(|file, _| !is_stale(file));
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Some(file) = entry.file_name().to_str()
                && is_stale(file)
            {
                self.remove(file);
            }
        }
    }

    /// Removes everything about generations after a detach, since it holds keys. The flow history stays.
    pub(super) fn detached(&mut self) {
        self.forget_all_but(&[]);
        self.remove("in-force");
        self.remove("rolled-back");
    }

    /// Writes the flow history.
    pub(super) fn keep_flow_history(&mut self, bytes: Vec<u8>) {
        self.put("holders", bytes);
    }

    /// The flow history that was written last.
    pub(super) fn flow_history(&self) -> Option<Vec<u8>> {
        self.get("holders")
    }

    /// The path of the flow history, for messages.
    pub(super) fn flow_history_file(&self) -> PathBuf {
        self.folder.join("holders")
    }

    /// Writes the numbers of the active and the previous generation.
    pub(super) fn keep_pair(&mut self, current: u64, previous: Option<u64>) {
        let bytes = serde_json::to_vec(&(current, previous)).unwrap_or_default();
        self.put("in-force", bytes);
    }

    /// The numbers of the active and the previous generation that were written last.
    pub(super) fn pair(&self) -> Option<(u64, Option<u64>)> {
        serde_json::from_slice(&self.get("in-force")?).ok()
    }

    /// Writes the record of a drain, or removes it.
    pub(super) fn keep_drain(&mut self, drain: Option<&DrainRecord>) {
        match drain {
            Some(drain) => self.put("drain", serde_json::to_vec(drain).unwrap_or_default()),
            None => self.remove("drain"),
        }
    }

    /// The record of a drain, if one is under way or complete.
    pub(super) fn drain(&self) -> Option<DrainRecord> {
        serde_json::from_slice(&self.get("drain")?).ok()
    }

    /// Writes the digest of the table document that was rolled back, or removes it.
    pub(super) fn keep_rolled_back(&mut self, digest: Option<DocumentDigest>) {
        match digest {
            Some(digest) => self.put("rolled-back", glb_table::hex(&digest).into_bytes()),
            None => self.remove("rolled-back"),
        }
    }

    /// The digest of the table document that was rolled back.
    pub(super) fn rolled_back(&self) -> Option<DocumentDigest> {
        let bytes = self.get("rolled-back")?;
        let text = std::str::from_utf8(&bytes).ok()?;
        let digits = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let digest: Option<Vec<u8>> = (0..32).map(digits).collect();
        digest?.try_into().ok()
    }
}

fn name(number: u64) -> String {
    format!("generation-{number}.json")
}

/// Replaces a file by a new one. There is no sync, which would cost more than everything else: after a
/// crash of the machine the old file may be back, but then the machine's flows are gone too.
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
        // The first error tells more than one of this removal.
        fs::remove_file(&new).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn record(number: u64) -> GenerationRecord {
        let text = format!("table {number}");
        GenerationRecord { number, path: "/etc/glb/table.toml".into(), text, release: "r".into() }
    }

    #[test]
    fn written_state_is_read_again_and_only_its_user_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("deep/state");
        let mut state_dir = StateDir::open(&at, Path::new("/pin"));
        for number in [1, 2, 11] {
            state_dir.keep(&record(number));
        }
        state_dir.keep_flow_history(b"holders".to_vec());
        state_dir.keep_rolled_back(Some([0xa5; 32]));
        let mut state_dir = StateDir::open(&at, Path::new("/pin"));
        assert_eq!(state_dir.record(2), Some(record(2)));
        assert_eq!(
            (state_dir.record(3), state_dir.flow_history()),
            (None, Some(b"holders".to_vec()))
        );
        assert_eq!(state_dir.rolled_back(), Some([0xa5; 32]));
        state_dir.keep_rolled_back(None);
        assert_eq!(state_dir.rolled_back(), None);
        let requested = BootTimestamp::now();
        let drain = DrainRecord { requested, timeout_seconds: 2.0, force: true, is_drained: false };
        assert_eq!(state_dir.drain(), None);
        state_dir.keep_drain(Some(&drain));
        assert_eq!(state_dir.drain(), Some(drain));
        state_dir.keep_drain(None);
        assert_eq!(state_dir.drain(), None);
        state_dir.forget_all_but(&[11]);
        assert_eq!((state_dir.record(2), state_dir.record(11)), (None, Some(record(11))));
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o700);
        let file = at.join("generation-11.json");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        // Damaged files are ignored.
        fs::write(&file, "{\"number\": 11").unwrap();
        fs::write(at.join("rolled-back"), "a5").unwrap();
        assert_eq!((state_dir.record(11), state_dir.rolled_back()), (None, None));
        // A detach removes everything with keys, and keeps the flow history.
        state_dir.keep(&record(11));
        state_dir.keep_pair(11, None);
        state_dir.detached();
        let mut left: Vec<_> =
            fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["holders", "pin"]);
    }

    #[test]
    fn an_unwritable_folder_is_written_when_it_works_again() {
        let mut state_dir = StateDir::open(Path::new("/proc/no/such/folder"), Path::new("/pin"));
        state_dir.keep(&record(1));
        assert!(!state_dir.is_writable);
        assert_eq!(state_dir.record(1), None);
        let folder = tempfile::tempdir().unwrap();
        state_dir.folder = folder.path().to_owned();
        state_dir.retry();
        assert!(state_dir.is_writable && state_dir.unwritten.is_empty());
        assert_eq!(state_dir.record(1), Some(record(1)));
    }

    #[test]
    fn the_folder_is_in_order_only_when_every_file_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut state_dir = StateDir::open(folder.path(), Path::new("/pin"));
        // A folder of the same name: this one file cannot be written.
        fs::create_dir(folder.path().join("holders")).unwrap();
        state_dir.keep_flow_history(b"many".to_vec());
        assert!(!state_dir.is_writable);
        for number in 1..4 {
            state_dir.keep(&record(number));
            state_dir.keep_pair(number, None);
            state_dir.retry();
            assert!(!state_dir.is_writable);
        }
        fs::remove_dir(folder.path().join("holders")).unwrap();
        state_dir.retry();
        assert!(state_dir.is_writable);
        assert_eq!(state_dir.flow_history(), Some(b"many".to_vec()));
        // A record that is not needed any more is not written again.
        fs::create_dir(folder.path().join("generation-9.json")).unwrap();
        state_dir.keep(&record(9));
        assert!(!state_dir.is_writable);
        fs::remove_dir(folder.path().join("generation-9.json")).unwrap();
        state_dir.forget_all_but(&[1]);
        state_dir.retry();
        assert!(state_dir.is_writable && state_dir.record(9).is_none());
    }

    #[test]
    fn a_second_director_does_not_use_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(StateDir::open(folder.path(), Path::new("/pin/a")).is_writable);
        let mut first = StateDir::open(folder.path(), Path::new("/pin/a"));
        first.keep(&record(1));
        first.keep_pair(1, None);
        let mut second = StateDir::open(folder.path(), Path::new("/pin/b"));
        assert!(!second.is_writable);
        // The second one neither reads nor changes the first one's files.
        assert_eq!((second.record(1), second.pair()), (None, None));
        second.keep(&GenerationRecord { text: "another's".into(), ..record(1) });
        second.keep_pair(7, None);
        second.forget_all_but(&[7]);
        assert!(!second.is_writable);
        assert_eq!((first.record(1), first.pair()), (Some(record(1)), Some((1, None))));
        assert!(StateDir::open(folder.path(), Path::new("/pin/a")).is_writable);
    }
}
