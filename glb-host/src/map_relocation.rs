//! Arrays that a BPF program addresses without a look-up: [`glb_common::map_value`].
//!
//! aya makes such arrays of sections of the object only, neither of a size chosen at load nor mappable
//! into memory. So they are made here, and their addresses put into the object before aya reads it.

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

/// An array of one element, whose value holds what are elements in others.
#[derive(Debug)]
pub struct DirectArray {
    name: &'static str,
    number: u8,
    data: MapData,
}

impl DirectArray {
    /// Makes the array with this number, of so many bytes.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn create(name: &'static str, number: u8, bytes: usize) -> Result<Self, LoadError> {
        let size = u32::try_from(bytes).map_err(|error| LoadError::map("create", name, error))?;
        let definition = aya_obj::Map::new_from_params(MapType::Array as u32, 4, size, 1, MMAPABLE);
        let data = MapData::create(definition, name, None)
            .map_err(|error| LoadError::from(EbpfError::MapError(error)))?;
        Ok(Self { name, number, data })
    }

    /// The one that is pinned there.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn open(name: &'static str, number: u8, path: &Path) -> Result<Self, LoadError> {
        let data = MapData::from_pin(path).map_err(|error| LoadError::map("open", name, error))?;
        Ok(Self { name, number, data })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The map.
    #[must_use]
    pub fn data(&self) -> &MapData {
        &self.data
    }
}

/// A copy of `object` in which the arrays' addresses stand where it has their place holders.
///
/// # Errors
/// When it addresses another array than these.
pub fn relocate(object: &[u8], arrays: &[DirectArray]) -> Result<Vec<u8>, LoadError> {
    /// `BPF_LD | BPF_IMM | BPF_DW`.
    const LOAD_64: u8 = 0x18;
    /// `BPF_PSEUDO_MAP_VALUE` in the place of the source register.
    const MAP_VALUE: u8 = 2 << 4;
    let mut object = object.to_vec();
    // Sections with instructions are aligned, and these are eight bytes long; a constant of eight bytes
    // takes two.
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
