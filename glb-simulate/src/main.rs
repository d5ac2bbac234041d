//! The `glb-simulate` binary.

use std::process::ExitCode;

use clap::Parser as _;
use glb_simulate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    glb_host::cli_main::run_logging(&cli.log(), || cli.execute())
}
