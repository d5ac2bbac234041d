//! The demo: a long `git clone` goes on while the backend that serves it is drained, then removed, and
//! while one of the two directors is taken out of service.
//!
//! Without second chance the same drain breaks the clone, and that is then what must happen.

mod scenario;
mod screen;

use std::{fmt::Write as _, io::Write, time::Duration};

use anyhow::Result;

use self::{scenario::Story, screen::Screen};
pub use crate::report::Check;
use crate::{
    fleet::{Fleet, REPOSITORY},
    interrupt,
    plan::{Family, Plan, Routing, vip},
};

/// The name of a lab that is given none.
pub const DEFAULT_NAME: &str = "glb-demo";

/// What the demo is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// IPv4 or IPv6 between clients and VIP.
    pub family: Family,
    /// Size of the repository that is cloned.
    pub megabytes: usize,
    /// Speed of the link to the clients; with the size it makes the clone's duration.
    pub mbit: u32,
    /// Whether backends send on what is not theirs. Without it the clone must break.
    pub second_chance: bool,
    /// Leave the lab up at the end, and say how to look around in it.
    pub keep: bool,
}

impl Default for Options {
    /// A clone of about 20 seconds over IPv4, from the lab `glb-demo`.
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

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Everything that had to hold.
    pub checks: Vec<Check>,
}

impl Outcome {
    /// Whether everything held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    /// The checks that did not hold, one per line.
    #[must_use]
    pub fn failures(&self) -> String {
        let failed = self.checks.iter().filter(|check| !check.held);
        failed.map(|check| format!("{check}\n")).collect()
    }
}

/// Runs the demo, telling its story to `out`; on a terminal with a line that changes in place.
///
/// # Errors
/// When the lab or a part of it does not work at all, and on Ctrl-C. A promise that is not kept is
/// no error but a check of the outcome that did not hold.
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
    let mut story = Story::begin(fleet, options, screen)?;
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

/// How to look around in a lab that stays.
///
/// # Errors
/// Never; the text is written into memory.
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

/// What people put before a command that needs root. Who got root by sudo has a shell without it;
/// who is root without it may have no sudo at all.
const fn sudo(root: bool, by_sudo: bool) -> &'static str {
    if root && !by_sudo { "" } else { "sudo " }
}

/// How long requests go on after the last change.
const AFTERWARDS: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_is_for_people_who_have_it() {
        assert_eq!(sudo(true, false), "", "root, perhaps without any sudo");
        assert_eq!(sudo(true, true), "sudo ", "the shell that called sudo is not root's");
        assert_eq!(sudo(false, false), "sudo ");
    }
}
