//! Runs other programs to completion, with errors that name the exact command.

use std::{
    ffi::OsString,
    io::{Read, Write},
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Runs `command` and requires exit status 0.
///
/// # Errors
/// The error holds the command as typed and its stderr.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs `command`, requires exit status 0 and returns its stdout.
///
/// # Errors
/// The error holds the command as typed and its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let done = finish(command)?;
    if !done.status.success() {
        return Err(failure(command, done.status, &done.stderr));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs `command` and returns status and output, whether it succeeded or not.
///
/// # Errors
/// When the command cannot be started.
pub fn finish(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", shown(command)))
}

/// Runs `command` with `input` on stdin.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading explains itself on stderr, which is the better message.
        stdin.write_all(input.as_bytes()).ok();
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        return Err(failure(command, done.status, &done.stderr).context(input.trim().to_owned()));
    }
    Ok(())
}

/// Runs a `command` that can take seconds, requires exit status 0, and stops on Ctrl-C.
///
/// # Errors
/// The error holds the command as typed and its stderr, or says that it was interrupted.
pub fn run_interruptible(command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    let mut stderr = child.stderr.take();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr.as_mut() {
            stderr.read_to_end(&mut text).ok();
        }
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(interrupted) = interrupt::check() {
            child.kill()?;
            child.wait()?;
            return Err(interrupted);
        }
        thread::sleep(Duration::from_millis(20));
    };
    let stderr = reader.join().unwrap_or_default();
    if !status.success() {
        return Err(failure(command, status, &stderr));
    }
    Ok(())
}

fn failure(command: &Command, status: ExitStatus, stderr: &[u8]) -> anyhow::Error {
    let stderr = String::from_utf8_lossy(stderr);
    anyhow::anyhow!("`{}` failed with {status}: {}", shown(command), stderr.trim())
}

/// Formats `command` as it would be typed, for messages.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The search path for programs: root's PATH lacks the folders of nginx and tc after a plain `su`.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Checks that the programs that the lab needs are installed.
pub(crate) fn require(programs: &[(&str, &str)]) -> Result<()> {
    let path = search_path();
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| {
            !std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    bail!(
        "not found: {}; `./x setup` installs it, or: apt-get install --no-install-recommends {}",
        names.join(", "),
        packages.join(" ")
    )
}
