//! Waiting for conditions. The limits only bound how long a failure takes to show.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::statfs;

const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds and fails the test, naming `what`, if it does not within half a minute.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// As [`until`], with a value.
pub(crate) fn until_some<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain for: {what}");
        thread::sleep(PAUSE);
    }
}

/// Runs `splicefs unmount`. A process that another test has just forked can hold descriptors of ours until it executes
/// something, so that the mount may be in use for a moment.
pub(crate) fn until_unmounted(mut command: Command) {
    until("the mount not to be in use and `splicefs unmount` to succeed", || {
        let output = command.output().expect("running splicefs unmount");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains("is in use"), "splicefs unmount: {said}");
        output.status.success()
    });
}

/// Unmounts, when the kernel lets it: see [`until_unmounted`] for why it may not at once.
pub(crate) fn until_umounted(point: &Path) {
    until("umount(2) to succeed", || match umount2(point, MntFlags::empty()) {
        Ok(()) => true,
        Err(Errno::EBUSY) => false,
        Err(e) => panic!("umount of {point:?}: {e}"),
    });
}

/// Waits until the daemon of the mount on `point` is known to be dead. Not by stat(2): a daemon that has been killed may live
/// long enough to answer one, and the kernel may keep that answer for ever. statfs(2) always asks.
pub(crate) fn until_dead(point: &Path) {
    until("the mount to be dead", || statfs(point).is_err());
}

/// Waits until all threads of a process have stopped: kill(2) does not wait for that, and meanwhile they run on.
pub(crate) fn until_stopped(pid: u32) {
    until("the process to stop", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads");
        tasks
            .map(|task| task.expect("a thread").path())
            .all(|task| thread_state(&task).is_none_or(|state| state == 'T'))
    });
}

/// What the thread does whose directory in procfs is `task` (proc_pid_stat(5)); `None` if it has ended.
pub(crate) fn thread_state(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // It follows on the name, which is in parentheses and may have some itself.
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    rest.chars().next()
}

/// Ends the whole test process when a test hangs: a thread stuck in a read of a mount cannot be stopped otherwise.
pub(crate) struct Watchdog {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn new(what: &'static str, limit: Duration) -> Self {
        let (done, waiting) = channel::<()>();
        let thread = thread::spawn(move || {
            if waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{what}: still not finished after {limit:?}: a hang");
                std::process::exit(101);
            }
        });
        Self { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the watchdog panicked");
        }
    }
}
