//! The loaded program, compared with the reference decision.

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
    config::{Config, UnknownSenders},
    counters,
    generation::Generation,
    program_data::ProgramData,
};
use ipnet::IpNet;

use crate::support::{FakeHost, Outcome, run};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// The ingress interface of a test run's packets: lo.
pub use crate::support::TEST_INTERFACE;

/// The program with the configuration of a host.
pub struct Program {
    pub host: FakeHost,
    generation: Generation,
    /// Expected packets and bytes by reason.
    counted: BTreeMap<&'static str, (u64, u64)>,
    /// Bytes that the program may have left out: see [`bytes_not_counted`].
    slack: u64,
}

/// Bytes that the program may leave out of its count: those behind the first buffer if the headers say
/// that the packet ends in it. Real frames are not like this, and a check would cost every packet.
fn bytes_not_counted(frame: &[u8]) -> u64 {
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
    /// Loads the program with the configuration of `host`. It looks up real sockets.
    pub fn new(host: FakeHost) -> Self {
        let config = Config {
            path: PathBuf::new(),
            interfaces: Vec::new(),
            bpffs_dir: PathBuf::new(),
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
            unknown_senders: if host.passes_unknown_senders {
                UnknownSenders::Pass
            } else {
                UnknownSenders::Drop
            },
            vips_on_lo: false,
            mss: None,
            control: glb_host::control::RawControlConfig::default()
                .check("".as_ref(), "unused")
                .unwrap(),
        };
        let own: BTreeSet<IpAddr> = host.own.iter().copied().collect();
        let image = ProgramData::new(&config, &own);
        let mut generation =
            Generation::load(&image, None).unwrap_or_else(|error| panic!("{error}"));
        for (address, peer) in host.peers.iter().filter(|(address, _)| !own.contains(address)) {
            generation.set_next_hop(*address, *peer).unwrap();
        }
        // A test run of a program that is not attached waits milliseconds for RCU.
        let idle = generation.program().unwrap();
        idle.attach("idle0", XdpMode::Driver).unwrap();
        Self { host, generation, counted: BTreeMap::new(), slack: 0 }
    }

    /// Runs the program; returns the verdict and the frame afterwards.
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

    /// Runs a frame through the program and the reference decision, and compares verdict and bytes.
    /// [`Self::compare_counters`] compares the reasons.
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
        self.slack += bytes_not_counted(frame);
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

    /// Compares the program's counters with the reference decisions since the start.
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

    /// The bytes counted for one reason.
    pub fn bytes(&self, reason: glb_common::reason::RedirectReason) -> u64 {
        let report = counters::sum(self.generation.counters().unwrap()).unwrap();
        report.reasons.get(reason.name()).map_or(0, |count| count.bytes)
    }

    /// Runs both comparisons for one frame.
    pub fn compare(&mut self, what: &str, frame: &[u8]) -> Outcome {
        let outcome = self.compare_frame(|| what.to_owned(), frame);
        self.compare_counters(what);
        outcome
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
