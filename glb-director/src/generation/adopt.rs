//! Adopts a generation that a former process of this daemon pinned.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapError, MapType};
use glb_common::abi::{BindSlot, MapValue, TableInfo};
use glb_host::{bpffs::PinFolder, generations, mmap_array::MappedArray};

use super::{
    load::{DIRECT_ARRAYS, Generation, KernelObjects},
    next_hops::NextHopMaps,
};
use crate::compiled_tables::CompiledTables;

/// Why a pinned generation cannot be adopted.
#[derive(Debug, thiserror::Error)]
#[error("cannot adopt the pin {}: {why}", path.display())]
pub struct AdoptError {
    /// The pin.
    path: PathBuf,
    /// What differs from this release's generation of the same tables.
    why: String,
}

impl Generation {
    /// Adopts the pinned generation `number`, if its maps hold what `image` would be loaded as. Next
    /// hops that only the pinned map knows are copied into the image.
    ///
    /// # Errors
    /// When the maps hold something else, or cannot be read.
    pub fn adopt(
        mut image: CompiledTables,
        number: u64,
        pins: &PinFolder,
    ) -> Result<Self, AdoptError> {
        let folder = generations::folder(pins, number);
        let program = match generations::pinned_program(pins, number) {
            Ok(Some(program)) => program,
            Ok(None) => return Err(not_adopted(&folder, "no program is pinned there")),
            Err(error) => return Err(not_adopted(&folder, error)),
        };
        check(&folder, "DISPLACEMENTS", &image.displacements)?;
        let binds =
            check_with(&folder, "BINDS", &image.binds, |slot| BindSlot { bank: 0, ..slot })?;
        check(&folder, "SEGMENTS", &image.segments)?;
        let without_bank = |table| TableInfo { bank: 0, ..table };
        let tables = check_with(&folder, "TABLES", &image.tables, without_bank)?;
        let (path, rows) = open_pinned(&folder, "ROWS", image.rows.len())?;
        for (index, expected) in image.rows.iter().enumerate() {
            if !rows.holds(index, &**expected) {
                return Err(not_adopted(&path, "it holds other rows"));
            }
        }
        let (path, backends) = open_pinned(&folder, "BACKENDS", 2 * image.backends.len())?;
        let (_, outer_ipv6) = open_pinned(&folder, "IPV6_ENDPOINTS", 2 * image.ipv6_ways.len())?;
        let error = |error: io::Error| not_adopted(&path, error);
        let mut next_hops = NextHopMaps::new(binds, tables, backends, outer_ipv6);
        next_hops.adopt(&image).map_err(error)?;
        let mut changed = Vec::new();
        for index in 0..image.backends.len() {
            let found = next_hops.get(index).map_err(error)?;
            let has_outer_ipv6 = index < image.ipv6_ways.len();
            let outer_ipv6 =
                has_outer_ipv6.then(|| next_hops.outer_ipv6(index)).transpose().map_err(error)?;
            image.inherit_pinned_next_hop(index, found, outer_ipv6);
            if (image.backends[index], image.ipv6_ways.get(index)) != (found, outer_ipv6.as_ref()) {
                changed.push(index);
            }
        }
        let objects = KernelObjects::Adopted(Box::new(program));
        let mut adopted = Self { number, image, objects, next_hops };
        adopted.update_next_hops(&changed).map_err(error)?;
        Ok(adopted)
    }
}

fn not_adopted(path: &Path, why: impl std::fmt::Display) -> AdoptError {
    AdoptError { path: path.to_owned(), why: why.to_string() }
}

/// Opens a pinned array, and checks that it holds `values`.
fn check<T: MapValue>(
    folder: &Path,
    name: &str,
    values: &[T],
) -> Result<MappedArray<T>, AdoptError> {
    let (path, array) = open_pinned(folder, name, values.len())?;
    let is_same = values.iter().enumerate().all(|(index, value)| array.holds(index, value));
    if is_same { Ok(array) } else { Err(not_adopted(&path, "it holds something else")) }
}

/// Opens a pinned array, and checks that it holds `values` after `normalize`.
fn check_with<T: MapValue + PartialEq>(
    folder: &Path,
    name: &str,
    values: &[T],
    normalize: impl Fn(T) -> T,
) -> Result<MappedArray<T>, AdoptError> {
    let (path, array) = open_pinned::<T>(folder, name, values.len())?;
    for (index, value) in values.iter().enumerate() {
        if normalize(array.get(index).map_err(|error| not_adopted(&path, error))?) != *value {
            return Err(not_adopted(&path, "it holds something else"));
        }
    }
    Ok(array)
}

/// Opens a pinned array, and checks that it has this release's element size and enough entries.
fn open_pinned<T: MapValue>(
    folder: &Path,
    name: &str,
    entries: usize,
) -> Result<(PathBuf, MappedArray<T>), AdoptError> {
    let path = folder.join(name.to_lowercase());
    let error = |error: MapError| not_adopted(&path, error);
    let data = MapData::from_pin(&path).map_err(error)?;
    let info = data.info().map_err(error)?;
    let kind = info.map_type().map_err(error)?;
    let (value, count) = (info.value_size() as usize, info.max_entries() as usize);
    let stride = MappedArray::<T>::STRIDE;
    let is_direct = DIRECT_ARRAYS.iter().any(|(direct, ..)| *direct == name);
    let (fits, room) = if is_direct {
        (count == 1 && value.is_multiple_of(stride), value / stride)
    } else {
        (value == size_of::<T>(), count)
    };
    if !matches!(kind, MapType::Array) || !fits || room < entries {
        let found =
            format!("it is {kind:?} of {count} × {value} bytes, as another release made it");
        return Err(not_adopted(&path, found));
    }
    let array = MappedArray::new(data.fd(), room).map_err(|error| not_adopted(&path, error))?;
    Ok((path, array))
}
