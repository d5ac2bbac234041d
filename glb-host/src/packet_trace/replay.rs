//! Running a capture through a program that is attached to nothing.

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

/// The interface that a test run's packets come in by: the loopback's.
pub const TEST_INTERFACE: u32 = 1;
/// How long neighbours have to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel does not take for a frame.
const SHORTEST: usize = 14;
/// A program puts at most so much before a frame, or after it.
const GROWTH: usize = 512;

/// What `replay` is told.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The capture: pcap or pcapng, of an Ethernet interface; `-` reads from standard input.
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// Write frames here as pcapng, each with a comment that says what was decided and why.
    ///
    /// In Wireshark: `frame.comment contains "no_bind"`, or `frame.interface_name == "sent"`.
    #[arg(short, long, value_name = "OUT.pcapng")]
    write: Option<PathBuf>,
    /// Which frames are written.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [FrameStage::Sent, FrameStage::Kernel],
        requires = "write"
    )]
    include: Vec<FrameStage>,
    /// How the way to a backend is found, which decides about MAC addresses and the MTU.
    #[arg(long, value_enum, default_value_t)]
    next_hops: NextHopSource,
    /// The MTU of ways that are made up; that of the interface if it is left out, or 1500.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// The interface that the packets came by; the first that is configured if it is left out.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// A kind of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FrameStage {
    /// As they came.
    Received,
    /// As they would be sent on the wire.
    Sent,
    /// As this machine's kernel would get them.
    Kernel,
}

/// Where the ways to backends are had from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NextHopSource {
    /// This machine's routes and neighbours; made up, and said so, where it knows none.
    #[default]
    Auto,
    /// This machine's routes and neighbours only: what has no way is `next_hop_unresolved`, as in the
    /// running daemon.
    Kernel,
    /// All made up; nothing is asked.
    Synthetic,
}

/// Why a replay ends.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The kernel does not run the program.
    #[error("the program cannot be run: {0}")]
    Run(#[from] ProgramError),
    /// What ran is at odds with itself.
    #[error("{0}")]
    Odd(String),
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

/// What became of a frame.
#[derive(Debug)]
pub struct ReplayOutcome {
    /// For people and programs; number and time are not yet in it.
    pub decision: Decision,
    /// Where it is then; nowhere if it was dropped.
    pub to: Option<FrameStage>,
    /// As it is then.
    pub frame: Vec<u8>,
}

/// A loaded program with private counters.
pub trait ReplayProgram {
    /// Runs one frame.
    ///
    /// # Errors
    /// When the kernel does not run it, or the outcome makes no sense.
    fn run(&mut self, frame: &[u8]) -> Result<ReplayOutcome, ReplayError>;
}

/// The verdict and the frame after `program` ran once on `frame`.
///
/// # Errors
/// When the kernel does not run it.
pub fn test_run(program: &Xdp, frame: &[u8]) -> Result<(u32, Vec<u8>), ProgramError> {
    let mut out = vec![0; frame.len() + GROWTH];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// What the configuration says of all ways.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextHopOverrides {
    /// Where they start.
    pub source_v4: Option<Ipv4Addr>,
    /// Everyone's next hop.
    pub gateway: Option<[u8; 6]>,
}

/// The ways to backends for a replay.
#[derive(Debug, Default)]
pub struct ReplayNextHops {
    /// Every way, made up or not, as seen from a test run.
    pub next_hops: Snapshot,
    /// To whom they are made up.
    pub synthetic: BTreeSet<IpAddr>,
    /// Name of the interface that the packets came by.
    pub interface: String,
}

impl ReplayNextHops {
    /// Name of the interface with this index, which is the test run's for the packets' own.
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
    /// Says to stderr which ways are made up.
    pub fn print_synthetic_note(&self) {
        if !self.synthetic.is_empty() {
            const SHOWN: usize = 8;
            let shown = self.synthetic.iter().take(SHOWN).map(ToString::to_string);
            let mut list: Vec<String> = shown.collect();
            if self.synthetic.len() > SHOWN {
                list.push(format!("{} more", self.synthetic.len() - SHOWN));
            }
            super::print_note(&format!(
                "note: this machine knows no way to {}: MAC addresses and the MTU on the way there \
                 are made up (--next-hops kernel leaves them unresolved)",
                list.join(", ")
            ));
        }
    }
}

impl ReplayArgs {
    /// The ways to `targets`, of a packet that came by one of the `configured` interfaces.
    ///
    /// # Errors
    /// When netlink cannot be asked.
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
            let next_hops =
                NextHops::start_with_gateway(fixed.gateway, targets.iter().copied()).await?;
            Snapshot::clone(&*next_hops.wait_resolved(PATIENCE).await)
        };
        let mut found = ReplayNextHops { interface, ..ReplayNextHops::default() };
        for target in targets {
            let way = match known.get(&target) {
                // A test run comes by the loopback: what leaves by where it came from leaves there.
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

    /// Runs the capture through `program` (of the daemon with this name), prints what is decided, and
    /// writes what leaves.
    ///
    /// # Errors
    /// When a file or the program does not do what it should.
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
        // Both would go to standard output: the capture has the same words in its comments.
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
        // What would be decided about the whole of it, nobody knows.
        format!(
            "only {} of {} bytes were captured (capture with tcpdump -s 0)",
            packet.data.len(),
            packet.length
        )
    } else if packet.data.len() < SHORTEST {
        format!("{} bytes are no Ethernet frame", packet.data.len())
    } else {
        match program.run(&packet.data) {
            // It does so for a frame that is longer than any that a driver hands over in one piece.
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

/// A way that nobody has checked, out by where the packet came from: what tells it apart is the MAC,
/// made of the target's address.
fn synthetic(target: IpAddr, mtu: u32, fixed: NextHopOverrides) -> NextHop {
    let ([a, b, c, d], source): (_, IpAddr) = match target {
        IpAddr::V4(v4) => {
            // From RFC 5737: nobody's.
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
