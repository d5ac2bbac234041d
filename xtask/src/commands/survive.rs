//! `./x survive`: long-running real work during every failure and maintenance event.

use std::{env, ffi::OsString, process::Command};

use anyhow::Result;

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
};

/// Runs every failure and maintenance event against a fleet under load, and records every connection.
///
/// Git clones and pushes, Glance uploads and downloads, idle connections, long polls and short requests
/// run while backends and directors are drained, killed, restarted and unplugged. Exit status 0 means
/// that only connections broke that were allowed to. `./x survive --help` lists the options, and
/// docs/reliability.md has the results.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Options of the suite.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds the daemons and the suite, and runs the suite in place of this process.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    permission::check("survive")?;
    setup::ensure(Purpose::Survive)?;
    build::everything()?;
    // Cargo puts both programs into the same folder.
    let program = env::current_exe()?.with_file_name("glb-survive");
    let mut suite = Command::new(program);
    process::exec(suite.current_dir(process::root()).args(&arguments.arguments))
}
