//! `./x survive`: real long work through everything that can happen to a fleet.

use std::{env, ffi::OsString, process::Command};

use anyhow::Result;

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
};

/// Does to a fleet at work all that can happen to one, and accounts for every connection.
///
/// Git clones and pushes, Glance uploads and downloads, idle connections, long polls and short requests
/// go on while backends and directors are drained, killed, restarted and unplugged. Exit status 0 says
/// that no connection broke that was not allowed to. `./x survive --help` lists what can be chosen;
/// docs/reliability.md has what came of it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// How long, which seed, which events.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds the daemons and the suite and becomes it.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    permission::check("survive")?;
    setup::ensure(Purpose::Survive)?;
    build::everything()?;
    // Cargo put both into the same folder.
    let program = env::current_exe()?.with_file_name("glb-survive");
    let mut suite = Command::new(program);
    process::exec(suite.current_dir(process::root()).args(&arguments.arguments))
}
