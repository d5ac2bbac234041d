//! `./x setup`: whatever the other commands need, installed once.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    debian,
    needs::{self, Missing, Purpose, Remedy},
    process,
};

/// Looks for everything that building, testing and the demo need, and installs what is missing.
///
/// The other commands do this by themselves for what they need. It says what is missing and why,
/// then installs it where it may (root on Debian; rustup's parts anywhere); elsewhere it prints the
/// commands and stops. Run it as often as you like.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only look: print what is missing and the commands that install it, and fail if there is any.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    if arguments.check {
        let plan = Plan::new(needs::missing(Purpose::Test), assumed);
        if !plan.missing.is_empty() {
            plan.explain();
            bail!("{}", plan.by_hand());
        }
    } else {
        ensure(Purpose::Test)?;
    }
    eprintln!("BPF compiler: {}", bpf_build::find_compiler()?);
    eprintln!("bpf-linker:   {}", bpf_build::find_linker()?.display());
    eprintln!("Everything that is needed is there ({:.1} s).", start.elapsed().as_secs_f64());
    Ok(())
}

/// What every other command calls first. Says nothing when all is there.
///
/// # Errors
/// When something is missing and may not, or could not, be installed.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    // Twice, because what the compiler for BPF lacks is known only when it is there.
    for _ in 0..2 {
        let missing = needs::missing(purpose);
        if missing.is_empty() {
            return Ok(());
        }
        install(missing)?;
    }
    let left = needs::missing(purpose);
    if left.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = left.iter().map(|missing| missing.name).collect();
    let plan = Plan::new(left, debian::has);
    bail!("still missing after the installation: {}\n{}", names.join(", "), plan.by_hand());
}

/// Says what is missing and installs it.
fn install(missing: Vec<Missing>) -> Result<()> {
    let mut plan = Plan::new(missing, assumed);
    plan.explain();
    if plan.needs_debian() {
        if !debian::is_here() || !debian::may_install() {
            bail!("{}", plan.by_hand());
        }
        debian::update()?;
        // What Debian has is known only now.
        plan = Plan::new(plan.missing, debian::has);
    }
    if !plan.unsolved.is_empty() {
        bail!("{}", plan.by_hand());
    }
    plan.carry_out()
}

/// Debian's lists of packages may be old or not there until they are fetched anew.
fn assumed(_package: &str) -> bool {
    debian::is_here()
}

/// What will be run for the things that are missing.
struct Plan {
    missing: Vec<Missing>,
    packages: Vec<&'static str>,
    rustup: Vec<Vec<&'static str>>,
    linker: bool,
    /// For what nothing can be run from here: what to do by hand.
    unsolved: Vec<String>,
}

impl Plan {
    /// `debian_has` says whether Debian has a package; see [`assumed`].
    fn new(missing: Vec<Missing>, debian_has: fn(&str) -> bool) -> Self {
        let mut plan = Self {
            packages: Vec::new(),
            rustup: Vec::new(),
            linker: false,
            unsolved: Vec::new(),
            missing,
        };
        let rustup = bpf_build::find_program("rustup").is_some();
        let nightly_asked = needs::nightly_is_asked_for();
        for missing in &plan.missing {
            match &missing.remedy {
                Remedy::Packages(packages) => plan.packages.extend(packages),
                Remedy::Rustup(command) if rustup => plan.rustup.push(command.clone()),
                Remedy::Rustup(command) => plan.unsolved.push(format!(
                    "{}: {} (no rustup was found here)",
                    missing.name,
                    command.join(" ")
                )),
                Remedy::BpfCompiler if !nightly_asked && debian_has("rustc-web") => {
                    plan.packages.extend(bpf_build::DEBIAN_COMPILER_PACKAGES);
                }
                Remedy::BpfCompiler if rustup => {
                    plan.rustup.push(bpf_build::NIGHTLY_COMMAND.to_vec());
                }
                Remedy::BpfCompiler => plan.unsolved.push(format!(
                    "{}: {} (rustup is at https://rustup.rs)",
                    missing.name,
                    bpf_build::NIGHTLY_COMMAND.join(" ")
                )),
                Remedy::BpfLinker if debian_has(bpf_build::DEBIAN_LINKER_PACKAGES[0]) => {
                    plan.packages.extend(bpf_build::DEBIAN_LINKER_PACKAGES);
                    plan.linker = true;
                }
                Remedy::BpfLinker => {
                    plan.unsolved.push(format!("{}: {}", missing.name, bpf_build::LINKER_ELSEWHERE))
                }
            }
        }
        plan.packages.sort_unstable();
        plan.packages.dedup();
        plan
    }

    fn needs_debian(&self) -> bool {
        !self.packages.is_empty()
    }

    fn explain(&self) {
        eprintln!("Missing on this machine:");
        for missing in &self.missing {
            let from = match &missing.remedy {
                Remedy::Packages(packages) => format!("Debian: {}", packages.join(" ")),
                Remedy::Rustup(command) => command.join(" "),
                Remedy::BpfCompiler => "Debian's rustc-web, or rustup's nightly".to_owned(),
                Remedy::BpfLinker => "built by cargo".to_owned(),
            };
            eprintln!("  {:22} {} ({from})", missing.name, missing.why);
        }
    }

    /// The commands for a person to type.
    fn by_hand(&self) -> String {
        let mut lines = vec!["something that is needed is not installed".to_owned()];
        if self.needs_debian() {
            lines.push("On Debian, as root:".to_owned());
            lines.push(format!("  {}", debian::install_command(&self.packages)));
            if !debian::is_here() {
                lines.push("  (elsewhere: what your system calls these packages)".to_owned());
            }
        }
        if !self.rustup.is_empty() || self.linker || !self.unsolved.is_empty() {
            lines.push("As yourself:".to_owned());
        }
        lines.extend(self.rustup.iter().map(|command| format!("  {}", command.join(" "))));
        if self.linker {
            lines.push(format!("  {}", bpf_build::linker_install_command()));
        }
        lines.extend(self.unsolved.iter().map(|line| format!("  {line}")));
        lines.join("\n")
    }

    fn carry_out(&self) -> Result<()> {
        if self.needs_debian() {
            debian::install_packages(&self.packages)?;
        }
        for words in &self.rustup {
            let program = bpf_build::find_program(words[0]).context("rustup is gone")?;
            let mut command = std::process::Command::new(program);
            process::run_with_progress(&words[1..].join(" "), command.args(&words[1..]))?;
        }
        if self.linker {
            let mut command = process::cargo();
            command.envs(bpf_build::LINKER_INSTALL_VARIABLES);
            // One that is there and does not work is replaced.
            command.args(bpf_build::linker_install_arguments()).arg("--force");
            process::run_with_progress("building bpf-linker", &mut command)?;
        }
        Ok(())
    }
}
