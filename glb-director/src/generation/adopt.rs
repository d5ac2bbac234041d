//! Taking over a generation that a predecessor pinned.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapError, MapType};
use glb_common::abi::{BindSlot, MapValue, TableInfo};
use glb_host::{bpffs::PinFolder, generations, mmap_array::MappedArray};

use super::{
    load::{DIRECT, Generation, Objects},
    next_hops::Ways,
};
use crate::compiled_tables::Image;

/// Why a pinned generation cannot be taken over as it is.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct NotAdopted {
    /// The pin.
    path: PathBuf,
    /// What is wrong with it.
    why: String,
}

impl Generation {
    /// Takes over what a predecessor pinned as generation `number`, if it is what would be made of
    /// `image`. Ways to backends that only the pinned map knows are entered into the image.
    ///
    /// # Errors
    /// When it is something else, or cannot be read.
    pub fn adopt(mut image: Image, number: u64, pins: &PinFolder) -> Result<Self, NotAdopted> {
        let folder = generations::folder(pins, number);
        let program = match generations::pinned_program(pins, number) {
            Ok(Some(program)) => program,
            Ok(None) => return Err(not_adopted(&folder, "no program is pinned there")),
            Err(error) => return Err(not_adopted(&folder, error)),
        };
        same(&folder, "DISPLACEMENTS", &image.displacements)?;
        let binds = same_but(&folder, "BINDS", &image.binds, |slot| BindSlot { bank: 0, ..slot })?;
        same(&folder, "SEGMENTS", &image.segments)?;
        let of = |table| TableInfo { bank: 0, ..table };
        let tables = same_but(&folder, "TABLES", &image.tables, of)?;
        let (path, rows) = open_pinned(&folder, "ROWS", image.rows.len())?;
        for (index, expected) in image.rows.iter().enumerate() {
            if !rows.holds(index, &**expected) {
                return Err(not_adopted(&path, "it holds other rows"));
            }
        }
        let (path, backends) = open_pinned(&folder, "BACKENDS", 2 * image.backends.len())?;
        let (_, beside) = open_pinned(&folder, "IPV6_ENDPOINTS", 2 * image.ipv6_ways.len())?;
        let error = |error: io::Error| not_adopted(&path, error);
        let mut ways = Ways::new(binds, tables, backends, beside);
        ways.take_over(&image).map_err(error)?;
        let mut changed = Vec::new();
        for index in 0..image.backends.len() {
            let found = ways.get(index).map_err(error)?;
            let has_beside = index < image.ipv6_ways.len();
            let beside = has_beside.then(|| ways.beside(index)).transpose().map_err(error)?;
            image.inherit_entry(index, found, beside);
            if (image.backends[index], image.ipv6_ways.get(index)) != (found, beside.as_ref()) {
                changed.push(index);
            }
        }
        let objects = Objects::Adopted(Box::new(program));
        let mut adopted = Self { number, image, objects, ways };
        adopted.change_ways(&changed).map_err(error)?;
        Ok(adopted)
    }
}

fn not_adopted(path: &Path, why: impl std::fmt::Display) -> NotAdopted {
    NotAdopted { path: path.to_owned(), why: why.to_string() }
}

/// The pinned array, if it holds these values.
fn same<T: MapValue>(
    folder: &Path,
    name: &str,
    values: &[T],
) -> Result<MappedArray<T>, NotAdopted> {
    let (path, array) = open_pinned(folder, name, values.len())?;
    let is_same = values.iter().enumerate().all(|(index, value)| array.holds(index, value));
    if is_same { Ok(array) } else { Err(not_adopted(&path, "it holds something else")) }
}

/// The pinned array, if it holds these values but for what `plain` takes away.
fn same_but<T: MapValue + PartialEq>(
    folder: &Path,
    name: &str,
    values: &[T],
    plain: impl Fn(T) -> T,
) -> Result<MappedArray<T>, NotAdopted> {
    let (path, array) = open_pinned::<T>(folder, name, values.len())?;
    for (index, value) in values.iter().enumerate() {
        if plain(array.get(index).map_err(|error| not_adopted(&path, error))?) != *value {
            return Err(not_adopted(&path, "it holds something else"));
        }
    }
    Ok(array)
}

/// The pinned array, if it has the form that this release gives it.
fn open_pinned<T: MapValue>(
    folder: &Path,
    name: &str,
    entries: usize,
) -> Result<(PathBuf, MappedArray<T>), NotAdopted> {
    let path = folder.join(name.to_lowercase());
    let error = |error: MapError| not_adopted(&path, error);
    let data = MapData::from_pin(&path).map_err(error)?;
    let info = data.info().map_err(error)?;
    let kind = info.map_type().map_err(error)?;
    let (value, count) = (info.value_size() as usize, info.max_entries() as usize);
    let stride = MappedArray::<T>::STRIDE;
    let is_direct = DIRECT.iter().any(|(direct, ..)| *direct == name);
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
