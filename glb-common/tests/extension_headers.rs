//! Director and backend skip the same number of IPv6 extension headers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use glb_common::{
    parse::parse,
    reason::{DirectorReason, RedirectReason},
    wire::ipv6::{DESTINATION_OPTIONS, MAX_EXTENSION_HEADERS},
};
use support::{
    backend,
    packet::{ACK, ethernet, extended, gue, segment},
    run, socket,
};

/// A segment to a VIP behind this many extension headers.
fn packet(headers: usize) -> Vec<u8> {
    let (client, vip) = (socket("[2001:db8:9::7]:40000"), socket("[2001:db8::10]:80"));
    // The next-header field is left out: `extended` writes it.
    let options = vec![0, 1, 4, 0, 0, 0, 0];
    extended(&segment(client, vip, ACK).packet(), &vec![(DESTINATION_OPTIONS, options); headers])
}

#[test]
fn both_sides_skip_the_same_number_of_extension_headers() {
    for headers in 0..=MAX_EXTENSION_HEADERS {
        let inner = packet(headers);
        let parsed = parse(&ethernet(&inner)[..]).unwrap();
        assert_eq!(parsed.flow.destination_port, 80, "{headers} headers");
        let outcome = run(&backend(), &gue(inner).frame());
        assert_eq!(outcome.reason, RedirectReason::Forwarded, "{headers} headers");
    }
    let inner = packet(MAX_EXTENSION_HEADERS + 1);
    assert_eq!(parse(&ethernet(&inner)[..]), Err(DirectorReason::OtherProtocol));
    let outcome = run(&backend(), &gue(inner).frame());
    assert_eq!(outcome.reason, RedirectReason::UnknownTransport);
}
