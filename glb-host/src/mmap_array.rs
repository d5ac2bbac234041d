//! BPF arrays mapped into this process: read and written without a system call for each element.

use std::{
    io,
    marker::PhantomData,
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use glb_common::abi::MapValue;
use memmap2::{MmapOptions, MmapRaw};

/// Waits until every running BPF program has ended, so that all later runs see earlier changes.
pub fn wait_for_readers() {
    /// `MEMBARRIER_CMD_GLOBAL` of the kernel's membarrier.h: it calls `synchronize_rcu`, and packet
    /// programs run inside RCU.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: a system call that takes no pointer.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if done != 0 {
        // Kernels with tickless CPUs refuse it. No program takes this long.
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// A BPF array of `T` (created with `BPF_F_MMAPABLE`) in this process's memory.
#[derive(Debug)]
pub struct MappedArray<T> {
    memory: MmapRaw,
    entries: usize,
    element: PhantomData<T>,
}

impl<T: MapValue> MappedArray<T> {
    /// The distance of two elements: the kernel rounds up to 8 bytes.
    pub const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps the array behind `map`, which has `entries` elements.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(map: &impl AsFd, entries: usize) -> io::Result<Self> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&map.as_fd());
        let memory = MmapOptions::new().len(entries * Self::STRIDE).map_raw(fd)?;
        Ok(Self { memory, entries, element: PhantomData })
    }

    /// Writes the elements from the first on.
    ///
    /// # Errors
    /// When there are more values than elements; nothing is written then.
    pub fn fill(&self, values: &[T]) -> io::Result<()> {
        if values.len() > self.entries {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} values do not fit {} elements", values.len(), self.entries),
            ));
        }
        values.iter().enumerate().try_for_each(|(index, value)| self.set(index, value))
    }

    /// Writes an element that the kernel does not read yet.
    ///
    /// # Errors
    /// When there is no such element.
    pub fn set(&self, index: usize, value: &T) -> io::Result<()> {
        self.check(index)?;
        // SAFETY: the element lies inside the mapping; T is plain bytes without overlap.
        unsafe { std::ptr::copy_nonoverlapping(value, self.element(index), 1) };
        Ok(())
    }

    fn check(&self, index: usize) -> io::Result<()> {
        if index < self.entries {
            return Ok(());
        }
        let text = format!("element {index} of an array of {}", self.entries);
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// Writes an element while the kernel may be reading it.
    ///
    /// Each aligned 8-byte word that differs is stored atomically.
    ///
    /// # Errors
    /// When there is no such element.
    pub fn update(&self, index: usize, value: &T) -> io::Result<()> {
        self.check(index)?;
        let mut bytes = value.as_bytes().to_vec();
        bytes.resize(Self::STRIDE, 0);
        let start = self.element(index).cast::<u64>();
        for (offset, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().map_err(io::Error::other)?);
            // SAFETY: inside the mapping (the stride is a multiple of 8), aligned (mappings start
            // at a page), and only ever accessed through atomics or by the kernel.
            let place = unsafe { AtomicU64::from_ptr(start.add(offset)) };
            if place.load(Ordering::Relaxed) != word {
                place.store(word, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Returns whether an element that nobody writes has this value.
    #[must_use]
    pub fn holds(&self, index: usize, value: &T) -> bool {
        if self.check(index).is_err() {
            return false;
        }
        // SAFETY: the element lies inside the mapping, and lives as long as it.
        let found =
            unsafe { std::slice::from_raw_parts(self.element(index).cast::<u8>(), size_of::<T>()) };
        found == value.as_bytes()
    }

    /// Reads an element.
    ///
    /// # Errors
    /// When there is no such element.
    pub fn get(&self, index: usize) -> io::Result<T> {
        self.check(index)?;
        // SAFETY: the element lies inside the mapping; T is plain bytes, of which any are valid.
        Ok(unsafe { std::ptr::read_volatile(self.element(index)) })
    }

    fn element(&self, index: usize) -> *mut T {
        self.memory.as_mut_ptr().wrapping_add(index * Self::STRIDE).cast()
    }
}
