//! What statx(2) tells, as attributes and as identity.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp, statx};
use splicefs_core::{Attr, FileKind, Protection, Result, Timestamp};

use crate::unmapped;

/// What tells one source file from every other, at any time of the mount's life.
///
/// The mount is in it because a bind mount shows one directory twice, and a directory can be one node only once; the
/// birth time is in it because inode numbers are used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Identity {
    /// A number that mount(2) gives out, from 1 (`mnt_alloc_id` in fs/namespace.c).
    mount: u32,
    /// As the kernel keeps it, 12 bits of major and 20 of minor number (`MKDEV`).
    dev: u32,
    ino: u64,
    /// The nanoseconds in the upper 30 bits, then the seconds without their upper half, then the type.
    born_as: u64,
}

/// Width of a device's minor number, in bits.
const MINOR_BITS: u32 = 20;

impl Identity {
    pub(crate) fn of(st: &Statx, birth_counts: bool) -> Self {
        let born = if birth_counts && StatxFlags::from_bits_retain(st.stx_mask).contains(StatxFlags::BTIME) {
            let seconds = st.stx_btime.tv_sec.cast_unsigned() & Self::SECONDS;
            u64::from(st.stx_btime.tv_nsec) << 34 | seconds << 4
        } else {
            0
        };
        Self {
            mount: u32::try_from(st.stx_mnt_id).unwrap_or(u32::MAX),
            dev: st.stx_dev_major << MINOR_BITS | st.stx_dev_minor,
            ino: st.stx_ino,
            born_as: born | u64::from(st.stx_mode >> TYPE_SHIFT),
        }
    }

    /// The inode number.
    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    /// As many of the seconds since 1970 as are kept.
    pub(crate) const SECONDS: u64 = 0x3fff_ffff;

    /// Seconds, of which only some bits are kept ([`Identity::SECONDS`]), and nanoseconds of the birth time; `None` where it is not known, or
    /// tells nothing apart.
    pub(crate) fn born(&self) -> Option<(u64, u64)> {
        let (seconds, nanoseconds) = (self.born_as >> 4 & Self::SECONDS, self.born_as >> 34);
        (self.born_as >> 4 != 0).then_some((seconds, nanoseconds))
    }

    /// The device number of the file system that holds the file, as [`device`] has it.
    pub(crate) fn dev(&self) -> u64 {
        u64::from(self.dev >> MINOR_BITS) << 32 | u64::from(self.dev & ((1 << MINOR_BITS) - 1))
    }

    /// The mount and the device number of the file system that holds the file.
    pub(crate) fn file_system(&self) -> (u64, u64) {
        (u64::from(self.mount), self.dev())
    }

    /// The kind of node.
    pub(crate) fn kind(&self) -> FileKind {
        let kind = u32::try_from(self.born_as & 0xf).unwrap_or(0);
        FileKind::from_mode(kind << TYPE_SHIFT)
    }
}

/// Where the type of a file stands in its mode, four bits wide (`S_IFMT`).
const TYPE_SHIFT: u32 = 12;

/// The device number of the file system that holds the file.
pub(crate) fn device(st: &Statx) -> u64 {
    u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor)
}

fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// What `fd` has open.
pub(crate) fn of_fd(fd: impl AsFd) -> Result<Statx> {
    let mut st = statx(&fd, c"", AtFlags::EMPTY_PATH, wanted())?;
    unmapped::correct_fd(&mut st, fd.as_fd())?;
    Ok(st)
}

/// What `name` leads to in `dir`; a symbolic link itself.
pub(crate) fn of_name(dir: BorrowedFd<'_>, name: &CStr) -> Result<Statx> {
    let mut st = statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, wanted())?;
    unmapped::correct_name(&mut st, dir, name)?;
    Ok(st)
}

fn time(t: StatxTimestamp) -> Timestamp {
    Timestamp { sec: t.tv_sec, nsec: t.tv_nsec }
}

/// The attributes callers see, with inode numbers kept apart for file systems other than the root's (`root_dev`).
pub(crate) fn attr(st: &Statx, root_dev: u64) -> Attr {
    Attr {
        ino: ino(st.stx_ino, device(st), root_dev),
        size: st.stx_size,
        blocks: st.stx_blocks,
        atime: time(st.stx_atime),
        mtime: time(st.stx_mtime),
        ctime: time(st.stx_ctime),
        mode: u32::from(st.stx_mode),
        nlink: st.stx_nlink,
        uid: st.stx_uid,
        gid: st.stx_gid,
        rdev: splicefs_core::device::encode(st.stx_rdev_major, st.stx_rdev_minor),
        blksize: st.stx_blksize,
        protection: Protection {
            append: st.stx_attributes.contains(StatxAttributes::APPEND),
            immutable: st.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        },
    }
}

/// The inode number callers see. The mount has one device number, so files of a file system mounted inside the source
/// get their device mixed into the upper bits: equal numbers would make tar(1) and du(1) take them for hard links.
pub(crate) fn ino(ino: u64, dev: u64, root_dev: u64) -> u64 {
    if dev == root_dev {
        return ino;
    }
    let mixed = dev.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    let shown = ino ^ (mixed << 47);
    if shown == 0 { 1 } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_own_inode_numbers_are_shown_as_they_are_and_others_apart() {
        assert_eq!(ino(42, 7, 7), 42);
        assert_ne!(ino(42, 8, 7), 42);
        assert_ne!(ino(42, 8, 7), ino(42, 9, 7));
        assert_ne!(ino(0, 8, 7), 0);
    }

    #[test]
    fn identity_knows_a_file_again_and_tells_two_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("c"), b"").unwrap();
        let dirfd = std::fs::File::open(dir.path()).unwrap();
        let identity = |name| Identity::of(&of_name(dirfd.as_fd(), name).unwrap(), true);
        assert_eq!(identity(c"a"), identity(c"b"));
        assert_ne!(identity(c"a"), identity(c"c"));
        assert_eq!(identity(c"a").kind(), FileKind::Regular);
    }
}
