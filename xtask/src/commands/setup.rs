//! `./x setup`: whatever the other commands need, installed once.

use anyhow::Result;

/// Looks for everything that building, testing and the demo need, and installs what is missing.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    ensure()
}

/// What every other command calls first. Says nothing when all is there.
pub(crate) fn ensure() -> Result<()> {
    bpf_build::find_compiler()?;
    bpf_build::find_linker()?;
    Ok(())
}
