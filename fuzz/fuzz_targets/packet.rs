//! Runs arbitrary frames through both packet paths, as pure functions.
//!
//! Asserts: no panic and no access outside the frame; the fast path agrees with the general path; a sent
//! frame contains the received packet; a backend accepts the frames that a director sends.
#![no_main]

#[path = "../../glb-director/src/oracle.rs"]
#[allow(dead_code, reason = "shared with the director")]
mod oracle;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;
mod tables;

use std::sync::LazyLock;

use glb_common::{flow_dissector, fast_path, encap::overhead, flow::{V4, V6}, reason::{Action, DirectorReason, RedirectReason}, trace::DecisionFilter};
use libfuzzer_sys::fuzz_target;
use oracle::Verdict;
use support::{FakeHost, backend, packet::{gue, gue_v6}, socket};
use tables::Tables;

static TABLES: LazyLock<[Tables; 4]> = LazyLock::new(|| [0, 1, 2, 3].map(Tables::new));
static HOSTS: LazyLock<[FakeHost; 2]> = LazyLock::new(|| {
    let mut host = backend();
    for port in 0..64 {
        let client = socket(&format!("198.51.100.7:{}", 40_000 + port));
        host.flows.insert((client, socket("203.0.113.10:80")));
        host.cookies.insert((client, socket("203.0.113.10:443")));
    }
    let quiet = FakeHost { no_second_chance: true, passes_unknown_senders: true, ..host.clone() };
    [host, quiet]
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, frame)) = bytes.split_first() else { return };
    let tables = &TABLES[usize::from(choice & 3)];
    let host = &HOSTS[usize::from(choice >> 2 & 1)];
    direct(tables, host, frame);
    let outcome = support::run(host, frame);
    trace(frame, outcome.reason as u32);
    // The same bytes as the inner packet of a valid tunnel packet.
    if choice & 8 != 0 && frame.len() > 14 {
        let inner = frame[14..].to_vec();
        if inner[0] >> 4 != 4 && inner[0] >> 4 != 6 {
            return;
        }
        let tunnelled = if choice & 16 == 0 { gue(inner) } else { gue_v6(inner) }.frame();
        let outcome = support::run(host, &tunnelled);
        assert!(
            !matches!(
                outcome.reason,
                RedirectReason::OuterMalformed | RedirectReason::BadHeaderLength | RedirectReason::BadVersion
            ),
            "{outcome:?}"
        );
        if outcome.action == Action::Send {
            assert_eq!(outcome.frame.len(), tunnelled.len());
        }
    }
});

fn direct(tables: &Tables, host: &FakeHost, frame: &[u8]) {
    let expected = oracle::direct(tables, frame);
    if let Some(fast) = fast(tables, frame) {
        assert_eq!(expected.reason, DirectorReason::Encapsulated);
        let Verdict::Send { frame: whole, .. } = &expected.verdict else { panic!("{expected:?}") };
        assert_eq!(*whole, fast, "the fast path sends another frame");
    }
    match expected.verdict {
        Verdict::Send { frame: sent, .. } => {
            // The received packet, from its IP header on, is the end of the sent frame.
            let inner = frame.len() - 22.min(frame.len());
            assert!(sent.len() > frame.len() && sent[sent.len() - inner..] == frame[frame.len() - inner..]);
            let outcome = support::run(host, &sent);
            assert!(
                !matches!(
                    outcome.reason,
                    RedirectReason::OuterMalformed
                        | RedirectReason::OuterFragment
                        | RedirectReason::BadVersion
                        | RedirectReason::ControlMessage
                        | RedirectReason::BadFlags
                        | RedirectReason::BadPrivateType
                        | RedirectReason::BadHeaderLength
                        | RedirectReason::BadInnerProtocol
                ),
                "a backend refuses a director's frame: {outcome:?} of {sent:02x?}"
            );
        }
        Verdict::Answer { frame: answer } => {
            assert!(answer.len() < 1300);
            // An ICMP error must never cause another one.
            let again = oracle::direct(tables, &answer);
            assert_ne!(again.reason, DirectorReason::TooBig);
        }
        Verdict::Pass | Verdict::Drop => {}
    }
    trace(frame, expected.reason as u32);
}

/// The frame that the fast path sends; nothing if it leaves the packet to the general path.
fn fast(tables: &Tables, frame: &[u8]) -> Option<Vec<u8>> {
    let room = vec![0; overhead(false, 1)];
    let mut grown = [&room[..], frame].concat();
    match fast_path::ethertype(frame)? {
        fast_path::IPV4 => {
            let bound = fast_path::match_v4(tables, frame)?;
            fast_path::send::<_, _, V4>(tables, &mut grown[..], &bound)?;
        }
        fast_path::IPV6 => {
            let bound = fast_path::match_v6(tables, frame)?;
            fast_path::send::<_, _, V6>(tables, &mut grown[..], &bound)?;
        }
        _ => return None,
    }
    Some(grown)
}

/// Runs the filter of a trace on the frame.
fn trace(frame: &[u8], reason: u32) {
    let filter = DecisionFilter { ports: [80, 443], protocol: 6, ..DecisionFilter::default() };
    let mut layers = 0;
    flow_dissector::visit(frame, |ends| {
        layers += 1;
        filter.matches_flow(ends) && filter.matches_decision(reason, 1)
    });
    assert!(layers <= flow_dissector::MAX_LAYERS);
    flow_dissector::tunnel(frame).map(|(_, header, start)| (header, start)).inspect(|(_, start)| {
        assert!(*start <= frame.len());
    });
}
