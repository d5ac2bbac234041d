//! `glb-director counters`

use std::path::Path;

use glb_host::bpffs::PinFolder;

use super::Output;
use crate::{
    config::Config,
    counters::{self, CountersError, Report},
};

pub(super) fn execute(file: &Path, output: Output) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let Some(pins) = PinFolder::open(&config.bpffs_dir, crate::OWNER)? else {
        return Err(CountersError::Missing { folder: config.bpffs_dir }.into());
    };
    let report = counters::read(&pins)?;
    match output {
        Output::Table => print!("{}", table(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut rows = vec![["table".to_owned(), "what".into(), "packets".into(), "bytes".into()]];
    let all = report.tables.iter().map(|table| (table.name.as_str(), &table.reasons));
    for (name, reasons) in std::iter::once(("-", &report.reasons)).chain(all) {
        for (reason, count) in reasons {
            rows.push([
                name.into(),
                reason.clone(),
                count.packets.to_string(),
                count.bytes.to_string(),
            ]);
        }
    }
    for backend in &report.backends {
        let (packets, bytes) = (backend.count.packets.to_string(), backend.count.bytes.to_string());
        rows.push([backend.table.clone(), format!("to {}", backend.address), packets, bytes]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    rows.iter()
        .map(|[table, what, packets, bytes]| {
            format!("{table:<a$}  {what:<b$}  {packets:>c$}  {bytes:>d$}\n")
        })
        .collect()
}
