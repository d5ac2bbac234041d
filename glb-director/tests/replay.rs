//! `glb-director replay` on GLB's vectors, and on captures that are not in order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use common::{golden, golden_tables, hex, image_of};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use glb_director::oracle::{self, Verdict};
use glb_host::capture_file::{CaptureReader, CaptureWriter, CapturedFrame};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a configuration for GLB's vectors and a capture of these frames.
fn folder(frames: &[CapturedFrame]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("tables.json"), golden()["forwarding_table"].to_string()).unwrap();
    let config = "table = \"tables.json\"\ninterfaces = [\"glb-none\"]\n\
                  outer_source_ipv4 = \"65.65.65.65\"\nouter_tos = 0\n";
    fs::write(path("director.toml"), config).unwrap();
    let mut writer =
        CaptureWriter::create(&path("in.pcapng"), "test", &[("eth0", "")], None).unwrap();
    frames.iter().for_each(|frame| writer.write(0, frame, "").unwrap());
    writer.flush().unwrap();
    folder
}

fn captured(number: u64, data: Vec<u8>) -> CapturedFrame {
    let time = Duration::new(1_700_000_000 + number, 123_456_000);
    CapturedFrame { number, time, length: data.len() as u32, data }
}

fn replay(folder: &Path, args: &[&str]) -> Output {
    // In a network namespace without any route, so that the machine has no say in it.
    Command::new("unshare")
        .args(["--net", env!("CARGO_BIN_EXE_glb-director")])
        .current_dir(folder)
        .args(["replay", "--config", "director.toml"])
        .args(args)
        .args(if args.contains(&"kernel") { &[][..] } else { &["--next-hops", "synthetic"] })
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn all_packets(path: &Path) -> Vec<CapturedFrame> {
    let mut reader = CaptureReader::open(path).unwrap();
    std::iter::from_fn(|| reader.next_packet().unwrap()).collect()
}

/// Every vector under GLB's default configuration: the verdict, the reason and what is sent.
#[test]
fn golden_packets_are_replayed() {
    let golden = golden();
    let image = image_of(&golden_tables(&golden, "default"), 1);
    let vectors: Vec<&Value> = golden["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|vector| vector["config"] == "default" || vector["category"] != "contract")
        .filter(|vector| vector["config"] == "default")
        .collect();
    let frames: Vec<CapturedFrame> = (1..)
        .zip(&vectors)
        .map(|(number, vector)| captured(number, hex(vector["input"].as_str().unwrap())))
        .collect();
    let folder = folder(&frames);
    let args =
        ["in.pcapng", "-w", "out.pcapng", "--include", "sent", "-o", "json", "--mtu", "1600"];
    let output = replay(folder.path(), &args);
    let lines = lines(&output);
    assert_eq!(lines.len(), vectors.len());
    let mut sent = all_packets(&folder.path().join("out.pcapng")).into_iter();
    let mut counts = [0; 3];
    for ((vector, frame), line) in vectors.iter().zip(&frames).zip(&lines) {
        let name = &vector["name"];
        assert_eq!(line["packet"], frame.number, "{name}");
        let expected = oracle::expected_outcome(&image, &frame.data);
        assert_eq!(line["reason"], expected.reason.name(), "{name}: {line}");
        assert_eq!(line["time"].as_f64(), Some(frame.time.as_secs_f64()));
        match expected.verdict {
            Verdict::Pass => {
                counts[0] += 1;
                assert_eq!(line["verdict"], "passed", "{name}");
            }
            Verdict::Send { frame: expected, .. } => {
                counts[1] += 1;
                assert_eq!(line["verdict"], "sent", "{name}");
                let out = sent.next().unwrap();
                assert_eq!((out.time, out.length as usize), (frame.time, out.data.len()));
                if vector["category"] == "contract" {
                    counts[2] += 1;
                    let glbs = hex(vector["output"].as_str().unwrap());
                    assert_eq!(out.data[12..], glbs[12..], "{name}");
                }
                assert_eq!(out.data.len(), expected.len());
                check_sent(&out.data, line);
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(sent.next(), None);
    assert_eq!(counts, [25, 53, 38], "passed, sent, and of those equal to GLB's");
    let summary = text(&output.stderr);
    assert!(summary.contains("sent (encapsulated)") && summary.contains("synthetic"), "{summary}");
}

/// The line's hops are those on the wire, by an independent parser.
fn check_sent(frame: &[u8], line: &Value) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("{line}") };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("{line}") };
    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    assert_eq!(udp.destination_port(), 19523);
    let gue = udp.payload();
    let mut hops = vec![ip.header().destination_addr().to_string()];
    for hop in gue[8..].chunks(4).take(gue[7].into()) {
        hops.push(format!("{}.{}.{}.{}", hop[0], hop[1], hop[2], hop[3]));
    }
    assert_eq!(line["hops"], Value::from(hops), "{line}");
    assert_eq!(line["egress"]["synthetic"], true);
    let octets = ip.header().destination();
    assert_eq!(&frame[..6], [&[2, 0], &octets[..]].concat());
    // The row is where the flow's hash points: the source port carries 15 bits of it, mixed with
    // the client's port.
    let row = line["row"].as_u64().unwrap() as u16;
    if let (Some(hint), Some("tcp" | "udp")) =
        (line["source_port"].as_u64(), line["protocol"].as_str())
    {
        assert_eq!(udp.source_port(), 0x8000 | ((row ^ hint as u16) & 0x7fff), "{line}");
    }
}

#[test]
fn truncated_packets_are_not_replayed() {
    let golden = golden();
    let whole = hex(golden["vectors"][0]["input"].as_str().unwrap());
    let cut = CapturedFrame { length: 1514, ..captured(2, whole[..60].to_vec()) };
    let folder = folder(&[captured(1, whole.clone()), cut, captured(3, whole[..9].to_vec())]);
    let output = replay(folder.path(), &["in.pcapng", "-o", "json"]);
    let json = lines(&output);
    let verdicts: Vec<_> = json.iter().map(|line| line["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["sent", "not run", "not run"]);
    assert!(json[1]["note"].as_str().unwrap().contains("60 of 1514"), "{}", json[1]);
    // For people: who and why, in one line each.
    let output = replay(folder.path(), &["in.pcapng"]);
    let lines = text(&output.stdout);
    let first = lines.lines().next().unwrap();
    for word in ["10.11.12.13:45678 > 1.1.1.1:80", "sent", "encapsulated", "row ", "to 3.4.5.6"] {
        assert!(first.contains(word), "{word:?} is missing in: {first}");
    }
    assert!(text(&output.stderr).contains("3 packets: 2 not run, 1 sent (encapsulated)"));
}

/// Packets that do not fit, or have no next hop: the output names the reason.
#[test]
fn unsent_packets_name_the_reason() {
    let golden = golden();
    let vectors = golden["vectors"].as_array().unwrap();
    let named = |name: &str| {
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        hex(vector["input"].as_str().unwrap())
    };
    let folder = folder(&[captured(1, named("v4_tcp_1460")), captured(2, named("v6_tcp_syn"))]);
    let output = replay(folder.path(), &["in.pcapng", "-o", "json", "--mtu", "1500"]);
    let json = &lines(&output)[0];
    assert_eq!(json["reason"], "too_big_may_fragment");
    assert!(json["note"].as_str().unwrap().contains("1500"), "{json}");
    assert_eq!(json["hops"].as_array().unwrap().len(), 2);
    let output = replay(folder.path(), &["in.pcapng", "-o", "json", "--next-hops", "kernel"]);
    assert_eq!(lines(&output)[1]["reason"], "next_hop_unresolved", "{output:?}");
    assert!(lines(&output)[1]["note"].as_str().unwrap().contains("not sent: "), "{output:?}");
}

#[test]
fn passed_packets_are_written_with_their_reason() {
    let golden = golden();
    let vectors = golden["vectors"].as_array().unwrap();
    let pass = vectors.iter().find(|vector| vector["category"] == "pass").unwrap();
    let frame = hex(pass["input"].as_str().unwrap());
    let folder = folder(&[captured(1, frame.clone())]);
    let output = replay(folder.path(), &["in.pcapng", "-w", "out.pcapng"]);
    assert!(output.status.success());
    assert_eq!(all_packets(&folder.path().join("out.pcapng"))[0].data, frame);
    let file = fs::read(folder.path().join("out.pcapng")).unwrap();
    let comment = b"packet 1: passed (";
    assert!(file.windows(comment.len()).any(|window| window == comment));
}

/// In and out through pipes: on standard output is the capture and nothing else.
#[test]
fn captures_are_read_from_and_written_to_pipes() {
    let golden = golden();
    let frame = hex(golden["vectors"][0]["input"].as_str().unwrap());
    let folder = folder(&[captured(1, frame)]);
    let output = Command::new("sh")
        .current_dir(folder.path())
        .arg("-c")
        .arg(format!(
            "cat in.pcapng | {} replay --config director.toml --next-hops synthetic - -w -",
            env!("CARGO_BIN_EXE_glb-director")
        ))
        .output()
        .unwrap();
    fs::write(folder.path().join("out.pcapng"), &output.stdout).unwrap();
    let packets = all_packets(&folder.path().join("out.pcapng"));
    assert_eq!(packets.len(), 1, "{output:?}");
    assert!(text(&output.stderr).contains("1 packet: 1 sent (encapsulated)"), "{output:?}");
}

#[test]
fn invalid_captures_are_refused_with_a_reason() {
    let folder = folder(&[captured(1, vec![0; 60])]);
    fs::write(folder.path().join("text.pcap"), "not a capture").unwrap();
    let mut cooked = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cooked.extend([0, 0, 4, 0, 113, 0, 0, 0]);
    cooked.extend([0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4]);
    fs::write(folder.path().join("any.pcap"), cooked).unwrap();
    for (args, words) in [
        (&["text.pcap"][..], "neither a pcap nor a pcapng"),
        (&["any.pcap"], "capture on one interface"),
        (&["none.pcap"], "cannot open none.pcap"),
        (&["in.pcapng", "-w", "in.pcapng"], "Name another file"),
        (&["in.pcapng", "-w", "/dev/full"], "cannot write /dev/full"),
        (&["in.pcapng", "--include", "sent"], "--write"),
    ] {
        let output = replay(folder.path(), args);
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(words), "{args:?}: {error}");
    }
}
