//! A `splicefs tmpfs` whose process is watched: its memory, its descriptors, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, umount2};
use rustix::fs::StatVfs;
use tempfile::TempDir;

use crate::harness::{Stats, command, is_mounted, scratch, splicefs_binary, until, until_some};

/// What a daemon's memory may differ by when it holds as much as before: what the allocator keeps, in bytes.
pub(crate) const KEPT: u64 = 16 << 20;

/// A mounted `splicefs tmpfs`. Dropping it unmounts it and checks that the daemon succeeded.
pub(crate) struct Observed {
    point: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    _dir: TempDir,
}

impl Observed {
    /// Mounts one with `options` and waits until it serves.
    pub(crate) fn mount(options: &str) -> Self {
        Self::start(command(), options)
    }

    /// The same under a limit of descriptors, as prlimit(1) takes it: `SOFT:HARD`.
    pub(crate) fn with_descriptors(limit: &str, options: &str) -> Self {
        // prlimit(1) becomes the daemon.
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(splicefs_binary());
        Self::start(command, options)
    }

    fn start(mut command: Command, options: &str) -> Self {
        let dir = scratch();
        let (point, log) = (dir.path().join("mnt"), dir.path().join("log"));
        fs::create_dir(&point).expect("mkdir");
        let out = File::create(&log).expect("a log file");
        command.arg("tmpfs").arg(&point).args(["-f", "-o", options]);
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(out);
        let child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let mut mount = Self { point, log, child: None, _dir: dir };
        let child = mount.child.insert(child);
        until_some("the tmpfs mount to appear", || {
            let ended = child.try_wait().expect("waiting for the daemon");
            let said = fs::read_to_string(&mount.log).unwrap_or_default();
            assert!(ended.is_none(), "the daemon ended ({ended:?}) before it served:\n{said}");
            (is_mounted(&mount.point) && said.contains(" is mounted on ")).then_some(())
        });
        mount
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats::of(&self.point)
    }

    /// Bytes of memory that the daemon has mapped and in use (VmRSS, proc_pid_status(5)). The pages of memfds are not
    /// mapped and not among them: [`Self::memfds`] tells whether there are any.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("reading status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kilobytes << 10
    }

    /// Number of files that the daemon keeps in a memfd each.
    pub(crate) fn memfds(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("listing descriptors");
        let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        let paths = entries.filter_map(|entry| target(entry.expect("listing descriptors")));
        paths.filter(|path| path.to_string_lossy().starts_with("/memfd:splicefs-tmpfs")).count()
    }

    pub(crate) fn room(&self) -> StatVfs {
        rustix::fs::statvfs(&self.point).expect("statvfs")
    }

    /// Bytes of files, as statfs(2) tells.
    pub(crate) fn used(&self) -> u64 {
        let room = self.room();
        (room.f_blocks - room.f_bfree) * room.f_frsize
    }

    /// Waits until no file takes room, none is in a memfd and the daemon's memory is within [`KEPT`] of `baseline`.
    pub(crate) fn until_empty(&self, baseline: u64) {
        until("the room of deleted files to be free", || self.used() == 0);
        until("the descriptors of deleted files to be closed", || self.memfds() == 0);
        until("the memory of deleted files to be given back", || self.resident() <= baseline + KEPT);
    }

    /// Kills the daemon as a crash would, and waits for its end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("killing the daemon");
        }
    }

    fn finish(&mut self) {
        let Some(child) = &mut self.child else {
            assert!(!is_mounted(&self.point), "{:?} is still mounted", self.point);
            return;
        };
        let output = command().arg("unmount").arg(&self.point).output().expect("running splicefs unmount");
        assert!(output.status.success(), "splicefs unmount: {}", String::from_utf8_lossy(&output.stderr));
        let status = until_some("the daemon to exit", || child.try_wait().expect("waiting for the daemon"));
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.said());
        self.child = None;
        assert!(!is_mounted(&self.point), "{:?} is still mounted", self.point);
    }

    /// After a failure: nothing left behind, and the log shown.
    fn abandon(&mut self) {
        eprintln!("the daemon is killed; it had said:\n{}", self.said());
        self.kill();
        if is_mounted(&self.point)
            && let Err(e) = umount2(&self.point, MntFlags::MNT_DETACH)
        {
            eprintln!("umount of {:?}: {e}", self.point);
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abandon();
        } else if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish())) {
            self.abandon();
            std::panic::resume_unwind(panic);
        }
    }
}
