//! Finds the tools that compile the BPF programs, and runs them.
//!
//! Two compilers are understood: Debian's `rustc-web` with its ready-made `core` for
//! `bpfel-unknown-none`, and rustup's nightly with `rust-src` (which builds `core` itself).
//! `glb-host`'s build script and `xtask` share this crate, so that what set-up checks is what the
//! build uses.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The target that all BPF programs are built for.
pub const TARGET: &str = "bpfel-unknown-none";

/// Overrides the choice of compiler: `debian` or `nightly`.
pub const COMPILER_VARIABLE: &str = "GLB_BPF_COMPILER";

/// The version of bpf-linker that this project is tested with.
pub const LINKER_VERSION: &str = "0.13.0";

/// Debian's packages that bring the compiler.
pub const DEBIAN_COMPILER_PACKAGES: [&str; 3] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Debian's packages that bpf-linker is built with: the LLVM that the compiler has, too.
pub const DEBIAN_LINKER_PACKAGES: [&str; 1] = ["llvm-22-dev"];

/// Where that LLVM is.
pub const DEBIAN_LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// How bpf-linker is had where Debian's LLVM is not: a ready-made binary.
pub const LINKER_ELSEWHERE: &str = "cargo install cargo-binstall && cargo binstall bpf-linker";

/// How rustup's compiler for the BPF target is had.
pub const NIGHTLY_COMMAND: [&str; 6] =
    ["rustup", "toolchain", "install", "nightly", "--component", "rust-src"];

/// A compiler for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's compiler, with a ready-made `core`.
    Debian {
        /// Usually `/usr/bin/rustc`.
        rustc: PathBuf,
        /// Usually `/usr/bin/cargo`.
        cargo: PathBuf,
    },
    /// rustup's nightly with `rust-src`, by `-Z build-std=core`.
    Nightly {
        /// Inside rustup's folder of toolchains.
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

/// What is missing, and the command that mends it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither compiler is there.
    #[error(
        "no compiler for {TARGET} was found.\n  \
         On Debian:    apt-get install {}\n  \
         With rustup:  {}",
        DEBIAN_COMPILER_PACKAGES.join(" "),
        NIGHTLY_COMMAND.join(" ")
    )]
    NoCompiler,
    /// The compiler that was asked for by [`COMPILER_VARIABLE`] is not there.
    #[error("{COMPILER_VARIABLE}={asked} was asked for, but {why}.\n  {fix}")]
    AskedFor {
        /// The variable's value.
        asked: String,
        /// What was looked at.
        why: String,
        /// The command that mends it.
        fix: String,
    },
    /// No bpf-linker.
    #[error(
        "bpf-linker was not found on the PATH or in {}.\n  \
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
        /// As it would be typed.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The compiler said no.
    #[error("`{command}` failed with {status}")]
    Build {
        /// As it would be typed.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
    },
}

/// The arguments of cargo that build bpf-linker, with [`LINKER_INSTALL_VARIABLES`] set.
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

/// Variables that halve the time of that build; the work of linking is LLVM's, which comes compiled.
pub const LINKER_INSTALL_VARIABLES: [(&str, &str); 3] = [
    ("LLVM_PREFIX", DEBIAN_LLVM_PREFIX),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// The command that builds bpf-linker against Debian's LLVM.
#[must_use]
pub fn linker_install_command() -> String {
    format!("LLVM_PREFIX={DEBIAN_LLVM_PREFIX} cargo {}", linker_install_arguments().join(" "))
}

/// Where `cargo install` puts binaries.
#[must_use]
pub fn cargo_bin() -> PathBuf {
    let root = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    root.join("bin")
}

/// Chooses the compiler by what is there: Debian's first (it needs no build of `core`).
///
/// # Errors
/// [`Error::NoCompiler`] or [`Error::AskedFor`], with the command that mends it.
pub fn find_compiler() -> Result<Compiler, Error> {
    match env::var(COMPILER_VARIABLE).ok().as_deref() {
        None | Some("") => debian().or_else(nightly).ok_or(Error::NoCompiler),
        Some("debian") => debian().ok_or_else(|| Error::AskedFor {
            asked: "debian".into(),
            why: format!("/usr/bin/rustc has no `core` for {TARGET}"),
            fix: format!("apt-get install {}", DEBIAN_COMPILER_PACKAGES.join(" ")),
        }),
        Some("nightly") => nightly().ok_or_else(|| Error::AskedFor {
            asked: "nightly".into(),
            why: "rustup has no nightly toolchain with rust-src".into(),
            fix: NIGHTLY_COMMAND.join(" "),
        }),
        Some(other) => Err(Error::AskedFor {
            asked: other.into(),
            why: "it is not a compiler that is known here".into(),
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
    // Absolute paths, because `rustup run` leaves an older `rustc` in front when the PATH has one.
    let which = |tool: &str| {
        let mut command = Command::new(find_program("rustup")?);
        command.args(["which", "--toolchain", "nightly", tool]);
        answer(command.env("RUSTUP_AUTO_INSTALL", "0"))
    };
    let (rustc, cargo) = (which("rustc")?, which("cargo")?);
    let source = sysroot(Command::new(&rustc))?.join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(Compiler::Nightly { rustc, cargo })
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    answer(rustc.args(["--print", "sysroot"]))
}

/// The path that a command prints.
fn answer(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// Finds a program on the PATH, or where cargo and rustup put theirs.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([cargo_bin()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Finds bpf-linker on the PATH, or where `cargo install` puts it.
///
/// # Errors
/// [`Error::NoLinker`], with the command that installs it.
pub fn find_linker() -> Result<PathBuf, Error> {
    find_program("bpf-linker").ok_or(Error::NoLinker)
}

/// The command that runs `cargo SUBCOMMAND` on the package `glb-ebpf` of the workspace at `root`
/// with `compiler`, for the BPF target, into `target_dir`. Clippy is taken from beside the compiler.
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
    // Not `cargo clippy`: cargo looks for that in its own folder first, where another compiler's
    // may be.
    let mut command = if subcommand == "clippy" {
        Command::new(cargo.with_file_name("cargo-clippy"))
    } else {
        Command::new(cargo)
    };
    // Cargo hands its own choices for the host down to build scripts; none of them fits here.
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
        // One feature (inline assembly for BPF) is not stable yet: aya-ebpf needs it, and so do
        // arrays without look-ups.
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf,glb_director_bpf,glb_redirect_bpf");
    }
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // v3: 32-bit registers and jumps, Linux 5.1. Headers lie at odd multiples of two, and
        // every machine this runs on reads them there in one go.
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

/// The feature of `glb-ebpf` with which its programs show their decisions.
pub const TRACE_FEATURE: &str = "trace";

/// Builds the package `glb-ebpf` of the workspace at `root`, with these features, into `target_dir`
/// and returns the folder with the objects, one file per program. Each set of features needs a folder
/// of its own: the files' names are the same.
///
/// # Errors
/// When a tool is missing, cannot be run, or refuses the source.
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

/// All source files below `folder`, for a build script's `rerun-if-changed`.
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
