//! What the program must do with a frame, by the pure functions alone: the measure for the
//! self-test and for the tests.

use glb_common::{
    encap,
    layout::Backend,
    parse::{Parsed, parse},
    reason::{Action, DirectorReason as Reason},
    steer::{Refusal, Send, View, steer},
    wire::protocol,
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
        Err(reason) => refused(Refusal { reason, counter_slot: 0 }),
        Ok(Parsed::V4(packet)) => {
            sent(frame, steer(view, &packet), protocol::IPV4, packet.ip_length)
        }
        Ok(Parsed::V6(packet)) => {
            sent(frame, steer(view, &packet), protocol::IPV6, packet.ip_length)
        }
    }
}

fn refused(Refusal { reason, counter_slot }: Refusal) -> Expected {
    let verdict = if reason.action() == Action::Pass { Verdict::Pass } else { Verdict::Drop };
    Expected { reason, counter_slot, verdict }
}

fn sent(frame: &[u8], send: Result<Send<'_>, Refusal>, inner: u8, length: u16) -> Expected {
    send.and_then(|send| {
        encapsulate(frame, &send, inner, length).map(|frame| Expected {
            reason: Reason::Encapsulated,
            counter_slot: send.counter_slot,
            verdict: Verdict::Send { backend: *send.backend, frame },
        })
    })
    .unwrap_or_else(refused)
}

fn encapsulate(frame: &[u8], send: &Send<'_>, inner: u8, length: u16) -> Result<Vec<u8>, Refusal> {
    let refuse = |reason| Refusal { reason, counter_slot: send.counter_slot };
    let total = encap::outer_length(length, send.listed).ok_or(refuse(Reason::TooLong))?;
    let mut out = vec![0; encap::overhead(send.listed)];
    out.extend_from_slice(frame);
    if encap::write(&mut out[..], send, inner, total) {
        Ok(out)
    } else {
        Err(refuse(Reason::Inconsistent))
    }
}
