//! Execution by read and write: the path that serves whatever splice(2) does not.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno as Os, pread, read, writev};
use splicefs_core::{CopyReason, Errno, FileExtent, ReadPlan, Segment, Via};

use super::{HEADER, Outcome, header};

/// Reads the bytes of `plan` into `buffer`, which has room for a header before them, and sends both.
///
/// A source that ends early gives a short reply, and the segments after it are not sent: what follows a file's end is
/// not the file's.
pub(super) fn send(
    device: BorrowedFd<'_>,
    unique: u64,
    plan: &ReadPlan<'_>,
    reason: CopyReason,
    buffer: &mut [u8],
) -> Outcome {
    let room = &mut buffer[HEADER..];
    let (mut filled, mut zeros) = (0, 0);
    for segment in plan.segments() {
        let Some(place) = room.get_mut(filled..filled + segment.len()) else {
            return send_error(device, unique, Errno::EIO);
        };
        let got = match segment {
            Segment::Zeros(len) => {
                place.fill(0);
                zeros += len;
                *len
            }
            Segment::Bytes(bytes) => {
                place.copy_from_slice(bytes);
                bytes.len()
            }
            Segment::File(extent) => match read_extent(extent, place) {
                Ok(got) => got,
                // Never a short reply instead: to the kernel that is the end of the file.
                Err(e) => return send_error(device, unique, e),
            },
        };
        filled += got;
        if got < segment.len() {
            break;
        }
    }
    let sent = send_bytes(device, unique, &room[..filled]);
    sent.map_or_else(|o| o, |()| Outcome::Copied { data: filled - zeros, zeros, reason })
}

/// Reads up to `place.len()` bytes; fewer at the end of the file.
fn read_extent(extent: &FileExtent<'_>, place: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < place.len() {
        let rest = &mut place[filled..];
        let got = match extent.via {
            Via::Stream => read(extent.fd, rest),
            _ => pread(extent.fd, rest, extent.offset + filled as u64),
        };
        match got {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Os::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        // One read of such a file is one answer: a second one might wait, or begin another record.
        if matches!(extent.via, Via::Stream | Via::Copy(CopyReason::Pseudo | CopyReason::Direct)) {
            break;
        }
    }
    Ok(filled)
}

/// Sends `bytes` as the answer to `unique`.
///
/// # Errors
/// The outcome, where the reply did not arrive.
pub(super) fn send_bytes(device: BorrowedFd<'_>, unique: u64, bytes: &[u8]) -> Result<(), Outcome> {
    let header = header(unique, bytes.len(), None);
    match writev(device, &[IoSlice::new(&header), IoSlice::new(bytes)]) {
        Ok(_) => Ok(()),
        Err(Os::NOENT) => Err(Outcome::Gone),
        Err(e) => {
            log::error!("reply {unique} of {} bytes was not taken: {e}", bytes.len());
            Err(send_error(device, unique, Errno::EIO))
        }
    }
}

/// Tells the caller of `errno`.
pub(super) fn send_error(device: BorrowedFd<'_>, unique: u64, errno: Errno) -> Outcome {
    match writev(device, &[IoSlice::new(&header(unique, 0, Some(errno)))]) {
        Ok(_) => Outcome::Failed(errno),
        Err(Os::NOENT) => Outcome::Gone,
        Err(e) => {
            log::error!("reply {unique} ({errno:?}) was not taken: {e}");
            Outcome::Gone
        }
    }
}
