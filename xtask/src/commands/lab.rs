//! `./x lab`: the demo's network of namespaces, to look around in.

use anyhow::{Result, bail};

use crate::{
    commands::{build, setup},
    needs::Purpose,
};

/// Brings the demo's lab up or takes it down.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Runs the command.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Lab)?;
    build::binaries()?;
    bail!("the lab is not built yet")
}
