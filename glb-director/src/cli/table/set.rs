//! `glb-director table set`

use std::{
    fs::{self, File},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use glb_table::{
    State, atomic_file,
    edit::{self, Change, EditError},
};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::print;
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The table file.
    file: PathBuf,
    /// The backend's address.
    backend: IpAddr,
    /// Its new state.
    #[arg(long, value_enum)]
    state: Wanted,
    /// In this table only; otherwise in every table that has the backend.
    #[arg(long)]
    table: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wanted {
    Filling,
    Active,
    Draining,
    Inactive,
}

impl From<Wanted> for State {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Filling => Self::Filling,
            Wanted::Active => Self::Active,
            Wanted::Draining => Self::Draining,
            Wanted::Inactive => Self::Inactive,
        }
    }
}

#[derive(Serialize)]
struct Done<'p> {
    file: &'p Path,
    changes: Vec<Change>,
}

/// Takes the file for this process. Whoever waits for it finds another file in its place afterwards,
/// and waits for that one.
fn lock(file: &Path) -> anyhow::Result<Option<Flock<File>>> {
    loop {
        // What is wrong with the file is said when it is read.
        let Ok(found) = fs::metadata(file) else { return Ok(None) };
        if !found.is_file() {
            return Ok(None);
        }
        let Ok(open) = File::open(file) else { return Ok(None) };
        let lock = Flock::lock(open, FlockArg::LockExclusive)
            .map_err(|(_, errno)| anyhow!("cannot lock {}: {errno}", file.display()))?;
        let id = |found: &fs::Metadata| (found.dev(), found.ino());
        let held = lock.metadata()?;
        if fs::metadata(file).is_ok_and(|now| id(&now) == id(&held)) {
            return Ok(Some(lock));
        }
    }
}

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let file = &arguments.file;
    let read = || {
        fs::read_to_string(file).map_err(|error| anyhow!("cannot read {}: {error}", file.display()))
    };
    // Held until the end: two changes made at once are made one after the other.
    let _lock = lock(file)?;
    let old = read()?;
    let edited = edit::set_state(
        file,
        &old,
        arguments.backend,
        arguments.state.into(),
        arguments.table.as_deref(),
    );
    let (new, changes) = match edited {
        Ok(edited) => edited,
        Err(EditError::Invalid(error)) => return Err(print::report(file, &error, output)),
        Err(EditError::Result(error)) => {
            let what = print::report(file, &error, output);
            bail!("after this change {what}; the file is as it was")
        }
        Err(other) => bail!("{other}"),
    };
    if !changes.is_empty() {
        if read()? != old {
            bail!("{} was changed by somebody else meanwhile; nothing was written", file.display());
        }
        atomic_file::replace(file, new.as_bytes())
            .map_err(|error| anyhow!("cannot write {}: {error}", file.display()))?;
    }
    match output {
        Output::Json => print::json(&Done { file, changes }),
        Output::Table if changes.is_empty() => print::out(&format!(
            "{} is {} already; nothing was changed\n",
            arguments.backend,
            State::from(arguments.state)
        )),
        Output::Table => {
            let line = |change: &Change| {
                format!(
                    "table \"{}\": {} {} → {}\n",
                    change.table, change.backend, change.from, change.to
                )
            };
            print::out(&changes.iter().map(line).collect::<String>())
        }
    }
}
