//! The command line, one file for each command.

mod config;
mod connections;
mod counters;
mod detach;
mod doctor;
mod reload;
mod replay;
mod run;
mod status;
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

/// The backend of an L4 load balancer: accepts tunnelled packets that belong to this host's connections
/// and forwards the others to the next backend in their hop list.
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
    /// Run the daemon: attach the program, add the VIPs to lo, keep next hops up to date.
    ///
    /// Needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON. `doctor` checks the host beforehand.
    ///
    /// SIGHUP reloads the configuration and the table; if one is invalid, the running one stays in
    /// force. SIGTERM stops the daemon and leaves the program attached, so that the daemon can be
    /// restarted or upgraded at any moment.
    Run(ConfigFile),
    /// Show the state of the running daemon, and its problems.
    ///
    /// Exits with 0 without a problem, with 3 if no daemon answers, with 4 if there are problems, and
    /// with 5 if you may not ask.
    Status {
        #[command(flatten)]
        client: ClientArgs,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Make the running daemon read its configuration and table, and show the result.
    ///
    /// The same as SIGHUP, but waits. Exits with 1 if the configuration is refused; the running one then
    /// stays in force. `config check` finds errors beforehand.
    Reload {
        #[command(flatten)]
        client: ClientArgs,
        /// How to print the result.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Check the configuration file.
    Config {
        #[command(subcommand)]
        command: config::Command,
        /// How to print the result.
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
    /// Detach the program from its interfaces and remove its pins, counters included.
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        /// Remove the VIPs from lo as well.
        #[arg(long)]
        vips: bool,
    },
    /// Show packets and bytes by VIP and reason. The daemon need not run.
    ///
    /// docs/backend.md explains each reason; `trace reason NAME` shows the packets.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the clients' live connections to each VIP, and the age of the oldest.
    ///
    /// The kernel does not record when a connection was opened. Its age is the time since the daemon
    /// (or this command) first saw it, or since it was last used, whichever is longer. Connections of
    /// this host to itself are not counted.
    Connections {
        #[command(flatten)]
        config: ConfigFile,
        /// Repeat until interrupted; with JSON, one line each time.
        #[arg(short, long)]
        watch: bool,
        /// Time between two outputs with --watch.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
        interval: Duration,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Find settings of this host that lose packets, and show how to correct each.
    ///
    /// Changes nothing. Exits with 4 if there is a problem.
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run captured packets through the program that `run` would attach, and show each decision.
    ///
    /// Attaches and sends nothing, and does not disturb a running daemon: counters are private. The
    /// program looks connections up in the sockets that this network namespace has now, so a
    /// connection that has ended since the capture is not found. Needs permission to load BPF programs
    /// (root). A summary goes to stderr.
    ///
    ///   tcpdump -i eth0 -s 0 -w in.pcap udp port 19523
    ///   glb-redirect replay in.pcap -w out.pcapng
    #[command(verbatim_doc_comment)]
    Replay {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        args: ReplayArgs,
        /// How to print each decision: a line of text or of JSON.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show the running program's decisions, a line for each packet.
    ///
    /// While a trace runs, the daemon replaces the program by a build that reports its decisions,
    /// without losing a packet; each packet then costs more. The plain program comes back when the
    /// command ends, is killed, or the time is up. One trace or capture can run at a time. A summary
    /// goes to stderr.
    ///
    ///   glb-redirect trace 198.51.100.7 port 443
    ///   glb-redirect trace verdict dropped
    ///   glb-redirect trace reason forwarded --sample 100 -o json
    #[command(verbatim_doc_comment)]
    Trace {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        args: TraceArgs,
        /// How to print each packet: a line of text or of JSON.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write packets to a pcapng file as they arrive and as they leave, each with its decision.
    ///
    /// In Wireshark, the interface is "received", "sent" or "kernel", and each packet has a comment
    /// (`frame.comment contains "not_vip"`). The program is replaced as for `trace`.
    ///
    ///   glb-redirect capture -w out.pcapng -n 1000 198.51.100.7
    #[command(verbatim_doc_comment)]
    Capture {
        #[command(flatten)]
        client: ClientArgs,
        #[command(flatten)]
        capture: CaptureArgs,
        #[command(flatten)]
        args: TraceArgs,
    },
    /// Print the shell completions of this command.
    ///
    /// For instance: glb-redirect completions bash > /etc/bash_completion.d/glb-redirect
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: cli_main::Shell,
    },
    /// Wait until no client has a live connection to this host.
    ///
    /// For the end of a drain, before the service is stopped. Progress goes to stderr. Exits with 0
    /// when there is none, and with 7 when the time is up.
    ///
    ///   glb-redirect wait --until-drained --timeout 1h && systemctl stop nginx
    #[command(verbatim_doc_comment)]
    Wait {
        #[command(flatten)]
        config: ConfigFile,
        /// What to wait for.
        #[arg(long, required = true)]
        until_drained: bool,
        /// Give up after this time, such as 90s, 15m or 2h; without it, wait without end.
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        timeout: Option<Duration>,
        /// How long there must be no connection before the drain counts as done.
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

/// Options of commands that ask the running daemon.
#[derive(Args, Debug)]
struct ClientArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket; by default the one that the configuration names.
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl ClientArgs {
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
    /// Text for people.
    #[default]
    Table,
    /// JSON for programs.
    Json,
}

impl Cli {
    /// The logging options.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Executes the command; returns the exit code.
    ///
    /// # Errors
    /// What failed.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
        match self.command {
            Command::Run(file) => done(run::execute(&file.config)),
            Command::Status { client, output } => status::execute(&client, output),
            Command::Reload { client, output } => reload::execute(&client, output),
            Command::Config { command, output } => config::execute(command, output),
            Command::Detach { config, vips } => done(detach::execute(&config.config, vips)),
            Command::Counters { config, output } => done(counters::execute(&config.config, output)),
            Command::Connections { config, watch, interval, output } => {
                done(connections::execute(&config.config, watch, interval, output))
            }
            Command::Replay { config, args, output } => {
                done(replay::execute(&config.config, &args, output))
            }
            Command::Trace { client, args, output } => {
                let is_json = matches!(output, Output::Json);
                done(trace::trace(&client, &args, is_json))
            }
            Command::Capture { client, capture, args } => {
                done(trace::capture(&client, &args, &capture))
            }
            Command::Completions { shell } => {
                let command = <Self as clap::CommandFactory>::command();
                done(cli_main::print_completions(command, shell).map_err(Into::into))
            }
            Command::Doctor { config, output } => doctor::execute(&config.config, output),
            Command::Wait { config, until_drained: _, timeout, quiet } => {
                wait::until_drained(&config.config, timeout, quiet)
            }
        }
    }
}

/// Prints to standard output. A closed pipe is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    print_line(text.trim_end()).map(drop).context("cannot write to standard output")
}

/// Starts the asynchronous runtime, with one thread: a network namespace belongs to a thread.
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
    fn clap_accepts_the_command_line_definition() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
