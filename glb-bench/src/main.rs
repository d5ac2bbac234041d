//! What the packet path costs, as ratios to a floor that is measured in the same run; and what the
//! daemons take.

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

/// Measures what the packet path costs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The director's packet path: ns for each packet on top of an empty program, and the ratio to
    /// the floor (constant outer headers and nothing else).
    Packet(packet::Arguments),
    /// The backend's packet path: ns for each packet on top of an empty program, and the ratio to
    /// the floor (the outer headers are cut off and nothing else).
    Redirect(redirect::Arguments),
    /// The director's reload: from a changed table file to the new generation in force, and what each
    /// step costs.
    Reload(reload::Arguments),
    /// The director that `reload` measures.
    #[command(hide = true)]
    Director {
        /// Its configuration.
        config: std::path::PathBuf,
    },
    /// One connection's throughput through the tunnel, and its ratio to the same connection without.
    Tunnel(tunnel::Arguments),
    /// The health checker: from a backend's death to the new generation in force at the director.
    Failover(failover::Arguments),
    /// The health checker: its share of a core and its memory for many targets.
    Health(health::Arguments),
    /// Which way of reading the times finds a cost that is known.
    Method(method::Arguments),
    /// Building tables: milliseconds, and ratios to GLB's own tool.
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
