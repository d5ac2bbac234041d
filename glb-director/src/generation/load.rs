//! Loads a generation's program and maps into the kernel. Attaches nothing.

use std::{io, path::Path};

use aya::{
    Ebpf, EbpfError,
    maps::{
        Map, MapData, ProgramArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramError, ProgramInfo, Xdp},
};
use glb_common::{
    abi::{
        ArrayBounds, BACKEND_SLOTS, Backend, BindSlot, Config, Counter, IntoBytes as _, MapValue,
        NO_HOP, PrefixEntry, ReasonCounters, TABLE_SLOTS, TableRows,
    },
    map_value::array as number,
    trace::TraceSettings,
};
use glb_host::{
    bpf_loader::{LoadError, check_counter_layout, new_loader},
    bpffs::PinFolder,
    failpoints, generations,
    map_relocation::{self, DirectArray},
    mmap_array::MappedArray,
    packet_trace::trace,
};
use ipnet::{Ipv4Net, Ipv6Net};

use super::next_hops::NextHopMaps;
use crate::{compiled_tables::CompiledTables, counters};

/// The program's name in the object.
pub(super) const PROGRAM: &str = "glb_director";

/// The parts of the general program, in the order of the program array that it calls them from.
const PARTS: [&str; 3] = ["general", "forward_packet", "answer"];

/// Names of the ordinary maps that hold a generation's tables.
const TABLE_MAPS: [&str; 5] =
    ["PREFIXES_V4", "PREFIXES_V6", "SEGMENTS", "TABLES", "IPV6_ENDPOINTS"];

/// The arrays that the program addresses without a look-up: name, number, bytes of an element.
pub(super) const DIRECT_ARRAYS: [(&str, u8, usize); 4] = [
    ("DISPLACEMENTS", number::DISPLACEMENTS, MappedArray::<u32>::STRIDE),
    ("BINDS", number::BINDS, MappedArray::<BindSlot>::STRIDE),
    ("ROWS", number::ROWS, MappedArray::<TableRows>::STRIDE),
    ("BACKENDS", number::BACKENDS, MappedArray::<Backend>::STRIDE),
];

/// Everything that is fixed when a program is loaded: its constants, and the capacity of its maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSpec {
    config: Config,
    /// Whether it is the build of the program that reports its decisions.
    traces: bool,
    /// Entries of each map, by name.
    capacity: Vec<(&'static str, u32)>,
}

impl ProgramSpec {
    /// The specification that `image` needs, without spare capacity.
    #[must_use]
    pub fn of(image: &CompiledTables) -> Self {
        let lengths = [
            image.prefixes_v4.len(),
            image.prefixes_v6.len(),
            image.segments.len(),
            image.tables.len(),
            // Each backend has two entries: see `TableInfo::bank`.
            2 * image.ipv6_ways.len(),
            image.displacements.len(),
            image.binds.len(),
            image.rows.len(),
            2 * image.backends.len(),
        ];
        let lengths = lengths.map(|length| length.max(1) as u32);
        let names = TABLE_MAPS.into_iter().chain(DIRECT_ARRAYS.map(|(name, ..)| name));
        Self { config: image.config, traces: false, capacity: names.zip(lengths).collect() }
    }

    /// Names of the ordinary maps that hold a generation's tables.
    pub(super) fn table_maps() -> &'static [&'static str] {
        &TABLE_MAPS
    }

    /// The bounds that the program checks indices of direct arrays against.
    pub(super) fn array_bounds(&self) -> ArrayBounds {
        // `NO_HOP` is never a backend's index.
        let backends = self.capacity("BACKENDS").min(2 * usize::from(NO_HOP));
        ArrayBounds { rows: self.capacity("ROWS") as u32, backends: backends as u32 }
    }

    /// The same specification, for the build of the program that reports its decisions.
    #[must_use]
    pub fn with_trace(mut self) -> Self {
        self.traces = true;
        self
    }

    /// The same specification with spare capacity in small maps, so that a preloaded program fits more
    /// changes of the tables.
    #[must_use]
    pub fn with_spare_capacity(mut self) -> Self {
        for (name, capacity) in &mut self.capacity {
            if !matches!(*name, "TABLES" | "ROWS") {
                *capacity = (*capacity + 16).next_multiple_of(64);
            }
        }
        self
    }

    /// Whether tables that need this specification fit a program loaded with `other`.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        self.config == other.config
            && self.traces == other.traces
            && self.capacity.iter().zip(&other.capacity).all(|(need, has)| need.1 <= has.1)
    }

    fn capacity(&self, map: &str) -> usize {
        let found = self.capacity.iter().find(|(name, _)| *name == map);
        found.map_or(1, |(_, capacity)| *capacity as usize)
    }
}

/// A verified program in the kernel, with empty maps. It is not pinned and ends with this process.
#[derive(Debug)]
pub struct LoadedProgram {
    spec: ProgramSpec,
    ebpf: Ebpf,
    arrays: Vec<DirectArray>,
}

/// A generation in the kernel.
#[derive(Debug)]
pub struct Generation {
    /// Its number; later generations have greater ones.
    pub number: u64,
    /// The contents of its maps.
    pub image: CompiledTables,
    pub(super) objects: KernelObjects,
    pub(super) next_hops: NextHopMaps,
}

/// The kernel objects of a generation that this process has open.
#[derive(Debug)]
pub(super) enum KernelObjects {
    /// This process loaded the program and all maps.
    Loaded(Box<Ebpf>, Vec<DirectArray>),
    /// A former process pinned the program; the program holds its maps.
    Adopted(Box<Xdp>),
}

impl LoadedProgram {
    /// Loads a program. With `pins`, it uses the counters pinned there; otherwise counters of its own.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load(spec: ProgramSpec, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        let object =
            if spec.traces { glb_host::DIRECTOR_TRACE_OBJECT } else { glb_host::DIRECTOR_OBJECT };
        Self::load_object(spec, pins, object)
    }

    fn load_object(
        spec: ProgramSpec,
        pins: Option<&PinFolder>,
        object: &[u8],
    ) -> Result<Self, LoadError> {
        let mut loader = new_loader();
        if let Some(pins) = pins {
            pins.make(&pins.join(counters::pins::FOLDER))?;
            let (tables, backends) =
                (pins.join(counters::pins::TABLES), pins.join(counters::pins::BACKENDS));
            check_counter_layout(&tables, size_of::<ReasonCounters>(), TABLE_SLOTS)?;
            check_counter_layout(&backends, size_of::<Counter>(), BACKEND_SLOTS)?;
            loader
                .map_pin_path("TABLE_COUNTERS", tables)
                .map_pin_path("BACKEND_COUNTERS", backends);
        }
        for name in TABLE_MAPS {
            loader.map_max_entries(name, spec.capacity(name) as u32);
        }
        if spec.traces {
            loader.map_max_entries(trace::EVENTS, trace::EVENTS_BYTES);
        }
        let arrays = DIRECT_ARRAYS
            .into_iter()
            .map(|(name, number, stride)| {
                DirectArray::create(name, number, stride * spec.capacity(name))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut ebpf = loader
            .override_global("CONFIG", spec.config.as_bytes(), true)
            .override_global("BOUNDS", spec.array_bounds().as_bytes(), true)
            .load(&map_relocation::relocate(&failpoints::object(object), &arrays)?)
            .map_err(LoadError::from)?;
        load_programs(&mut ebpf)?;
        Ok(Self { spec, ebpf, arrays })
    }

    /// Whether the program's maps have room for `image`.
    #[must_use]
    pub fn fits(&self, image: &CompiledTables) -> bool {
        ProgramSpec::of(image).fits(&self.spec)
    }

    /// Fills the maps from `image`, which must fit. The generation is not pinned yet.
    ///
    /// # Errors
    /// When the kernel refuses a map operation.
    pub fn fill(self, image: CompiledTables, number: u64) -> Result<Generation, LoadError> {
        let Self { spec, mut ebpf, arrays } = self;
        fill(direct(&arrays, &spec, "DISPLACEMENTS")?, "DISPLACEMENTS", &image.displacements)?;
        let binds = fill(direct(&arrays, &spec, "BINDS")?, "BINDS", &image.binds)?;
        fill(mapped(&ebpf, &spec, "SEGMENTS")?, "SEGMENTS", &image.segments)?;
        fill_rows(&direct(&arrays, &spec, "ROWS")?, &image)?;
        fill_prefixes(&mut ebpf, &image)?;
        let tables = fill(mapped(&ebpf, &spec, "TABLES")?, "TABLES", &image.tables)?;
        let backends = direct(&arrays, &spec, "BACKENDS")?;
        let outer_ipv6 = mapped(&ebpf, &spec, "IPV6_ENDPOINTS")?;
        let next_hops = NextHopMaps::new(binds, tables, backends, outer_ipv6);
        next_hops.write_all(&image).map_err(|error| LoadError::map("fill", "BACKENDS", error))?;
        let objects = KernelObjects::Loaded(Box::new(ebpf), arrays);
        Ok(Generation { number, image, objects, next_hops })
    }
}

impl Generation {
    /// Loads `image` as generation `number` and pins program and maps below `pins`.
    ///
    /// # Errors
    /// When the kernel refuses; nothing of the generation stays pinned then.
    pub fn load(image: CompiledTables, number: u64, pins: &PinFolder) -> Result<Self, LoadError> {
        let generation =
            LoadedProgram::load(ProgramSpec::of(&image), Some(pins))?.fill(image, number)?;
        generation.pin_below(pins)?;
        Ok(generation)
    }

    /// Like [`Self::load_unpinned`], with another build of the program: `object` is its ELF file.
    ///
    /// # Errors
    /// When the kernel refuses it, or the file is not a build of the director's program.
    pub fn load_object_unpinned(object: &[u8], image: CompiledTables) -> Result<Self, LoadError> {
        LoadedProgram::load_object(ProgramSpec::of(&image), None, object)?.fill(image, 0)
    }

    /// Loads `image` with counters of its own and pins nothing. It ends with this process and does not
    /// touch a running director.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load_unpinned(image: CompiledTables) -> Result<Self, LoadError> {
        LoadedProgram::load(ProgramSpec::of(&image), None)?.fill(image, 0)
    }

    /// Pins program and maps below `pins`.
    ///
    /// # Errors
    /// When the kernel refuses; nothing of the generation stays pinned then.
    pub fn pin_below(&self, pins: &PinFolder) -> Result<(), LoadError> {
        let folder = generations::folder(pins, self.number);
        pins.make(&folder)?;
        self.pin(&folder).inspect_err(|_| {
            // The first error says more than one that follows from it.
            if let Err(error) = pins.remove(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove a half-pinned generation");
            }
        })
    }

    /// Pins the program and every map that belongs to this generation alone.
    fn pin(&self, folder: &Path) -> Result<(), LoadError> {
        let KernelObjects::Loaded(ebpf, arrays) = &self.objects else { return Ok(()) };
        for array in arrays {
            let name = array.name();
            array
                .data()
                .pin(folder.join(name.to_lowercase()))
                .map_err(|e| LoadError::map("pin", name, e))?;
        }
        for (name, map) in ebpf.maps() {
            // Counters are pinned elsewhere. Sections of the object (".rodata") are kept alive by the
            // program.
            if name.ends_with("_COUNTERS") || name.starts_with('.') {
                continue;
            }
            map.pin(folder.join(name.to_lowercase()))
                .map_err(|e| LoadError::map("pin", name, e))?;
        }
        let program = ebpf.program(PROGRAM).ok_or_else(|| LoadError::missing(PROGRAM))?;
        let fd = program.fd().map_err(|error| LoadError::map("open", PROGRAM, error))?;
        glb_host::pin(fd, &generations::program_pin(folder))
            .map_err(|e| LoadError::map("pin", PROGRAM, e))
    }

    /// The maps of the tables' and the backends' counters.
    ///
    /// # Errors
    /// When the generation was adopted.
    pub fn counters(&self) -> Result<[&Map; 2], LoadError> {
        let map = |name| match &self.objects {
            KernelObjects::Loaded(ebpf, _) => {
                ebpf.map(name).ok_or_else(|| LoadError::missing(name))
            }
            // Adopted generations use the pinned counters.
            KernelObjects::Adopted(_) => Err(LoadError::missing(name)),
        };
        Ok([map("TABLE_COUNTERS")?, map("BACKEND_COUNTERS")?])
    }

    /// Sets which decisions a tracing program reports; before that it reports none.
    ///
    /// # Errors
    /// When it is not a tracing program.
    pub fn configure_trace(&mut self, settings: &TraceSettings) -> Result<(), LoadError> {
        match &mut self.objects {
            KernelObjects::Loaded(ebpf, _) => trace::configure(ebpf, settings),
            // An adopted program is never a tracing one.
            KernelObjects::Adopted(_) => Err(LoadError::missing(trace::EVENTS)),
        }
    }

    /// The loaded XDP program.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        match &mut self.objects {
            KernelObjects::Loaded(ebpf, _) => program_mut(ebpf, PROGRAM),
            KernelObjects::Adopted(program) => Ok(program),
        }
    }

    /// The kernel's id of the program.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn id(&mut self) -> Result<u32, LoadError> {
        let info = self.program()?.info();
        Ok(info.map_err(|error| LoadError::map("look at", PROGRAM, error))?.id())
    }

    /// The kernel's information on each loaded program: the one to attach, and the parts of the general
    /// one. Empty for an adopted generation.
    pub fn programs(
        &self,
    ) -> impl Iterator<Item = (&'static str, Result<ProgramInfo, ProgramError>)> {
        let loaded = match &self.objects {
            KernelObjects::Loaded(ebpf, _) => Some(ebpf),
            KernelObjects::Adopted(_) => None,
        };
        [PROGRAM].into_iter().chain(PARTS).filter_map(move |name| {
            Some((name, <&Xdp>::try_from(loaded?.program(name)?).and_then(Xdp::info)))
        })
    }

    /// Writes the tables and backends of `image` into the maps of a generation that is not attached.
    /// The self-test enters made-up next hops this way, and the real ones after it.
    ///
    /// # Errors
    /// When the image does not fit.
    pub fn write_tables(&self, image: &CompiledTables) -> io::Result<()> {
        self.next_hops.write_all(image)
    }

    /// Removes the pins of a generation that will not be used; the kernel then frees it.
    pub fn discard(self, pins: &PinFolder) {
        let folder = generations::folder(pins, self.number);
        if let Err(error) = pins.remove(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove an unused generation");
        }
    }

    /// Writes the image's next hops of these backends into a generation that may be attached. Each
    /// packet sees either all old next hops or all new ones.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn update_next_hops(&mut self, backends: &[usize]) -> io::Result<()> {
        self.next_hops.update(&self.image, backends)
    }
}

/// Loads all programs, and enters the parts of the general one into its program array.
pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let mut parts = Vec::new();
    for name in [PROGRAM].iter().chain(&PARTS) {
        let program = program_mut(ebpf, name)?;
        let loaded = glb_host::bpf_loader::with_signals_blocked(|| program.load())
            .and_then(|()| program.fd().and_then(|fd| Ok(fd.try_clone()?)));
        parts.push(loaded.map_err(|error| LoadError::from(EbpfError::ProgramError(error)))?);
    }
    let map = ebpf.map_mut("PARTS").ok_or_else(|| LoadError::missing("PARTS"))?;
    let error = |error| LoadError::map("fill", "PARTS", error);
    let mut array = ProgramArray::try_from(map).map_err(error)?;
    for (index, part) in parts.iter().skip(1).enumerate() {
        array.set(index as u32, part, 0).map_err(error)?;
    }
    Ok(())
}

pub(super) fn program_mut<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, LoadError> {
    ebpf.program_mut(name)
        .ok_or_else(|| LoadError::missing(name))?
        .try_into()
        .map_err(|error| LoadError::from(EbpfError::ProgramError(error)))
}

fn fill<T: MapValue>(
    array: MappedArray<T>,
    name: &str,
    values: &[T],
) -> Result<MappedArray<T>, LoadError> {
    array.fill(values).map_err(|error| LoadError::map("fill", name, error))?;
    Ok(array)
}

fn mapped<T: MapValue>(
    ebpf: &Ebpf,
    spec: &ProgramSpec,
    name: &str,
) -> Result<MappedArray<T>, LoadError> {
    let map = ebpf.map(name).ok_or_else(|| LoadError::missing(name))?;
    let Map::Array(data) = map else { return Err(LoadError::missing(name)) };
    MappedArray::new(data.fd(), spec.capacity(name))
        .map_err(|error| LoadError::map("map into memory", name, error))
}

fn direct<T: MapValue>(
    arrays: &[DirectArray],
    spec: &ProgramSpec,
    name: &str,
) -> Result<MappedArray<T>, LoadError> {
    let found = arrays.iter().find(|array| array.name() == name);
    let array = found.ok_or_else(|| LoadError::missing(name))?;
    MappedArray::new(array.data().fd(), spec.capacity(name))
        .map_err(|error| LoadError::map("map into memory", name, error))
}

fn fill_rows(array: &MappedArray<TableRows>, image: &CompiledTables) -> Result<(), LoadError> {
    for (index, rows) in image.rows.iter().enumerate() {
        array.set(index, rows.as_ref()).map_err(|error| LoadError::map("fill", "ROWS", error))?;
    }
    Ok(())
}

fn fill_prefixes(ebpf: &mut Ebpf, image: &CompiledTables) -> Result<(), LoadError> {
    fn trie<'e, K: aya::Pod>(
        ebpf: &'e mut Ebpf,
        name: &str,
    ) -> Result<LpmTrie<&'e mut MapData, K, [u32; 2]>, LoadError> {
        let map = ebpf.map_mut(name).ok_or_else(|| LoadError::missing(name))?;
        LpmTrie::try_from(map).map_err(|error| LoadError::map("open", name, error))
    }
    let value = |entry: &PrefixEntry| [entry.start, entry.count];
    let mut v4 = trie::<[u8; 4]>(ebpf, "PREFIXES_V4")?;
    for (net, entry) in &image.prefixes_v4 {
        let net: &Ipv4Net = net;
        let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
        v4.insert(&key, value(entry), 0).map_err(|e| LoadError::map("fill", "PREFIXES_V4", e))?;
    }
    let mut v6 = trie::<[u8; 16]>(ebpf, "PREFIXES_V6")?;
    for (net, entry) in &image.prefixes_v6 {
        let net: &Ipv6Net = net;
        let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
        v6.insert(&key, value(entry), 0).map_err(|e| LoadError::map("fill", "PREFIXES_V6", e))?;
    }
    Ok(())
}
