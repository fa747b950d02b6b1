//! A mount that starts, is used, and ends with a clean bill: the daemon exits 0, its descriptors are back where they
//! were, and nothing stays mounted.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::{Stats, is_mounted, native_control, scratch, until, until_some};

/// The program under test.
pub(crate) fn splicefs_binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_splicefs"))
}

/// The program under test, ready for arguments.
pub(crate) fn command() -> Command {
    Command::new(splicefs_binary())
}

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
        // prlimit(1) becomes the daemon, which so starts under the limit and cannot raise it.
        let mut command = match self.descriptor_limit {
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).arg(program);
                command
            }
            None => Command::new(program),
        };
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
        let mut command = self.daemon_command(&program, &point);
        let out = File::create(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(out);
        let child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let mut mount =
            Mount { dir: self.dir, source: self.source, point, daemon: None, log, user: self.user };
        mount.daemon = Some(Daemon::wait_ready(child, &mount.point, &mount.log));
        mount
    }
}

/// The program where `user` can execute it: a build directory under a private home cannot be entered.
fn program_for(user: Option<(u32, u32)>, dir: &Path) -> PathBuf {
    if user.is_none() {
        return splicefs_binary().to_owned();
    }
    let copy = dir.join("splicefs");
    if !copy.exists() {
        // By another process: a descriptor of ours, open for writing, could be in a child that another test has just forked,
        // and a program that is open for writing cannot be executed (ETXTBSY).
        let status = Command::new("cp").arg(splicefs_binary()).arg(&copy).status().expect("running cp");
        assert!(status.success(), "copying the program: {status}");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    copy
}

/// The running daemon and the descriptors it began with.
struct Daemon {
    child: Child,
    baseline: usize,
}

impl Daemon {
    fn wait_ready(mut child: Child, point: &Path, log: &Path) -> Self {
        let said = || fs::read_to_string(log).unwrap_or_default();
        until_some("the mount to appear", || {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                panic!("the daemon ended ({status}) before it served:\n{}", said());
            }
            // The entry appears before the handshake, and statfs(2) on a user's mount tells root nothing without asking the
            // daemon (fs/fuse/inode.c, `fuse_statfs`). What the daemon says last of all does.
            (is_mounted(point) && said().contains(" is mounted on ")).then_some(())
        });
        let mut daemon = Self { child, baseline: 0 };
        daemon.baseline = daemon.open_files();
        daemon
    }

    /// Descriptors on files. Pipes and memory files belong to worker threads, which make them when first needed.
    fn open_files(&self) -> usize {
        links(self.child.id()).iter().filter(|l| l.starts_with('/') && !l.starts_with("/memfd:")).count()
    }

    /// Pipes of worker threads: each has two ends, and no thread needs more than a few.
    fn check_pipes(&self) {
        let pid = self.child.id();
        let pipes = links(pid).iter().filter(|l| l.starts_with("pipe:")).count();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads").count();
        assert!(pipes <= 8 * threads, "{pipes} pipe ends are open in {threads} threads: pipes leak");
    }
}

fn links(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("listing the daemon's descriptors");
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let paths = entries.filter_map(|entry| target(entry.expect("listing descriptors")));
    paths.map(|path| path.to_string_lossy().into_owned()).collect()
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
        self.daemon.as_ref().map(|daemon| daemon.child.id())
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

    /// Makes the kernel forget every node that is not in use, so that the daemon can let go of them.
    fn shrink_caches(&self) {
        if rustix::process::geteuid().is_root() {
            // A remount shrinks the dentry cache of this one file system. Flags do not matter any more.
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            if mount(None::<&str>, &self.point, None::<&str>, flags, None::<&str>).is_err() {
                fs::write("/proc/sys/vm/drop_caches", "2").expect("dropping caches");
            }
        }
    }

    fn check_descriptors(&self) {
        let Some(daemon) = &self.daemon else { return };
        if rustix::process::geteuid().is_root() {
            until("the daemon's descriptors to be where they were", || {
                // Again each time: what the kernel was still closing could not be forgotten before.
                self.shrink_caches();
                self.daemon_is_gone() || daemon.open_files() <= daemon.baseline
            });
        }
        daemon.check_pipes();
    }

    fn daemon_is_gone(&self) -> bool {
        self.daemon
            .as_ref()
            .is_none_or(|daemon| !Path::new(&format!("/proc/{}/fd/0", daemon.child.id())).exists())
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
        let Some(mut daemon) = self.daemon.take() else { return };
        let status =
            until_some("the daemon to exit", || daemon.child.try_wait().expect("waiting for the daemon"));
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        assert!(!is_mounted(&self.point), "{:?} is still mounted", self.point);
    }

    /// Kills the daemon as a crash would, and waits for its end.
    pub(crate) fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.child.kill().expect("killing the daemon");
            daemon.child.wait().expect("waiting for the daemon");
        }
    }

    fn finish(&mut self) {
        if self.daemon.is_none() {
            if is_mounted(&self.point) {
                umount2(&self.point, MntFlags::MNT_DETACH).expect("umount");
            }
            return;
        }
        self.check_descriptors();
        let output = self.unmount_command().output().expect("running splicefs unmount");
        assert!(output.status.success(), "splicefs unmount: {}", String::from_utf8_lossy(&output.stderr));
        self.wait_exit();
    }

    /// After a failure: no checks, nothing left behind, and the log shown.
    fn abandon(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let ended = daemon.child.kill().and_then(|()| daemon.child.wait());
            eprintln!("the daemon was killed ({ended:?}); it had said:\n{}", self.log());
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
