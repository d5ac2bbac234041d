//! `./x lab`: the demo's network of namespaces, to look around in.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
};

/// Brings the demo's lab up and leaves it up, or takes it down.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Brings the lab up with all that runs in it, and says how to look around.
    Up(Name),
    /// Removes a lab that was left up.
    Down(Name),
}

/// Which lab.
#[derive(clap::Args)]
pub(crate) struct Name {
    /// The lab's name: labs of different names can be up side by side.
    #[arg(long, default_value = "glb-demo")]
    name: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.action {
        Action::Up(name) => become_lab(&["up"], name),
        Action::Down(name) => become_lab(&["down"], name),
    }
}

/// Builds the daemons and the lab's program and becomes it, so that Ctrl-C reaches it alone.
pub(crate) fn become_lab(words: &[&str], name: &Name) -> Result<()> {
    permission::check(if words[0] == "demo" { "demo" } else { "lab" })?;
    setup::ensure(Purpose::Lab)?;
    build::for_the_lab()?;
    // Cargo put both into the same folder.
    let program = env::current_exe()?.with_file_name("glb-lab");
    let mut lab = Command::new(program);
    lab.args(words).args(["--name", &name.name]);
    let shown = process::shown(&lab);
    Err(lab.exec()).with_context(|| format!("cannot run `{shown}`"))
}
