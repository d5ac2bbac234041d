//! What the program must do with a frame, by the pure functions alone: the measure for the
//! self-test and for the tests.

use glb_common::{
    abi::{Backend, Hops},
    encap,
    encap::Encapsulation,
    forwarding::{Rejection, plan_encapsulation},
    icmp_too_big::{self, IcmpReply, IpHeader},
    parse::{IP_OFFSET, Packet, Tags, parse},
    reason::{Action, DirectorReason as Reason},
    tables::Tables,
};

/// What is to happen to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Why.
    pub reason: Reason,
    /// Whose counters say so.
    pub counter_slot: u32,
    /// The verdict.
    pub verdict: Verdict,
}

/// A verdict with what is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the kernel, untouched.
    Pass,
    /// Dropped.
    Drop,
    /// Dropped, and its sender told by this frame, on the interface that it came from.
    Answer {
        /// The frame on the wire.
        frame: Vec<u8>,
    },
    /// Sent.
    Send {
        /// The first hop.
        backend: Backend,
        /// The frame on the wire.
        frame: Vec<u8>,
    },
}

/// What is to happen to `frame` under `view`.
pub fn direct(view: &impl Tables, frame: &[u8]) -> Expected {
    let packet = match parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return refused(frame, &Tags::default(), 0, Rejection::new(reason, 0)),
    };
    let mut hops = Hops::default();
    plan_encapsulation(view, &packet, &mut hops)
        .and_then(|send| encapsulate(view, frame, &send, &packet, &hops))
        .unwrap_or_else(|refusal| refused(frame, &packet.tags, packet.flow.family, refusal))
}

fn refused(frame: &[u8], tags: &Tags, family: u8, refusal: Rejection) -> Expected {
    let reason = Reason::from_number(refusal.reason_number());
    let (counter_slot, inner_mtu) = (refusal.counter_slot(), refusal.inner_mtu());
    let (reason, verdict) = match reason.action() {
        Action::Pass => (reason, Verdict::Pass),
        Action::Answer => match answer(frame, tags, family, inner_mtu) {
            Some(frame) => (reason, Verdict::Answer { frame }),
            None => (Reason::TooBigUnanswered, Verdict::Drop),
        },
        Action::Send | Action::Take | Action::Drop => (reason, Verdict::Drop),
    };
    Expected { reason, counter_slot, verdict }
}

/// The answer to a frame that is too big, without any limit to how many are sent.
fn answer(frame: &[u8], tags: &Tags, family: u8, mtu: u16) -> Option<Vec<u8>> {
    fn build<I: IpHeader>(
        frame: &[u8],
        tags: &Tags,
        quote: usize,
        headers: IcmpReply<I>,
    ) -> Option<Vec<u8>> {
        let start = IP_OFFSET + tags.len();
        let mut out = vec![0; size_of::<IcmpReply<I>>() + tags.len()];
        out.extend_from_slice(frame.get(start..start + quote)?);
        icmp_too_big::write(&mut out[..], tags, headers).then_some(out)
    }
    if family == 4 {
        build(frame, tags, icmp_too_big::V4_QUOTE, icmp_too_big::reply_v4(frame, tags, mtu)?)
    } else {
        build(frame, tags, icmp_too_big::V6_QUOTE, icmp_too_big::reply_v6(frame, tags, mtu)?)
    }
}

fn encapsulate(
    view: &impl Tables,
    frame: &[u8],
    send: &Encapsulation<'_>,
    packet: &Packet,
    hops: &Hops,
) -> Result<Expected, Rejection> {
    let refuse = |reason| Rejection::new(reason, send.counter_slot);
    let total = encap::outer_length(send, packet, hops).ok_or(refuse(Reason::TooLong))?;
    let sent = encap::tags_to_send(view, &packet.tags);
    let mut out = vec![0; encap::growth(send, hops.len(), &packet.tags, &sent)];
    out.extend_from_slice(frame);
    if !encap::write(&mut out[..], view, send, packet, hops, total) {
        return Err(refuse(Reason::Inconsistent));
    }
    Ok(Expected {
        reason: Reason::Encapsulated,
        counter_slot: send.counter_slot,
        verdict: Verdict::Send { backend: *send.backend, frame: out },
    })
}
