//! What an open file holds, without disturbing the place of its descriptor.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::run::Side;

const PAGE: u64 = 4096;
/// The unit of st_blocks.
const BLOCK: u64 = 512;

/// Runs `action` and puts the descriptor back to where it stood.
fn in_place<T>(file: BorrowedFd<'_>, action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let place = rustix::fs::seek(file, SeekFrom::Current(0))?;
    let result = action();
    rustix::fs::seek(file, SeekFrom::Start(place))?;
    result
}

fn size(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

/// Pages with data.
fn data_pages(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    let (mut pages, mut place) = (0, 0);
    loop {
        let data = match rustix::fs::seek(file, SeekFrom::Data(place)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(pages),
            Err(errno) => return Err(errno),
        };
        place = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        pages += place.div_ceil(PAGE) - data / PAGE;
    }
}

impl Side {
    /// Whether a range of an open file, as far as the file reaches, has a hole.
    pub(crate) fn has_hole(&self, slot: usize, offset: u64, length: usize) -> bool {
        let find = || {
            let file = self.slot(slot)?;
            let end = offset.saturating_add(length as u64).min(size(file)?);
            let hole = in_place(file, || rustix::fs::seek(file, SeekFrom::Hole(offset)))?;
            Ok::<_, Errno>(hole < end)
        };
        // Without a file, or beyond its end, there is none.
        find().unwrap_or(false)
    }

    /// Whether an open file has pages that are reserved and hold no data.
    pub(crate) fn has_reserved(&self, slot: usize) -> bool {
        let find = || {
            let file = self.slot(slot)?;
            let blocks = u64::try_from(rustix::fs::fstat(file)?.st_blocks).unwrap_or(0);
            let data = in_place(file, || data_pages(file))?;
            Ok::<_, Errno>(blocks * BLOCK > data * PAGE)
        };
        find().unwrap_or(false)
    }
}
