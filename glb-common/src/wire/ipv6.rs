//! IPv6 (RFC 8200).

use super::header;

header! {
    /// The fixed IPv6 header.
    Ipv6Header, 40 {
        /// Version, traffic class and flow label, big endian.
        version_class_flow: [u8; 4],
        /// Bytes after this header, big endian.
        payload_length: [u8; 2],
        /// Protocol or extension header that follows.
        next_header: u8,
        /// Hop limit.
        hop_limit: u8,
        /// Source address.
        source: [u8; 16],
        /// Destination address.
        destination: [u8; 16],
    }
}

impl Ipv6Header {
    /// The version nibble.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_class_flow[0] >> 4
    }

    /// Length of this header and what follows, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn total_length(&self) -> usize {
        Self::LEN + u16::from_be_bytes(self.payload_length) as usize
    }

    /// The ECN field: the low two bits of the traffic class.
    #[inline(always)]
    #[must_use]
    pub const fn ecn(&self) -> u8 {
        self.version_class_flow[1] >> 4 & 3
    }

    /// DSCP and ECN.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        self.version_class_flow[0] << 4 | self.version_class_flow[1] >> 4
    }

    /// The low 16 bits of the flow label.
    #[inline(always)]
    #[must_use]
    pub const fn flow_label_low(&self) -> u16 {
        u16::from_be_bytes([self.version_class_flow[2], self.version_class_flow[3]])
    }
}

header! {
    /// The start of an extension header that can be skipped. All of them are at least this long.
    ExtensionHeader, 8 {
        /// Protocol or extension header that follows.
        next_header: u8,
        /// Its length in 8-byte units, without the first; a fragment header has none.
        length: u8,
        /// The fragment header's offset and flags, big endian.
        fragment: [u8; 2],
        /// Content that depends on the kind.
        rest: [u8; 4],
    }
}

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// Limit of extension headers that director and backend skip. A packet with more has an unknown
/// transport protocol for both: the director leaves it to the kernel.
pub const MAX_EXTENSION_HEADERS: usize = 6;

/// True if a next-header value names an extension header that can be skipped.
#[inline(always)]
#[must_use]
pub const fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

impl ExtensionHeader {
    /// Length in bytes of the extension header of this `kind`.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self, kind: u8) -> usize {
        if kind == FRAGMENT { Self::LEN } else { (self.length as usize + 1) * 8 }
    }

    /// True if this fragment header belongs to a fragment other than the first.
    #[inline(always)]
    #[must_use]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0xfff8 != 0
    }
}
