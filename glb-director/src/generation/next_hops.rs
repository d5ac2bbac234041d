//! The maps that hold next hops, and how they change under a running program.
//!
//! An entry has several words, and no packet may see half of an old and half of a new one. So each
//! backend has two entries, bank by bank, and every bind and table says which [bank] the program
//! reads. [`NextHopMaps::update`] writes new next hops on the other bank and then switches each bind
//! and table by one store. Between updates both banks are equal.
//!
//! [bank]: glb_common::abi::TableInfo::bank

use std::io;

use glb_common::abi::{Backend, BindSlot, Ipv6Endpoints, TableInfo};
use glb_host::mmap_array::{MappedArray, wait_for_readers};

use crate::compiled_tables::CompiledTables;

/// The maps of one generation that hold next hops, or say which bank of them is read.
#[derive(Debug)]
pub(super) struct NextHopMaps {
    binds: MappedArray<BindSlot>,
    tables: MappedArray<TableInfo>,
    backends: MappedArray<Backend>,
    outer_ipv6: MappedArray<Ipv6Endpoints>,
    bank: u32,
}

impl NextHopMaps {
    pub(super) fn new(
        binds: MappedArray<BindSlot>,
        tables: MappedArray<TableInfo>,
        backends: MappedArray<Backend>,
        outer_ipv6: MappedArray<Ipv6Endpoints>,
    ) -> Self {
        Self { binds, tables, backends, outer_ipv6, bank: 0 }
    }

    /// Writes all tables and backends into the maps of a program that is not attached.
    pub(super) fn write_all(&self, image: &CompiledTables) -> io::Result<()> {
        for (index, table) in image.tables.iter().enumerate() {
            self.tables.update(index, &TableInfo { bank: self.bank, ..*table })?;
        }
        for index in 0..image.backends.len() {
            self.write(image, index, 0)?;
            self.write(image, index, 1)?;
        }
        Ok(())
    }

    /// Writes the image's entries of these backends. Each packet sees either all old or all new ones.
    pub(super) fn update(&mut self, image: &CompiledTables, backends: &[usize]) -> io::Result<()> {
        if backends.is_empty() {
            return Ok(());
        }
        let (old, new) = (self.bank, 1 - self.bank);
        for index in backends {
            self.write(image, *index, new)?;
        }
        self.switch(image, new)?;
        for index in backends {
            self.write(image, *index, old)?;
        }
        Ok(())
    }

    /// Adopts maps from a former process, which may have been killed in the middle of an update. Each
    /// bank that a bind or table names is whole then. Switches all to one bank and makes the other
    /// equal.
    pub(super) fn adopt(&mut self, image: &CompiledTables) -> io::Result<()> {
        let first = if image.tables.is_empty() { 0 } else { self.tables.get(0)?.bank & 1 };
        self.switch(image, first)?;
        for index in 0..image.backends.len() {
            self.backends.update(
                entry_index(index, 1 - first),
                &self.backends.get(entry_index(index, first))?,
            )?;
        }
        for index in 0..image.ipv6_ways.len() {
            self.outer_ipv6.update(
                entry_index(index, 1 - first),
                &self.outer_ipv6.get(entry_index(index, first))?,
            )?;
        }
        Ok(())
    }

    /// The entry of a backend that the program reads.
    pub(super) fn get(&self, index: usize) -> io::Result<Backend> {
        self.backends.get(entry_index(index, self.bank))
    }

    /// The outer IPv6 addresses of a backend that the program reads.
    pub(super) fn outer_ipv6(&self, index: usize) -> io::Result<Ipv6Endpoints> {
        self.outer_ipv6.get(entry_index(index, self.bank))
    }

    fn write(&self, image: &CompiledTables, index: usize, bank: u32) -> io::Result<()> {
        let backend = image.backends.get(index).ok_or(io::ErrorKind::NotFound)?;
        if let Some(outer_ipv6) = image.ipv6_ways.get(index) {
            self.outer_ipv6.update(entry_index(index, bank), outer_ipv6)?;
        }
        self.backends.update(entry_index(index, bank), backend)
    }

    /// Switches all binds and tables to `bank`, and waits until no running packet reads the other bank.
    fn switch(&mut self, image: &CompiledTables, bank: u32) -> io::Result<()> {
        for index in 0..image.binds.len() {
            self.binds.update(index, &BindSlot { bank, ..self.binds.get(index)? })?;
        }
        for index in 0..image.tables.len() {
            self.tables.update(index, &TableInfo { bank, ..self.tables.get(index)? })?;
        }
        self.bank = bank;
        wait_for_readers();
        Ok(())
    }
}

/// The index of a backend's entry on a bank.
const fn entry_index(index: usize, bank: u32) -> usize {
    2 * index + bank as usize
}
