//! The command line, one file for each command.

mod counters;
mod detach;
mod run;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An L4 load-balancer director: steers flows to backends in XDP, without any state for a flow.
#[derive(Debug, Parser)]
#[command(name = "glb-director", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach, and keep tables and next hops in force until a signal comes.
    ///
    /// SIGHUP loads the table file anew; if anything is wrong with it, the running one stays.
    /// SIGTERM ends the daemon and leaves the pinned program forwarding, so that the daemon can be
    /// restarted or upgraded at any moment.
    Run(ConfigFile),
    /// Take the director off its interfaces and remove everything it pinned, counters too.
    Detach(ConfigFile),
    /// Show packets and bytes by table, reason and backend. The daemon need not run.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Look at forwarding tables, change them, and see what a change will do.
    Table {
        #[command(subcommand)]
        command: table::Command,
        /// How to print the answer.
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE", default_value = "/etc/glb/director.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(file) => run::execute(&file.config),
            Command::Detach(file) => detach::execute(&file.config),
            Command::Counters { config, output } => counters::execute(&config.config, output),
            Command::Table { command, output } => command.execute(output),
        }
    }
}
