//! Computes what the program must do with a frame, by the pure functions of `glb-common` alone. The
//! self-test and the tests compare the loaded program with it.

use glb_common::{
    abi::{Backend, Hops},
    encap::{self, Encapsulation},
    forwarding::{Rejection, plan_encapsulation},
    icmp_too_big::{self, IcmpReply, IpHeader},
    parse::{IP_OFFSET, Packet, Tags, parse},
    reason::{Action, DirectorReason as Reason},
    tables::Tables,
};

/// The expected outcome for a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedOutcome {
    /// The reason that is counted.
    pub reason: Reason,
    /// The slot that it is counted in.
    pub counter_slot: u32,
    /// The verdict.
    pub verdict: Verdict,
}

/// A verdict, with the frame that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel gets the frame, unchanged.
    Pass,
    /// The frame is dropped.
    Drop,
    /// The frame is dropped, and an ICMP error goes back out of the interface that it arrived on.
    Answer {
        /// The ICMP error's frame.
        frame: Vec<u8>,
    },
    /// The frame is encapsulated and sent to a backend.
    Send {
        /// The first hop's map entry.
        backend: Backend,
        /// The encapsulated frame.
        frame: Vec<u8>,
    },
}

/// The expected outcome for `frame`, with the tables of `view`.
pub fn expected_outcome(view: &impl Tables, frame: &[u8]) -> ExpectedOutcome {
    let packet = match parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return refused(frame, &Tags::default(), 0, Rejection::new(reason, 0)),
    };
    let mut hops = Hops::default();
    plan_encapsulation(view, &packet, &mut hops)
        .and_then(|send| encapsulate(view, frame, &send, &packet, &hops))
        .unwrap_or_else(|refusal| refused(frame, &packet.tags, packet.flow.family, refusal))
}

fn refused(frame: &[u8], tags: &Tags, family: u8, refusal: Rejection) -> ExpectedOutcome {
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
    ExpectedOutcome { reason, counter_slot, verdict }
}

/// The ICMP error for a frame that is too big. It ignores the program's rate limit.
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
) -> Result<ExpectedOutcome, Rejection> {
    let refuse = |reason| Rejection::new(reason, send.counter_slot);
    let total = encap::outer_length(send, packet, hops).ok_or(refuse(Reason::TooLong))?;
    let sent = encap::tags_to_send(view, &packet.tags);
    let mut out = vec![0; encap::growth(send, hops.len(), &packet.tags, &sent)];
    out.extend_from_slice(frame);
    if !encap::write(&mut out[..], view, send, packet, hops, total) {
        return Err(refuse(Reason::Inconsistent));
    }
    Ok(ExpectedOutcome {
        reason: Reason::Encapsulated,
        counter_slot: send.counter_slot,
        verdict: Verdict::Send { backend: *send.backend, frame: out },
    })
}
