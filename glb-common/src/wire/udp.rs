//! UDP (RFC 768).

use super::header;

header! {
    /// UDP header.
    UdpHeader, 8 {
        /// Source port, big endian.
        source_port: [u8; 2],
        /// Destination port, big endian.
        destination_port: [u8; 2],
        /// Length of header and payload, big endian.
        length: [u8; 2],
        /// Checksum, big endian; 0 means none.
        checksum: [u8; 2],
    }
}
