//! IPv4 (RFC 791).

use super::header;

header! {
    /// IPv4 header without options.
    Ipv4Header, 20 {
        /// Version (high nibble) and header length in 32-bit words.
        version_ihl: u8,
        /// DSCP and ECN.
        tos: u8,
        /// Length of header and payload, big endian.
        total_length: [u8; 2],
        /// Identification, big endian.
        identification: [u8; 2],
        /// Flags and fragment offset, big endian.
        flags_fragment: [u8; 2],
        /// Time to live.
        ttl: u8,
        /// Protocol of the payload.
        protocol: u8,
        /// Header checksum, big endian.
        checksum: [u8; 2],
        /// Source address.
        source: [u8; 4],
        /// Destination address.
        destination: [u8; 4],
    }
}

/// "Don't fragment" in the flags word.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments" in the flags word.
pub const MORE_FRAGMENTS: u16 = 0x2000;

impl Ipv4Header {
    /// The version nibble.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Header length in bytes with options: 0 to 60. A length below 20 is invalid.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        ((self.version_ihl & 0x0f) as usize) * 4
    }

    /// Length of header and payload in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn total_length(&self) -> usize {
        u16::from_be_bytes(self.total_length) as usize
    }

    /// True if the sender allows routers to fragment the packet (DF is clear).
    #[inline(always)]
    #[must_use]
    pub const fn may_fragment(&self) -> bool {
        u16::from_be_bytes(self.flags_fragment) & DONT_FRAGMENT == 0
    }

    /// True if this is a fragment other than the first, which has no ports.
    #[inline(always)]
    #[must_use]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be_bytes(self.flags_fragment) & 0x1fff != 0
    }
}
