//! Unmounting: by umount2(2) where the process may, else through fusermount3.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{dead, fusermount, mountinfo};
use crate::failure::{Failure, shell_word};

/// Whether to wait for the users of the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Unmount, or fail when it is in use.
    Now,
    /// Take it out of the tree now; it ends when its last user leaves.
    Lazily,
}

/// Why a mount could not be unmounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// A file in it is open, or it is somebody's working directory, or something is mounted in it.
    Busy,
    /// Nothing is mounted there.
    NotMounted,
    /// Another mount lies on top.
    Covered,
    /// It is somebody else's mount.
    NotPermitted,
    /// Anything else, as a sentence.
    Other(String),
}

impl Trouble {
    /// One line about `point` that says what to do.
    pub fn describe(&self, point: &Path) -> String {
        let word = shell_word(point);
        let point = point.display();
        match self {
            Self::Busy => format!(
                "{point} is in use: see by whom with `fuser -vm {word}` or `lsof +f -- {word}`, or detach it now with `splicefs unmount --lazy {word}`"
            ),
            Self::NotMounted => format!("nothing is mounted on {point}"),
            Self::Covered => {
                format!("another mount lies on top of {point}: unmount that first (`umount {word}`)")
            }
            Self::NotPermitted => {
                format!("you may not unmount {point}: only the user who mounted it and root may")
            }
            Self::Other(reason) => format!("cannot unmount {point}: {reason}"),
        }
    }
}

/// Unmounts what is on top at `point`, absolute and without symbolic links. Nothing is looked up inside it, so it works
/// on dead mounts and from the process that serves it.
///
/// # Errors
/// [`Trouble`].
pub fn unmount(point: &Path, how: How) -> Result<(), Trouble> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, how == How::Lazily);
    match rustix::mount::unmount(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Trouble::Busy),
        Err(Errno::INVAL | Errno::NOENT) => Err(Trouble::NotMounted),
        Err(Errno::PERM) if rustix::process::geteuid().is_root() => Err(Trouble::NotPermitted),
        Err(Errno::PERM) => fusermount::unmount(point, how),
        Err(error) => Err(Trouble::Other(error.to_string())),
    }
}

/// `splicefs unmount MNT`: unmounts `given`, which must be a FUSE mount.
///
/// # Errors
/// One line that says what to do.
pub fn unmount_command(given: &Path, how: How) -> Result<(), Failure> {
    let entries =
        mountinfo::read().map_err(|error| Failure::new(format!("cannot read the mount table: {error}")))?;
    let point = locate(given, &entries)?;
    match mountinfo::top_at(&entries, &point) {
        None => Err(Failure::new(not_mounted(&point, &entries))),
        Some(entry) if !entry.is_fuse() => Err(Failure::new(format!(
            "{} is no FUSE mount but a {}: use `umount {}`",
            point.display(),
            mountinfo::title(entry),
            shell_word(&point)
        ))),
        Some(_) => unmount(&point, how).map_err(|trouble| Failure::new(trouble.describe(&point))),
    }
}

/// The mount point that `given` names. Its last part is not looked up unless it must be: on a dead mount that fails.
pub(super) fn locate(given: &Path, entries: &[mountinfo::Entry]) -> Result<PathBuf, Failure> {
    let unlocated = |error: &io::Error| {
        let shown = given.display();
        Failure::new(match dead::around(given, entries).filter(|_| dead::is_from_dead_mount(error)) {
            Some(point) => format!(
                "{shown} lies in the dead mount on {}: `splicefs unmount {}`",
                point.display(),
                shell_word(&point)
            ),
            None => format!("cannot find {shown}: {error}"),
        })
    };
    let absolute = std::path::absolute(given).map_err(|error| unlocated(&error))?;
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) {
        let parent = parent.canonicalize().map_err(|error| unlocated(&error))?;
        let point = parent.join(name);
        if mountinfo::top_at(entries, &point).is_some() {
            return Ok(point);
        }
    }
    absolute.canonicalize().map_err(|error| unlocated(&error))
}

fn not_mounted(point: &Path, entries: &[mountinfo::Entry]) -> String {
    match mountinfo::containing(entries, point).filter(|entry| entry.is_fuse()) {
        Some(around) => format!(
            "{} is no mount point but lies in the one on {}: `splicefs unmount {}`",
            point.display(),
            around.mount_point.display(),
            shell_word(&around.mount_point)
        ),
        None => Trouble::NotMounted.describe(point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_or_not_fuse_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let refuse = |path: &Path| unmount_command(path, How::Now).expect_err("refused").to_string();
        assert!(refuse(folder.path()).contains("nothing is mounted on"));
        assert!(refuse(Path::new("/proc")).contains("is no FUSE mount but a proc mount"));
        assert!(refuse(Path::new("/proc/../proc/")).contains("is no FUSE mount but a proc mount"));
        assert!(refuse(&folder.path().join("none")).contains("cannot find"));
    }

    #[test]
    fn a_link_to_a_mount_point_is_followed() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).expect("symlink");
        let entries = mountinfo::read().expect("/proc is mounted");
        assert_eq!(locate(&link, &entries).expect("/proc exists"), Path::new("/proc"));
    }

    #[test]
    fn busy_names_the_tools_and_the_way_out() {
        let line = Trouble::Busy.describe(Path::new("/m"));
        assert!(line.contains("fuser -vm /m") && line.contains("splicefs unmount --lazy /m"));
        let line = Trouble::Busy.describe(Path::new("/a b"));
        assert!(line.starts_with("/a b is in use") && line.contains("unmount --lazy '/a b'"), "{line}");
    }
}
