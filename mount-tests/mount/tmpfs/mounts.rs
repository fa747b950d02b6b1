//! The file systems under comparison: the kernel's tmpfs, and ours. Both are mounted nodev, so that a device node which
//! a sequence makes opens nothing.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::observed::Observed;
use crate::differential::known::Explained;
use crate::harness::{Mount, scratch};

/// A tmpfs of the kernel's. Unmounted when dropped.
pub(crate) struct KernelTmpfs {
    dir: TempDir,
}

impl KernelTmpfs {
    /// Mounts one with the options of tmpfs(5).
    pub(crate) fn mount(options: &str) -> Self {
        let dir = scratch();
        // Transparent huge pages would change st_blocks.
        let options = format!("huge=never,mode=755,{options}");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str()))
            .expect("mounting a tmpfs");
        Self { dir }
    }

    pub(crate) fn point(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for KernelTmpfs {
    fn drop(&mut self) {
        if let Err(e) = umount2(self.point(), MntFlags::MNT_DETACH) {
            eprintln!("umount of {:?}: {e}", self.point());
        }
    }
}

/// Two mounts to compare. They end in the order of the fields.
pub(crate) struct Mounts {
    pub(crate) mounted: Mounted,
    pub(crate) native: KernelTmpfs,
}

/// What is compared with the kernel's tmpfs.
pub(crate) enum Mounted {
    Kernel(KernelTmpfs),
    /// The mount and, after it, its source.
    Passthrough(Mount, #[expect(dead_code, reason = "it stays mounted as long as the mount")] KernelTmpfs),
    Tmpfs(Observed),
}

impl Mounts {
    /// Native first.
    pub(crate) fn points(&self) -> [&Path; 2] {
        let mounted = match &self.mounted {
            Mounted::Kernel(mount) => mount.point(),
            Mounted::Passthrough(mount, _) => mount.point(),
            Mounted::Tmpfs(mount) => mount.point(),
        };
        [self.native.point(), mounted]
    }

    /// What may differ.
    pub(crate) fn explained(&self) -> Explained {
        match self.mounted {
            Mounted::Kernel(_) => Explained::Nothing,
            Mounted::Passthrough(..) => Explained::OfPassthrough,
            Mounted::Tmpfs(_) => Explained::OfTmpfs,
        }
    }
}
