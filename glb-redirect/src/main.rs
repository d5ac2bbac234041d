//! The `glb-redirect` binary.

use std::{io, process::ExitCode};

use clap::Parser as _;
use glb_redirect::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("GLB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            // Every error names its cause itself.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
