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
