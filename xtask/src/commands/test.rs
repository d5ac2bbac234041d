//! `./x test`: everything that must hold before a change is landed.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
};

/// Runs every check and test: format, lints, unit and golden tests, the BPF programs in the kernel,
/// and whole labs in network namespaces.
///
/// Needs root, and says so at once where it is not: nothing is left out for want of permission.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains one of these, without the checks of format and lints;
    /// words that begin with a dash go to the test programs (--nocapture, --skip NAME).
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Crates whose integration tests load BPF programs or talk to the kernel.
const KERNEL_CRATES: [&str; 3] = ["glb-host", "glb-director", "glb-redirect"];

/// Crates whose integration tests compute only.
const PURE_CRATES: [&str; 4] = ["bpf-build", "glb-common", "glb-table", "xtask"];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    permission::check("test")?;
    setup::ensure(Purpose::Test)?;
    let filter = &arguments.filter;

    let mut steps = Vec::new();
    if filter.is_empty() {
        steps.push(Step::check("format", formats));
        steps.push(Step::check("lints", lints));
        steps.push(Step::check("lints of the BPF programs", bpf_lints));
    }
    steps.push(Step::check("build", build::everything));
    let pure = [vec!["--lib".to_owned(), "--bins".to_owned()], targets(&PURE_CRATES)?].concat();
    let kernel = targets(&KERNEL_CRATES)?;
    let labs = vec!["--test".to_owned(), "cases".to_owned()];
    let groups = [
        ("unit and golden tests", pure),
        ("examples in the documentation", vec!["--doc".to_owned()]),
        ("BPF programs and netlink in the kernel", kernel),
        ("labs in network namespaces", labs),
    ];
    for (name, targets) in groups {
        if !targets.is_empty() {
            steps.push(Step::tests(name, move || tests(&targets, filter)));
        }
    }

    let outcome = carry_out(&mut steps);
    eprintln!();
    for step in &steps {
        eprintln!("  {}", step.line());
    }
    outcome?;
    let ran: usize = steps.iter().map(|step| step.tests.map_or(0, |tests| tests.passed)).sum();
    if ran == 0 {
        bail!("no test's name contains `{}`", filter.join("` or `"));
    }
    eprintln!("\nAll of it holds.");
    Ok(())
}

struct Step<'a> {
    name: &'static str,
    work: Box<dyn FnMut() -> Result<Option<Tests>> + 'a>,
    time: Option<Duration>,
    failed: bool,
    tests: Option<Tests>,
}

/// How many tests there were.
#[derive(Clone, Copy, Default)]
struct Tests {
    passed: usize,
    ignored: usize,
}

impl<'a> Step<'a> {
    fn check(name: &'static str, mut work: impl FnMut() -> Result<()> + 'a) -> Self {
        let work = Box::new(move || work().map(|()| None));
        Self { name, work, time: None, failed: false, tests: None }
    }

    fn tests(name: &'static str, mut work: impl FnMut() -> Result<Tests> + 'a) -> Self {
        let work = Box::new(move || work().map(Some));
        Self { name, work, time: None, failed: false, tests: None }
    }

    fn line(&self) -> String {
        let Some(time) = self.time else {
            return format!("{:40}           not run", self.name);
        };
        let result = match (self.failed, self.tests) {
            (true, _) => "FAILED".to_owned(),
            (false, None) => "ok".to_owned(),
            (false, Some(Tests { passed: 0, ignored: 0 })) => "no tests".to_owned(),
            (false, Some(Tests { passed, ignored: 0 })) => format!("ok, {passed} tests"),
            (false, Some(Tests { passed, ignored })) => {
                format!("ok, {passed} tests, {ignored} IGNORED")
            }
        };
        format!("{:40} {:6.1} s  {result}", self.name, time.as_secs_f64())
    }
}

fn carry_out(steps: &mut [Step<'_>]) -> Result<()> {
    for step in steps {
        eprintln!("\n== {}", step.name);
        let start = Instant::now();
        let result = (step.work)();
        step.time = Some(start.elapsed());
        step.failed = result.is_err();
        step.tests = result?;
    }
    Ok(())
}

fn formats() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<()> {
    let mut command = process::cargo();
    command.arg("clippy").args(build::WORKSPACE).args(["--all-targets", "--", "-D", "warnings"]);
    process::run(&mut command)
}

fn bpf_lints() -> Result<()> {
    let root = process::root();
    let compiler = bpf_build::find_compiler()?;
    // Where the build puts them too (see glb-host/build.rs).
    let folder = process::target().join("bpf");
    let mut command = bpf_build::command(&root, &folder, &compiler, "clippy")?;
    process::run(command.args(["--", "-D", "warnings"]))
}

/// Arguments of cargo that choose the integration tests of `crates`. Always the whole workspace is
/// chosen from: with some of its packages only, shared dependencies would be compiled again.
fn targets(crates: &[&str]) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for name in crates {
        let folder = process::root().join(name).join("tests");
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let is_target = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").is_file();
            if let (true, Some(stem)) = (is_target, path.file_stem().and_then(|s| s.to_str())) {
                arguments.extend(["--test".to_owned(), stem.to_owned()]);
            }
        }
    }
    Ok(arguments)
}

/// Runs tests and counts them.
fn tests(targets: &[String], filter: &[String]) -> Result<Tests> {
    let mut command = process::cargo();
    command.arg("test").args(build::WORKSPACE).args(targets);
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    let shown = process::shown(&command);
    eprintln!("$ {shown}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let mut count = Tests::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line?;
            count.add(&line);
            println!("{line}");
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
    fn add(&mut self, line: &str) {
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
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut count = Tests::default();
        count.add("test a::b ... ok");
        count.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; x");
        count.add("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; x");
        assert_eq!((count.passed, count.ignored), (15, 1));
    }

    #[test]
    fn integration_tests_are_found_by_their_files() {
        let found = targets(&["glb-table"]).unwrap();
        assert!(found.iter().any(|name| name == "golden"), "{found:?}");
        assert!(!found.iter().any(|name| name == "common"), "{found:?}");
    }
}
