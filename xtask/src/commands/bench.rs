//! `./x bench`: measures the packet path, tables, reloads and health checks.

use std::ffi::OsString;

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Measures the cost of the packet path, tables, reloads and health checks.
///
/// Each of `packet`, `redirect`, `reload`, `table`, `tunnel`, `failover` and `health` is a benchmark
/// with options of its own: `./x bench packet --help`. The release build comes first, also for the
/// help, and takes some minutes the first time. The tests never measure performance.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// The benchmark and its options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "--help")]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    // These benchmarks start the daemons; the others call their code.
    let daemon_benchmarks = ["failover", "health"].map(OsString::from);
    if arguments.arguments.first().is_some_and(|first| daemon_benchmarks.contains(first)) {
        let mut build = process::cargo();
        build.args(["build", "--locked", "--release", "--bins"]);
        for daemon in ["glb-director", "glb-redirect", "glb-healthcheck"] {
            build.args(["--package", daemon]);
        }
        process::run(&mut build)?;
    }
    let mut command = process::cargo();
    command.args(["run", "--locked", "--release", "--package", "glb-bench", "--"]);
    process::run(command.args(&arguments.arguments))
}
