//! Arrays that a BPF program addresses directly, without a lookup ([`glb_common::map_value`]).
//!
//! aya creates such arrays only from an object's data sections, with a fixed size and not mappable.
//! This module creates them itself and writes their addresses into the object before aya reads it.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    EbpfError,
    maps::{MapData, MapType},
};
use glb_common::map_value::number;

use crate::bpf_loader::LoadError;

/// `BPF_F_MMAPABLE` of the kernel's bpf.h.
const MMAPABLE: u32 = 1 << 10;

/// An array with one element; that element's value holds all entries.
#[derive(Debug)]
pub struct DirectArray {
    name: &'static str,
    number: u8,
    data: MapData,
}

impl DirectArray {
    /// Creates the array with this number and size.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(name: &'static str, number: u8, bytes: usize) -> Result<Self, LoadError> {
        let size = u32::try_from(bytes).map_err(|error| LoadError::map("create", name, error))?;
        let definition = aya_obj::Map::new_from_params(MapType::Array as u32, 4, size, 1, MMAPABLE);
        let data = MapData::create(definition, name, None)
            .map_err(|error| LoadError::from(EbpfError::MapError(error)))?;
        Ok(Self { name, number, data })
    }

    /// Opens the array that is pinned at `path`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(name: &'static str, number: u8, path: &Path) -> Result<Self, LoadError> {
        let data = MapData::from_pin(path).map_err(|error| LoadError::map("open", name, error))?;
        Ok(Self { name, number, data })
    }

    /// Returns the array's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the map.
    #[must_use]
    pub fn data(&self) -> &MapData {
        &self.data
    }
}

/// Returns a copy of `object` with each placeholder replaced by its array's address.
///
/// # Errors
/// When the object refers to an array that is not given.
pub fn relocate(object: &[u8], arrays: &[DirectArray]) -> Result<Vec<u8>, LoadError> {
    /// `BPF_LD | BPF_IMM | BPF_DW`.
    const LOAD_64: u8 = 0x18;
    /// `BPF_PSEUDO_MAP_VALUE` in the source register field.
    const MAP_VALUE: u8 = 2 << 4;
    let mut object = object.to_vec();
    // Code sections are aligned and instructions have eight bytes; a 64-bit constant takes two
    // instructions.
    for pair in 0..(object.len() / 8).saturating_sub(1) {
        let (first, second) = object[8 * pair..8 * pair + 16].split_at_mut(8);
        let (lower, upper) = (&first[4..], &second[4..]);
        let upper = u32::from_le_bytes([upper[0], upper[1], upper[2], upper[3]]);
        let Some(number) = number(upper) else { continue };
        if first[0] != LOAD_64 || first[1] >> 4 != 0 || lower != [0; 4] {
            continue;
        }
        let array = arrays.iter().find(|array| array.number == number);
        let array = array.ok_or_else(|| LoadError::missing(&format!("of number {number}")))?;
        first[1] |= MAP_VALUE;
        first[4..].copy_from_slice(&array.data.fd().as_fd().as_raw_fd().to_le_bytes());
        second[4..].fill(0);
    }
    Ok(object)
}
