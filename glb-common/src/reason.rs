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
    /// Dropped, and its sender is told why.
    Answer,
}

/// Declares an enum of reasons with their names and verdicts.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident <= $room:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal => $action:ident,)* }) => {
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

            /// The reason with this number; the last one for a number that none has.
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

/// Room for reasons in a table's counters; more than there are, so that a reason can be added
/// without a new layout of the pinned counters.
pub const MAX_REASONS: usize = 32;

/// The same for the backend's counters, of which there is one set only.
pub const MAX_REDIRECT_REASONS: usize = 64;

reasons! {
    /// The director's reasons.
    DirectorReason <= MAX_REASONS {
        /// Encapsulated and sent to the row's first backend.
        Encapsulated = "encapsulated" => Send,
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip" => Pass,
        /// No bind names this address, protocol and port.
        NoBind = "no_bind" => Pass,
        /// The frame ends before its headers do, or a length or version field lies.
        Malformed = "malformed" => Pass,
        /// A later fragment, which has no ports, for which there is not one table that hashes
        /// addresses only.
        LaterFragment = "later_fragment" => Pass,
        /// A protocol that no bind can name, or too many IPv6 extension headers before it.
        OtherProtocol = "other_protocol" => Pass,
        /// ICMP that is neither an echo request nor an error about a flow.
        OtherIcmp = "other_icmp" => Pass,
        /// An ICMP error that was not sent to the address that it is about.
        ForeignIcmpError = "foreign_icmp_error" => Pass,
        /// The MAC address on the way to the backend is not known yet.
        NextHopUnresolved = "next_hop_unresolved" => Drop,
        /// Too big for the way to the backend; the client was told (ICMP) what fits.
        TooBig = "too_big" => Answer,
        /// Too big for the way to the backend, and nobody was told: told too many already, an ICMP
        /// error itself, or a later fragment.
        TooBigUnanswered = "too_big_unanswered" => Drop,
        /// Too big for the way to the backend, and its sender wants it fragmented, which an XDP
        /// program cannot do.
        TooBigMayFragment = "too_big_may_fragment" => Drop,
        /// The outer packet would be longer than IP can say.
        TooLong = "too_long" => Drop,
        /// The kernel gave no room for the outer headers.
        NoHeadroom = "no_headroom" => Drop,
        /// The tables contradict themselves; a fault of the program.
        Inconsistent = "inconsistent" => Drop,
    }
}

reasons! {
    /// The backend's reasons. Their order is that of the pinned counters: new ones go to the end.
    RedirectReason <= MAX_REDIRECT_REASONS {
        /// A segment with SYN: whoever is asked first takes it.
        TakenSyn = "taken_syn" => Take,
        /// A segment of a connection that this machine holds, in whatever state.
        TakenEstablished = "taken_established" => Take,
        /// An ACK that returns a valid SYN cookie of a listener here.
        TakenCookie = "taken_cookie" => Take,
        /// A "too big" error about a connection that this machine holds.
        TakenIcmpError = "taken_icmp_error" => Take,
        /// ICMP that no connection is asked for: echo, other errors.
        TakenIcmp = "taken_icmp" => Take,
        /// UDP never gets a second chance.
        TakenUdp = "taken_udp" => Take,
        /// A later fragment: it has no ports to ask for.
        TakenFragment = "taken_fragment" => Take,
        /// Not ours, and no hop is left: the kernel answers, with RST.
        TakenLastHop = "taken_last_hop" => Take,
        /// Not ours, and the next hop is this machine.
        TakenOwnHop = "taken_own_hop" => Take,
        /// Not ours, but this machine is configured to give no second chance.
        TakenNoSecondChance = "taken_no_second_chance" => Take,
        /// Not ours: sent on to the next hop.
        Forwarded = "forwarded" => Send,
        /// A "too big" error about a connection that is not ours: sent on to the next hop.
        ForwardedIcmpError = "forwarded_icmp_error" => Send,
        /// Not a packet of the tunnel.
        NotTunnel = "not_tunnel" => Pass,
        /// A packet of the tunnel to an address that is not this machine's.
        WrongDestination = "wrong_destination" => Pass,
        /// From a sender that is neither a director nor a fellow backend; left to the kernel.
        UnknownSenderPassed = "unknown_sender_passed" => Pass,
        /// From a sender that is neither a director nor a fellow backend.
        UnknownSender = "unknown_sender" => Drop,
        /// The outer packet ends before its headers do, or a length lies.
        OuterMalformed = "outer_malformed" => Drop,
        /// The outer packet is a fragment.
        OuterFragment = "outer_fragment" => Drop,
        /// Not GUE version 0.
        BadVersion = "bad_version" => Drop,
        /// A GUE control message.
        ControlMessage = "control_message" => Drop,
        /// GUE flags are set: what follows is not the list of hops alone.
        BadFlags = "bad_flags" => Drop,
        /// The private data is not a list of hops of the outer packet's family.
        BadPrivateType = "bad_private_type" => Drop,
        /// GUE's header length and the number of hops contradict each other.
        BadHeaderLength = "bad_header_length" => Drop,
        /// What is inside is neither IPv4 nor IPv6, or says another version than the tunnel.
        BadInnerProtocol = "bad_inner_protocol" => Drop,
        /// The inner packet ends before its headers do, or a length lies.
        InnerMalformed = "inner_malformed" => Drop,
        /// The inner packet carries neither TCP, UDP nor ICMP, or has IPv6 extension headers.
        UnknownTransport = "unknown_transport" => Drop,
        /// The inner packet is for an address that is not one of our VIPs.
        NotVip = "not_vip" => Drop,
        /// An ICMP error that was not sent to the address that it is about.
        ForeignIcmpError = "foreign_icmp_error" => Drop,
        /// Congestion was marked on a packet whose sender does not know ECN (RFC 6040).
        CongestionDropped = "congestion_dropped" => Drop,
        /// The next hop is not one of the configured backends.
        UnknownPeer = "unknown_peer" => Drop,
        /// The MAC address on the way to the next hop is not known yet.
        PeerUnresolved = "peer_unresolved" => Drop,
        /// The kernel refused a change of the packet.
        Refused = "refused" => Drop,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Checks one enum: the name and the sentence of each reason, in order.
    fn check(reasons: impl Iterator<Item = (usize, &'static str, &'static str)>) {
        let mut names = HashSet::new();
        for (position, (index, name, sentence)) in reasons.enumerate() {
            assert_eq!(position, index);
            assert!(names.insert(name), "{name} stands there twice");
            assert!(sentence.ends_with('.'), "{name}: {sentence}");
        }
    }

    #[test]
    fn names_are_distinct_and_described() {
        check(DirectorReason::ALL.iter().map(|r| (*r as usize, r.name(), r.describe())));
        check(RedirectReason::ALL.iter().map(|r| (*r as usize, r.name(), r.describe())));
    }
}
