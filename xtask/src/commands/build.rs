//! `./x build`: the daemons with their BPF programs inside.

use std::process::Command;

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

/// What the demo runs: a newcomer waits for no more than this.
const FOR_THE_LAB: [&str; 5] = [
    "--locked",
    "--package=glb-director",
    "--package=glb-redirect",
    "--package=glb-healthcheck",
    "--package=glb-lab",
];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    all(arguments.release)
}

/// Builds every program.
pub(crate) fn all(release: bool) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    let mut command = process::cargo();
    command.arg("build").args(WORKSPACE).arg("--bins");
    build(command.args(release.then_some("--release")))
}

/// Builds the daemons and `glb-lab` into `target/debug`.
pub(crate) fn for_the_lab() -> Result<()> {
    build(process::cargo().arg("build").args(FOR_THE_LAB).arg("--bins"))
}

/// Builds every program into target/debug.
pub(crate) fn everything() -> Result<()> {
    build(process::cargo().arg("build").args(WORKSPACE).arg("--bins"))
}

fn build(command: &mut Command) -> Result<()> {
    eprintln!("BPF compiler: {}", bpf_build::find_compiler()?);
    process::run(command)
}
