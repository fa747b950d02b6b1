//! The bytes of one regular file.

mod heap;
mod memfd;
#[cfg(test)]
mod model;
mod pages;
#[cfg(test)]
mod tests;
mod tier;

use std::ops::Range;

use splicefs_core::{Errno, ReadPlan, Result, SeekTo, Segment, Span};

use crate::store::{PAGE, Store};
use pages::{bytes_of, common, count, in_memory, touched};
use tier::Tier;

/// The largest size of a file, in bytes (`MAX_LFS_FILESIZE`).
const MAX_SIZE: u64 = i64::MAX as u64;

/// The bytes of one regular file, sparse, and the room they take.
///
/// Every page that the file has, written or only promised by fallocate(2), is taken from the limits of the store it is
/// used with, until [`Self::clear`]; each operation leaves it so, failed ones included. Not synchronized.
#[derive(Debug, Default)]
pub(crate) struct Content {
    size: u64,
    tier: Tier,
}

// A million small files have a million of these.
const _: () = assert!(size_of::<Content>() <= 48);

impl Content {
    /// An empty file.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Length in bytes (`i_size`).
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Number of pages that the file takes, those set aside beyond its end included.
    pub(crate) fn pages(&self) -> u64 {
        self.tier.pages()
    }

    /// Where the bytes of `span` are; ends at the size. What was not written is zeros.
    pub(crate) fn plan(&self, span: Span) -> ReadPlan<'_> {
        let end = span.offset.saturating_add(span.len as u64).min(self.size);
        if span.offset >= end {
            return ReadPlan::end_of_file();
        }
        self.tier.plan(span.offset..end)
    }

    /// Reads into `buf` from `offset`, up to the end of the file, and returns how many bytes that were.
    ///
    /// # Errors
    /// Those of pread(2) on a memfd, which are trouble of the host.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let plan = self.plan(Span { offset, len: buf.len() });
        let mut rest = &mut *buf;
        for segment in plan.segments() {
            let (part, behind) = rest.split_at_mut(segment.len());
            match segment {
                Segment::Zeros(_) => part.fill(0),
                Segment::Bytes(bytes) => part.copy_from_slice(bytes),
                Segment::File(extent) => memfd::read_exact(extent.fd, extent.offset, part)?,
            }
            rest = behind;
        }
        Ok(plan.len())
    }

    /// Writes what there is room for of `data` at `offset`, and returns how much that was (`generic_perform_write`).
    ///
    /// # Errors
    /// `ENOSPC` where there is room for no byte, `EFBIG` at the largest size; else those of pwrite(2) on a memfd.
    /// Nothing is written then.
    pub(crate) fn write(&mut self, store: &Store, offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_SIZE {
            return Err(Errno::EFBIG.into());
        }
        let end = offset.saturating_add(data.len() as u64).min(MAX_SIZE);
        let pages = touched(&(offset..end));
        let missing = count(&pages) - self.tier.held(&pages);
        let granted = store.limits.take_some_pages(missing);
        let end = if granted == missing { end } else { end.min(self.reach(pages, granted) * PAGE) };
        if end <= offset {
            // Not even the first page, so none was granted.
            return Err(Errno::ENOSPC.into());
        }
        self.tier.before_growth(store, self.size, granted);
        let taken = self.pages() + granted;
        let result = self.tier.write(store, offset, &data[..in_memory(end - offset)]);
        store.limits.give_pages(taken - self.pages());
        if let Ok(written) = &result {
            self.size = self.size.max(offset + *written as u64);
        }
        result
    }

    /// The page, of `pages`, that the file lacks when it is given `granted` more of them.
    fn reach(&self, pages: Range<u64>, granted: u64) -> u64 {
        let end = pages.end;
        let mut lacking = pages.filter(|page| self.tier.held(&(*page..page + 1)) == 0);
        lacking.nth(in_memory(granted)).unwrap_or(end)
    }

    /// Makes the file `size` bytes long (`shmem_setattr`). Unless it grows, what is beyond is freed, pages set aside
    /// there included; growing takes nothing.
    ///
    /// # Errors
    /// `EFBIG` over the largest size; else those of ftruncate(2) on a memfd. Nothing has changed then.
    pub(crate) fn truncate(&mut self, store: &Store, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG.into());
        }
        if size == 0 {
            self.clear(store);
            return Ok(());
        }
        let taken = self.pages();
        self.tier.resize(store, self.size, size)?;
        self.size = size;
        self.settle_loss(store, taken);
        Ok(())
    }

    /// Sets the pages of `len` bytes from `offset` aside, all or none, and extends the file to hold them unless
    /// `keep_size` (fallocate(2), mode 0 or `FALLOC_FL_KEEP_SIZE`).
    ///
    /// # Errors
    /// `ENOSPC`; `EINVAL` and `EFBIG` for a range that is none; else those of fallocate(2) on a memfd.
    pub(crate) fn allocate(&mut self, store: &Store, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let bytes = range(offset, len)?;
        let pages = touched(&bytes);
        let missing = count(&pages) - self.tier.held(&pages);
        if !store.host_may_hold(missing) {
            return Err(Errno::ENOSPC.into());
        }
        store.limits.take_pages(missing)?;
        self.tier.before_growth(store, self.size, missing);
        let taken = self.pages() + missing;
        let result = self.tier.reserve(&bytes, keep_size);
        store.limits.give_pages(taken - self.pages());
        if result.is_ok() && !keep_size {
            self.size = self.size.max(bytes.end);
        }
        result
    }

    /// Makes a hole of `len` bytes from `offset`: frees the pages within and zeroes what is left; the size stays
    /// (fallocate(2), `FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// `EINVAL` and `EFBIG` for a range that is none; else those of fallocate(2) on a memfd.
    pub(crate) fn punch(&mut self, store: &Store, offset: u64, len: u64) -> Result<()> {
        let bytes = range(offset, len)?;
        let taken = self.pages();
        self.tier.punch(store, &bytes)?;
        self.settle_loss(store, taken);
        Ok(())
    }

    /// The next data or hole at or after `offset` (`shmem_file_llseek`); pages that are set aside are a hole, and so is
    /// the end.
    ///
    /// # Errors
    /// `ENXIO` at and past the end, and where no data follows.
    pub(crate) fn seek(&self, offset: u64, to: SeekTo) -> Result<u64> {
        let data = self.next_data(offset, self.size);
        match to {
            _ if offset >= self.size => Err(Errno::ENXIO.into()),
            SeekTo::Data => data.map(|run| run.start).ok_or(Errno::ENXIO.into()),
            SeekTo::Hole => Ok(data.filter(|run| run.start == offset).map_or(offset, |run| run.end)),
        }
    }

    /// The next run of written bytes in `from..to` and within the size; for copies that keep holes.
    pub(crate) fn next_data(&self, from: u64, to: u64) -> Option<Range<u64>> {
        let within = from..to.min(self.size);
        if within.is_empty() {
            return None;
        }
        let run = self.tier.next_written(touched(&within))?;
        Some(common(&bytes_of(&run), &within))
    }

    /// Gives everything back and leaves an empty file.
    pub(crate) fn clear(&mut self, store: &Store) {
        store.limits.give_pages(self.pages());
        self.discard(store);
    }

    /// Leaves an empty file, whose pages were given back before.
    pub(crate) fn discard(&mut self, store: &Store) {
        self.tier.clear(store);
        self.size = 0;
    }

    /// After pages of the file, which took `taken` of them, were freed.
    fn settle_loss(&mut self, store: &Store, taken: u64) {
        store.limits.give_pages(taken - self.pages());
        self.tier.after_loss(store, self.size);
    }
}

/// The bytes that fallocate(2) is asked about (`vfs_fallocate`).
fn range(offset: u64, len: u64) -> Result<Range<u64>> {
    if len == 0 || offset > MAX_SIZE {
        return Err(Errno::EINVAL.into());
    }
    match offset.checked_add(len) {
        Some(end) if end <= MAX_SIZE => Ok(offset..end),
        _ => Err(Errno::EFBIG.into()),
    }
}
