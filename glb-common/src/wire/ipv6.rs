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

    /// The low 16 bits of the flow label.
    #[inline(always)]
    #[must_use]
    pub const fn flow_label_low(&self) -> u16 {
        u16::from_be_bytes([self.version_class_flow[2], self.version_class_flow[3]])
    }
}
