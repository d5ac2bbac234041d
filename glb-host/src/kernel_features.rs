//! Probing kernel features by using them: a program or map of each type is created and closed.
//!
//! A version comparison misjudges kernels with back-ported features; a probe does not.

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

/// A kernel feature that the programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// XDP programs.
    Xdp,
    /// tc programs, for the backend's MSS clamping.
    Tc,
    /// Arrays and per-CPU arrays, for tables and counters.
    Arrays,
    /// Hash tables that evict old entries.
    LruHash,
    /// Longest-prefix tries, for prefixes of addresses.
    LpmTrie,
    /// Ring buffers, for traces.
    RingBuffer,
}

impl Feature {
    /// All features.
    pub const ALL: [Self; 6] =
        [Self::Xdp, Self::Tc, Self::Arrays, Self::LruHash, Self::LpmTrie, Self::RingBuffer];

    /// Returns the feature's name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP programs",
            Self::Tc => "tc programs",
            Self::Arrays => "BPF arrays",
            Self::LruHash => "BPF LRU hash maps",
            Self::LpmTrie => "BPF longest-prefix tries",
            Self::RingBuffer => "BPF ring buffers",
        }
    }

    /// Probes the feature; `None` if the kernel does not permit the probe.
    #[must_use]
    pub fn is_supported(self) -> Option<bool> {
        let program = |kind| is_program_supported(kind).ok();
        let map = |kind| is_map_supported(kind).ok();
        match self {
            Self::Xdp => program(ProgramType::Xdp),
            Self::Tc => program(ProgramType::SchedClassifier),
            Self::Arrays => Some(map(MapType::Array)? && map(MapType::PerCpuArray)?),
            Self::LruHash => map(MapType::LruHash),
            Self::LpmTrie => map(MapType::LpmTrie),
            Self::RingBuffer => map(MapType::RingBuf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_features() {
        for feature in Feature::ALL {
            assert_eq!(feature.is_supported(), Some(true), "{}; run as root", feature.name());
        }
    }
}
