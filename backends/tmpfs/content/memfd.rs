//! The bytes of a larger file, in a memfd: pages that splice(2) shares.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::io::{pread, pwrite, retry_on_intr};
use splicefs_core::{Errno, Error, FileExtent, ReadPlan, Result, Segment, Via};

use super::heap::Heap;
use super::pages::{bytes_of, common, count, in_memory, touched, whole};
use crate::ranges::RangeSet;
use crate::store::{PAGE, Permit, Store};

/// Pages in a memfd.
///
/// Invariants: the memfd is as long as the file, so that no extent ends early; it has room for the pages of `written`
/// and `unwritten`, which have none in common; every byte of it that is in no page of `written` is zero, or planned as
/// a zero.
#[derive(Debug)]
pub(super) struct Memfd {
    file: OwnedFd,
    /// Pages with data.
    written: RangeSet,
    /// Pages reserved by fallocate(2) and not yet written.
    unwritten: RangeSet,
    /// Given back after the descriptor is closed: fields are dropped in this order.
    _permit: Permit,
}

/// A new memfd. Its pages are never executed, which some systems insist on (`vm.memfd_noexec`); kernels before 6.3 do
/// not know the flag (memfd_create(2)).
fn create() -> rustix::io::Result<OwnedFd> {
    let create = |flags| memfd_create(c"splicefs-tmpfs", flags);
    match create(MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => create(MemfdFlags::CLOEXEC),
        other => other,
    }
}

fn write_all(file: &OwnedFd, mut offset: u64, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let n = write_some(file, offset, data)?;
        offset += n as u64;
        data = &data[n..];
    }
    Ok(())
}

/// One pwrite(2) of at least one byte.
fn write_some(file: &OwnedFd, offset: u64, data: &[u8]) -> Result<usize> {
    match retry_on_intr(|| pwrite(file, data, offset))? {
        0 => Err(Error::fault(Errno::EIO, "a memfd takes no bytes and tells no error")),
        n => Ok(n),
    }
}

/// Fills `buf` from `offset`.
///
/// # Errors
/// Those of pread(2); `EIO` where the file ends before that.
pub(super) fn read_exact(file: impl AsFd, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
    while !buf.is_empty() {
        match retry_on_intr(|| pread(file.as_fd(), &mut *buf, offset))? {
            0 => return Err(Error::fault(Errno::EIO, "a memfd is shorter than its file")),
            n => {
                offset += n as u64;
                buf = &mut buf[n..];
            }
        }
    }
    Ok(())
}

impl Memfd {
    /// A memfd with what `heap` holds of a file of `size` bytes.
    ///
    /// # Errors
    /// `EMFILE` where the budget of descriptors is used up, else those of the calls; `heap` is still whole then.
    pub(super) fn holding(store: &Store, heap: &Heap, size: u64) -> Result<Self> {
        let permit = store.take_descriptor().ok_or(Errno::EMFILE)?;
        let file = create()?;
        ftruncate(&file, size)?;
        let mut written = RangeSet::default();
        for (index, bytes) in heap.written() {
            write_all(&file, index * PAGE, bytes)?;
            written.insert(index..index + 1);
        }
        let unwritten = heap.unwritten().cloned().unwrap_or_default();
        for run in unwritten.runs(0..u64::MAX) {
            let bytes = bytes_of(&run);
            retry_on_intr(|| fallocate(&file, FallocateFlags::KEEP_SIZE, bytes.start, count(&bytes)))?;
        }
        Ok(Self { file, written, unwritten, _permit: permit })
    }

    /// The same in the heap.
    ///
    /// # Errors
    /// Those of pread(2); `ENOMEM`
    pub(super) fn read_back(&self, size: u64) -> Result<Heap> {
        Heap::filled(&self.written, &self.unwritten, size, |offset, buf| read_exact(&self.file, offset, buf))
    }

    /// Number of pages that the file takes.
    pub(super) fn pages(&self) -> u64 {
        self.written.len() + self.unwritten.len()
    }

    /// How many of `pages` the file has.
    pub(super) fn held(&self, pages: &Range<u64>) -> u64 {
        self.written.overlap(pages.clone()) + self.unwritten.overlap(pages.clone())
    }

    /// The first run of written pages in `within`.
    pub(super) fn next_written(&self, within: Range<u64>) -> Option<Range<u64>> {
        self.written.runs(within).next()
    }

    /// Where `bytes`, which end within the file, are.
    pub(super) fn plan(&self, bytes: Range<u64>) -> ReadPlan<'_> {
        let mut plan = ReadPlan::default();
        let mut planned = bytes.start;
        for run in self.written.runs(touched(&bytes)) {
            let run = common(&bytes_of(&run), &bytes);
            plan.push(Segment::Zeros(in_memory(run.start - planned)));
            plan.push(Segment::File(FileExtent {
                fd: self.file.as_fd(),
                offset: run.start,
                len: in_memory(count(&run)),
                via: Via::Splice,
            }));
            planned = run.end;
        }
        plan.push(Segment::Zeros(in_memory(bytes.end - planned)));
        plan
    }

    /// Writes as much of `data` as one pwrite(2) does.
    ///
    /// # Errors
    /// Those of pwrite(2); nothing is written then.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<usize> {
        let n = write_some(&self.file, offset, data)?;
        let pages = touched(&(offset..offset + n as u64));
        self.unwritten.remove(pages.clone());
        self.written.insert(pages);
        Ok(n)
    }

    /// Makes the file `size` bytes long. Not longer than before, that frees what is beyond, and the kernel zeroes the
    /// rest of the last page (`shmem_setattr`).
    ///
    /// # Errors
    /// Those of ftruncate(2); nothing has changed then.
    pub(super) fn resize(&mut self, size: u64, frees: bool) -> Result<()> {
        retry_on_intr(|| ftruncate(&self.file, size))?;
        if frees {
            self.forget(size.div_ceil(PAGE)..u64::MAX);
        }
        Ok(())
    }

    /// Frees the pages that lie wholly in `bytes` and fills the rest of `bytes` with zeros.
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub(super) fn punch(&mut self, bytes: &Range<u64>) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry_on_intr(|| fallocate(&self.file, flags, bytes.start, count(bytes)))?;
        self.forget(whole(bytes));
        Ok(())
    }

    /// Has the system set the pages of `bytes` aside, and the file grow to hold them unless `keep_size`. Which of the
    /// pages were not there before is for [`Self::promise`] to tell.
    ///
    /// # Errors
    /// Those of fallocate(2), which undoes what it began (`shmem_fallocate`).
    pub(super) fn reserve(&mut self, bytes: &Range<u64>, keep_size: bool) -> Result<()> {
        let flags = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        retry_on_intr(|| fallocate(&self.file, flags, bytes.start, count(bytes)))?;
        Ok(())
    }

    /// Marks `pages`, none of which is written, as promised.
    pub(super) fn promise(&mut self, pages: Range<u64>) {
        self.unwritten.insert(pages);
    }

    fn forget(&mut self, pages: Range<u64>) {
        self.written.remove(pages.clone());
        self.unwritten.remove(pages);
    }

    #[cfg(test)]
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }
}
