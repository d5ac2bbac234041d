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
    edit::{self, EditError, StateChange},
};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::print;
use crate::cli::Output;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The table file.
    file: PathBuf,
    /// The address of the backend.
    backend: IpAddr,
    /// The new state.
    #[arg(long, value_enum)]
    state: NewState,
    /// Set the state in this table only [default: in every table that has the backend].
    #[arg(long)]
    table: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NewState {
    Filling,
    Active,
    Draining,
    Inactive,
}

impl From<NewState> for State {
    fn from(state: NewState) -> Self {
        match state {
            NewState::Filling => Self::Filling,
            NewState::Active => Self::Active,
            NewState::Draining => Self::Draining,
            NewState::Inactive => Self::Inactive,
        }
    }
}

/// The result of the command.
#[derive(Serialize)]
struct SetReport<'p> {
    file: &'p Path,
    changes: Vec<StateChange>,
}

/// Locks the table file. A process that waited for the lock may find the file replaced; it then locks
/// the new one.
fn lock(file: &Path) -> anyhow::Result<Option<Flock<File>>> {
    loop {
        // Reading the file reports what is wrong with it.
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
    // Held until the end, so that concurrent edits are serialized.
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
            bail!("the change is refused, because {what}. The file is unchanged")
        }
        Err(other) => bail!("{other}"),
    };
    if !changes.is_empty() {
        if read()? != old {
            bail!(
                "{} was changed by another process in the meantime. Nothing was written; run the command again",
                file.display()
            );
        }
        atomic_file::replace(file, new.as_bytes())
            .map_err(|error| anyhow!("cannot write {}: {error}", file.display()))?;
    }
    match output {
        Output::Json => print::json(&SetReport { file, changes }),
        Output::Table if changes.is_empty() => print::out(&format!(
            "{} is already {}; nothing was changed\n",
            arguments.backend,
            State::from(arguments.state)
        )),
        Output::Table => {
            let line = |change: &StateChange| {
                format!(
                    "table \"{}\": {} {} → {}\n",
                    change.table, change.backend, change.from, change.to
                )
            };
            print::out(&changes.iter().map(line).collect::<String>())
        }
    }
}
