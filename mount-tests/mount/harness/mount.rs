//! A mount that starts, is used, and ends with a clean bill: the daemon exits 0, its descriptors are back where they
//! were, and nothing stays mounted.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::daemon::{Daemon, limited, program_for};
use super::{Stats, is_mounted, native_control, scratch, until_unmounted};

/// What will be mounted. The source can be filled before [`MountBuilder::start`].
pub(crate) struct MountBuilder {
    dir: TempDir,
    source: PathBuf,
    options: Vec<String>,
    user: Option<(u32, u32)>,
    descriptor_limit: Option<u64>,
}

impl MountBuilder {
    /// The directory that is going to be mirrored.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// The directory that holds source, mount point and whatever else the test keeps.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Mirrors `source` and not the empty directory made for the test.
    pub(crate) fn mirroring(mut self, source: impl Into<PathBuf>) -> Self {
        self.source = source.into();
        self
    }

    /// Adds `-o` options.
    pub(crate) fn options(mut self, options: &str) -> Self {
        self.options.extend((!options.is_empty()).then(|| options.to_owned()));
        self
    }

    /// Mounts as a user, through fusermount3, with a source and a mount point of the user's own.
    pub(crate) fn user(mut self, (uid, gid): (u32, u32)) -> Self {
        for path in [self.source.clone(), self.dir.path().join("mnt"), self.dir.path().join("plain")] {
            chown(path, Some(uid), Some(gid)).expect("giving a directory to the user");
        }
        self.user = Some((uid, gid));
        self
    }

    /// Lowers the daemon's limit of open descriptors (RLIMIT_NOFILE, soft and hard).
    pub(crate) fn descriptor_limit(mut self, limit: u64) -> Self {
        self.descriptor_limit = Some(limit);
        self
    }

    fn daemon_command(&self, program: &Path, point: &Path) -> Command {
        let mut command = limited(program, self.descriptor_limit);
        command.arg("passthrough").arg(&self.source).arg(point).arg("-f");
        for options in &self.options {
            command.args(["-o", options]);
        }
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        command
    }

    /// Mounts and waits until the mount is there.
    pub(crate) fn start(self) -> Mount {
        let point = self.dir.path().join("mnt");
        let log = self.dir.path().join("log");
        if native_control() {
            let flags = MsFlags::MS_BIND;
            mount(Some(&self.source), &point, None::<&str>, flags, None::<&str>).expect("a bind mount");
            return Mount { dir: self.dir, source: self.source, point, daemon: None, log, user: None };
        }
        let program = program_for(self.user, self.dir.path());
        let command = self.daemon_command(&program, &point);
        let mut mount =
            Mount { dir: self.dir, source: self.source, point, daemon: None, log, user: self.user };
        mount.daemon = Some(Daemon::start(command, &mount.point, &mount.log, 0));
        mount
    }
}

/// A mounted splicefs (or, under the native control, a bind mount). Dropping it unmounts and checks.
pub(crate) struct Mount {
    dir: TempDir,
    source: PathBuf,
    point: PathBuf,
    daemon: Option<Daemon>,
    log: PathBuf,
    user: Option<(u32, u32)>,
}

impl Mount {
    pub(crate) fn builder() -> MountBuilder {
        let dir = scratch();
        let source = dir.path().join("src");
        for name in ["src", "mnt", "plain"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
            // Exactly this mode, whatever the umask.
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        MountBuilder { dir, source, options: Vec::new(), user: None, descriptor_limit: None }
    }

    /// The mount point.
    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// A plain directory on the file system of the source, as the native side of a comparison.
    pub(crate) fn plain(&self) -> PathBuf {
        self.dir.path().join("plain")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's process id; `None` under the native control.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The counters; `None` under the native control.
    pub(crate) fn stats(&self) -> Option<Stats> {
        self.daemon.is_some().then(|| Stats::of(&self.point))
    }

    /// The descriptors on files that the daemon has now.
    pub(crate) fn open_files(&self) -> usize {
        self.daemon.as_ref().map_or(0, Daemon::open_files)
    }

    /// The program's `unmount`, as whoever mounted.
    pub(crate) fn unmount_command(&self) -> Command {
        let mut command = Command::new(program_for(self.user, self.dir.path()));
        command.arg("unmount").arg(&self.point);
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        command
    }

    /// Waits for the daemon to end by itself and checks that it succeeded.
    pub(crate) fn wait_exit(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait_exit(&self.point);
        }
    }

    /// Kills the daemon as a crash would, and waits for its end.
    pub(crate) fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    fn finish(&mut self) {
        let Some(daemon) = &self.daemon else {
            if is_mounted(&self.point) {
                umount2(&self.point, MntFlags::MNT_DETACH).expect("umount");
            }
            return;
        };
        daemon.check_descriptors(&self.point);
        until_unmounted(self.unmount_command());
        self.wait_exit();
    }

    /// After a failure: no checks, nothing left behind, and the log shown.
    fn abandon(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.abandon();
        }
        if is_mounted(&self.point) && umount2(&self.point, MntFlags::MNT_DETACH).is_err() {
            let status = Command::new("fusermount3").arg("-uz").arg(&self.point).status();
            eprintln!("fusermount3 -uz: {status:?}");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abandon();
        } else if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish())) {
            self.abandon();
            std::panic::resume_unwind(panic);
        }
    }
}
