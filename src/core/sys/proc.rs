//! What only procfs can do: an `O_PATH` descriptor opened once more, through `/proc/self/fd`; what a thread does.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

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

/// As many descriptors as one part in `share` of the limit in force (`RLIMIT_NOFILE`), at least and at most so many.
pub fn descriptor_share(share: u64, at_least: u64, at_most: u64) -> NonZeroUsize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let bound = (limit / share).clamp(at_least, at_most);
    usize::try_from(bound).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

/// What a thread does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doing {
    /// It runs, or waits for a processor.
    Runs,
    /// It waits for something that comes soon and that no signal interrupts: a lock, memory, a disk.
    Waits,
    /// It waits for something else, or has stopped or ended.
    Sleeps,
}

/// What a thread does, and has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Activity {
    /// What it does.
    pub doing: Doing,
    /// How long it has run, in the ticks of proc_pid_stat(5).
    pub ticks: u64,
}

/// What a thread does and has done; `None` for one that cannot be seen.
pub fn activity(thread: u32) -> Option<Activity> {
    let mut buffer = [0; 512];
    // The same file without `task` adds up the times of all threads of the process.
    let len = rustix::io::read(open_proc(&format!("{thread}/task/{thread}/stat")).ok()?, &mut buffer).ok()?;
    parse_activity(&buffer[..len])
}

/// Whether there is such a thread, be it hidden.
pub fn is_thread(number: u32) -> bool {
    // Negative numbers would be groups.
    let thread = i32::try_from(number).ok().and_then(Pid::from_raw);
    thread.is_some_and(|thread| test_kill_process(thread) != Err(Errno::SRCH))
}

/// The number, the name in parentheses (which may hold any byte), the state; the 14th and 15th are the times.
fn parse_activity(stat: &[u8]) -> Option<Activity> {
    let rest = std::str::from_utf8(stat.rsplit(|&byte| byte == b')').next()?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let doing = match fields.next()? {
        "R" => Doing::Runs,
        "D" => Doing::Waits,
        _ => Doing::Sleeps,
    };
    let mut ticks = fields.skip(10).map(str::parse::<u64>);
    Some(Activity { doing, ticks: ticks.next()?.ok()? + ticks.next()?.ok()? })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_one_until_it_has_ended() {
        let thread = std::thread::spawn(|| {
            let this = rustix::thread::gettid().as_raw_pid().cast_unsigned();
            assert!(is_thread(this), "it need not be the first of its process");
            this
        });
        let gone = thread.join().unwrap();
        while is_thread(gone) {}
        assert!(!is_thread(0) && !is_thread(u32::MAX), "these are groups");
    }

    #[test]
    fn the_name_of_a_thread_does_not_matter_to_what_it_does() {
        let stat =
            |name: &str, state| format!("7 ({name}) {state} 1 7 7 0 -1 4194304 5 0 0 0 30 12 0 0 20 0 1");
        let expected = |doing| Some(Activity { doing, ticks: 42 });
        assert_eq!(parse_activity(stat("cat", 'R').as_bytes()), expected(Doing::Runs));
        assert_eq!(parse_activity(stat("a) R (b", 'S').as_bytes()), expected(Doing::Sleeps));
        assert_eq!(parse_activity(stat("(", 'D').as_bytes()), expected(Doing::Waits));
        assert_eq!(parse_activity(b"7 (cat) R 1 7"), None);
        assert_eq!(parse_activity(b""), None);
    }

    #[test]
    fn a_thread_sees_itself_run() {
        let this = rustix::thread::gettid().as_raw_pid().cast_unsigned();
        let before = activity(this).unwrap();
        assert_eq!(before.doing, Doing::Runs);
        while activity(this).unwrap().ticks == before.ticks {}
        assert_eq!(activity(u32::MAX), None);
    }
}
