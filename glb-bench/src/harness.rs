//! Running a BPF program millions of times on a packet that is made anew each time, and counting
//! this thread's CPU time.
//!
//! `BPF_PROG_TEST_RUN` does not reset the packet between repeats, so the program `rearm` goes first
//! and undoes what the last run did. What it costs is measured with an empty program behind it and
//! taken off.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use nix::time::{ClockId, clock_gettime};

/// The verdict that sends a packet back.
pub(crate) const XDP_TX: u32 = 3;
/// The verdict that sends it by another interface.
pub(crate) const XDP_REDIRECT: u32 = 4;
/// The verdict that leaves it to the kernel.
pub(crate) const XDP_PASS: u32 = 2;

/// Ethernet and outer headers of a tunnelled packet with one listed hop.
pub(crate) const OUTER_LEN: usize = 54;

/// A kind of packet and the number of flows it comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// What to call it.
    pub(crate) name: &'static str,
    /// Bytes of the frame.
    pub(crate) length: u32,
    /// IPv6 rather than IPv4.
    pub(crate) is_v6: bool,
    /// A power of two.
    pub(crate) flows: u64,
}

/// The surroundings of the programs under test, loaded for one workload.
pub(crate) struct Harness {
    ebpf: Ebpf,
    /// Programs that can go first, each with the map that it calls from: one for programs that take
    /// frames in several buffers, and perhaps one for others.
    rearm: &'static [(&'static str, &'static str)],
    packet: Vec<u8>,
}

impl Harness {
    /// The surroundings for `packet`; `outer` is what the director's floor writes.
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
            .context("cannot load the benchmark's programs (are you root?)")?;
        for name in ["rearm", "rearm_linear", "nothing", "floor", "chain"] {
            xdp(&mut ebpf, name)?.load()?;
        }
        let rearm = &[("rearm", "UNDER_TEST"), ("rearm_linear", "LINEAR_UNDER_TEST")];
        Ok(Self { ebpf, rearm, packet })
    }

    /// The same for tunnelled packets, whose outer headers are made anew each time.
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

    /// Steps that the program `chain` takes from now on.
    pub(crate) fn set_steps(&mut self, steps: u32) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("STEPS").context("no map STEPS")?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, steps, 0)?)
    }

    /// One of the harness's own programs, to be measured like any other.
    pub(crate) fn own(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(xdp(&mut self.ebpf, name)?.fd()?.try_clone()?)
    }

    /// CPU time of this thread for one run of `rearm` and `program`, averaged over `repeat` runs.
    /// `verdict` is the one that the program must come to.
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
            "the program under test came to verdict {}, not {verdict}",
            result.return_value
        );
        Ok(spent.as_nanos() as f64 / f64::from(repeat))
    }
}

impl Harness {
    /// Makes `program` the one that is called, by the surroundings that suit it: a program array
    /// takes programs of one kind only.
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
        Err(refused.context("nothing to call a program from")?.into())
    }
}

/// Times of all programs, one list for each, from `rounds` rounds in each of which every one runs once,
/// in rotating order. One round more goes before: it warms caches and the clock.
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

/// What a program costs beyond its surroundings, in nanoseconds for each packet.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Net {
    /// 10th percentile of the program's times, less that of the surroundings' times. Of what
    /// `bench method` compares it is the one that finds a known cost best: what disturbs a machine
    /// only ever adds, so both percentiles are near to with_signals_blocked times.
    pub(crate) p10_ns: f64,
    /// Median of the differences within a round.
    pub(crate) median_ns: f64,
    /// 10th percentile of the differences within a round. Too low, and for a cheap program more in
    /// proportion than for a dear one: it prefers rounds in which the surroundings were disturbed.
    pub(crate) paired_p10_ns: f64,
}

impl Net {
    /// Of the times of a program and of the surroundings alone, round by round.
    pub(crate) fn of(program: &[f64], nothing: &[f64]) -> Self {
        let mut differences: Vec<f64> = program.iter().zip(nothing).map(|(p, n)| p - n).collect();
        Self {
            p10_ns: quantile(&mut program.to_vec(), 0.1) - quantile(&mut nothing.to_vec(), 0.1),
            median_ns: quantile(&mut differences, 0.5),
            paired_p10_ns: quantile(&mut differences, 0.1),
        }
    }

    /// As multiples of what `floor` costs.
    pub(crate) fn ratio(&self, floor: &Self) -> Self {
        Self {
            p10_ns: self.p10_ns / floor.p10_ns,
            median_ns: self.median_ns / floor.median_ns,
            paired_p10_ns: self.paired_p10_ns / floor.paired_p10_ns,
        }
    }
}

/// The value below which `share` of the sorted values lie.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
