//! The table of kernels and checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Result, bail};
use serde_json::json;

/// The verifier refuses a program for which it must walk more instructions.
const VERIFIER_LIMIT: f64 = 1_000_000.0;

/// How a check ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Nothing if the check did not end.
    exit_status: Option<i32>,
    seconds: u64,
    tests: u64,
    /// Instructions that the verifier walked, by program.
    verified: BTreeMap<String, u64>,
}

impl Outcome {
    /// Reads `0 12` (exit status and seconds) and the output of the check.
    pub(super) fn new(result: &str, log: String) -> Self {
        let mut words = result.split_whitespace();
        let exit_status = words.next().and_then(|word| word.parse().ok());
        let seconds = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        let mut outcome = Self { exit_status, seconds, ..Self::default() };
        for line in log.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                let passed = result.split_whitespace().nth(1).and_then(|word| word.parse().ok());
                outcome.tests += passed.unwrap_or(0_u64);
            }
            // `verifier: PROGRAM INSTRUCTIONS SHARE %`, perhaps behind the name of a test.
            if let Some((_, counted)) = line.split_once("verifier: ") {
                let mut words = counted.split_whitespace();
                if let (Some(program), Some(count)) = (words.next(), words.next()) {
                    let count = count.parse().unwrap_or_default();
                    outcome.verified.insert(program.to_owned(), count);
                }
            }
        }
        outcome
    }

    fn in_words(&self) -> String {
        match (self.exit_status, self.tests) {
            (None, _) => "did not end".to_owned(),
            (Some(0), 0) => format!("yes, {} s", self.seconds),
            (Some(0), tests) => format!("yes, {tests} tests, {} s", self.seconds),
            (Some(status), _) => format!("**no** (exit status {status})"),
        }
    }
}

/// The results of one kernel.
#[derive(Debug)]
struct KernelResults {
    /// Its name in the list of kernels.
    name: &'static str,
    /// Its version.
    release: String,
    /// The checks with their outcomes.
    outcomes: Vec<(&'static str, Outcome)>,
}

/// The results of all kernels.
#[derive(Debug, Default)]
pub(super) struct Report {
    kernels: Vec<KernelResults>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        name: &'static str,
        release: &str,
        outcomes: Vec<(&'static str, Outcome)>,
    ) {
        self.kernels.push(KernelResults { name, release: release.to_owned(), outcomes });
    }

    /// The table as Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::from("|");
        let mut row = |first: &str, cells: Vec<String>| {
            let _written = writeln!(text, " {first} | {} |", cells.join(" | "));
            text.push('|');
        };
        row("", self.kernels.iter().map(|kernel| kernel.release.clone()).collect());
        row("---", self.kernels.iter().map(|_| "---".to_owned()).collect());
        let names = self.kernels.first().map_or(&[][..], |kernel| &kernel.outcomes);
        for (number, (name, _)) in names.iter().enumerate() {
            let cell = |kernel: &KernelResults| kernel.outcomes[number].1.in_words();
            row(name, self.kernels.iter().map(cell).collect());
        }
        let programs: BTreeSet<&String> = self
            .kernels
            .iter()
            .flat_map(|kernel| &kernel.outcomes)
            .flat_map(|(_, outcome)| outcome.verified.keys())
            .collect();
        for program in programs {
            let cell = |kernel: &KernelResults| {
                let mut outcomes = kernel.outcomes.iter();
                let count = outcomes.find_map(|(_, outcome)| outcome.verified.get(program));
                count.map_or("–".to_owned(), |&count| {
                    format!("{count} ({:.1} %)", count as f64 / VERIFIER_LIMIT * 100.0)
                })
            };
            let name = format!("`{program}`: instructions walked");
            row(&name, self.kernels.iter().map(cell).collect());
        }
        text.pop();
        text
    }

    /// The same as JSON.
    pub(super) fn json(&self) -> Result<String> {
        let kernels = self.kernels.iter().map(|kernel| {
            let checks = kernel.outcomes.iter().map(|(name, outcome)| {
                json!({
                    "check": name,
                    "exit_status": outcome.exit_status,
                    "seconds": outcome.seconds,
                    "tests": outcome.tests,
                    "verified_instructions": outcome.verified,
                })
            });
            json!({
                "kernel": kernel.name,
                "release": kernel.release,
                "checks": checks.collect::<Vec<_>>(),
            })
        });
        Ok(serde_json::to_string_pretty(&kernels.collect::<Vec<_>>())?)
    }

    /// An error if a check failed.
    pub(super) fn verdict(&self) -> Result<()> {
        let failed: Vec<String> = self
            .kernels
            .iter()
            .flat_map(|kernel| kernel.outcomes.iter().map(move |outcome| (kernel, outcome)))
            .filter(|(_, (_, outcome))| outcome.exit_status != Some(0))
            .map(|(kernel, (check, _))| format!("{check} ({})", kernel.name))
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join("; "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "running 1 test\n\
                       test every_program ... verifier: glb_mss_clamp 11991 1.2 %\n\
                       verifier: glb_redirect 9699 1.0 %\nok\n\n\
                       test result: ok. 1 passed; 0 failed; 0 ignored\n";

    #[test]
    fn the_output_of_a_check_tells_its_tests_and_the_instructions_of_each_program() {
        let outcome = Outcome::new("0 12\n", LOG.to_owned());
        assert_eq!((outcome.exit_status, outcome.seconds, outcome.tests), (Some(0), 12, 1));
        assert_eq!(outcome.verified["glb_mss_clamp"], 11_991);
        assert_eq!(outcome.verified["glb_redirect"], 9699);
    }

    #[test]
    fn a_failed_check_fails_the_run_and_is_in_the_table() {
        let mut report = Report::default();
        report.add("6.1", "6.1.0-50", vec![("loads", Outcome::new("0 12", LOG.to_owned()))]);
        assert!(report.verdict().is_ok());
        report.add("6.12", "6.12.95", vec![("loads", Outcome::new("101 3", String::new()))]);
        let error = report.verdict().unwrap_err().to_string();
        assert_eq!(error, "failed: loads (6.12)");
        let table = report.table();
        assert!(
            table.contains("| loads | yes, 1 tests, 12 s | **no** (exit status 101) |"),
            "{table}"
        );
        assert!(table.contains("| `glb_mss_clamp`: instructions walked | 11991 (1.2 %) | – |"));
    }

    #[test]
    fn a_check_without_a_result_did_not_end() {
        assert_eq!(Outcome::new("", String::new()).in_words(), "did not end");
    }
}
