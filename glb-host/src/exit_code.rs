//! Exit codes, the same for all programs. Scripts may rely on them; `docs/exit-codes.md` has the
//! same table.

use crate::control::{ClientError, RefusalKind};

/// The command did what it was asked to do, or what it examined is healthy.
pub const SUCCESS: u8 = 0;
/// The command failed; the message says why.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The daemon is not running or does not answer.
pub const NOT_RUNNING: u8 = 3;
/// The command found a problem.
pub const PROBLEM: u8 = 4;
/// The caller is not permitted to do this.
pub const NOT_PERMITTED: u8 = 5;
/// The command refused the change because it could break traffic.
pub const UNSAFE: u8 = 6;
/// The time to wait ran out.
pub const TIMED_OUT: u8 = 7;

/// Every exit code with its meaning, as the documentation shows them.
pub const TABLE: [(u8, &str); 8] = [
    (SUCCESS, "done; for commands that examine something: healthy"),
    (FAILURE, "failed; the message says why"),
    (USAGE, "the command line is wrong"),
    (NOT_RUNNING, "the daemon is not running or does not answer"),
    (PROBLEM, "`status`, `doctor`, `check` or `config check` found a problem"),
    (NOT_PERMITTED, "not permitted"),
    (UNSAFE, "refused because it could break traffic; `--force` or the like overrides"),
    (TIMED_OUT, "timed out while waiting"),
];

/// Returns the exit code for the error a command ended with.
#[must_use]
pub fn of_error(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ClientError>() {
        Some(error) if error.is_not_running() => NOT_RUNNING,
        Some(ClientError::NoResponse { .. }) => NOT_RUNNING,
        Some(ClientError::NotPermitted { .. }) => NOT_PERMITTED,
        Some(ClientError::Refused(refusal)) => match refusal.kind {
            RefusalKind::NotPermitted => NOT_PERMITTED,
            RefusalKind::Unsafe => UNSAFE,
            RefusalKind::TimedOut => TIMED_OUT,
            _ => FAILURE,
        },
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Refusal;

    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../docs/exit-codes.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        let expected: Vec<String> =
            TABLE.iter().map(|(code, meaning)| format!("| {code} | {meaning} |")).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn each_code_stands_at_its_place() {
        for (place, (code, _)) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(*code), place);
        }
    }

    #[test]
    fn refusals_by_the_daemon_have_codes_of_their_own() {
        for (kind, code) in [
            (RefusalKind::Failed, FAILURE),
            (RefusalKind::NotPermitted, NOT_PERMITTED),
            (RefusalKind::Unsafe, UNSAFE),
            (RefusalKind::TimedOut, TIMED_OUT),
        ] {
            let error = anyhow::Error::from(ClientError::Refused(Refusal::new(kind, "no")));
            assert_eq!(of_error(&error), code, "{kind:?}");
            assert_eq!(of_error(&error.context("while reloading")), code, "{kind:?}");
        }
        assert_eq!(of_error(&anyhow::anyhow!("something else")), FAILURE);
    }
}
