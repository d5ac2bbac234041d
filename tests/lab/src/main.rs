//! The demo and the lab as commands. `./x demo` and `./x lab` build this and become it.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use glb_lab::interrupt;

fn main() -> ExitCode {
    match cli::Arguments::parse().execute() {
        Ok(code) => code,
        Err(_) if interrupt::check().is_err() => {
            eprintln!("\ninterrupted; what this command had brought up is gone");
            // As a shell sees a program that Ctrl-C ended.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
