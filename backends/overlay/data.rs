//! Moving data from a lower file to an upper one: cloned where the file system can, else extent by extent, so that
//! holes stay holes.

use std::os::fd::BorrowedFd;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use splicefs_core::{
    Caller, Errno, Error, FileExtent, Layer, ReadPlan, Result, SeekTo, Segment, Span, Via, WriteMode,
};

/// The most that one copy_file_range(2) is given: it cannot be interrupted meanwhile.
const STEP: u64 = 64 << 20;
/// Read and written at once where the kernel cannot copy.
const BUFFER: usize = 1 << 20;

/// An open file of a layer.
pub(crate) struct Open<'a, B: Layer> {
    pub(crate) layer: &'a B,
    pub(crate) file: &'a B::File,
}

/// Copies the first `len` bytes of a file of `size` bytes. The target is empty; holes at its end are left to the caller,
/// who sets its size.
pub(crate) fn copy<L: Layer, U: Layer>(
    from: &Open<'_, L>,
    to: &Open<'_, U>,
    len: u64,
    size: u64,
) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let descriptors = (from.layer.descriptor(from.file), to.layer.descriptor(to.file));
    if let (Some(source), Some(target)) = descriptors
        && len == size
        && ioctl_ficlone(target, source).is_ok()
    {
        return Ok(());
    }
    let mut offset = 0;
    while offset < len {
        let data = next(from, offset, SeekTo::Data, len)?;
        if data >= len {
            break;
        }
        let hole = next(from, data, SeekTo::Hole, len)?.max(data + 1).min(len);
        copy_extent(from, to, descriptors, data, hole)?;
        offset = hole;
    }
    Ok(())
}

/// The next data or hole at or after `offset`, at most `end`. A file system that knows no holes has data everywhere.
fn next<L: Layer>(from: &Open<'_, L>, offset: u64, to: SeekTo, end: u64) -> Result<u64> {
    match from.layer.seek(from.file, offset, to) {
        Ok(at) => Ok(at.clamp(offset, end)),
        Err(e) if e.errno() == Errno::ENXIO => Ok(end),
        Err(e) if matches!(e.errno(), Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ESPIPE) => {
            Ok(if to == SeekTo::Data { offset } else { end })
        }
        Err(e) => Err(e),
    }
}

fn copy_extent<L: Layer, U: Layer>(
    from: &Open<'_, L>,
    to: &Open<'_, U>,
    descriptors: (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>),
    mut offset: u64,
    end: u64,
) -> Result<()> {
    if let (Some(source), Some(target)) = descriptors {
        offset = copy_in_kernel(source, target, offset, end)?;
    }
    while offset < end {
        let want = usize::try_from(end - offset).unwrap_or(BUFFER).min(BUFFER);
        let copied = copy_by_hand(from, to, &Caller::DAEMON, (offset, offset), want)?;
        if copied == 0 {
            // The lower layer was changed underneath: what it has lost cannot be had.
            return Err(Error::fault(Errno::EIO, "a lower file became shorter while it was copied up"));
        }
        offset += copied as u64;
    }
    Ok(())
}

/// Copies as much as copy_file_range(2) will; returns where it stopped.
fn copy_in_kernel(source: BorrowedFd<'_>, target: BorrowedFd<'_>, mut offset: u64, end: u64) -> Result<u64> {
    use rustix::io::Errno as Os;
    while offset < end {
        let (mut from, mut to) = (offset, offset);
        let want = usize::try_from((end - offset).min(STEP)).unwrap_or(BUFFER);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => break,
            Ok(copied) => offset += copied as u64,
            Err(Os::INTR) => {}
            // Not between these file systems, or not this kind of file.
            Err(Os::XDEV | Os::INVAL | Os::OPNOTSUPP | Os::NOSYS | Os::BADF | Os::PERM) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(offset)
}

/// Copies up to `len` bytes through memory, from and to these offsets; returns how many.
pub(crate) fn copy_by_hand<L: Layer, U: Layer>(
    from: &Open<'_, L>,
    to: &Open<'_, U>,
    caller: &Caller,
    (source, target): (u64, u64),
    len: usize,
) -> Result<usize> {
    let mut bytes = Vec::new();
    let mut read = Ok(());
    let span = Span { offset: source, len: len.min(BUFFER) };
    from.layer.plan_read(from.file, span, &mut |plan| read = gather(plan, &mut bytes))?;
    read?;
    let mut written = 0;
    while written < bytes.len() {
        let at = target + written as u64;
        match to.layer.write(caller, to.file, at, &bytes[written..], WriteMode::default()) {
            Ok(0) => break,
            Ok(n) => written += n,
            // What was written counts; the next attempt says why it ended.
            Err(_) if written > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}

/// The bytes that a plan speaks of. Short where the source is.
fn gather(plan: &ReadPlan<'_>, bytes: &mut Vec<u8>) -> Result<()> {
    for segment in plan.segments() {
        match *segment {
            Segment::Bytes(data) => bytes.extend_from_slice(data),
            Segment::Zeros(len) => bytes.resize(bytes.len() + len, 0),
            Segment::File(FileExtent { fd, offset, len, via }) => {
                let start = bytes.len();
                bytes.resize(start + len, 0);
                let got = read_full(fd, offset, via, &mut bytes[start..])?;
                bytes.truncate(start + got);
                if got < len {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn read_full(fd: BorrowedFd<'_>, offset: u64, via: Via, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        let read = match via {
            Via::Stream => rustix::io::read(fd, rest),
            Via::Splice | Via::Copy(_) => rustix::io::pread(fd, rest, offset + filled as u64),
        };
        match read {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(filled)
}
