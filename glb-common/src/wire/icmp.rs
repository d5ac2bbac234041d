//! ICMP (RFC 792) and ICMPv6 (RFC 4443).

use super::header;

header! {
    /// The first 8 bytes of an ICMP or ICMPv6 message. The quoted packet of an error follows.
    IcmpHeader, 8 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Checksum, big endian.
        checksum: [u8; 2],
        /// Content that depends on the type.
        rest: [u8; 4],
    }
}

/// ICMP destination unreachable.
pub const V4_UNREACHABLE: u8 = 3;
/// Code of [`V4_UNREACHABLE`]: the packet is too big and has DF set.
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP echo request.
pub const V4_ECHO_REQUEST: u8 = 8;
/// ICMP time exceeded.
pub const V4_TIME_EXCEEDED: u8 = 11;
/// ICMP parameter problem.
pub const V4_PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6 destination unreachable.
pub const V6_UNREACHABLE: u8 = 1;
/// ICMPv6 packet too big.
pub const V6_PACKET_TOO_BIG: u8 = 2;
/// ICMPv6 time exceeded.
pub const V6_TIME_EXCEEDED: u8 = 3;
/// ICMPv6 parameter problem.
pub const V6_PARAMETER_PROBLEM: u8 = 4;
/// ICMPv6 echo request.
pub const V6_ECHO_REQUEST: u8 = 128;
