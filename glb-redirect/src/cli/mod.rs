//! The command line, one file for each command.

mod counters;
mod detach;
mod run;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The backend's side of an L4 load balancer: takes tunnelled packets that belong to this machine's
/// connections, and sends the others to the next backend in their list.
#[derive(Debug, Parser)]
#[command(name = "glb-redirect", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach, put the VIPs on lo, and keep the ways to fellow backends fresh until a signal comes.
    ///
    /// SIGHUP reads the configuration anew; if anything is wrong with it, the running one stays.
    /// SIGTERM ends the daemon and leaves the pinned program working, so that the daemon can be
    /// restarted or upgraded at any moment.
    Run(ConfigFile),
    /// Take the program off its interfaces and remove everything it pinned, counters too.
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        /// Take the VIPs off lo as well.
        #[arg(long)]
        vips: bool,
    },
    /// Show packets and bytes by reason. The daemon need not run.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE", default_value = "/etc/glb/redirect.toml")]
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
            Command::Detach { config, vips } => detach::execute(&config.config, vips),
            Command::Counters { config, output } => counters::execute(&config.config, output),
        }
    }
}

/// The asynchronous runtime: one thread, since a network namespace belongs to a thread.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context as _;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}
