//! `./x test`: every check and test that a change must pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    commands::{build, setup},
    needs::{self, Purpose},
    permission, process,
    test_programs::{self, TestProgram, Tests},
};

/// Runs every check and test: format, lints, documentation, spelling, dependencies, unit and golden
/// tests, the BPF programs in the kernel, and whole labs in network namespaces.
///
/// Needs root. `--unprivileged` runs the steps that need none and lists the others.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only the steps that need no root, and list those that are left out.
    #[arg(long)]
    unprivileged: bool,
    /// Run only tests whose name contains one of these words, and no other checks. The name of a
    /// crate (glb-table) or of a test file (kernel) stands for all its tests. Words that begin with a
    /// dash go to the test programs (--nocapture).
    #[arg(last = true, value_name = "FILTER")]
    filter: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.unprivileged {
        permission::check("test")?;
    }
    let purpose = if arguments.unprivileged { Purpose::Check } else { Purpose::Test };
    setup::ensure(purpose)?;
    let mut report = Report::default();
    let outcome = steps(arguments, &mut report);
    report.print();
    outcome?;
    if report.lines.iter().all(|line| !line.result.ran_tests()) {
        bail!("no test's name contains `{}`", arguments.filter.join("` or `"));
    }
    let left_out = report.left_out();
    if left_out.is_empty() {
        eprintln!("\nAll passed.");
    } else {
        eprintln!("\nAll passed that ran. Left out: {}.", left_out.join("; "));
    }
    Ok(())
}

fn steps(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let all = arguments.filter.is_empty();
    if all {
        report.step("format", || formats().map(no_tests))?;
        report.step("lints", || lints().map(no_tests))?;
        report.step("lints of the BPF programs", || bpf_lints().map(no_tests))?;
        report.step("documentation", || documentation().map(no_tests))?;
        report.optional_step("spelling", "typos", "typos-cli", &[])?;
        let check = ["check", "licenses", "bans", "sources"];
        report.optional_step("dependencies", "cargo-deny", "cargo-deny", &check)?;
    }
    let programs = report.step("build", || Ok((None, test_programs::build()?)))?;
    for group in [Group::Pure, Group::Kernel, Group::Labs] {
        if arguments.unprivileged && group != Group::Pure {
            report.leave_out(group.name(), "needs root");
            continue;
        }
        report.step(group.name(), || {
            let mut sum = Tests::default();
            for program in programs.iter().filter(|program| Group::of(program) == group) {
                sum = sum.and(program.run(&arguments.filter)?);
            }
            Ok((Some(sum), ()))
        })?;
    }
    if all {
        report.step("examples in the documentation", || Ok((Some(examples()?), ())))?;
    }
    Ok(())
}

/// What tests need from the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Nothing: pure computation, no root.
    Pure,
    /// Root, BPF and netlink.
    Kernel,
    /// Root, and network namespaces with daemons in them.
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

/// The results of the steps so far.
#[derive(Default)]
struct Report {
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    time: Duration,
    result: StepResult,
}

#[derive(Debug, PartialEq, Eq)]
enum StepResult {
    Passed(Option<Tests>),
    Failed,
    LeftOut(String),
}

impl StepResult {
    /// Whether tests ran, or a step failed before they could.
    fn ran_tests(&self) -> bool {
        matches!(self, Self::Passed(Some(tests)) if tests.passed > 0)
    }

    fn in_words(&self) -> String {
        match self {
            Self::Failed => "FAILED; the steps after it were not run".to_owned(),
            Self::LeftOut(why) => format!("LEFT OUT: {why}"),
            Self::Passed(None) => "ok".to_owned(),
            Self::Passed(Some(Tests { passed: 0, ignored: 0 })) => "no tests".to_owned(),
            Self::Passed(Some(Tests { passed, ignored: 0 })) => format!("ok, {passed} tests"),
            Self::Passed(Some(Tests { passed, ignored })) => {
                format!("ok, {passed} tests, {ignored} IGNORED")
            }
        }
    }
}

impl Report {
    /// Runs a step and records its result.
    fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(Option<Tests>, T)>,
    ) -> Result<T> {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let step_result = match &result {
            Ok((tests, _)) => StepResult::Passed(*tests),
            Err(_) => StepResult::Failed,
        };
        self.lines.push(Line { name, time: start.elapsed(), result: step_result });
        result.map(|(_, value)| value)
    }

    /// Runs a check whose program is not installed by `./x setup`, because it takes minutes to
    /// compile. Without the program the check is left out.
    fn optional_step(
        &mut self,
        name: &'static str,
        program: &str,
        package: &str,
        arguments: &[&str],
    ) -> Result<()> {
        let Some(path) = needs::find(program) else {
            let remedy = format!("{program} is missing: cargo install --locked {package}");
            self.leave_out(name, &remedy);
            return Ok(());
        };
        self.step(name, || {
            let mut command = std::process::Command::new(path);
            let command = command.current_dir(process::root()).args(arguments);
            process::run(command).map(no_tests)
        })
    }

    fn leave_out(&mut self, name: &'static str, why: &str) {
        let result = StepResult::LeftOut(why.to_owned());
        self.lines.push(Line { name, time: Duration::ZERO, result });
    }

    /// The steps that were left out, with the reasons.
    fn left_out(&self) -> Vec<String> {
        let left_out = self.lines.iter().filter_map(|line| match &line.result {
            StepResult::LeftOut(why) => Some(format!("{} ({why})", line.name)),
            _ => None,
        });
        left_out.collect()
    }

    fn print(&self) {
        eprintln!();
        let mut total = Duration::ZERO;
        for line in &self.lines {
            let (seconds, result) = (line.time.as_secs_f64(), line.result.in_words());
            eprintln!("  {:40} {seconds:7.1} s  {result}", line.name);
            total += line.time;
        }
        eprintln!("  {:40} {:7.1} s", "total", total.as_secs_f64());
    }
}

fn no_tests((): ()) -> (Option<Tests>, ()) {
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
    // The same folders as in glb-host/build.rs, so that nothing is compiled twice.
    for (folder, features) in [("bpf", ""), ("bpf-trace", bpf_build::TRACE_FEATURE)] {
        let folder = process::target().join(folder);
        let mut command = bpf_build::command(&root, &folder, &compiler, "clippy")?;
        process::run(command.args(["--features", features, "--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn documentation() -> Result<()> {
    let mut command = process::cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    process::run(command.arg("doc").args(build::WORKSPACE).arg("--no-deps"))
}

fn examples() -> Result<Tests> {
    let mut command = process::cargo();
    command.arg("test").args(build::WORKSPACE).arg("--doc");
    let shown = process::shown(&command);
    eprintln!("$ {shown}");
    test_programs::run_and_count(command, &shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_its_program_is_left_out_and_named() {
        let mut report = Report::default();
        report.optional_step("spelling", "glb-no-such-program", "no-such-crate", &[]).unwrap();
        let [left_out] = &report.left_out()[..] else { panic!("{:?}", report.left_out()) };
        assert!(left_out.starts_with("spelling (glb-no-such-program is missing"), "{left_out}");
        assert!(left_out.contains("cargo install --locked no-such-crate"), "{left_out}");
    }

    #[test]
    fn the_workflow_checks_the_oldest_supported_rust() {
        let root = process::root();
        let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        let manifest = read("Cargo.toml");
        let oldest = manifest
            .lines()
            .find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
            .unwrap();
        let workflow = read(".github/workflows/ci.yml");
        assert!(workflow.contains(&format!("cargo +{oldest} check")), "{oldest}");
        assert!(workflow.contains(&format!("rustup toolchain install {oldest} ")), "{oldest}");
    }
}
