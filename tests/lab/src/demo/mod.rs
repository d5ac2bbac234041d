//! The demo: a long `git clone` continues while its backend is drained and then removed, and while
//! one of two directors is taken out of service.
//!
//! Without second chance, the same drain must break the clone.

mod scenario;
mod screen;

use std::{fmt::Write as _, io::Write, time::Duration};

use anyhow::Result;

use self::{scenario::DemoRun, screen::Screen};
pub use crate::report::Check;
use crate::{
    fleet::{Fleet, REPOSITORY},
    interrupt,
    plan::{Family, Plan, Routing, vip},
};

/// The default name of the demo's lab.
pub const DEFAULT_NAME: &str = "glb-demo";

/// The options of the demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// IPv4 or IPv6 between clients and VIP.
    pub family: Family,
    /// The size of the repository that is cloned, in MB.
    pub megabytes: usize,
    /// The speed of the client link in Mbit/s. Together with the size it determines the clone's
    /// duration.
    pub mbit: u32,
    /// Whether backends forward packets of connections that they do not hold. Without it the clone
    /// must break.
    pub second_chance: bool,
    /// Whether to keep the lab running at the end and print how to look around in it.
    pub keep: bool,
}

impl Default for Options {
    /// A clone of about 20 seconds over IPv4, in the lab `glb-demo`.
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            family: Family::V4,
            megabytes: 120,
            mbit: 52,
            second_chance: true,
            keep: false,
        }
    }
}

/// The result of the demo.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every expectation, with its result.
    pub checks: Vec<Check>,
}

impl Outcome {
    /// Returns whether every expectation held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// Returns the failed checks, one per line.
    #[must_use]
    pub fn failures(&self) -> String {
        let failed = self.checks.iter().filter(|check| !check.held);
        failed.map(|check| format!("{check}\n")).collect()
    }
}

/// Runs the demo and prints its progress to `out`. On a terminal, one line is updated in place.
///
/// # Errors
/// When the lab or a part of it fails, and on Ctrl-C. A broken promise is not an error but a failed
/// check of the outcome.
pub fn run(options: &Options, out: &mut dyn Write, terminal: bool) -> Result<Outcome> {
    interrupt::install()?;
    let mut screen = Screen::new(out, terminal);
    let plan = Plan {
        directors: 2,
        routing: Routing::Bgp,
        client_mbit: Some(options.mbit),
        ..Plan::new(&options.name)
    };
    let fleet = Fleet::up(plan, options.megabytes, options.second_chance)?;
    screen.say(&format!(
        "The lab is up: client, router, 2 directors behind BGP and ECMP, {} backends with nginx and \
         git, as network namespaces {}-*.",
        fleet.serving(),
        options.name
    ))?;
    let mut story = DemoRun::begin(fleet, options, screen)?;
    story.clone_and_drain()?;
    if options.second_chance {
        story.verify_and_remove()?;
    }
    let (fleet, outcome, mut screen) = story.end()?;
    if options.keep {
        fleet.lab.keep();
        screen.print(&look_around(&fleet)?)?;
    }
    Ok(outcome)
}

/// Explains how to look around in a lab that keeps running.
///
/// # Errors
/// Never: the text is written to memory.
pub fn look_around(fleet: &Fleet) -> Result<String> {
    let name = &fleet.lab.plan().name;
    let sudo = sudo(nix::unistd::geteuid().is_root(), std::env::var_os("SUDO_UID").is_some());
    let other = if name == DEFAULT_NAME { String::new() } else { format!("--name {name} ") };
    let lab = |words: &str| format!("{sudo}./x lab {other}{words}");
    let url = format!("http://{}", vip(Family::V4));
    let mut text = format!("The lab {name} stays up. Look around in it, and break it:\n");
    for (what, command) in [
        ("how it is", lab("status")),
        ("a request", lab(&format!("exec client -- git ls-remote {url}/git/{REPOSITORY}"))),
        ("connections of a backend", lab("exec backend1 -- ss -tn")),
        (
            "the directors' counters",
            lab("exec directors -- glb-director counters --config glb-director.toml"),
        ),
        ("drain a backend", lab("drain backend1; # and `back backend1`")),
        ("kill a daemon or machine", lab("kill director1; # and `start director1`")),
        ("logs and configurations", format!("ls {0} {0}/log", fleet.lab.run_folder().display())),
        ("all commands", "./x lab --help".to_owned()),
        ("remove it all", lab("down")),
    ] {
        writeln!(text, "  {what:<24}  {command}")?;
    }
    Ok(text)
}

/// The prefix for commands that need root. A user who became root with sudo has a shell without
/// root; a machine without sudo needs no prefix.
const fn sudo(root: bool, by_sudo: bool) -> &'static str {
    if root && !by_sudo { "" } else { "sudo " }
}

/// The time during which requests continue after the last change.
const AFTERWARDS: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_prefix_only_for_sudo_users() {
        assert_eq!(sudo(true, false), "", "root, perhaps without any sudo");
        assert_eq!(sudo(true, true), "sudo ", "the shell that called sudo is not root's");
        assert_eq!(sudo(false, false), "sudo ");
    }
}
