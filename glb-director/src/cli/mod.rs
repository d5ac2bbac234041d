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

use crate::config::Config;

/// An L4 load-balancer director: steers flows to backends in XDP, without any state for a flow.
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
    /// Attach, and keep tables and next hops in force until a signal comes.
    ///
    /// A changed table file is loaded by itself, and SIGHUP loads it too; if anything is wrong with
    /// it, the running one stays. SIGTERM ends the daemon and leaves the pinned program forwarding
    /// (unless `on_stop` says otherwise), so that the daemon can be restarted or upgraded at any
    /// moment.
    Run(ConfigFile),
    /// Show how the running daemon is.
    ///
    /// Its phase, problems, interfaces, the generation in force, what is announced, and the last reload.
    /// Exits with 0 when nothing is wrong, with 3 when no daemon answers, with 4 when something is
    /// wrong with it (then there are `problems`), and with 5 when that is not permitted.
    Status(Asking),
    /// Show what the running daemon has in force: tables, backends, binds or generations.
    Show {
        #[command(subcommand)]
        what: show::What,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show live rates by table, backend and reason.
    ///
    /// In a terminal it goes on until Ctrl-C; with `-o json` each look is one line.
    Top {
        #[command(flatten)]
        asking: Asking,
        #[command(flatten)]
        options: top::Options,
    },
    /// Have the running daemon load its table file anew, and say how that went.
    ///
    /// A changed file is loaded by itself; this waits for the result, and exits with 1 if the table was
    /// refused. `table diff` and `table plan` say beforehand what a change will do.
    Reload {
        #[command(flatten)]
        asking: Asking,
        /// Even if nothing has changed, the change can break flows and the configuration forbids
        /// that, or VIPs that it ends to serve cannot be withdrawn first.
        #[arg(long)]
        force: bool,
    },
    /// Bring the previous generation back into force, program and table as they were.
    ///
    /// Once more leads forth again. The table file stays as it is: it is loaded again by `reload` or
    /// SIGHUP, and by itself once it is changed.
    Rollback {
        #[command(flatten)]
        asking: Asking,
        /// Even if VIPs that it ends to serve cannot be withdrawn first.
        #[arg(long)]
        force: bool,
    },
    /// Tell the running daemon that backends hold no flows any more, so they can be taken out.
    ///
    /// `glb-redirect wait --until-drained` on the backend finds out. Without it, a backend is taken to
    /// hold flows until it has not been first in a row for `flow_age`.
    ///
    ///   glb-director drained 10.0.2.21 && glb-director table set table.toml 10.0.2.21 --state inactive
    #[command(verbatim_doc_comment)]
    Drained {
        /// Their addresses.
        #[arg(required = true)]
        backends: Vec<IpAddr>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Take this director out of service without breaking a connection.
    ///
    /// Routers are told to want it less, until no VIP packets come; then it withdraws, and waits once
    /// more. Shows how far it is, and exits with 0 when nothing is announced and no packets come. It goes on
    /// without this command (Ctrl-C), and stays drained, across restarts too, until `undrain`. If
    /// packets do not cease in time, everything is announced again, and the exit code is 1.
    ///
    /// (To drain a backend, see `table set`.)
    Drain {
        #[command(flatten)]
        asking: Asking,
        /// How long packets may take to cease, at each of the two stages (30s, 5m); the
        /// configuration's `drain.timeout` if it is left out.
        #[arg(long, value_name = "TIME", value_parser = glb_host::duration::parse)]
        timeout: Option<std::time::Duration>,
        /// Go on when packets have not ceased in time: withdraw all the same.
        #[arg(long)]
        force: bool,
        /// End a drain, at whatever stage it is: the same as `undrain`.
        #[arg(long, conflicts_with_all = ["timeout", "force"])]
        cancel: bool,
    },
    /// Announce again after `drain`, or end one that is under way.
    Undrain(Asking),
    /// Take the director off its interfaces and remove everything it pinned, counters too.
    ///
    /// What its configuration announces is withdrawn first, and packets to the VIPs are waited for. The
    /// daemon must not run.
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        /// Even if something cannot be withdrawn, or packets still come.
        #[arg(long)]
        force: bool,
    },
    /// Show packets and bytes by table, reason and backend. The daemon need not run.
    ///
    /// They count since they were made (`top` shows rates). docs/packet-path.md says what each reason
    /// means; `trace reason NAME` shows such packets.
    Counters {
        #[command(flatten)]
        config: ConfigFile,
        /// How to print them.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a capture through the program that `run` would attach, and say what is decided and why.
    ///
    /// Nothing is attached or sent, and a daemon that runs beside it notices nothing: counters are
    /// private. The configuration and its table file are read as they are now. Needs the permission
    /// to load BPF programs (root). A summary goes to stderr.
    ///
    ///   tcpdump -i eth0 -s 0 -w in.pcap host 198.51.100.7
    ///   glb-director replay in.pcap -w out.pcapng
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
    /// Check this director's configuration, or make one of GLB's.
    Config {
        #[command(subcommand)]
        command: config::Command,
        /// How to print the answer.
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
    /// Look for what is wrong with this machine for a director, and say how to mend it.
    ///
    /// Kernel and permissions, interfaces and drivers, MTU, routes and neighbours of the backends, VIPs
    /// that this machine's kernel would answer for. Changes nothing. Exits with 4 if there is a problem.
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// Send a real packet through the attached program to each backend, and report who answers.
        /// They are counted like any other.
        #[arg(long)]
        probe: bool,
        /// How to print the findings.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Look at several directors together.
    Fleet {
        #[command(subcommand)]
        command: fleet::Command,
        /// How to print the answer.
        #[arg(short, long, value_enum, default_value_t, global = true)]
        output: Output,
    },
    /// Print the completions of this command for a shell.
    ///
    /// For instance: glb-director completions bash > /etc/bash_completion.d/glb-director
    Completions {
        /// The shell.
        shell: cli_main::Shell,
    },
    /// Show the running director's decisions as they are taken: a line for each packet.
    ///
    /// Nothing of it is in the program that normally runs. While somebody watches, the daemon swaps
    /// in another build of it, and the plain one again when the watcher ends, is killed, or the time
    /// is up; not a packet is lost. Packets cost more meanwhile. One can watch at a time. Ends with a
    /// summary on stderr. Needs root.
    ///
    ///   glb-director trace 198.51.100.7 port 443
    ///   glb-director trace verdict dropped
    ///   glb-director trace table web reason encapsulated --sample 100 -o json
    #[command(verbatim_doc_comment)]
    Trace {
        #[command(flatten)]
        watching: Watching,
        #[command(flatten)]
        args: TraceArgs,
        /// How to print them: a line for each packet, in words or as JSON.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Write packets to a file as they come and as they leave, each with what was decided and why.
    ///
    /// For Wireshark: packets as they came are of the interface "received", others of "sent"; each
    /// has a comment (`frame.comment contains "no_bind"`). Works as `trace` does. Needs root.
    ///
    ///   glb-director capture -w out.pcapng -n 1000 198.51.100.7
    ///   glb-director capture -w - verdict dropped | wireshark -k -i -
    #[command(verbatim_doc_comment)]
    Capture {
        #[command(flatten)]
        watching: Watching,
        #[command(flatten)]
        capture: CaptureArgs,
        #[command(flatten)]
        args: TraceArgs,
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
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/glb/director.toml",
        global = true
    )]
    config: PathBuf,
}

/// What commands need that ask the running daemon.
#[derive(Args, Debug)]
struct Asking {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket; the one that the configuration names if it is left out.
    #[arg(short, long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Output,
}

impl Asking {
    /// A connection to the daemon.
    fn connect(&self) -> anyhow::Result<Client> {
        connect(self.socket.as_ref(), &self.config)
    }
}

/// What commands need that watch the running daemon.
#[derive(Args, Debug)]
struct Watching {
    #[command(flatten)]
    config: ConfigFile,
    /// The daemon's control socket; the one that the configuration names if it is left out.
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Watching {
    /// A connection to the daemon.
    fn connect(&self) -> anyhow::Result<Client> {
        connect(self.socket.as_ref(), &self.config)
    }
}

fn connect(socket: Option<&PathBuf>, config: &ConfigFile) -> anyhow::Result<Client> {
    let socket = match socket {
        Some(socket) => socket.clone(),
        None => Config::load(&config.config)?.control.place.path,
    };
    Ok(Client::connect(&socket)?)
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
    /// How the log is to be written.
    #[must_use]
    pub fn log(&self) -> LogSettings {
        self.log.log()
    }

    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
        match self.command {
            Command::Run(file) => done(run::execute(&file.config)),
            Command::Status(asking) => status::execute(&asking),
            Command::Show { what, asking } => show::execute(&asking, what),
            Command::Top { asking, options } => top::execute(&asking, &options),
            Command::Reload { asking, force } => reload::execute(&asking, force),
            Command::Rollback { asking, force } => reload::rollback(&asking, force),
            Command::Drained { backends, asking } => reload::drained(&asking, backends),
            Command::Drain { asking, cancel: true, .. } => drain::undrain(&asking),
            Command::Drain { asking, timeout, force, .. } => drain::drain(&asking, timeout, force),
            Command::Undrain(asking) => drain::undrain(&asking),
            Command::Detach { config, force } => done(detach::execute(&config.config, force)),
            Command::Counters { config, output } => done(counters::execute(&config.config, output)),
            Command::Replay { config, args, output } => {
                done(replay::execute(&config.config, &args, output))
            }
            Command::Trace { watching, args, output } => {
                trace::trace(&watching, &args, matches!(output, Output::Json))
            }
            Command::Capture { watching, capture, args } => {
                trace::capture(&watching, &args, &capture)
            }
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
