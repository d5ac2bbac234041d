//! `./x demo`: shows that a git clone survives the drain of its backend.

use anyhow::Result;

use crate::commands::lab;

/// Shows a git clone that goes on while the backend that serves it is drained and removed.
///
/// Starts a lab of network namespaces, takes about 40 seconds after the build, and removes the lab at
/// the end, also after Ctrl-C. Exit status 0: the clone and all checks succeeded.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Keep the lab afterwards, and print commands to explore it.
    #[arg(long)]
    keep: bool,
    /// Turn off forwarding by the backends: the clone must break. Exit status 0: it broke.
    #[arg(long)]
    without_second_chance: bool,
    /// Use IPv6 for clients and VIP.
    #[arg(long)]
    ipv6: bool,
    /// The name of the lab. Labs with different names can run at the same time.
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
