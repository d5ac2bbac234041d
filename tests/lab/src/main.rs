//! The demo and the lab as commands. `./x demo` and `./x lab` build and run this program.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use glb_lab::interrupt;

fn main() -> ExitCode {
    match cli::Arguments::parse().execute() {
        Ok(code) => code,
        Err(_) if interrupt::check().is_err() => {
            eprintln!("\ninterrupted; everything that this command started was removed");
            // The exit status that a shell reports for a program ended by Ctrl-C.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
