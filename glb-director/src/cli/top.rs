//! `glb-director top`: what is going on just now.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use super::{AskArgs, Output};
use crate::{
    control::Command as Ask,
    counters::{Count, Report},
};

/// How long the daemon may take to answer; a reload does not delay the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The widest line; it fits any terminal.
const WIDTH: usize = 80;

#[derive(Args, Debug)]
pub(super) struct Options {
    /// The time between two updates, such as 500ms or 2s
    #[arg(short, long, default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// The number of updates [default: until Ctrl-C; 1 for a table that does not go to a terminal]
    #[arg(short = 'n', long)]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = glb_host::duration::parse(text).map_err(|error| error.to_string())?;
    let limits = Duration::from_millis(100)..=Duration::from_secs(3_600);
    if limits.contains(&interval) { Ok(interval) } else { Err("give 100ms to 1h".into()) }
}

/// Packets and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Rate {
    packets_per_second: f64,
    bytes_per_second: f64,
}

/// The rates between two readings; reasons and backends without packets are omitted.
#[derive(Debug, Serialize)]
struct Rates {
    /// Seconds between the two readings.
    seconds: f64,
    all: Rate,
    tables: BTreeMap<String, Rate>,
    backends: Vec<BackendRate>,
    reasons: Vec<ReasonRate>,
}

#[derive(Debug, Serialize)]
struct BackendRate {
    table: String,
    backend: String,
    /// The share of its table's packets, from 0 to 1.
    share: f64,
    #[serde(flatten)]
    rate: Rate,
}

#[derive(Debug, Serialize)]
struct ReasonRate {
    /// The table; empty for packets that match none.
    table: String,
    reason: String,
    #[serde(flatten)]
    rate: Rate,
}

pub(super) fn execute(args: &AskArgs, options: &Options) -> anyhow::Result<ExitCode> {
    let look = || -> anyhow::Result<(Instant, Report)> {
        let report = args.connect()?.ask(&Ask::Counters, ANSWER_TIMEOUT)?;
        Ok((Instant::now(), report))
    };
    let terminal = io::stdout().is_terminal();
    let once = !terminal && matches!(args.output, Output::Table);
    let count = options.count.unwrap_or(if once { 1 } else { u64::MAX });
    let mut before = look()?;
    for number in 0..count {
        thread::sleep(options.interval);
        let now = look()?;
        let rates = rates(&before.1, &now.1, (now.0 - before.0).as_secs_f64());
        let text = match args.output {
            Output::Json => format!("{}\n", serde_json::to_string(&rates)?),
            Output::Table => {
                // Cursor to the top left, then clear to the end: no flicker.
                let clear = if terminal { "\x1b[H\x1b[J" } else { "" };
                let gap = if !terminal && number > 0 { "\n" } else { "" };
                let height = if terminal { height() } else { usize::MAX };
                format!("{clear}{gap}{}", screen(&rates, height))
            }
        };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // The reader closed the pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            other => other?,
        }
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the number of lines of the terminal.
fn height() -> usize {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct is the request's, and outlives the call.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    if result == 0 && size.ws_row > 3 { usize::from(size.ws_row) } else { 24 }
}

fn rates(before: &Report, now: &Report, seconds: f64) -> Rates {
    // `detach` resets the counters; a restart of the daemon does not.
    let rate = |old: Count, new: Count| Rate {
        packets_per_second: new.packets.saturating_sub(old.packets) as f64 / seconds,
        bytes_per_second: new.bytes.saturating_sub(old.bytes) as f64 / seconds,
    };
    let reasons_of = |report: &Report| -> BTreeMap<(String, String), Count> {
        let none = report.reasons.iter().map(|(reason, count)| ((String::new(), reason), count));
        let some = report.tables.iter().flat_map(|table| {
            table.reasons.iter().map(|(reason, count)| ((table.name.clone(), reason), count))
        });
        none.chain(some).map(|((table, reason), count)| ((table, reason.clone()), *count)).collect()
    };
    let old = reasons_of(before);
    let mut all = Rate::default();
    let mut tables: BTreeMap<String, Rate> = BTreeMap::new();
    let mut reasons = Vec::new();
    for ((table, reason), count) in reasons_of(now) {
        let key = (table, reason);
        let rate = rate(old.get(&key).copied().unwrap_or_default(), count);
        let (table, reason) = key;
        all.add(rate);
        if !table.is_empty() {
            tables.entry(table.clone()).or_default().add(rate);
        }
        if rate != Rate::default() {
            reasons.push(ReasonRate { table, reason, rate });
        }
    }
    let old: BTreeMap<_, _> =
        before.backends.iter().map(|b| ((b.table.clone(), b.address), b.count)).collect();
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    let mut backends = Vec::new();
    for backend in &now.backends {
        let before = old.get(&(backend.table.clone(), backend.address));
        let rate = rate(before.copied().unwrap_or_default(), backend.count);
        if rate != Rate::default() {
            *sums.entry(backend.table.clone()).or_default() += rate.packets_per_second;
            let (table, backend) = (backend.table.clone(), backend.address.to_string());
            backends.push(BackendRate { table, backend, share: 0.0, rate });
        }
    }
    for backend in &mut backends {
        let sum = sums.get(&backend.table).copied().unwrap_or(0.0);
        backend.share = if sum > 0.0 { backend.rate.packets_per_second / sum } else { 0.0 };
    }
    let busiest = |rate: &Rate| std::cmp::Reverse(rate.packets_per_second as u64);
    backends.sort_by_key(|backend| busiest(&backend.rate));
    reasons.sort_by_key(|reason| busiest(&reason.rate));
    Rates { seconds, all, tables, backends, reasons }
}

impl Rate {
    fn add(&mut self, other: Self) {
        self.packets_per_second += other.packets_per_second;
        self.bytes_per_second += other.bytes_per_second;
    }
}

/// Renders the busiest tables, backends and reasons in at most `height` lines of 80 columns.
fn screen(rates: &Rates, height: usize) -> String {
    let line = |name: &str, what: &str, rate: &Rate, rest: &str| {
        format!(
            "{:<22.22} {:<30.30} {:>9} {:>9} {rest:>6}",
            name,
            what,
            scaled(rate.packets_per_second, ""),
            scaled(rate.bytes_per_second * 8.0, "b"),
        )
    };
    let head = |title: &str, what: &str| {
        format!("{title:<22} {what:<30} {:>9} {:>9} {:>6}", "packets/s", "bits/s", "share")
    };
    let share = |part: f64, all: f64| {
        // The widest is "99.9 %": six characters are left of a line.
        match part * 100.0 / all {
            _ if all <= 0.0 => String::new(),
            percent if percent >= 99.95 => "100 %".to_owned(),
            percent => format!("{percent:.1} %"),
        }
    };
    let all = rates.all.packets_per_second;
    let mut lines = vec![head("TABLE", ""), line("(everything)", "", &rates.all, "")];
    let mut tables: Vec<_> = rates.tables.iter().collect();
    tables.sort_by_key(|(_, rate)| std::cmp::Reverse(rate.packets_per_second as u64));
    // The three parts share the lines equally.
    let room = height.saturating_sub(8) / 3;
    let show = |lines: &mut Vec<String>, rows: Vec<String>| {
        let hidden = rows.len().saturating_sub(room.max(1));
        lines.extend(rows.into_iter().take(room.max(1)));
        if hidden > 0 {
            lines.push(format!("  and {hidden} more"));
        }
    };
    let rows = tables
        .into_iter()
        .map(|(name, rate)| line(name, "", rate, &share(rate.packets_per_second, all)));
    show(&mut lines, rows.collect());
    lines.push(head("TABLE", "BACKEND (first hop)"));
    let rows = rates.backends.iter().map(|backend| {
        line(&backend.table, &backend.backend, &backend.rate, &share(backend.share, 1.0))
    });
    show(&mut lines, rows.collect());
    lines.push(head("TABLE", "REASON"));
    let rows = rates.reasons.iter().map(|reason| {
        let table = if reason.table.is_empty() { "-" } else { &reason.table };
        line(table, &reason.reason, &reason.rate, &share(reason.rate.packets_per_second, all))
    });
    show(&mut lines, rows.collect());
    lines.truncate(height.saturating_sub(1));
    let trimmed = lines.iter().map(|line| line.chars().take(WIDTH).collect::<String>());
    trimmed.map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Formats a number with a unit prefix, in at most eight characters.
fn scaled(value: f64, unit: &str) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G", "T"] {
        if value < 1000.0 {
            let digits = if value < 10.0 && value.fract() > 0.0 { 1 } else { 0 };
            let digits = if prefix.is_empty() { digits } else { 2 - usize::from(value >= 100.0) };
            return format!("{value:.digits$} {prefix}{unit}").trim_end().to_owned();
        }
        value /= 1000.0;
    }
    format!("{value:.0} P{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{BackendReport, TableReport};

    fn report(factor: u64, tables: usize) -> Report {
        let count =
            |packets: u64| Count { packets: packets * factor, bytes: packets * factor * 100 };
        let mut report = Report::default();
        report.reasons.insert("no_bind".into(), count(50));
        for number in 0..tables {
            let name = format!("a-table-with-quite-a-long-name-{number}");
            let reasons = [("encapsulated".to_owned(), count(100))].into();
            report.tables.push(TableReport { name: name.clone(), reasons });
            for last in [1, 2] {
                let address = format!("2001:db8:1234:5678:9abc:def0:1234:{last}").parse().unwrap();
                let count = count(25 * u64::from(last as u8) + 12);
                report.backends.push(BackendReport { table: name.clone(), address, count });
            }
        }
        report
    }

    #[test]
    fn rates_are_increases_per_second() {
        let rates = rates(&report(1, 1), &report(3, 1), 2.0);
        assert_eq!(rates.all.packets_per_second, 150.0);
        assert_eq!(rates.tables.values().next().unwrap().packets_per_second, 100.0);
        assert_eq!(rates.backends[0].rate.packets_per_second, 62.0);
        assert!((rates.backends[0].share - 62.0 / 99.0).abs() < 1e-9);
        assert_eq!(rates.reasons[0].reason, "encapsulated");
    }

    #[test]
    fn reset_counters_give_no_negative_rates() {
        let rates = rates(&report(9, 1), &report(1, 1), 1.0);
        assert_eq!(rates.all, Rate::default());
    }

    #[test]
    fn the_screen_fits_a_small_terminal() {
        for tables in [0, 1, 50] {
            let text = screen(&rates(&report(1, tables), &report(9_000_000, tables), 1.0), 24);
            assert!(text.lines().count() <= 24, "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
            }
            assert_eq!(text.contains("more"), tables == 50, "{text}");
            // Without tables, all packets match none.
            assert_eq!(text.contains(" 100 %"), tables == 0, "{text}");
        }
    }

    #[test]
    fn numbers_are_scaled() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (12.0, "12"),
            (999.0, "999"),
            (1000.0, "1.00 k"),
            (123_456.0, "123.5 k"),
            (14_880_952.0, "14.88 M"),
            (1e11, "100.0 G"),
        ] {
            assert_eq!(scaled(value, ""), text);
        }
    }
}
