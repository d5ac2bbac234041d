//! `./x kernels`: the programs and their tests on other kernels, in virtual machines.
//!
//! | file | task |
//! |---|---|
//! | `list.rs` | the kernels, and the checks that run in each |
//! | `packages.rs` | fetches Debian's packages of the kernels and of QEMU, unpacked and not installed |
//! | `machine.rs` | makes an initial RAM disk and boots a kernel under QEMU |
//! | `guest/init.sh` | the first process of the machine: mounts this machine's root, read-only |
//! | `guest/checks.sh` | runs the checks in the machine |
//! | `report.rs` | the table of kernels and checks |

mod list;
mod machine;
mod packages;
mod report;

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};

use crate::{commands::setup, needs::Purpose, permission, process, test_programs};
use list::{CHECKS, KERNELS, Kernel};
use machine::Machine;
use packages::{Packages, Suite};
use report::Report;

/// Runs the kernel tests on Debian's kernels in QEMU, without KVM, and prints a table.
///
/// Fetches the kernels and QEMU as Debian packages into target/kernels (about 400 MB, once) and
/// installs nothing. A machine boots in 10 to 20 seconds and sees this machine's files read-only;
/// all checks take some minutes on each kernel.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Boot only these kernels, by their names in the table (6.1). All, if left out.
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Run only checks whose name contains this.
    #[arg(long, value_name = "WORD")]
    check: Option<String>,
    /// Processors of each machine.
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    processors: u8,
    /// Ask Debian's archive for newer kernels. Without it, packages that are there are used.
    #[arg(long)]
    update: bool,
    /// Fetch the packages and make the RAM disks, and boot nothing.
    #[arg(long)]
    fetch_only: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    permission::check("kernels")?;
    setup::ensure(Purpose::Lab)?;
    let kernels = chosen(&arguments.kernels)?;
    let folder = process::target().join("kernels");
    fs::create_dir_all(&folder)?;
    let emulator = packages::emulator(&folder, arguments.update)?;
    let mut machines = Vec::new();
    for kernel in kernels {
        let packages = Packages::new(&folder, Suite::new(kernel.suite), arguments.update);
        machines.push((kernel, Machine::new(&folder, &emulator, &packages.kernel()?)?));
    }
    if arguments.fetch_only {
        return Ok(());
    }
    let programs = test_programs::build()?;
    let word = arguments.check.as_deref().unwrap_or_default();
    let checks: Vec<_> = CHECKS.iter().filter(|check| check.name.contains(word)).collect();
    if checks.is_empty() {
        bail!("no check's name contains `{word}`; there are: {}", list::check_names());
    }
    let mut report = Report::default();
    for (kernel, machine) in &machines {
        eprintln!("\n== Linux {} ({})", machine.release(), kernel.suite);
        let results = machine.run(&checks, &programs, arguments.processors)?;
        report.add(kernel.name, machine.release(), results);
    }
    let json = folder.join("results.json");
    fs::write(&json, report.json()?)?;
    println!("{}", report.table());
    eprintln!("As JSON: {}. Output of each check: {}/*/results", json.display(), folder.display());
    report.verdict()
}

fn chosen(names: &[String]) -> Result<Vec<&'static Kernel>> {
    for name in names {
        if !KERNELS.iter().any(|kernel| kernel.name == name) {
            let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            bail!("unknown kernel `{name}`; there are: {}", known.join(", "));
        }
    }
    let is_chosen = |kernel: &&Kernel| names.is_empty() || names.iter().any(|n| n == kernel.name);
    Ok(KERNELS.iter().filter(is_chosen).collect())
}

/// The file of a guest script in the source tree.
fn guest_script(name: &str) -> PathBuf {
    process::root().join("xtask/src/commands/kernels/guest").join(name)
}
