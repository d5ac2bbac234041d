//! The `glb-redirect` binary.

use std::process::ExitCode;

use clap::Parser as _;
use glb_redirect::cli::Cli;

fn main() -> ExitCode {
    glb_host::program::run(|| Cli::parse().execute())
}
