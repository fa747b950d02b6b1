//! The daemon of a mount: its start, its descriptors, its end.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};

use super::{is_mounted, until, until_some};

/// The program under test: the one that was built for the tests, or `SPLICEFS_TESTS_BINARY`.
pub(crate) fn splicefs_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let given = std::env::var_os("SPLICEFS_TESTS_BINARY").map(PathBuf::from);
        given.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_splicefs")))
    })
}

/// The program under test, ready for arguments.
pub(crate) fn command() -> Command {
    Command::new(splicefs_binary())
}

/// A command that runs `program`, under a limit of open descriptors (RLIMIT_NOFILE, soft and hard) if one is given.
pub(crate) fn limited(program: &Path, descriptors: Option<u64>) -> Command {
    let Some(limit) = descriptors else { return Command::new(program) };
    // prlimit(1) becomes the daemon, which so starts under the limit and cannot raise it.
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limit}:{limit}")).arg(program);
    command
}

/// The program where `user` can execute it: a build directory under a private home cannot be entered.
pub(crate) fn program_for(user: Option<(u32, u32)>, dir: &Path) -> PathBuf {
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
pub(crate) struct Daemon {
    child: Child,
    baseline: usize,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, which says what it has to say in `log`, and waits until it serves `point`. It may open `own`
    /// descriptors for itself when it first needs them.
    pub(crate) fn start(mut command: Command, point: &Path, log: &Path, own: usize) -> Self {
        let out = File::create(log).expect("a log file");
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(out);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        let said = || fs::read_to_string(log).unwrap_or_default();
        until_some("the mount to appear", || {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                panic!("the daemon ended ({status}) before it served:\n{}", said());
            }
            // The entry appears before the handshake, and statfs(2) on a user's mount tells root nothing without asking the
            // daemon (fs/fuse/inode.c, `fuse_statfs`). What the daemon says last of all does.
            (is_mounted(point) && said().contains(" is mounted on ")).then_some(())
        });
        let mut daemon = Self { child, baseline: 0, log: log.to_owned() };
        daemon.baseline = daemon.open_files() + own;
        daemon
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Descriptors on files. Pipes and memory files belong to worker threads, which make them when first needed.
    pub(crate) fn open_files(&self) -> usize {
        links(self.child.id()).iter().filter(|l| l.starts_with('/') && !l.starts_with("/memfd:")).count()
    }

    /// Pipes of worker threads: each has two ends, and no thread needs more than a few.
    fn check_pipes(&self) {
        let pid = self.child.id();
        let pipes = links(pid).iter().filter(|l| l.starts_with("pipe:")).count();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads").count();
        assert!(pipes <= 8 * threads, "{pipes} pipe ends are open in {threads} threads: pipes leak");
    }

    fn is_gone(&self) -> bool {
        !Path::new(&format!("/proc/{}/fd/0", self.child.id())).exists()
    }

    /// That the daemon has let go of everything, once the kernel has; and of its pipes.
    pub(crate) fn check_descriptors(&self, point: &Path) {
        if rustix::process::geteuid().is_root() {
            until("the daemon's descriptors to be where they were", || {
                // Again each time: what the kernel was still closing could not be forgotten before.
                shrink_caches(point);
                self.is_gone() || self.open_files() <= self.baseline
            });
        }
        self.check_pipes();
    }

    /// Waits for the daemon to end by itself and checks that it succeeded.
    pub(crate) fn wait_exit(&mut self, point: &Path) {
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until_some("the daemon to exit", || self.child.try_wait().expect("waiting for the daemon"))
        }));
        let status = waited.unwrap_or_else(|panic| {
            eprintln!("what the daemon said:\n{}", self.said());
            std::panic::resume_unwind(panic)
        });
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.said());
        assert!(!is_mounted(point), "{point:?} is still mounted");
    }

    /// Kills the daemon as a crash would, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killing the daemon");
        self.child.wait().expect("waiting for the daemon");
    }

    /// After a failure: no checks, and the log shown.
    pub(crate) fn abandon(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        eprintln!("the daemon was killed ({ended:?}); it had said:\n{}", self.said());
    }
}

/// Makes the kernel forget every node that is not in use, so that the daemon can let go of them.
fn shrink_caches(point: &Path) {
    // A remount shrinks the dentry cache of this one file system. Flags do not matter any more.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if mount(None::<&str>, point, None::<&str>, flags, None::<&str>).is_err() {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("dropping caches");
    }
}

fn links(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("listing the daemon's descriptors");
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let paths = entries.filter_map(|entry| target(entry.expect("listing descriptors")));
    paths.map(|path| path.to_string_lossy().into_owned()).collect()
}
