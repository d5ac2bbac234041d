//! The tools that the commands need, and the search for missing ones.
//!
//! The search is for programs and never for packages, so a hand-built nginx counts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{debian, process};

/// What a command is about to do. Each purpose includes the programs of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile everything.
    Build,
    /// Check format and lints, and run the tests that need no root.
    Check,
    /// Run the daemons in a lab.
    Lab,
    /// Run the survival suite, with everything that its backends serve.
    Survive,
    /// Run every check and test.
    Test,
}

/// A missing tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The common name of the tool.
    pub(crate) name: &'static str,
    /// What the commands use it for.
    pub(crate) why: &'static str,
    /// How to install it.
    pub(crate) remedy: Remedy,
}

/// How to install a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// With these Debian packages.
    Packages(Vec<&'static str>),
    /// With a command of rustup.
    Rustup(Vec<&'static str>),
    /// With a compiler for the BPF target, from Debian or from rustup.
    BpfCompiler,
    /// By compiling bpf-linker against Debian's LLVM.
    BpfLinker,
}

/// A program and the Debian package that contains it.
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
    program("nft", "nftables", Purpose::Lab, "partitions a machine of the lab from the network"),
    program("ss", "iproute2", Purpose::Survive, "ends the sockets of a machine that goes down"),
    program("glance-api", "glance-api", Purpose::Survive, "serves images on the lab's backends"),
    program("initdb", "postgresql", Purpose::Survive, "the database of Glance"),
    program("setpriv", "util-linux", Purpose::Survive, "runs daemons as another user"),
    program("prometheus", "prometheus", Purpose::Test, "scrapes the lab: dashboard and alerts"),
    program("promtool", "prometheus", Purpose::Test, "checks the alert rules and the exposition"),
    program("faketime", "faketime", Purpose::Test, "makes the clock of a health checker jump"),
    program("bgpd", "frr", Purpose::Test, "learns a director's routes from the kernel"),
    program("exabgp", "exabgp", Purpose::Test, "announces what a director's command tells it"),
    program("dpkg-deb", "dpkg", Purpose::Test, "makes packages and looks into them"),
    program("systemd-analyze", "systemd", Purpose::Test, "runs the packaged unit"),
];

/// The tools that `purpose` needs and that are missing.
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
    if matches!(purpose, Purpose::Check | Purpose::Test) {
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
    // The BPF programs need the clippy of the compiler that builds them.
    let (remedy, cargo) = match bpf_build::find_compiler() {
        Ok(bpf_build::Compiler::Nightly { cargo, .. }) => (
            Remedy::Rustup(vec!["rustup", "component", "add", "clippy", "--toolchain", "nightly"]),
            cargo,
        ),
        Ok(bpf_build::Compiler::Debian { cargo, .. }) => {
            (Remedy::Packages(vec!["rust-web-clippy"]), cargo)
        }
        // The compiler is in the list already; its clippy comes with it.
        Err(_) if debian::is_here() && !nightly_is_asked_for() => {
            (Remedy::Packages(vec!["rust-web-clippy"]), PathBuf::new())
        }
        // rustup's toolchain contains clippy.
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

/// Finds a program on the PATH, in the folders that only root has there, and in Debian's folders for
/// FRR and for each version of PostgreSQL.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    bpf_build::find_program(name).or_else(|| {
        let folders = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/frr"].map(PathBuf::from);
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let versions = versions.map(|version| version.path().join("bin"));
        folders.into_iter().chain(versions).map(|folder| folder.join(name)).find(|f| f.is_file())
    })
}

/// Whether bpf-linker starts. It does not if its LLVM was removed.
fn linker_works() -> bool {
    bpf_build::find_linker().is_ok_and(|linker| succeeds(Command::new(linker).arg("--version")))
}

/// Whether the cargo that runs this program is Debian's.
fn cargo_is_debians() -> bool {
    Path::new(process::cargo().get_program()) == Path::new("/usr/bin/cargo")
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
