//! `./x build`: the daemons with their BPF programs inside.

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Builds the daemons, with the BPF programs inside them.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    binaries()
}

/// Builds `target/debug/glb-director` and `target/debug/glb-redirect`.
pub(crate) fn binaries() -> Result<()> {
    process::run(process::cargo().args(["build", "--locked", "--bins"]))
}
