//! `./x setup`: installs the tools that the other commands need.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    debian,
    needs::{self, Missing, Purpose, Remedy},
    process,
};

/// Installs every tool that building, testing and the demo need and that is missing.
///
/// It prints what is missing and why. As root on Debian it installs packages; with rustup it installs
/// components of the toolchain. Otherwise it prints the commands to type and fails. The other commands
/// do the same for the tools that they need.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install nothing: print the missing tools and the commands that install them, and fail if there
    /// are any.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    if arguments.check {
        let plan = Plan::new(needs::missing(Purpose::Test), assume_available);
        if !plan.missing.is_empty() {
            plan.explain();
            bail!("{}", plan.manual_commands());
        }
    } else {
        ensure(Purpose::Test)?;
    }
    eprintln!("BPF compiler: {}", bpf_build::find_compiler()?);
    eprintln!("bpf-linker:   {}", bpf_build::find_linker()?.display());
    eprintln!("All needed tools are installed ({:.1} s).", start.elapsed().as_secs_f64());
    Ok(())
}

/// Installs the missing tools for `purpose`. Every other command calls this first.
///
/// # Errors
/// When a tool is missing and this process may not install it, or the installation fails.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    // Twice: which component the BPF compiler lacks can only be seen once it is installed.
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
    bail!("still missing after the installation: {}\n{}", names.join(", "), plan.manual_commands());
}

/// Prints the missing tools and installs them.
fn install(missing: Vec<Missing>) -> Result<()> {
    let mut plan = Plan::new(missing, assume_available);
    plan.explain();
    if plan.needs_debian() {
        if !debian::is_here() || !debian::may_install() {
            bail!("{}", plan.manual_commands());
        }
        debian::update()?;
        // Only the fresh lists tell which packages Debian has.
        plan = Plan::new(plan.missing, debian::has);
    }
    if !plan.unsolved.is_empty() {
        bail!("{}", plan.manual_commands());
    }
    plan.carry_out()
}

/// Assumes that Debian has every package: its lists may be outdated or missing until `apt-get update`.
fn assume_available(_package: &str) -> bool {
    debian::is_here()
}

/// The commands that install the missing tools.
struct Plan {
    missing: Vec<Missing>,
    packages: Vec<&'static str>,
    rustup: Vec<Vec<&'static str>>,
    linker: bool,
    /// Instructions for tools that this program cannot install.
    unsolved: Vec<String>,
}

impl Plan {
    /// `debian_has` tells whether Debian has a package; see [`assume_available`].
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

    /// The commands that the user can type.
    fn manual_commands(&self) -> String {
        let mut lines = vec!["needed tools are not installed".to_owned()];
        if self.needs_debian() {
            lines.push("On Debian, as root:".to_owned());
            lines.push(format!("  {}", debian::install_command(&self.packages)));
            if !debian::is_here() {
                lines.push("  (on other systems: the packages of similar names)".to_owned());
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
            // `--force` replaces a bpf-linker that does not start.
            command.args(bpf_build::linker_install_arguments()).arg("--force");
            process::run_with_progress("building bpf-linker", &mut command)?;
        }
        Ok(())
    }
}
