//! The `glb-healthcheck` program: parses the command line and runs the command.

use std::process::ExitCode;

use clap::Parser as _;
use glb_healthcheck::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    glb_host::cli_main::run_logging(&cli.log(), || cli.execute())
}
