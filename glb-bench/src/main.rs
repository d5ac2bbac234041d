//! The benchmarks: `./x bench NAME`, one module for each name.
//!
//! `packet` and `redirect` measure BPF programs by `BPF_PROG_TEST_RUN` (`harness` does that), `table`
//! and `reload` call the code of the daemons, and `tunnel`, `failover` and `health` start daemons in
//! network namespaces. A figure of another program comes from the same run, or is not printed.

mod failover;
mod harness;
mod health;
mod method;
mod packet;
mod redirect;
mod reload;
mod table;
mod tunnel;

use clap::{Parser, Subcommand};

/// Measures the cost of the packet path, tables, reloads and health checks.
#[derive(Debug, Parser)]
#[command(name = "./x bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The director's packet path: ns per packet more than an empty program takes, and the ratio to the
    /// floor, a program that only writes constant outer headers.
    Packet(packet::Arguments),
    /// The backend's packet path: ns per packet more than an empty program takes, and the ratio to the
    /// floor, a program that only removes the outer headers.
    Redirect(redirect::Arguments),
    /// The director's reload: the time from a changed table file to the active generation, by step.
    Reload(reload::Arguments),
    /// Runs the director that `reload` measures.
    #[command(hide = true)]
    Director {
        /// The configuration file.
        config: std::path::PathBuf,
    },
    /// The throughput of one connection through the tunnel, and its ratio to one without tunnel.
    Tunnel(tunnel::Arguments),
    /// The time from a backend's death to the active generation without it, by kind of death.
    Failover(failover::Arguments),
    /// The processor time and memory of the health checker with many targets.
    Health(health::Arguments),
    /// The error of two estimates of a known cost.
    Method(method::Arguments),
    /// The time to build tables.
    Table(table::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Packet(arguments) => packet::run(&arguments),
        Command::Redirect(arguments) => redirect::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Director { config } => reload::director(&config),
        Command::Failover(arguments) => failover::run(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Method(arguments) => method::run(&arguments),
        Command::Table(arguments) => table::run(&arguments),
        Command::Tunnel(arguments) => tunnel::run(&arguments),
    }
}
