//! `glb-redirect replay`: runs captured frames through the program without attaching it. The program
//! looks connections up in the sockets that this network namespace has now. Its private counters tell
//! the reason of each decision.

use aya::maps::PerCpuArray;
use glb_common::{
    reason::{Action, MAX_REDIRECT_REASONS, RedirectReason as Reason},
    second_chance::abi::PeerNextHop,
};
use glb_host::{
    bpf_loader::LoadError,
    next_hop::NextHop,
    packet_trace::{
        Decision, Egress, Headers,
        filter::ReasonName,
        replay::{FrameStage, ReplayError, ReplayNextHops, ReplayOutcome, ReplayProgram, test_run},
    },
};

use crate::{generation::Generation, program_data::ProgramData};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

type Counts = [u64; MAX_REDIRECT_REASONS];

/// A generation that runs frame by frame.
#[derive(Debug)]
pub struct Replay {
    generation: Generation,
    found: ReplayNextHops,
    /// The counters after the last frame.
    counts: Counts,
}

impl Replay {
    /// Loads the program with `data` and the next hops that were found for its peers.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn load(data: &ProgramData, found: ReplayNextHops) -> Result<Self, LoadError> {
        let mut generation = Generation::load(data, None)?;
        for (address, way) in &found.next_hops {
            if let Ok(NextHop { mac, own_mac, interface, .. }) = way {
                generation.set_next_hop(*address, PeerNextHop::new(*mac, *own_mac, *interface))?;
            }
        }
        Ok(Self { generation, found, counts: [0; MAX_REDIRECT_REASONS] })
    }

    /// The reason whose counter has grown since the last call.
    fn counted(&mut self) -> Result<Reason, ReplayError> {
        let odd = |error: &dyn std::fmt::Display| ReplayError::Inconsistent(error.to_string());
        let map = self.generation.counters().map_err(|error| odd(&error))?;
        let counters: PerCpuArray<_, [[u64; 2]; MAX_REDIRECT_REASONS]> =
            PerCpuArray::try_from(map).map_err(|error| odd(&error))?;
        let cpus = counters.get(&0, 0).map_err(|error| odd(&error))?;
        let now: Counts = std::array::from_fn(|reason| cpus.iter().map(|cpu| cpu[reason][0]).sum());
        let before = std::mem::replace(&mut self.counts, now);
        let grown = now.iter().zip(before).position(|(now, before)| *now != before);
        grown
            .map(|reason| Reason::from_number(reason as u8))
            .ok_or_else(|| ReplayError::Inconsistent("the program did not count the packet".into()))
    }

    /// Adds to `decision` how a forwarded frame leaves, and which hops are left.
    fn describe_forward(&self, verdict: u32, frame: &[u8], decision: &mut Decision) {
        let Some(tunnel) = Headers::of(frame).tunnel else { return };
        let interface = match (verdict, self.found.next_hops.get(&tunnel.destination)) {
            (XDP_REDIRECT, Some(Ok(way))) => self.found.name_of(way.interface),
            _ => self.found.interface.clone(),
        };
        let synthetic = self.found.synthetic.contains(&tunnel.destination);
        decision.egress = Some(Egress::of(Some(interface), frame, synthetic));
        decision.hops = hops_left(tunnel);
    }
}

/// The backend that a packet is addressed to, and the hops after it.
#[must_use]
pub fn hops_left(tunnel: glb_host::packet_trace::Tunnel) -> Vec<std::net::IpAddr> {
    let left = tunnel.listed.into_iter().skip(tunnel.next_hop.into());
    std::iter::once(tunnel.destination).chain(left).collect()
}

impl ReplayProgram for Replay {
    fn run(&mut self, frame: &[u8]) -> Result<ReplayOutcome, ReplayError> {
        let odd = |error: LoadError| ReplayError::Inconsistent(error.to_string());
        let program = self.generation.program().map_err(odd)?;
        let (verdict, out) = test_run(program, frame)?;
        let reason = self.counted()?;
        let mut decision = Decision {
            reason: Some(reason.name()),
            verdict: verdict_name(verdict, reason),
            ..Decision::default()
        };
        decision.describe(Headers::of(frame));
        let to = match verdict {
            XDP_PASS => Some(FrameStage::Kernel),
            XDP_TX | XDP_REDIRECT => Some(FrameStage::Sent),
            _ => None,
        };
        if to == Some(FrameStage::Sent) {
            self.describe_forward(verdict, &out, &mut decision);
        }
        decision.note = self.note(reason, &decision);
        Ok(ReplayOutcome { decision, to, frame: out })
    }
}

impl Replay {
    /// Details that the reason alone does not tell.
    fn note(&self, reason: Reason, decision: &Decision) -> Option<String> {
        let tunnel = decision.tunnel.as_ref()?;
        let hop = || tunnel.listed.get(usize::from(tunnel.next_hop));
        match reason {
            Reason::UnknownPeer => Some(format!("{} is not one of `backends`", hop()?)),
            Reason::PeerUnresolved => {
                let hop = hop()?;
                let why = self.found.next_hops.get(hop).and_then(|way| way.as_ref().err());
                Some(why.map_or_else(|| hop.to_string(), |why| format!("{hop}: {why}")))
            }
            Reason::UnknownSender | Reason::UnknownSenderPassed => {
                Some(format!("{} is neither in `directors` nor in `backends`", tunnel.source))
            }
            Reason::WrongDestination => {
                Some(format!("{} is not an address of this host", tunnel.destination))
            }
            Reason::NotVip => {
                Some(format!("{} is not in `vips`", decision.headers.as_ref()?.destination))
            }
            _ => None,
        }
    }
}

/// Every reason with the name of its verdict, ordered by number.
pub static REASONS: [ReasonName; Reason::ALL.len()] = {
    let mut names = [("", ""); Reason::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        let reason = Reason::ALL[index];
        let verdict = match reason.action() {
            Action::Pass => "passed",
            Action::Take => "taken",
            Action::Send => "sent",
            Action::Drop | Action::Answer => "dropped",
        };
        names[index] = (reason.name(), verdict);
        index += 1;
    }
    names
};

/// The name of a verdict.
#[must_use]
pub fn verdict_name(verdict: u32, reason: Reason) -> &'static str {
    match verdict {
        XDP_PASS if reason.action() == Action::Take => "taken",
        XDP_PASS => "passed",
        XDP_TX | XDP_REDIRECT => "sent",
        _ => "dropped",
    }
}
