//! Loading a generation: program and maps into the kernel, nothing attached yet.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramError, Xdp},
};
use glb_common::layout::{Backend, Plain, PrefixEntry, TableInfo};
use glb_host::{
    bpffs::{PinFolder, PinFolderError},
    mapped::MappedArray,
};
use ipnet::{Ipv4Net, Ipv6Net};

use super::pins;
use crate::{counters, image::Image};

/// The program's name in the object.
const PROGRAM: &str = "glb_director";

/// Why a generation could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not allowed to load.
    #[error(
        "not permitted to load BPF programs: {source}.\n  \
         Run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
    )]
    NotPermitted {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier refused the program.
    #[error(
        "the kernel refuses the program: {source}\n{log}\n  \
         The director needs Linux 5.18 or newer, and this is {release}. If it is newer, this is a \
         fault of the director: please report it with this message."
    )]
    Refused {
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
        /// Of the running kernel.
        release: String,
    },
    /// A map that outlives generations does not have the shape that this program expects.
    #[error(
        "{} was pinned by another version: {found}, but this one needs {needed}.\n  \
         `glb-director detach` removes it together with the counters it holds.",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What is needed.
        needed: String,
    },
    /// Filling or pinning failed.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pin folder said no.
    #[error(transparent)]
    Folder(#[from] PinFolderError),
    /// Anything else.
    #[error("cannot load the director's program: {0}")]
    Other(Box<EbpfError>),
}

/// A generation in the kernel.
#[derive(Debug)]
pub struct Generation {
    /// Its number; later ones are greater.
    pub number: u64,
    /// What it was made from.
    pub image: Image,
    ebpf: Ebpf,
    backends: MappedArray<Backend>,
    tables: MappedArray<TableInfo>,
}

impl Generation {
    /// Loads `image` as generation `number` and pins program and maps below `pins`.
    ///
    /// # Errors
    /// When the kernel says no; nothing of the generation is left then.
    pub fn load(image: Image, number: u64, pins: &PinFolder) -> Result<Self, LoadError> {
        let folder = pins.join(pins::GENERATIONS).join(number.to_string());
        pins.make(&folder)?;
        pins.make(&pins.join(counters::pins::FOLDER))?;
        let generation = Self::load_into(image, number, pins, &folder);
        if generation.is_err() {
            // The first error says more than one that follows from it.
            if let Err(error) = pins.remove(&folder) {
                tracing::warn!(%error, "an unfinished generation is left behind");
            }
        }
        generation
    }

    fn load_into(
        image: Image,
        number: u64,
        pins: &PinFolder,
        folder: &Path,
    ) -> Result<Self, LoadError> {
        let count = |length: usize| length.max(1) as u32;
        let (tables, backends) =
            (pins.join(counters::pins::TABLES), pins.join(counters::pins::BACKENDS));
        check_layout(&tables, "TABLE_COUNTERS")?;
        check_layout(&backends, "BACKEND_COUNTERS")?;
        let mut ebpf = EbpfLoader::new()
            .override_global("CONFIG", image.config.as_bytes(), true)
            .map_max_entries("DISPLACEMENTS", count(image.displacements.len()))
            .map_max_entries("BINDS", count(image.binds.len()))
            .map_max_entries("PREFIXES_V4", count(image.prefixes_v4.len()))
            .map_max_entries("PREFIXES_V6", count(image.prefixes_v6.len()))
            .map_max_entries("SEGMENTS", count(image.segments.len()))
            .map_max_entries("TABLES", count(image.tables.len()))
            .map_max_entries("ROWS", count(image.rows.len()))
            .map_max_entries("BACKENDS", count(image.backends.len()))
            .map_pin_path("TABLE_COUNTERS", tables)
            .map_pin_path("BACKEND_COUNTERS", backends)
            .load(glb_host::DIRECTOR_OBJECT)
            .map_err(explain)?;
        program_mut(&mut ebpf)?.load().map_err(|error| explain(EbpfError::ProgramError(error)))?;

        fill(&mut ebpf, "DISPLACEMENTS", &image.displacements)?;
        fill(&mut ebpf, "BINDS", &image.binds)?;
        fill(&mut ebpf, "SEGMENTS", &image.segments)?;
        fill_rows(&mut ebpf, &image)?;
        fill_prefixes(&mut ebpf, &image)?;
        let tables = fill(&mut ebpf, "TABLES", &image.tables)?;
        let backends = fill(&mut ebpf, "BACKENDS", &image.backends)?;

        let generation = Self { number, image, ebpf, backends, tables };
        generation.pin(folder)?;
        Ok(generation)
    }

    /// Pins the program and every map that is the generation's own.
    fn pin(&self, folder: &Path) -> Result<(), LoadError> {
        for (name, map) in self.ebpf.maps() {
            // Those that outlive generations are pinned elsewhere already. Sections of the object
            // (".rodata") are no names for files, and the program keeps them alive.
            if name.ends_with("_COUNTERS") || name.starts_with('.') {
                continue;
            }
            map.pin(folder.join(name.to_lowercase())).map_err(|e| map_error("pin", name, e))?;
        }
        let program = self.ebpf.program(PROGRAM).ok_or_else(|| missing(PROGRAM))?;
        let fd = program.fd().map_err(|error| map_error("open", PROGRAM, error))?;
        glb_host::pin(fd, &folder.join(pins::PROGRAM)).map_err(|e| map_error("pin", PROGRAM, e))
    }

    /// The loaded program.
    ///
    /// # Errors
    /// Only if the object has none.
    pub fn program(&mut self) -> Result<&mut Xdp, LoadError> {
        program_mut(&mut self.ebpf)
    }

    /// Enters other values for tables and backends (of the same number) into the running maps,
    /// word by word: the self-test's made-up ones, and the real ones after it.
    ///
    /// # Errors
    /// When there are more of them than the maps hold.
    pub fn enter(&self, image: &Image) -> io::Result<()> {
        for (index, table) in image.tables.iter().enumerate() {
            self.tables.update(index, table)?;
        }
        for (index, backend) in image.backends.iter().enumerate() {
            self.backends.update(index, backend)?;
        }
        Ok(())
    }

    /// Removes the pins of a generation that is not to be used; the kernel then frees it.
    pub fn discard(self, pins: &PinFolder) {
        let folder = pins.join(pins::GENERATIONS).join(self.number.to_string());
        if let Err(error) = pins.remove(&folder) {
            tracing::warn!(%error, "an unused generation is left behind");
        }
    }

    /// Enters one backend's present state into the running map.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn enter_backend(&self, index: usize) -> io::Result<()> {
        let backend = self.image.backends.get(index).ok_or(io::ErrorKind::NotFound)?;
        self.backends.update(index, backend)
    }
}

fn program_mut(ebpf: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    ebpf.program_mut(PROGRAM)
        .ok_or_else(|| missing(PROGRAM))?
        .try_into()
        .map_err(|error| LoadError::Other(Box::new(EbpfError::ProgramError(error))))
}

fn fill<T: Plain>(ebpf: &mut Ebpf, name: &str, values: &[T]) -> Result<MappedArray<T>, LoadError> {
    let array = mapped(ebpf, name, values.len().max(1))?;
    array.fill(values).map_err(|error| map_error("fill", name, error))?;
    Ok(array)
}

fn mapped<T: Plain>(ebpf: &Ebpf, name: &str, entries: usize) -> Result<MappedArray<T>, LoadError> {
    let map = ebpf.map(name).ok_or_else(|| missing(name))?;
    let aya::maps::Map::Array(data) = map else { return Err(missing(name)) };
    MappedArray::new(data.fd(), entries).map_err(|error| map_error("map into memory", name, error))
}

fn fill_rows(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
    let array = mapped(ebpf, "ROWS", image.rows.len().max(1))?;
    for (index, rows) in image.rows.iter().enumerate() {
        array.set(index, rows.as_ref()).map_err(|error| map_error("fill", "ROWS", error))?;
    }
    Ok(())
}

fn fill_prefixes(ebpf: &mut Ebpf, image: &Image) -> Result<(), LoadError> {
    fn trie<'e, K: aya::Pod>(
        ebpf: &'e mut Ebpf,
        name: &str,
    ) -> Result<LpmTrie<&'e mut MapData, K, [u32; 2]>, LoadError> {
        let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
        LpmTrie::try_from(map).map_err(|error| map_error("open", name, error))
    }
    let value = |entry: &PrefixEntry| [entry.start, entry.count];
    let mut v4 = trie::<[u8; 4]>(ebpf, "PREFIXES_V4")?;
    for (net, entry) in &image.prefixes_v4 {
        let net: &Ipv4Net = net;
        let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
        v4.insert(&key, value(entry), 0).map_err(|e| map_error("fill", "PREFIXES_V4", e))?;
    }
    let mut v6 = trie::<[u8; 16]>(ebpf, "PREFIXES_V6")?;
    for (net, entry) in &image.prefixes_v6 {
        let net: &Ipv6Net = net;
        let key = Key::new(u32::from(net.prefix_len()), net.network().octets());
        v6.insert(&key, value(entry), 0).map_err(|e| map_error("fill", "PREFIXES_V6", e))?;
    }
    Ok(())
}

/// aya takes whatever is pinned under the right name: its shape is compared here.
fn check_layout(path: &Path, name: &str) -> Result<(), LoadError> {
    use glb_common::layout::{BACKEND_SLOTS, Counter, ReasonCounters, TABLE_SLOTS};
    if !path.exists() {
        return Ok(());
    }
    let (value, entries) = match name {
        "TABLE_COUNTERS" => (size_of::<ReasonCounters>() as u32, TABLE_SLOTS),
        _ => (size_of::<Counter>() as u32, BACKEND_SLOTS),
    };
    let data = MapData::from_pin(path).map_err(|error| map_error("open", name, error))?;
    let info = data.info().map_err(|error| map_error("look at", name, error))?;
    let kind = info.map_type().map_err(|error| map_error("look at", name, error))?;
    let found = (kind, info.key_size(), info.value_size(), info.max_entries());
    let needed = (aya::maps::MapType::PerCpuArray, 4, value, entries);
    if found == needed {
        return Ok(());
    }
    let say = |(kind, key, value, entries): (_, u32, u32, u32)| {
        format!("{kind:?} of {entries} × {value} bytes, keys of {key}")
    };
    Err(LoadError::Layout { path: path.to_owned(), found: say(found), needed: say(needed) })
}

fn missing(name: &str) -> LoadError {
    map_error("find", name, io::Error::from(io::ErrorKind::NotFound))
}

fn map_error(
    action: &'static str,
    map: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LoadError {
    LoadError::Map { action, map: map.to_owned(), source: source.into() }
}

/// Tells apart what an operator can do something about.
fn explain(error: EbpfError) -> LoadError {
    let not_permitted = |source: &io::Error| {
        matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
            .then(|| LoadError::NotPermitted { source: copy(source) })
    };
    let found = match &error {
        EbpfError::MapError(
            MapError::CreateError { io_error, .. }
            | MapError::SyscallError(aya::sys::SyscallError { io_error, .. }),
        ) => not_permitted(io_error),
        EbpfError::ProgramError(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            // Without CAP_PERFMON the verifier says why in its log; without CAP_BPF it is silent.
            if log.trim().is_empty() { not_permitted(io_error) } else { None }.or_else(|| {
                let lines: Vec<&str> = log.lines().collect();
                Some(LoadError::Refused {
                    source: copy(io_error),
                    log: lines[lines.len().saturating_sub(12)..].join("\n"),
                    release: release(),
                })
            })
        }
        _ => None,
    };
    found.unwrap_or_else(|| LoadError::Other(Box::new(error)))
}

fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "an unknown kernel".to_owned(), |text| format!("Linux {}", text.trim()))
}
