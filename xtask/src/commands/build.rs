//! `./x build`: compiles the daemons, with the BPF programs inside them.

use std::process::Command;

use anyhow::Result;

use crate::{commands::setup, needs::Purpose, process};

/// Compiles the daemons, with the BPF programs inside them, into target/debug.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compile with optimisation, into target/release.
    #[arg(long)]
    release: bool,
}

/// Cargo's arguments for all user-space crates. The build script of glb-host compiles the BPF
/// programs.
pub(crate) const WORKSPACE: [&str; 4] = ["--locked", "--workspace", "--exclude", "glb-ebpf"];

/// Cargo's arguments for the programs of the demo, so that its first build is short.
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

/// Compiles every program, after installing missing tools.
pub(crate) fn all(release: bool) -> Result<()> {
    setup::ensure(Purpose::Build)?;
    let mut command = process::cargo();
    command.arg("build").args(WORKSPACE).arg("--bins");
    build(command.args(release.then_some("--release")))
}

/// Compiles the daemons for packages. The binaries name no folder of this machine, so a build in another
/// folder gives the same bytes.
pub(crate) fn for_packages() -> Result<()> {
    setup::ensure(Purpose::Build)?;
    let cargo_home = bpf_build::cargo_bin();
    let cargo_home = cargo_home.parent().unwrap_or(&cargo_home);
    let flags = [
        format!("--remap-path-prefix={}=/source", process::root().display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ];
    let mut command = process::cargo();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command.arg("build").args(WORKSPACE).args(["--bins", "--release"]);
    build(&mut command)
}

/// Compiles the daemons and `glb-lab` into `target/debug`.
pub(crate) fn for_the_lab() -> Result<()> {
    build(process::cargo().arg("build").args(FOR_THE_LAB).arg("--bins"))
}

/// Compiles every program into `target/debug`.
pub(crate) fn everything() -> Result<()> {
    build(process::cargo().arg("build").args(WORKSPACE).arg("--bins"))
}

fn build(command: &mut Command) -> Result<()> {
    eprintln!("BPF compiler: {}", bpf_build::find_compiler()?);
    process::run(command)
}
