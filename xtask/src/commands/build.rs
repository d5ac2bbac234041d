//! `./x build`: the daemons with their BPF programs inside.

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Builds the daemons, with the BPF programs inside them, into target/debug.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Optimised, into target/release.
    #[arg(long)]
    release: bool,
}

/// What cargo is told wherever it works on all that runs in user space. The BPF programs are built
/// by glb-host's build script.
pub(crate) const WORKSPACE: [&str; 4] = ["--locked", "--workspace", "--exclude", "glb-ebpf"];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    eprintln!("BPF compiler: {}", bpf_build::find_compiler()?);
    let mut command = process::cargo();
    command.arg("build").args(WORKSPACE).arg("--bins");
    command.args(arguments.release.then_some("--release"));
    process::run(&mut command)
}

/// Builds `target/debug/glb-director`, `target/debug/glb-redirect` and `target/debug/glb-lab`.
pub(crate) fn binaries() -> Result<()> {
    run(&Arguments { release: false })
}
