//! `glb-director table set`

use std::{
    fs::{self, File},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use glb_host::{control::Client, duration, exit_code};
use glb_table::{
    Format, State, atomic_file,
    edit::{self, EditError, StateChange},
    write_mark,
};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use super::print;
use crate::{cli::Output, control::Command, status::Status, views::BackendView};

/// Time between two queries of the director while the command waits.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time limit of a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Wait until the director on this machine has the state in force, and print its generation.
    ///
    /// Exits with 7 if that takes longer than TIME, and with 3 if no director answers.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "30s",
        value_parser = duration::parse_positive
    )]
    wait: Option<Duration>,
    /// The control socket of the director to wait for.
    #[arg(long, value_name = "PATH", default_value = "/run/glb-director/control.sock")]
    socket: PathBuf,
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
    /// The director's generation, after `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

/// Returns the file to edit: the table itself, or the input of the health checker that writes it.
fn editable_file(file: &Path) -> anyhow::Result<PathBuf> {
    // Reading the table reports all other errors.
    let Ok(text) = fs::read_to_string(file) else { return Ok(file.to_owned()) };
    let Some(mark) = write_mark::read(Format::of_path(file), &text) else {
        return Ok(file.to_owned());
    };
    let (file, input) = (file.display(), mark.input);
    if !input.is_file() {
        bail!(
            "{file} is written by glb-healthcheck from {}, which is not on this machine. Change that file \
             where the health checker runs; a change here would be overwritten",
            input.display()
        );
    }
    print::err(&format!(
        "note: {file} is written by glb-healthcheck; changing its input {} instead\n",
        input.display()
    ));
    Ok(input)
}

/// Waits until the director has the state in force; returns its generation, or nothing at a timeout.
fn wait_until_in_force(arguments: &Arguments, timeout: Duration) -> anyhow::Result<Option<u64>> {
    let state = State::from(arguments.state).to_string();
    let begun = Instant::now();
    loop {
        let ask = || Client::connect(&arguments.socket);
        let backends: Vec<BackendView> = ask()?.ask(&Command::Backends, QUERY_TIMEOUT)?;
        let mut of_backend = backends.iter().filter(|view| {
            let in_table = arguments.table.as_ref().is_none_or(|table| *table == view.table);
            view.address == arguments.backend && in_table
        });
        let mut found = false;
        let in_force = of_backend.all(|view| {
            found = true;
            view.state == state
        });
        if found && in_force {
            let status: Status = ask()?.ask(&Command::Status, QUERY_TIMEOUT)?;
            return Ok(status.generation);
        }
        if begun.elapsed() >= timeout {
            return Ok(None);
        }
        thread::sleep(POLL_INTERVAL);
    }
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

pub(super) fn execute(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let file = &editable_file(&arguments.file)?;
    let read = || {
        fs::read_to_string(file).map_err(|error| anyhow!("cannot read {}: {error}", file.display()))
    };
    // Held until the file is written, so that concurrent edits are serialized.
    let lock = lock(file)?;
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
    drop(lock);
    let generation = match arguments.wait {
        None => None,
        Some(timeout) => match wait_until_in_force(arguments, timeout)? {
            Some(generation) => Some(generation),
            None => {
                print::err(&format!(
                    "error: {} is written, but the director does not have the state in force after {}. \
                     `glb-director status` shows why\n",
                    file.display(),
                    duration::format(timeout)
                ));
                return Ok(ExitCode::from(exit_code::TIMED_OUT));
            }
        },
    };
    match output {
        Output::Json => print::json(&SetReport { file, changes, generation })?,
        Output::Table => print::out(&shown(arguments, &changes, generation))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(arguments: &Arguments, changes: &[StateChange], generation: Option<u64>) -> String {
    let mut text = String::new();
    if changes.is_empty() {
        let state = State::from(arguments.state);
        text += &format!("{} is already {state}; nothing was changed\n", arguments.backend);
    }
    for StateChange { table, backend, from, to } in changes {
        text += &format!("table \"{table}\": {backend} {from} → {to}\n");
    }
    if let Some(generation) = generation {
        text += &format!("in force in generation {generation}\n");
    }
    text
}
