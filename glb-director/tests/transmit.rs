//! Next hops that XDP can or cannot transmit to, with the real daemon and real packets. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::{
    live::{PATIENCE, Site, alone, ip},
    traffic::Stream,
};
use glb_host::{next_hop::interface_index, raw_socket::send_frame};

/// A table with one backend.
fn table(backend: &str) -> String {
    format!(
        "[[tables]]\nname = \"t\"\nhash_key = \"12345678901234561234567890123456\"\n\
         seed = \"34567890123456783456789012345678\"\n\
         binds = [{{ ip = \"198.51.100.0/24\", proto = \"tcp\", port_start = 1, port_end = 65535 }}]\n\
         backends = [{{ ip = \"{backend}\", state = \"active\", healthy = true }}]\n"
    )
}

/// The status problems about next hops.
fn next_hop_problems(site: &Site) -> Vec<String> {
    let status = site.json("status", &[]);
    let problems = status["problems"].as_array().unwrap();
    let about = problems.iter().filter(|problem| problem["name"] == "no_next_hop");
    about.map(|problem| problem.to_string()).collect()
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Packets that an interface has received.
fn received(interface: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:")));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Makes veth `c` with address 10.0.3.1 and a permanent neighbour 10.0.3.11 at its peer, `pc`.
fn second_arm() {
    ip("link add name c type veth peer name pc");
    ip("link set dev pc address 02:00:00:00:03:02");
    ip("link set dev c up");
    ip("link set dev pc up");
    ip("address add 10.0.3.1/24 dev c");
    ip("neighbour replace 10.0.3.11 lladdr 02:00:00:00:03:02 dev c nud permanent");
}

#[test]
fn veth_without_a_program_at_its_peer_is_no_next_hop_until_it_has_one() {
    alone(|site| {
        second_arm();
        site.write(&table("10.0.3.11"));
        let _daemon = site.start();
        let problems = next_hop_problems(&site);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("XDP cannot transmit through c"), "{problems:?}");
        assert!(problems[0].contains("gro on"), "{problems:?}");
        // The interface is not in `interfaces`: routes and a program at the peer are enough.
        glb_lab::link::attach_pass("pc", &site.pins.with_file_name("ports").join("pc")).unwrap();
        wait_until("the problem is gone", || next_hop_problems(&site).is_empty());
        let before = received("pc");
        let _stream = Stream::start("a", 1, Duration::from_millis(1));
        wait_until("packets arrive by the second interface", || received("pc") > before + 100);
    });
}

#[test]
fn route_over_a_bridge_transmits_through_the_port_that_it_learned() {
    alone(|site| {
        ip("link add name br type bridge");
        ip("link set dev br up");
        ip("address del 10.0.1.1/24 dev a");
        ip("link set dev a master br");
        ip("address add 10.0.1.1/24 dev br");
        ip("neighbour replace 10.0.1.11 lladdr 02:00:00:00:01:02 dev br nud permanent");
        site.write(&table("10.0.1.11"));
        let _daemon = site.start();
        // The bridge learns the port from the peer's own frames, if one has come before the director
        // looked.
        if let Some(problem) = next_hop_problems(&site).first() {
            assert!(problem.contains("has not learned a port for 02:00:00:00:01:02"), "{problem}");
        }
        // A broadcast frame of the neighbour, from which the bridge learns.
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 1, 2, 0x88, 0xb5]);
        frame.resize(60, 0);
        let peer = interface_index("pa").unwrap();
        wait_until("the problem is gone", || {
            send_frame(peer, &frame).unwrap();
            next_hop_problems(&site).is_empty()
        });
        let before = received("pa");
        let _stream = Stream::start("a", 1, Duration::from_millis(1));
        wait_until("packets come back by the port", || received("pa") > before + 100);
    });
}
