//! Execution by splice(2).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::{Errno as Os, write};
use rustix::pipe::{SpliceFlags, splice};
use splicefs_core::{CopyReason, FileExtent, ReadPlan, Segment};

use super::pipe::{Pipe, ZeroSource};
use super::{Engine, HEADER, Outcome, header};

impl Engine {
    /// Splices `plan`, or says why it must be copied instead; nothing has been answered then.
    pub(super) fn splice(
        &mut self,
        device: BorrowedFd<'_>,
        unique: u64,
        plan: &ReadPlan<'_>,
    ) -> Result<Outcome, CopyReason> {
        let pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => Pipe::new().map_err(|_| CopyReason::NoPipe)?,
        };
        if !pipe.fits(plan.len(), plan.segments().len()) {
            self.pipe = Some(pipe);
            return Err(CopyReason::NoPipe);
        }
        // From here on the pipe is dropped, and so closed, unless the device has taken every byte out of it.
        let zeros = fill(&pipe, &self.zeros, unique, plan)?;
        still_whole(plan)?;
        let total = HEADER + plan.len();
        match splice(&pipe.read, None, device, None, total, SpliceFlags::empty()) {
            Ok(sent) if sent == total => {
                self.pipe = Some(pipe);
                Ok(Outcome::Spliced { data: plan.len() - zeros, zeros })
            }
            Err(Os::NOENT) => Ok(Outcome::Gone),
            // Should the device have answered after all, the copy finds no one waiting, and no harm is done.
            Ok(_) | Err(_) => Err(CopyReason::DeviceRefused),
        }
    }
}

/// Puts the header and the bytes of `plan` into `pipe`; returns how many of them are a hole's.
fn fill(pipe: &Pipe, zeros: &ZeroSource, unique: u64, plan: &ReadPlan<'_>) -> Result<usize, CopyReason> {
    write_all(pipe, &header(unique, plan.len(), None))?;
    let mut holes = 0;
    for segment in plan.segments() {
        match segment {
            Segment::File(extent) => move_in(pipe, extent.fd, extent.offset, extent.len)?,
            Segment::Bytes(bytes) => write_all(pipe, bytes)?,
            Segment::Zeros(len) => {
                holes += len;
                let mut left = *len;
                while left > 0 {
                    let piece = left.min(ZeroSource::LEN);
                    move_in(pipe, zeros.as_fd(), 0, piece)?;
                    left -= piece;
                }
            }
        }
    }
    Ok(holes)
}

/// write(2) into the pipe, which copies: the header must not change after it (as vmsplice(2) would let it).
fn write_all(pipe: &Pipe, bytes: &[u8]) -> Result<(), CopyReason> {
    match write(&pipe.write, bytes) {
        Ok(n) if n == bytes.len() => Ok(()),
        _ => Err(CopyReason::NoPipe),
    }
}

/// Moves exactly `len` bytes of `fd` from `offset` into the pipe.
fn move_in(pipe: &Pipe, fd: BorrowedFd<'_>, mut offset: u64, mut len: usize) -> Result<(), CopyReason> {
    while len > 0 {
        // NONBLOCK is about the pipe: one that is full, against our reckoning, must not hold the thread for ever.
        match splice(fd, Some(&mut offset), &pipe.write, None, len, SpliceFlags::NONBLOCK) {
            Ok(0) => return Err(CopyReason::Short),
            Ok(n) => len = len.saturating_sub(n),
            Err(Os::INTR) => {}
            Err(Os::AGAIN) => return Err(CopyReason::NoPipe),
            Err(_) => return Err(CopyReason::SourceRefused),
        }
    }
    Ok(())
}

/// The pages in the pipe are the files' own. A file that shrank while they were collected has had the end of its last
/// page zeroed, which is not what it held there: such a reply is made again, by copy.
fn still_whole(plan: &ReadPlan<'_>) -> Result<(), CopyReason> {
    for segment in plan.segments() {
        let Segment::File(FileExtent { fd, offset, len, .. }) = segment else { continue };
        let st = fstat(fd).map_err(|_| CopyReason::SourceRefused)?;
        let regular = FileType::from_raw_mode(st.st_mode) == FileType::RegularFile;
        if regular && u64::try_from(st.st_size).unwrap_or(0) < offset + *len as u64 {
            return Err(CopyReason::Short);
        }
    }
    Ok(())
}
