//! File systems below that hang, and callers that wait for ever: they hold up nobody else.

mod below;
mod shares;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Mount, until, until_stopped};

/// What is not held up takes no longer than this, on the busiest machine.
const SOON: Duration = Duration::from_secs(20);
/// Nothing is answered from caches.
const UNCACHED: &str = "passthrough=off,entry_timeout=0,attr_timeout=0";

/// A daemon that has been stopped. It goes on when this is dropped, so that whoever waits for it comes back.
struct Stopped(Pid);

impl Stopped {
    fn new(mount: &Mount) -> Self {
        let pid = mount.pid().expect("a daemon");
        let stopped = Self(Pid::from_raw(pid.cast_signed()));
        kill(stopped.0, Signal::SIGSTOP).expect("stopping the daemon");
        until_stopped(pid);
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(e) = kill(self.0, Signal::SIGCONT) {
            eprintln!("continuing the daemon: {e}");
        }
    }
}

/// A bind mount of one directory on another, until it is dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(what: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).expect("mkdir");
        mount(Some(what), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("umount of {:?}: {e}", self.0);
        }
    }
}

/// Waits until `count` threads of the daemon are in a system call that a stopped file system does not answer.
fn until_held(pid: u32, count: usize) {
    // The same threads in the same calls, twice.
    let mut before = Vec::new();
    until("threads of the daemon to be held", || {
        let now = held(pid);
        let are_held = now.len() >= count && now.iter().all(|thread| before.contains(thread));
        before = now;
        are_held
    });
}

/// The threads of the daemon that are in a system call by which a file system below, or a lease, can hold them.
fn held(pid: u32) -> Vec<(PathBuf, String)> {
    const HOLD: [i64; 7] = [
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_statx,
        libc::SYS_newfstatat,
        libc::SYS_fstatfs,
        libc::SYS_truncate,
        libc::SYS_getdents64,
    ];
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("listing threads");
    let tasks = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let call = fs::read_to_string(path.join("syscall")).ok()?;
        let number: i64 = call.split(' ').next()?.parse().ok()?;
        HOLD.contains(&number).then_some((path, call))
    });
    tasks.collect()
}

/// Does `what` in a thread of its own.
fn begin<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(what)
}

/// So many threads do `what`, each with its number.
fn begin_all<T: Send + 'static>(
    count: usize,
    what: impl Fn(usize) -> T + Send + Clone + 'static,
) -> Vec<JoinHandle<T>> {
    let begin = |number| {
        let what = what.clone();
        begin(move || what(number))
    };
    (0..count).map(begin).collect()
}

/// Fails unless `what` comes to an end soon.
fn soon<T: Send + 'static>(name: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    let thread = thread::spawn(move || done.send(what()));
    let result = result.recv_timeout(SOON).unwrap_or_else(|_| panic!("{name} is held up"));
    thread.join().expect("the thread").expect("the result");
    result
}
