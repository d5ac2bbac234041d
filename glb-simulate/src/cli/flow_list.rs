//! Reads the list of flows to trace.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, anyhow};
use glb_table::{Proto, lookup::FlowQuery};

use crate::TracedFlow;

/// Reads a file with one flow per line. `steps` is the number of steps of the sequence.
pub(super) fn read(file: &Path, steps: usize) -> anyhow::Result<Vec<TracedFlow>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let flows = lines.map(|(number, line)| {
        let words: Vec<&str> = line.split_whitespace().collect();
        parse_flow(&words, steps).map_err(|error| {
            anyhow!(
                "{}:{}: {error}. Write CLIENT:PORT VIP:PORT[/udp] [STEP], for instance \
                 198.51.100.7:50123 203.0.113.10:443",
                file.display(),
                number + 1
            )
        })
    });
    flows.collect()
}

fn parse_flow(words: &[&str], steps: usize) -> Result<TracedFlow, String> {
    let (client, vip, step) = match words {
        [client, vip] => (client, vip, "1"),
        [client, vip, step] => (client, vip, *step),
        _ => return Err(format!("the line has {} words instead of 2 or 3", words.len())),
    };
    let (vip, proto) = match vip.rsplit_once('/') {
        None | Some((_, "tcp")) => (vip.trim_end_matches("/tcp"), Proto::Tcp),
        Some((vip, "udp")) => (vip, Proto::Udp),
        Some((_, other)) => return Err(format!("\"{other}\" is neither tcp nor udp")),
    };
    let address = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("\"{text}\" is not an address with a port"))
    };
    let (client, vip) = (address(client)?, address(vip)?);
    // A dual-stack socket shows IPv4 addresses as IPv4-mapped ones.
    let [client, vip] =
        [client, vip].map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    if client.is_ipv4() != vip.is_ipv4() {
        return Err(format!("{client} and {vip} are of different address families"));
    }
    let step = step.parse().ok().filter(|step| (1..=steps).contains(step));
    let step = step.ok_or_else(|| format!("the step must be from 1 to {steps}"))?;
    let flow = FlowQuery {
        source: client.ip(),
        source_port: Some(client.port()),
        vip: vip.ip(),
        port: Some(vip.port()),
        proto,
    };
    Ok(TracedFlow { flow, step })
}
