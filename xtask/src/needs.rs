//! What the commands need of the machine, and how each need is looked for.
//!
//! Looked for are the programs themselves, never package names: whoever built nginx by hand has
//! nginx.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{debian, process};

/// What a command is about to do; each includes the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile everything.
    Build,
    /// Run the daemons in a lab.
    Lab,
    /// Run the survival suite, with everything that its backends serve.
    Survive,
    /// Check format, lints and tests.
    Test,
}

/// One thing that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Its name, as people call it.
    pub(crate) name: &'static str,
    /// What it is needed for.
    pub(crate) why: &'static str,
    /// How it is had.
    pub(crate) remedy: Remedy,
}

/// How a need is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Debian's packages.
    Packages(Vec<&'static str>),
    /// A command of rustup's.
    Rustup(Vec<&'static str>),
    /// A compiler for the BPF target, from Debian or from rustup.
    BpfCompiler,
    /// bpf-linker, built against Debian's LLVM (which may have to be installed before).
    BpfLinker,
}

/// A program that Debian has, in a package of another name.
struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
    purpose: Purpose,
}

const fn program(
    name: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
) -> Program {
    Program { name, package, why, purpose }
}

const PROGRAMS: &[Program] = &[
    program("cc", "gcc", Purpose::Build, "links Rust programs"),
    program("strip", "binutils", Purpose::Build, "makes packages small"),
    program("ip", "iproute2", Purpose::Lab, "network namespaces, links and routes of the lab"),
    program("tc", "iproute2", Purpose::Lab, "makes a link of the lab slow"),
    program("nginx", "nginx-light", Purpose::Lab, "serves git over HTTP on the lab's backends"),
    program("fcgiwrap", "fcgiwrap", Purpose::Lab, "runs git-http-backend for nginx"),
    program("git", "git", Purpose::Lab, "the client and the server of the demo"),
    program("bird", "bird2", Purpose::Lab, "routing daemon of the lab's router and directors"),
    program("nft", "nftables", Purpose::Lab, "cuts off a machine of the lab"),
    program("ss", "iproute2", Purpose::Survive, "ends the sockets of a machine that goes down"),
    program("glance-api", "glance-api", Purpose::Survive, "serves images on the lab's backends"),
    program("initdb", "postgresql", Purpose::Survive, "the database that they share"),
    program("setpriv", "util-linux", Purpose::Survive, "runs daemons as another user"),
    program("prometheus", "prometheus", Purpose::Test, "scrapes the lab: dashboard and alerts"),
    program("promtool", "prometheus", Purpose::Test, "checks the alert rules and the exposition"),
    program("faketime", "faketime", Purpose::Test, "lets the clock of a health checker jump"),
    program("bgpd", "frr", Purpose::Test, "learns a director's routes from the kernel"),
    program("exabgp", "exabgp", Purpose::Test, "is told by a director's command what to announce"),
    program("dpkg-deb", "dpkg", Purpose::Test, "makes packages and looks into them"),
    program("systemd-analyze", "systemd", Purpose::Test, "runs the packaged unit"),
];

/// Everything that `purpose` needs and that is not there.
pub(crate) fn missing(purpose: Purpose) -> Vec<Missing> {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|program| program.purpose <= purpose && find(program.name).is_none())
        .map(|program| Missing {
            name: program.name,
            why: program.why,
            remedy: Remedy::Packages(vec![program.package]),
        })
        .collect();
    if bpf_build::find_compiler().is_err() {
        missing.push(Missing {
            name: "a compiler for BPF",
            why: "compiles the programs that run in the kernel",
            remedy: Remedy::BpfCompiler,
        });
    }
    if !linker_works() {
        missing.push(Missing {
            name: "bpf-linker",
            why: "links them into the objects that the kernel loads",
            remedy: Remedy::BpfLinker,
        });
    }
    if purpose >= Purpose::Test {
        missing.extend(missing_for_checks());
    }
    missing
}

fn missing_for_checks() -> Vec<Missing> {
    let mut missing = Vec::new();
    for (name, component, package, why) in [
        ("cargo fmt", "rustfmt", "rustfmt-web", "checks the format"),
        ("cargo clippy", "clippy", "rust-web-clippy", "checks for known mistakes"),
    ] {
        let subcommand = name.trim_start_matches("cargo ");
        if !succeeds(process::cargo().args([subcommand, "--version"])) {
            let remedy = if cargo_is_debians() {
                Remedy::Packages(vec![package])
            } else {
                Remedy::Rustup(vec!["rustup", "component", "add", component])
            };
            missing.push(Missing { name, why, remedy });
        }
    }
    // The BPF programs are checked by the clippy of the compiler that builds them.
    let (remedy, cargo) = match bpf_build::find_compiler() {
        Ok(bpf_build::Compiler::Nightly { cargo, .. }) => (
            Remedy::Rustup(vec!["rustup", "component", "add", "clippy", "--toolchain", "nightly"]),
            cargo,
        ),
        Ok(bpf_build::Compiler::Debian { cargo, .. }) => {
            (Remedy::Packages(vec!["rust-web-clippy"]), cargo)
        }
        // Together with the compiler, which is in the list already.
        Err(_) if debian::is_here() && !nightly_is_asked_for() => {
            (Remedy::Packages(vec!["rust-web-clippy"]), PathBuf::new())
        }
        // rustup's comes with its own.
        Err(_) => return missing,
    };
    if !cargo.with_file_name("cargo-clippy").is_file() {
        let why = "checks the BPF programs for known mistakes";
        missing.push(Missing { name: "cargo clippy for BPF", why, remedy });
    }
    missing
}

/// Whether the environment asks for rustup's compiler.
pub(crate) fn nightly_is_asked_for() -> bool {
    env::var(bpf_build::COMPILER_VARIABLE).is_ok_and(|value| value == "nightly")
}

/// Finds a program, also in the folders that only root has on the PATH, and in Debian's for FRR and
/// for each version of PostgreSQL.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    bpf_build::find_program(name).or_else(|| {
        let folders = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/frr"].map(PathBuf::from);
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let versions = versions.map(|version| version.path().join("bin"));
        folders.into_iter().chain(versions).map(|folder| folder.join(name)).find(|f| f.is_file())
    })
}

/// A bpf-linker whose LLVM was removed is there and does not start.
fn linker_works() -> bool {
    bpf_build::find_linker().is_ok_and(|linker| succeeds(Command::new(linker).arg("--version")))
}

/// Whether the cargo that runs this program came with Debian.
fn cargo_is_debians() -> bool {
    Path::new(process::cargo().get_program()) == Path::new("/usr/bin/cargo")
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
