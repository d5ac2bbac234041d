//! `./x test`: everything that must hold before a change is landed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    commands::{build, setup},
    needs::Purpose,
    permission, process,
    test_programs::{self, TestProgram, Tests},
};

/// Runs every check and test: format, lints, unit and golden tests, the BPF programs in the kernel,
/// and whole labs in network namespaces.
///
/// Needs root, and says so at once where it is not: nothing is left out for want of permission.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains one of these, without the checks of format and lints. The
    /// name of a crate (glb-table) or of a file of tests (kernel) stands for all that is in it.
    /// Words that begin with a dash go to the test programs (--nocapture).
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    permission::check("test")?;
    setup::ensure(Purpose::Test)?;
    let mut report = Report::default();
    let outcome = steps(&arguments.filter, &mut report);
    report.print();
    outcome?;
    if report.lines.iter().all(|line| line.tests.is_none_or(|tests| tests.passed == 0)) {
        bail!("no test's name contains `{}`", arguments.filter.join("` or `"));
    }
    eprintln!("\nAll of it holds.");
    Ok(())
}

fn steps(filter: &[String], report: &mut Report) -> Result<()> {
    if filter.is_empty() {
        report.step("format", || formats().map(nothing))?;
        report.step("lints", || lints().map(nothing))?;
        report.step("lints of the BPF programs", || bpf_lints().map(nothing))?;
    }
    let programs = report.step("build", || Ok((None, test_programs::build()?)))?;
    for group in [Group::Pure, Group::Kernel, Group::Labs] {
        report.step(group.name(), || {
            let mut sum = Tests::default();
            for program in programs.iter().filter(|program| Group::of(program) == group) {
                sum = sum.and(program.run(filter)?);
            }
            Ok((Some(sum), ()))
        })?;
    }
    if filter.is_empty() {
        report.step("examples in the documentation", || Ok((Some(examples()?), ())))?;
    }
    Ok(())
}

/// What tests ask of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Nothing: they compute.
    Pure,
    /// BPF and netlink.
    Kernel,
    /// Network namespaces with daemons in them.
    Labs,
}

impl Group {
    fn of(program: &TestProgram) -> Self {
        match program.package.as_str() {
            "glb-e2e" => Self::Labs,
            "glb-host" | "glb-director" | "glb-redirect" if program.is_integration() => {
                Self::Kernel
            }
            _ => Self::Pure,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pure => "unit and golden tests",
            Self::Kernel => "BPF programs and netlink in the kernel",
            Self::Labs => "labs in network namespaces",
        }
    }
}

/// What the steps did so far.
#[derive(Default)]
struct Report {
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    time: Duration,
    failed: bool,
    tests: Option<Tests>,
}

impl Report {
    /// Does a step and notes it down.
    fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(Option<Tests>, T)>,
    ) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let tests = result.as_ref().ok().and_then(|(tests, _)| *tests);
        self.lines.push(Line { name, time: start.elapsed(), failed: result.is_err(), tests });
        result.map(|(_, value)| value)
    }

    fn print(&self) {
        eprintln!();
        let mut total = Duration::ZERO;
        for line in &self.lines {
            let result = match (line.failed, line.tests) {
                (true, _) => "FAILED; what comes after it was not run".to_owned(),
                (false, None) => "ok".to_owned(),
                (false, Some(Tests { passed: 0, ignored: 0 })) => "no tests".to_owned(),
                (false, Some(Tests { passed, ignored: 0 })) => format!("ok, {passed} tests"),
                (false, Some(Tests { passed, ignored })) => {
                    format!("ok, {passed} tests, {ignored} IGNORED")
                }
            };
            eprintln!("  {:40} {:7.1} s  {result}", line.name, line.time.as_secs_f64());
            total += line.time;
        }
        eprintln!("  {:40} {:7.1} s", "all together", total.as_secs_f64());
    }
}

fn nothing((): ()) -> (Option<Tests>, ()) {
    (None, ())
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
    for (folder, features) in [("bpf", ""), ("bpf-trace", bpf_build::TRACE_FEATURE)] {
        let folder = process::target().join(folder);
        let mut command = bpf_build::command(&root, &folder, &compiler, "clippy")?;
        process::run(command.args(["--features", features, "--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn examples() -> Result<Tests> {
    let mut command = process::cargo();
    command.arg("test").args(build::WORKSPACE).arg("--doc");
    let shown = process::shown(&command);
    eprintln!("$ {shown}");
    test_programs::run_and_count(command, &shown)
}
