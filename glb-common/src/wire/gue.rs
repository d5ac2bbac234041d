//! Generic UDP encapsulation (GUE) with GLB's private data, the hop list.

use super::header;

/// Private type of a list of IPv6 hops. A list of IPv4 hops has type 0.
pub const IPV6_HOPS: u16 = 1;

/// UDP destination port of tunnel packets.
pub const PORT: u16 = 19523;

header! {
    /// The GUE header with the start of GLB's private data. `hop_count` addresses follow.
    GueHeader, 8 {
        /// Version (2 bits), control bit, and header length: 32-bit words after the first four bytes.
        version_control_hlen: u8,
        /// IP protocol of the inner packet: 4 or 41.
        protocol: u8,
        /// GUE flags.
        flags: [u8; 2],
        /// Private data type, big endian: 0 lists IPv4 hops, 1 lists IPv6 hops.
        private_type: [u8; 2],
        /// Index of the hop to try next.
        next_hop: u8,
        /// Number of hops that follow.
        hop_count: u8,
    }
}

impl GueHeader {
    /// GUE version.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_control_hlen >> 6
    }

    /// True if this is a control message.
    #[inline(always)]
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.version_control_hlen & 0x20 != 0
    }

    /// Header length: 32-bit words after the first four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn hlen(&self) -> u8 {
        self.version_control_hlen & 0x1f
    }
}
