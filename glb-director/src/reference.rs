//! What the program must do with a frame, by the pure functions alone: the measure for the
//! self-test and for the tests.

use glb_common::{
    encap,
    frame::{FrameMut as _, Wire},
    layout::Backend,
    parse::{IP_OFFSET, Parsed, parse},
    reason::{Action, DirectorReason as Reason},
    steer::{Refusal, Send, View, steer},
    too_big::{self, Answer},
    wire::{ethernet, protocol},
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
pub fn direct(view: &impl View, frame: &[u8]) -> Expected {
    match parse(frame) {
        Err(reason) => refused(frame, Refusal::new(reason, 0)),
        Ok(Parsed::V4(packet)) => {
            sent(frame, steer(view, &packet), protocol::IPV4, packet.ip_length)
        }
        Ok(Parsed::V6(packet)) => {
            sent(frame, steer(view, &packet), protocol::IPV6, packet.ip_length)
        }
    }
}

fn refused(frame: &[u8], refusal: Refusal) -> Expected {
    let reason = Reason::from_number(refusal.reason_number());
    let (counter_slot, inner_mtu) = (refusal.counter_slot(), refusal.inner_mtu());
    let (reason, verdict) = match reason.action() {
        Action::Pass => (reason, Verdict::Pass),
        Action::Answer => match answer(frame, inner_mtu) {
            Some(frame) => (reason, Verdict::Answer { frame }),
            None => (Reason::TooBigUnanswered, Verdict::Drop),
        },
        Action::Send | Action::Take | Action::Drop => (reason, Verdict::Drop),
    };
    Expected { reason, counter_slot, verdict }
}

/// The answer to a frame that is too big, without any limit to how many are sent.
fn answer(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    fn build<I: Wire>(frame: &[u8], quote: usize, headers: Answer<I>) -> Option<Vec<u8>> {
        let mut out = vec![0; size_of::<Answer<I>>()];
        out.extend_from_slice(frame.get(IP_OFFSET..IP_OFFSET + quote)?);
        out[..].write(0, headers).then_some(out)
    }
    if frame.get(12..14)? == ethernet::IPV4 {
        build(frame, too_big::V4_QUOTE, too_big::answer_v4(frame, mtu)?)
    } else {
        build(frame, too_big::V6_QUOTE, too_big::answer_v6(frame, mtu)?)
    }
}

fn sent(frame: &[u8], send: Result<Send<'_>, Refusal>, inner: u8, length: u16) -> Expected {
    send.and_then(|send| {
        encapsulate(frame, &send, inner, length).map(|frame| Expected {
            reason: Reason::Encapsulated,
            counter_slot: send.counter_slot,
            verdict: Verdict::Send { backend: *send.backend, frame },
        })
    })
    .unwrap_or_else(|refusal| refused(frame, refusal))
}

fn encapsulate(frame: &[u8], send: &Send<'_>, inner: u8, length: u16) -> Result<Vec<u8>, Refusal> {
    let refuse = |reason| Refusal::new(reason, send.counter_slot);
    let total = encap::outer_length(length, send.listed).ok_or(refuse(Reason::TooLong))?;
    let mut out = vec![0; encap::overhead(send.listed)];
    out.extend_from_slice(frame);
    if encap::write(&mut out[..], send, inner, total) {
        Ok(out)
    } else {
        Err(refuse(Reason::Inconsistent))
    }
}
