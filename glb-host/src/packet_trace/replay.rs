//! The `replay` command: runs a capture through a program that is not attached.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use clap::{Args, ValueEnum};

use super::{Decision, DecisionPrinter};
use crate::{
    capture_file::{CaptureError, CaptureReader, CaptureWriter, CapturedFrame, STREAM},
    next_hop::{NetlinkError, NextHop, NextHops, Snapshot},
    xdp_link,
};

/// The receiving interface of a test run: the loopback.
pub const TEST_INTERFACE: u32 = 1;
/// How long neighbours may take to answer.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest frame that the kernel accepts.
const MIN_FRAME: usize = 14;
/// The most bytes that a program adds to a frame.
const MAX_GROWTH: usize = 512;

/// Options of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The capture to read: pcap or pcapng of an Ethernet interface; `-` is standard input.
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// Write frames to this pcapng file, each with the decision as comment.
    ///
    /// In Wireshark: `frame.comment contains "no_bind"`, or `frame.interface_name == "sent"`.
    #[arg(short, long, value_name = "OUT.pcapng")]
    write: Option<PathBuf>,
    /// Which frames to write.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [FrameStage::Sent, FrameStage::Kernel],
        requires = "write"
    )]
    include: Vec<FrameStage>,
    /// How to find next hops; they decide MAC addresses and the MTU.
    #[arg(long, value_enum, default_value_t)]
    next_hops: NextHopSource,
    /// The MTU of synthetic next hops. Defaults to that of the interface, or 1500.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// The interface that received the packets. Defaults to the first configured one.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// The stage of a frame in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FrameStage {
    /// As received.
    Received,
    /// As it would be sent.
    Sent,
    /// As this machine's kernel would receive it.
    Kernel,
}

/// Where next hops come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NextHopSource {
    /// This machine's routes and neighbours; synthetic where they are unknown, with a note.
    #[default]
    Auto,
    /// This machine's routes and neighbours only: others are `next_hop_unresolved`, as in the
    /// running daemon.
    Kernel,
    /// Synthetic ones only; nothing is looked up.
    Synthetic,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A capture could not be read or written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The kernel did not run the program.
    #[error("cannot run the program: {0}")]
    Run(#[from] ProgramError),
    /// The program's output contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

/// The result of a frame.
#[derive(Debug)]
pub struct ReplayOutcome {
    /// The decision, still without number and time.
    pub decision: Decision,
    /// Where the frame goes; `None` if it was dropped.
    pub to: Option<FrameStage>,
    /// The frame after the program.
    pub frame: Vec<u8>,
}

/// A loaded program with counters of its own.
pub trait ReplayProgram {
    /// Runs the program on one frame.
    ///
    /// # Errors
    /// When the kernel does not run it, or the output contradicts itself.
    fn run(&mut self, frame: &[u8]) -> Result<ReplayOutcome, ReplayError>;
}

/// Runs `program` once on `frame`; returns its verdict and the frame after it.
///
/// # Errors
/// When the kernel does not run it.
pub fn test_run(program: &Xdp, frame: &[u8]) -> Result<(u32, Vec<u8>), ProgramError> {
    let mut out = vec![0; frame.len() + MAX_GROWTH];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// Next-hop settings of the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextHopOverrides {
    /// The tunnel's IPv4 source address.
    pub source_v4: Option<Ipv4Addr>,
    /// The MAC address of all next hops.
    pub gateway: Option<[u8; 6]>,
}

/// The next hops for a replay.
#[derive(Debug, Default)]
pub struct ReplayNextHops {
    /// All next hops, synthetic ones included, as seen from a test run.
    pub next_hops: Snapshot,
    /// The targets with synthetic next hops.
    pub synthetic: BTreeSet<IpAddr>,
    /// The interface that received the packets.
    pub interface: String,
}

impl ReplayNextHops {
    /// Returns the name of an interface; the test run's stands for the packets' own.
    #[must_use]
    pub fn name_of(&self, index: u32) -> String {
        if index == TEST_INTERFACE {
            self.interface.clone()
        } else {
            xdp_link::interface_name(index)
        }
    }
}

impl ReplayNextHops {
    /// Prints a note that names the synthetic next hops.
    pub fn print_synthetic_note(&self) {
        if !self.synthetic.is_empty() {
            const SHOWN: usize = 8;
            let shown = self.synthetic.iter().take(SHOWN).map(ToString::to_string);
            let mut list: Vec<String> = shown.collect();
            if self.synthetic.len() > SHOWN {
                list.push(format!("{} more", self.synthetic.len() - SHOWN));
            }
            super::print_note(&format!(
                "note: this machine has no next hop for {}: their MAC addresses and MTU are synthetic \
                 (--next-hops kernel leaves them unresolved)",
                list.join(", ")
            ));
        }
    }
}

impl ReplayArgs {
    /// Resolves next hops to `targets` for packets that one of the `configured` interfaces
    /// received.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub async fn resolve_next_hops(
        &self,
        targets: BTreeSet<IpAddr>,
        configured: &[String],
        fixed: NextHopOverrides,
    ) -> Result<ReplayNextHops, NetlinkError> {
        let interface = self.interface.as_ref().or(configured.first()).cloned().unwrap_or_default();
        let index = xdp_link::interface_index(&interface).ok();
        let mtu = self.mtu.or_else(|| xdp_link::interface_mtu(&interface).ok()).unwrap_or(1500);
        let known = if self.next_hops == NextHopSource::Synthetic {
            Snapshot::default()
        } else {
            let next_hops = NextHops::start_with_gateway(
                fixed.gateway.map(Into::into),
                targets.iter().copied(),
            )
            .await?;
            Snapshot::clone(&*next_hops.wait_resolved(NEIGHBOUR_TIMEOUT).await)
        };
        let mut found = ReplayNextHops { interface, ..ReplayNextHops::default() };
        for target in targets {
            let way = match known.get(&target) {
                // A test run's packets arrive on the loopback, so a frame that leaves by the
                // packets' interface leaves there.
                Some(Ok(way)) if Some(way.interface) == index => {
                    Ok(NextHop { interface: TEST_INTERFACE, ..*way })
                }
                Some(Ok(way)) => Ok(*way),
                Some(Err(reason)) if self.next_hops == NextHopSource::Kernel => Err(reason.clone()),
                Some(Err(_)) | None => {
                    found.synthetic.insert(target);
                    Ok(synthetic(target, mtu, fixed))
                }
            };
            found.next_hops.insert(target, way);
        }
        Ok(found)
    }

    /// Runs the capture through `program`, prints the decisions, and writes the frames.
    ///
    /// `name` is the program's name for the capture file.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the program fails.
    pub fn replay(
        &self,
        name: &str,
        is_json: bool,
        program: &mut impl ReplayProgram,
    ) -> Result<DecisionPrinter, ReplayError> {
        let mut reader = CaptureReader::open(&self.input)?;
        let interfaces = [
            ("received", "as it came"),
            ("sent", "what would be sent"),
            ("kernel", "what this machine's kernel would get"),
        ];
        let create = |path| CaptureWriter::create(path, name, &interfaces, Some(&reader));
        let mut writer = self.write.as_deref().map(create).transpose()?;
        let mut lines = DecisionPrinter::new(is_json);
        // Both would go to standard output; the capture has the decisions as comments.
        let prints = self.write.as_deref() != Some(Path::new(STREAM));
        while let Some(packet) = reader.next_packet()? {
            let mut ran = run(program, &packet)?;
            ran.decision.packet = Some(packet.number);
            ran.decision.time = packet.time;
            ran.decision.length = packet.length;
            if let Some(writer) = &mut writer {
                self.write_parts(writer, &packet, &ran)?;
            }
            lines.count(&ran.decision);
            if prints && !lines.print(&ran.decision).map_err(ReplayError::Output)? {
                break;
            }
        }
        if let Some(writer) = &mut writer {
            writer.flush()?;
        }
        Ok(lines)
    }

    fn write_parts(
        &self,
        writer: &mut CaptureWriter,
        packet: &CapturedFrame,
        ran: &ReplayOutcome,
    ) -> Result<(), CaptureError> {
        let comment = format!("packet {}: {}", packet.number, ran.decision.comment());
        if self.include.contains(&FrameStage::Received) {
            writer.write(FrameStage::Received as u32, packet, &comment)?;
        }
        match ran.to {
            Some(part) if self.include.contains(&part) => {
                let (data, length) = (ran.frame.clone(), ran.frame.len() as u32);
                let left = CapturedFrame { number: packet.number, time: packet.time, data, length };
                writer.write(part as u32, &left, &comment)
            }
            _ => Ok(()),
        }
    }
}

fn run(
    program: &mut impl ReplayProgram,
    packet: &CapturedFrame,
) -> Result<ReplayOutcome, ReplayError> {
    let note = if packet.is_truncated() {
        // The decision about the whole frame is unknown.
        format!(
            "only {} of {} bytes were captured (capture with tcpdump -s 0)",
            packet.data.len(),
            packet.length
        )
    } else if packet.data.len() < MIN_FRAME {
        format!("{} bytes are too short for an Ethernet frame", packet.data.len())
    } else {
        match program.run(&packet.data) {
            // The kernel refuses frames that are longer than any that a driver passes in one
            // buffer.
            Err(ReplayError::Run(error)) if packet.data.len() > 3000 => {
                format!("the kernel does not run a frame of {} bytes: {error}", packet.data.len())
            }
            other => return other,
        }
    };
    let mut decision = Decision { verdict: "not run", note: Some(note), ..Decision::default() };
    decision.describe(super::Headers::of(&packet.data));
    Ok(ReplayOutcome { decision, to: None, frame: Vec::new() })
}

/// Returns an unverified next hop by the receiving interface; its MAC address is made from the
/// target's address.
fn synthetic(target: IpAddr, mtu: u32, fixed: NextHopOverrides) -> NextHop {
    let ([a, b, c, d], source): (_, IpAddr) = match target {
        IpAddr::V4(v4) => {
            // A documentation address (RFC 5737).
            (v4.octets(), fixed.source_v4.unwrap_or(Ipv4Addr::new(192, 0, 2, 1)).into())
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            ([a, b, c, d], Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
        }
    };
    NextHop {
        interface: TEST_INTERFACE,
        own_mac: [2, 0, 0, 0, 0, 1],
        mac: fixed.gateway.unwrap_or([2, 0, a, b, c, d]),
        source: Some(source),
        mtu,
        link_mtu: mtu,
    }
}
