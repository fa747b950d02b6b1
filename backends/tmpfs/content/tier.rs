//! Where a file's bytes are kept, and their moving between the tiers.

use std::ops::Range;

use splicefs_core::{ReadPlan, Result};

use super::heap::Heap;
use super::memfd::Memfd;
use super::pages::touched;
use crate::store::Store;

/// The most pages that a file has in the heap where there is a descriptor for it. Small reads are faster copied than
/// spliced, and a descriptor is dearer than the memory of a few pages.
const MOST_IN_HEAP: u64 = 16;

/// A file in a memfd that has shrunk to this many pages goes back to the heap. Well under [`MOST_IN_HEAP`], so that a
/// file does not go to and fro.
const BACK_TO_HEAP: u64 = 8;

/// A file in the heap that found no descriptor and grew beyond this many pages stays there: copying it would take its
/// memory twice, and its writer's time.
const MOST_MOVED: u64 = 4096;

/// Where a file's bytes are kept. Which it is shows in no answer but the kind of a plan's segments.
#[derive(Debug)]
pub(super) enum Tier {
    /// In the heap: small files, and those for which there was no descriptor.
    Heap(Heap),
    /// In a memfd.
    Memfd(Box<Memfd>),
}

impl Default for Tier {
    fn default() -> Self {
        Self::Heap(Heap::default())
    }
}

impl Tier {
    /// Number of pages that the file takes.
    pub(super) fn pages(&self) -> u64 {
        match self {
            Self::Heap(heap) => heap.pages(),
            Self::Memfd(memfd) => memfd.pages(),
        }
    }

    /// How many of `pages` the file has.
    pub(super) fn held(&self, pages: &Range<u64>) -> u64 {
        match self {
            Self::Heap(heap) => heap.held(pages),
            Self::Memfd(memfd) => memfd.held(pages),
        }
    }

    /// The first run of written pages in `within`.
    pub(super) fn next_written(&self, within: Range<u64>) -> Option<Range<u64>> {
        match self {
            Self::Heap(heap) => heap.next_written(within),
            Self::Memfd(memfd) => memfd.next_written(within),
        }
    }

    /// Where `bytes`, which end within the file, are.
    pub(super) fn plan(&self, bytes: Range<u64>) -> ReadPlan<'_> {
        match self {
            Self::Heap(heap) => heap.plan(bytes),
            Self::Memfd(memfd) => memfd.plan(bytes),
        }
    }

    /// Writes as much of `data` as there is memory for; nothing where that fails.
    pub(super) fn write(&mut self, store: &Store, offset: u64, data: &[u8]) -> Result<usize> {
        match self {
            Self::Heap(heap) => heap.write(store, offset, data),
            Self::Memfd(memfd) => memfd.write(offset, data),
        }
    }

    /// The file, of `old` bytes, is to have `size` bytes; what is beyond is freed unless the file grows.
    pub(super) fn resize(&mut self, store: &Store, old: u64, size: u64) -> Result<()> {
        match self {
            Self::Heap(heap) if size <= old => heap.cut(store, size),
            Self::Heap(_) => {}
            Self::Memfd(memfd) => memfd.resize(size, size <= old)?,
        }
        Ok(())
    }

    /// Frees the pages that lie wholly in `bytes`, of which there is at least one, and fills the rest with zeros.
    pub(super) fn punch(&mut self, store: &Store, bytes: &Range<u64>) -> Result<()> {
        match self {
            Self::Heap(heap) => heap.punch(store, bytes),
            Self::Memfd(memfd) => memfd.punch(bytes)?,
        }
        Ok(())
    }

    /// Promises the pages of `bytes` that are not written; a file in a memfd has them set aside by the system and
    /// grows to hold `bytes` unless `keep_size`.
    pub(super) fn reserve(&mut self, bytes: &Range<u64>, keep_size: bool) -> Result<()> {
        if let Self::Memfd(memfd) = self {
            memfd.reserve(bytes, keep_size)?;
        }
        let pages = touched(bytes);
        let mut from = pages.start;
        while from < pages.end {
            let written = self.next_written(from..pages.end).unwrap_or(pages.end..pages.end);
            match self {
                Self::Heap(heap) => heap.promise(from..written.start),
                Self::Memfd(memfd) => memfd.promise(from..written.start),
            }
            from = written.end;
        }
        Ok(())
    }

    /// Before the file, of `size` bytes, takes `more` pages: moves it to a memfd if it outgrows the heap. Where that
    /// does not succeed, for want of a descriptor or of memory, it is as good in the heap.
    pub(super) fn before_growth(&mut self, store: &Store, size: u64, more: u64) {
        if let Self::Heap(heap) = self
            && heap.pages() + more > MOST_IN_HEAP
            && heap.pages() <= MOST_MOVED
        {
            match Memfd::holding(store, heap, size) {
                Ok(memfd) => {
                    store.heap.freed(heap.bytes());
                    *self = Self::Memfd(Box::new(memfd));
                }
                Err(e) => store.tell_refusal(&e),
            }
        }
    }

    /// After the file, now of `size` bytes, has lost pages: moves it back to the heap if it is small again. Where it
    /// cannot be read, it stays where it is.
    pub(super) fn after_loss(&mut self, store: &Store, size: u64) {
        if let Self::Memfd(memfd) = self
            && memfd.pages() <= BACK_TO_HEAP
            && let Ok(heap) = memfd.read_back(size)
        {
            store.heap.grew(heap.bytes());
            *self = Self::Heap(heap);
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, store: &Store) {
        if let Self::Heap(heap) = self {
            store.heap.freed(heap.bytes());
        }
        *self = Self::default();
    }
}
