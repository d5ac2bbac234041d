//! The loaded program, and its answers compared with the pure decision's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use aya::programs::{TestRun as _, TestRunOptions, XdpMode};
use glb_common::{
    reason::Action,
    second_chance::{TAG, tags},
};
use glb_redirect::{
    config::{Config, Strangers},
    counters,
    generation::Generation,
    image::Image,
};
use ipnet::IpNet;

use crate::support::{FakeHost, Outcome, run};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The interface that a test run's packets come in by: the loopback's.
pub use crate::support::TEST_INTERFACE;

/// The program, set up for a machine.
pub struct Program {
    pub host: FakeHost,
    generation: Generation,
    /// Packets and bytes.
    counted: BTreeMap<&'static str, (u64, u64)>,
    /// Bytes that the program may have left out: see [`uncounted`].
    slack: u64,
}

/// Bytes that the program may leave out of its count: those behind the first buffer, if the headers say
/// that the packet ends in it. Nobody sends such frames in earnest, and every packet would pay for the
/// question.
fn uncounted(frame: &[u8]) -> u64 {
    /// A page, without the room at both ends.
    const FIRST_BUFFER: usize = 4_096 - 256 - 320;
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let rest = frame.len().saturating_sub(FIRST_BUFFER);
    if rest == 0 {
        return 0;
    }
    let end = if frame[12] == 8 { 14 + word(16) } else { 54 + word(18) };
    if end <= FIRST_BUFFER { rest as u64 } else { 0 }
}

impl Program {
    /// Loads the program for what `host` knows; sockets are the kernel's.
    pub fn new(host: FakeHost) -> Self {
        let config = Config {
            path: PathBuf::new(),
            interfaces: Vec::new(),
            pin: PathBuf::new(),
            vips: host.vips.iter().copied().collect(),
            directors: host
                .senders
                .iter()
                .map(|(ip, bits)| IpNet::new(*ip, *bits).unwrap())
                .collect(),
            backends: host.peers.keys().copied().collect(),
            table: None,
            metrics: None,
            addresses: None,
            second_chance: !host.no_second_chance,
            strangers: if host.passes_unknown_senders { Strangers::Pass } else { Strangers::Drop },
            vips_on_lo: false,
            mss: None,
            control: glb_host::control::RawControlConfig::default()
                .check("".as_ref(), "unused")
                .unwrap(),
        };
        let own: BTreeSet<IpAddr> = host.own.iter().copied().collect();
        let image = Image::new(&config, &own);
        let mut generation =
            Generation::load(&image, None).unwrap_or_else(|error| panic!("{error}"));
        for (address, peer) in host.peers.iter().filter(|(address, _)| !own.contains(address)) {
            generation.enter_peer(*address, *peer).unwrap();
        }
        // Each test run of a program that is attached nowhere waits for RCU, which takes
        // milliseconds.
        let idle = generation.program().unwrap();
        idle.attach("idle0", XdpMode::Driver).unwrap();
        Self { host, generation, counted: BTreeMap::new(), slack: 0 }
    }

    /// The verdict and the frame after one run.
    pub fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len() + 64];
        let program = self.generation.program().unwrap();
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("{error}: {}", hex(frame)));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Runs a frame through both; the pure decision's answer, if the program's is the same but for
    /// the reason (which [`Self::compare_counters`] is for).
    pub fn compare_frame(&mut self, what: impl Fn() -> String, frame: &[u8]) -> Outcome {
        let expected = run(&self.host, frame);
        let (verdict, got) = self.run(frame);
        let wanted = match expected.action {
            Action::Pass | Action::Take => XDP_PASS,
            Action::Drop | Action::Answer => XDP_DROP,
            Action::Send if self.sends_back(&expected.frame) => XDP_TX,
            Action::Send => XDP_REDIRECT,
        };
        assert!(
            verdict == wanted && got == expected.frame,
            "{}: the program and the decision differ\n  packet:   {}\n  expected: {wanted} {} \
             ({})\n  got:      {verdict} {}",
            what(),
            hex(frame),
            hex(&expected.frame),
            expected.reason.name(),
            hex(&got),
        );
        let (packets, bytes) = self.counted.entry(expected.reason.name()).or_default();
        *packets += 1;
        *bytes += frame.len() as u64;
        self.slack += uncounted(frame);
        expected
    }

    fn sends_back(&self, frame: &[u8]) -> bool {
        let tag_bytes = TAG * tags(&frame);
        let ip = &frame[14 + tag_bytes..];
        let hop = if ip[0] >> 4 == 4 {
            IpAddr::from(<[u8; 4]>::try_from(&ip[16..20]).unwrap())
        } else {
            IpAddr::from(<[u8; 16]>::try_from(&ip[24..40]).unwrap())
        };
        self.host.peers[&hop].interface == TEST_INTERFACE
    }

    /// Compares the program's counters with what was expected so far.
    pub fn compare_counters(&self, what: &str) {
        let report = counters::sum(self.generation.counters().unwrap()).unwrap();
        let mut counted: BTreeMap<_, _> = report
            .reasons
            .iter()
            .map(|(reason, count)| (*reason, (count.packets, count.bytes)))
            .collect();
        for (reason, (_, bytes)) in &mut counted {
            if let Some((_, expected)) = self.counted.get(reason)
                && (1..=self.slack).contains(&expected.saturating_sub(*bytes))
            {
                *bytes = *expected;
            }
        }
        assert_eq!(counted, self.counted, "{what}: packets and bytes (left: the program's)");
    }

    /// Bytes that were counted for one reason.
    pub fn bytes(&self, reason: glb_common::reason::RedirectReason) -> u64 {
        let report = counters::sum(self.generation.counters().unwrap()).unwrap();
        report.reasons.get(reason.name()).map_or(0, |count| count.bytes)
    }

    /// Both comparisons, for one frame.
    pub fn compare(&mut self, what: &str, frame: &[u8]) -> Outcome {
        let outcome = self.compare_frame(|| what.to_owned(), frame);
        self.compare_counters(what);
        outcome
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
