//! Finds the compiler and the linker for the BPF programs, and runs them.
//!
//! Two compilers work: Debian's `rustc-web`, with its compiled `core` for `bpfel-unknown-none`, and
//! rustup's nightly with `rust-src`, which compiles `core` itself. The build script of `glb-host` and
//! `xtask` both use this crate, so `./x setup` checks exactly the tools that the build runs.
//!
//! Start reading at [`find_compiler`], [`find_linker`] and [`build`]. The versions and the names of
//! packages are the constants at the top.
//!
//! ```no_run
//! # fn main() -> Result<(), bpf_build::Error> {
//! let compiler = bpf_build::find_compiler()?;
//! let root = std::path::Path::new(".");
//! let objects = bpf_build::build(root, &root.join("target/bpf"), &compiler, &[])?;
//! println!("the BPF objects are in {}", objects.display());
//! # Ok(())
//! # }
//! ```

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The target that all BPF programs are built for.
pub const TARGET: &str = "bpfel-unknown-none";

/// The environment variable that selects the compiler: `debian` or `nightly`.
pub const COMPILER_VARIABLE: &str = "GLB_BPF_COMPILER";

/// The version of bpf-linker that this project is tested with.
pub const LINKER_VERSION: &str = "0.13.0";

/// The Debian packages of the compiler.
pub const DEBIAN_COMPILER_PACKAGES: [&str; 3] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The Debian packages that bpf-linker is compiled with: the LLVM version of the compiler.
pub const DEBIAN_LINKER_PACKAGES: [&str; 1] = ["llvm-22-dev"];

/// The folder of that LLVM.
pub const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The command that installs a compiled bpf-linker, for systems without Debian's LLVM.
pub const LINKER_ELSEWHERE: &str = "cargo install cargo-binstall && cargo binstall bpf-linker";

/// The command that installs rustup's compiler for the BPF target.
pub const NIGHTLY_COMMAND: [&str; 6] =
    ["rustup", "toolchain", "install", "nightly", "--component", "rust-src"];

/// A compiler for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's compiler, with a compiled `core`.
    Debian {
        /// Usually `/usr/bin/rustc`.
        rustc: PathBuf,
        /// Usually `/usr/bin/cargo`.
        cargo: PathBuf,
    },
    /// rustup's nightly with `rust-src`, by `-Z build-std=core`.
    Nightly {
        /// In rustup's folder of toolchains.
        rustc: PathBuf,
        /// Beside it.
        cargo: PathBuf,
    },
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { rustc, .. } => write!(f, "Debian's {}", rustc.display()),
            Self::Nightly { rustc, .. } => {
                write!(f, "rustup's nightly with rust-src, {}", rustc.display())
            }
        }
    }
}

/// A missing or failing tool, with the command that installs it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no compiler for the BPF target.
    #[error(
        "cannot find a compiler for {TARGET}.\n  \
         On Debian:    apt-get install {}\n  \
         With rustup:  {}",
        DEBIAN_COMPILER_PACKAGES.join(" "),
        NIGHTLY_COMMAND.join(" ")
    )]
    NoCompiler,
    /// The compiler that [`COMPILER_VARIABLE`] selects is not installed.
    #[error("cannot use the compiler of {COMPILER_VARIABLE}={asked}: {why}.\n  {fix}")]
    Selected {
        /// The variable's value.
        asked: String,
        /// Why the compiler cannot be used.
        why: String,
        /// The command that installs it.
        fix: String,
    },
    /// There is no bpf-linker.
    #[error(
        "cannot find bpf-linker on the PATH or in {}.\n  \
         On Debian:  apt-get install {} && {}\n  \
         Elsewhere:  {LINKER_ELSEWHERE}",
        cargo_bin().display(),
        DEBIAN_LINKER_PACKAGES.join(" "),
        linker_install_command()
    )]
    NoLinker,
    /// A command could not be started.
    #[error("cannot run `{command}`: {source}")]
    Spawn {
        /// The command line.
        command: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The compiler failed.
    #[error("`{command}` failed with {status}")]
    Build {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
    },
}

/// Cargo's arguments that compile bpf-linker; set [`LINKER_INSTALL_VARIABLES`] with them.
#[must_use]
pub fn linker_install_arguments() -> Vec<&'static str> {
    vec![
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--no-default-features",
        "--features",
        "llvm-22",
    ]
}

/// Environment variables for that build. Without optimisation it takes half the time; the linking
/// itself is done by LLVM, which is compiled already.
pub const LINKER_INSTALL_VARIABLES: [(&str, &str); 3] = [
    ("LLVM_PREFIX", DEBIAN_LLVM_PREFIX),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// The shell command that compiles bpf-linker against Debian's LLVM.
#[must_use]
pub fn linker_install_command() -> String {
    format!("LLVM_PREFIX={DEBIAN_LLVM_PREFIX} cargo {}", linker_install_arguments().join(" "))
}

/// The folder that `cargo install` puts binaries into.
#[must_use]
pub fn cargo_bin() -> PathBuf {
    let root = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    root.join("bin")
}

/// Finds a compiler: Debian's first, because it needs no build of `core`. [`COMPILER_VARIABLE`]
/// overrides the order.
///
/// # Errors
/// [`Error::NoCompiler`] or [`Error::Selected`], with the command that installs the compiler.
pub fn find_compiler() -> Result<Compiler, Error> {
    match env::var(COMPILER_VARIABLE).ok().as_deref() {
        None | Some("") => debian().or_else(nightly).ok_or(Error::NoCompiler),
        Some("debian") => debian().ok_or_else(|| Error::Selected {
            asked: "debian".into(),
            why: format!("/usr/bin/rustc has no `core` for {TARGET}"),
            fix: format!("apt-get install {}", DEBIAN_COMPILER_PACKAGES.join(" ")),
        }),
        Some("nightly") => nightly().ok_or_else(|| Error::Selected {
            asked: "nightly".into(),
            why: "rustup has no nightly toolchain with rust-src".into(),
            fix: NIGHTLY_COMMAND.join(" "),
        }),
        Some(other) => Err(Error::Selected {
            asked: other.into(),
            why: "unknown compiler".into(),
            fix: format!("set {COMPILER_VARIABLE} to debian or nightly, or unset it"),
        }),
    }
}

fn debian() -> Option<Compiler> {
    let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
    let core = sysroot(Command::new(&rustc))?.join("lib/rustlib").join(TARGET).join("lib");
    (core.is_dir() && cargo.is_file()).then_some(Compiler::Debian { rustc, cargo })
}

fn nightly() -> Option<Compiler> {
    // Absolute paths: `rustup run` would find an older `rustc` that is first on the PATH.
    let which = |tool: &str| {
        let mut command = Command::new(find_program("rustup")?);
        command.args(["which", "--toolchain", "nightly", tool]);
        printed_path(command.env("RUSTUP_AUTO_INSTALL", "0"))
    };
    let (rustc, cargo) = (which("rustc")?, which("cargo")?);
    let source = sysroot(Command::new(&rustc))?.join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(Compiler::Nightly { rustc, cargo })
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    printed_path(rustc.args(["--print", "sysroot"]))
}

/// Runs a command and returns the path that it prints.
fn printed_path(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// Finds a program on the PATH or in the folder of cargo and rustup.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([cargo_bin()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Finds bpf-linker on the PATH or in the folder of `cargo install`.
///
/// # Errors
/// [`Error::NoLinker`], with the command that installs it.
pub fn find_linker() -> Result<PathBuf, Error> {
    find_program("bpf-linker").ok_or(Error::NoLinker)
}

/// Returns the command that runs `cargo SUBCOMMAND` on the package `glb-ebpf` of the workspace at
/// `root`, with `compiler`, for the BPF target and into `target_dir`.
///
/// # Errors
/// When there is no bpf-linker.
pub fn command(
    root: &Path,
    target_dir: &Path,
    compiler: &Compiler,
    subcommand: &str,
) -> Result<Command, Error> {
    let linker = find_linker()?;
    let (Compiler::Debian { rustc, cargo } | Compiler::Nightly { rustc, cargo }) = compiler;
    // Not `cargo clippy`: cargo searches its own folder first, which may belong to another compiler.
    let mut command = if subcommand == "clippy" {
        Command::new(cargo.with_file_name("cargo-clippy"))
    } else {
        Command::new(cargo)
    };
    // Cargo passes its settings for the host to build scripts; they are wrong for the BPF target.
    for variable in [
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTDOC",
    ] {
        command.env_remove(variable);
    }
    command.env("RUSTC", rustc).env("CARGO", cargo);
    if matches!(compiler, Compiler::Debian { .. }) {
        // Inline assembly for BPF is not stable yet. aya-ebpf needs it, and so do the map values
        // that the programs address directly.
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf,glb_director_bpf,glb_redirect_bpf");
    }
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // v3: 32-bit registers and jumps, from Linux 5.1. Headers lie at odd multiples of two; all
        // supported processors read unaligned words in one access.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command.args([subcommand, "--release", "--locked", "--package", "glb-ebpf"]);
    command.args(["--target", TARGET]);
    if matches!(compiler, Compiler::Nightly { .. }) {
        command.args(["-Z", "build-std=core"]);
    }
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    command.arg("--target-dir").arg(target_dir);
    Ok(command)
}

/// The feature of `glb-ebpf` that compiles its programs with tracing of their decisions.
pub const TRACE_FEATURE: &str = "trace";

/// Compiles the package `glb-ebpf` of the workspace at `root` with `features` into `target_dir`, and
/// returns the folder with the objects, one file per program. Each set of features needs another
/// `target_dir`, because the names of the files are the same.
///
/// # Errors
/// When a tool is missing, cannot be run, or fails.
pub fn build(
    root: &Path,
    target_dir: &Path,
    compiler: &Compiler,
    features: &[&str],
) -> Result<PathBuf, Error> {
    let mut command = command(root, target_dir, compiler, "build")?;
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    let shown = format!("{command:?}");
    let status =
        command.status().map_err(|source| Error::Spawn { command: shown.clone(), source })?;
    if !status.success() {
        return Err(Error::Build { command: shown, status });
    }
    Ok(target_dir.join(TARGET).join("release"))
}

/// Lists all files below `folder`, for `rerun-if-changed` of a build script.
///
/// # Errors
/// When a folder cannot be read.
pub fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
