//! Opening /dev/fuse and mounting it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use super::detached::Detached;
use super::{Mount, Mounted, Request, Stage, fusermount, preflight};
use crate::failure::{Failure, shell_word};

/// The device every FUSE daemon reads its requests from.
pub(super) const DEVICE: &str = "/dev/fuse";

/// Mounts as `request` says: by mount(2) where this process may, else through fusermount3.
pub(super) fn mount(request: &Request) -> Result<Mount, Failure> {
    if !preflight::may_mount() {
        return fusermount::mount(request);
    }
    match mount_directly(request)? {
        Some(mount) => Ok(mount),
        None => fusermount::mount(request),
    }
}

/// `None` when the kernel does not let us, capability or not (a security module, seccomp).
fn mount_directly(request: &Request) -> Result<Option<Mount>, Failure> {
    if request.has_acls() {
        let device = open().map_err(|error| device_failure(&error))?;
        match Detached::make(request, &device) {
            Ok(detached) => return Ok(Some(Mount::new(device, Stage::Detached(detached)))),
            Err(error) => log::debug!("no mount that is nowhere yet: {error}"),
        }
    }
    let device = open().map_err(|error| device_failure(&error))?;
    // No NUL can be in it; an empty text would make mount(2) fail with EINVAL, which is reported.
    let data = CString::new(request.data(device.as_fd())).unwrap_or_default();
    let point = request.mount_point();
    let result =
        rustix::mount::mount(request.fsname(), point, request.fs_type(), request.flags(), data.as_c_str());
    match result {
        Ok(()) => Ok(Some(Mount::new(device, Stage::Mounted(Mounted::new(point))))),
        Err(Errno::PERM) => Ok(None),
        Err(error) => Err(mount_failure(point, error)),
    }
}

/// Why there could be no mount on `point`, and what to do about it.
pub(super) fn mount_failure(point: &Path, error: Errno) -> Failure {
    match error {
        Errno::NODEV => Failure::new("this kernel has no FUSE: load the module (`modprobe fuse`)"),
        Errno::BUSY => Failure::new(format!(
            "mount point {} is busy: see what is mounted (`findmnt {}`)",
            point.display(),
            shell_word(point)
        )),
        error => Failure::new(format!("cannot mount on {}: {error}", point.display())),
    }
}

/// Opens the device; nothing happens until it is mounted.
pub(super) fn open() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(DEVICE)?.into())
}

/// Why the device could not be opened, and what to do about it.
pub(super) fn device_failure(error: &io::Error) -> Failure {
    let message = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => format!(
            "{DEVICE} is missing: load the module (`modprobe fuse`), or pass the device into the container (`--device {DEVICE}`)"
        ),
        Some(libc::EACCES | libc::EPERM) => format!(
            "no permission to open {DEVICE}: let users open it (`chmod 666 {DEVICE}` as root), or pass the device into the container (`--device {DEVICE}`)"
        ),
        _ => format!("cannot open {DEVICE}: {error}"),
    };
    Failure::new(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_failure_says_what_to_do() {
        let of = |errno| device_failure(&io::Error::from_raw_os_error(errno)).to_string();
        assert!(of(libc::ENOENT).contains("modprobe fuse"));
        assert!(of(libc::ENODEV).contains("modprobe fuse"));
        assert!(of(libc::EACCES).contains("chmod 666 /dev/fuse"));
        assert!(of(libc::EMFILE).contains("cannot open /dev/fuse"));
    }
}
