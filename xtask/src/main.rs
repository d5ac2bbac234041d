//! The commands for work on this project: `./x COMMAND`, or `cargo xtask COMMAND`.
//!
//! Each command has a file in `commands/`. The modules beside this file are shared by the commands:
//! `needs` finds missing tools, `debian` installs packages, `permission` checks for root, `process`
//! runs other programs, and `test_programs` builds and runs the tests.

mod commands;
mod debian;
mod needs;
mod permission;
mod process;
mod test_programs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{bench, build, demo, kernels, lab, package, setup, survive, test};

/// Builds, tests, measures and packages the load balancer.
#[derive(Parser)]
#[command(name = "x", bin_name = "./x", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    Build(build::Arguments),
    Test(test::Arguments),
    Demo(demo::Arguments),
    Lab(lab::Arguments),
    Survive(survive::Arguments),
    Bench(bench::Arguments),
    Kernels(kernels::Arguments),
    Package(package::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Survive(arguments) => survive::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
