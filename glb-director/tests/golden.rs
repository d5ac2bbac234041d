//! The packet path's pure functions against GLB's program, packet by packet.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{glb_image_of, golden, golden_tables, hex, image_of};
use glb_common::reason::DirectorReason as Reason;
use glb_director::oracle::{Verdict, expected_outcome};

#[test]
fn golden_packets_are_encapsulated_as_by_glb() {
    let golden = golden();
    let mut checked = 0;
    for vector in golden["vectors"].as_array().unwrap() {
        if vector["category"] != "contract" {
            continue;
        }
        let name = format!("{} ({})", vector["name"], vector["config"]);
        let image = glb_image_of(&golden_tables(&golden, vector["config"].as_str().unwrap()), 1);
        let answer = expected_outcome(&image, &hex(vector["input"].as_str().unwrap()));
        let Verdict::Send { frame, .. } = answer.verdict else { panic!("{name}: {answer:?}") };
        let mut expected = hex(vector["output"].as_str().unwrap());
        // GLB puts the received destination MAC here (its fault X12).
        expected[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xaa]);
        assert_eq!(frame, expected, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 148);
}

#[test]
fn packets_without_a_bind_pass() {
    let golden = golden();
    let image = image_of(&golden_tables(&golden, "default"), 1);
    let mut checked = 0;
    for vector in golden["vectors"].as_array().unwrap() {
        if vector["category"] == "pass" || vector["category"] == "truncated" {
            let answer = expected_outcome(&image, &hex(vector["input"].as_str().unwrap()));
            assert_eq!(answer.verdict, Verdict::Pass, "{}", vector["name"]);
            checked += 1;
        }
    }
    assert_eq!(checked, 15);
}

/// Where GLB is wrong: what this director does instead.
#[test]
fn faults_of_glb_are_not_repeated() {
    use Reason::{Encapsulated, Malformed, NoBind, OtherIcmp};
    let right = [
        ("v4_options_nop_ports_elsewhere", Encapsulated),
        ("v4_options_spoofed_ports", NoBind),
        ("v4_first_fragment", Encapsulated),
        ("v6_hbh_then_tcp", Encapsulated),
        ("v6_frag_header", Encapsulated),
        ("v6_dstopts_then_tcp", Encapsulated),
        ("vlan_tagged", Encapsulated),
        ("qinq", Encapsulated),
        ("v4_len_20", Malformed),
        ("v4_ihl_0", Malformed),
        ("v6_payload_len_big", Malformed),
        ("v6_payload_len_0", Malformed),
        ("cidr_inside", Encapsulated),
        ("v4_icmp_unreach_1", Encapsulated),
        ("v4_icmp_time_exceeded", Encapsulated),
        ("v4_icmp_echo_reply", OtherIcmp),
        ("v4_icmp_redirect", OtherIcmp),
        ("v4_icmp_embedded_options", Encapsulated),
        ("v4_icmp_embedded_is_icmp_echo_reply", OtherIcmp),
        ("v6_icmp_dest_unreach", Encapsulated),
        ("v6_echo_reply", OtherIcmp),
        ("v4_gue_to_vip", NoBind),
        ("v4_broadcast_mac", Encapsulated),
        ("v4_land", Encapsulated),
        ("v4_src_multicast", Encapsulated),
    ];
    let golden = golden();
    let image = image_of(&golden_tables(&golden, "default"), 1);
    let mut checked = 0;
    for vector in golden["vectors"].as_array().unwrap() {
        if vector["category"] != "quirk" {
            continue;
        }
        checked += 1;
        let name = vector["name"].as_str().unwrap();
        let answer = expected_outcome(&image, &hex(vector["input"].as_str().unwrap()));
        let expected = right.iter().find(|(known, _)| *known == name);
        assert_eq!(expected.map(|(_, reason)| *reason), Some(answer.reason), "{name}");
    }
    assert_eq!(checked, right.len());
}
