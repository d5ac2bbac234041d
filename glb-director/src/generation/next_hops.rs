//! The ways to the backends, changed under a running program.
//!
//! An entry is several words, and no program may read half of an old one and half of a new one. So
//! each backend has two, bank by bank, and every bind and every table says which [bank] is in force.
//! New ways are entered on the other bank; then the binds and tables are told, each by one store. At
//! rest both sides are equal.
//!
//! [bank]: glb_common::abi::TableInfo::bank

use std::io;

use glb_common::abi::{Backend, BindSlot, Ipv6Endpoints, TableInfo};
use glb_host::mmap_array::{MappedArray, wait_for_readers};

use crate::compiled_tables::Image;

/// The maps that it takes.
#[derive(Debug)]
pub(super) struct Ways {
    binds: MappedArray<BindSlot>,
    tables: MappedArray<TableInfo>,
    backends: MappedArray<Backend>,
    beside: MappedArray<Ipv6Endpoints>,
    bank: u32,
}

impl Ways {
    pub(super) fn new(
        binds: MappedArray<BindSlot>,
        tables: MappedArray<TableInfo>,
        backends: MappedArray<Backend>,
        beside: MappedArray<Ipv6Endpoints>,
    ) -> Self {
        Self { binds, tables, backends, beside, bank: 0 }
    }

    /// Enters tables and ways into maps that no packet is decided by.
    pub(super) fn enter(&self, image: &Image) -> io::Result<()> {
        for (index, table) in image.tables.iter().enumerate() {
            self.tables.update(index, &TableInfo { bank: self.bank, ..*table })?;
        }
        for index in 0..image.backends.len() {
            self.write(image, index, 0)?;
            self.write(image, index, 1)?;
        }
        Ok(())
    }

    /// Enters the image's ways to these backends, all at once for each packet.
    pub(super) fn change(&mut self, image: &Image, backends: &[usize]) -> io::Result<()> {
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

    /// The state that a predecessor left, who may have been killed in the middle of a change. Each
    /// bank that a bind or table names is whole then. Puts one into force and makes the other equal.
    pub(super) fn take_over(&mut self, image: &Image) -> io::Result<()> {
        let first = if image.tables.is_empty() { 0 } else { self.tables.get(0)?.bank & 1 };
        self.switch(image, first)?;
        for index in 0..image.backends.len() {
            self.backends
                .update(place(index, 1 - first), &self.backends.get(place(index, first))?)?;
        }
        for index in 0..image.ipv6_ways.len() {
            self.beside.update(place(index, 1 - first), &self.beside.get(place(index, first))?)?;
        }
        Ok(())
    }

    /// What is in force for a backend.
    pub(super) fn get(&self, index: usize) -> io::Result<Backend> {
        self.backends.get(place(index, self.bank))
    }

    /// What is in force beside it.
    pub(super) fn beside(&self, index: usize) -> io::Result<Ipv6Endpoints> {
        self.beside.get(place(index, self.bank))
    }

    fn write(&self, image: &Image, index: usize, bank: u32) -> io::Result<()> {
        let backend = image.backends.get(index).ok_or(io::ErrorKind::NotFound)?;
        if let Some(beside) = image.ipv6_ways.get(index) {
            self.beside.update(place(index, bank), beside)?;
        }
        self.backends.update(place(index, bank), backend)
    }

    /// Puts a bank into force, and waits until no packet is decided by the other.
    fn switch(&mut self, image: &Image, bank: u32) -> io::Result<()> {
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

/// Where the entry of a backend stands.
const fn place(index: usize, bank: u32) -> usize {
    2 * index + bank as usize
}
