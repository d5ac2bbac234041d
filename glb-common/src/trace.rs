//! The structs that traced programs share with user space. The programs that normally run contain no
//! tracing code.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::flow_dissector::FlowKeys;

/// A network that a [`DecisionFilter`] compares with a packet's addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct NetworkMatch {
    /// The address, as [`crate::flow::Address::words`], without the bits outside `mask`.
    pub address: [u64; 2],
    /// The prefix's bits.
    pub mask: [u64; 2],
    /// 4 or 6; 0 matches every packet.
    pub family: u64,
}

impl NetworkMatch {
    #[inline(always)]
    const fn covers(&self, address: &[u64; 2]) -> bool {
        address[0] & self.mask[0] == self.address[0] && address[1] & self.mask[1] == self.address[1]
    }
}

/// The value of a filter's number that matches every packet.
pub const ANY: u32 = u32::MAX;

/// Chooses the decisions that a trace shows: those that match every field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DecisionFilter {
    /// A bit for each reason that matches.
    pub reasons: u64,
    /// Each must contain an address of the same packet: of the frame's own, the one in its tunnel, or
    /// the one that it quotes.
    pub networks: [NetworkMatch; 2],
    /// Each must be a port of that packet; [`ANY`] matches all.
    pub ports: [u32; 2],
    /// IP protocol, or [`ANY`].
    pub protocol: u32,
    /// Slot of the table's counters, or [`ANY`].
    pub slot: u32,
}

impl Default for DecisionFilter {
    /// Matches every decision.
    fn default() -> Self {
        Self {
            reasons: u64::MAX,
            networks: [NetworkMatch::default(); 2],
            ports: [ANY; 2],
            protocol: ANY,
            slot: ANY,
        }
    }
}

impl DecisionFilter {
    /// True if the filter has to read a packet's headers.
    #[inline(always)]
    #[must_use]
    pub const fn needs_headers(&self) -> bool {
        self.networks[0].family != 0
            || self.networks[1].family != 0
            || self.ports[0] != ANY
            || self.ports[1] != ANY
            || self.protocol != ANY
    }

    /// True if a packet with these keys matches.
    #[inline(always)]
    #[must_use]
    pub fn matches_flow(&self, ends: &FlowKeys) -> bool {
        if self.protocol != ANY && self.protocol != ends.protocol as u32 {
            return false;
        }
        for network in &self.networks {
            let found = network.family == ends.family as u64
                && (network.covers(&ends.source) || network.covers(&ends.destination));
            if network.family != 0 && !found {
                return false;
            }
        }
        for port in self.ports {
            let found = ends.has_ports
                && (port == ends.source_port as u32 || port == ends.destination_port as u32);
            if port != ANY && !found {
                return false;
            }
        }
        true
    }

    /// True if a decision with this reason and counter slot matches.
    #[inline(always)]
    #[must_use]
    pub const fn matches_decision(&self, reason: u32, slot: u32) -> bool {
        (self.slot == ANY || self.slot == slot) && self.reasons >> (reason & 63) & 1 != 0
    }
}

/// The settings of a traced program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceSettings {
    /// The decisions to show.
    pub filter: DecisionFilter,
    /// Shows one in this many matching decisions; 0 and 1 show all.
    pub sample: u32,
    /// Limit of shown decisions per second and CPU; 0 for no limit.
    pub per_second: u32,
    /// Number of bytes copied of a frame, at most [`MAX_SNAP`].
    pub snap: u32,
    /// Zero.
    pub padding: u32,
}

/// Limit of the bytes copied of a frame.
pub const MAX_SNAP: usize = 4096;

/// The header of a decision's record. `before` bytes of the received frame and `after` bytes of the sent
/// frame follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceEvent {
    /// Time of the monotonic clock in nanoseconds.
    pub time: u64,
    /// Index of the interface that received the frame.
    pub interface: u32,
    /// The program's return code.
    pub verdict: u32,
    /// The reason's number.
    pub reason: u32,
    /// Slot of the table's counters; 0 for no table.
    pub slot: u32,
    /// Length of the received frame.
    pub received: u32,
    /// Length of the frame after the program.
    pub left: u32,
    /// Number of bytes of the received frame that follow.
    pub before: u32,
    /// Number of bytes of the sent frame that follow; 0 if it was dropped or left unchanged.
    pub after: u32,
}

/// Counts the traced decisions of one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceTotals {
    /// Decisions that matched the filter.
    pub wanted: u64,
    /// Decisions that were shown.
    pub shown: u64,
    /// Decisions left out by sampling.
    pub not_in_sample: u64,
    /// Decisions left out by the rate limit.
    pub over_rate: u64,
    /// Decisions left out because the buffer was full.
    pub buffer_full: u64,
}

const _: () = {
    assert!(size_of::<NetworkMatch>() == 40);
    assert!(size_of::<DecisionFilter>() == 104);
    assert!(size_of::<TraceSettings>() == 120);
    assert!(size_of::<TraceEvent>() == 40);
    assert!(size_of::<TraceTotals>() == 40);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Address as _, V4};

    fn network(address: [u8; 4], mask: [u8; 4]) -> NetworkMatch {
        let (address, mask) = (V4::new(address).words(), V4::new(mask).words());
        NetworkMatch { address: [0, address[1] & mask[1]], mask: [u64::MAX, mask[1]], family: 4 }
    }

    #[test]
    fn a_filter_matches_only_if_every_field_matches() {
        let ends = FlowKeys {
            family: 4,
            protocol: 6,
            has_ports: true,
            source: V4::new([198, 51, 100, 7]).words(),
            destination: V4::new([203, 0, 113, 1]).words(),
            source_port: 5000,
            destination_port: 443,
        };
        let any = DecisionFilter::default();
        assert!(any.matches_flow(&ends) && !any.needs_headers());
        let [all, none] = [[255; 4], [0; 4]];
        let (client, vip) = (network([198, 51, 100, 0], [255, 255, 255, 0]), [203, 0, 113, 1]);
        for (filter, wanted) in [
            (DecisionFilter { networks: [client, NetworkMatch::default()], ..any }, true),
            (DecisionFilter { networks: [client, network(vip, all)], ..any }, true),
            (DecisionFilter { networks: [client, network([203, 0, 113, 2], all)], ..any }, false),
            (
                DecisionFilter { networks: [NetworkMatch::default(), network(vip, none)], ..any },
                true,
            ),
            (DecisionFilter { networks: [NetworkMatch { family: 6, ..client }; 2], ..any }, false),
            (DecisionFilter { ports: [443, ANY], ..any }, true),
            (DecisionFilter { ports: [443, 5000], ..any }, true),
            (DecisionFilter { ports: [443, 80], ..any }, false),
            (DecisionFilter { protocol: 17, ..any }, false),
            (DecisionFilter { protocol: 6, ports: [ANY, 5000], ..any }, true),
        ] {
            assert_eq!(filter.matches_flow(&ends), wanted, "{filter:?}");
            assert!(filter.needs_headers());
        }
        let no_ports = FlowKeys { has_ports: false, source_port: 0, ..ends };
        assert!(!DecisionFilter { ports: [0, ANY], ..any }.matches_flow(&no_ports));
        let filter = DecisionFilter { reasons: 1 << 3, slot: 7, ..any };
        assert!(filter.matches_decision(3, 7));
        assert!(!filter.matches_decision(2, 7) && !filter.matches_decision(3, 8));
        assert!(any.matches_decision(63, 0));
    }
}
