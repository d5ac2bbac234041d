//! A generation of the backend's program: loaded, filled and pinned; attached by the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{
        HashMap as BpfHashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SchedClassifier, Xdp},
};
use glb_common::{
    layout::Plain as _,
    second_chance::layout::{Peer, RedirectCounters},
    trace::Settings,
};
use glb_host::{
    bpffs::PinFolder,
    explain::trace,
    generations,
    load::{LoadError, check_counters},
};
use ipnet::IpNet;

use crate::image::Image;

/// The program's name in the object.
const PROGRAM: &str = "glb_redirect";
/// The name of the tc program.
const CLAMP: &str = "glb_mss_clamp";

/// Folder of what outlives generations, below the pin folder.
pub(crate) const COUNTERS_FOLDER: &str = "counters";
/// The counters by reason.
pub(crate) const COUNTERS: &str = "counters/reasons";

/// A generation in the kernel.
#[derive(Debug)]
pub struct Generation {
    ebpf: Ebpf,
    peers: BTreeMap<IpAddr, Peer>,
}

impl Generation {
    /// Loads `image`, with the counters that are pinned below `pins`, or with counters of its own.
    /// All peers are unresolved at first.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn load(image: &Image, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        Self::load_object(image, pins, glb_host::REDIRECT_OBJECT)
    }

    /// As [`Self::load`], with the program that shows its decisions.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn load_traced(image: &Image, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        Self::load_object(image, pins, glb_host::REDIRECT_TRACE_OBJECT)
    }

    fn load_object(
        image: &Image,
        pins: Option<&PinFolder>,
        object: &'static [u8],
    ) -> Result<Self, LoadError> {
        let count = |length: usize| length.max(1) as u32;
        let of = |addresses: &BTreeSet<IpAddr>, v4: bool| {
            count(addresses.iter().filter(|address| address.is_ipv4() == v4).count())
        };
        let nets = |v4: bool| {
            count(
                image.many_directors.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4).count(),
            )
        };
        let mut loader = EbpfLoader::new();
        loader
            .override_global("SETTINGS", image.settings.as_bytes(), true)
            .map_max_entries("PEERS_V4", of(&image.peers, true))
            .map_max_entries("PEERS_V6", of(&image.peers, false))
            .map_max_entries("VIPS_V4", of(&image.many_vips, true))
            .map_max_entries("VIPS_V6", of(&image.many_vips, false))
            .map_max_entries("DIRECTORS_V4", nets(true))
            .map_max_entries("DIRECTORS_V6", nets(false));
        if let Some(pins) = pins {
            let counters = pins.join(COUNTERS);
            pins.make(&pins.join(COUNTERS_FOLDER))?;
            check_counters(&counters, size_of::<RedirectCounters>(), 1)?;
            loader.map_pin_path("COUNTERS", counters);
        }
        loader.map_max_entries(trace::EVENTS, trace::EVENTS_BYTES);
        let ebpf = loader.load(object)?;
        let mut generation = Self { ebpf, peers: BTreeMap::new() };
        let program = generation.program()?;
        glb_host::load::undisturbed(|| program.load()).map_err(EbpfError::ProgramError)?;
        for address in &image.peers {
            generation.enter_peer(*address, Peer::default())?;
        }
        for vip in &image.many_vips {
            match vip {
                IpAddr::V4(vip) => insert(&mut generation.ebpf, "VIPS_V4", &vip.octets(), &[1u8]),
                IpAddr::V6(vip) => insert(&mut generation.ebpf, "VIPS_V6", &vip.octets(), &[1u8]),
            }?;
        }
        for net in &image.many_directors {
            let bits = u32::from(net.prefix_len());
            match net.network() {
                IpAddr::V4(net) => {
                    insert_prefix(&mut generation.ebpf, "DIRECTORS_V4", bits, net.octets())
                }
                IpAddr::V6(net) => {
                    insert_prefix(&mut generation.ebpf, "DIRECTORS_V6", bits, net.octets())
                }
            }?;
        }
        Ok(generation)
    }

    /// Pins the program and every map that is the generation's own in `folder`.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn pin(&self, folder: &Path) -> Result<(), LoadError> {
        for (name, map) in self.ebpf.maps() {
            // Those that outlive generations are pinned elsewhere already. Sections of the object
            // (".rodata") are no names for files, and the program keeps them alive.
            if name == "COUNTERS" || name.starts_with('.') {
                continue;
            }
            map.pin(folder.join(name.to_lowercase()))
                .map_err(|error| LoadError::map("pin", name, error))?;
        }
        let program = self.ebpf.program(PROGRAM).ok_or_else(|| LoadError::missing(PROGRAM))?;
        let fd = program.fd().map_err(|error| LoadError::map("open", PROGRAM, error))?;
        glb_host::pin(fd, &generations::program_pin(folder))
            .map_err(|error| LoadError::map("pin", PROGRAM, error))
    }

    /// The loaded program.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        self.ebpf
            .program_mut(PROGRAM)
            .ok_or_else(|| LoadError::missing(PROGRAM))?
            .try_into()
            .map_err(|error| LoadError::from(EbpfError::ProgramError(error)))
    }

    /// The tc program that lowers the MSS of SYN-ACKs, loaded.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn clamp(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        let program = self.ebpf.program_mut(CLAMP).ok_or_else(|| LoadError::missing(CLAMP))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error| LoadError::from(EbpfError::ProgramError(error)))?;
        if program.fd().is_err() {
            glb_host::load::undisturbed(|| program.load()).map_err(EbpfError::ProgramError)?;
        }
        Ok(program)
    }

    /// Tells a program that shows its decisions which are wanted.
    ///
    /// # Errors
    /// When it is not such a program.
    pub fn show(&mut self, settings: &Settings) -> Result<(), LoadError> {
        trace::configure(&mut self.ebpf, settings)
    }

    /// The map of counters.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn counters(&self) -> Result<&aya::maps::Map, LoadError> {
        self.ebpf.map("COUNTERS").ok_or_else(|| LoadError::missing("COUNTERS"))
    }

    /// Enters the way to a fellow backend; says whether it is another one than before.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn enter_peer(&mut self, address: IpAddr, peer: Peer) -> Result<bool, LoadError> {
        if self.peers.get(&address) == Some(&peer) {
            return Ok(false);
        }
        let mut value = [0u8; size_of::<Peer>()];
        value.copy_from_slice(peer.as_bytes());
        match address {
            IpAddr::V4(address) => insert(&mut self.ebpf, "PEERS_V4", &address.octets(), &value),
            IpAddr::V6(address) => insert(&mut self.ebpf, "PEERS_V6", &address.octets(), &value),
        }?;
        self.peers.insert(address, peer);
        Ok(true)
    }
}

fn insert<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &str,
    key: &K,
    value: &V,
) -> Result<(), LoadError> {
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::missing(name))?;
    BpfHashMap::<&mut MapData, K, V>::try_from(map)
        .and_then(|mut map| map.insert(key, value, 0))
        .map_err(|error| LoadError::map("fill", name, error))
}

fn insert_prefix<K: Pod>(
    ebpf: &mut Ebpf,
    name: &str,
    bits: u32,
    network: K,
) -> Result<(), LoadError> {
    let map = ebpf.map_mut(name).ok_or_else(|| LoadError::missing(name))?;
    LpmTrie::<&mut MapData, K, u8>::try_from(map)
        .and_then(|mut map| map.insert(&Key::new(bits, network), 1u8, 0))
        .map_err(|error| LoadError::map("fill", name, error))
}
