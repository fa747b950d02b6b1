//! `splicefs unmount`: ends a mount, and waits until its daemon has let go of the files below.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::ask;
use crate::failure::Failure;
use crate::mount::{How, unmount_command};
use crate::vfs::Report;

/// How long a mount may take to say who serves it: one that hangs is to be unmounted all the same.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a daemon may take to end after its mount has.
const END: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Unmounts `given`, and returns when the daemon has ended, so that what it served can be unmounted next.
///
/// # Errors
/// One line that says what to do.
pub(super) fn unmount(given: &Path, lazy: bool) -> Result<(), Failure> {
    if lazy {
        return unmount_command(given, How::Lazily);
    }
    let daemon = daemon(given.to_owned());
    unmount_command(given, How::Now)?;
    if let Some(daemon) = daemon {
        match poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&END)) {
            Ok(0) => log::info!("the daemon goes on running for a while"),
            Ok(_) => {}
            Err(error) => log::info!("cannot wait for the daemon: {error}"),
        }
    }
    Ok(())
}

/// The daemon that serves `mount_point`, as far as that can be told.
fn daemon(mount_point: PathBuf) -> Option<OwnedFd> {
    let (sender, answer) = mpsc::channel();
    // It is left behind where the mount does not answer, and ends with this process.
    std::thread::spawn(move || sender.send(ask::stats(&mount_point)));
    let report: Report = serde_json::from_str(&answer.recv_timeout(ANSWER).ok()?.ok()?).ok()?;
    let pid = Pid::from_raw(i32::try_from(report.pid).ok()?)?;
    let daemon = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // In another pid namespace the number means another process.
    let name = |pid: &str| fs::read(format!("/proc/{pid}/comm")).ok();
    (name(&pid.as_raw_nonzero().to_string())? == name("self")?).then_some(daemon)
}
