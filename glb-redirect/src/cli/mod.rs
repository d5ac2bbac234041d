//! The command line, one file for each command.

mod connections;
mod counters;
mod detach;
mod doctor;
mod replay;
mod run;
mod trace;
mod wait;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use glb_host::{
    cli_main::{self, LogArgs, LogSettings},
    control::Client,
    duration,
    packet_trace::{
        client::{CaptureArgs, TraceArgs},
        print_line,
        replay::ReplayArgs,
    },
};

use crate::config::Config;

/// The backend's side of an L4 load balancer: takes tunnelled packets that belong to this machine's
/// connections, and sends the others to the next backend in their list.
#[derive(Debug, Parser)]
#[command(name = "glb-redirect", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach, put the VIPs on lo, and keep the ways to fellow backends fresh until a signal comes.
    ///
    /// Needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON. `doctor` says whether the machine is fit.
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
    ///
    /// docs/backend.md says what each reason means; `trace reason NAME` shows such packets.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the clients' live connections to each VIP on this machine, and the oldest one's age.
    ///
    /// The kernel keeps no time of birth: an age is since the daemon (or this command) first saw
    /// the connection, or since it was last used, whichever is longer. Connections of this machine
    /// to itself are not counted.
    Connections {
        #[command(flatten)]
        config: ConfigFile,
        /// Go on showing them until interrupted; as JSON, one line each time.
        #[arg(short, long)]
        watch: bool,
        /// Time between two looks.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
        interval: Duration,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Look for settings of this machine that make packets vanish, and say what to do about each.
    ///
    /// Changes nothing. Ends with 0 when no problem was found, 3 when one was, 1 on an error and 2
    /// for a wrong command line.
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a capture through the program that `run` would attach, and say what is decided and why.
    ///
    /// Nothing is attached or sent, and a daemon that runs beside it notices nothing: counters are
    /// private. Sockets are those that this network namespace has now, so that a connection that has
    /// ended since the capture is no longer "here". Needs the permission to load BPF programs (root).
    /// A summary goes to stderr.
    ///
    ///   tcpdump -i eth0 -s 0 -w in.pcap udp port 19523
    ///   glb-redirect replay in.pcap -w out.pcapng
    #[command(verbatim_doc_comment)]
    Replay {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        args: ReplayArgs,
        /// How to print the decisions: a line for each packet, in words or as JSON.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the running daemon's decisions as they are taken: a line for each packet.
    ///
    /// Nothing of it is in the program that normally runs. While somebody watches, the daemon swaps
    /// in another build of it, and the plain one again when the watcher ends, is killed, or the time
    /// is up; not a packet is lost. Packets cost more meanwhile. One can watch at a time. Ends with a
    /// summary on stderr.
    ///
    ///   glb-redirect trace 198.51.100.7 port 443
    ///   glb-redirect trace verdict dropped
    ///   glb-redirect trace reason forwarded --sample 100 -o json
    #[command(verbatim_doc_comment)]
    Trace {
        #[command(flatten)]
        asking: Asking,
        #[command(flatten)]
        args: TraceArgs,
        /// How to print them: a line for each packet, in words or as JSON.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write packets to a file as they come and as they leave, each with what was decided and why.
    ///
    /// For Wireshark: packets as they came are of the interface "received", others of "sent" and
    /// "kernel"; each has a comment (`frame.comment contains "not_vip"`). Works as `trace` does.
    ///
    ///   glb-redirect capture -w out.pcapng -n 1000 198.51.100.7
    #[command(verbatim_doc_comment)]
    Capture {
        #[command(flatten)]
        asking: Asking,
        #[command(flatten)]
        capture: CaptureArgs,
        #[command(flatten)]
        args: TraceArgs,
    },
    /// Print the completions of this command for a shell.
    ///
    /// For instance: glb-redirect completions bash > /etc/bash_completion.d/glb-redirect
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: cli_main::Shell,
    },
    /// Wait until no client has a live connection left on this machine.
    ///
    /// For the end of a drain, before the service is stopped. Progress goes to stderr. Ends with 0
    /// when drained, 3 when time is up, 1 on an error and 2 for a wrong command line.
    ///
    ///   glb-redirect wait --until-drained --timeout 1h && systemctl stop nginx
    #[command(verbatim_doc_comment)]
    Wait {
        #[command(flatten)]
        config: ConfigFile,
        /// What to wait for.
        #[arg(long, required = true)]
        until_drained: bool,
        /// Give up after this time, such as 90s, 15m or 2h; without it, wait for ever.
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        timeout: Option<Duration>,
        /// How long there must be none.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
        quiet: Duration,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file (TOML).
    #[arg(short, long, value_name = "FILE", default_value = "/etc/glb/redirect.toml")]
    config: PathBuf,
}

/// What commands need that ask the running daemon.
#[derive(Args, Debug)]
struct Asking {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket; the one that the configuration names if it is left out.
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Asking {
    /// A connection to the daemon.
    fn connect(&self) -> anyhow::Result<Client> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => Config::load(&self.config.config)?.control.place.path,
        };
        Ok(Client::connect(&socket)?)
    }
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
    /// How the log is written.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Does what the command line asks for; says what the process ends with.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(file) => run::execute(&file.config),
            Command::Detach { config, vips } => detach::execute(&config.config, vips),
            Command::Counters { config, output } => counters::execute(&config.config, output),
            Command::Connections { config, watch, interval, output } => {
                connections::execute(&config.config, watch, interval, output)
            }
            Command::Replay { config, args, output } => {
                replay::execute(&config.config, &args, output)
            }
            Command::Trace { asking, args, output } => {
                trace::trace(&asking, &args, matches!(output, Output::Json))
            }
            Command::Capture { asking, capture, args } => trace::capture(&asking, &args, &capture),
            Command::Completions { shell } => {
                let command = <Self as clap::CommandFactory>::command();
                cli_main::print_completions(command, shell).map_err(Into::into)
            }
            Command::Doctor { config, output } => return doctor::execute(&config.config, output),
            Command::Wait { config, until_drained: _, timeout, quiet } => {
                return wait::until_drained(&config.config, timeout, quiet);
            }
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// Prints to standard output. Whoever has seen enough may close it.
fn print(text: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    print_line(text.trim_end()).map(drop).context("cannot write to standard output")
}

/// The asynchronous runtime: one thread, since a network namespace belongs to a thread.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context as _;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
