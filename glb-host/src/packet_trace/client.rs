//! `trace` and `capture`: asking a running daemon to show its decisions, and printing or writing
//! them.

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

/// How often it is looked whether to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// So many decisions are shown before it is looked again.
const AT_ONCE: usize = 1_000;
/// Enough of a frame for all headers, outer and inner.
const HEADERS: u32 = 512;

/// Which decisions, and how many.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Which decisions: words that must all be true. ADDRESS or ADDRESS/BITS (an end of the packet,
    /// of the one in its tunnel, or of the one that an ICMP error quotes), port NUMBER, tcp, udp,
    /// icmp, icmp6, reason NAME[,NAME...], verdict NAME, table NAME.
    ///
    /// They are compared in the kernel, before anything is copied.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Show one in so many of them, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    sample: u32,
    /// Show at most so many each second from each CPU; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate: u32,
    /// Stop after so many.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time, such as 30s, 10m or 2h (24h at most).
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    time: Duration,
}

/// Why nothing is shown, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The filter is not understood.
    #[error("{0}")]
    Filter(String),
    /// The daemon.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The pins.
    #[error("{0}\n  Run this as root, on the machine (and in the namespaces) of the daemon.")]
    Open(#[from] LoadError),
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Standard output, or a signal that cannot be waited for.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Makes decisions of what a daemon's program shows.
pub trait Decoder {
    /// Another generation shows them from now on.
    ///
    /// # Errors
    /// When what it is made of cannot be read.
    fn switch_source(&mut self, showing: &TraceSource) -> Result<(), LoadError>;

    /// In words.
    fn decode(&self, shown: &TraceRecord) -> Decision;
}

/// As every daemon's `Command::Trace`.
#[derive(Serialize)]
struct Ask {
    request: &'static str,
    options: Request,
}

/// Prints decisions as they are taken.
///
/// # Errors
/// When the daemon or the output says no.
pub fn trace(
    args: &TraceArgs,
    client: Client,
    reasons: &[ReasonName],
    decoder: &mut impl Decoder,
    is_json: bool,
) -> Result<(), TraceError> {
    let mut lines = DecisionPrinter::new(is_json);
    watch(args, HEADERS, client, reasons, decoder, &mut |decision, _| {
        lines.count(decision);
        lines
            .print(decision)
            .map_err(|source| TraceError::Io { action: "cannot write to standard output", source })
    })?;
    lines.print_summary();
    Ok(())
}

/// What `capture` is told besides.
#[derive(Args, Clone, Debug)]
pub struct CaptureArgs {
    /// The file (pcapng); `-` writes to standard output, for `| wireshark -k -i -`.
    #[arg(short, long, value_name = "FILE.pcapng")]
    write: PathBuf,
    /// Keep at most so many bytes of each frame.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = MAX_SNAP as u32,
        value_parser = clap::value_parser!(u32).range(64..=MAX_SNAP as i64)
    )]
    snap: u32,
}

/// Writes frames as they came and as they left, with what was decided as comment.
///
/// # Errors
/// When the daemon or the file says no.
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
    // What is there is kept, whatever came after it.
    writer.flush()?;
    done?;
    print_note(&format!("{number} packets in {}", capture.write.display()));
    Ok(())
}

/// Has `see` see decisions until it says no, enough were seen, the time is up, the daemon says that it
/// is over, or a signal comes.
fn watch(
    args: &TraceArgs,
    snap: u32,
    client: Client,
    reasons: &[ReasonName],
    decoder: &mut impl Decoder,
    see: &mut dyn FnMut(&Decision, &TraceRecord) -> Result<bool, TraceError>,
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
    let answers = follow(client.follow(&Ask { request: "trace", options: request }, None)?);
    let mut showing = loop {
        match answers.recv_timeout(LOOK_AGAIN) {
            Ok(Told::TraceSource(showing)) => break showing,
            Ok(Told::Ended(result)) => return result.map_err(Into::into),
            Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(_) => return Ok(()),
        }
    };
    print_note(&format!("watching generation {}; Ctrl-C ends it", showing.generation));
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut sum = TraceTotals::default();
    loop {
        failpoints::point("showing")
            .map_err(|source| TraceError::Io { action: "a test", source })?;
        let opened =
            decoder.switch_source(&showing).and_then(|()| EventReader::open(&showing.folder));
        let mut events = match opened {
            Ok(events) => events,
            Err(error) => match instead(&answers, &showing, &stop).ok_or(error)? {
                Told::TraceSource(next) => {
                    showing = next;
                    continue;
                }
                Told::Ended(result) => {
                    say_sum(&sum);
                    return result.map_err(Into::into);
                }
            },
        };
        let mut told = None;
        let next = loop {
            // Asked before the buffer is emptied: what was decided before the daemon turned to
            // another generation is in it by then.
            if told.is_none() {
                told = answers.try_recv().map_or_else(
                    |error| (error == TryRecvError::Disconnected).then_some(Told::Ended(Ok(()))),
                    Some,
                );
            }
            let ended = stop.load(Ordering::Relaxed);
            let mut is_empty = false;
            for _ in 0..AT_ONCE {
                let Some(shown) = events.next_shown() else {
                    is_empty = true;
                    break;
                };
                left -= 1;
                if !see(&decoder.decode(&shown), &shown)? || left == 0 {
                    told = Some(Told::Ended(Ok(())));
                    is_empty = true;
                    break;
                }
            }
            match told.take_if(|_| is_empty) {
                // Also at the end: it may have shown something already.
                Some(Told::TraceSource(next)) => break Some(next),
                Some(Told::Ended(result)) => {
                    say_tally(&sum, &events);
                    return result.map_err(Into::into);
                }
                None if ended => break None,
                None if is_empty => events.wait(LOOK_AGAIN),
                None => {}
            }
        };
        match next {
            Some(next) => {
                add(&mut sum, &events);
                showing = next;
            }
            None => {
                say_tally(&sum, &events);
                return Ok(());
            }
        }
    }
}

/// What the daemon says next, if it had turned away from `showing` before that could be opened; nothing
/// if it has not, so that something else is wrong with it.
fn instead(answers: &Receiver<Told>, showing: &TraceSource, stop: &AtomicBool) -> Option<Told> {
    let mut looks = 0;
    loop {
        match answers.recv_timeout(LOOK_AGAIN) {
            Ok(told) => return Some(told),
            Err(RecvTimeoutError::Disconnected) => return Some(Told::Ended(Ok(()))),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                return Some(Told::Ended(Ok(())));
            }
            // It is about to print_note where it shows them next, or that it does no more.
            Err(RecvTimeoutError::Timeout) if showing.is_over() => {}
            Err(RecvTimeoutError::Timeout) if looks < 10 => looks += 1,
            Err(RecvTimeoutError::Timeout) => return None,
        }
    }
}

/// What the daemon says while it shows its decisions.
enum Told {
    TraceSource(TraceSource),
    Ended(Result<(), ClientError>),
}

/// Reads the daemon's answers in a thread of their own, which ends with the process.
fn follow(mut answers: Responses) -> Receiver<Told> {
    let (tell, told) = channel();
    thread::spawn(move || {
        loop {
            let next = match answers.next::<TraceSource>() {
                Ok(Some(showing)) => Told::TraceSource(showing),
                Ok(None) => Told::Ended(Ok(())),
                Err(error) => Told::Ended(Err(error)),
            };
            let is_last = matches!(next, Told::Ended(_));
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

fn add(sum: &mut TraceTotals, events: &EventReader) {
    // It says how much was left out; without it, nothing is said.
    let Ok(tally) = events.tally() else { return };
    sum.wanted += tally.wanted;
    sum.shown += tally.shown;
    sum.not_in_sample += tally.not_in_sample;
    sum.over_rate += tally.over_rate;
    sum.buffer_full += tally.buffer_full;
}

fn say_tally(sum: &TraceTotals, events: &EventReader) {
    let mut sum = *sum;
    add(&mut sum, events);
    say_sum(&sum);
}

fn say_sum(sum: &TraceTotals) {
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
        print_note(&format!("left out, of {} wanted: {}", sum.wanted, left_out.join(", ")));
    }
}
