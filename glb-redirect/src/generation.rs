//! A generation of the backend's program in the kernel: load, fill, pin. The daemon attaches it.

use std::{io, net::IpAddr, path::Path};

use aya::{
    Ebpf, EbpfError, Pod,
    maps::{
        MapData, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramInfo, SchedClassifier, Xdp},
};
use glb_common::{
    abi::{IntoBytes as _, MapValue},
    map_value::array,
    second_chance::abi::{AddressEntry, PeerNextHop, REDIRECT_COUNTERS, RedirectCounters},
    trace::TraceSettings,
};
use glb_host::{
    bpf_loader::{LoadError, check_counter_layout},
    bpffs::PinFolder,
    generations,
    map_relocation::{self, DirectArray},
    mmap_array::{MappedArray, wait_for_readers},
    packet_trace::trace,
};
use ipnet::IpNet;

use crate::{address_table::AddressTable, program_data::ProgramData};

/// The XDP program for ordinary packets, by its name in the object file.
const PROGRAM: &str = "glb_redirect";
/// The XDP program that the first one tail-calls for all other packets.
const GENERAL: &str = "glb_redirect_general";
/// The tc program that lowers the MSS of SYN-ACKs.
const MSS_CLAMP: &str = "glb_mss_clamp";

/// Folder in the pin folder for maps that outlive generations.
pub(crate) const COUNTERS_FOLDER: &str = "counters";
/// Pin of the packet counters, by VIP and reason.
pub(crate) const COUNTERS: &str = "counters/packets";
/// Pin of the counter of SYN-ACKs whose MSS was lowered.
pub(crate) const CLAMPED: &str = "counters/clamped";

/// A generation in the kernel.
#[derive(Debug)]
pub struct Generation {
    ebpf: Ebpf,
    arrays: [DirectArray; 2],
    known: MappedArray<AddressEntry>,
    hash: AddressTable,
}

impl Generation {
    /// Loads the program with `data`. Its counters are those pinned in `pins`, or private ones. All
    /// peers are unresolved at first.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load(data: &ProgramData, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        Self::load_object(data, pins, glb_host::REDIRECT_OBJECT)
    }

    /// As [`Self::load`], with the program build that reports its decisions.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load_traced(data: &ProgramData, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        Self::load_object(data, pins, glb_host::REDIRECT_TRACE_OBJECT)
    }

    /// As [`Self::load`], with any build of the program: `object` is its ELF file.
    ///
    /// # Errors
    /// When the kernel refuses it, or `object` is not a build of this program.
    pub fn load_object(
        data: &ProgramData,
        pins: Option<&PinFolder>,
        object: &[u8],
    ) -> Result<Self, LoadError> {
        let hash = AddressTable::new(&data.known);
        let (displacements, elements) = (hash.displacements.len(), hash.elements.len());
        let settings = data.settings(hash.seed, displacements as u32 - 1, elements as u32 - 1);
        let nets = |v4: bool| {
            let of_family =
                data.director_nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == v4);
            of_family.count().max(1) as u32
        };
        let mut loader = glb_host::bpf_loader::new_loader();
        loader
            .override_global("CONFIG", settings.as_bytes(), true)
            .map_max_entries("DIRECTORS_V4", nets(true))
            .map_max_entries("DIRECTORS_V6", nets(false));
        if let Some(pins) = pins {
            pins.make(&pins.join(COUNTERS_FOLDER))?;
            for (name, path, size, entries) in [
                ("COUNTERS", COUNTERS, size_of::<RedirectCounters>(), REDIRECT_COUNTERS),
                ("CLAMPED", CLAMPED, size_of::<u64>(), 1),
            ] {
                let path = pins.join(path);
                check_counter_layout(&path, size, entries)?;
                loader.map_pin_path(name, path);
            }
        }
        loader.map_max_entries(trace::EVENTS, trace::EVENTS_BYTES);
        let arrays = [
            direct_array::<u32>("DISPLACEMENTS", array::DISPLACEMENTS, displacements)?,
            direct_array::<AddressEntry>("ADDRESSES", array::ADDRESSES, elements)?,
        ];
        let mut ebpf = loader.load(&map_relocation::relocate(object, &arrays)?)?;
        filled(&arrays[0], &hash.displacements)?;
        let known = filled(&arrays[1], &hash.elements)?;
        for net in &data.director_nets {
            let bits = u32::from(net.prefix_len());
            match net.network() {
                IpAddr::V4(net) => insert_prefix(&mut ebpf, "DIRECTORS_V4", bits, net.octets()),
                IpAddr::V6(net) => insert_prefix(&mut ebpf, "DIRECTORS_V6", bits, net.octets()),
            }?;
        }
        for name in [PROGRAM, GENERAL] {
            let program = xdp(&mut ebpf, name)?;
            glb_host::bpf_loader::with_signals_blocked(|| program.load())
                .map_err(EbpfError::ProgramError)?;
        }
        let general = xdp(&mut ebpf, GENERAL)?.fd().map_err(EbpfError::ProgramError)?;
        let general =
            general.try_clone().map_err(|error| LoadError::map("open", GENERAL, error))?;
        let slots = ebpf.map_mut("GENERAL").ok_or_else(|| LoadError::missing("GENERAL"))?;
        ProgramArray::try_from(slots)
            .and_then(|mut slots| slots.set(0, &general, 0))
            .map_err(|error| LoadError::map("fill", "GENERAL", error))?;
        Ok(Self { ebpf, arrays, known, hash })
    }

    /// Pins the program and the generation's own maps in `folder`.
    ///
    /// # Errors
    /// When the kernel refuses a pin.
    pub fn pin(&self, folder: &Path) -> Result<(), LoadError> {
        for array in &self.arrays {
            let (name, path) = (array.name(), folder.join(array.name().to_lowercase()));
            array.data().pin(path).map_err(|error| LoadError::map("pin", name, error))?;
        }
        for (name, map) in self.ebpf.maps() {
            // Counters are pinned elsewhere already. Sections of the object (".rodata") need no pin:
            // the program keeps them alive.
            if matches!(name, "COUNTERS" | "CLAMPED") || name.starts_with('.') {
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

    /// The XDP program to attach.
    ///
    /// # Errors
    /// If the object lacks it.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        xdp(&mut self.ebpf, PROGRAM)
    }

    /// The kernel's information about the two XDP programs: the one for ordinary packets, and the
    /// general one.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn infos(&mut self) -> Result<[(&'static str, ProgramInfo); 2], LoadError> {
        let mut info = |name| {
            let info = xdp(&mut self.ebpf, name)?.info().map_err(EbpfError::ProgramError)?;
            Ok::<_, LoadError>((name, info))
        };
        Ok([info(PROGRAM)?, info(GENERAL)?])
    }

    /// The tc program that lowers the MSS of SYN-ACKs; loads it on the first call.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn mss_clamp(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        let program =
            self.ebpf.program_mut(MSS_CLAMP).ok_or_else(|| LoadError::missing(MSS_CLAMP))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error| LoadError::from(EbpfError::ProgramError(error)))?;
        if program.fd().is_err() {
            glb_host::bpf_loader::with_signals_blocked(|| program.load())
                .map_err(EbpfError::ProgramError)?;
        }
        Ok(program)
    }

    /// Tells a traced program which decisions to report.
    ///
    /// # Errors
    /// When it is not a traced program.
    pub fn configure_trace(&mut self, settings: &TraceSettings) -> Result<(), LoadError> {
        trace::configure(&mut self.ebpf, settings)
    }

    /// The map of packet counters.
    ///
    /// # Errors
    /// If the object lacks it.
    pub fn counters(&self) -> Result<&aya::maps::Map, LoadError> {
        self.ebpf.map("COUNTERS").ok_or_else(|| LoadError::missing("COUNTERS"))
    }

    /// Writes the next hop of a fellow backend. Returns whether it differs from the one before.
    ///
    /// # Errors
    /// When the backend is not a peer of this generation.
    pub fn set_next_hop(&mut self, address: IpAddr, way: PeerNextHop) -> Result<bool, LoadError> {
        let odd = |error| LoadError::map("fill", "ADDRESSES", error);
        let unknown = || odd(io::Error::new(io::ErrorKind::NotFound, address.to_string()));
        let place = *self.hash.places.get(&address).ok_or_else(unknown)?;
        let element = self.hash.elements.get_mut(place).ok_or_else(unknown)?;
        if *element.next_hop() == way {
            return Ok(false);
        }
        let other = usize::from(element.roles & AddressEntry::SECOND_NEXT_HOP == 0);
        if element.next_hops[1 - other].interface != 0 {
            // The program may still be reading the entry that was in force before.
            wait_for_readers();
        }
        element.next_hops[other] = way;
        self.known.update(place, element).map_err(odd)?;
        element.roles ^= AddressEntry::SECOND_NEXT_HOP;
        self.known.update(place, element).map_err(odd)?;
        Ok(true)
    }
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, LoadError> {
    ebpf.program_mut(name)
        .ok_or_else(|| LoadError::missing(name))?
        .try_into()
        .map_err(|error| LoadError::from(EbpfError::ProgramError(error)))
}

fn direct_array<T: MapValue>(
    name: &'static str,
    number: u8,
    entries: usize,
) -> Result<DirectArray, LoadError> {
    DirectArray::create(name, number, entries * MappedArray::<T>::STRIDE)
}

/// Maps the array into this process's memory and fills it with `elements`.
fn filled<T: MapValue>(array: &DirectArray, elements: &[T]) -> Result<MappedArray<T>, LoadError> {
    let mapped = MappedArray::new(array.data().fd(), elements.len());
    let mapped = mapped.map_err(|error| LoadError::map("map", array.name(), error))?;
    mapped.fill(elements).map_err(|error| LoadError::map("fill", array.name(), error))?;
    Ok(mapped)
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
