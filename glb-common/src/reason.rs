//! The reasons for decisions. Each reason has one action and one name, which counters, metrics, traces
//! and documents use.

/// What the program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Passes it to the kernel unchanged.
    Pass,
    /// Sends it to another machine in a tunnel.
    Send,
    /// Decapsulates it and passes it to this machine's kernel.
    Take,
    /// Drops it.
    Drop,
    /// Replaces it by an ICMP error to its sender.
    Answer,
}

/// Declares an enum of reasons with their names and actions.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident <= $room:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal => $action:ident,)* }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The reason in one sentence.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// The reason with this number; the last one for an unknown number.
            #[inline(always)]
            #[must_use]
            pub const fn from_number(number: u8) -> Self {
                let last = Self::ALL.len() - 1;
                Self::ALL[if (number as usize) < last { number as usize } else { last }]
            }

            /// What happens to a packet with this reason.
            #[inline(always)]
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)* }
            }
        }

        const _: () = assert!($name::ALL.len() <= $room);
    };
}

/// Number of reasons in a table's counters. It exceeds the number of reasons so that adding one does not
/// change the layout of the pinned counters.
pub const MAX_REASONS: usize = 32;

/// Number of reasons in a set of the backend's counters.
pub const MAX_REDIRECT_REASONS: usize = 64;

reasons! {
    /// The director's reasons.
    DirectorReason <= MAX_REASONS {
        /// Encapsulated and sent to the row's first backend.
        Encapsulated = "encapsulated" => Send,
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip" => Pass,
        /// No bind matches this address, protocol and port.
        NoBind = "no_bind" => Pass,
        /// The frame ends before its headers do, or a length or version field is wrong.
        Malformed = "malformed" => Pass,
        /// A fragment without ports whose address does not lead to exactly one table that hashes
        /// addresses only.
        LaterFragment = "later_fragment" => Pass,
        /// A protocol that no bind can name, or too many IPv6 extension headers before it.
        OtherProtocol = "other_protocol" => Pass,
        /// ICMP that is neither an echo request nor an error about a flow.
        OtherIcmp = "other_icmp" => Pass,
        /// An ICMP error about a packet that was not sent from the error's destination.
        ForeignIcmpError = "foreign_icmp_error" => Pass,
        /// The MAC address of the next hop towards the backend is not resolved.
        NextHopUnresolved = "next_hop_unresolved" => Drop,
        /// Too big for the path to the backend; an ICMP error told the client the MTU.
        TooBig = "too_big" => Answer,
        /// Too big for the path to the backend, without a reply: the rate limit was reached, or the packet
        /// is an ICMP error or a later fragment.
        TooBigUnanswered = "too_big_unanswered" => Drop,
        /// Too big for the path to the backend and without DF; an XDP program cannot fragment it.
        TooBigMayFragment = "too_big_may_fragment" => Drop,
        /// The outer packet would exceed the maximum length of an IP packet.
        TooLong = "too_long" => Drop,
        /// The driver left no headroom for the outer headers.
        NoHeadroom = "no_headroom" => Drop,
        /// The tables are inconsistent, which is a bug.
        Inconsistent = "inconsistent" => Drop,
    }
}

reasons! {
    /// The backend's reasons. The pinned counters have this order, so new reasons go to the end.
    RedirectReason <= MAX_REDIRECT_REASONS {
        /// A segment with SYN: the first backend that gets it takes it.
        TakenSyn = "taken_syn" => Take,
        /// A segment of a connection of this machine.
        TakenEstablished = "taken_established" => Take,
        /// An ACK that returns a valid SYN cookie of a listener of this machine.
        TakenCookie = "taken_cookie" => Take,
        /// A "packet too big" error about a connection of this machine.
        TakenIcmpError = "taken_icmp_error" => Take,
        /// ICMP that belongs to no connection: echo requests and other errors.
        TakenIcmp = "taken_icmp" => Take,
        /// UDP never gets a second chance.
        TakenUdp = "taken_udp" => Take,
        /// A later fragment, which has no ports to look up.
        TakenFragment = "taken_fragment" => Take,
        /// No connection here and no hop left: the kernel answers with RST.
        TakenLastHop = "taken_last_hop" => Take,
        /// No connection here, and the next hop is this machine.
        TakenOwnHop = "taken_own_hop" => Take,
        /// No connection here, but second chance is switched off on this machine.
        TakenNoSecondChance = "taken_no_second_chance" => Take,
        /// No connection here: sent to the next hop.
        Forwarded = "forwarded" => Send,
        /// A "packet too big" error about another machine's connection: sent to the next hop.
        ForwardedIcmpError = "forwarded_icmp_error" => Send,
        /// Not a tunnel packet.
        NotTunnel = "not_tunnel" => Pass,
        /// A tunnel packet to an address of another machine.
        WrongDestination = "wrong_destination" => Pass,
        /// From a sender that is neither a director nor a fellow backend; left to the kernel.
        UnknownSenderPassed = "unknown_sender_passed" => Pass,
        /// From a sender that is neither a director nor a fellow backend.
        UnknownSender = "unknown_sender" => Drop,
        /// The outer packet ends before its headers do, or a length is wrong.
        OuterMalformed = "outer_malformed" => Drop,
        /// The outer packet is a fragment.
        OuterFragment = "outer_fragment" => Drop,
        /// Not GUE version 0.
        BadVersion = "bad_version" => Drop,
        /// A GUE control message.
        ControlMessage = "control_message" => Drop,
        /// GUE flags are set, which announce fields that the programs do not know.
        BadFlags = "bad_flags" => Drop,
        /// The private data is not a hop list of the outer packet's family.
        BadPrivateType = "bad_private_type" => Drop,
        /// GUE's header length and the number of hops contradict each other.
        BadHeaderLength = "bad_header_length" => Drop,
        /// The inner packet is neither IPv4 nor IPv6, or its version differs from the GUE header.
        BadInnerProtocol = "bad_inner_protocol" => Drop,
        /// The inner packet ends before its headers do, or a length is wrong.
        InnerMalformed = "inner_malformed" => Drop,
        /// The inner packet carries neither TCP, UDP nor ICMP, or has too many IPv6 extension headers.
        UnknownTransport = "unknown_transport" => Drop,
        /// The inner packet is not for a VIP of this machine.
        NotVip = "not_vip" => Drop,
        /// An ICMP error about a packet that was not sent from the error's destination.
        ForeignIcmpError = "foreign_icmp_error" => Drop,
        /// Congestion was marked on a packet whose sender does not use ECN (RFC 6040).
        CongestionDropped = "congestion_dropped" => Drop,
        /// The next hop is not one of the configured backends.
        UnknownPeer = "unknown_peer" => Drop,
        /// The MAC address towards the next hop is not resolved.
        PeerUnresolved = "peer_unresolved" => Drop,
        /// The kernel refused to resize the packet.
        Refused = "refused" => Drop,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Checks the number, name and sentence of each reason.
    fn check(reasons: impl Iterator<Item = (usize, &'static str, &'static str)>) {
        let mut names = HashSet::new();
        for (position, (index, name, sentence)) in reasons.enumerate() {
            assert_eq!(position, index);
            assert!(names.insert(name), "{name} is a duplicate");
            assert!(sentence.ends_with('.'), "{name}: {sentence}");
        }
    }

    #[test]
    fn reasons_have_distinct_names_and_descriptions() {
        check(DirectorReason::ALL.iter().map(|r| (*r as usize, r.name(), r.describe())));
        check(RedirectReason::ALL.iter().map(|r| (*r as usize, r.name(), r.describe())));
    }
}
