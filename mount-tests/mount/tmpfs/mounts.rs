//! The file systems under comparison: the kernel's tmpfs, and ours. Both are mounted nodev, so that a device node which
//! a sequence makes opens nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::known::Explained;
use crate::harness::{Mount, command, is_mounted, scratch, until_some};

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
    Tmpfs(SplicefsTmpfs),
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

/// A mounted `splicefs tmpfs`. Dropping it unmounts it and checks that the daemon succeeded.
pub(crate) struct SplicefsTmpfs {
    point: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    _dir: TempDir,
}

impl SplicefsTmpfs {
    /// Mounts one for all users and waits until it serves.
    pub(crate) fn mount(options: &str) -> Self {
        let dir = scratch();
        let (point, log) = (dir.path().join("mnt"), dir.path().join("log"));
        fs::create_dir(&point).expect("mkdir");
        let out = File::create(&log).expect("a log file");
        let mut command = command();
        command.arg("tmpfs").arg(&point).args(["-f", "-o", "allow_other,mode=755"]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(out);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        until_some("the tmpfs mount to appear", || {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                let said = fs::read_to_string(&log).unwrap_or_default();
                panic!("the daemon ended ({status}) before it served:\n{said}");
            }
            (is_mounted(&point) && rustix::fs::statfs(&point).is_ok()).then_some(())
        });
        Self { point, log, child: Some(child), _dir: dir }
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn finish(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let output = command().arg("unmount").arg(&self.point).output().expect("running splicefs unmount");
        let failed = || format!("splicefs unmount: {}", String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            self.child = Some(child);
            panic!("{}", failed());
        }
        let status = until_some("the daemon to exit", || child.try_wait().expect("waiting for the daemon"));
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.said());
        assert!(!is_mounted(&self.point), "{:?} is still mounted", self.point);
    }

    /// Kills the daemon as a crash would, and removes the dead mount.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("killing the daemon");
        }
        if is_mounted(&self.point) {
            umount2(&self.point, MntFlags::MNT_DETACH).expect("umount");
        }
    }
}

impl Drop for SplicefsTmpfs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon is killed; it had said:\n{}", self.said());
            self.kill();
        } else {
            self.finish();
        }
    }
}
