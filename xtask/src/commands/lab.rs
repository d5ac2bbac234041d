//! `./x lab`: runs a data centre of network namespaces for experiments.

use std::{env, process::Command};

use anyhow::Result;

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
};

/// Runs a data centre of network namespaces with a fleet of directors.
///
/// `./x lab --help` lists the commands: up, status, exec, drain, kill, start, down and more.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// A command of the lab, with its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let words: Vec<_> = arguments.words.iter().map(String::as_str).collect();
    become_lab(if words.is_empty() { &["--help"] } else { &words })
}

/// Replaces this process by `glb-lab`, after compiling it and the daemons if the command starts
/// them.
pub(crate) fn become_lab(words: &[&str]) -> Result<()> {
    // Cargo puts both programs into the same folder.
    let program = env::current_exe()?.with_file_name("glb-lab");
    let asks_for_help = words.iter().any(|word| ["-h", "--help"].contains(word));
    if !asks_for_help {
        permission::check(if words[0] == "demo" { "demo" } else { "lab" })?;
        setup::ensure(Purpose::Lab)?;
    }
    // Commands for a running lab do not compile: the lab goes on with the programs that it has.
    if ["demo", "up"].contains(&words[0]) || !program.is_file() {
        build::for_the_lab()?;
    }
    process::exec(Command::new(program).args(words))
}
