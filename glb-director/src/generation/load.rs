//! Loading a generation: program and maps into the kernel, nothing attached yet.

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

use super::next_hops::Ways;
use crate::{compiled_tables::Image, counters};

/// The program's name in the object.
pub(super) const PROGRAM: &str = "glb_director";

/// The parts of the general program, in the order of the program array that it calls them from.
const PARTS: [&str; 3] = ["general", "forward_packet", "answer"];

/// What makes a generation's tables.
const MAPS: [&str; 5] = ["PREFIXES_V4", "PREFIXES_V6", "SEGMENTS", "TABLES", "IPV6_ENDPOINTS"];

/// And what of that is addressed without a look-up: name, number, bytes of an element.
pub(super) const DIRECT: [(&str, u8, usize); 4] = [
    ("DISPLACEMENTS", number::DISPLACEMENTS, MappedArray::<u32>::STRIDE),
    ("BINDS", number::BINDS, MappedArray::<BindSlot>::STRIDE),
    ("ROWS", number::ROWS, MappedArray::<TableRows>::STRIDE),
    ("BACKENDS", number::BACKENDS, MappedArray::<Backend>::STRIDE),
];

/// What the kernel is told when a program is loaded and cannot be changed afterwards: its constants,
/// and how many entries its maps have room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    config: Config,
    /// Whether it is the program that shows its decisions.
    shows: bool,
    /// By the maps' names.
    room: Vec<(&'static str, u32)>,
}

impl Shape {
    /// The shape that `image` needs, and no more.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        let lengths = [
            image.prefixes_v4.len(),
            image.prefixes_v6.len(),
            image.segments.len(),
            image.tables.len(),
            // Two entries of each: see `TableInfo::bank`.
            2 * image.ipv6_ways.len(),
            image.displacements.len(),
            image.binds.len(),
            image.rows.len(),
            2 * image.backends.len(),
        ];
        let lengths = lengths.map(|length| length.max(1) as u32);
        let room = MAPS.into_iter().chain(DIRECT.map(|(name, ..)| name)).zip(lengths).collect();
        Self { config: image.config, shows: false, room }
    }

    /// Names of the maps that make a generation's tables.
    pub(super) fn maps() -> &'static [&'static str] {
        &MAPS
    }

    /// How much there is of what the program's own checks bound.
    pub(super) fn bounds(&self) -> ArrayBounds {
        // `NO_HOP` is no backend's index, however much room there is.
        let backends = self.room("BACKENDS").min(2 * usize::from(NO_HOP));
        ArrayBounds { rows: self.room("ROWS") as u32, backends: backends as u32 }
    }

    /// The same, of the program that shows its decisions.
    #[must_use]
    pub fn showing(mut self) -> Self {
        self.shows = true;
        self
    }

    /// The same with room for some more of what is small: what is loaded ahead fits longer.
    #[must_use]
    pub fn with_room(mut self) -> Self {
        for (name, room) in &mut self.room {
            if !matches!(*name, "TABLES" | "ROWS") {
                *room = (*room + 16).next_multiple_of(64);
            }
        }
        self
    }

    /// Whether an image of this shape has room in that one.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        self.config == other.config
            && self.shows == other.shows
            && self.room.iter().zip(&other.room).all(|(need, room)| need.1 <= room.1)
    }

    fn room(&self, map: &str) -> usize {
        let found = self.room.iter().find(|(name, _)| *name == map);
        found.map_or(1, |(_, room)| *room as usize)
    }
}

/// A program in the kernel, verified, with maps that are still empty. Nothing of it is pinned: it
/// goes with this process.
#[derive(Debug)]
pub struct Shell {
    shape: Shape,
    ebpf: Ebpf,
    arrays: Vec<DirectArray>,
}

/// A generation in the kernel.
#[derive(Debug)]
pub struct Generation {
    /// Its number; later ones are greater.
    pub number: u64,
    /// What it was made from.
    pub image: Image,
    pub(super) objects: Objects,
    pub(super) ways: Ways,
}

/// What of a generation is held by descriptors.
#[derive(Debug)]
pub(super) enum Objects {
    /// All that was loaded.
    Loaded(Box<Ebpf>, Vec<DirectArray>),
    /// The program that a predecessor pinned; the rest is pinned too, and held by the program.
    Adopted(Box<Xdp>),
}

impl Shell {
    /// Loads a program of this shape. With `pins`, it counts where its predecessors did.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn load(shape: Shape, pins: Option<&PinFolder>) -> Result<Self, LoadError> {
        let object =
            if shape.shows { glb_host::DIRECTOR_TRACE_OBJECT } else { glb_host::DIRECTOR_OBJECT };
        Self::load_object(shape, pins, object)
    }

    fn load_object(
        shape: Shape,
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
        for name in MAPS {
            loader.map_max_entries(name, shape.room(name) as u32);
        }
        if shape.shows {
            loader.map_max_entries(trace::EVENTS, trace::EVENTS_BYTES);
        }
        let arrays = DIRECT
            .into_iter()
            .map(|(name, number, stride)| {
                DirectArray::create(name, number, stride * shape.room(name))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut ebpf = loader
            .override_global("CONFIG", shape.config.as_bytes(), true)
            .override_global("BOUNDS", shape.bounds().as_bytes(), true)
            .load(&map_relocation::relocate(&failpoints::object(object), &arrays)?)
            .map_err(LoadError::from)?;
        load_programs(&mut ebpf)?;
        Ok(Self { shape, ebpf, arrays })
    }

    /// Whether `image` can be carried by this program.
    #[must_use]
    pub fn fits(&self, image: &Image) -> bool {
        Shape::of(image).fits(&self.shape)
    }

    /// Makes a generation of it, which is not pinned yet. The image must fit.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn fill(self, image: Image, number: u64) -> Result<Generation, LoadError> {
        let Self { shape, mut ebpf, arrays } = self;
        fill(direct(&arrays, &shape, "DISPLACEMENTS")?, "DISPLACEMENTS", &image.displacements)?;
        let binds = fill(direct(&arrays, &shape, "BINDS")?, "BINDS", &image.binds)?;
        fill(mapped(&ebpf, &shape, "SEGMENTS")?, "SEGMENTS", &image.segments)?;
        fill_rows(&direct(&arrays, &shape, "ROWS")?, &image)?;
        fill_prefixes(&mut ebpf, &image)?;
        let tables = fill(mapped(&ebpf, &shape, "TABLES")?, "TABLES", &image.tables)?;
        let backends = direct(&arrays, &shape, "BACKENDS")?;
        let beside = mapped(&ebpf, &shape, "IPV6_ENDPOINTS")?;
        let ways = Ways::new(binds, tables, backends, beside);
        ways.enter(&image).map_err(|error| LoadError::map("fill", "BACKENDS", error))?;
        let objects = Objects::Loaded(Box::new(ebpf), arrays);
        Ok(Generation { number, image, objects, ways })
    }
}

impl Generation {
    /// Loads `image` as generation `number` and pins program and maps below `pins`.
    ///
    /// # Errors
    /// When the kernel says no; nothing of the generation is left then.
    pub fn load(image: Image, number: u64, pins: &PinFolder) -> Result<Self, LoadError> {
        let generation = Shell::load(Shape::of(&image), Some(pins))?.fill(image, number)?;
        generation.pin_below(pins)?;
        Ok(generation)
    }

    /// As [`Self::load_alone`], with another build of the program: `object` is its ELF file.
    ///
    /// # Errors
    /// When the kernel says no, or it is another program.
    pub fn load_other(object: &[u8], image: Image) -> Result<Self, LoadError> {
        Shell::load_object(Shape::of(&image), None, object)?.fill(image, 0)
    }

    /// Loads `image` with counters of its own, and pins nothing: it goes with this process and leaves
    /// a running director alone.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn load_alone(image: Image) -> Result<Self, LoadError> {
        Shell::load(Shape::of(&image), None)?.fill(image, 0)
    }

    /// Pins program and maps below `pins`.
    ///
    /// # Errors
    /// When the kernel says no; nothing of the generation is pinned then.
    pub fn pin_below(&self, pins: &PinFolder) -> Result<(), LoadError> {
        let folder = generations::folder(pins, self.number);
        pins.make(&folder)?;
        self.pin(&folder).inspect_err(|_| {
            // The first error says more than one that follows from it.
            if let Err(error) = pins.remove(&folder) {
                tracing::warn!(%error, "an unfinished generation is left behind");
            }
        })
    }

    /// Pins the program and every map that is the generation's own.
    fn pin(&self, folder: &Path) -> Result<(), LoadError> {
        let Objects::Loaded(ebpf, arrays) = &self.objects else { return Ok(()) };
        for array in arrays {
            let name = array.name();
            array
                .data()
                .pin(folder.join(name.to_lowercase()))
                .map_err(|e| LoadError::map("pin", name, e))?;
        }
        for (name, map) in ebpf.maps() {
            // Those that outlive generations are pinned elsewhere already. Sections of the object
            // (".rodata") are no names for files, and the program keeps them alive.
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

    /// The tables' counters and the backends'.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn counters(&self) -> Result<[&Map; 2], LoadError> {
        let map = |name| match &self.objects {
            Objects::Loaded(ebpf, _) => ebpf.map(name).ok_or_else(|| LoadError::missing(name)),
            // Those of all generations are pinned in one place.
            Objects::Adopted(_) => Err(LoadError::missing(name)),
        };
        Ok([map("TABLE_COUNTERS")?, map("BACKEND_COUNTERS")?])
    }

    /// Tells a program that shows its decisions which are wanted; at first it shows none.
    ///
    /// # Errors
    /// When it is not such a program.
    pub fn show(&mut self, settings: &TraceSettings) -> Result<(), LoadError> {
        match &mut self.objects {
            Objects::Loaded(ebpf, _) => trace::configure(ebpf, settings),
            // What is adopted is what forwards, which never shows any.
            Objects::Adopted(_) => Err(LoadError::missing(trace::EVENTS)),
        }
    }

    /// The loaded program.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        match &mut self.objects {
            Objects::Loaded(ebpf, _) => program_mut(ebpf, PROGRAM),
            Objects::Adopted(program) => Ok(program),
        }
    }

    /// The kernel's number for the program.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn id(&mut self) -> Result<u32, LoadError> {
        let info = self.program()?.info();
        Ok(info.map_err(|error| LoadError::map("look at", PROGRAM, error))?.id())
    }

    /// What the kernel says of each program that was loaded: the one to attach, and the general one's
    /// parts. Nothing for a generation that was adopted.
    pub fn programs(
        &self,
    ) -> impl Iterator<Item = (&'static str, Result<ProgramInfo, ProgramError>)> {
        let loaded = match &self.objects {
            Objects::Loaded(ebpf, _) => Some(ebpf),
            Objects::Adopted(_) => None,
        };
        [PROGRAM].into_iter().chain(PARTS).filter_map(move |name| {
            Some((name, <&Xdp>::try_from(loaded?.program(name)?).and_then(Xdp::info)))
        })
    }

    /// Enters other values for tables and backends (of the same number) into the maps of a generation
    /// that is not in force: the self-test's made-up ones, and the real ones after it.
    ///
    /// # Errors
    /// When there are more of them than the maps hold.
    pub fn enter(&self, image: &Image) -> io::Result<()> {
        self.ways.enter(image)
    }

    /// Removes the pins of a generation that is not to be used; the kernel then frees it.
    pub fn discard(self, pins: &PinFolder) {
        let folder = generations::folder(pins, self.number);
        if let Err(error) = pins.remove(&folder) {
            tracing::warn!(%error, "an unused generation is left behind");
        }
    }

    /// Enters the image's ways to these backends into a generation that may be in force: each packet
    /// goes by the old ways or by the new ones.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn change_ways(&mut self, backends: &[usize]) -> io::Result<()> {
        self.ways.change(&self.image, backends)
    }
}

/// Loads all programs and lets the general one's parts find each other.
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
    shape: &Shape,
    name: &str,
) -> Result<MappedArray<T>, LoadError> {
    let map = ebpf.map(name).ok_or_else(|| LoadError::missing(name))?;
    let Map::Array(data) = map else { return Err(LoadError::missing(name)) };
    MappedArray::new(data.fd(), shape.room(name))
        .map_err(|error| LoadError::map("map into memory", name, error))
}

fn direct<T: MapValue>(
    arrays: &[DirectArray],
    shape: &Shape,
    name: &str,
) -> Result<MappedArray<T>, LoadError> {
    let found = arrays.iter().find(|array| array.name() == name);
    let array = found.ok_or_else(|| LoadError::missing(name))?;
    MappedArray::new(array.data().fd(), shape.room(name))
        .map_err(|error| LoadError::map("map into memory", name, error))
}

fn fill_rows(array: &MappedArray<TableRows>, image: &Image) -> Result<(), LoadError> {
    for (index, rows) in image.rows.iter().enumerate() {
        array.set(index, rows.as_ref()).map_err(|error| LoadError::map("fill", "ROWS", error))?;
    }
    Ok(())
}

fn fill_prefixes(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
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
