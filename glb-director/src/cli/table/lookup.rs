//! `glb-director table lookup`

use std::{net::IpAddr, path::Path};

use anyhow::{anyhow, bail};
use glb_table::{
    Proto,
    lookup::{self, FlowQuery, FlowRoute, Hop, RowChoice},
};

use super::print::{self, columns};
use crate::cli::Output;

pub(super) fn execute(file: &Path, source: &str, vip: &str, output: Output) -> anyhow::Result<()> {
    let (source, source_port) = endpoint(source)?;
    let (vip, proto) = match vip.rsplit_once('/') {
        None => (vip, Proto::Tcp),
        Some((vip, "tcp")) => (vip, Proto::Tcp),
        Some((vip, "udp")) => (vip, Proto::Udp),
        Some((address, other)) => {
            bail!("\"{other}\" is no protocol of a bind; write {address}/tcp or {address}/udp")
        }
    };
    let (vip, port) = endpoint(vip)?;
    let set = print::load(file, output)?;
    let question = FlowQuery { source, source_port, vip, port, proto };
    let answer =
        lookup::lookup(&set, &question).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    match output {
        Output::Json => print::json(&answer),
        Output::Table => print::out(&text(&answer)),
    }
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
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
        "\"{text}\" is no address; write 192.0.2.1, 192.0.2.1:443, 2001:db8::1 or [2001:db8::1]:443"
    )
}

fn text(answer: &FlowRoute) -> String {
    let mut text = format!("table \"{}\", bind {}\n", answer.table, answer.bind);
    text.push_str(&found(&answer.main, "hash"));
    if let Some(alternative) = &answer.alternative {
        text.push_str("then, by the alternative hash or seed\n");
        text.push_str(&found(alternative, "hash"));
        let hops: Vec<String> = answer.hops.iter().map(|hop| hop.address.to_string()).collect();
        text.push_str(&format!("the packet names {}\n", hops.join(", ")));
    }
    text
}

fn found(found: &RowChoice, name: &str) -> String {
    let mut text = format!(
        "  {name} {} of {}, row {}\n",
        found.hash,
        found.hash_fields.join(" + "),
        found.row
    );
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
