//! Watching live decisions: what the traced programs and user space agree on. The programs that
//! normally run contain none of it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::flow_dissector::FlowKeys;

/// An end of a packet that a [`DecisionFilter`] asks for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct NetworkMatch {
    /// The address, as [`crate::flow::Address::words`], without the bits outside `mask`.
    pub address: [u64; 2],
    /// Which bits count.
    pub mask: [u64; 2],
    /// 4 or 6; 0 asks for nothing.
    pub family: u64,
}

impl NetworkMatch {
    #[inline(always)]
    const fn covers(&self, address: &[u64; 2]) -> bool {
        address[0] & self.mask[0] == self.address[0] && address[1] & self.mask[1] == self.address[1]
    }
}

/// Asks for nothing in particular.
pub const ANY: u32 = u32::MAX;

/// Which decisions somebody wants to see: those of which everything here is true.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DecisionFilter {
    /// A bit for each reason that is wanted.
    pub reasons: u64,
    /// Each is an end of the packet, of the one in its tunnel, or of the one that it quotes.
    pub networks: [NetworkMatch; 2],
    /// As `networks`: ports of the same packet; [`ANY`] where none is asked for.
    pub ports: [u32; 2],
    /// IP protocol, or [`ANY`].
    pub protocol: u32,
    /// Slot of the table's counters, or [`ANY`].
    pub slot: u32,
}

impl Default for DecisionFilter {
    /// Every decision.
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
    /// Whether anything is asked of the packet's headers.
    #[inline(always)]
    #[must_use]
    pub const fn needs_headers(&self) -> bool {
        self.networks[0].family != 0
            || self.networks[1].family != 0
            || self.ports[0] != ANY
            || self.ports[1] != ANY
            || self.protocol != ANY
    }

    /// Whether these are the ends that are asked for.
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

    /// Whether a decision with this reason and slot is asked for.
    #[inline(always)]
    #[must_use]
    pub const fn matches_decision(&self, reason: u32, slot: u32) -> bool {
        (self.slot == ANY || self.slot == slot) && self.reasons >> (reason & 63) & 1 != 0
    }
}

/// Read-only data of a traced program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceSettings {
    /// What is wanted.
    pub filter: DecisionFilter,
    /// One in so many of what is wanted is shown; 0 and 1 show all.
    pub sample: u32,
    /// At most so many each second from each CPU; 0 for no limit.
    pub per_second: u32,
    /// At most so many bytes of a frame are copied; up to [`MAX_SNAP`].
    pub snap: u32,
    /// Zero.
    pub padding: u32,
}

/// More of a frame than this is never copied.
pub const MAX_SNAP: usize = 4096;

/// What a decision's record starts with; `before` bytes of the frame as it came and `after` bytes of
/// the frame as it left follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceEvent {
    /// The kernel's monotonic clock, nanoseconds.
    pub time: u64,
    /// Index of the interface that the frame came by.
    pub interface: u32,
    /// What the program returned.
    pub verdict: u32,
    /// The reason's number.
    pub reason: u32,
    /// Slot of the table's counters; 0 where no table is concerned.
    pub slot: u32,
    /// Length of the frame as it came.
    pub received: u32,
    /// Length of the frame as it left.
    pub left: u32,
    /// Bytes of the frame as it came that follow.
    pub before: u32,
    /// Bytes of the frame as it left that follow those; none if it was dropped or left alone.
    pub after: u32,
}

/// What became of the decisions that one CPU saw while it was traced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct TraceTotals {
    /// Wanted by the filter.
    pub wanted: u64,
    /// Shown.
    pub shown: u64,
    /// Left out as not in the sample.
    pub not_in_sample: u64,
    /// Left out because too many were shown in this second already.
    pub over_rate: u64,
    /// Left out because nobody emptied the buffer in time.
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
    fn everything_that_is_asked_for_must_be_there() {
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
