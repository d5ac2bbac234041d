//! Why a packet was handled as it was: each reason has one name, used by the counter, the metric
//! and the docs, and one verdict.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Left to the kernel as it came.
    Pass,
    /// Sent to another machine, in a tunnel.
    Send,
    /// Stripped of its tunnel and handed to this machine's kernel.
    Take,
    /// Dropped.
    Drop,
}

/// Declares an enum of reasons with their names and verdicts.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal => $action:ident,)* }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// What happens to a packet with this reason.
            #[inline(always)]
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)* }
            }
        }

        const _: () = assert!($name::ALL.len() <= MAX_REASONS);
    };
}

/// Room for reasons in a table's counters; more than there are, so that a reason can be added
/// without a new layout of the pinned counters.
pub const MAX_REASONS: usize = 32;

reasons! {
    /// The director's reasons.
    DirectorReason {
        /// Encapsulated and sent to the row's first backend.
        Encapsulated = "encapsulated" => Send,
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip" => Pass,
        /// No bind names this address, protocol and port.
        NoBind = "no_bind" => Pass,
        /// The frame ends before its headers do, or a length or version field lies.
        Malformed = "malformed" => Pass,
        /// A fragment without ports.
        LaterFragment = "later_fragment" => Pass,
        /// A protocol that no bind can name, or an IPv6 extension header.
        OtherProtocol = "other_protocol" => Pass,
        /// ICMP that is neither an echo request nor an error about a flow.
        OtherIcmp = "other_icmp" => Pass,
        /// An ICMP error that was not sent to the address that it is about.
        ForeignIcmpError = "foreign_icmp_error" => Pass,
        /// The MAC address on the way to the backend is not known yet.
        NextHopUnresolved = "next_hop_unresolved" => Drop,
        /// The outer packet would be longer than IP can say.
        TooLong = "too_long" => Drop,
        /// The kernel gave no room for the outer headers.
        NoHeadroom = "no_headroom" => Drop,
        /// The tables contradict themselves; a fault of the program.
        Inconsistent = "inconsistent" => Drop,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_described() {
        let names: HashSet<_> = DirectorReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DirectorReason::ALL.len());
        for (index, reason) in DirectorReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.describe().ends_with('.'));
        }
    }
}
