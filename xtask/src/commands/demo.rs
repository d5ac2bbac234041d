//! `./x demo`: a git clone survives the drain of the backend that serves it.

use anyhow::Result;

use crate::commands::lab;

/// Shows a git clone that goes on while the backend that serves it is drained and removed.
///
/// Brings up a lab of network namespaces, lasts about 40 seconds after the build, and cleans up
/// after itself, on Ctrl-C too. Exit status 0 says that everything held.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave the lab up afterwards, and say how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Backends never forward: the clone must break. Exit status 0 says that it did.
    #[arg(long)]
    without_second_chance: bool,
    /// Clients and VIP speak IPv6.
    #[arg(long)]
    ipv6: bool,
    /// The lab's name: labs of different names can be up side by side.
    #[arg(long, default_value = "glb-demo")]
    name: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut words = vec!["demo"];
    for (given, word) in [
        (arguments.keep, "--keep"),
        (arguments.without_second_chance, "--without-second-chance"),
        (arguments.ipv6, "--ipv6"),
    ] {
        words.extend(given.then_some(word));
    }
    words.extend(["--name", &arguments.name]);
    lab::become_lab(&words)
}
