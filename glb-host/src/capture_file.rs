//! Capture files: reading pcap and pcapng, writing pcapng with a comment for each packet.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use pcap_file::{
    DataLink, Endianness, PcapError, TsResolution,
    pcap::PcapReader,
    pcapng::{
        Block, PcapNgBlock as _, PcapNgReader, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

/// Stands for standard input or output on a command line.
pub const STREAM: &str = "-";
/// The first bytes of a pcapng file.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// The first bytes of a pcap file as big-endian numbers: both byte orders, microseconds and
/// nanoseconds.
const PCAP_MAGICS: [u32; 4] = [0xa1b2_c3d4, 0xd4c3_b2a1, 0xa1b2_3c4d, 0x4d3c_b2a1];

/// Why a capture cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A file could not be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a capture.
    #[error(
        "{} is neither a pcap nor a pcapng file: {what}.\n  \
         Make one with: tcpdump -i INTERFACE -s 0 -w FILE",
        path.display()
    )]
    NotCapture {
        /// The file.
        path: PathBuf,
        /// How the file starts.
        what: String,
    },
    /// The packets do not begin with an Ethernet header.
    #[error(
        "{}: packet {packet} was captured with link type {link}, and only Ethernet frames can be \
         replayed.\n  {fix}",
        path.display()
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The packet's number, from 1 on.
        packet: u64,
        /// The link type's name.
        link: String,
        /// The remedy.
        fix: &'static str,
    },
    /// The file is damaged from here on.
    #[error(
        "{}: the file is broken after packet {after}: {what}",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The last packet that was read.
        after: u64,
        /// The fault.
        what: String,
    },
    /// The output file is the input file.
    #[error("cannot write {}: it is also the input. Name another file after -w", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
}

/// A captured frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedFrame {
    /// The frame's number in the file, from 1 on, as Wireshark counts.
    pub number: u64,
    /// The capture time since 1970.
    pub time: Duration,
    /// The captured bytes, from the Ethernet header on.
    pub data: Vec<u8>,
    /// The frame's length on the wire; greater than the captured length if the frame was truncated.
    pub length: u32,
}

impl CapturedFrame {
    /// Returns whether the capture holds only the beginning of the frame.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.data.len() < self.length as usize
    }
}

/// Reads a capture, packet by packet.
pub struct CaptureReader {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    form: Form,
    read: u64,
}

enum Form {
    Pcap(Box<PcapReader<Box<dyn Read>>>),
    PcapNg(Box<PcapNgReader<Box<dyn Read>>>),
}

impl CaptureReader {
    /// Opens a capture; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be read or is not a capture.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let (file, identity): (Box<dyn Read>, _) = if path == Path::new(STREAM) {
            (Box::new(io::stdin()), None)
        } else {
            let error = |source| io_error("open", path, source);
            let file = File::open(path).map_err(error)?;
            let about = file.metadata().map_err(error)?;
            (Box::new(file), Some((about.dev(), about.ino())))
        };
        Self::new(file, path, identity)
    }

    /// Reads a capture from `source`; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_reader(source: impl Read + 'static, path: &Path) -> Result<Self, CaptureError> {
        Self::new(Box::new(source), path, None)
    }

    fn new(
        mut source: Box<dyn Read>,
        path: &Path,
        identity: Option<(u64, u64)>,
    ) -> Result<Self, CaptureError> {
        let not_capture = |what| CaptureError::NotCapture { path: path.to_owned(), what };
        let mut magic = [0; 4];
        source.read_exact(&mut magic).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => not_capture("it is empty".into()),
            _ => io_error("read", path, source),
        })?;
        let whole: Box<dyn Read> = Box::new(io::Cursor::new(magic).chain(source));
        let broken = |error| broken(path, 0, error);
        let form = if magic == PCAPNG_MAGIC {
            Form::PcapNg(Box::new(PcapNgReader::new(whole).map_err(broken)?))
        } else if PCAP_MAGICS.contains(&u32::from_be_bytes(magic)) {
            Form::Pcap(Box::new(PcapReader::new(whole).map_err(broken)?))
        } else if magic[..2] == [0x1f, 0x8b] {
            return Err(not_capture("it is compressed; use gunzip first".into()));
        } else {
            let hex: String = magic.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(not_capture(format!("it starts with {hex}")));
        };
        Ok(Self { path: path.to_owned(), identity, form, read: 0 })
    }

    /// Returns the next packet, or `None` at the end.
    ///
    /// # Errors
    /// When the file is damaged or holds other frames than Ethernet.
    pub fn next_packet(&mut self) -> Result<Option<CapturedFrame>, CaptureError> {
        let number = self.read + 1;
        let path = &self.path;
        let broken = |error| broken(path, number - 1, error);
        let found = match &mut self.form {
            Form::Pcap(reader) => {
                let header = reader.header();
                match reader.next_raw_packet() {
                    None => None,
                    // The library's own check rejects truncated packets (longer than the file's
                    // snap length).
                    Some(packet) => {
                        let packet = packet.map_err(broken)?;
                        ethernet(path, number, header.datalink)?;
                        let unit = match header.ts_resolution {
                            TsResolution::MicroSecond => 1_000,
                            TsResolution::NanoSecond => 1,
                        };
                        let fraction = Duration::from_nanos(u64::from(packet.ts_frac) * unit);
                        Some(CapturedFrame {
                            number,
                            time: Duration::from_secs(packet.ts_sec.into()) + fraction,
                            length: packet.orig_len.max(packet.data.len() as u32),
                            data: packet.data.into_owned(),
                        })
                    }
                }
            }
            Form::PcapNg(reader) => next_of_pcapng(reader, path, number)?,
        };
        self.read += u64::from(found.is_some());
        Ok(found)
    }
}

/// Returns the next packet of a pcapng file and skips other blocks.
fn next_of_pcapng(
    reader: &mut PcapNgReader<Box<dyn Read>>,
    path: &Path,
    number: u64,
) -> Result<Option<CapturedFrame>, CaptureError> {
    loop {
        let (interface, stamp, length, data) = match reader.next_block() {
            None => return Ok(None),
            Some(Err(error)) => return Err(broken(path, number - 1, error)),
            Some(Ok(Block::EnhancedPacket(packet))) => {
                (packet.interface_id, packet.timestamp, packet.original_len, packet.data)
            }
            Some(Ok(Block::Packet(packet))) => (
                packet.interface_id.into(),
                Duration::from_nanos(packet.timestamp),
                packet.original_len,
                packet.data,
            ),
            // A simple packet has no time stamp, and its data is padded.
            Some(Ok(Block::SimplePacket(packet))) => {
                let length = packet.original_len as usize;
                let mut data = packet.data.into_owned();
                data.truncate(length);
                (0, Duration::ZERO, length as u32, Cow::Owned(data))
            }
            Some(Ok(_)) => continue,
        };
        let data = data.into_owned();
        let Some(description) = reader.interfaces().get(interface as usize) else {
            return Err(broken(path, number - 1, PcapError::InvalidInterfaceId(interface)));
        };
        ethernet(path, number, description.linktype)?;
        return Ok(Some(CapturedFrame {
            number,
            time: time_of(stamp, &description.options),
            length: length.max(data.len() as u32),
            data,
        }));
    }
}

/// Converts a time stamp by the interface's resolution; the library always assumes nanoseconds.
fn time_of(stamp: Duration, options: &[InterfaceDescriptionOption<'_>]) -> Duration {
    let (mut resolution, mut offset) = (6, 0);
    for option in options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
            InterfaceDescriptionOption::IfTsOffset(value) => offset = *value,
            _ => {}
        }
    }
    let power = u32::from(resolution & 0x7f);
    let per_second =
        if resolution & 0x80 == 0 { 10u128.checked_pow(power) } else { 2u128.checked_pow(power) };
    let nanos = stamp
        .as_nanos()
        .saturating_mul(1_000_000_000)
        .checked_div(per_second.unwrap_or(u128::MAX))
        .unwrap_or(0);
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    // The offset is signed; the library reads it as unsigned.
    let seconds = seconds.wrapping_add(offset);
    Duration::new(seconds, (nanos % 1_000_000_000) as u32)
}

fn ethernet(path: &Path, packet: u64, link: DataLink) -> Result<(), CaptureError> {
    let fix = match link {
        DataLink::ETHERNET => return Ok(()),
        DataLink::LINUX_SLL | DataLink::LINUX_SLL2 => {
            "That is what `tcpdump -i any` writes: capture on one interface instead \
             (tcpdump -i INTERFACE)."
        }
        _ => "Capture on the Ethernet interface that the program is attached to.",
    };
    let link = match link {
        DataLink::Unknown(number) => format!("{number}"),
        link => format!("{link:?} ({})", u32::from(link)),
    };
    Err(CaptureError::LinkType { path: path.to_owned(), packet, link, fix })
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> CaptureError {
    CaptureError::Io { action, path: path.to_owned(), source }
}

fn broken(path: &Path, after: u64, error: PcapError) -> CaptureError {
    match error {
        PcapError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
            io_error("read", path, source)
        }
        PcapError::IoError(_) | PcapError::IncompleteBuffer => CaptureError::Broken {
            path: path.to_owned(),
            after,
            what: "it ends in the middle of a packet".into(),
        },
        error => CaptureError::Broken { path: path.to_owned(), after, what: error.to_string() },
    }
}

/// Writes a pcapng file with nanosecond time stamps and comments.
pub struct CaptureWriter {
    path: PathBuf,
    writer: PcapNgWriter<BufWriter<Box<dyn Write>>>,
}

impl CaptureWriter {
    /// Creates the file (`-` is standard output) as written by `program`, with these interfaces.
    ///
    /// The file that `source` reads is not overwritten.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(
        path: &Path,
        program: &str,
        interfaces: &[(&str, &str)],
        source: Option<&CaptureReader>,
    ) -> Result<Self, CaptureError> {
        let error = |source| io_error("create", path, source);
        let file: Box<dyn Write> = if path == Path::new(STREAM) {
            Box::new(io::stdout())
        } else {
            // Compared before `create` truncates the file.
            let there = std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
            if there.is_some() && there == source.and_then(|source| source.identity) {
                return Err(CaptureError::SameFile { path: path.to_owned() });
            }
            Box::new(File::create(path).map_err(error)?)
        };
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(program))],
            ..SectionHeaderBlock::default()
        }
        .into_owned();
        let written = |source| written(path, source);
        let mut writer =
            PcapNgWriter::with_section_header(BufWriter::new(file), section).map_err(written)?;
        for (name, description) in interfaces {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: 0,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                    InterfaceDescriptionOption::IfDescription(Cow::Borrowed(description)),
                    InterfaceDescriptionOption::IfTsResol(9),
                ],
            };
            writer.write_block(&block.into_block()).map_err(written)?;
        }
        Ok(Self { path: path.to_owned(), writer })
    }

    /// Writes a packet of the interface with this index.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(
        &mut self,
        interface: u32,
        packet: &CapturedFrame,
        comment: &str,
    ) -> Result<(), CaptureError> {
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: packet.time,
            original_len: packet.length,
            data: Cow::Borrowed(&packet.data),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(comment))],
        };
        self.writer
            .write_block(&block.into_block())
            .map(drop)
            .map_err(|source| written(&self.path, source))
    }

    /// Flushes everything written so far to the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<(), CaptureError> {
        self.writer.get_mut().flush().map_err(|source| io_error("write", &self.path, source))
    }
}

fn written(path: &Path, error: PcapError) -> CaptureError {
    let source = match error {
        PcapError::IoError(source) => source,
        error => io::Error::other(error),
    };
    io_error("write", path, source)
}

#[cfg(test)]
mod tests;
