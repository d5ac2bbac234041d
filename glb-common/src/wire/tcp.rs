//! TCP (RFC 9293).

use super::header;

header! {
    /// TCP header without options.
    TcpHeader, 20 {
        /// Source port, big endian.
        source_port: [u8; 2],
        /// Destination port, big endian.
        destination_port: [u8; 2],
        /// Sequence number, big endian.
        sequence: [u8; 4],
        /// Acknowledgement number, big endian.
        acknowledgement: [u8; 4],
        /// Header length in 32-bit words (high nibble).
        data_offset: u8,
        /// FIN, SYN, RST and so on.
        flags: u8,
        /// Receive window, big endian.
        window: [u8; 2],
        /// Checksum, big endian.
        checksum: [u8; 2],
        /// Urgent pointer, big endian.
        urgent: [u8; 2],
    }
}

/// FIN in the flags.
pub const FIN: u8 = 0x01;
/// SYN in the flags.
pub const SYN: u8 = 0x02;
/// RST in the flags.
pub const RST: u8 = 0x04;
/// ACK in the flags.
pub const ACK: u8 = 0x10;
