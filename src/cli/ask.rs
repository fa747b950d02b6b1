//! Asking a mount through the extended attributes of its root, and what it means when that fails.

use std::io;
use std::path::Path;

use crate::failure::{Failure, shell_word};
use crate::mount::{dead_mount_around, is_from_dead_mount, mountinfo};
use crate::vfs::STATS_XATTR;

/// The longest value the kernel hands over (XATTR_SIZE_MAX).
const VALUE_MAX_BYTES: usize = 65536;

/// The statistics of the mount on `given`: one JSON object.
pub(super) fn stats(given: &Path) -> io::Result<String> {
    let mut value = vec![0; VALUE_MAX_BYTES];
    let length = rustix::fs::getxattr(given, STATS_XATTR, &mut value[..])?;
    value.truncate(length);
    String::from_utf8(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// One line about why the mount on `given` did not answer, in which `cannot` says what could not be done to it.
pub(super) fn explain(given: &Path, cannot: &str, error: &io::Error) -> Failure {
    let shown = given.display();
    Failure::new(match error.raw_os_error() {
        Some(libc::ENOENT) => format!("{shown} does not exist"),
        // ECONNABORTED: of a question that was asked while the daemon ended.
        _ if is_from_dead_mount(error) => {
            format!(
                "{shown} is, or lies in, a dead mount (Transport endpoint is not connected): `splicefs unmount {}`",
                shell_word(&dead_mount_around(given))
            )
        }
        Some(libc::ENODATA | libc::EOPNOTSUPP) if !mounted_on(given).is_some_and(|entry| entry.is_fuse()) => {
            format!(
                "{shown} is not the mount point of a splicefs mount: `findmnt -t fuse.splicefs` lists them"
            )
        }
        // The kernel keeps even root out of a user's mount, fs/fuse/dir.c: fuse_allow_current_process.
        Some(libc::EACCES) => format!(
            "you may not enter {shown}: only the user who mounted it may, unless it is mounted with allow_root or allow_other"
        ),
        Some(libc::ENODATA | libc::EPERM) => {
            format!("{shown} is not a splicefs mount, or you are neither the user who mounted it nor root")
        }
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => format!("{shown} is not a splicefs mount"),
        _ => format!("cannot {cannot} {shown}: {error}"),
    })
}

/// What is mounted on exactly `given`.
pub(super) fn mounted_on(given: &Path) -> Option<mountinfo::Entry> {
    let path = given.canonicalize().ok()?;
    mountinfo::top_at(&mountinfo::read().ok()?, &path).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_daemon_that_ends_meanwhile_leaves_a_dead_mount_too() {
        for errno in [libc::ENOTCONN, libc::ECONNABORTED] {
            let said = explain(Path::new("/nowhere"), "resize", &io::Error::from_raw_os_error(errno));
            assert!(said.to_string().contains("dead mount"), "{said}");
        }
    }
}
