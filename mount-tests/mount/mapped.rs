//! Reading through mmap(2). This module holds the only unsafe code of the tests: a mapping has no safe wrapper, since
//! the file may change under it. It is read by volatile loads and never lent out as a slice.
#![allow(unsafe_code, reason = "mmap has no safe interface; see the module's comment")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A shared mapping of the first bytes of a file.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

impl Mapping {
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn new(file: &File, length: usize) -> io::Result<Self> {
        Self::with(file, length, libc::PROT_READ)
    }

    /// One that can be stored to.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn writable(file: &File, length: usize) -> io::Result<Self> {
        Self::with(file, length, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn with(file: &File, length: usize, protection: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { start, length, writable: protection & libc::PROT_WRITE != 0 })
    }

    /// Stores one byte.
    pub(crate) fn store(&self, offset: usize, byte: u8) {
        assert!(self.writable && offset < self.length, "outside of what may be stored to");
        // SAFETY: within the mapping and writable by the assertion; volatile, since others write.
        unsafe { self.start.as_ptr().add(offset).write_volatile(byte) }
    }

    /// Copies bytes out. Where the file has become shorter than the mapping this raises SIGBUS.
    pub(crate) fn copy(&self, offset: usize, out: &mut [u8]) {
        assert!(
            offset.checked_add(out.len()).is_some_and(|end| end <= self.length),
            "outside of the mapping"
        );
        for (index, byte) in out.iter_mut().enumerate() {
            // SAFETY: within the mapping by the assertion; a u8 has no invalid values; volatile, since others write.
            *byte = unsafe { self.start.as_ptr().add(offset + index).read_volatile() };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing borrows from it.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        assert_eq!(result, 0, "munmap: {}", io::Error::last_os_error());
    }
}
