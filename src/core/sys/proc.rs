//! Descriptors by path: what an `O_PATH` descriptor cannot do itself goes through `/proc/self/fd`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::Result;

/// The root of procfs, opened before anything is mounted over it.
static PROC: OnceLock<OwnedFd> = OnceLock::new();

/// Makes the process independent of mounts to come: it keeps procfs open and stands in `/proc/self/fd`, so that it
/// neither keeps a mount busy nor walks into one that it serves itself (a mount over `/proc` included).
///
/// To be called once, before threads are started and before mounting; relative paths mean nothing afterwards.
///
/// # Errors
/// Those of open(2) and chdir(2) on procfs.
pub fn detach_from_mounts() -> std::io::Result<()> {
    let proc =
        openat(rustix::fs::CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let here = openat(&proc, "self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(&here)?;
    PROC.set(proc).map_err(|_| std::io::Error::other("procfs is already held"))
}

/// Opens `path`, relative to the root of procfs.
///
/// # Errors
/// Those of open(2).
pub fn open_proc(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(match PROC.get() {
        Some(proc) => openat(proc, path, flags, Mode::empty())?,
        None => openat(rustix::fs::CWD, format!("/proc/{path}"), flags, Mode::empty())?,
    })
}

/// A path that leads to what `fd` has open, for system calls that follow symbolic links.
pub fn fd_path(fd: BorrowedFd<'_>) -> String {
    if PROC.get().is_some() {
        fd.as_raw_fd().to_string()
    } else {
        format!("/proc/self/fd/{}", fd.as_raw_fd())
    }
}

/// Opens what `fd` has open once more, with flags of its own.
///
/// # Errors
/// Those of open(2).
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    let path = fd_path(fd.as_fd());
    Ok(openat(rustix::fs::CWD, path, (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW, Mode::empty())?)
}
