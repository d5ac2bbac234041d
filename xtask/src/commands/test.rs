//! `./x test`: everything that must hold before a change is landed.

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Runs every check and test; with a filter only the tests whose name contains it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the tests whose name contains this.
    #[arg(last = true)]
    filter: Option<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Test)?;
    process::run(process::cargo().args(["test", "--locked"]).args(&arguments.filter))
}
