//! Locks between descriptors, and polling.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::differential;
use super::script::{Script, open};
use crate::harness::until;

#[test]
fn flock_excludes() {
    differential(|script| {
        let path = script.file("file", b"x");
        let first = open(&path, OFlags::RDWR, 0).expect("open");
        let second = open(&path, OFlags::RDONLY, 0).expect("open");
        use FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared, Unlock};
        for (step, file, operation) in [
            ("first shared", &first, NonBlockingLockShared),
            ("second shared", &second, NonBlockingLockShared),
            ("second exclusive", &second, NonBlockingLockExclusive),
            ("first unlock", &first, Unlock),
            ("second exclusive", &second, NonBlockingLockExclusive),
            ("first shared", &first, NonBlockingLockShared),
            ("second downgrade", &second, NonBlockingLockShared),
            ("first shared", &first, NonBlockingLockShared),
        ] {
            script.outcome(step, rustix::fs::flock(file, operation));
        }
        drop(second);
        // A child that another test has just forked may have the description open until it executes its program.
        let exclusive = || rustix::fs::flock(&first, NonBlockingLockExclusive);
        until("the lock of a closed file to go", || exclusive().is_ok());
    });
}

fn range(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    let kind = libc::c_short::try_from(kind).expect("a small constant");
    let whence = libc::c_short::try_from(libc::SEEK_SET).expect("a small constant");
    libc::flock { l_type: kind, l_whence: whence, l_start: start, l_len: length, l_pid: 0 }
}

/// Open-file-description locks, so that two descriptors of one process exclude each other.
fn set(file: &File, kind: libc::c_int, start: i64, length: i64) -> Result<(), Errno> {
    let result = fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, length)));
    result.map(drop).map_err(|e| Errno::from_raw_os_error(e as i32))
}

#[test]
fn record_locks_exclude_by_range() {
    differential(|script| {
        let path = script.file("file", &[b'x'; 1000]);
        let first = open(&path, OFlags::RDWR, 0).expect("open");
        let second = open(&path, OFlags::RDWR, 0).expect("open");
        let reader = open(&path, OFlags::RDONLY, 0).expect("open");
        script.outcome("write 0+100", set(&first, libc::F_WRLCK, 0, 100));
        script.outcome("the same by the second", set(&second, libc::F_WRLCK, 0, 100));
        script.outcome("read 50+10", set(&second, libc::F_RDLCK, 50, 10));
        script.outcome("write 100+100", set(&second, libc::F_WRLCK, 100, 100));
        script.outcome("all by the first", set(&first, libc::F_WRLCK, 0, 0));
        script.outcome("write by a reader", set(&reader, libc::F_WRLCK, 500, 1));
        script.outcome("read by a reader", set(&reader, libc::F_RDLCK, 500, 1));
        let mut found = range(libc::F_WRLCK, 150, 1);
        let got = fcntl(&first, FcntlArg::F_OFD_GETLK(&mut found));
        script.note("whose", (got.is_ok(), found.l_type, found.l_start, found.l_len));
        script.outcome("unlock half", set(&second, libc::F_UNLCK, 100, 50));
        script.outcome("take it", set(&first, libc::F_WRLCK, 100, 50));
        drop(second);
        // As above.
        until("the locks of a closed file to go", || set(&first, libc::F_WRLCK, 0, 500).is_ok());
        script.outcome("all", set(&first, libc::F_WRLCK, 0, 0));
    });
}

#[test]
fn process_locks_are_seen_by_other_processes() {
    differential(|script| {
        let path = script.file("file", &[b'x'; 1000]);
        let file = open(&path, OFlags::RDWR, 0).expect("open");
        let ask = |script: &mut Script, step: &str| {
            // flock(1) and other lock programs use flock(2); a second view of POSIX locks is an OFD query.
            let other = open(&path, OFlags::RDWR, 0).expect("open");
            let mut found = range(libc::F_WRLCK, 0, 0);
            let got = fcntl(&other, FcntlArg::F_OFD_GETLK(&mut found));
            script.note(step, (got.is_ok(), found.l_type, found.l_start, found.l_len));
        };
        ask(script, "before");
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).expect("lock");
        ask(script, "locked");
        // Closing any descriptor of the file drops a process's locks, the one in `ask` included.
        ask(script, "after a close");
    });
}

fn readiness(script: &mut Script, step: &str, file: &File) {
    let wanted = PollFlags::IN | PollFlags::OUT | PollFlags::PRI | PollFlags::RDNORM | PollFlags::WRNORM;
    let mut polled = [PollFd::new(file, wanted)];
    let count = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    script.note(step, (count, polled[0].revents()));
}

#[test]
fn files_are_always_ready() {
    differential(|script| {
        let path = script.file("file", b"x");
        readiness(script, "a file", &open(&path, OFlags::RDWR, 0).expect("open"));
        readiness(script, "a reader", &open(&path, OFlags::RDONLY, 0).expect("open"));
        readiness(script, "a directory", &open(&script.at(""), OFlags::RDONLY, 0).expect("open"));
        rustix::fs::mkfifoat(rustix::fs::CWD, script.at("fifo"), rustix::fs::Mode::RWXU).expect("mkfifo");
        let fifo = open(&script.at("fifo"), OFlags::RDWR | OFlags::NONBLOCK, 0).expect("open");
        readiness(script, "an empty fifo", &fifo);
        rustix::io::write(&fifo, b"x").expect("write");
        readiness(script, "a fifo with data", &fifo);
    });
}
