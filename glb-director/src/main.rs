//! The `glb-director` binary.

use std::process::ExitCode;

use clap::Parser as _;
use glb_director::cli::Cli;

fn main() -> ExitCode {
    glb_host::program::run(|| Cli::parse().execute())
}
