//! The test programs: built once by cargo, then run one by one.
//!
//! `cargo test` is not used. With a choice of packages it would compile shared dependencies again, and
//! it chooses targets by name only, which several crates share.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{commands::build, process};

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// The crate's name.
    pub(crate) package: String,
    /// The name of the library, binary or file in `tests/`.
    pub(crate) target: String,
    /// `test` is a file in `tests/`; `lib` and `bin` have their tests beside the code.
    kind: String,
    folder: PathBuf,
    executable: PathBuf,
}

/// The number of tests that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    pub(crate) passed: usize,
    pub(crate) ignored: usize,
}

/// Compiles all user-space crates with their tests, and returns the test programs.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build() -> Result<Vec<TestProgram>> {
    let mut command = process::cargo();
    command.arg("build").args(build::WORKSPACE).arg("--all-targets");
    let shown = process::shown(&command);
    eprintln!("$ {shown}");
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let mut programs = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            programs.extend(TestProgram::from_message(&line?));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}` failed with {status}");
    }
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

impl TestProgram {
    /// Reads a test program from one of cargo's JSON messages; nothing from messages about other
    /// things.
    fn from_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test =
            message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        is_test.then_some(Self {
            package: package(message["package_id"].as_str()?)?,
            target: message["target"]["name"].as_str()?.to_owned(),
            kind: message["target"]["kind"][0].as_str()?.to_owned(),
            folder: folder.to_owned(),
            executable: message["executable"].as_str()?.into(),
        })
    }

    /// Whether it is a file in `tests/`.
    pub(crate) fn is_integration(&self) -> bool {
        self.kind == "test"
    }

    /// The folder that its tests run in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shell command that runs it with `words`; empty ones are left out.
    pub(crate) fn shell_command(&self, words: &[&str]) -> String {
        let words = words.iter().filter(|word| !word.is_empty());
        process::shown(Command::new(&self.executable).args(words))
    }

    /// Runs the tests that match `filter` and counts them. The name of the crate or of the target
    /// matches all its tests.
    ///
    /// # Errors
    /// When a test fails.
    pub(crate) fn run(&self, filter: &[String]) -> Result<Tests> {
        let whole = |word: &&String| **word == self.package || **word == self.target;
        let words: Vec<_> = if filter.iter().any(|word| whole(&word)) {
            filter.iter().filter(|word| word.starts_with('-')).collect()
        } else {
            filter.iter().collect()
        };
        if !filter.is_empty() && self.count(&words)? == 0 {
            return Ok(Tests::default());
        }
        let mut as_typed = Command::new("cargo");
        as_typed.args(["test", "--package", &self.package]);
        match self.kind.as_str() {
            "lib" => as_typed.arg("--lib"),
            kind => as_typed.args([&format!("--{kind}"), &self.target]),
        };
        if !words.is_empty() {
            as_typed.arg("--").args(&words);
        }
        eprintln!("$ {}", process::shown(&as_typed));
        run_and_count(self.command(&words), &process::shown(&as_typed))
    }

    /// The number of matching tests.
    fn count(&self, words: &[&String]) -> Result<usize> {
        let output = self.command(words).arg("--list").output();
        let output = output.with_context(|| format!("cannot run {}", self.executable.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter(|line| line.ends_with(": test")).count())
    }

    fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(&self.executable);
        // The environment that `cargo test` gives them.
        command.args(words).current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// Runs tests with their output on the terminal, and counts them.
///
/// # Errors
/// When a test fails. The message contains `shown`.
pub(crate) fn run_and_count(mut command: Command, shown: &str) -> Result<Tests> {
    let child = command.stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run `{shown}`"))?;
    let mut count = Tests::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line?;
            count.read(&line);
            if !line.is_empty() {
                println!("{line}");
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}` failed with {status}");
    }
    Ok(count)
}

impl Tests {
    /// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<_> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            match (pair[0].parse::<usize>(), pair[1]) {
                (Ok(number), "passed") => self.passed += number,
                (Ok(number), "ignored") => self.ignored += number,
                _ => {}
            }
        }
    }

    /// The sum of both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, ignored: self.ignored + other.ignored }
    }
}

/// The crate's name in a package identifier: `path+file:///somewhere/glb-table#0.1.0` or
/// `…/tests#glb-e2e@0.1.0`.
fn package(id: &str) -> Option<String> {
    let (path, fragment) = id.split_once('#')?;
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut count = Tests::default();
        count.read("test a::b ... ok");
        count.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out");
        count.read("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(count, Tests { passed: 15, ignored: 1 });
    }

    #[test]
    fn test_programs_are_read_from_cargos_messages() {
        let message = |test: bool| {
            format!(
                r##"{{"reason":"compiler-artifact","package_id":"path+file:///a/tests#glb-e2e@0.1.0",
                "manifest_path":"/a/tests/Cargo.toml","target":{{"kind":["test"],"name":"cases"}},
                "profile":{{"test":{test}}},"executable":"/a/target/debug/deps/cases-1"}}"##
            )
        };
        let program = TestProgram::from_message(&message(true)).unwrap();
        assert_eq!((program.package.as_str(), program.target.as_str()), ("glb-e2e", "cases"));
        assert!(program.is_integration());
        assert_eq!(program.folder, Path::new("/a/tests"));
        assert_eq!(TestProgram::from_message(&message(false)), None);
        assert_eq!(package("path+file:///a/glb-table#0.1.0").as_deref(), Some("glb-table"));
    }
}
