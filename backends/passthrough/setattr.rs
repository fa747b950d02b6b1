//! Changing attributes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, ftruncate, utimensat,
};
use splicefs_core::{Attr, Caller, Errno, Error, FileKind, Result, SetAttr, SetTime, sys};

use crate::file::File;
use crate::lend::change_mode;
use crate::node::Node;
use crate::stat;
use crate::tree::{Tree, path_of};

/// Leave a time as it is (utimensat(2)).
const UTIME_OMIT: i64 = 0x3fff_fffe;
const UTIME_NOW: i64 = 0x3fff_ffff;

impl Tree {
    /// Applies `change`. Ownership first, since it clears the setuid and setgid bits that a new mode may set; times
    /// last, since everything else sets them.
    pub(crate) fn set_attr(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        file: Option<&File>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let held;
        let fd: &OwnedFd = if let Some(file) = file {
            file.fd()
        } else {
            held = self.descriptor(node)?;
            &held
        };
        // A change of nothing is chown(2) with -1 twice, which clears setuid and setgid bits like any other.
        if change.uid.is_some() || change.gid.is_some() || *change == SetAttr::default() {
            let _changing = change_mode(&self.nodes.modes, node);
            let _guard = caller.clearing(mode_of(fd)?)?;
            let uid = change.uid.map(Uid::from_raw);
            let gid = change.gid.map(Gid::from_raw);
            chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            let _changing = change_mode(&self.nodes.modes, node);
            chmodat(CWD, path_of(fd), Mode::from_bits_retain(mode & 0o7777), AtFlags::empty())?;
        }
        if let Some(size) = change.size {
            if node.identity().kind() == FileKind::BlockDevice {
                return Err(Errno::EROFS.into());
            }
            let _guard = caller.clearing(mode_of(fd)?)?;
            match file {
                Some(file) if writable(file)? => ftruncate(fd, size)?,
                // By its path, as the caller did it: of a size that stays the same, ftruncate(2) would change the time.
                _ => {
                    refuse_leased(fd)?;
                    nix::unistd::truncate(path_of(fd).as_str(), length(size)?)?;
                }
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times =
                Timestamps { last_access: timespec(change.atime), last_modification: timespec(change.mtime) };
            utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(self.attr(&self.look_truly(node, || stat::of_fd(fd))?))
    }
}

/// # Errors
/// [`Error::Leased`] where truncate(2) would wait for a lease. Other reasons to refuse it are its own to tell.
pub(crate) fn refuse_leased(fd: &OwnedFd) -> Result<()> {
    match sys::reopen(fd, OFlags::WRONLY | OFlags::NONBLOCK) {
        Err(e) if e.errno() == Errno::EAGAIN => Err(Error::Leased),
        _ => Ok(()),
    }
}

fn length(size: u64) -> Result<i64> {
    i64::try_from(size).map_err(|_| Errno::EFBIG.into())
}

pub(crate) fn mode_of(fd: &OwnedFd) -> Result<u32> {
    Ok(u32::from(stat::of_fd(fd)?.stx_mode))
}

fn writable(file: &File) -> Result<bool> {
    Ok(rustix::fs::fcntl_getfl(file.fd())?.intersects(OFlags::WRONLY | OFlags::RDWR))
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) },
    }
}
