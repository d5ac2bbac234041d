//! Runs a BPF program millions of times on a fresh packet each time, and measures this thread's CPU
//! time.
//!
//! `BPF_PROG_TEST_RUN` does not reset the packet between repeats. So the program `rearm` runs first,
//! restores the packet, and tail-calls the program under test. Its own cost is measured with an empty
//! program behind it and subtracted.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use nix::time::{ClockId, clock_gettime};

/// The verdict that sends a packet back on the same interface.
pub(crate) const XDP_TX: u32 = 3;
/// The verdict that sends a packet on another interface.
pub(crate) const XDP_REDIRECT: u32 = 4;
/// The verdict that gives a packet to the kernel.
pub(crate) const XDP_PASS: u32 = 2;

/// Ethernet and outer headers of a tunnelled packet with one listed hop.
pub(crate) const OUTER_LEN: usize = 54;

/// A kind of packet and its number of flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// The name in the output.
    pub(crate) name: &'static str,
    /// Bytes of the frame.
    pub(crate) length: u32,
    /// Whether it is IPv6; else IPv4.
    pub(crate) is_v6: bool,
    /// The number of flows, a power of two.
    pub(crate) flows: u64,
}

/// The programs that run around the program under test, loaded for one workload.
pub(crate) struct Harness {
    ebpf: Ebpf,
    /// The variants of `rearm`, each with the program array that it tail-calls from: one for programs
    /// that take frames in several buffers, and perhaps one for others.
    rearm: &'static [(&'static str, &'static str)],
    packet: Vec<u8>,
}

impl Harness {
    /// Loads the programs for `packet`. The director's floor writes the words `outer`.
    pub(crate) fn new(
        workload: Workload,
        packet: Vec<u8>,
        outer: [u64; 7],
    ) -> anyhow::Result<Self> {
        ensure!(packet.len() == workload.length as usize, "the packet has another length");
        let mask = workload.flows - 1;
        let mut ebpf = EbpfLoader::new()
            .override_global("LENGTH", &u64::from(workload.length), true)
            .override_global("IS_V6", &u32::from(workload.is_v6), true)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("OUTER_WORDS", &outer, true)
            .load(glb_host::BENCH_OBJECT)
            .context("cannot load the benchmark's programs: run as root")?;
        for name in ["rearm", "rearm_linear", "nothing", "floor", "chain"] {
            xdp(&mut ebpf, name)?.load()?;
        }
        let rearm = &[("rearm", "UNDER_TEST"), ("rearm_linear", "LINEAR_UNDER_TEST")];
        Ok(Self { ebpf, rearm, packet })
    }

    /// Loads the programs for a tunnelled packet, whose outer headers are restored each time.
    pub(crate) fn tunnel(workload: Workload, packet: Vec<u8>) -> anyhow::Result<Self> {
        let mut harness = Self::new(workload, packet, [0; 7])?;
        for name in ["rearm_tunnel", "floor_strip", "look_up"] {
            xdp(&mut harness.ebpf, name)?.load()?;
        }
        let outer: [u8; OUTER_LEN] =
            harness.packet.first_chunk().copied().context("the packet is too short")?;
        let map = harness.ebpf.map_mut("OUTER").context("no map OUTER")?;
        Array::<_, [u8; OUTER_LEN]>::try_from(map)?.set(0, outer, 0)?;
        harness.rearm = &[("rearm_tunnel", "UNDER_TEST")];
        Ok(harness)
    }

    /// Sets the number of steps that the program `chain` takes.
    pub(crate) fn set_steps(&mut self, steps: u32) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("STEPS").context("no map STEPS")?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, steps, 0)?)
    }

    /// One of the harness's own programs, to be measured as a program under test.
    pub(crate) fn own(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(xdp(&mut self.ebpf, name)?.fd()?.try_clone()?)
    }

    /// Measures the CPU time of this thread for one run of `rearm` and `program`, averaged over
    /// `repeat` runs. Fails if the program returns another verdict than `verdict`.
    pub(crate) fn time(
        &mut self,
        program: &ProgramFd,
        verdict: u32,
        repeat: u32,
    ) -> anyhow::Result<f64> {
        let rearm = self.enter(program)?;
        let rearm = xdp(&mut self.ebpf, rearm)?;
        let before = cpu_time()?;
        let mut out = vec![0; self.packet.len() + 512];
        let result = rearm.test_run(TestRunOptions {
            data_in: Some(&self.packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        })?;
        let spent = cpu_time()? - before;
        ensure!(
            result.return_value == verdict,
            "the program under test returned verdict {} and not {verdict}",
            result.return_value
        );
        Ok(spent.as_nanos() as f64 / f64::from(repeat))
    }
}

impl Harness {
    /// Enters `program` into the first program array that accepts it, because an array holds programs
    /// of one kind only. Returns the name of the variant of `rearm` that calls from it.
    fn enter(&mut self, program: &ProgramFd) -> anyhow::Result<&'static str> {
        let mut refused = None;
        for (rearm, under_test) in self.rearm {
            let map =
                self.ebpf.map_mut(under_test).with_context(|| format!("no map {under_test}"))?;
            match ProgramArray::try_from(map)?.set(0, program, 0) {
                Ok(()) => return Ok(rearm),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.context("no program array")?.into())
    }
}

/// Measures all programs in `rounds` rounds, and returns a list of times for each. Each round runs every
/// program once, in rotating order. A first round that does not count warms the caches and the clock.
pub(crate) fn rounds(
    rounds: usize,
    programs: usize,
    mut time: impl FnMut(usize) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(rounds); programs];
    for round in 0..rounds + 1 {
        for turn in 0..programs {
            let index = (turn + round) % programs;
            let spent = time(index)?;
            if round > 0 {
                times[index].push(spent);
            }
        }
    }
    Ok(times)
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn cpu_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// The cost of a program in nanoseconds per packet, without `rearm`.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Net {
    /// The 10th percentile of the program's times minus that of the empty program's times. Of the two
    /// estimates that `bench method` compares, this one is nearer to a known cost: disturbance only ever
    /// adds time, so both percentiles are close to the times of an idle machine.
    pub(crate) p10_ns: f64,
    /// The median of the differences within a round.
    pub(crate) median_ns: f64,
}

impl Net {
    /// Computes the cost from the times of a program and of the empty program, round by round.
    pub(crate) fn of(program: &[f64], nothing: &[f64]) -> Self {
        let mut differences: Vec<f64> = program.iter().zip(nothing).map(|(p, n)| p - n).collect();
        Self {
            p10_ns: quantile(&mut program.to_vec(), 0.1) - quantile(&mut nothing.to_vec(), 0.1),
            median_ns: quantile(&mut differences, 0.5),
        }
    }

    /// The cost as a multiple of the cost of `floor`.
    pub(crate) fn ratio(&self, floor: &Self) -> Self {
        Self { p10_ns: self.p10_ns / floor.p10_ns, median_ns: self.median_ns / floor.median_ns }
    }
}

/// The quantile: the value that `share` of the values are below.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
