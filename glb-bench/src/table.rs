//! `bench table`: measures how long tables take to build.

use std::{
    fs,
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use glb_table::{
    Backend, Bind, Format, HashFields, Key, Order, Proto, State, Table, TableSet, glbd,
};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Options of `bench table`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Number of measurements of each step; the median and the quickest are printed.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Also measure tables near the limits: 65,535 backends, 300 tables.
    #[arg(long)]
    large: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The number of tables, and of backends in each.
const SIZES: [(usize, usize); 5] = [(1, 4), (1, 16), (1, 64), (1, 256), (16, 64)];
/// The same, near the limits.
const LARGE: [(usize, usize); 2] = [(1, 65_535), (300, 64)];

/// The duration of a step, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Time {
    /// Wall clock, median.
    median: f64,
    /// Wall clock, quickest.
    least: f64,
    /// Processor time of all processors together, median. Unlike the wall clock it hardly grows when
    /// other programs use the machine.
    cpu: f64,
}

#[derive(Debug, Serialize)]
struct Measured {
    tables: usize,
    backends: usize,
    /// Building the rows from the table in memory.
    rows: Time,
    /// From a JSON file to the bytes of a GLBD file, as GLB's tool does (up to 256 backends).
    whole: Option<Time>,
    /// New rows after a backend of the first table becomes `draining`; the ranks are kept.
    drain: Time,
    /// The same after it becomes unhealthy.
    unhealthy: Time,
    /// The same after it becomes `inactive`.
    inactive: Time,
    /// Building the rows of a table with different weights.
    weighted: Time,
    /// Memory of all rows, in bytes.
    rows_bytes: usize,
    /// Memory of all kept ranks, in bytes.
    ranks_bytes: usize,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let sizes = SIZES.iter().chain(arguments.large.then_some(&LARGE).into_iter().flatten());
    let measured =
        sizes.map(|size| measure(*size, arguments.rounds)).collect::<anyhow::Result<Vec<_>>>()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        print(&measured);
    }
    Ok(())
}

fn time<T>(rounds: usize, mut work: impl FnMut() -> T) -> Time {
    let cpu =
        || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let mut times: Vec<(f64, f64)> = (0..rounds.max(1))
        .map(|_| {
            let (start, start_cpu) = (Instant::now(), cpu());
            let _ = black_box(work());
            (start.elapsed().as_secs_f64() * 1e3, (cpu() - start_cpu).as_secs_f64() * 1e3)
        })
        .collect();
    let median = |times: &[(f64, f64)]| times[times.len() / 2];
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    let cpu = median(&times).1;
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    Time { median: median(&times).0, least: times[0].0, cpu }
}

fn set(tables: usize, backends: usize) -> TableSet {
    let table = |number: usize| {
        let mut seed = [7; 16];
        seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let vip = [10, 255, (number >> 8) as u8, number as u8];
        Table {
            name: format!("table{number}"),
            hash_key: Key::new([3; 16]),
            seed: Key::new(seed),
            hash_fields: HashFields::default(),
            alt_hash_fields: None,
            alt_hash_key: None,
            alt_seed: None,
            hops: 2,
            order: Order::HealthyFirst,
            binds: vec![Bind {
                prefix: std::net::IpAddr::from(vip).into(),
                proto: Proto::Tcp,
                ports: 80..=80,
            }],
            backends: (1..=backends as u32)
                .map(|backend| {
                    Backend::new(std::net::IpAddr::from((0x0a00_0000 + backend).to_be_bytes()))
                })
                .collect(),
            healthchecks: None,
        }
    };
    TableSet { tables: (0..tables).map(table).collect(), warnings: Vec::new(), healthchecks: None }
}

fn measure((tables, backends): (usize, usize), rounds: usize) -> anyhow::Result<Measured> {
    let set = set(tables, backends);
    let rounds = if tables * backends > 2_000 { rounds.min(3) } else { rounds };
    let rows = time(rounds, || set.tables.iter().map(Table::rows).collect::<Vec<_>>());
    let file = PathBuf::from(format!(
        "{}/glb-bench-{}.json",
        std::env::temp_dir().display(),
        std::process::id()
    ));
    fs::write(&file, set.to_text(Format::Json)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let build = || {
        glb_table::load(&file).ok().and_then(|set| glbd::export(&set).ok()).map(|bytes| bytes.len())
    };
    let whole = (build().is_some()).then(|| time(rounds, build));
    fs::remove_file(&file)?;
    let ranks: Vec<_> = set.tables.iter().map(Table::ranks).collect();
    let first = &set.tables[0];
    let changed = |change: fn(&mut Backend)| {
        let mut table = first.clone();
        change(&mut table.backends[1]);
        time(rounds.max(9), || table.rows_from(&ranks[0]))
    };
    let mut weighted = set.clone();
    for table in &mut weighted.tables {
        for (backend, weight) in table.backends.iter_mut().zip([1, 2, 3, 5, 8].iter().cycle()) {
            backend.weight = *weight;
        }
    }
    Ok(Measured {
        tables,
        backends,
        rows,
        whole,
        drain: changed(|backend| backend.state = State::Draining),
        unhealthy: changed(|backend| backend.healthy = false),
        inactive: changed(|backend| backend.state = State::Inactive),
        weighted: time(rounds.min(5), || {
            weighted.tables.iter().map(Table::rows).collect::<Vec<_>>()
        }),
        rows_bytes: ranks.len() * first.rows_from(&ranks[0]).as_flat().len() * 2,
        ranks_bytes: ranks.iter().map(glb_table::Ranks::bytes).sum(),
    })
}

fn print(measured: &[Measured]) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!(
        "milliseconds: wall clock, median (quickest), on {threads} CPUs; cpu: processor time, median\n"
    );
    let head = [
        "tables × back.",
        "file → GLBD",
        "cpu",
        "rows alone",
        "drain",
        "unhealthy",
        "inactive",
        "weighted",
        "rows KiB",
        "ranks KiB",
    ];
    let wide = |time: &Time| format!("{:.2} ({:.2})", time.median, time.least);
    let dash = || "-".to_owned();
    let rows = measured.iter().map(|one| {
        [
            format!("{} × {}", one.tables, one.backends),
            one.whole.as_ref().map_or_else(dash, wide),
            one.whole.as_ref().map_or_else(dash, |whole| format!("{:.2}", whole.cpu)),
            wide(&one.rows),
            wide(&one.drain),
            wide(&one.unhealthy),
            wide(&one.inactive),
            wide(&one.weighted),
            one.rows_bytes.div_ceil(1024).to_string(),
            one.ranks_bytes.div_ceil(1024).to_string(),
        ]
    });
    let rows: Vec<[String; 10]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            format!("{}{cell}", " ".repeat(width - cell.chars().count()))
        });
        println!("{}", cells.collect::<Vec<_>>().join("  "));
    }
}
