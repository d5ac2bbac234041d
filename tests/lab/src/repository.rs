//! A large git repository with generated content: every run produces the same bytes and the same
//! HEAD.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{command, interrupt};

const BLOB: usize = 1 << 20;
const COMMITS: usize = 8;

/// Builds a git command that ignores this machine's settings, proxies and user.
#[must_use]
pub fn git() -> Command {
    isolated(Command::new("git"))
}

/// Makes a command ignore this machine's settings, proxies and user.
#[must_use]
pub fn isolated(mut command: Command) -> Command {
    command.env_clear();
    command.env("PATH", crate::command::search_path());
    command.envs(ENVIRONMENT.iter().copied());
    command
}

/// `safe.directory`: the files can belong to a different user than the reader.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("HOME", "/nonexistent"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "safe.directory"),
    ("GIT_CONFIG_VALUE_0", "*"),
];

/// Creates a bare repository of about `megabytes` MB at `path` and returns its HEAD.
///
/// The blobs are random, so that neither compression nor deltas shrink them and the transfer size
/// is known.
///
/// # Errors
/// When git fails or Ctrl-C was pressed.
pub fn create(path: &Path, megabytes: usize) -> Result<String> {
    command::run(git().args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(path))?;
    for setting in [
        ["core.compression", "0"],
        ["pack.compression", "0"],
        // One pack, as after `git gc`, even for few objects.
        ["fastimport.unpackLimit", "0"],
        // Without delta search, the server starts to send at once.
        ["pack.window", "0"],
        ["core.bigFileThreshold", "100k"],
    ] {
        command::run(in_repository(path).arg("config").args(setting))?;
    }
    let mut import = in_repository(path);
    import.args(["fast-import", "--quiet"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run git fast-import")?;
    let written = match child.stdin.take() {
        Some(stdin) => write_history(BufWriter::with_capacity(BLOB, stdin), megabytes),
        None => bail!("git fast-import has no stdin"),
    };
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("git fast-import: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    written?;
    head(path)
}

/// Returns the commit that HEAD points to.
///
/// # Errors
/// When HEAD points to no commit.
pub fn head(path: &Path) -> Result<String> {
    let head = command::output(in_repository(path).args(["rev-parse", "--verify", "HEAD"]))?;
    Ok(head.trim().to_owned())
}

/// Builds a git command for the repository at `path`.
#[must_use]
pub fn in_repository(path: &Path) -> Command {
    let mut command = git();
    command.arg("-C").arg(path);
    command
}

fn write_history(mut to: impl Write, megabytes: usize) -> Result<()> {
    let mut random = SplitMix(0x676c_625f_6769_7421);
    let mut blob = vec![0; BLOB];
    for commit in 0..COMMITS.min(megabytes) {
        let time = 1_700_000_000 + commit * 3600;
        let message = format!("Part {} of {COMMITS}\n", commit + 1);
        write!(
            to,
            "commit refs/heads/main\ncommitter Lab <lab@example.org> {time} +0000\n\
             data {}\n{message}",
            message.len()
        )?;
        for file in (commit..megabytes).step_by(COMMITS) {
            interrupt::check()?;
            random.fill(&mut blob);
            write!(to, "M 100644 inline part{commit}/{file:04}.bin\ndata {BLOB}\n")?;
            to.write_all(&blob)?;
            writeln!(to)?;
        }
    }
    finish(to).context("git fast-import stopped reading")
}

fn finish(mut to: impl Write) -> io::Result<()> {
    to.write_all(b"done\n")?;
    to.flush()
}

/// The SplitMix64 generator of Steele, Lea and Flood: fast, and random enough to defeat zlib.
struct SplitMix(u64);

impl SplitMix {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}
