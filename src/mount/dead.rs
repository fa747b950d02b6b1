//! Which mount is dead, when a path inside it cannot be looked up.

use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Entry};

/// Whether `error` is what the kernel says of a mount without its daemon.
pub(crate) fn is_from_dead_mount(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// The mount to unmount when `given` fails with ENOTCONN: the mount point itself, though `given` lies deeper. `given`
/// where the mount table does not tell.
pub(crate) fn mount_around(given: &Path) -> PathBuf {
    let entries = mountinfo::read().unwrap_or_default();
    around(given, &entries).unwrap_or_else(|| given.to_owned())
}

/// As [`mount_around`], with the mount table at hand.
pub(super) fn around(given: &Path, entries: &[Entry]) -> Option<PathBuf> {
    let absolute = std::path::absolute(given).ok()?;
    let fuse = |entry: &&Entry| entry.is_fuse();
    for ancestor in absolute.ancestors() {
        // Through symbolic links, where that goes without asking the dead mount.
        if let Ok(path) = ancestor.canonicalize()
            && let Some(entry) = mountinfo::containing(entries, &path).filter(fuse)
        {
            return Some(entry.mount_point.clone());
        }
        // Looking up a dead mount point itself may fail; looking up the directory it is in does not.
        if let (Some(parent), Some(name)) = (ancestor.parent(), ancestor.file_name())
            && let Ok(parent) = parent.canonicalize()
        {
            let path = parent.join(name);
            return mountinfo::containing(entries, &path).filter(fuse).map(|entry| entry.mount_point.clone());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_around_a_path_is_named_and_not_the_path() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let root = folder.path().canonicalize().expect("exists");
        std::fs::create_dir(root.join("mnt")).expect("mkdir");
        std::os::unix::fs::symlink(&root, root.join("link")).expect("symlink");
        let table = format!("36 27 0:40 / {} rw - fuse.splicefs /src rw\n", root.join("mnt").display());
        let entries = mountinfo::parse(table.as_bytes());
        for inside in ["mnt", "mnt/sub", "mnt/sub/deeper/still", "link/mnt/sub"] {
            assert_eq!(around(&root.join(inside), &entries), Some(root.join("mnt")), "{inside}");
        }
        assert_eq!(around(&root.join("other"), &entries), None);
    }
}
