//! `glb-redirect counters`

use std::path::Path;

use glb_host::bpffs::PinFolder;

use super::Output;
use crate::{
    config::Config,
    counters::{self, CountersError, Report},
};

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let Some(pins) = PinFolder::open(&config.pin, crate::OWNER)? else {
        return Err(CountersError::Missing { folder: config.pin }.into());
    };
    let report = counters::read(&pins)?;
    match output {
        Output::Table => print!("{}", table(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut rows = vec![["reason".to_owned(), "packets".into(), "bytes".into()]];
    rows.extend(report.reasons.iter().map(|(reason, count)| {
        [(*reason).to_owned(), count.packets.to_string(), count.bytes.to_string()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (a, b, c) = (width(0), width(1), width(2));
    rows.iter()
        .map(|[reason, packets, bytes]| format!("{reason:<a$}  {packets:>b$}  {bytes:>c$}\n"))
        .collect()
}
