//! The `trace` and `capture` commands: they ask a running daemon to publish its decisions, and
//! print or write them.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

use clap::Args;
use glb_common::trace::{MAX_SNAP, TraceTotals};
use serde::Serialize;

use super::{
    Decision, DecisionPrinter,
    filter::{ReasonName, TraceFilter},
    print_note,
    trace::{EventReader, Request, TraceRecord, TraceSource},
};
use crate::{
    bpf_loader::LoadError,
    capture_file::{CaptureError, CaptureWriter, CapturedFrame},
    control::{Client, ClientError, Responses},
    duration, failpoints,
};

/// How often the loop checks whether to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How many decisions are handled between two checks.
const BATCH: usize = 1_000;
/// Enough of a frame for all headers, outer and inner.
const HEADER_BYTES: u32 = 512;

/// Options that select decisions and limit their number.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Which decisions to show: words that must all match. ADDRESS or ADDRESS/BITS (source or
    /// destination of the packet, of the packet in the tunnel, or of the packet that an ICMP error
    /// quotes), port NUMBER, tcp, udp, icmp, icmp6, reason NAME[,NAME...], verdict NAME, table
    /// NAME.
    ///
    /// The kernel applies the filter before it copies anything.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Show a random sample of one in N.
    #[arg(long, value_name = "N", default_value_t = 1)]
    sample: u32,
    /// Show at most N per second and CPU; 0 means no limit.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate: u32,
    /// Stop after N decisions.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time, such as 30s, 10m or 2h (at most 24h).
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    time: Duration,
}

/// Why decisions cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The filter is not valid.
    #[error("{0}")]
    Filter(String),
    /// The daemon refused or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The trace program's maps could not be opened.
    #[error("{0}\n  Run this as root, on the machine (and in the namespaces) of the daemon.")]
    Open(#[from] LoadError),
    /// The capture file could not be written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Writing to standard output or waiting for signals failed.
    #[error("{action}: {source}")]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Decodes the records of one daemon's program.
pub trait Decoder {
    /// Switches to the tables of another generation.
    ///
    /// # Errors
    /// When they cannot be read.
    fn switch_source(&mut self, showing: &TraceSource) -> Result<(), LoadError>;

    /// Decodes a record.
    fn decode(&self, shown: &TraceRecord) -> Decision;
}

/// The request `trace`, as in every daemon's `Command::Trace`.
#[derive(Serialize)]
struct TraceCommand {
    request: &'static str,
    options: Request,
}

/// Prints decisions as they are made.
///
/// # Errors
/// When the daemon refuses, or the output cannot be written.
pub fn trace(
    args: &TraceArgs,
    client: Client,
    reasons: &[ReasonName],
    decoder: &mut impl Decoder,
    is_json: bool,
) -> Result<(), TraceError> {
    let mut lines = DecisionPrinter::new(is_json);
    watch(args, HEADER_BYTES, client, reasons, decoder, &mut |decision, _| {
        lines.count(decision);
        lines
            .print(decision)
            .map_err(|source| TraceError::Io { action: "cannot write to standard output", source })
    })?;
    lines.print_summary();
    Ok(())
}

/// Options of `capture`.
#[derive(Args, Clone, Debug)]
pub struct CaptureArgs {
    /// The file to write (pcapng); `-` is standard output, for `| wireshark -k -i -`.
    #[arg(short, long, value_name = "FILE.pcapng")]
    write: PathBuf,
    /// Keep at most this many bytes of each frame.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = MAX_SNAP as u32,
        value_parser = clap::value_parser!(u32).range(64..=MAX_SNAP as i64)
    )]
    snap: u32,
}

/// Writes frames before and after, with the decision as comment.
///
/// # Errors
/// When the daemon refuses, or the file cannot be written.
pub fn capture(
    name: &str,
    args: &TraceArgs,
    capture: &CaptureArgs,
    client: Client,
    reasons: &[ReasonName],
    decoder: &mut impl Decoder,
) -> Result<(), TraceError> {
    let interfaces = [
        ("received", "as it came"),
        ("sent", "as it was sent"),
        ("kernel", "as this machine's kernel got it, where that is not as it came"),
    ];
    let mut writer = CaptureWriter::create(&capture.write, name, &interfaces, None)?;
    let mut number = 0;
    let done = watch(args, capture.snap, client, reasons, decoder, &mut |decision, shown| {
        number += 1;
        let comment = decision.comment();
        let frame = |data: &[u8], length| CapturedFrame {
            number,
            time: shown.time,
            data: data.to_vec(),
            length,
        };
        let event = &shown.event;
        writer.write(0, &frame(&shown.before, event.received), &comment)?;
        if let Some(after) = &shown.after {
            let interface = if matches!(decision.verdict, "sent" | "answered") { 1 } else { 2 };
            writer.write(interface, &frame(after, event.left), &comment)?;
        }
        Ok(true)
    });
    // Frames that were received are kept, also after an error.
    writer.flush()?;
    done?;
    print_note(&format!("{number} packets in {}", capture.write.display()));
    Ok(())
}

/// Passes decisions to `handle` until it returns false, the count or time is reached, the daemon ends
/// the trace, or a signal comes.
fn watch(
    args: &TraceArgs,
    snap: u32,
    client: Client,
    reasons: &[ReasonName],
    decoder: &mut impl Decoder,
    handle: &mut dyn FnMut(&Decision, &TraceRecord) -> Result<bool, TraceError>,
) -> Result<(), TraceError> {
    let filter = TraceFilter::parse(&args.filter, reasons).map_err(TraceError::Filter)?;
    let request = Request {
        filter,
        sample: args.sample,
        per_second: args.rate,
        snap,
        seconds: args.time.as_secs().max(1),
    };
    let stop = stop_at_signals()?;
    let answers =
        follow(client.follow(&TraceCommand { request: "trace", options: request }, None)?);
    let mut showing = loop {
        match answers.recv_timeout(POLL_INTERVAL) {
            Ok(DaemonMessage::Source(showing)) => break showing,
            Ok(DaemonMessage::Ended(result)) => return result.map_err(Into::into),
            Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(_) => return Ok(()),
        }
    };
    print_note(&format!("watching generation {}; stop with Ctrl-C", showing.generation));
    let mut remaining = args.count.unwrap_or(u64::MAX);
    let mut sum = TraceTotals::default();
    loop {
        failpoints::point("showing")
            .map_err(|source| TraceError::Io { action: "a test", source })?;
        let opened =
            decoder.switch_source(&showing).and_then(|()| EventReader::open(&showing.folder));
        let mut events = match opened {
            Ok(events) => events,
            Err(error) => {
                match message_after_failed_open(&answers, &showing, &stop).ok_or(error)? {
                    DaemonMessage::Source(next) => {
                        showing = next;
                        continue;
                    }
                    DaemonMessage::Ended(result) => {
                        print_omitted(&sum);
                        return result.map_err(Into::into);
                    }
                }
            }
        };
        let mut told = None;
        let next = loop {
            // Checked before the buffer is emptied: decisions made before the daemon switched to
            // another generation are in it by then.
            if told.is_none() {
                told = answers.try_recv().map_or_else(
                    |error| {
                        (error == TryRecvError::Disconnected)
                            .then_some(DaemonMessage::Ended(Ok(())))
                    },
                    Some,
                );
            }
            let ended = stop.load(Ordering::Relaxed);
            let mut is_empty = false;
            for _ in 0..BATCH {
                let Some(shown) = events.next_record() else {
                    is_empty = true;
                    break;
                };
                remaining -= 1;
                if !handle(&decoder.decode(&shown), &shown)? || remaining == 0 {
                    told = Some(DaemonMessage::Ended(Ok(())));
                    is_empty = true;
                    break;
                }
            }
            match told.take_if(|_| is_empty) {
                // Also at the end: the new generation may have published some already.
                Some(DaemonMessage::Source(next)) => break Some(next),
                Some(DaemonMessage::Ended(result)) => {
                    print_tally(&sum, &events);
                    return result.map_err(Into::into);
                }
                None if ended => break None,
                None if is_empty => events.wait(POLL_INTERVAL),
                None => {}
            }
        };
        match next {
            Some(next) => {
                add_tally(&mut sum, &events);
                showing = next;
            }
            None => {
                print_tally(&sum, &events);
                return Ok(());
            }
        }
    }
}

/// Returns the daemon's next message if it removed the trace before it could be opened, and `None`
/// if the error has another cause.
fn message_after_failed_open(
    answers: &Receiver<DaemonMessage>,
    showing: &TraceSource,
    stop: &AtomicBool,
) -> Option<DaemonMessage> {
    let mut looks = 0;
    loop {
        match answers.recv_timeout(POLL_INTERVAL) {
            Ok(told) => return Some(told),
            Err(RecvTimeoutError::Disconnected) => return Some(DaemonMessage::Ended(Ok(()))),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                return Some(DaemonMessage::Ended(Ok(())));
            }
            // The daemon is about to send the next location, or the end.
            Err(RecvTimeoutError::Timeout) if showing.is_removed() => {}
            Err(RecvTimeoutError::Timeout) if looks < 10 => looks += 1,
            Err(RecvTimeoutError::Timeout) => return None,
        }
    }
}

/// A message from the daemon during a trace.
enum DaemonMessage {
    Source(TraceSource),
    Ended(Result<(), ClientError>),
}

/// Reads the daemon's messages in a thread that ends with the process.
fn follow(mut answers: Responses) -> Receiver<DaemonMessage> {
    let (tell, told) = channel();
    thread::spawn(move || {
        loop {
            let next = match answers.next::<TraceSource>() {
                Ok(Some(showing)) => DaemonMessage::Source(showing),
                Ok(None) => DaemonMessage::Ended(Ok(())),
                Err(error) => DaemonMessage::Ended(Err(error)),
            };
            let is_last = matches!(next, DaemonMessage::Ended(_));
            if tell.send(next).is_err() || is_last {
                break;
            }
        }
    });
    told
}

fn stop_at_signals() -> Result<Arc<AtomicBool>, TraceError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|source| TraceError::Io { action: "cannot wait for signals", source })?;
    }
    Ok(stop)
}

fn add_tally(sum: &mut TraceTotals, events: &EventReader) {
    // The tally only tells what was left out.
    let Ok(tally) = events.tally() else { return };
    sum.wanted += tally.wanted;
    sum.shown += tally.shown;
    sum.not_in_sample += tally.not_in_sample;
    sum.over_rate += tally.over_rate;
    sum.buffer_full += tally.buffer_full;
}

fn print_tally(sum: &TraceTotals, events: &EventReader) {
    let mut sum = *sum;
    add_tally(&mut sum, events);
    print_omitted(&sum);
}

fn print_omitted(sum: &TraceTotals) {
    let mut left_out = Vec::new();
    for (count, why) in [
        (sum.not_in_sample, "not in the sample"),
        (sum.over_rate, "over --rate"),
        (sum.buffer_full, "because the buffer was full"),
    ] {
        if count > 0 {
            left_out.push(format!("{count} {why}"));
        }
    }
    if !left_out.is_empty() {
        print_note(&format!("omitted, of {} matching: {}", sum.wanted, left_out.join(", ")));
    }
}
