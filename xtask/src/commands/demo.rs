//! `./x demo`: a git clone survives the drain of the backend that serves it.

use anyhow::{Result, bail};

use crate::{
    commands::{build, setup},
    needs::Purpose,
};

/// Shows a git clone that goes on while the backend that serves it is drained.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the lab up afterwards, and say how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Backends never forward: the clone must break, and the demo says so.
    #[arg(long)]
    without_second_chance: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Lab)?;
    build::binaries()?;
    bail!(
        "the demo is not built yet (keep: {}, without second chance: {})",
        arguments.keep,
        arguments.without_second_chance
    )
}
