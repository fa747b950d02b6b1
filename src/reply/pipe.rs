//! Pipes between a source and the device, and the hole that zeros come from.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::aligned::PAGE;

/// What an unprivileged pipe may hold by default (/proc/sys/fs/pipe-max-size), and what we ask for: 256 pages.
const WANTED: usize = 256 * PAGE;
/// A pipe for fewer pages than this cannot carry a reply worth splicing.
const FEWEST_PAGES: usize = 32;

/// The most bytes a READ may ask for (mount option `max_read`): one pipe carries them in one reply, with one slot for the
/// header and one because an unaligned read touches a page more.
pub fn max_read_bytes() -> usize {
    WANTED - 2 * PAGE
}

/// A pipe that holds nothing.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    slots: usize,
}

impl Pipe {
    /// A pipe as large as it may be.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Over the user's limit (pipe-user-pages-soft) the pipe stays as small as it was made.
        let bytes =
            fcntl_setpipe_size(&write, WANTED).or_else(|_| rustix::pipe::fcntl_getpipe_size(&write))?;
        Ok(Self { read, write, slots: bytes / PAGE })
    }

    /// A pipe of that many pages.
    #[cfg(test)]
    pub(super) fn with_pages(pages: usize) -> Self {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let bytes = fcntl_setpipe_size(&write, pages * PAGE).unwrap();
        Self { read, write, slots: bytes / PAGE }
    }

    /// Whether a reply of `bytes` in `segments` segments fits: a slot a page, one more for each end of a segment that
    /// is not on a page boundary, and one for the header.
    pub(super) fn fits(&self, bytes: usize, segments: usize) -> bool {
        bytes.div_ceil(PAGE) + segments < self.slots
    }
}

/// A file that is one hole: splicing from it hands out the kernel's zero page and allocates nothing.
#[derive(Debug)]
pub struct ZeroSource {
    hole: OwnedFd,
}

impl ZeroSource {
    /// Length of the hole, in bytes.
    pub(super) const LEN: usize = WANTED;

    /// A new hole.
    ///
    /// # Errors
    /// Those of memfd_create(2).
    pub fn new() -> io::Result<Self> {
        let hole = memfd_create("splicefs-zeros", MemfdFlags::CLOEXEC)?;
        ftruncate(&hole, Self::LEN as u64)?;
        Ok(Self { hole })
    }
}

impl AsFd for ZeroSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hole.as_fd()
    }
}

/// Whether splice(2) from a file into a pipe of useful size works here. A host may forbid it (seccomp), a kernel may
/// refuse it.
///
/// # Errors
/// What does not work, in words.
pub fn probe() -> Result<(), String> {
    let pipe = Pipe::new().map_err(|e| format!("no pipe: {e}"))?;
    if pipe.slots < FEWEST_PAGES {
        return Err(format!("a pipe may hold only {} pages here (pipe-user-pages-soft)", pipe.slots));
    }
    let zeros = ZeroSource::new().map_err(|e| format!("no memfd: {e}"))?;
    let moved = splice(&zeros, Some(&mut 0), &pipe.write, None, PAGE, SpliceFlags::NONBLOCK);
    match moved {
        Ok(PAGE) => Ok(()),
        Ok(n) => Err(format!("splice(2) moved {n} bytes of a page")),
        Err(e) => Err(format!("splice(2): {e}")),
    }
}
