//! The self-test of a generation: runs packets to its binds through the loaded program
//! (`BPF_PROG_TEST_RUN`), and compares the result with the [oracle].

use std::net::IpAddr;

use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use glb_common::{
    abi::BindSlot,
    vip_lookup,
    wire::{ethernet, protocol},
};
use glb_host::bpf_loader::LoadError;

use super::Generation;
use crate::{
    compiled_tables::{CompiledTables, TEST_MTU},
    oracle::{self, Verdict},
};

/// The receiving interface of a test run's packets: the loopback interface's index.
pub const TEST_INTERFACE: u32 = 1;

/// The largest number of binds that are tried, spread over all binds.
const BINDS: usize = 64;
/// The number of clients tried for each bind.
const CLIENTS: u32 = 4;

/// Why a generation failed its self-test.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The kernel refused a test run.
    #[error("cannot run the self-test: {0}")]
    Run(#[from] ProgramError),
    /// The object has no such program.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The test's next hops could not be written.
    #[error("cannot prepare the maps for the self-test: {0}")]
    Prepare(#[from] std::io::Error),
    /// No packet could be made for any bind.
    #[error(
        "the self-test found no packet to try, which is a bug of the director: please report it"
    )]
    NoPackets,
    /// The program's result is wrong.
    #[error(
        "the self-test failed, so the loaded program is not used: the program did something else \
         with a packet than expected. Please report it with these lines.\n  packet:   {packet}\n  \
         expected: {expected}\n  got:      {got}"
    )]
    Mismatch {
        /// The packet in hex.
        packet: String,
        /// The oracle's verdict and frame.
        expected: String,
        /// The program's verdict and frame.
        got: String,
    },
}

/// Runs the self-test on a generation that is not attached, and returns the number of packets tried.
/// The maps hold the real next hops and counter slots again afterwards.
///
/// # Errors
/// When a result is wrong, or the kernel refuses a test run.
pub fn run(generation: &mut Generation) -> Result<usize, SelfTestError> {
    let image = generation.image.with_test_next_hops(TEST_INTERFACE);
    generation.write_tables(&image)?;
    let packets = packets(&image);
    if packets.is_empty() {
        return Err(SelfTestError::NoPackets);
    }
    let program = generation.program()?;
    for packet in &packets {
        compare(program, &image, packet)?;
    }
    generation.write_tables(&generation.image)?;
    Ok(packets.len())
}

/// Runs one packet through the program and compares the result with the oracle's.
///
/// # Errors
/// When they differ, or the kernel refuses the run.
pub fn compare(program: &Xdp, image: &CompiledTables, packet: &[u8]) -> Result<(), SelfTestError> {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_TX: u32 = 3;
    const XDP_REDIRECT: u32 = 4;
    let expected = oracle::expected_outcome(image, packet);
    let (action, frame) = match &expected.verdict {
        Verdict::Pass => (XDP_PASS, packet),
        Verdict::Drop => (XDP_DROP, packet),
        Verdict::Send { backend, frame } if backend.interface == TEST_INTERFACE => {
            (XDP_TX, frame.as_slice())
        }
        Verdict::Answer { frame } => (XDP_TX, frame.as_slice()),
        Verdict::Send { frame, .. } => (XDP_REDIRECT, frame.as_slice()),
    };
    let (got_action, got_frame) = test_run(program, packet)?;
    if got_action == action && got_frame == frame {
        return Ok(());
    }
    let say = |action: u32, frame: &[u8]| format!("verdict {action}, {}", hex(frame));
    Err(SelfTestError::Mismatch {
        packet: hex(packet),
        expected: format!("{} ({})", say(action, frame), expected.reason.name()),
        got: say(got_action, &got_frame),
    })
}

/// Runs the program once on `packet` and returns the verdict and the frame.
///
/// # Errors
/// When the kernel refuses the run.
pub fn test_run(program: &Xdp, packet: &[u8]) -> Result<(u32, Vec<u8>), ProgramError> {
    let mut out = vec![0; packet.len() + 256];
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Packets from several clients to the image's binds. All belong to a table, so that none is counted
/// outside the self-test's slots.
fn packets(image: &CompiledTables) -> Vec<Vec<u8>> {
    let used: Vec<&BindSlot> = image.binds.iter().filter(|slot| slot.port_key != 0).collect();
    let step = used.len().div_ceil(BINDS).max(1);
    let exact = used.iter().step_by(step).map(|slot| {
        let (protocol, port) = ((slot.port_key >> 8) as u8, vip_lookup::port(slot.port_key));
        (address_of(slot), protocol, port)
    });
    let prefixes = image
        .prefixes_v4
        .iter()
        .map(|(net, entry)| (IpAddr::V4(net.addr()), entry))
        .chain(image.prefixes_v6.iter().map(|(net, entry)| (IpAddr::V6(net.addr()), entry)));
    let ranges = prefixes
        .flat_map(|(address, entry)| {
            let segments =
                image.segments.iter().skip(entry.start as usize).take(entry.count as usize);
            // Segments of port 0 are for packets without a port.
            segments
                .filter(|segment| segment.last as u16 != 0)
                .map(move |segment| (address, (segment.last >> 16) as u8, segment.last as u16))
        })
        .take(BINDS);
    let mut packets: Vec<Vec<u8>> = exact
        .chain(ranges)
        .filter(|(_, protocol, _)| matches!(*protocol, protocol::TCP | protocol::UDP))
        .flat_map(|(address, protocol, port)| {
            (0..CLIENTS).map(move |client| packet(address, protocol, port, client))
        })
        .collect();
    // Tagged packets take the general program. One packet takes the part that answers "too big": only
    // one, because such answers are rate-limited.
    let too_big = packets.first().map(|packet| lengthened(packet));
    let tagged: Vec<_> = packets.iter().step_by(CLIENTS as usize).map(|p| with_tag(p)).collect();
    packets.extend(tagged);
    packets.extend(too_big);
    packets
}

/// The packet with an 802.1Q tag.
fn with_tag(packet: &[u8]) -> Vec<u8> {
    let mut tagged = packet.to_vec();
    tagged.splice(12..12, ethernet::VLAN.into_iter().chain([0, 1]));
    tagged
}

/// The packet with more payload than the test's MTU allows.
fn lengthened(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let is_v4 = packet[12..14] == ethernet::IPV4;
    packet.resize(14 + usize::from(TEST_MTU) + 1, 0);
    let (at, length) = if is_v4 { (16, TEST_MTU + 1) } else { (18, TEST_MTU + 1 - 40) };
    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
    packet
}

fn address_of(slot: &BindSlot) -> IpAddr {
    let [high, low] = slot.address;
    if slot.port_key as u8 == 4 {
        IpAddr::from((low as u32).to_le_bytes())
    } else {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_le_bytes());
        bytes[8..].copy_from_slice(&low.to_le_bytes());
        IpAddr::from(bytes)
    }
}

/// A small packet from a made-up client in a documentation network to `address` and `port`.
fn packet(address: IpAddr, protocol: u8, port: u16, client: u32) -> Vec<u8> {
    let client = client.wrapping_mul(0x9e37_79b9);
    let transport_length: u16 = if protocol == protocol::TCP { 20 } else { 8 };
    let mut packet = vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4];
    match address {
        IpAddr::V4(address) => {
            packet.extend(ethernet::IPV4);
            packet.extend([0x45, 0]);
            packet.extend((20 + transport_length).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 51, 100, client as u8]);
            packet.extend(address.octets());
        }
        IpAddr::V6(address) => {
            packet.extend(ethernet::IPV6);
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(transport_length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0]);
            packet.extend(client.to_be_bytes());
            packet.extend(address.octets());
        }
    }
    packet.extend(((client >> 16) as u16 | 1024).to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.resize(packet.len() + usize::from(transport_length) - 4, 0);
    packet
}
