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
    let Some(pins) = PinFolder::open(&config.bpffs_dir, crate::PIN_OWNER)? else {
        return Err(CountersError::Missing { folder: config.bpffs_dir }.into());
    };
    let report = counters::read(&pins)?;
    match output {
        Output::Table => super::print(&table(&report)),
        Output::Json => super::print(&serde_json::to_string_pretty(&report)?),
    }
}

fn table(report: &Report) -> String {
    let mut rows = vec![["VIP".to_owned(), "reason".into(), "packets".into(), "bytes".into()]];
    let without_vip = report.without_vip();
    let vips = report.vips.iter().map(|(vip, reasons)| (vip.to_string(), reasons));
    for (vip, reasons) in std::iter::once(("-".to_owned(), &without_vip)).chain(vips) {
        for (reason, count) in reasons {
            let (packets, bytes) = (count.packets.to_string(), count.bytes.to_string());
            rows.push([vip.clone(), (*reason).to_owned(), packets, bytes]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    let mut text: String = rows
        .iter()
        .map(|[vip, reason, packets, bytes]| {
            format!("{vip:<a$}  {reason:<b$}  {packets:>c$}  {bytes:>d$}\n")
        })
        .collect();
    if report.clamped_syn_acks > 0 {
        text += &format!("SYN-ACKs whose MSS was lowered: {}\n", report.clamped_syn_acks);
    }
    text
}
