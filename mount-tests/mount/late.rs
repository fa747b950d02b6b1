//! Answers that arrive late: whoever asked is kept from running while others change the file and are done with it.

use std::fs::{self, File};
use std::hint::spin_loop;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, truncate};
use rustix::fs::OFlags;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use crate::harness::{Need, Watchdog, ready, thread_state, until, until_stopped};
use crate::overlay::Layers;
use crate::posix::script::open;

const FILES: usize = 10;
const OLD: usize = 8192;
/// So long a thread cannot run that has its answer.
const LATE: Duration = Duration::from_millis(20);

/// The calling thread runs on this processor alone.
fn bind(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).expect("sched_setaffinity");
}

fn two_processors() -> (usize, usize) {
    let allowed = sched_getaffinity(None).expect("sched_getaffinity");
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    cpus.next().zip(cpus.next()).expect("the test needs two processors")
}

/// When the calling thread can run, nobody else on its processor can (`SCHED_FIFO`).
fn run_before_all() {
    let this = gettid().as_raw_pid().to_string();
    let status = Command::new("chrt").args(["--fifo", "--pid", "10", &this]).status();
    assert!(status.expect("running chrt").success(), "chrt");
}

fn is_asleep(thread: i32) -> bool {
    let task = format!("/proc/self/task/{thread}");
    matches!(thread_state(Path::new(&task)).expect("the thread"), 'S' | 'D')
}

/// Has `look` ask for a file on processor `cpu`, and have the answer late: the daemon stands still until it is asked, and then
/// the processor has something better to do. Meanwhile `change` is done.
fn while_looked_up(daemon: Pid, cpu: usize, look: impl FnOnce() + Send, change: impl FnOnce()) {
    let (tell, told) = channel();
    let (go, gone) = channel::<()>();
    kill(daemon, Signal::SIGSTOP).expect("stopping the daemon");
    until_stopped(daemon.as_raw().cast_unsigned());
    thread::scope(|scope| {
        let busy = scope.spawn(move || {
            bind(cpu);
            run_before_all();
            gone.recv().expect("to be told");
            let start = Instant::now();
            while start.elapsed() < LATE {
                spin_loop();
            }
        });
        let late = scope.spawn(move || {
            bind(cpu);
            tell.send(gettid().as_raw_pid()).expect("the test waits");
            look();
        });
        let late_id = told.recv().expect("it begins");
        until("the lookup to be asked for", || is_asleep(late_id));
        go.send(()).expect("it is there");
        kill(daemon, Signal::SIGCONT).expect("continuing the daemon");
        thread::sleep(LATE / 10);
        change();
        busy.join().expect("spinning");
        late.join().expect("looking up");
    });
}

/// While files are looked up, or else listed, `change` is done to them by other names, which are then removed, so that the
/// kernel forgets the inodes. In the end the files must be as `check` says.
fn changed_meanwhile(listed: bool, change: impl Fn(&Path), check: impl Fn(&Path)) {
    if !ready(&[Need::Root, Need::Fuse, Need::Splicefs, Need::Program("chrt")]) {
        return;
    }
    let _watchdog = Watchdog::new("late answers", Duration::from_secs(60));
    let layers = Layers::simple();
    // In two directories: that of a lookup is locked.
    let names = |number: usize| ["late", "others"].map(|dir| format!("{dir}{number}/file"));
    for number in 0..FILES {
        let [late, other] = names(number).map(|name| layers.upper().join(name));
        for file in [&late, &other] {
            fs::create_dir(file.parent().expect("a directory")).expect("mkdir");
        }
        fs::write(&late, [b'o'; OLD]).expect("write");
        fs::hard_link(late, other).expect("link");
    }
    let mount = layers.mount_with("passthrough=off,writeback=on");
    let daemon = Pid::from_raw(mount.stats().expect("stats").pid().cast_signed());
    let (cpu, free) = two_processors();
    bind(free);
    for number in 0..FILES {
        let [late, other] = names(number).map(|name| mount.at(name));
        // Opened beforehand, so that the files are what is asked for.
        let mut listing = fs::read_dir(late.parent().expect("a directory")).expect("opendir");
        let look = || {
            if listed {
                listing.next().expect("an entry").expect("readdir");
            } else {
                fs::metadata(&late).expect("stat");
            }
        };
        while_looked_up(daemon, cpu, look, || {
            change(&other);
            fs::remove_file(&other).expect("unlink");
        });
    }
    for number in 0..FILES {
        check(&mount.at(&names(number)[0]));
    }
    mount.unmount();
}

fn assert_holds(path: &Path, contents: &[u8]) {
    assert_eq!(fs::metadata(path).expect("stat").len(), contents.len() as u64, "{path:?}");
    assert!(fs::read(path).expect("read") == contents, "{path:?}");
}

fn is_truncated(listed: bool) {
    changed_meanwhile(
        listed,
        |path| truncate(path, 100).expect("truncate"),
        |path| assert_holds(path, &[b'o'; 100]),
    );
}

#[test]
fn regression_a_file_is_truncated_while_it_is_looked_up() {
    is_truncated(false);
}

#[test]
fn regression_a_file_is_truncated_while_it_is_listed() {
    is_truncated(true);
}

#[test]
fn regression_a_file_is_truncated_by_open_while_it_is_looked_up() {
    changed_meanwhile(
        false,
        |path| drop(open(path, OFlags::WRONLY | OFlags::TRUNC, 0).expect("open")),
        |path| assert_holds(path, b""),
    );
}

#[test]
fn regression_a_file_is_written_to_while_it_is_looked_up() {
    let appended = [&[b'o'; OLD][..], b"appended"].concat();
    changed_meanwhile(
        false,
        |path| {
            open(path, OFlags::WRONLY, 0)
                .expect("open")
                .write_all_at(b"appended", OLD as u64)
                .expect("write");
        },
        |path| assert_holds(path, &appended),
    );
}

#[test]
fn regression_a_file_gets_its_time_while_it_is_looked_up() {
    changed_meanwhile(
        false,
        |path| {
            let file = File::open(path).expect("open");
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("futimens");
        },
        |path| assert_eq!(fs::metadata(path).expect("stat").mtime(), 1_000_000, "{path:?}"),
    );
}
