//! `./x bench`: what the packet path, the tables, a reload and health checks cost.

use std::ffi::OsString;

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Measures what the packet path costs, as ratios to a floor measured in the same run, and what
/// tables cost, as ratios to GLB's own tool.
///
/// `./x bench packet --help`, and the same for `redirect`, `reload`, `table`, `tunnel`, `failover` and
/// `health`, list what can be varied. Performance is measured here and nowhere in the tests.
///
/// Everything is built for release first, also for the help; that takes some minutes the first time.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What to measure, and how.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "--help")]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    // These run the daemons themselves, and not a part of them within the benchmark.
    let whole = ["failover", "health"].map(OsString::from);
    if arguments.arguments.first().is_some_and(|first| whole.contains(first)) {
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
