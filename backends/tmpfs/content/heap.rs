//! The bytes of a small file, in the heap.

use std::ops::Range;

use splicefs_core::{Errno, ReadPlan, Result, Segment};

use super::pages::{bytes_of, common, count, in_memory, touched, whole};
use crate::ranges::RangeSet;
use crate::store::{PAGE, Store};

/// A page that was written.
///
/// Invariant: `bytes` reaches neither beyond the page nor beyond the file's size, so that bytes cut off never come back;
/// what it lacks of the page reads as zeros. It is allocated with its exact length.
#[derive(Debug)]
struct Page {
    index: u64,
    bytes: Box<[u8]>,
}

impl Page {
    /// Puts `data` at `at`, zeros before it where the page held less, and returns by how much the page grew.
    fn write(&mut self, at: usize, data: &[u8]) -> Result<usize> {
        let (old, end) = (self.bytes.len(), at + data.len());
        if end <= old {
            self.bytes[at..end].copy_from_slice(data);
            return Ok(0);
        }
        let mut bytes = std::mem::take(&mut self.bytes).into_vec();
        let room = bytes.try_reserve_exact(end - old);
        if room.is_ok() {
            bytes.resize(at, 0);
            bytes.extend_from_slice(data);
        }
        self.bytes = bytes.into_boxed_slice();
        room.map(|()| end - old).map_err(|_| Errno::ENOMEM.into())
    }

    /// Drops what is at `len` and beyond, and returns how many bytes that was.
    fn cut(&mut self, len: usize) -> usize {
        let old = self.bytes.len();
        if old <= len {
            return 0;
        }
        let mut bytes = std::mem::take(&mut self.bytes).into_vec();
        bytes.truncate(len);
        self.bytes = bytes.into_boxed_slice();
        old - len
    }

    /// Where its bytes are in the file.
    fn span(&self) -> Range<u64> {
        let start = self.index * PAGE;
        start..start + self.bytes.len() as u64
    }

    /// The part of its bytes that is in `bytes` of the file, and where that begins in the file.
    fn part(&self, bytes: &Range<u64>) -> (u64, &[u8]) {
        let span = self.span();
        let part = common(&span, bytes);
        let from = in_memory(part.start - span.start).min(self.bytes.len());
        (part.start, &self.bytes[from..from + in_memory(count(&part))])
    }

    /// Overwrites with zeros what it has of `bytes` of the file.
    fn zero(&mut self, bytes: &Range<u64>) {
        let span = self.span();
        let part = common(&span, bytes);
        if !part.is_empty() {
            self.bytes[in_memory(part.start - span.start)..in_memory(part.end - span.start)].fill(0);
        }
    }
}

/// Pages in the heap. Finding one takes a binary search; a write in the middle of a file with very many pages moves
/// those behind it, which only a file meets that found no descriptor.
///
/// Invariants: `pages` ascends by index; none of `unwritten` is in `pages`, and it is absent rather than empty.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pages: Vec<Page>,
    /// Pages promised by fallocate(2) and not yet written. Few files have any, hence apart.
    unwritten: Option<Box<RangeSet>>,
}

impl Heap {
    /// Number of pages that the file takes.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64 + self.unwritten.as_ref().map_or(0, |set| set.len())
    }

    /// How many of `pages` the file has.
    pub(super) fn held(&self, pages: &Range<u64>) -> u64 {
        let written = self.position(pages.end) - self.position(pages.start);
        written as u64 + self.unwritten.as_ref().map_or(0, |set| set.overlap(pages.clone()))
    }

    /// The first run of written pages in `within`.
    pub(super) fn next_written(&self, within: Range<u64>) -> Option<Range<u64>> {
        let at = self.position(within.start);
        let start = self.pages.get(at)?.index;
        let run =
            self.pages[at..].iter().zip(start..within.end).take_while(|(page, index)| page.index == *index);
        let end = start + run.count() as u64;
        (start < end).then_some(start..end)
    }

    /// Where `bytes`, which end within the file, are.
    pub(super) fn plan(&self, bytes: Range<u64>) -> ReadPlan<'_> {
        let mut plan = ReadPlan::default();
        let mut planned = bytes.start;
        for page in &self.pages[self.position(bytes.start / PAGE)..] {
            if page.index * PAGE >= bytes.end {
                break;
            }
            let (start, part) = page.part(&bytes);
            if !part.is_empty() {
                plan.push(Segment::Zeros(in_memory(start - planned)));
                plan.push(Segment::Bytes(part));
                planned = start + part.len() as u64;
            }
        }
        plan.push(Segment::Zeros(in_memory(bytes.end - planned)));
        plan
    }

    /// Writes as much of `data` as there is memory for.
    ///
    /// # Errors
    /// `ENOMEM` where that is nothing.
    pub(super) fn write(&mut self, store: &Store, offset: u64, data: &[u8]) -> Result<usize> {
        let pages = touched(&(offset..offset + data.len() as u64));
        if self.pages.is_empty() {
            // Most files are written once: no more than they need, then.
            self.pages.try_reserve_exact(in_memory(count(&pages))).map_err(|_| Errno::ENOMEM)?;
        }
        let first = self.position(pages.start);
        let (mut rest, mut at, mut grown) = (data, in_memory(offset % PAGE), 0);
        let mut result = Ok(());
        for (position, index) in (first..).zip(pages) {
            let (chunk, behind) = rest.split_at(rest.len().min(in_memory(PAGE) - at));
            match self.write_page(position, index, at, chunk) {
                Ok(n) => grown += n,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            (rest, at) = (behind, 0);
        }
        store.heap.grew(grown);
        match data.len() - rest.len() {
            0 => result.map(|()| 0),
            written => Ok(written),
        }
    }

    /// Writes `data` at `at` of page `index`, whose place among the pages is `position`; returns by how much it grew.
    fn write_page(&mut self, position: usize, index: u64, at: usize, data: &[u8]) -> Result<usize> {
        if let Some(page) = self.pages.get_mut(position).filter(|page| page.index == index) {
            return page.write(at, data);
        }
        let mut page = Page { index, bytes: Box::default() };
        let grown = page.write(at, data)?;
        self.insert(position, page)?;
        self.forget_unwritten(index..index + 1);
        Ok(grown)
    }

    fn insert(&mut self, position: usize, page: Page) -> Result<()> {
        self.pages.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.pages.insert(position, page);
        Ok(())
    }

    /// Frees what is at `size` and beyond.
    pub(super) fn cut(&mut self, store: &Store, size: u64) {
        let end = size.div_ceil(PAGE);
        let mut freed = self.drop_pages(end..u64::MAX);
        if let Some(last) = self.pages.last_mut().filter(|page| page.index == size / PAGE) {
            freed += last.cut(in_memory(size % PAGE));
        }
        store.heap.freed(freed);
    }

    /// Frees the pages that lie wholly in `bytes` and fills the rest of `bytes` with zeros.
    pub(super) fn punch(&mut self, store: &Store, bytes: &Range<u64>) {
        store.heap.freed(self.drop_pages(whole(bytes)));
        for index in [bytes.start / PAGE, (bytes.end - 1) / PAGE] {
            let position = self.position(index);
            if let Some(page) = self.pages.get_mut(position).filter(|page| page.index == index) {
                page.zero(bytes);
            }
        }
    }

    /// Frees `pages` and returns how many bytes they had.
    fn drop_pages(&mut self, pages: Range<u64>) -> usize {
        if pages.is_empty() {
            return 0;
        }
        let gone = self.position(pages.start)..self.position(pages.end);
        self.forget_unwritten(pages);
        if gone.is_empty() {
            return 0;
        }
        let freed = self.pages.drain(gone).map(|page| page.bytes.len()).sum();
        self.pages.shrink_to_fit();
        freed
    }

    /// Marks `pages`, none of which is written, as promised.
    pub(super) fn promise(&mut self, pages: Range<u64>) {
        self.unwritten.get_or_insert_default().insert(pages);
    }

    /// What is promised and not written.
    pub(super) fn unwritten(&self) -> Option<&RangeSet> {
        self.unwritten.as_deref()
    }

    fn forget_unwritten(&mut self, pages: Range<u64>) {
        if let Some(set) = &mut self.unwritten {
            set.remove(pages);
            if set.is_empty() {
                self.unwritten = None;
            }
        }
    }

    /// The written pages: index and bytes.
    pub(super) fn written(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|page| (page.index, &*page.bytes))
    }

    /// Number of bytes that the pages hold in memory.
    pub(super) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.bytes.len()).sum()
    }

    /// The pages of `written`, of a file of `size` bytes, filled by `read` from an offset; `unwritten` ones promised.
    ///
    /// # Errors
    /// Those of `read`; `ENOMEM`
    pub(super) fn filled(
        written: &RangeSet,
        unwritten: &RangeSet,
        size: u64,
        read: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut heap = Self::default();
        heap.pages.try_reserve_exact(in_memory(written.len())).map_err(|_| Errno::ENOMEM)?;
        for index in written.runs(0..u64::MAX).flatten() {
            let span = common(&bytes_of(&(index..index + 1)), &(0..size));
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(in_memory(count(&span))).map_err(|_| Errno::ENOMEM)?;
            bytes.resize(in_memory(count(&span)), 0);
            read(span.start, &mut bytes)?;
            heap.pages.push(Page { index, bytes: bytes.into_boxed_slice() });
        }
        for run in unwritten.runs(0..u64::MAX) {
            heap.promise(run);
        }
        Ok(heap)
    }

    /// Where page `index` is among the pages, or would be.
    fn position(&self, index: u64) -> usize {
        self.pages.partition_point(|page| page.index < index)
    }
}
