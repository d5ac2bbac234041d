//! The self-test of a generation: packets made for its binds go through the loaded program
//! (`BPF_PROG_TEST_RUN`), and what comes out is compared with the pure functions.

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
    compiled_tables::Image,
    oracle::{self, Verdict},
};

/// The interface index that a test run's packets seem to come from: the loopback's.
pub const TEST_INTERFACE: u32 = 1;

/// The MTU of the made-up way to every backend.
pub(crate) const TEST_MTU: u16 = 1_500;

/// At most this many binds are tried, spread over all of them.
const BINDS: usize = 64;
/// Clients for each bind.
const CLIENTS: u32 = 4;

/// Why a generation is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// A test run could not be made.
    #[error("the self-test could not run: {0}")]
    Run(#[from] ProgramError),
    /// The program is not there.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The maps could not be changed.
    #[error("the self-test could not prepare the maps: {0}")]
    Prepare(#[from] std::io::Error),
    /// There are binds, and no packet could be made for any.
    #[error(
        "the self-test found no packet to try; this is a fault of the director: please report it"
    )]
    Nothing,
    /// The program's answer is not the right one.
    #[error(
        "self-test: the loaded program does not do what it should with this packet; it is not \
         used.\n  packet:   {packet}\n  expected: {expected}\n  got:      {got}"
    )]
    Differs {
        /// The packet in hex.
        packet: String,
        /// The pure function's answer.
        expected: String,
        /// The program's.
        got: String,
    },
}

/// Tries the generation on packets made for its own binds. Its maps hold the real next hops and
/// counter slots again afterwards.
///
/// # Errors
/// When an answer is wrong, or none could be had.
pub fn run(generation: &mut Generation) -> Result<usize, SelfTestError> {
    let image = generation.image.for_self_test(TEST_INTERFACE);
    generation.enter(&image)?;
    let packets = packets(&image);
    if packets.is_empty() {
        return Err(SelfTestError::Nothing);
    }
    let program = generation.program()?;
    for packet in &packets {
        compare(program, &image, packet)?;
    }
    generation.enter(&generation.image)?;
    Ok(packets.len())
}

/// Runs one packet through the program and compares the answer with the pure functions'.
///
/// # Errors
/// When they differ, or the run could not be made.
pub fn compare(program: &Xdp, image: &Image, packet: &[u8]) -> Result<(), SelfTestError> {
    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_TX: u32 = 3;
    const XDP_REDIRECT: u32 = 4;
    let expected = oracle::direct(image, packet);
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
    Err(SelfTestError::Differs {
        packet: hex(packet),
        expected: format!("{} ({})", say(action, frame), expected.reason.name()),
        got: say(got_action, &got_frame),
    })
}

/// The verdict and the frame after the program ran once on `packet`.
///
/// # Errors
/// When the kernel does not run it.
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

/// Packets to the image's binds from several clients. All belong to a table, and so none is counted
/// where an operator looks.
fn packets(image: &Image) -> Vec<Vec<u8>> {
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
            // Those of port 0 are for what has no port.
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
    // Each bind once through the general program too, and one packet through the part that answers
    // what is too big: one, because answers are rationed.
    let too_big = packets.first().map(|packet| lengthened(packet));
    let tagged: Vec<_> = packets.iter().step_by(CLIENTS as usize).map(|p| tagged(p)).collect();
    packets.extend(tagged);
    packets.extend(too_big);
    packets
}

/// The packet with an 802.1Q tag.
fn tagged(packet: &[u8]) -> Vec<u8> {
    let mut tagged = packet.to_vec();
    tagged.splice(12..12, ethernet::VLAN.into_iter().chain([0, 1]));
    tagged
}

/// The packet with more payload than any tunnel has room for.
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

/// A small packet of a made-up client, from a documentation network, to `address` and `port`.
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
