//! The command line, one file for each command.

mod columns;
mod config;
mod counters;
mod detach;
mod doctor;
mod drain;
mod fleet;
mod reload;
mod replay;
mod run;
mod show;
mod status;
mod table;
mod top;
mod trace;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use glb_host::{
    cli_main::{self, LogArgs, LogSettings},
    control::Client,
    packet_trace::{
        client::{CaptureArgs, TraceArgs},
        replay::ReplayArgs,
    },
};

use crate::config::{Config, DEFAULT_SOCKET};

/// An L4 load-balancer director: forwards flows to backends in XDP, without per-flow state.
#[derive(Debug, Parser)]
#[command(name = "glb-director", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: attach the program, and keep tables and next hops up to date.
    ///
    /// The daemon reloads the table file when it changes, and on SIGHUP. If the new table is refused,
    /// the running one stays. SIGTERM ends the daemon; the pinned program goes on forwarding, unless
    /// `on_stop` is set otherwise. The daemon can therefore be restarted or upgraded at any moment.
    Run(ConfigFile),
    /// Show the state of the running daemon and its problems.
    ///
    /// Shows phase, interfaces, the generation in force, announcements with their BGP sessions, the last
    /// reload and problems. Exits with 0 without problems, 3 if no daemon answers, 4 with problems, and
    /// 5 if not permitted.
    Status(AskArgs),
    /// Show tables, backends, binds or generations of the running daemon.
    Show {
        #[command(subcommand)]
        what: show::What,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Show live rates by table, backend and reason.
    ///
    /// In a terminal it updates until Ctrl-C. With `-o json` each update is one line.
    Top {
        #[command(flatten)]
        ask: AskArgs,
        #[command(flatten)]
        options: top::Options,
    },
    /// Reload the running daemon's table file, and report the result.
    ///
    /// The daemon also reloads a changed file by itself; this command waits for the result. It exits with
    /// 1 if the table is refused. `table diff` and `table plan` show beforehand what a change does.
    Reload {
        #[command(flatten)]
        ask: AskArgs,
        /// Reload even if the file is unchanged, the change is unsafe, or removed VIPs are still
        /// announced
        #[arg(long)]
        force: bool,
    },
    /// Return to the previous generation, with its program and table.
    ///
    /// A second rollback returns to the newer generation. The table file is not changed; `reload`, SIGHUP
    /// or the next change of the file loads it again.
    Rollback {
        #[command(flatten)]
        ask: AskArgs,
        /// Roll back even if removed VIPs are still announced
        #[arg(long)]
        force: bool,
    },
    /// Tell the running daemon that backends hold no flows, so that they can be removed.
    ///
    /// On the backend, `glb-redirect wait --until-drained` shows when that is so. Without this command, a
    /// backend counts as empty when it has not been the first hop of any row for `flow_age`.
    ///
    ///   glb-director mark-drained 10.0.2.21 && glb-director table set table.toml 10.0.2.21 --state inactive
    #[command(verbatim_doc_comment)]
    MarkDrained {
        /// The backends' addresses
        #[arg(required = true)]
        backends: Vec<IpAddr>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Take this director out of service without breaking connections.
    ///
    /// Lowers this director's route preference, waits until its traffic stops, withdraws, and waits
    /// again. Shows the progress, and exits with 0 when nothing is announced and no packets arrive. Ctrl-C
    /// ends the command, not the drain. The director stays drained, across restarts too, until `undrain`.
    /// If traffic does not stop in time, everything is announced again, and the exit code is 1.
    ///
    /// To drain a backend, see `table set`.
    Drain {
        #[command(flatten)]
        ask: AskArgs,
        /// How long each of the two stages waits for traffic to stop, such as 30s or 5m [default:
        /// the configuration's `drain.timeout`]
        #[arg(long, value_name = "TIME", value_parser = glb_host::duration::parse)]
        timeout: Option<std::time::Duration>,
        /// Begin the next stage although traffic has not stopped
        #[arg(long)]
        force: bool,
        /// Cancel the drain, as `undrain` does
        #[arg(long, conflicts_with_all = ["timeout", "force"])]
        cancel: bool,
    },
    /// Announce again after a drain, or cancel a running one.
    Undrain(AskArgs),
    /// Detach the program from its interfaces and remove all pins, counters included.
    ///
    /// First withdraws every configured announcement, waits for the confirmation, and then until traffic
    /// to the VIPs stops. Refuses if a withdrawal is not confirmed. The daemon must not run.
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        /// Detach although a withdrawal is not confirmed, or packets still arrive
        #[arg(long)]
        force: bool,
    },
    /// Show packets and bytes by table, reason and backend. Works without the daemon.
    ///
    /// Counts begin when the counters are created; `top` shows rates. docs/packet-path.md explains each
    /// reason; `trace reason NAME` shows its packets.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a capture through the program, and show each packet's decision and its reason.
    ///
    /// Attaches and sends nothing, and does not touch the running daemon's counters. Uses the configuration
    /// and the table file as they are now. Needs root, to load BPF programs. Prints a summary to standard
    /// error.
    ///
    ///   tcpdump -i eth0 -s 0 -w in.pcap host 198.51.100.7
    ///   glb-director replay in.pcap -w out.pcapng
    #[command(verbatim_doc_comment)]
    Replay {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        args: ReplayArgs,
        /// The output format: a line for each packet, or JSON
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Check this director's configuration, or convert GLB's.
    Config {
        #[command(subcommand)]
        command: config::Command,
        /// The output format
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
    /// Examine this machine for a director; each finding has a remedy.
    ///
    /// Examines kernel features and permissions, interfaces and drivers, announcement methods, MTU, routes
    /// and neighbours of backends, and VIPs that this machine's kernel would answer for. Changes nothing.
    /// Exits with 4 if it finds a problem.
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// Send a packet through the attached program to each backend, and report the answers; the
        /// counters include these packets
        #[arg(long)]
        probe: bool,
        /// The output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Compare several directors.
    Fleet {
        #[command(subcommand)]
        command: fleet::Command,
        /// The output format
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
    /// Print the shell completions of this command.
    ///
    /// Example: glb-director completions bash > /etc/bash_completion.d/glb-director
    Completions {
        /// The shell
        shell: cli_main::Shell,
    },
    /// Show the running director's decision for each packet.
    ///
    /// The daemon swaps in a tracing build of the program, and the normal build when the trace ends, its
    /// client dies or its time limit passes. No packet is lost, but packets cost more meanwhile. One trace
    /// can run at a time. Prints a summary to standard error. Needs root.
    ///
    ///   glb-director trace 198.51.100.7 port 443
    ///   glb-director trace verdict dropped
    ///   glb-director trace table web reason encapsulated --sample 100 -o json
    #[command(verbatim_doc_comment)]
    Trace {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        args: TraceArgs,
        /// The output format: a line for each packet, or JSON
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write received and sent packets to a file, each with its decision and reason.
    ///
    /// In Wireshark, packets belong to the interface "received" or "sent" and have a comment
    /// (`frame.comment contains "no_bind"`). Works as `trace` does. Needs root.
    ///
    ///   glb-director capture -w out.pcapng -n 1000 198.51.100.7
    ///   glb-director capture -w - verdict dropped | wireshark -k -i -
    #[command(verbatim_doc_comment)]
    Capture {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        capture: CaptureArgs,
        #[command(flatten)]
        args: TraceArgs,
    },
    /// Examine and change forwarding tables, and predict the effect of a change.
    Table {
        #[command(subcommand)]
        command: table::Command,
        /// The output format
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file (TOML)
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/glb/director.toml",
        global = true
    )]
    config: PathBuf,
}

/// The options of commands that ask the running daemon.
#[derive(Args, Debug)]
struct AskArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket [default: $GLB_DIRECTOR_SOCKET, or the configuration's
    /// `control.socket`]
    #[arg(short, long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// The output format
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

impl AskArgs {
    /// Connects to the daemon.
    fn connect(&self) -> anyhow::Result<Client> {
        connect(self.socket.as_ref(), &self.config)
    }
}

/// The options of commands that trace the running daemon.
#[derive(Args, Debug)]
struct TargetArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket [default: $GLB_DIRECTOR_SOCKET, or the configuration's
    /// `control.socket`]
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl TargetArgs {
    /// Connects to the daemon.
    fn connect(&self) -> anyhow::Result<Client> {
        connect(self.socket.as_ref(), &self.config)
    }
}

fn connect(socket: Option<&PathBuf>, config: &ConfigFile) -> anyhow::Result<Client> {
    Ok(Client::connect(&control_socket(socket, config)?)?)
}

/// Names the control socket in an operator's environment.
const SOCKET_VARIABLE: &str = "GLB_DIRECTOR_SOCKET";

/// Finds the control socket: the option, the environment, the configuration, and for users who may not
/// read the configuration the default path.
fn control_socket(socket: Option<&PathBuf>, config: &ConfigFile) -> anyhow::Result<PathBuf> {
    if let Some(socket) = socket {
        return Ok(socket.clone());
    }
    if let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(socket.into());
    }
    let denied = std::fs::File::open(&config.config)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    if denied {
        return Ok(DEFAULT_SOCKET.into());
    }
    Ok(Config::load(&config.config)?.control.place.path)
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// Text for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

impl Cli {
    /// The log options.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Executes the command.
    ///
    /// # Errors
    /// When the command fails.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
        match self.command {
            Command::Run(file) => done(run::execute(&file.config)),
            Command::Status(ask) => status::execute(&ask),
            Command::Show { what, ask } => show::execute(&ask, what),
            Command::Top { ask, options } => top::execute(&ask, &options),
            Command::Reload { ask, force } => reload::execute(&ask, force),
            Command::Rollback { ask, force } => reload::rollback(&ask, force),
            Command::MarkDrained { backends, ask } => reload::mark_drained(&ask, backends),
            Command::Drain { ask, cancel: true, .. } => drain::undrain(&ask),
            Command::Drain { ask, timeout, force, .. } => drain::drain(&ask, timeout, force),
            Command::Undrain(ask) => drain::undrain(&ask),
            Command::Detach { config, force } => done(detach::execute(&config.config, force)),
            Command::Counters { config, output } => done(counters::execute(&config.config, output)),
            Command::Replay { config, args, output } => {
                done(replay::execute(&config.config, &args, output))
            }
            Command::Trace { target, args, output } => {
                trace::trace(&target, &args, matches!(output, Output::Json))
            }
            Command::Capture { target, capture, args } => trace::capture(&target, &args, &capture),
            Command::Config { command, output } => config::execute(command, output),
            Command::Doctor { config, probe, output } => {
                doctor::execute(&config.config, probe, output)
            }
            Command::Fleet { command, output } => fleet::execute(command, output),
            Command::Completions { shell } => {
                let command = <Self as clap::CommandFactory>::command();
                done(cli_main::print_completions(command, shell).map_err(Into::into))
            }
            Command::Table { command, output } => command.execute(output),
        }
    }
}
