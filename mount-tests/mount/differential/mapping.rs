//! Writing through mmap(2). As `mapped.rs`, which only reads: a mapping has no safe wrapper, since the file may change
//! under it. It is written by volatile stores and never lent out as a slice.
#![allow(unsafe_code, reason = "mmap has no safe interface; see the module's comment")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::io::Errno;

/// A shared, writable mapping of the first bytes of a file.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(last());
        }
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::FAULT)?, length })
    }

    fn store(&self, offset: usize, data: &[u8]) {
        assert!(
            offset.checked_add(data.len()).is_some_and(|end| end <= self.length),
            "outside of the mapping"
        );
        for (index, &byte) in data.iter().enumerate() {
            // SAFETY: within the mapping by the assertion; volatile, since others may read.
            unsafe { self.start.as_ptr().add(offset + index).write_volatile(byte) };
        }
    }

    fn sync(&self) -> Result<(), Errno> {
        // SAFETY: exactly what `new` mapped.
        let result = unsafe { libc::msync(self.start.as_ptr().cast(), self.length, libc::MS_SYNC) };
        if result == 0 { Ok(()) } else { Err(last()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing borrows from it.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        assert_eq!(result, 0, "munmap: {}", last());
    }
}

/// Stores `data` at `offset`, which must lie within the file, and waits until it is written back.
///
/// # Errors
/// Those of mmap(2) and msync(2).
pub(crate) fn write_mapped(file: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<(), Errno> {
    const PAGE: u64 = 4096;
    let first = offset - offset % PAGE;
    // Less than a page.
    let within = usize::try_from(offset - first).map_err(|_| Errno::OVERFLOW)?;
    let mapping = Mapping::new(file, first, within + data.len())?;
    mapping.store(within, data);
    mapping.sync()
}
