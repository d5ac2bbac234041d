//! Trace filters: parsed from the command line, sent to the daemon, compiled for the program.

use std::net::IpAddr;

use glb_common::{
    flow::{Address as _, V4, V6},
    trace::{ANY, DecisionFilter, NetworkMatch},
    wire::protocol,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How many addresses, and how many ports, the program's filter compares.
const MAX_TERMS: usize = 2;

/// The conditions that a decision must meet; empty conditions match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceFilter {
    /// Prefixes; each must contain the source or destination of the packet, of the packet in the
    /// tunnel, or of the quoted packet.
    pub networks: Vec<IpNet>,
    /// Ports of that packet.
    pub ports: Vec<u16>,
    /// IP protocol of that packet.
    pub protocol: Option<u8>,
    /// Names of reasons; one of them must match.
    pub reasons: Vec<String>,
    /// Name of the table.
    pub table: Option<String>,
}

/// The name of a reason and the name of its verdict.
pub type ReasonName = (&'static str, &'static str);

impl TraceFilter {
    /// Parses the words of a command line: `198.51.100.7 port 443 reason no_bind`.
    ///
    /// # Errors
    /// Names the word and the possible ones.
    pub fn parse(words: &[String], reasons: &[ReasonName]) -> Result<Self, String> {
        let mut filter = Self::default();
        let mut words = words.iter().flat_map(|word| word.split_whitespace());
        while let Some(word) = words.next() {
            let mut value =
                |what: &str| words.next().ok_or_else(|| format!("`{word}` needs {what} after it"));
            match word {
                // Accepted and ignored, as tcpdump users write them.
                "and" | "host" | "net" | "proto" => {}
                "tcp" => filter.protocol = Some(protocol::TCP),
                "udp" => filter.protocol = Some(protocol::UDP),
                "icmp" => filter.protocol = Some(protocol::ICMP),
                "icmp6" => filter.protocol = Some(protocol::ICMPV6),
                "port" => {
                    let port = value("a port")?;
                    let number = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
                    filter.ports.push(number);
                }
                "table" => filter.table = Some(value("a table's name")?.to_owned()),
                "reason" | "verdict" => {
                    for name in value("a name")?.split(',') {
                        filter.add_reasons(name, word == "verdict", reasons)?;
                    }
                }
                address => match network(address) {
                    Some(network) => filter.networks.push(network),
                    None => {
                        return Err(format!(
                            "{address:?} is not understood. A filter is made of these words, all of \
                             which must match:\n  ADDRESS or ADDRESS/BITS (at most two), port NUMBER \
                             (at most two), tcp, udp, icmp, icmp6,\n  reason NAME[,NAME...], \
                             verdict NAME, table NAME"
                        ));
                    }
                },
            }
        }
        if filter.networks.len() > MAX_TERMS || filter.ports.len() > MAX_TERMS {
            return Err(format!(
                "a filter takes at most {MAX_TERMS} addresses and {MAX_TERMS} ports"
            ));
        }
        Ok(filter)
    }

    fn add_reasons(
        &mut self,
        name: &str,
        is_verdict: bool,
        reasons: &[ReasonName],
    ) -> Result<(), String> {
        let before = self.reasons.len();
        let found = reasons
            .iter()
            .filter(|(reason, verdict)| *(if is_verdict { verdict } else { reason }) == name);
        self.reasons.extend(found.map(|(reason, _)| (*reason).to_owned()));
        if self.reasons.len() > before {
            return Ok(());
        }
        let mut known: Vec<&str> = reasons
            .iter()
            .map(|(reason, verdict)| if is_verdict { verdict } else { reason })
            .copied()
            .collect();
        known.sort_unstable();
        known.dedup();
        let what = if is_verdict { "verdict" } else { "reason" };
        Err(format!("unknown {what} {name:?}; known are: {}", known.join(", ")))
    }

    /// Compiles the filter for the program. `slot` is the table's counter slot, if a table is
    /// selected.
    ///
    /// # Errors
    /// When a reason is unknown, or there are too many addresses or ports.
    pub fn compile(
        &self,
        reasons: &[ReasonName],
        slot: Option<u32>,
    ) -> Result<DecisionFilter, String> {
        let mut filter = DecisionFilter { slot: slot.unwrap_or(ANY), ..DecisionFilter::default() };
        if self.networks.len() > MAX_TERMS || self.ports.len() > MAX_TERMS {
            return Err(format!(
                "a filter takes at most {MAX_TERMS} addresses and {MAX_TERMS} ports"
            ));
        }
        for (place, wanted) in filter.networks.iter_mut().zip(&self.networks) {
            *place = to_network(wanted);
        }
        for (place, wanted) in filter.ports.iter_mut().zip(&self.ports) {
            *place = u32::from(*wanted);
        }
        filter.protocol = self.protocol.map_or(ANY, u32::from);
        if !self.reasons.is_empty() {
            filter.reasons = 0;
            for name in &self.reasons {
                let index = reasons.iter().position(|(reason, _)| reason == name);
                let index = index.ok_or_else(|| format!("unknown reason {name:?}"))?;
                filter.reasons |= 1 << index;
            }
        }
        Ok(filter)
    }
}

/// Parses an address or a prefix.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn to_network(wanted: &IpNet) -> NetworkMatch {
    let (family, address, mask) = match wanted {
        IpNet::V4(net) => {
            let words = |ip: std::net::Ipv4Addr| V4::new(ip.octets()).words();
            (4, words(net.network()), words(net.netmask()))
        }
        IpNet::V6(net) => {
            let words = |ip: std::net::Ipv6Addr| V6::new(ip.octets()).words();
            (6, words(net.network()), words(net.netmask()))
        }
    };
    NetworkMatch { address, mask, family }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASONS: [ReasonName; 4] =
        [("sent_on", "sent"), ("no_bind", "passed"), ("not_ip", "passed"), ("too_long", "dropped")];

    fn parse(text: &str) -> Result<TraceFilter, String> {
        TraceFilter::parse(&[text.to_owned()], &REASONS)
    }

    #[test]
    fn words_compile_to_a_filter() {
        let wanted = parse("host 198.51.100.7 and 2001:db8::/32 port 443 tcp table web").unwrap();
        assert_eq!(wanted.networks.len(), 2);
        assert_eq!((wanted.table.as_deref(), wanted.protocol), (Some("web"), Some(6)));
        let filter = wanted.compile(&REASONS, Some(9)).unwrap();
        assert_eq!((filter.slot, filter.ports, filter.protocol), (9, [443, ANY], 6));
        assert_eq!((filter.networks[0].family, filter.networks[1].family), (4, 6));
        assert_eq!(
            filter.networks[1].mask[0],
            u64::from_le_bytes([255, 255, 255, 255, 0, 0, 0, 0])
        );
        assert_eq!(filter.reasons, u64::MAX);

        let filter = parse("reason no_bind,too_long").unwrap().compile(&REASONS, None).unwrap();
        assert_eq!((filter.reasons, filter.slot), (0b1010, ANY));
        let passed = parse("verdict passed").unwrap();
        assert_eq!(passed.compile(&REASONS, None).unwrap().reasons, 0b0110);
        assert_eq!(parse("").unwrap(), TraceFilter::default());
        // The JSON form survives the way to the daemon.
        let json = serde_json::to_string(&passed).unwrap();
        assert_eq!(serde_json::from_str::<TraceFilter>(&json).unwrap(), passed);
    }

    #[test]
    fn invalid_filters_are_refused_with_the_word() {
        for (text, words) in [
            ("prot 5", "\"prot\" is not understood"),
            ("port", "needs a port"),
            ("port 65536", "\"65536\" is not a port"),
            ("reason no_such", "known are: no_bind, not_ip, sent_on, too_long"),
            ("verdict gone", "known are: dropped, passed, sent"),
            ("1.2.3.4/33", "not understood"),
            ("1.1.1.1 2.2.2.2 3.3.3.3", "at most 2 addresses"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let other = TraceFilter { reasons: vec!["x".into()], ..TraceFilter::default() };
        assert!(other.compile(&REASONS, None).unwrap_err().contains("\"x\""));
    }
}
