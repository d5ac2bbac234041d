//! Runs other programs. A failure names the exact command.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The root folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo's target folder, which contains this program.
pub(crate) fn target() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    program.ancestors().nth(2).map_or_else(|| root().join("target"), Path::to_owned)
}

/// The cargo that runs this program, in the root folder of the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs `command` with its output on the terminal.
///
/// # Errors
/// When it cannot be started or fails. The message contains the command as a shell accepts it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed with {status}");
    }
    Ok(())
}

/// Replaces this process by `command`, so that Ctrl-C reaches only `command`.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    Err(command.exec()).with_context(|| format!("cannot run `{shown}`"))
}

/// Runs `command` with its output in a file, and shows the elapsed time and the last line of output.
///
/// # Errors
/// As [`run`]; the end of the output is printed.
pub(crate) fn run_with_progress(title: &str, command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let log = target().join("xtask.log");
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    eprintln!("$ {shown}");
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let terminal = io::stderr().is_terminal();
    let mut next_line = Duration::from_secs(15);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let seconds = start.elapsed().as_secs();
        if terminal {
            let line = format!("  {title} … {seconds} s  {}", last_line(&log));
            let line: String = line.chars().take(100).collect();
            eprint!("\r\x1b[K{line}");
            io::stderr().flush()?;
        } else if start.elapsed() > next_line {
            eprintln!("  {title} … {seconds} s");
            next_line += Duration::from_secs(15);
        }
        thread::sleep(Duration::from_millis(100));
    };
    let end = if terminal { "\r\x1b[K" } else { "" };
    eprintln!("{end}  {title}: {:.1} s", start.elapsed().as_secs_f64());
    if !status.success() {
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let lines: Vec<_> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(30)..] {
            eprintln!("  | {line}");
        }
        bail!("`{shown}` failed with {status} (full output: {})", log.display());
    }
    Ok(())
}

/// The last line of a log that is not empty. Progress bars end their lines with a carriage return.
fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(400)..]).into_owned();
    let line = text.split(['\n', '\r']).rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().chars().filter(|c| !c.is_control()).collect()
}

/// `command` as a shell accepts it, variables first.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if word.chars().any(char::is_control) {
        let escaped = word.replace('\\', r"\\").replace('\'', r"\'").replace('\u{1f}', r"\x1f");
        format!("$'{escaped}'")
    } else if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("sh");
        command.env("FLAGS", "a\u{1f}b'c").args(["-c", "echo \"$FLAGS\" 'it'", ""]);
        let shown = shown(&command);
        assert_eq!(shown, r#"FLAGS=$'a\x1fb\'c' sh -c 'echo "$FLAGS" '\''it'\''' ''"#);
        let typed = Command::new("bash").args(["-c", &shown]).output().unwrap();
        assert_eq!(typed.stdout, command.output().unwrap().stdout);
    }
}
