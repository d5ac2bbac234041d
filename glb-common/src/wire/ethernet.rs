//! Ethernet II.

use super::header;

header! {
    /// Ethernet II header.
    EthernetHeader, 14 {
        /// Destination MAC.
        destination: [u8; 6],
        /// Source MAC.
        source: [u8; 6],
        /// EtherType, big endian.
        ethertype: [u8; 2],
    }
}

/// EtherType of IPv4.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// EtherType of an 802.1Q tag.
pub const VLAN: [u8; 2] = [0x81, 0x00];
/// EtherType of an 802.1ad service tag, the outer one of two (QinQ).
pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];

/// True if an EtherType announces a VLAN tag (802.1Q or 802.1ad).
#[inline(always)]
#[must_use]
pub const fn is_tag(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, VLAN | SERVICE_VLAN)
}
