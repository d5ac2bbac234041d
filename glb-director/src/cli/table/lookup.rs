//! `glb-director table lookup`

use std::{net::IpAddr, path::Path};

use anyhow::{anyhow, bail};
use glb_table::{
    Proto,
    lookup::{self, FlowQuery, FlowRoute, Hop, RowChoice},
    text::columns,
};

use super::print;
use crate::cli::Output;

pub(super) fn execute(file: &Path, source: &str, vip: &str, output: Output) -> anyhow::Result<()> {
    let (source, source_port) = endpoint(source)?;
    let (vip, proto) = match vip.rsplit_once('/') {
        None => (vip, Proto::Tcp),
        Some((vip, "tcp")) => (vip, Proto::Tcp),
        Some((vip, "udp")) => (vip, Proto::Udp),
        Some((address, other)) => {
            bail!("\"{other}\" is not a protocol of a bind. Write {address}/tcp or {address}/udp")
        }
    };
    let (vip, port) = endpoint(vip)?;
    let set = print::load(file, output)?;
    let query = FlowQuery { source, source_port, vip, port, proto };
    let route =
        lookup::lookup(&set, &query).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    match output {
        Output::Json => print::json(&route),
        Output::Table => print::out(&text(&route)),
    }
}

/// Parses `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn endpoint(text: &str) -> anyhow::Result<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse() {
        return Ok((address, None));
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>()
        && address.port() != 0
    {
        return Ok((address.ip(), Some(address.port())));
    }
    bail!(
        "\"{text}\" is not an address. Write 192.0.2.1, 192.0.2.1:443, 2001:db8::1 or [2001:db8::1]:443"
    )
}

fn text(route: &FlowRoute) -> String {
    let mut text = format!("table \"{}\", bind {}\n", route.table, route.bind);
    text.push_str(&row_text(&route.main));
    if let Some(alternative) = &route.alternative {
        text.push_str("alternative row, by the alternative hash or seed\n");
        text.push_str(&row_text(alternative));
        let hops: Vec<String> = route.hops.iter().map(|hop| hop.address.to_string()).collect();
        text.push_str(&format!("hops in the packet: {}\n", hops.join(", ")));
    }
    text
}

fn row_text(found: &RowChoice) -> String {
    let mut text =
        format!("  hash {} of {}, row {}\n", found.hash, found.hash_fields.join(" + "), found.row);
    let hop = |(place, hop): (usize, &Hop)| {
        let health = if hop.healthy { "healthy" } else { "unhealthy" };
        vec![
            format!("hop {place}"),
            hop.address.to_string(),
            hop.state.to_string(),
            health.into(),
            format!("rank {}", hop.rank),
        ]
    };
    text.push_str(&columns(&(1..).zip(&found.hops).map(hop).collect::<Vec<_>>(), &[]));
    found.why.iter().for_each(|why| text.push_str(&format!("  why: {why}\n")));
    text
}
