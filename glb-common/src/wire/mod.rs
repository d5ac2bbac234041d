//! The protocol headers, one file each. Every header is a struct of byte arrays without alignment;
//! getters convert to host order, so that the byte order is visible at each use.

pub mod ethernet;
pub mod gue;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

/// Declares an alignment-1 header whose fields are byte arrays.
macro_rules! header {
    ($(#[$meta:meta])* $name:ident, $size:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::Unaligned,
        )]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $name {
            /// Bytes on the wire.
            pub const LEN: usize = $size;
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size && core::mem::align_of::<$name>() == 1);
    };
}
pub(crate) use header;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}
