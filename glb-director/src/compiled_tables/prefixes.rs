//! Flattens prefixes with port ranges: each prefix also carries the ranges of all prefixes that cover
//! it, so that the program needs one longest-prefix match and one search. Where ranges overlap, that
//! of the longer prefix wins.

use std::collections::{BTreeMap, BTreeSet};

use glb_common::abi::{PrefixEntry, Segment};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes, each with its run of segments, and the segments of all prefixes.
#[derive(Debug, Default)]
pub(super) struct FlatPrefixes {
    pub(super) v4: Vec<(Ipv4Net, PrefixEntry)>,
    pub(super) v6: Vec<(Ipv6Net, PrefixEntry)>,
    pub(super) segments: Vec<Segment>,
}

/// Flattens `ranges`. Where ranges of one prefix overlap (echo requests to an address that several
/// tables bind), the first one wins.
pub(super) fn flatten(ranges: &[(IpNet, Segment)]) -> FlatPrefixes {
    let mut by_prefix: BTreeMap<IpNet, Vec<Segment>> = BTreeMap::new();
    for (prefix, segment) in ranges {
        by_prefix.entry(*prefix).or_default().push(*segment);
    }
    let mut flat = FlatPrefixes::default();
    for prefix in by_prefix.keys().copied() {
        let mut covering: Vec<(&IpNet, &Vec<Segment>)> = covering(&by_prefix, prefix);
        covering.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        let segments = covering.into_iter().flat_map(|(_, segments)| segments.iter().copied());
        let run = disjoint(segments);
        let entry = PrefixEntry { start: flat.segments.len() as u32, count: run.len() as u32 };
        flat.segments.extend(run);
        match prefix {
            IpNet::V4(net) => flat.v4.push((net, entry)),
            IpNet::V6(net) => flat.v6.push((net, entry)),
        }
    }
    flat
}

/// `prefix` and all prefixes that cover it, with their segments.
fn covering(
    by_prefix: &BTreeMap<IpNet, Vec<Segment>>,
    prefix: IpNet,
) -> Vec<(&IpNet, &Vec<Segment>)> {
    let mut found = Vec::new();
    let mut next = Some(prefix);
    while let Some(net) = next {
        found.extend(by_prefix.get_key_value(&net));
        next = net.supernet();
    }
    found
}

/// Sorts segments and makes them disjoint. Where two overlap, the first one keeps the ports.
fn disjoint(segments: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let segments: Vec<Segment> = segments.collect();
    let bounds: BTreeSet<u32> =
        segments.iter().flat_map(|segment| [segment.first, segment.last + 1]).collect();
    let bounds: Vec<u32> = bounds.into_iter().collect();
    let mut run: Vec<Segment> = Vec::new();
    for pair in bounds.windows(2) {
        let (first, last) = (pair[0], pair[1] - 1);
        let Some(owner) = segments.iter().find(|s| s.first <= first && last <= s.last) else {
            continue;
        };
        match run.last_mut() {
            Some(before) if before.last + 1 == first && before.table == owner.table => {
                before.last = last;
            }
            _ => run.push(Segment { first, last, table: owner.table, padding: 0 }),
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u32, last: u32, table: u32) -> Segment {
        Segment { first, last, table, padding: 0 }
    }

    #[test]
    fn the_longer_prefix_wins_and_the_shorter_one_keeps_the_other_ports() {
        let flat = flatten(&[
            ("10.0.0.0/8".parse().unwrap(), segment(1, 100, 0)),
            ("10.1.0.0/16".parse().unwrap(), segment(50, 60, 1)),
            ("fd00::/8".parse().unwrap(), segment(7, 7, 2)),
        ]);
        let run = |entry: PrefixEntry| {
            flat.segments[entry.start as usize..][..entry.count as usize].to_vec()
        };
        let of = |net: &str| flat.v4.iter().find(|(n, _)| n.to_string() == net).unwrap().1;
        assert_eq!(run(of("10.0.0.0/8")), [segment(1, 100, 0)]);
        assert_eq!(
            run(of("10.1.0.0/16")),
            [segment(1, 49, 0), segment(50, 60, 1), segment(61, 100, 0)]
        );
        assert_eq!(run(flat.v6[0].1), [segment(7, 7, 2)]);
    }
}
