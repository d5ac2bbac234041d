//! Sends GLB's statsd metrics, with GLB's names and tags, so that dashboards work during a migration.
//!
//! Metrics go over UDP. A datagram that cannot be sent is lost, and its values are not sent again.
//! Lines are separated by a newline and the last one has none, as GLB's director sends them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use crate::{counters::Report, views::Observer};

/// The longest datagram, in bytes; it fits every network unfragmented.
const MAX_DATAGRAM: usize = 1_200;

/// The tag that names the packet engine, as in GLB.
const TAG: &str = "glb_engine:xdp";

/// Why metrics cannot be sent to statsd.
#[derive(Debug, thiserror::Error)]
#[error("cannot send metrics to `statsd = \"{address}\"`: {source}")]
pub struct StatsdError {
    address: SocketAddr,
    source: io::Error,
}

/// Starts a thread that sends metrics to `address` every `interval`, until the process ends.
///
/// # Errors
/// When the socket or the thread cannot be created.
pub fn serve(
    address: SocketAddr,
    interval: Duration,
    observer: Observer,
) -> Result<(), StatsdError> {
    let error = |source| StatsdError { address, source };
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(error)?;
    socket.set_nonblocking(true).map_err(error)?;
    let send = move || {
        let mut before = sums(&observer);
        loop {
            thread::sleep(interval);
            let now = sums(&observer);
            for datagram in datagrams(&lines(&now.since(&before))) {
                if let Err(error) = socket.send_to(datagram.as_bytes(), address) {
                    tracing::debug!(%error, %address, "cannot send metrics to statsd");
                }
            }
            before = now;
        }
    };
    thread::Builder::new().name("statsd".into()).spawn(send).map_err(error)?;
    Ok(())
}

/// The values of GLB's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    processed: u64,
    encapsulated: u64,
    encapsulated_bytes: u64,
    unknown_format: u64,
    no_matching_bind: u64,
    matched: u64,
    error_table: u64,
    error_creating_space: u64,
    error_missing_gateway: u64,
}

impl Sums {
    /// Returns the increase; a counter that was reset counts from 0.
    fn since(&self, before: &Self) -> Self {
        let less = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            processed: less(self.processed, before.processed),
            encapsulated: less(self.encapsulated, before.encapsulated),
            encapsulated_bytes: less(self.encapsulated_bytes, before.encapsulated_bytes),
            unknown_format: less(self.unknown_format, before.unknown_format),
            no_matching_bind: less(self.no_matching_bind, before.no_matching_bind),
            matched: less(self.matched, before.matched),
            error_table: less(self.error_table, before.error_table),
            error_creating_space: less(self.error_creating_space, before.error_creating_space),
            error_missing_gateway: less(self.error_missing_gateway, before.error_missing_gateway),
        }
    }
}

fn sums(observer: &Observer) -> Sums {
    let snapshot = observer.snapshot();
    let tables = snapshot.in_force.iter().flat_map(|running| &running.tables.tables);
    let overheads: Vec<(&str, u64)> = tables
        .map(|table| {
            let listed = usize::from(table.hops).min(table.usable()).saturating_sub(1);
            let listed = if table.has_alternative() { 2 * listed + 1 } else { listed } as u64;
            let v6 = table.backends.iter().any(|backend| backend.address.is_ipv6());
            // Outer IP, UDP, GUE and GLB's own header, and an address for each listed hop.
            (table.name.as_str(), if v6 { 56 + 16 * listed } else { 36 + 4 * listed })
        })
        .collect();
    let overhead = |name: &str| {
        overheads.iter().find(|(table, _)| *table == name).map_or(0, |(_, bytes)| *bytes)
    };
    observer.counters().map(|report| add_up(&report, overhead)).unwrap_or_default()
}

fn add_up(report: &Report, overhead: impl Fn(&str) -> u64) -> Sums {
    let mut sums = Sums::default();
    for (reason, count) in &report.reasons {
        sums.processed += count.packets;
        match reason.as_str() {
            "not_ip" | "malformed" => sums.unknown_format += count.packets,
            _ => sums.no_matching_bind += count.packets,
        }
    }
    for table in &report.tables {
        for (reason, count) in &table.reasons {
            sums.processed += count.packets;
            sums.matched += count.packets;
            match reason.as_str() {
                "encapsulated" => {
                    sums.encapsulated += count.packets;
                    sums.encapsulated_bytes += count.bytes + count.packets * overhead(&table.name);
                }
                "inconsistent" => sums.error_table += count.packets,
                "no_headroom" => sums.error_creating_space += count.packets,
                "next_hop_unresolved" => sums.error_missing_gateway += count.packets,
                _ => {}
            }
        }
    }
    sums
}

fn lines(sums: &Sums) -> Vec<String> {
    let line = |name: &str, value: u64, tag: &str| {
        format!("glb.director.packets.{name}:{value}|c|#{TAG}{tag}")
    };
    let result = |name, value| line("results", value, &format!(",result:{name}"));
    let error = |name, value| line("internal_errors", value, &format!(",error:{name}"));
    vec![
        line("processed", sums.processed, ""),
        line("encapsulated", sums.encapsulated, ""),
        line("encapsulated_bytes", sums.encapsulated_bytes, ""),
        result("UnknownFormat", sums.unknown_format),
        result("NoMatchingBind", sums.no_matching_bind),
        result("Matched", sums.matched),
        error("ErrorTable", sums.error_table),
        // These errors cannot occur: a table always has its key, hash fields and rows.
        error("ErrorSecret", 0),
        error("ErrorHashConfig", 0),
        error("ErrorMissingRow", 0),
        error("ErrorCreatingSpace", sums.error_creating_space),
        error("ErrorMissingGatewayMAC", sums.error_missing_gateway),
        error("ErrorMissingSourceAddress", 0),
    ]
}

/// Joins lines with newlines into datagrams of at most [`MAX_DATAGRAM`] bytes.
fn datagrams(lines: &[String]) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    for line in lines {
        match datagrams.last_mut().filter(|last| last.len() + 1 + line.len() <= MAX_DATAGRAM) {
            Some(last) => {
                last.push('\n');
                last.push_str(line);
            }
            None => datagrams.push(line.clone()),
        }
    }
    datagrams
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{Count, TableReport};

    #[test]
    fn metrics_have_the_values_and_names_of_glb() {
        let mut report = Report::default();
        let count = |packets| Count { packets, bytes: packets * 100 };
        report.reasons.insert("not_ip".into(), count(2));
        report.reasons.insert("no_bind".into(), count(3));
        let reasons =
            [("encapsulated".to_owned(), count(10)), ("next_hop_unresolved".to_owned(), count(1))];
        report.tables.push(TableReport { name: "t".into(), reasons: reasons.into() });
        let sums = add_up(&report, |_| 40);
        let text = lines(&sums).join("\n") + "\n";
        for line in [
            "glb.director.packets.processed:16|c|#glb_engine:xdp\n",
            "glb.director.packets.encapsulated:10|c|#glb_engine:xdp\n",
            "glb.director.packets.encapsulated_bytes:1400|c|#glb_engine:xdp\n",
            "glb.director.packets.results:2|c|#glb_engine:xdp,result:UnknownFormat\n",
            "glb.director.packets.results:3|c|#glb_engine:xdp,result:NoMatchingBind\n",
            "glb.director.packets.results:11|c|#glb_engine:xdp,result:Matched\n",
            "glb.director.packets.internal_errors:1|c|#glb_engine:xdp,error:ErrorMissingGatewayMAC\n",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        assert_eq!(sums.since(&sums), Sums::default());
        assert_eq!(Sums::default().since(&sums), Sums::default());
        assert_eq!(sums.since(&Sums { processed: 99, ..Sums::default() }).processed, 16);
    }

    #[test]
    fn datagrams_are_bounded_and_end_without_a_newline() {
        let lines: Vec<String> = (0..200).map(|number| format!("line {number:050}")).collect();
        let datagrams = datagrams(&lines);
        assert!(datagrams.len() > 5 && datagrams.iter().all(|d| d.len() <= MAX_DATAGRAM));
        assert_eq!(datagrams.join("\n"), lines.join("\n"));
        assert!(datagrams.iter().all(|datagram| !datagram.ends_with('\n')));
    }
}
