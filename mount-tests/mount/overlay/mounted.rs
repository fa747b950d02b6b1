//! A mounted overlay: ours, or the kernel's as the control.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, umount2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::harness::{
    Daemon, Stats, is_mounted, limited, native_control, program_for, until, until_unmounted,
};

/// Descriptors that the daemon opens when it first copies something up: of its directories below the work directory.
const OWN: usize = 3;

/// The option of splicefs by which changes are kept in memory.
pub(crate) const IN_MEMORY: &str = "upper=tmpfs";

/// Who merges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Kernel,
    Splicefs,
}

impl Engine {
    /// The engine that tests are about: ours, but the kernel's under the native control.
    pub(crate) fn tested() -> Self {
        if native_control() { Self::Kernel } else { Self::Splicefs }
    }
}

/// What to mount.
pub(crate) struct Plan<'a> {
    /// Topmost first.
    pub(crate) lowers: &'a [PathBuf],
    /// Upper and work directory.
    pub(crate) writable: Option<&'a (PathBuf, PathBuf)>,
    /// For both engines.
    pub(crate) options: &'a str,
    /// For splicefs alone.
    pub(crate) own: &'a str,
    pub(crate) point: PathBuf,
    /// For a log.
    pub(crate) dir: &'a Path,
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) descriptors: Option<u64>,
}

impl Plan<'_> {
    fn by_kernel(&self) -> rustix::io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = &context;
        fsconfig_set_string(context, "source", "overlay")?;
        for lower in self.lowers {
            fsconfig_set_string(context, "lowerdir+", lower.as_path())?;
        }
        if let Some((upper, work)) = self.writable {
            fsconfig_set_string(context, "upperdir", upper.as_path())?;
            fsconfig_set_string(context, "workdir", work.as_path())?;
        }
        for option in self.options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context, key, value)?,
                None => fsconfig_set_flag(context, option)?,
            }
        }
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let here = rustix::fs::CWD;
        move_mount(&mount, "", here, &self.point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// The command that serves in the foreground.
    fn command(&self) -> Command {
        let program = program_for(self.user, self.dir);
        let mut command = limited(&program, self.descriptors);
        let mut layers = OsString::from("lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            layers.push(if index == 0 { "" } else { ":" });
            layers.push(lower);
        }
        // What is kept in memory takes the place of the directories, which the kernel alone then has.
        if let Some((upper, work)) = self.writable.filter(|_| !self.own.contains(IN_MEMORY)) {
            for (key, path) in [(",upperdir=", upper), (",workdir=", work)] {
                layers.push(key);
                layers.push(path);
            }
        }
        command.arg("overlay").arg(&self.point).arg("-f").arg("-o").arg(layers);
        let all = if self.user.is_none() { "allow_other" } else { "" };
        for options in [all, self.options, self.own].into_iter().filter(|options| !options.is_empty()) {
            command.args(["-o", options]);
        }
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        command
    }
}

/// A mounted overlay. Dropping it unmounts it and checks how it ends.
pub(crate) struct Overlay {
    point: PathBuf,
    dir: PathBuf,
    engine: Engine,
    user: Option<(u32, u32)>,
    daemon: Option<Daemon>,
}

impl Overlay {
    pub(crate) fn start(engine: Engine, plan: &Plan<'_>) -> Self {
        let (dir, user) = (plan.dir.to_owned(), plan.user);
        let command = plan.command();
        let mut overlay = Self { point: plan.point.clone(), dir, engine, user, daemon: None };
        match engine {
            // A process of another test, in a mount namespace of its own, may still see the mount before.
            Engine::Kernel => until("the kernel to find its directories free", || match plan.by_kernel() {
                Err(rustix::io::Errno::BUSY) => false,
                mounted => mounted.map(|()| true).unwrap_or_else(|e| panic!("the kernel refuses: {e}")),
            }),
            Engine::Splicefs => {
                let log = overlay.dir.join("log");
                overlay.daemon = Some(Daemon::start(command, &overlay.point, &log, OWN));
            }
        }
        overlay
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// The counters; `None` where the kernel merges.
    pub(crate) fn stats(&self) -> Option<Stats> {
        self.daemon.is_some().then(|| Stats::of(&self.point))
    }

    /// Kills the daemon as a crash would, and clears the dead mount away. Nothing to do with the kernel but to unmount.
    pub(crate) fn kill(mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
        umount2(&self.point, MntFlags::MNT_DETACH).expect("umount of a dead mount");
    }

    /// Unmounts; a failure is a panic here and not in a drop.
    pub(crate) fn unmount(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let Some(daemon) = &mut self.daemon else {
            // A process that another test has just forked can hold descriptors of ours until it executes something.
            until("the kernel to unmount", || {
                !is_mounted(&self.point) || umount2(&self.point, MntFlags::empty()).is_ok()
            });
            return;
        };
        daemon.check_descriptors(&self.point);
        let mut command = Command::new(program_for(self.user, &self.dir));
        command.arg("unmount").arg(&self.point);
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        until_unmounted(command);
        daemon.wait_exit(&self.point);
        self.daemon = None;
    }

    /// After a failure: nothing left behind, and the log shown.
    fn abandon(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.abandon();
        }
        if is_mounted(&self.point)
            && let Err(e) = umount2(&self.point, MntFlags::MNT_DETACH)
        {
            eprintln!("umount of {:?}: {e}", self.point);
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if thread::panicking() {
            self.abandon();
        } else if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish())) {
            self.abandon();
            std::panic::resume_unwind(panic);
        }
    }
}
